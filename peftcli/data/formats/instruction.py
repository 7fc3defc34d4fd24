"""`instruction`: {instruction, input?, output}, as in the Alpaca data set.

Source: Taori et al., "Stanford Alpaca", 2023, https://github.com/tatsu-lab/stanford_alpaca
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.columns import row_format, string
from peftcli.data.example import Instruction


@row_format(("instruction", "output"), optional=("input",))
def instruction(row: Mapping[str, Any]) -> Instruction:
    """The instruction, what it is about (may be empty or null), and the answer."""
    about = row.get("input")
    return Instruction(
        string(row["instruction"], "instruction"),
        "" if about is None else string(about, "input"),
        string(row["output"], "output"),
    )

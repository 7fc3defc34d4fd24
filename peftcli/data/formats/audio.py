"""`audio`: {audio, text}: a recording, and what is said in it.

A recording is a file's path (from the folder of the rows' file), or what the Hub's Audio columns hold:
{bytes, path} or {array, sampling_rate}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftcli.data.audio import sound
from peftcli.data.columns import row_format, string
from peftcli.data.example import Spoken


@row_format(("audio", "text"), targets=("text",), files=("audio",))
def audio(row: Mapping[str, Any]) -> Spoken:
    """The recording and its text, which may be empty: nothing is said in silence."""
    return Spoken(sound(row["audio"]), string(row["text"], "text") if "text" in row else None)

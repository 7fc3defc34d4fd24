"""The head of a safetensors file that a stranger wrote: looked at before the file is read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from peftcli.errors import AdapterError

# Far above what the largest adapters have (a head of 10 MB is 100,000 tensors).
MOST_HEAD_BYTES = 32 * 2**20
# safetensors' names for PyTorch's. An adapter is made of no other types: complex numbers and halves of bytes are not.
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "f8_e4m3", "F8_E5M2": "f8_e5m2",
    "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8", "U8": "u8", "BOOL": "bool",
}  # fmt: skip


def check_head(path: Path) -> None:
    """Refuses a head that is too large, names a tensor twice, or has types that no adapter has.

    What else may be wrong with it, safetensors' own reader says.

    Raises:
        AdapterError: naming the file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        # A safetensors file begins with the length of its head, as 8 bytes.
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return
        if length > MOST_HEAD_BYTES:
            raise AdapterError(f"has a head of {length / 1e6:.0f} MB, which no adapter has", where=str(path))
        text = file.read(length)

    twice: list[str] = []

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.append(Counter(name for name, _ in pairs).most_common(1)[0][0])
        return found

    try:
        head = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return
    if twice:
        raise AdapterError(f"names {twice[0]!r} twice; get it again", where=str(path))
    for name, said in head.items() if isinstance(head, dict) else ():
        dtype = said.get("dtype", "F32") if isinstance(said, dict) and name != "__metadata__" else "F32"
        if isinstance(dtype, str) and dtype not in DTYPES:
            raise AdapterError(
                f"{name} is of the type {dtype[:20]}, which no adapter has; get it again", where=str(path)
            )

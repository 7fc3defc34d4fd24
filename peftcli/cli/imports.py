"""Imports without Python's collector of cycles.

PyTorch and Transformers make a million objects that stay. The collector goes through them again and again while they
come, and finds nothing: a sixth of the time that their import takes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large_imports() -> Iterator[None]:
    """For the time of imports nothing is collected; what is there at the end is never looked at again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

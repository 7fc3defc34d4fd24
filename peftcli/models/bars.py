"""Transformers' progress bars: shown on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Within it, no bar is drawn unless standard error is a terminal; afterwards all is as before."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextmanager
def conversion_bar_on_terminals_only() -> Iterator[None]:
    """The same for the one bar that Transformers draws whatever its switch says: that of reading a GGUF."""
    with bars_on_terminals_only():
        if sys.stderr.isatty():
            yield
        else:
            with redirect_stderr(io.StringIO()):
                yield

"""What Transformers shows while it loads: bars on a terminal and nowhere else, and no table of weights."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Within it, no bar is drawn unless standard error is a terminal; afterwards all is as before."""
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    if sys.stderr.isatty() or not is_progress_bar_enabled():
        yield
        return
    disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bar()


def no_load_report() -> AbstractContextManager[None]:
    """Keeps back the table of missing and unused weights, which the loader's caller says in a line."""
    return _kept_back("transformers.modeling_utils", "LOAD REPORT")


def no_advice_on_whisper() -> AbstractContextManager[None]:
    """Keeps back what Transformers' generation says of settings that its own Whisper gives it."""
    return _kept_back("transformers.generation.utils", "Passing `generation_config` together with")


def no_advice_on_torchvision() -> AbstractContextManager[None]:
    """Keeps back what Transformers says of image processors that are imported without torchvision, as here they are."""
    return _kept_back("transformers.utils.import_utils", "requires torchvision")


@contextmanager
def _kept_back(source: str, text: str) -> Iterator[None]:
    logger = logging.getLogger(source)

    def is_other(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@contextmanager
def conversion_bar_on_terminals_only() -> Iterator[None]:
    """The same for the one bar that Transformers draws whatever its switch says: that of reading a GGUF."""
    with bars_on_terminals_only():
        if sys.stderr.isatty():
            yield
        else:
            with redirect_stderr(io.StringIO()):
                yield

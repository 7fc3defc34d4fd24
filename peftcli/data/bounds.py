"""Chat templates that come from strangers: bounded in time and memory.

Transformers renders them in Jinja's sandbox, which lets none reach for Python's own things, and lets every one loop
and grow. Loops are stopped by the processor's time and texts by the memory that is left; the few operations that the
interpreter cannot be stopped in (a power of large numbers) are refused before the template is compiled.
"""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

SECONDS = 2.0  # of the processor: an honest template takes milliseconds
MEMORY = 256 * 2**20  # bytes beyond what the process has
LONGEST = 1_000_000  # characters of a template; the longest known have 20,000


class TooMuchError(RuntimeError):
    """A template took more time than it may."""


class _Generation(Extension):
    """Transformers' `{% generation %}` block, as far as parsing goes."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own protocol)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The statements inside it."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=64)
def flaw(template: str) -> str:
    """Why a template is not rendered at all, or nothing.

    Raises:
        jinja2.TemplateSyntaxError: where it is none.
        RecursionError: where it is nested too deep.
    """
    if len(template) > LONGEST:
        return f"it has {len(template):,} characters; {LONGEST:,} are the most"
    tree = jinja2.Environment(  # noqa: S701  (it only parses)
        extensions=["jinja2.ext.loopcontrols", _Generation], optimized=False
    ).parse(template)
    if tree.find(nodes.Pow) is not None:
        return "it computes a power; no template needs one"
    for product in tree.find_all(nodes.Mul):
        if not isinstance(product.left, nodes.Const) and not isinstance(product.right, nodes.Const):
            return "it multiplies what are not plain numbers; no template needs that"
    if any(call.name == "round" and (call.args or call.kwargs) for call in tree.find_all(nodes.Filter)):
        return "it rounds to a given precision; no template needs that"
    return ""


@contextmanager
def bounded() -> Iterator[None]:
    """Within it, this thread may take `SECONDS` and `MEMORY`.

    The clock is Unix's, which only the main thread can set: elsewhere there is the bound of memory alone.

    Raises:
        TooMuchError: it took longer.
        MemoryError: it took more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _used() + MEMORY
    lower = limit if soft == resource.RLIM_INFINITY else min(limit, soft)
    timed = threading.current_thread() is threading.main_thread()
    if timed:
        before = signal.signal(signal.SIGVTALRM, _stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (lower, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise TooMuchError(f"it takes more than {SECONDS:g} seconds")


def _used() -> int:
    """The address space of this process, in bytes; 0 pages where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 2**62
    return pages * resource.getpagesize()

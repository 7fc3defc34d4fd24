"""Feeds a reader for long: `python -m tests.hostile.fuzz NAME… [--inputs N | --guided N]`.

Mutations of what the reader is meant for, at random; `--guided` lets atheris (coverage) choose them instead. An input
that ends in anything else than a documented error ends the run, and is shown.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

PIECES = (
    b"\0", b"\xff", b"\xed\xa0\x80", b"{", b"}", b"[", b"]", b'"', b"'", b":", b",", b"\n", b"\r", b"\t", b"&a ", b"*a",
    b"<<: ", b"!!python/name:os.system", b"null", b"NaN", b"Infinity", b"-1", b"1e400", b"9" * 5000, b"[" * 2000,
    b"{% for a in b %}", b"{{ ", b" }}", b"\\ud800", b"../", b"/etc/passwd", b"(.*)*", b"\x1b[31m", b"true",
)  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with some bytes flipped, cut, doubled or put in."""
    for _ in range(draw.randint(1, 6)):
        at = draw.randint(0, len(content))
        end = min(len(content), at + draw.randint(0, 12))
        kind = draw.randrange(5)
        if kind == 0:
            content = content[:at] + draw.choice(PIECES) + content[at:]
        elif kind == 1:
            content = content[:at] + content[end:]
        elif kind == 2:
            content = content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
        elif kind == 3:
            content = content[:end] + content[at:end] * draw.randint(1, 4) + content[end:]
        else:
            content = content[:at] + draw.choice(PIECES) + content[end:]
    return content


def at_random(name: str, inputs: int, seed: int) -> None:
    """Tries so many mutations, and says what became of them."""
    from tests.hostile.readers import feed, seeds

    draw, starts, ends = random.Random(seed), seeds()[name], Counter[str]()
    begun = time.monotonic()
    for _ in range(inputs):
        content = mutated(draw.choice(starts), draw)
        before = time.monotonic()
        try:
            error = feed(name, content)
        except BaseException:
            print(f"{name}: {content!r}", file=sys.stderr)
            raise
        if (took := time.monotonic() - before) > 10:
            print(f"{name}: {took:.0f} s for {content!r}", file=sys.stderr)
        ends["read" if error is None else type(error).__name__] += 1
    print(f"{name}: {inputs:,} inputs in {time.monotonic() - begun:.0f} s: {dict(ends)}")


def guided(name: str, inputs: int, corpus: Path) -> None:
    """The same with atheris, which leaves the process when it is done."""
    import atheris

    # Only what is imported within it is watched.
    with atheris.instrument_imports(include=["peftcli", "json", "yaml", "csv"]):
        from tests.hostile.readers import feed, seeds
    corpus.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(seeds()[name]):
        (corpus / f"seed-{number}").write_bytes(start)

    def one(content: bytes) -> None:
        feed(name, content)

    arguments = [
        sys.argv[0],
        f"-runs={inputs}",
        "-max_len=4096",
        "-timeout=60",
        "-rss_limit_mb=4096",
        str(corpus),
    ]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--guided", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=Path("/tmp/peftcli-corpus"))
    chosen = parser.parse_args()
    for name in chosen.names:
        if chosen.guided:
            guided(name, chosen.guided, chosen.corpus)
        else:
            at_random(name, chosen.inputs, chosen.seed)


if __name__ == "__main__":
    main()

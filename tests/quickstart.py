"""The quickstart as `make quickstart` runs it, and README's transcript of it.

python tests/quickstart.py      # runs it (minutes) and rewrites the transcript in README.md
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PART = re.compile(r"(<!-- transcript -->\n).*?(<!-- end -->)", re.DOTALL)
RUN = "runs/quickstart"
# Said only by the first run on a machine.
ONCE = re.compile(r".*: unpacking it once .*\n")


def commands(run: str) -> list[str]:
    """The commands of the Makefile's target, without those that install."""
    made = subprocess.run(
        ["make", "--dry-run", "quickstart", f"RUN={run}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    lines = made.stdout.replace("\\\n", " ").splitlines()
    words = [" ".join(line.split()) for line in lines]
    return [line for line in words if re.match(r"\.venv/bin/(peftcli|python recipes/)", line)]


def transcript(run: str = RUN) -> str:
    """Each command with what it prints, standard error included, as one would see it."""
    shown = []
    for line in commands(run):
        done = subprocess.run(
            line.replace(".venv/bin", str(BIN)),
            shell=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUTF8": "1"},
        )
        printed = ONCE.sub("", done.stdout.decode("utf-8"))
        printed = "".join(f"{each.rstrip()}\n" for each in printed.splitlines())
        shown.append(f"$ {line.replace('.venv/bin/', '')}\n{printed}".replace(run, RUN))
    return "\n".join(shown)


def readme_transcript() -> str:
    """The one that README shows."""
    found = PART.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    return found[0].split("```text\n")[1].split("```\n")[0]


def main() -> None:
    """Rewrites README's transcript."""
    path = ROOT / "README.md"
    block = f"```text\n{transcript()}```\n"
    path.write_text(
        PART.sub(lambda match: match[1] + block + match[2], path.read_text(encoding="utf-8")),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

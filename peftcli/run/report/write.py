"""The work of `peftcli report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peftcli.errors import RecipeError
from peftcli.files import write_text
from peftcli.run.answers import ReportAnswer
from peftcli.run.report.facts import RunFacts, open_runs
from peftcli.run.report.page import page
from peftcli.run.report.samples import Samples, collect_samples

REPORT_NAME = "report.html"


@dataclass(frozen=True, slots=True)
class Report:
    """The page that was written, and what it tells."""

    path: Path
    runs: list[RunFacts]
    samples: Samples

    def as_dict(self) -> ReportAnswer:
        """For `--json`."""
        return {
            "report": str(self.path),
            "runs": [run.as_dict() for run in self.runs],
            "samples": {
                name: {"exact": self.samples.exact(column), "expected": self.samples.expected}
                for column, name in enumerate(self.samples.columns)
            },
        }


def write_report(folders: Sequence[Path], output: Path | None = None, samples: Sequence[Path] = ()) -> Report:
    """Writes the page, whole or not at all.

    Args:
        folders: of the runs, at least one.
        output: the file; default: report.html in the first folder.
        samples: files of answers; default: those in the runs' folders.

    Raises:
        ModelError: a folder holds no run, or a lock that cannot be read.
        DataError: a file of answers cannot be read.
        RecipeError: the page cannot be written.
    """
    if output is not None and output.suffix.lower() not in {".html", ".htm"}:
        # So that a slip of the hand does not overwrite a recipe or the run's own files.
        raise RecipeError(f"--output: {str(output)!r} is no name of a page; let it end in .html")
    runs = open_runs(folders)
    answers = collect_samples(runs, samples)
    path = output or folders[0] / REPORT_NAME
    try:
        write_text(path, page(runs, answers))
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecipeError(f"{path} cannot be written: {reason}; name another file with --output") from error
    return Report(path, runs, answers)

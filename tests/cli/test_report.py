"""`peftcli report` as a user runs it: where the page goes, what is printed, and how it is refused."""

from __future__ import annotations

import json
import resource

import pytest

from tests.run.made_runs import make_run, records, write_answers

UNWRITABLE = "cannot be written: {}; name another file with --output"


def test_the_page_goes_into_the_first_folder_and_its_name_to_standard_output(peftcli, tmp_path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    done = peftcli("report", "a", "b", check=0)
    assert done.stdout == "a/report.html\n"
    assert done.stderr == ""
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert not (tmp_path / "b" / "report.html").exists()
    # The same runs give the same page, whenever it is written.
    peftcli("report", "a", "b", "--output", "again.html", check=0)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_json_has_the_paths_and_the_numbers(peftcli, tmp_path) -> None:
    run = make_run(tmp_path / "a")
    write_answers(run / "answers.jsonl", [({"prompt": "say 1", "completion": "1"}, "1")])
    printed = json.loads(peftcli("report", "a", "-o", "page.html", "--json", check=0).stdout)
    assert printed == {
        "report": "page.html",
        "runs": [
            {
                "folder": "a",
                "finished": True,
                "steps": 8,
                "epoch": 2.0,
                "loss": 1.0,
                "metrics": {"eval_loss": 1.1, "eval_accuracy": 0.8},
                "evaluated_at": 8,
                "seconds": 16.0,
                "tokens": 800,
                "peak_memory_bytes": 2_000_000_008,
                "adapter_bytes": 4_900_000,
                "gates": {"eval_loss < 1.2": True, "eval_accuracy >= 0.9": False},
                "lines_passed_over": 0,
            }
        ],
        "samples": {"answers": {"exact": 1, "expected": 1}},
    }


def test_a_run_that_is_not_at_its_end_is_reported_and_what_cannot_be_read_is_said(peftcli, tmp_path) -> None:
    run = make_run(tmp_path / "a", logged=records(4), finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("what is this?\n" + '{"step": 5, "lo')
    done = peftcli("report", "a", check=0)
    assert done.stderr == "warning: a: lines of metrics.jsonl that are no records, left out: 1\n"


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["empty"], 4, "'empty' is no run: it has neither recipe.lock.yaml nor metrics.jsonl; name a run's output_dir"),
        (["a", "nowhere"], 4, "there is no folder 'nowhere'"),
        (["broken"], 4, "broken/recipe.lock.yaml: is not a lock that peftcli wrote; put the original back"),
        (["a", "./a"], 2, "'a' is named twice; name each run once"),
        (["a", "-o", "a/metrics.jsonl"], 2, "--output: 'a/metrics.jsonl' is no name of a page; let it end in .html"),
        (["a", "-o", "no/a.html"], 2, f"no/a.html {UNWRITABLE.format('No such file or directory')}"),
        (["a", "--samples", "none.jsonl"], 3, "none.jsonl: cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_reported_is_one_line_and_nothing_is_written(
    peftcli, tmp_path, arguments, status, line
) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.lock.yaml").write_text("[")
    before = sorted(tmp_path.rglob("*"))
    done = peftcli("report", *arguments, check=status)
    assert done.stderr == f"error: {line}\n"
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_that_does_not_fit_leaves_the_old_one_and_nothing_else(peftcli, tmp_path) -> None:
    run = make_run(tmp_path / "a")
    (run / "report.html").write_text("the old one")
    before = sorted(run.iterdir())
    done = peftcli(
        "report", "a", check=2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
    )
    assert done.stderr == f"error: a/report.html {UNWRITABLE.format('File too large')}\n"
    assert (run / "report.html").read_text() == "the old one"
    assert sorted(run.iterdir()) == before


def test_a_report_needs_no_torch(peftcli, tmp_path) -> None:
    make_run(tmp_path / "a")
    done = peftcli("report", "a", check=0, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "peftcli.run.report.write" in imported
    assert not imported & {"torch", "transformers", "datasets", "numpy"}

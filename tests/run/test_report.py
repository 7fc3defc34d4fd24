"""The report's page: what it shows of a run, and that nothing in a run can make it show anything else."""

from __future__ import annotations

import itertools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftcli.errors import DataError, ModelError, RecipeError
from peftcli.recipe.source import to_yaml
from peftcli.run.report.charts import MOST_POINTS, thinned
from peftcli.run.report.history import MAX_CURVES, MAX_LINE, read_history
from peftcli.run.report.write import Report, write_report
from tests.chromium import PROGRAM, WHY_NOT, Chromium
from tests.run.made_runs import make_run, records, write_answers

# The elements and attributes that a page is made of; anything else would have come in with the data.
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "nav", "ul", "li", "a", "main", "div",
    "section", "table", "thead", "tbody", "tr", "th", "td", "p", "strong", "small", "b", "code", "pre", "span",
    "details", "summary", "figure", "figcaption", "svg", "desc", "line", "text", "g", "polyline", "circle", "footer",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "id", "class", "href", "role", "tabindex", "scope", "dir",
    "aria-label", "aria-labelledby", "aria-hidden", "viewbox", "width", "height", "x", "y", "x1", "x2", "y1", "y2",
    "cx", "cy", "r", "points", "stroke-dasharray", "text-anchor",
}  # fmt: skip
EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</style></title></svg></pre><iframe src=https://example.org>",
    "<!--",
    "&lt;b&gt; &#x3c;b>",
    "]]>",
    "\u202eabc",
    "\x1b[31m\x00\x85\ufffe",
    "w" * 6_000,
]


class Outline(HTMLParser):
    """Checks an HTML page for what it is made of, and keeps what there is to read."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS, tag
        self.counts[tag] = self.counts.get(tag, 0) + 1
        for name, value in attributes:
            assert name in ATTRIBUTES, (tag, name)
            if name == "href":
                assert re.fullmatch(r"#[a-z-]+", value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(text)


def outline(page: str) -> Outline:
    found = Outline()
    found.feed(page)
    found.close()
    assert not found.open
    assert len(set(found.ids)) == len(found.ids)
    return found


def page_of(*folders: Path, samples: tuple[Path, ...] = ()) -> str:
    return write_report(folders, folders[0] / "page.html", samples).path.read_text(encoding="utf-8")


def words(page: str) -> str:
    return " ".join(outline(page).text)


def cells(page: str, header: str) -> list[str]:
    """The cells of the table row with this header."""
    row = re.search(rf"<tr><th scope=\"row\">{re.escape(header)}</th>(.*?)</tr>", page)
    assert row, header
    return [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row[1])]


# What it shows.


def test_a_run_is_told_by_its_numbers(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "a"))
    assert cells(page, "state") == ["finished"]
    assert cells(page, "adapter") == ["LORA, 4.9 MB"]
    assert cells(page, "steps") == ["8"]
    assert cells(page, "trained tokens") == ["800"]
    # 100 tokens a step at 50 a second.
    assert cells(page, "training time") == ["16.0 s"]
    assert cells(page, "tokens/s") == ["50"]
    assert cells(page, "peak memory") == ["2.0 GB"]
    assert cells(page, "eval_loss") == ["✓ passed", "1.1", "&lt; 1.2"]
    assert cells(page, "eval_accuracy") == ["✗ failed", "0.8", "&gt;= 0.9"]
    assert cells(page, "train") == ["280", "10,287", "1,957", "32", "37", "40", "41", "–"]
    assert cells(page, "rows.jsonl") == ["train", "chat", "280", "–", "3", "–", "13f3b7d013f3"]
    assert "two rows are alike" in page
    assert cells(page, "torch") == ["2.13.0"]
    assert "not in the page" not in page


def test_the_recipe_is_what_is_not_a_default_and_every_value_is_there_to_unfold(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "a"))
    assert cells(page, "training.learning_rate") == ["0.001"]
    assert cells(page, "data.train.0.path") == ["rows.jsonl"]
    assert '<th scope="row">training.weight_decay</th>' not in page
    assert '<th scope="row">data.train.0.weight</th>' not in page
    assert "  weight_decay: 0.0" in page


def test_every_metric_has_a_chart_with_a_title_and_the_curve_in_words(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "a"))
    titles = re.findall(r'<title id="chart-\d-title">(.*?)</title>', page)
    assert titles == ["loss", "eval_accuracy", "learning rate", "gradient norm"]
    assert "training: 8 points, from 4.5 at step 1 to 1 at step 8; lowest 1 at step 8" in page
    assert "<title>evaluation, step 4: 1.6</title>" in page


def test_runs_are_told_apart_by_dashes_and_a_letter_and_not_by_colour_alone(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, logged=records(low=low))
        for name, low in (("a", 0.5), ("b", 0.6), ("c", 0.9))
    ]
    page = page_of(*runs)
    charts = re.findall(r'<svg class="chart".*?</svg>', page)
    assert len(charts) == 5
    for chart in charts:
        looks = re.findall(r'<polyline points="[^"]+"(?: stroke-dasharray="([^"]+)")?>', chart)
        assert len(set(looks)) == 3
        labels = re.findall(r'<text x="[\d.]+" y="([\d.]+)" class="c\d">([ABC])</text>', chart)
        assert sorted(letter for _, letter in labels) == ["A", "B", "C"]
        heights = sorted(float(y) for y, _ in labels)
        assert all(high - low >= 11.9 for low, high in itertools.pairwise(heights))


def test_runs_are_compared_with_the_first_and_by_what_differs(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a")
    second = make_run(
        tmp_path / "b", logged=records(low=0.25), recipe={"training": {"learning_rate": 0.01}, "gates": None}
    )
    page = page_of(first, second)
    assert "2 runs compared" in page
    assert cells(page, "loss, last logged") == ["1", "0.75 −0.25"]
    assert cells(page, "recipe.training.learning_rate") == ["0.001", "0.01"]
    assert cells(page, "recipe.gates.eval_loss") == ["&lt; 1.2", "–"]
    assert '<th scope="row">training.learning_rate</th>' not in page
    assert "The same for all runs." in page
    alike = page_of(first, make_run(tmp_path / "c", recipe={"training": {"output_dir": "elsewhere"}}))
    assert "recipe, base, data and versions are the same" in alike


def test_runs_of_the_same_name_are_told_by_their_paths(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run"))
    assert str(tmp_path / "y" / "run") in re.findall(r"<li><b>B</b>.*?</svg> (.*?)</li>", page)


@pytest.mark.parametrize(
    ("greater_is_better", "metric", "step"),
    [(None, None, 4), (None, "eval_accuracy", 8), (False, "accuracy", 4)],
)
def test_the_metrics_are_those_of_the_weights_that_were_taken(
    tmp_path: Path, greater_is_better: bool | None, metric: str | None, step: int
) -> None:
    logged = [
        {"step": 4, "eval_loss": 1.0, "eval_accuracy": 0.5},
        {"step": 8, "eval_loss": 2.0, "eval_accuracy": 0.7},
        {"step": 12, "eval_loss": 1.0, "eval_accuracy": 0.6},
    ]
    chosen = {
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": greater_is_better,
    }
    run = make_run(tmp_path / "a", logged=logged, recipe={"training": chosen})
    assert write_report([run]).runs[0].evaluated_at == step
    # Before its end no run has taken any.
    (run / "README.md").unlink()
    assert write_report([run]).runs[0].evaluated_at == 12


# Samples.


def test_answers_before_and_after_stand_side_by_side_and_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    rows = [{"instruction": f"say {n}", "output": f"{n}!"} for n in range(40)]
    write_answers(run / "answers-base.jsonl", [(row, "what?") for row in rows])
    write_answers(run / "answers-adapter.jsonl", [(row, f" {row['output']}\n") for row in reversed(rows)])
    (run / "notes.jsonl").write_text('{"nothing": "of ours"}\n')
    page = page_of(run)
    assert "answers-base: 0 of 40 exactly as expected" in page
    assert "answers-adapter: 40 of 40 exactly as expected" in page
    row = page.split('<th scope="row"><div class="words" dir="auto">say 3</div>')[1].split("</tr>")[0]
    assert [re.sub("<.*?>", "", cell) for cell in row.split("</td>")[:3]] == ["3!", "what?", "✓  3!"]
    assert "The first 12 of 40." in page
    assert "of ours" not in page


def test_predictions_are_shown_as_answers_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    lines = [
        {"text": "fine", "label": "good", "prediction": {"label": "good", "score": 0.9}},
        {"text": "poor", "label": "bad", "prediction": {"label": "good", "score": 0.6}},
    ]
    path = tmp_path / "predicted.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "predicted: 1 of 2 exactly as expected" in page_of(run, samples=(path,))


def test_a_chat_is_shown_by_its_turns_and_any_script_in_its_own_direction(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "شلون الطقس؟"}]
    write_answers(run / "answers.jsonl", [({"messages": messages}, "")])
    page = page_of(run)
    assert '<div class="words" dir="auto">system: be kind\nuser: شلون الطقس؟</div>' in page
    assert "(empty)" in page


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        "7",
        "[" * 100_000,
        '{"prompt": "x"}',
        '{"generated_text": 3}',
        '{"prediction": {}}',
        "\xff",
    ],
)
def test_a_file_of_answers_that_is_none_is_named_where_it_was_asked_for(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path / "a")
    (run / "broken.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"broken\.jsonl"):
        write_report([run], samples=[run / "broken.jsonl"])
    assert write_report([run]).samples.rows == []


# Runs that have not ended, and folders that are none.


def test_a_run_that_is_not_at_its_end_is_shown_as_far_as_it_came(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", logged=records(4), finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    (run / ".peftcli.lock").touch()
    page = page_of(run)
    assert cells(page, "state") == ["under way, or killed"]
    assert cells(page, "epochs") == ["1.00 of 2"]
    assert "as of now" in page
    assert "no records" not in page
    (run / ".peftcli.lock").unlink()
    assert cells(page_of(run), "state") == ["broken off: it has left no adapter"]


def test_a_run_that_has_logged_nothing_yet_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", logged=[], finished=False)
    assert "Nothing has been logged yet." in page_of(run)
    (run / "metrics.jsonl").unlink()
    assert "Nothing has been logged yet." in page_of(run, make_run(tmp_path / "b", logged=[]))
    (run / "recipe.lock.yaml").unlink()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    assert "loss: 2 at step 1" in page_of(run).replace(f"A, {run.name}", "loss")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    checkpoint = make_run(run / "checkpoint-4")
    (checkpoint / "trainer_state.json").touch()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").touch()
    for folder, message in {
        tmp_path / "nowhere": "there is no folder",
        run / "README.md": "is a file; name the run's folder",
        checkpoint: rf"is a checkpoint; name the folder of its run: '{run}'",
        adapter: "holds an adapter, but neither",
        tmp_path: "is no run: it has neither recipe.lock.yaml nor metrics.jsonl",
    }.items():
        with pytest.raises(ModelError, match=message):
            write_report([run, folder])


def test_a_run_is_named_once_and_no_more_than_there_are_letters(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(RecipeError, match="is named twice"):
        write_report([run, run / ".." / "run"])
    with pytest.raises(RecipeError, match="26 runs at most"):
        write_report([run] * 27)


# What is hostile, or only large.


def evil_run(folder: Path, evil: str) -> Path:
    """A run with `evil` wherever a run has text."""
    shown = evil.replace("\x00", "").replace("\ufffe", "")
    logged = [{**record, f"eval_{evil}": 1.0, evil: 2} for record in records()]
    recipe: dict[str, Any] = {
        "base_model": shown,
        "task_type": [shown],
        "adapter": {"peft_type": shown, shown: {shown: [shown]}},
        "gates": {f"eval_{shown}": "< 2", shown: shown, "eval_loss": {shown: 1}},
    }
    data = {
        "train": {"rows": shown, "lengths": {"min": shown}},
        "train_sources": [{"path": shown, "type": shown, "rows": [shown], "sha256": {"x": shown}}, shown],
        "warnings": [shown],
    }
    run = make_run(folder, logged=logged, recipe=recipe, data=data)
    write_answers(run / "answers.jsonl", [({"prompt": evil, evil: evil}, evil)])
    return run


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_text_of_a_run_is_never_markup(tmp_path: Path, evil: str) -> None:
    runs = evil_run(tmp_path / "a", evil), evil_run(tmp_path / "b<i>", evil + "2")
    plain = outline(page_of(make_run(tmp_path / "c"), make_run(tmp_path / "d"))).counts
    counts = outline(page_of(*runs)).counts
    assert all(counts[once] == 1 for once in ("html", "head", "style", "body", "main", "h1"))
    assert counts["meta"] == plain["meta"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", page_of(*runs))


# What a report looks for in a lock and in metrics.jsonl: any value may stand there, and any other name.
KEYS = (
    "base_model", "task_type", "adapter", "peft_type", "gates", "eval_loss", "training", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "num_train_epochs", "data", "train", "eval", "rows", "lengths", "min",
    "train_sources", "path", "type", "sha256", "warnings", "max_length", "torch",
)  # fmt: skip
LOGGED = (
    "step", "epoch", "loss", "eval_loss", "tokens", "tokens_per_second", "learning_rate", "peak_memory_bytes"
)  # fmt: skip
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
keys = st.sampled_from(KEYS) | texts
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just("< 1")
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=12,
)
mappings = st.dictionaries(keys, values, max_size=5)
records_of_anything = st.dictionaries(st.sampled_from(LOGGED), st.floats() | st.integers() | values)
lines = st.lists(
    records_of_anything.map(lambda record: json.dumps(record).encode()) | st.binary(max_size=40), max_size=12
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(logged=lines, recipe=mappings, base=mappings, data=mappings, versions=mappings)
def test_any_values_in_a_run_make_a_page_that_is_whole(
    *, tmp_path: Path, logged: list[bytes], recipe: Any, base: Any, data: Any, versions: Any
) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(logged))
    lock = {"recipe": recipe, "base": base, "data": data, "versions": versions, "chat_template": None}
    (tmp_path / "recipe.lock.yaml").write_text(to_yaml(lock), encoding="utf-8")
    outline(page_of(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 60_000, b'{"step": 1' + b"0" * 5_000 + b"}", b'{"step": -1, "loss": 1}', b'{"step": NaN}', b"null",
        b'{"loss": 1}', b'{"step": "1"}', b'{"step": true}', b'\xff\xfe{"step": 1}', b'{"step": 1e999}', b"",
        b'{"step": 1, "x": "' + b"y" * (3 * MAX_LINE) + b'"}',
    ],
    ids=range(12),
)  # fmt: skip
def test_a_line_that_is_no_record_is_counted_and_costs_no_other(tmp_path: Path, line: bytes) -> None:
    good = b'{"step": 1, "loss": 2.0, "note": "x", "nan": NaN, "huge": 1e301}\n{"step": 2, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + line + b"\n" + good)
    history = read_history(tmp_path)
    assert history.passed_over == 1
    assert history.curves.keys() == {"loss"}
    assert list(history.curves["loss"].values) == [2, 1, 2, 1]


def test_a_million_metrics_are_a_page_of_bounded_size(tmp_path: Path) -> None:
    logged = [{"step": 1, **{f"eval_{n}": n for n in range(1_000)}}]
    logged += [{"step": step, "loss": step % 7} for step in range(50_000)]
    run = make_run(tmp_path / "a", logged=logged)
    assert len(read_history(run).curves) == MAX_CURVES
    assert len(page_of(run)) < 400_000


def test_a_thinned_curve_keeps_its_peaks_and_its_ends() -> None:
    points = [(float(step), 0.0) for step in range(100_000)]
    points[12_345], points[54_321] = (12_345.0, 9.0), (54_321.0, -9.0)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 4
    assert {points[0], points[-1], points[12_345], points[54_321]} <= set(kept)
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)


def test_a_lock_that_peftcli_did_not_write_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    for text in (
        "recipe: 3\nbase: {}\ndata: {}\nversions: {}",
        "[]",
        "",
        "\xff",
        bomb,
        "recipe: " + "[" * 50_000,
        "recipe: !!python/object/apply:os.system [true]",
        "x" * 5_000_000,
    ):
        (run / "recipe.lock.yaml").write_bytes(text.encode("latin-1"))
        with pytest.raises(ModelError, match="is not a lock that peftcli wrote"):
            write_report([run])


def test_pipes_and_devices_in_a_folder_are_not_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    os.mkfifo(run / "answers.jsonl")
    (run / "endless.jsonl").symlink_to("/dev/zero")
    assert "Nothing has been logged yet." in page_of(run)


# How it looks.


def luminance(colour: str) -> float:
    """Of a colour `#rrggbb` or `#rgb` (WCAG 2.2, relative luminance)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_colour_of_text_and_curves_stands_out_from_the_paper_light_and_dark() -> None:
    from peftcli.run.report import page

    css = Path(page.__file__).with_name("page.css").read_text(encoding="utf-8")
    for scheme in re.findall(r":root \{(.*?)\}", css, re.DOTALL):
        colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{3,6});", scheme))
        paper = luminance(colours["paper"])
        for name in {"ink", "dim", "link", "pass", "fail", *(f"c{n}" for n in range(6))}:
            low, high = sorted((luminance(colours[name]), paper))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, colours[name])


@pytest.mark.slow
@pytest.mark.needs_chromium
@pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT)
@pytest.mark.parametrize("which", ["one", "several", "evil"])
def test_a_browser_shows_it_on_a_desk_and_on_a_phone_light_and_dark(tmp_path: Path, which: str) -> None:
    report = written(tmp_path, which)
    with Chromium() as browser:
        for width, height in ((1280, 900), (390, 844)):
            for scheme in ("light", "dark"):
                browser.open(report.path, width=width, height=height, scheme=scheme)
                assert browser.evaluate("document.readyState") == "complete"
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert browser.evaluate("document.scripts.length + document.images.length") == 0
                paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
                assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 23, 26)")
                # Letters of a chart that no one can read would be no use.
                assert browser.evaluate(f"Math.min(...{boxes('.chart text')}.map(box => box.height))") >= 10
                # A table that is wider than the window scrolls inside itself.
                assert browser.evaluate(f"Math.max(...{boxes('.scroll')}.map(box => box.right))") <= width
        assert browser.complaints == []


def boxes(selector: str) -> str:
    """JavaScript for the places of elements on the page."""
    return f"[...document.querySelectorAll('{selector}')].map(element => element.getBoundingClientRect())"


def written(folder: Path, which: str) -> Report:
    """A report to look at."""
    if which == "evil":
        return write_report([evil_run(folder / f"{n}{'x' * 200}", evil) for n, evil in enumerate(EVIL)])
    names = ["quick"] if which == "one" else ["quick", "slow", "long" * 20]
    runs = [make_run(folder / name, logged=records(200, low=at)) for at, name in enumerate(names)]
    for run in runs:
        rows = [{"instruction": f"say {n} {'again ' * n}", "output": f"{n}!"} for n in range(20)]
        write_answers(run / "answers-base.jsonl", [(row, "what? " * 20) for row in rows])
        write_answers(run / "answers-adapter.jsonl", [(row, row["output"]) for row in rows])
    return write_report(runs)


@pytest.mark.slow
@pytest.mark.needs_chromium
@pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT)
def test_a_script_that_came_in_all_the_same_would_not_run(tmp_path: Path) -> None:
    report = write_report([make_run(tmp_path / "a")])
    page = report.path.read_text(encoding="utf-8")
    intruder = "<script>document.title = 'owned'</script><img src='https://example.org/x.png'>"
    report.path.write_text(page.replace("<main>", f"<main>{intruder}"), encoding="utf-8")
    with Chromium() as browser:
        browser.open(report.path, width=1280, height=900, scheme="light")
        assert browser.evaluate("document.title") == "a · peftcli report"
        assert len([text for text in browser.complaints if "Content Security Policy" in text]) == 2

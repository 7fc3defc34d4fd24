"""Streamed rows are those that loading gives, read as they are needed."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import islice

import pytest

from peftcli.data.stream import BUFFER, StreamedRows
from peftcli.errors import DataError, RecipeError
from tests.data.test_prepare import merging_tokenizer, numbered, ready
from tests.data.writers import write_jsonl


def texts(rows):
    tokenizer = merging_tokenizer()
    return [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in rows]


def test_an_epoch_has_every_row_once(tmp_path):
    path = numbered(tmp_path, 50)
    prepared = ready(train={"path": path}, streaming=True)
    assert isinstance(prepared.train, StreamedRows)
    assert sorted(texts(prepared.train.rows(0))) == sorted(f"a{at}" for at in range(50))
    assert texts(prepared.train.rows(0, shuffle=False)) == [f"a{at}" for at in range(50)]
    loaded = ready(train={"path": path}).train
    streamed = list(prepared.train.rows(0, shuffle=False))
    for at, row in enumerate(streamed):
        assert row["input_ids"].tolist() == loaded[at]["input_ids"].tolist()
        assert row["labels"].tolist() == loaded[at]["labels"].tolist()


def test_the_order_is_the_seed_s_and_the_epoch_s(tmp_path):
    path = numbered(tmp_path, 50)
    one, same, other = (ready(train={"path": path}, streaming=True, seed=seed).train for seed in (1, 1, 2))
    assert texts(one.rows(0)) == texts(same.rows(0))
    assert texts(one.rows(0)) != texts(one.rows(1))
    assert texts(one.rows(0)) != texts(other.rows(0))


def test_the_order_follows_data_seed_where_it_is_given_and_the_files_where_it_is_sequential(tmp_path):
    path = numbered(tmp_path, 50)
    settings = {"train": {"path": path}, "streaming": True}
    one, same, other = (
        ready(**settings, seed=seed, order_seed=order).train for seed, order in ((1, 7), (2, 7), (1, 8))
    )
    assert texts(one.rows(0)) == texts(same.rows(0))
    assert texts(one.rows(0)) != texts(other.rows(0))
    assert texts(ready(**settings, shuffle=False).train.rows(3)) == [f"a{at}" for at in range(50)]


def test_sources_take_turns_by_their_weights(tmp_path):
    sources = [{"path": numbered(tmp_path, 20), "weight": 2.0}, {"path": numbered(tmp_path, 20, "b")}]
    mixed = texts(ready(train=sources, streaming=True).train.rows(0, shuffle=False))
    assert Counter(text[0] for text in mixed[:30]) == {"a": 20, "b": 10}
    assert Counter(mixed)["a3"] == 2
    assert Counter(mixed)["b3"] == 1


def test_a_fractional_weight_takes_the_same_part_in_every_epoch(tmp_path):
    source = {"path": numbered(tmp_path, 200), "weight": 0.5}
    rows = ready(train=source, streaming=True).train
    first = texts(rows.rows(0))
    assert 60 < len(first) < 140
    assert sorted(first) == sorted(texts(rows.rows(1)))


def test_a_row_leaves_the_buffer_before_the_file_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "yes no"}\n' * (BUFFER + 100) + b"broken")
    rows = ready(train={"path": str(path)}, streaming=True).train.rows(0)
    assert len(list(islice(rows, 50))) == 50
    with pytest.raises(DataError, match=f"row {BUFFER + 101}: broken JSON"):
        list(rows)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for count in (3_000, 12_000):
        path = write_jsonl(tmp_path / f"{count}.jsonl", [{"text": "yes no " * 20}] * count)
        rows = ready(train={"path": str(path)}, streaming=True).train
        tracemalloc.start()
        assert sum(1 for _ in rows.rows(0)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_the_report_counts_the_first_rows_and_says_so(tmp_path):
    prepared = ready(train={"path": numbered(tmp_path, 500)}, streaming=True)
    assert prepared.report.train.rows == 200
    assert prepared.report.lines()[0].startswith(
        "train     streaming, counted as read; of the first rows: 200 rows"
    )


def test_what_an_epoch_drops_is_counted_as_it_is_read(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "z"}, {"text": "z" * 90}] * 50)
    rows = ready(train={"path": str(path)}, streaming=True, max_length=20, overflow="drop").train
    assert len(list(rows.rows(0))) == 50
    assert [(source.rows, source.dropped) for source in rows.sources] == [(100, 50)]


def test_too_long_a_row_stops_the_stream_where_it_stands(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "z"}] * 300 + [{"text": "z" * 90}])
    rows = ready(train={"path": str(path)}, streaming=True, max_length=20).train
    with pytest.raises(DataError, match=r"row 301: 91 tokens are more than max_length 20"):
        list(rows.rows(0))


def test_json_cannot_be_streamed(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "x y"}]')
    with pytest.raises(RecipeError, match=r"write it as \.jsonl"):
        ready(train={"path": str(tmp_path / "a.json")}, streaming=True)

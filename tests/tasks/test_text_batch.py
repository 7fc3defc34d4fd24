"""Rows of an encoder's tokens are cut where it costs least."""

from __future__ import annotations

import numpy as np

from peftcli.tasks.text_batch import cut_texts

SPECIAL = [0, 1]


def cut(ids, limit, **columns):
    row = {"input_ids": np.array(ids, dtype=np.int32), **columns}
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in cut_texts(row, limit, SPECIAL).items()
    }


def test_the_longest_text_loses_its_end_and_special_tokens_stay():
    assert cut([0, 5, 6, 7, 8, 1, 9, 9, 1], 7)["input_ids"] == [0, 5, 6, 1, 9, 9, 1]
    assert cut([0, 5, 6, 7, 8, 1, 9, 9, 1], 5)["input_ids"] == [0, 5, 1, 9, 1]
    assert cut([5, 6, 7, 1], 2)["input_ids"] == [5, 1]
    assert cut([0, 5, 1], 1)["input_ids"] == [0, 1]


def test_columns_of_the_same_length_are_cut_in_the_same_places():
    kinds = np.array([0, 0, 0, 0, 1, 1])
    assert cut([0, 5, 6, 1, 7, 1], 5, token_type_ids=kinds, label="a") == {
        "input_ids": [0, 5, 1, 7, 1],
        "token_type_ids": [0, 0, 0, 1, 1],
        "label": "a",
    }

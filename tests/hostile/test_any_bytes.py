"""Whatever bytes come, every reader ends well or in a documented error: nothing else comes out."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.fuzz import mutated
from tests.hostile.readers import READERS, feed, seeds

SEEDS = seeds()
EXAMPLES = int(os.environ.get("PEFTCLI_FUZZ_EXAMPLES", "40"))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["LORA", "IA3", "PREFIX_TUNING", "CAUSAL_LM", "F32", "..", 10**400, "(a+)+"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def keyed(name: str) -> st.SearchStrategy[bytes]:
    """JSON objects with the keys that the reader looks for, and any values."""
    import json
    import re

    keys = sorted({key.decode() for seed in SEEDS[name] for key in re.findall(rb"\w{2,}", seed)}) or ["a"]
    objects = st.dictionaries(st.sampled_from(keys) | st.text(max_size=3), values, max_size=5) | values
    return objects.map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_end_in_an_answer_or_a_documented_error(name: str) -> None:
    mutations = st.tuples(st.sampled_from(SEEDS[name]), st.integers(0, 2**32)).map(
        lambda drawn: mutated(drawn[0], random.Random(drawn[1]))
    )

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.binary(max_size=200) | mutations | keyed(name))
    def law(content: bytes) -> None:
        feed(name, content)

    law()


@pytest.mark.parametrize("name", READERS)
def test_what_the_mutations_begin_with_is_read(name: str) -> None:
    errors = [feed(name, seed) for seed in SEEDS[name]]
    # A manifest alone, and states alone, are no checkpoint; these prefix tuning and template rows stand for others.
    assert name in {"manifest", "progress", "template", "config", "recipe", "answers"} or not any(errors), (
        errors
    )


@pytest.mark.slow
def test_inputs_that_are_guided_by_coverage_end_so_too(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: it is for Linux and some Pythons only")
    for name in ("recipe", "config", "head", "metrics"):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.hostile.fuzz",
                name,
                "--guided",
                "2000",
                "--corpus",
                str(tmp_path / name),
            ],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]

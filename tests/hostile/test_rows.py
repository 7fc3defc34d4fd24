"""Hostile data: each broken file is one line that names the row, with status 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CSI = "\x9b31m\x1b[2J\x07\u202e"
FILES: dict[str, tuple[str, bytes, str]] = {
    "deep JSON Lines": ("r.jsonl", b'{"text": ' + b"[" * 200_000, "nested too deep"),
    "deep JSON": ("r.json", b"[" * 200_000, "nested too deep"),
    "a number of 10,000 digits": ("r.jsonl", b'{"text": ' + b"9" * 10_000 + b"}", "too many digits"),
    "a number for text": ("r.jsonl", b'{"text": NaN}', "must be text"),
    "half a surrogate pair": ("r.jsonl", b'{"text": "\\ud800"}', "half a surrogate pair"),
    "bytes that are no text": ("r.txt", b"\xff\xfe\x00", "not UTF-8"),
    "NUL and nothing else": ("r.jsonl", bytes(1000), "broken JSON"),
    "a list for a row": ("r.jsonl", b"[1]", "must be a JSON object"),
    "a row that steers the terminal": (
        "r.jsonl",
        json.dumps({CSI: CSI}, ensure_ascii=False).encode(),
        "\\x1b[2J",
    ),
    "a header given twice": ("r.csv", b"text,text\na,b\n", "twice"),
    "a header of 100,000 names": ("r.csv", b",".join(b"c%d" % n for n in range(100_000)) + b"\n1\n", "cells"),
    "a quote without end": ("r.csv", b'text\n"abc', "unexpected end of data"),
    "no Parquet": ("r.parquet", b"PAR1" + bytes(100) + b"PAR1", "not a readable Parquet"),
    "a cut Parquet": ("r.parquet", b"PAR1", "not a readable Parquet"),
    "columns that change": ("r.conll", b"a B\na b c\n", "columns"),
    "an empty file": ("r.jsonl", b"", "no row"),
}


@pytest.fixture
def check(tmp_path: Path, tiny_base: Path, refused) -> Any:
    def reads(name: str, content: bytes | None) -> str:
        rows = tmp_path / name
        if content is not None:
            rows.write_bytes(content)
        recipe = {
            "base_model": str(tiny_base),
            "task_type": "CAUSAL_LM",
            "adapter": {"peft_type": "LORA"},
            "data": {"train": {"path": str(rows)}, "max_length": 64},
            "training": {"output_dir": str(tmp_path / "out")},
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        return str(refused(3, "check", tmp_path / "recipe.yaml", "--data"))

    return reads


@pytest.mark.parametrize(("name", "content", "words"), FILES.values(), ids=FILES)
def test_a_hostile_file_of_rows_is_one_line(check, name, content, words):
    assert words in check(name, content)


def test_a_file_s_name_cannot_steer_the_terminal(check):
    assert "\\x1b[31m\\n" in check("\x1b[31m\nevil.jsonl", b"{")


def test_a_path_beyond_all_paths_is_one_line(check):
    assert "longer than any path" in check("a" * 300 + ".jsonl", None)


TEMPLATES = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros that double": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "macros without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "texts that double": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}{{ n.x }}",
    "a text beyond all memory": "{{ 'a' * 10000000000 }}",
    "a width beyond all memory": "{{ '%9999999999d'|format(1) }}",
    "a power": "{{ 10 ** 10 ** 8 }}",
    "squares of squares": "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a rounding to a billion places": "{{ 1.5|round(999999999) }}",
    "attributes": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch /tmp/peftcli-was-hacked') }}",
    "attributes by a filter": "{{ messages|attr('__class__') }}{{ raise_exception('x') }}",
    "attributes by format": "{{ '{0.__class__.__mro__}'.format(messages) }}{{ 1/0 }}",
    "a file": "{% include '/etc/passwd' %}",
    "a division by zero": "{{ 1 / 0 }}",
    "brackets without end": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "blocks without end": "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
    "no template": "{{ x",
    "a million characters": "{{ 1 }}" + "a" * 10**6,
    "a message that steers the terminal": "{{ raise_exception('\x1b[2J\u202e') }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_hostile_chat_template_is_stopped(adapter, refused, monkeypatch, template):
    monkeypatch.setattr("peftcli.data.bounds.SECONDS", 0.3)
    monkeypatch.setattr("peftcli.data.bounds.MEMORY", 64 * 2**20)
    from tests.conftest import byte_tokenizer

    byte_tokenizer(template).save_pretrained(adapter)
    assert "the chat template" in refused(3, "generate", "--adapter", adapter, "--prompt", "a")
    assert not Path("/tmp/peftcli-was-hacked").exists()


def test_after_a_template_was_stopped_time_and_memory_are_free_again(monkeypatch):
    import resource
    import signal

    from peftcli.data.chat import ChatTemplate
    from peftcli.errors import DataError
    from tests.conftest import CHATML, byte_tokenizer

    monkeypatch.setattr("peftcli.data.bounds.SECONDS", 0.2)
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    messages = [{"role": "user", "content": "a"}]
    for template in (TEMPLATES["loops"], TEMPLATES["a text beyond all memory"]):
        with pytest.raises(DataError):
            ChatTemplate(byte_tokenizer(), template).render(messages)
        assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
        assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert ChatTemplate(byte_tokenizer(), CHATML).render(messages) == "<|im_start|>user\na<|im_end|>\n"

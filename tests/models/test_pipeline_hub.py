"""A diffusers pipeline on the Hub: of its files those that are used, at one commit, and again without the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bases import stable_diffusion
from tests.hub_server import HubServer

ASK = """
import json, sys
from peftcli.errors import PeftcliError
from peftcli.models.diffusion import load_denoiser, load_pipeline_config, load_prompt_tokenizer
from peftcli.models.load import resolve_base
try:
    base = resolve_base(sys.argv[1])
    config = load_pipeline_config(base)
    load_prompt_tokenizer(base)
    model = load_denoiser(base, config, dtype="auto", trains_text=False)
    print(json.dumps([base.fingerprint, config.resolution, str(model.dtype)]))
except PeftcliError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.slow
def test_a_pipeline_of_the_hub_loads_and_only_what_is_used_of_it_is_fetched(tmp_path: Path) -> None:
    stable_diffusion(tmp_path / "base")
    paths = [path for path in (tmp_path / "base").rglob("*") if path.is_file()]
    files = {str(path.relative_to(tmp_path / "base")): path.read_bytes() for path in paths}
    unused = {"unet/diffusion_pytorch_model.fp16.safetensors": b"", "safety_checker/model.safetensors": b""}
    unused |= {"unet/diffusion_pytorch_model.bin": b"", "pipeline.py": b"raise SystemExit"}

    def ask(url: str) -> list[object]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", ASK, "org/sd"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=clean | own, check=True)
        assert done.stderr == ""
        return json.loads(done.stdout)

    with HubServer() as server:
        server.add("org/sd").branches["main"].append(("d" * 40, files | unused))
        first = ask(server.url)
        asked = {path.rpartition("d" * 40 + "/")[2] for _, path in server.requests}
    assert first == ["d" * 40, 32, "torch.float32"]
    assert "unet/diffusion_pytorch_model.safetensors" in asked
    assert not asked & unused.keys()
    assert ask("http://127.0.0.1:9") == first

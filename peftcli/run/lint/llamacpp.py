"""llama.cpp: `convert_lora_to_gguf.py`, then `llama-server --lora`.

What they take is in their source: `convert_lora_to_gguf.py` at 0b03adaa (keys, the base's config, alpha),
`LoraTorchTensor` there and `conversion/gpt2.py` (what is transposed), `llama_adapter_lora_weight::get_scale` in
`src/llama-adapter.h` (scaling), and `--lora-scaled` in `common/arg.cpp`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from peftcli.run.adapter import Adapter
from peftcli.run.lint.base import FIELD, STAND_IN, base_findings, gguf_file, hub_id, servable
from peftcli.run.lint.finding import Finding, Target, merging
from peftcli.run.lint.lora import A_NAMES, B_NAMES, ONLY_PEFTS, lora_findings, lora_pairs, scalings


def findings(adapter: Adapter) -> Iterator[Finding]:
    """What the converter refuses, and what llama.cpp would get wrong without a word."""
    values = adapter.values
    yield from lora_findings(adapter, "llama.cpp")
    if values["peft_type"] != "LORA":
        return
    merge = merging(adapter.folder)
    if "lora_alpha" not in values:
        yield Finding("lora_alpha", "is missing, and the converter needs it", "add it to adapter_config.json")
    if values.get("use_dora"):
        yield Finding("use_dora", "the converter does not support DoRA", merge)
    if values.get("fan_in_fan_out"):
        # It transposes such a base's weights, and with them LoRA's factors, which PEFT keeps as for any other base.
        yield Finding("fan_in_fan_out", "the converter would exchange the factors of these layers", merge)
    for name, unused in ONLY_PEFTS.items():
        if name in values and values[name] != unused:
            yield Finding(
                name, "the converter ignores it, and answers would be others than in training", merge
            )
    yield from _tensor_findings(adapter, merge)
    yield from _scaling_findings(adapter, merge)
    yield from base_findings(adapter, "llama.cpp", takes_gguf=True)
    if gguf_file(adapter) is not None:
        yield Finding(
            FIELD,
            "is a GGUF file, and the converter needs the base's config.json",
            f"put the folder or the Hub's name of the model that it was made of for {STAND_IN} in the command",
            is_error=False,
        )


def _tensor_findings(adapter: Adapter, merge: str) -> Iterator[Finding]:
    for pair in lora_pairs(adapter):
        if pair.A is not None and len(pair.A.shape) > 2:
            yield Finding(pair.module, "is no linear layer; the converter takes only those", merge)
        if pair.module.endswith("lm_head"):
            yield Finding(
                pair.module,
                "the converter refuses it where the base ties its head to its embeddings",
                "look whether yours does, or " + merge,
                is_error=False,
            )
    odd = [key for key in adapter.heads if not _is_taken(key)]
    if odd:
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        yield Finding(f"{odd[0]}{more}", "is neither of LoRA's factors; the converter stops there", merge)


def _is_taken(key: str) -> bool:
    """`get_tensors`: pairs are converted, norms kept, and the base's own weights passed over."""
    if any(f".{name}" in key for name in (*A_NAMES, *B_NAMES)):
        return True
    return ".base_layer.weight" in key or "_layernorm" in key or ".norm" in key


def _scaling_findings(adapter: Adapter, merge: str) -> Iterator[Finding]:
    factors = _factors(adapter)
    if all(math.isclose(factor, 1.0, rel_tol=1e-6) for factor in factors):
        return
    field = "use_rslora" if adapter.values.get("use_rslora") else "alpha_pattern"
    if len(factors) == 1:
        yield Finding(
            field,
            "llama.cpp divides lora_alpha by the rank",
            f"the command makes up for it (--lora-scaled …:{factors[0]:g})",
            is_error=False,
        )
    else:
        yield Finding(field, "llama.cpp divides the one lora_alpha by each layer's rank", merge)


def _factors(adapter: Adapter) -> list[float]:
    """By what llama.cpp's scalings are to be multiplied to be those of the training; one number for equal ones."""
    alpha = adapter.values.get("lora_alpha", 8)
    found = {round(scaling * rank / alpha, 9) for scaling, rank in scalings(adapter).values()}
    return sorted(found) or [1.0]


def commands(adapter: Adapter) -> list[str]:
    """Converting the base, where it is no GGUF yet; converting the adapter; and the server."""
    converted = adapter.folder.resolve() / "adapter.gguf"
    model, first = gguf_file(adapter), []
    if model is None:
        model = Path("base.gguf")
        source = ["--remote"] if hub_id(adapter) else []
        first = [["python", "convert_hf_to_gguf.py", *source, servable(adapter), "--outfile", str(model)]]
    # The converter reads the base's config.json, from a folder or from the Hub.
    config = ["--base-model-id" if hub_id(adapter) else "--base", servable(adapter)]
    factors = _factors(adapter)
    scaled = not math.isclose(factors[0], 1.0, rel_tol=1e-6)
    lora = ["--lora-scaled", f"{converted}:{factors[0]:g}"] if scaled else ["--lora", str(converted)]
    every = [
        *first,
        [
            "python",
            "convert_lora_to_gguf.py",
            *config,
            "--outfile",
            str(converted),
            str(adapter.folder.resolve()),
        ],
        ["llama-server", "-m", str(model), *lora],
    ]
    return [shlex.join(command) for command in every]


TARGET = Target("llama.cpp", findings, commands)

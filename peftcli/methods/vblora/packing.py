"""Mixtures without the vectors that are not in them: what `save_only_topk_weights` writes in place of logits.

For every logits (…, N) a file holds the places of the highest K, the highest first, and the shares that softmax gives
them, without the last share, which is what is left of one.
"""

from __future__ import annotations

import torch

_PLACES, _SHARES = "_topk_indices", "_topk_weights"
# The logit of a vector that is not chosen: softmax would give it nothing in any dtype, and it is a number.
_OUT = -1e4


def packed(state: dict[str, torch.Tensor], topk: int) -> dict[str, torch.Tensor]:
    """With places and shares in place of logits."""
    result: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if not _is_logits(key):
            result[key] = tensor
            continue
        highest, places = tensor.topk(topk)
        result[key + _PLACES] = places.to(index_dtype(tensor.shape[-1]))
        result[key + _SHARES] = highest.softmax(-1)[..., :-1].contiguous()
    return result


def unpacked(state: dict[str, torch.Tensor], num_vectors: int) -> dict[str, torch.Tensor]:
    """With logits that softmax makes those shares of."""
    result = {key: tensor for key, tensor in state.items() if not key.endswith((_PLACES, _SHARES))}
    for key, places in state.items():
        name = key.removesuffix(_PLACES)
        if name == key or name + _SHARES not in state:
            continue
        shares = state[name + _SHARES].float()
        shares = torch.cat([shares, 1 - shares.sum(-1, keepdim=True)], -1)
        # Of a share that is rounded to nothing there is no logarithm.
        highest = shares.clamp(min=torch.finfo(shares.dtype).tiny).log()
        logits = highest.new_full((*places.shape[:-1], num_vectors), _OUT)
        result[name] = logits.scatter(-1, places.long(), highest)
    return result


def _is_logits(key: str) -> bool:
    return key.rpartition(".")[2] in ("vblora_logits_A", "vblora_logits_B")


def index_dtype(count: int) -> torch.dtype:
    """PEFT's choice: the smallest that counts so far."""
    return torch.uint8 if count < 2**8 else torch.int16 if count < 2**15 else torch.int32

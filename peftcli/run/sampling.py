"""How the next token is chosen: the command line's flags over the base's own generation config."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peftcli.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Sampling:
    """GenerationConfig's names. What is None is left to the base's generation_config.json.

    Attributes:
        max_new_tokens: tokens to generate at most.
        temperature: 0 takes the likeliest token each time (greedy).
        top_p: sample among the likeliest tokens that hold this share of the probability.
        top_k: sample among this many likeliest tokens.
        repetition_penalty: above 1, tokens that already occurred become less likely.
        num_beams: texts that are written side by side, of which the likeliest is taken.
    """

    max_new_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    num_beams: int | None = None

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "--max-new-tokens", "at least 1")
        _require(
            self.temperature is None or 0 <= self.temperature < math.inf,
            "--temperature",
            "0 (greedy) or more",
        )
        _require(self.top_p is None or 0 < self.top_p <= 1, "--top-p", "above 0 and at most 1")
        _require(self.top_k is None or self.top_k >= 1, "--top-k", "at least 1")
        _require(
            self.repetition_penalty is None or self.repetition_penalty > 0, "--repetition-penalty", "above 0"
        )
        _require(self.num_beams is None or self.num_beams >= 1, "--num-beams", "at least 1")
        for flag, value in (("--top-p", self.top_p), ("--top-k", self.top_k)):
            if self.temperature == 0 and value is not None:
                raise RecipeError(
                    f"{flag} has no effect with --temperature 0 (greedy); leave one of them out"
                )

    def config(self, base: Any, *, max_new_tokens: int, stops: Iterable[int], pad: int) -> Any:
        """The `GenerationConfig` for one call: `base` (the model's own, left as it is) with these settings.

        Args:
            base: the model's generation config.
            max_new_tokens: what this call has room for.
            stops: ids of the tokens that end a completion.
            pad: id of the token that fills batches.
        """
        config = copy.deepcopy(base)
        config.update(
            max_length=None, max_new_tokens=max_new_tokens, eos_token_id=sorted(stops), pad_token_id=pad
        )
        if self.temperature == 0:
            config.update(do_sample=False)
        elif any(value is not None for value in (self.temperature, self.top_p, self.top_k)):
            config.update(do_sample=True)
        chosen = {
            "temperature": self.temperature or None,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "num_beams": self.num_beams,
        }
        config.update(**{name: value for name, value in chosen.items() if value is not None})
        if not config.do_sample:
            # A base's own settings for sampling mean nothing to greedy search, and Transformers warns.
            config.update(temperature=None, top_p=None, top_k=None)
        return config


def _require(holds: bool, flag: str, range_: str) -> None:
    if not holds:
        raise RecipeError(f"{flag} must be {range_}")

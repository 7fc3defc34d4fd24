"""Label names and their numbers: found in the training rows, kept beside the adapter, printed by predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftcli.data.example import Label
from peftcli.errors import DataError, ModelError, RecipeError, did_you_mean
from peftcli.files import write_text
from peftcli.peft.head_labels import LABELS_NAME


class Labels:
    """The labels of a task.

    While training rows are read, every new label gets the next number; `close` then puts the labels in order, and
    `numbers` translates. So the order of the rows has no part in the labels' numbers. Whole-number labels from 0 on
    keep their numbers.

    Args:
        names: the labels in order, where the recipe says them; nothing else is then a label.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names: list[str] = list(names or ())
        self._closed = names is not None
        self._seen: dict[Label, int] = {name: at for at, name in enumerate(self.names)}
        self._final: NDArray[np.int64] = np.arange(len(self.names))
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise RecipeError(f"task.labels: {twice[0]!r} stands there twice")

    def number(self, label: Label) -> int:
        """The label's number, for `numbers` to translate.

        Raises:
            DataError: the label is not one of those that there are.
        """
        if not self._closed:
            return self._seen.setdefault(label, len(self._seen))
        found = self._seen.get(str(label))
        if found is None and isinstance(label, int) and self._counts(label):
            found = self._seen[self.names[label]]
        if found is None:
            raise DataError(
                f"the label {label!r} is none of the {len(self.names)}; {did_you_mean(str(label), self.names)}"
            )
        return found

    def _counts(self, number: int) -> bool:
        """Whether a number means the label of that place: names that are numbers mean themselves."""
        return 0 <= number < len(self.names) and not all(name.isdecimal() for name in self.names)

    def close(self) -> None:
        """Puts the labels in order; no other ones are taken from now on.

        Raises:
            DataError: names and numbers are mixed, or there is but one label.
            RecipeError: there are none to be known, as rows are streamed.
        """
        if self._closed:
            return
        if not self._seen:
            raise RecipeError("task.labels: name the labels; streamed rows are not known before training")
        numbers = [label for label in self._seen if isinstance(label, int)]
        if numbers and len(numbers) < len(self._seen):
            name = next(label for label in self._seen if not isinstance(label, int))
            raise DataError(
                f"labels are names and numbers, such as {name!r} and {numbers[0]}; write one kind"
            )
        if numbers:
            if min(numbers) < 0:
                raise DataError(f"labels that are numbers count from 0; there is a {min(numbers)}")
            if max(numbers) >= 100_000:
                raise DataError(
                    f"labels that are numbers count from 0; {max(numbers):,} is too large for one"
                )
            self.names = [str(number) for number in range(max(numbers) + 1)]
            order: list[Label] = list(range(max(numbers) + 1))
        else:
            # Files of text (CSV) have numbers as text, too.
            digits = all(str(name).isdecimal() for name in self._seen)
            order = sorted(self._seen, key=(lambda name: (int(name), str(name))) if digits else str)
            self.names = [str(name) for name in order]
        if len(self.names) < 2:
            raise DataError(
                f"every row has the same label, {self.names[0]!r}: there is nothing to tell apart"
            )
        for label in order:
            self._seen.setdefault(label, len(self._seen))
        place = {label: at for at, label in enumerate(order)}
        self._final = np.asarray([place[label] for label in self._seen])
        self._seen = {str(label): number for label, number in self._seen.items()}
        self._closed = True

    def numbers(self, found: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
        """The final numbers of what `number` gave; negative ones (ignored places) stay."""
        given = np.asarray(found, dtype=np.int64)
        return np.where(given < 0, given, self._final[np.maximum(given, 0)])

    def options(self) -> dict[str, Any]:
        """What `from_pretrained` is told; of a number beside names Transformers warns where the base has another."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: at for at, name in enumerate(self.names)},
        }

    def listed(self) -> str:
        """Their number and the first of them, for a line; empty where there are none."""
        first = ", ".join(self.names[:8]) + (", …" if len(self.names) > 8 else "")
        return f", {len(self.names):,} labels: {first}" if self.names else ""

    def save(self, folder: Path, **beside: Any) -> None:
        """Writes labels.json; `beside` are other things that the task must know again."""
        content = {**beside, "id2label": {str(at): name for at, name in enumerate(self.names)}}
        write_text(folder / LABELS_NAME, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> tuple[Labels, dict[str, Any]]:
        """What `save` wrote: the labels, and the whole content.

        Raises:
            ModelError: the file is missing or broken.
        """
        path = folder / LABELS_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = [str(content["id2label"][str(at)]) for at in range(len(content["id2label"]))]
            return cls(names), content
        except FileNotFoundError:
            raise ModelError(
                f"{folder} has no {LABELS_NAME}, which says what its labels are called"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, RecipeError) as error:
            raise ModelError("is not a file of labels; put the original back", where=str(path)) from error

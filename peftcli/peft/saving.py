"""Adapters for others: their two files, a card beside them, and the way to the Hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from peftcli.adapters.config import PeftConfig
from peftcli.errors import AdapterError
from peftcli.hub import upload
from peftcli.peft.card import CardFacts, write_card
from peftcli.peft.storage import (
    SaveEmbeddings,
    get_peft_model_state_dict,
    load_peft_weights,
    save_weights,
)
from peftcli.peft.surface import Surface
from peftcli.peft.trainer import apart

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class Saved(Surface):
    """An adapted model that can be saved and pushed."""

    def save_pretrained(  # noqa: PLR0917  (PEFT's signature)
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: SaveEmbeddings = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | Path | None = None,
        state_dict: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Writes adapters into a folder, and a card; an adapter not named `default` into a folder in it.

        Args:
            save_directory: the folder.
            safe_serialization: only true: a pickle can run code when it is read.
            selected_adapters: which adapters; default: all.
            save_embedding_layers: whether whole embeddings are saved as well; "auto": where they are adapted, or
                have another size than the base's.
            is_main_process: whether this process writes.
            path_initial_model_for_weight_conversion: a folder with the adapter as it was before training. What is
                written is then the difference to it, a plain LoRA adapter of twice the rank for the base as it was
                (PiSSA and OLoRA change it).
            state_dict: a state dict of the whole model, to take the tensors from; default: the model's own.

        Raises:
            AdapterError: where the path is a file, or there is no such adapter.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise AdapterError("is a file; name a folder to save the adapter in", where=str(folder))
        if not safe_serialization:
            raise AdapterError("adapters are written as safetensors only; leave safe_serialization true")
        for name in self.peft_config if selected_adapters is None else selected_adapters:
            state = get_peft_model_state_dict(
                self, state_dict, name, save_embedding_layers=save_embedding_layers
            )
            config = self._saved_config(name)
            if path_initial_model_for_weight_conversion is not None:
                initial = load_peft_weights(path_initial_model_for_weight_conversion)
                state, config = self.tuner.method_of(name).since(state, initial, config)
            if is_main_process:
                target = folder if name == "default" else folder / name
                save_weights(target, state)
                config.save_pretrained(target)
        if is_main_process:
            self.create_or_update_model_card(folder)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Every tensor of the model; tied ones come apart, so that Trainer can write them."""
        state = super().state_dict(*args, **kwargs)
        return state if args or kwargs else apart(state)

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Writes README.md into a folder, or updates the metadata of one that is there."""
        base: Any = self.get_base_model()
        config = self.active_peft_config
        quantization = getattr(getattr(base, "config", None), "quantization_config", None)
        facts = CardFacts(
            config=config,
            base=config.base_model_name_or_path,
            tags=[*(getattr(base, "model_tags", None) or ()), *_library(base)],
            quantization=None if quantization is None else quantization.to_dict(),
        )
        write_card(Path(output_dir), facts)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **save: Any,
    ) -> CommitInfo:
        """Puts the adapters and a card into a model repository of the Hub, in one commit.

        Args:
            repo_id: `name`, or `organization/name`; made where it does not exist.
            commit_message: the commit's title.
            commit_description: its body.
            private: make the repository private; one that is public already is refused.
            token: default: that of the environment, or of `hf auth login`.
            revision: the branch; default: main.
            create_pr: propose the commit as a pull request.
            **save: as for `save_pretrained`.

        Raises:
            HubError: where the Hub refuses, or cannot be reached.
        """
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, **save)
            files: dict[str, Path | bytes] = {
                path.relative_to(folder).as_posix(): path
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            return upload(
                repo_id,
                files,
                message=commit_message or "Upload model",
                description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )

    def _saved_config(self, adapter_name: str) -> PeftConfig:
        """As PEFT writes it: frozen, and with the base's class where the task has none of its own."""
        config = dataclasses.replace(self.peft_config[adapter_name], inference_mode=True)
        if config.task_type is None:
            base = type(self.get_base_model())
            config.auto_mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
        return config


def _library(base: Any) -> list[str]:
    """PEFT tags an adapter with the library that its base is of."""
    from transformers import PreTrainedModel

    return ["transformers"] if isinstance(base, PreTrainedModel) else []

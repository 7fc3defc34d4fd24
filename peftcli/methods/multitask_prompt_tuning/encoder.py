"""One prompt for several tasks: P ∘ (u_k v_kᵀ) for task k, with P shared by all.

Shapes: K tasks, N virtual tokens, E numbers of one, R the rank, B rows.

Wang et al., "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning", 2023, arXiv:2303.02861.
"""

from __future__ import annotations

import torch
from torch import nn

from peftcli.adapters.prompt_method import PromptEncoder
from peftcli.errors import AdapterError

COLS, ROWS = "prefix_task_cols", "prefix_task_rows"


class MultitaskPromptEncoder(PromptEncoder):
    """`embedding` (N, E), `prefix_task_cols` (K, N, R) and `prefix_task_rows` (K, R, E)."""

    def __init__(self, tokens: int, width: int, tasks: int, rank: int) -> None:
        super().__init__(tokens, width)
        self.prefix_task_cols = nn.Parameter(torch.empty(tasks, tokens, rank).normal_(std=0.02))
        self.prefix_task_rows = nn.Parameter(torch.empty(tasks, rank, width).normal_(std=0.02))

    def prompt(self, rows: int, task_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Each row's prompt, (B, N, E).

        Raises:
            AdapterError: where it is not clear which row is of which task.
        """
        tasks = len(self.prefix_task_cols)
        if task_ids is None:
            if tasks > 1:
                raise AdapterError(f"task_ids is missing: say which of the {tasks} tasks each row is of")
            task_ids = torch.zeros(rows, dtype=torch.long)
        task_ids = task_ids.to(self.prefix_task_cols.device)
        if rows % len(task_ids):
            raise AdapterError(f"task_ids has {len(task_ids)} numbers, and there are {rows} rows")
        # Beam search repeats rows.
        task_ids = task_ids.repeat_interleave(rows // len(task_ids))
        factors_BNE = self.prefix_task_cols[task_ids] @ self.prefix_task_rows[task_ids]
        shared_1NE: torch.Tensor = self(self.indices)
        return shared_1NE * factors_BNE

    def saved(self) -> dict[str, torch.Tensor]:
        """The shared prompt and all tasks' factors."""
        return {**super().saved(), COLS: self.prefix_task_cols, ROWS: self.prefix_task_rows}

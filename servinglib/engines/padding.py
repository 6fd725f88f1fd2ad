"""Rows of different lengths in one rectangle: left padding.

A tensor has no ragged edge, so shorter prompts are filled up. Filling on the left lets all rows end
in the same column, where the next token of each will stand, like a choir that starts at different
bars and must end together. The fill is wasted work, and lesson 06 counts it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class PaddedBatch:
    """The columns that the model still has to read, and where each row is in them.

    Padding is masked out of attention and not counted in a row's positions, so that a row computes
    what it would compute alone. The mask is made once for all steps; rows of equal length need
    none, and attention is cheaper without.

    Parameters
    ----------
    prompts : sequence of list of int
        Token ids, at least one per row.
    max_new : int
        Most columns that will be appended.
    context_length : int
        Positions end here. Only a finished row that steps along with longer ones gets there.
    device : torch.device
    """

    def __init__(
        self,
        prompts: Sequence[list[int]],
        max_new: int,
        context_length: int,
        device: torch.device,
    ) -> None:
        width = max(map(len, prompts))
        padding = torch.tensor([[width - len(prompt)] for prompt in prompts], device=device)  # (rows, 1)
        columns = torch.arange(width + max_new, device=device)[None]  # (1, columns)
        self._positions = (columns - padding).clamp(0, context_length - 1)  # (rows, columns)
        self._mask = (columns >= padding).long() if padding.any() else None  # (rows, columns)
        padded = [[0] * (width - len(prompt)) + prompt for prompt in prompts]  # no row ever sees the 0
        self._unread = torch.tensor(padded, device=device)  # (rows, width), then (rows, 1)
        self._start, self._end = 0, width

    def inputs(self) -> dict[str, torch.Tensor | None]:
        """The next forward pass's arguments: all prompts at first, then one column."""
        return {
            "input_ids": self._unread,
            "position_ids": self._positions[:, self._start : self._end],
            "attention_mask": None if self._mask is None else self._mask[:, : self._end],
        }

    def append(self, tokens: torch.Tensor) -> None:
        """Add the chosen tokens, (rows,), as the next column."""
        self._unread = tokens[:, None]
        self._start, self._end = self._end, self._end + 1

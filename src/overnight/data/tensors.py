"""Data sets as tensors, in memory or memory-mapped, and iterators over their batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Some rows of a data set.

    Attributes:
        inputs: (N, ...), of the whole data set, shared by its parts.
        targets: (N,), of the whole data set, shared by its parts.
        rows: (n,), indices of the rows that belong to this part.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, count: int) -> Part:
        return Part(self.inputs, self.targets, self.rows[:count])


class Batches:
    """Iterates over (inputs, targets) in batches, shuffled by torch's global generator in each iteration.

    To select a batch from whole tensors takes a fifth of the time of a DataLoader over a TensorDataset, which collects
    rows one by one. The global generator is part of a trial's saved state, so that resumed trials draw the same order.

    Args:
        inputs: (N, ...).
        targets: (N,).
        batch_size: rows of a batch. The last batch may be smaller. With `shuffle`, a last batch of a single row is left
            out, because batch norm needs two; it is another row in the next iteration.
        shuffle: draw a new order in each iteration.
        rows: (n,), indices of the rows to use; None for all.
        prepare: maps raw inputs (B, ...) of one batch to the network's inputs.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        shuffle: bool = False,
        rows: Tensor | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"inputs and targets must have as many rows, got {len(inputs)} and {len(targets)}")
        self._inputs, self._targets = inputs, targets
        self._batch_size, self._shuffle = batch_size, shuffle
        self._rows = torch.arange(len(inputs)) if rows is None else rows
        self._prepare = prepare

    def __len__(self) -> int:
        count = math.ceil(len(self._rows) / self._batch_size)
        single_row = self._shuffle and self._batch_size > 1 and len(self._rows) % self._batch_size == 1
        return count - 1 if single_row and count > 1 else count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self._rows[torch.randperm(len(self._rows))] if self._shuffle else self._rows
        for chosen in rows.split(self._batch_size)[: len(self)]:
            inputs = self._inputs.index_select(0, chosen)
            yield self._prepare(inputs) if self._prepare else inputs, self._targets.index_select(0, chosen)


class BatchGroups:
    """Iterates over groups of batches; each group is an iterator that selects its batches when they are needed.

    A step of the Trainer costs as much as a step of a small network. A module that takes a group in each step pays it
    once for many batches. The order of random draws does not depend on the size of the groups.

    Args:
        batches: the batches.
        size: batches of a group.
        between: called after each batch.
    """

    def __init__(self, batches: Batches, size: int, between: Callable[[], None]) -> None:
        self.batches, self._size, self._between = batches, size, between

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self._size)

    def __iter__(self) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        remaining = iter(self.batches)
        for _ in range(len(self)):
            yield self._group(remaining)

    def _group(self, remaining: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in itertools.islice(remaining, self._size):
            yield batch
            self._between()

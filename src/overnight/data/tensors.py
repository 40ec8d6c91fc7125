"""Data held as tensors, in memory or mapped into it, and handed over in slices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Some rows of a data set. inputs: (N, ...), targets: (N,), shared between the parts; rows: (n,), which are its."""

    inputs: Tensor
    targets: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, count: int) -> Part:
        return Part(self.inputs, self.targets, self.rows[:count])


class Batches:
    """Iterates over (inputs, targets) in batches; shuffled anew each time from torch's global generator.

    Picking a batch out of whole tensors takes a fifth of the time of a DataLoader over a TensorDataset, which collects
    its rows one at a time; and the global generator is part of a trial's saved state, so going on draws the same order.

    Args:
        inputs: (N, ...). targets: (N,).
        batch_size: rows a batch; the last one may have fewer. Where rows are shuffled a last batch of a single row is
            left out, as batch norm can make nothing of it; another row is left out next time.
        rows: (n,), the ones to hand over; None for all.
        prepare: from raw inputs (B, ...) to what the network is fed, a batch at a time.
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
        if batch_size < 1:
            raise ValueError(f"data.batch_size: must be at least 1, got {batch_size}")
        if len(inputs) != len(targets):
            raise ValueError(f"inputs and targets must have as many rows, got {len(inputs)} and {len(targets)}")
        self._inputs, self._targets = inputs, targets
        self._batch_size, self._shuffle = batch_size, shuffle
        self._rows = torch.arange(len(inputs)) if rows is None else rows
        self._prepare = prepare

    def __len__(self) -> int:
        whole = math.ceil(len(self._rows) / self._batch_size)
        lone = self._shuffle and self._batch_size > 1 and len(self._rows) % self._batch_size == 1
        return whole - 1 if lone and whole > 1 else whole

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rows = self._rows[torch.randperm(len(self._rows))] if self._shuffle else self._rows
        for chosen in rows.split(self._batch_size)[: len(self)]:
            inputs = self._inputs.index_select(0, chosen)
            yield self._prepare(inputs) if self._prepare else inputs, self._targets.index_select(0, chosen)


class Several:
    """Hands over several batches as one: an iterator that picks each when it is asked for.

    A step of the Trainer's costs as much as a small network's own; a module that steps by itself takes several batches
    in one of them. What is drawn by chance is drawn in the same order, however many there are in one.

    Args:
        batches: what is handed over. size: how many at a time. between: called after each.
    """

    def __init__(self, batches: Batches, size: int, between: Callable[[], None]) -> None:
        self.batches, self._size, self._between = batches, size, between

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self._size)

    def __iter__(self) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        left = iter(self.batches)
        for _ in range(len(self)):
            yield self._some(left)

    def _some(self, left: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in itertools.islice(left, self._size):
            yield batch
            self._between()

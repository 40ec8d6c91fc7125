"""What every data module that comes with overnight does alike: parts that stay apart, thinned, prepared, in batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from overnight.data.preparing import Augment, Normalise, normalise
from overnight.data.tensors import Batches, Part, Several

# Evaluation keeps no gradients, so its batches can be large.
_EVALUATION_BATCH = 1024


class SplitData(pl.LightningDataModule):
    """Train, validation and test as tensors. A leaf says `task`, `input_shape`, `classes` and how it is `split`.

    Args:
        batch_size: rows a training batch.
        split_seed: fixes which rows are validation, and test where no official one exists; never the trial's.
        normalise: none, minmax (to 0 to 1) or standard (mean 0, deviation 1), by the training rows alone.
        subset: share of the training rows to train with, above 0, 1 included; a smaller one lies within a larger.
        augment: of images while training: {shift: pixels, rotate: degrees, flip: true or false}; see Augment.
    """

    task: str
    input_shape: Sequence[int]
    columns: Sequence[str] = ()  # names of the features, where rows are a table's
    brightest: float = 255.0  # of a pixel, where rows are images

    def __init__(
        self,
        batch_size: int = 32,
        split_seed: int = 0,
        normalise: str = "minmax",
        subset: float = 1.0,
        augment: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < subset <= 1:
            raise ValueError(f"data.subset: must be above 0 and at most 1, got {subset!r}")
        self._augment = Augment.of(augment or {})
        if self._augment is not None and len(self.input_shape) != 3:
            raise ValueError("data.augment: is for images, and this data has none; take it out")
        self._batch_size, self._split_seed = batch_size, split_seed
        self._how, self._subset = normalise, subset
        self._parts: dict[str, Part] = {}
        self._several: tuple[int, Callable[[], None]] | None = None

    @abstractmethod
    def split(self, seed: int) -> dict[str, Part]:
        """The parts train, validation and test, which share no row."""

    def setup(self, stage: str) -> None:  # noqa: ARG002
        if not self._parts:
            self._parts = self.split(self._split_seed)
            train = self._parts["train"]
            self._parts["train"] = train.first(max(1, round(self._subset * len(train))))
            self._normalise = self.normalisation(self._parts["train"], self._how)

    def normalisation(self, part: Part, how: str) -> Normalise | None:
        """How rows are normalised, by the training part; see normalise()."""
        return normalise(part, how)

    def hand_over(self, size: int, between: Callable[[], None]) -> None:
        """Have training batches come several at a time, for a module that steps by itself; see Several."""
        self._several = size, between

    def train_dataloader(self) -> Batches | Several:
        batches = self._batches("train", self._batch_size)
        return Several(batches, *self._several) if self._several else batches

    def val_dataloader(self) -> Batches:
        return self._batches("validation", _EVALUATION_BATCH)

    def test_dataloader(self) -> Batches:
        return self._batches("test", _EVALUATION_BATCH)

    # What a network that was trained on this data is asked later

    def prepared(self, inputs: Tensor) -> Tensor:
        """Raw rows (B, *input_shape) as the network was fed them; needs a `setup`, or a state to load."""
        return self._normalise(inputs) if self._normalise else inputs.float()

    def in_units(self, answers: Tensor) -> Tensor:
        """What the network answers, in the units that people have the targets in."""
        return answers

    def raw(self, count: int) -> Tensor:
        """The first so many rows of the validation set as they are, (count, *input_shape), for an example."""
        part = self._parts["validation"].first(count)
        return part.inputs.index_select(0, part.rows).float()

    def state_dict(self) -> dict[str, Any]:
        """How rows are prepared, which a checkpoint keeps: whoever asks the network need not have the data."""
        return {"normalise": vars(self._normalise) if self._normalise else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kept = state_dict["normalise"]
        self._normalise = Normalise(**kept) if kept is not None else None

    def _batches(self, name: str, batch_size: int) -> Batches:
        part, training = self._parts[name], name == "train"
        augment = self._augment if training else None

        def prepare(inputs: Tensor) -> Tensor:
            # Augmented first: what comes in from outside is then 0 as the data has it.
            inputs = augment(inputs) if augment else inputs
            return self.prepared(inputs)

        return Batches(part.inputs, part.targets, batch_size, shuffle=training, rows=part.rows, prepare=prepare)

"""The base class of the bundled data modules: separate parts, subsets, preparation and batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from overnight.data.folds import check_fold, fold_parts
from overnight.data.tensors import Batches, BatchGroups, Part
from overnight.data.transforms import NORMALISATIONS, Augmentation, Normalisation, fit_normalisation

PIXEL_MAX = 255.0  # the brightest pixel, unless the data module says otherwise
_EVALUATION_BATCH_SIZE = 1024  # evaluation keeps no gradients, so that its batches can be large


class SplitData(pl.LightningDataModule):
    """Training, validation and test data as tensors.

    A subclass defines `task`, `input_shape`, `classes` (of a multiclass task) and `split`.

    Args:
        batch_size: rows of a training batch.
        split_seed: decides which rows are for validation, and for test if there is no official test set. It does not
            depend on the trial.
        normalise: none, minmax (to the range 0 to 1) or standard (mean 0, standard deviation 1), computed from the
            training rows alone.
        subset: share of the training rows to use, in (0, 1]. A smaller subset is part of a larger one.
        augment: random changes of training images, {shift: pixels, rotate: degrees, flip: bool}; see Augmentation.
        fold: of the pooled training and validation rows, the fold that is the validation part, from 0.
        folds: number of folds of a cross-validation; None for the split that `split` returns.

    Attributes:
        task: binary, multiclass or regression.
        input_shape: shape of one row, (C, H, W) or (features,).
        columns: names of the features of a table.
        pixel_max: value of the brightest pixel of an image.
    """

    task: str
    input_shape: Sequence[int]
    columns: Sequence[str] = ()
    pixel_max: float = PIXEL_MAX

    def __init__(
        self,
        batch_size: int = 32,
        split_seed: int = 0,
        normalise: str = "minmax",
        subset: float = 1.0,
        augment: Mapping[str, Any] | None = None,
        fold: int | None = None,
        folds: int | None = None,
    ) -> None:
        super().__init__()
        # Every rule is checked here: the preflight check builds each searched choice, and trains only some.
        if batch_size < 1:
            raise ValueError(f"data.batch_size: must be at least 1, got {batch_size}")
        if normalise not in NORMALISATIONS:
            raise ValueError(f"data.normalise: must be one of {', '.join(NORMALISATIONS)}, got {normalise!r}")
        if not 0 < subset <= 1:
            raise ValueError(f"data.subset: must be above 0 and at most 1, got {subset!r}")
        check_fold(fold, folds)
        self._augmentation = Augmentation.from_options(augment or {})
        if self._augmentation is not None and len(self.input_shape) != 3:
            raise ValueError("data.augment: is for images, and this data has none; take it out")
        self._batch_size, self._split_seed = batch_size, split_seed
        self._normalisation_method, self._subset = normalise, subset
        self._fold, self._folds = fold, folds
        self._parts: dict[str, Part] = {}
        self._grouping: tuple[int, Callable[[], None]] | None = None

    @abstractmethod
    def split(self, seed: int) -> dict[str, Part]:
        """Return the parts train, validation and test, which share no row."""

    def setup(self, stage: str) -> None:  # noqa: ARG002
        if not self._parts:
            self._parts = self.split(self._split_seed)
            if self._fold is not None and self._folds is not None:
                stratify = self.task != "regression"
                self._parts = fold_parts(self._parts, self._fold, self._folds, self._split_seed, stratify)
            self._parts = self.prepare_targets(self._parts)
            train = self._parts["train"]
            self._parts["train"] = train.first(max(1, round(self._subset * len(train))))
            self._normalisation = self.fit_normalisation(self._parts["train"], self._normalisation_method)

    def prepare_targets(self, parts: dict[str, Part]) -> dict[str, Part]:
        """Return the parts with the targets that the network learns, by statistics of the training part alone."""
        return parts

    def fit_normalisation(self, part: Part, method: str) -> Normalisation | None:
        """Compute the normalisation from the training part. See transforms.fit_normalisation."""
        return fit_normalisation(part, method)

    def group_batches(self, size: int, between: Callable[[], None]) -> None:
        """Yield training batches in groups, for a module that steps over several. See BatchGroups."""
        self._grouping = size, between

    def train_dataloader(self) -> Batches | BatchGroups:
        batches = self._batches("train", self._batch_size)
        return BatchGroups(batches, *self._grouping) if self._grouping else batches

    def val_dataloader(self) -> Batches:
        return self._batches("validation", _EVALUATION_BATCH_SIZE)

    def test_dataloader(self) -> Batches:
        return self._batches("test", _EVALUATION_BATCH_SIZE)

    # For predictions with a trained network

    def prepare_inputs(self, inputs: Tensor) -> Tensor:
        """Map raw rows (B, *input_shape) to the network's inputs, after `setup` or `load_state_dict`."""
        return self._normalisation(inputs) if self._normalisation else inputs.float()

    def to_target_units(self, outputs: Tensor) -> Tensor:
        """Convert the network's predictions to the original units of the targets."""
        return outputs

    def raw_rows(self, count: int) -> Tensor:
        """Return the first rows of the validation part without preparation, (count, *input_shape)."""
        part = self._parts["validation"].first(count)
        return part.inputs.index_select(0, part.rows).float()

    def state_dict(self) -> dict[str, Any]:
        """Return the normalisation for the checkpoint, so that predictions do not need the data."""
        return {"normalisation": vars(self._normalisation) if self._normalisation else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = state_dict["normalisation"]
        self._normalisation = Normalisation(**saved) if saved is not None else None

    def _batches(self, name: str, batch_size: int) -> Batches:
        part, training = self._parts[name], name == "train"
        augmentation = self._augmentation if training else None

        def prepare(inputs: Tensor) -> Tensor:
            # Augmentation comes first, so that pixels from outside of an image are 0 in the data's own scale.
            inputs = augmentation(inputs) if augmentation else inputs
            return self.prepare_inputs(inputs)

        return Batches(part.inputs, part.targets, batch_size, shuffle=training, rows=part.rows, prepare=prepare)

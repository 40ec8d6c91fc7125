"""A step of the Trainer takes several batches only where no method of a user could tell."""

from __future__ import annotations

from typing import Any

import pytest

from overnight.data.digits import Digits
from overnight.models.mlp import MLP
from overnight.trial import fast_steps

OPTIONS = {"precision": "32-true", "max_epochs": 3}


def is_fast(of_model: dict[str, Any] | None = None, of_data: dict[str, Any] | None = None) -> bool:
    """Whether a network and data that derive from ours, with these attributes, take several batches per step."""
    model, data = type("OwnModel", (MLP,), of_model or {}), type("OwnData", (Digits,), of_data or {})
    return fast_steps.possible(data(), model((1, 8, 8), 10), OPTIONS)


def own(self: Any, *args: Any, **options: Any) -> Any:
    """A method of a user."""


def test_a_class_of_a_user_that_overrides_no_hook_of_training_is_fast() -> None:
    assert is_fast()
    assert is_fast({"forward": own, "helper": own, "test_step": own, "on_test_start": own, "rate": 0.1})
    assert is_fast({}, {"setup": own, "prepare_data": own, "split": own, "val_dataloader": own, "classes": 9})


@pytest.mark.parametrize(
    "name",
    [
        *("training_step", "configure_optimizers", "configure_callbacks", "configure_gradient_clipping", "backward"),
        *("on_train_batch_start", "on_train_batch_end", "on_after_backward", "on_before_zero_grad", "optimizer_step"),
        *("lr_scheduler_step", "optimizer_zero_grad", "on_train_epoch_end", "validation_step", "log"),
        *("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer", "automatic_optimization"),
    ],
)
def test_a_network_that_overrides_a_hook_of_training_is_not_fast(name: str) -> None:
    assert not is_fast({name: own})


@pytest.mark.parametrize("name", ["train_dataloader", "transfer_batch_to_device", "on_after_batch_transfer"])
def test_data_that_override_a_hook_of_training_are_not_fast(name: str) -> None:
    assert not is_fast({}, {name: own})


def test_a_hook_of_one_object_or_of_a_mixed_in_class_counts_as_well() -> None:
    mixed = type("OwnModel", (type("Mixed", (), {"on_after_backward": own}), MLP), {})
    assert not fast_steps.possible(Digits(), mixed((1, 8, 8), 10), OPTIONS)
    model, data = MLP((1, 8, 8), 10), Digits()
    assert fast_steps.possible(data, model, OPTIONS)
    model.on_train_batch_end = own  # type: ignore[method-assign]
    assert not fast_steps.possible(data, model, OPTIONS)
    data.on_before_batch_transfer = own  # type: ignore[method-assign]
    assert not fast_steps.possible(data, MLP((1, 8, 8), 10), OPTIONS)


def test_an_argument_that_counts_batches_is_not_fast() -> None:
    assert not fast_steps.possible(Digits(), MLP((1, 8, 8), 10), {**OPTIONS, "accumulate_grad_batches": 2})

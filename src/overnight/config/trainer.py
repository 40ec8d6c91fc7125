"""The arguments of Lightning's Trainer: those that a study takes, with their rules, and those that it sets itself.

The names and defaults are those of the Trainer's signature. A test compares them with the installed packages.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from overnight.config.fields import at_least, rule
from overnight.config.problems import Problems

# The names under which Lightning publishes its Trainer. A config may name one of them; a trial takes that of its model.
TARGETS: tuple[str, ...] = ("pytorch_lightning.Trainer", "lightning.Trainer", "lightning.pytorch.Trainer")
TARGETS += tuple(f"{package}.trainer.Trainer" for package in ("pytorch_lightning", "lightning.pytorch"))
TARGETS += tuple(f"{package}.trainer.trainer.Trainer" for package in ("pytorch_lightning", "lightning.pytorch"))

_ONE_DEVICE = "a trial trains on one device, and overnight chooses it; slots is the number of trials at a time"
_NO_OUTPUT = "a trial has no terminal; the live table and `overnight status` show its progress"

# Name -> why a study sets an argument itself.
OURS = {
    "devices": _ONE_DEVICE,
    "num_nodes": _ONE_DEVICE,
    "strategy": _ONE_DEVICE,
    "sync_batchnorm": _ONE_DEVICE,
    "logger": "each trial's metrics go to its run in MLflow; tracking says where that is",
    "model_registry": "the winner is registered in MLflow; see tracking.register",
    "callbacks": "callbacks have a config group of their own; choose one with callbacks=NAME",
    "plugins": "overnight keeps the states of a trial with a plugin of its own",
    "default_root_dir": "each trial has a folder below home",
    "enable_checkpointing": "each trial saves what it resumes from; see checkpoint.every_s",
    "enable_progress_bar": _NO_OUTPUT,
    "enable_model_summary": _NO_OUTPUT,
}

# Name -> why an argument has no place in a trial.
REFUSED = {
    "fast_dev_run": "it trains a few batches and saves nothing; `overnight tune --dry-run` tries each configuration",
    "barebones": "it turns off the metrics that a study judges trials by",
    "profiler": "its report would be in no place that a trial keeps; use torch.profiler in the model",
    "limit_predict_batches": "`overnight predict` predicts every row that it is given",
}

# Values of refused arguments, besides null and Lightning's default, that ask for what a trial does anyway.
_HARMLESS = {
    "devices": (1, "1"),
    "strategy": ("single_device",),
    "logger": (False,),
    "enable_checkpointing": (False,),
    "enable_progress_bar": (False,),
    "enable_model_summary": (False,),
}
_DEFAULTS = {
    **{"devices": "auto", "num_nodes": 1, "strategy": "auto", "sync_batchnorm": False},
    **{"fast_dev_run": False, "barebones": False},
}

_PRECISIONS = (
    *("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "transformer-engine"),
    *("transformer-engine-float16", "16", "32", "64", "bf16", "half", "float", "double", 16, 32, 64),
)


def _is_time(value: Any) -> bool:
    """Whether a value is a duration as the Trainer reads it: DD:HH:MM:SS, or a mapping such as {hours: 8}."""
    if isinstance(value, Mapping):
        units = ("days", "hours", "minutes", "seconds", "weeks", "milliseconds", "microseconds")
        return bool(value) and all(k in units and _is_number(v) and v >= 0 for k, v in value.items())
    return isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value.strip()) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count_or_share(value: Any) -> bool:
    """Whether a value is a number of batches, or a share of them as a float."""
    return (type(value) is int and value >= 0) or (type(value) is float and 0 <= value <= 1)


def _is_interval(value: Any) -> bool:
    return (type(value) is int and value >= 1) or (type(value) is float and 0 < value <= 1) or _is_time(value)


def _share(default: Any = None) -> Any:
    return rule("must be a number of batches, or a share of them from 0.0 to 1.0", _is_count_or_share, default)


def _switch(default: bool | None = None) -> Any:
    return rule("must be true or false", lambda v: isinstance(v, bool), default)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """The arguments of the Trainer that a study takes.

    The defaults are Lightning's, but for the first three, which config.yaml gives. An argument that no config gives is
    not passed on. Fields of type Any take several types; their rules say which.
    """

    max_epochs: int = rule(
        "must be at least 1, or -1 for no limit where trainer.max_steps or trainer.max_time is one",
        lambda v: v >= 1 or v == -1,
    )
    precision: Any = rule(f"must be one of {', '.join(map(str, _PRECISIONS[:7]))}", lambda v: v in _PRECISIONS)
    gradient_clip_val: float | None = rule("must be positive", lambda v: v > 0)
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    max_steps: int = rule("must be at least 1, or -1 for no limit", lambda v: v >= 1 or v == -1, -1)
    min_epochs: int | None = at_least(0, None)
    min_steps: int | None = at_least(0, None)
    max_time: Any = rule("must be a time such as '00:08:00:00' (DD:HH:MM:SS) or {hours: 8}", _is_time, None)
    limit_train_batches: Any = rule(
        "must be a number of batches, or a share of them above 0.0, at most 1.0",
        lambda v: _is_count_or_share(v) and v > 0,
        None,
    )
    limit_val_batches: Any = _share()
    limit_test_batches: Any = _share()
    overfit_batches: Any = _share(0.0)
    val_check_interval: Any = rule(
        "must be a number of training batches, a share of an epoch above 0.0, at most 1.0, or a time such as "
        "'00:00:30:00' (DD:HH:MM:SS)",
        _is_interval,
        None,
    )
    check_val_every_n_epoch: int | None = at_least(1, 1)
    num_sanity_val_steps: int | None = at_least(-1, None)
    log_every_n_steps: int | None = at_least(0, None)
    accumulate_grad_batches: int = at_least(1, 1)
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    deterministic: Any = rule("must be true, false or warn", lambda v: isinstance(v, bool) or v == "warn", None)
    benchmark: Any = _switch()
    inference_mode: Any = _switch(True)
    use_distributed_sampler: Any = _switch(True)
    detect_anomaly: Any = _switch(False)
    reload_dataloaders_every_n_epochs: int = at_least(0, 0)
    enable_autolog_hparams: Any = _switch(True)

    @property
    def units(self) -> int | None:
        """The epochs of a trial, or its validations where they are counted; see `units_of`."""
        return units_of(vars(self))

    def problems(self) -> list[str]:
        """What is wrong with arguments together, one line each."""
        found = []
        if self.max_epochs == -1 and self.max_steps == -1 and self.max_time is None:
            found.append(
                "trainer.max_epochs: must have another limit beside it where it is -1; add trainer.max_steps=N or "
                "trainer.max_time=DD:HH:MM:SS"
            )
        if self.max_epochs != -1 and (self.min_epochs or 0) > self.max_epochs:
            found.append(
                f"trainer.min_epochs: must be at most trainer.max_epochs, which is {self.max_epochs}, got "
                f"{self.min_epochs}; lower it"
            )
        if self.max_steps != -1 and (self.min_steps or 0) > self.max_steps:
            found.append(
                f"trainer.min_steps: must be at most trainer.max_steps, which is {self.max_steps}, got "
                f"{self.min_steps}; lower it"
            )
        most = self.max_steps * self.accumulate_grad_batches  # batches
        if self.max_steps != -1 and type(self.val_check_interval) is int and self.val_check_interval > most:
            found.append(
                f"trainer.val_check_interval: must be at most {most}, the batches of trainer.max_steps, got "
                f"{self.val_check_interval}; lower it"
            )
        if self.check_val_every_n_epoch is None and type(self.val_check_interval) is float:
            found.append(
                f"trainer.val_check_interval: must be a number of batches where trainer.check_val_every_n_epoch is "
                f"null, got {self.val_check_interval}; take a whole number"
            )
        return found


ACCEPTED = {f.name: f for f in dataclasses.fields(TrainerSettings)}

# The arguments with which our networks may step over groups of batches: no other counts training batches or changes
# what happens in one.
FREE_OF_BATCHES = (
    *("max_epochs", "min_epochs", "precision", "gradient_clip_val", "limit_val_batches", "limit_test_batches"),
    *("check_val_every_n_epoch", "num_sanity_val_steps", "accelerator", "deterministic", "benchmark"),
    *("inference_mode", "use_distributed_sampler", "detect_anomaly", "enable_autolog_hparams"),
)


def default_of(name: str) -> Any:
    """Lightning's default of an accepted argument; None for the three that config.yaml gives."""
    default = ACCEPTED[name].default
    return None if default is dataclasses.MISSING else default


def without_ours(node: Any) -> Any:
    """The trainer section without `_target_` and without arguments that ask for what a trial does anyway."""
    if not isinstance(node, Mapping):
        return node
    return {k: v for k, v in node.items() if not (k == "_target_" and v in TARGETS) and not _is_harmless(k, v)}


def _is_harmless(name: str, value: Any) -> bool:
    if name not in OURS and name not in REFUSED:
        return False
    default = _DEFAULTS.get(name)
    return value is None or any(type(value) is type(v) and value == v for v in (default, *_HARMLESS.get(name, ())))


def add_refusals(node: Any, problems: Problems) -> Any:
    """Add why arguments of the trainer section are refused to `problems`; return the section without them."""
    if not isinstance(node, Mapping):
        return node
    if "_target_" in node:
        rule_text = f"must be Lightning's Trainer, {' or '.join(TARGETS[:3])}, or be left out"
        problems.add("trainer._target_", rule_text, node["_target_"])
    for name, value in node.items():
        if name in OURS:
            problems.add(f"trainer.{name}", f"is set by overnight: {OURS[name]}", value, "take it out")
        elif name in REFUSED:
            problems.add(f"trainer.{name}", f"has no place in a trial: {REFUSED[name]}", value, "take it out")
    return {k: v for k, v in node.items() if k not in OURS and k not in REFUSED and k != "_target_"}


def counts_validations(trainer: Mapping[str, Any]) -> bool:
    """Whether the progress of a trial with these arguments is counted in validations, and not in epochs."""
    interval = trainer.get("val_check_interval")
    in_epoch = interval is None or (type(interval) is float and interval == 1.0)
    steps, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    return not in_epoch or steps not in (None, -1) or epochs == -1


def length_arguments(trainer: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments that decide how many epochs, or validations, a trial with these arguments has."""
    between = ("check_val_every_n_epoch", "accumulate_grad_batches") if counts_validations(trainer) else ()
    return ("max_epochs", "max_steps", "val_check_interval", *between)


def units_of(trainer: Mapping[str, Any]) -> int | None:
    """The epochs of a trial with these arguments, or its validations where they are counted.

    None where only the data tell how many validations there are. A share of an epoch is counted as if each epoch could
    be divided by it; a few batches more or less may add a validation.
    """
    epochs, steps = trainer.get("max_epochs", -1), trainer.get("max_steps") or -1
    interval, every = trainer.get("val_check_interval"), trainer.get("check_val_every_n_epoch", 1)
    if not counts_validations(trainer):
        return int(epochs)
    units = 0
    if steps == -1 and epochs != -1 and type(interval) is float and every is not None:
        units = epochs // every * math.floor(1 / interval + 1e-9)
    elif steps != -1 and epochs == -1 and type(interval) is int and every is None:
        units = steps * trainer.get("accumulate_grad_batches", 1) // interval
    return units or None


def unit_of(trainer: Mapping[str, Any]) -> Literal["epoch", "validation"]:
    """What the progress of a trial with these arguments is counted in."""
    return "validation" if counts_validations(trainer) else "epoch"


def trainer_arguments(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments to pass to the Trainer: those that are given. null is Lightning's default."""
    given = {k: v for k, v in without_ours(trainer).items() if v is not None or k == "check_val_every_n_epoch"}
    given.pop("accelerator", None)  # the trial's device says it
    return {"num_sanity_val_steps": 0, **given}

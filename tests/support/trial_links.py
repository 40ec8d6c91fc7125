"""Run a trial in this process, with a list instead of its pipe."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from overnight.protocol import Decision, Progress, TrialMessage, TrialSpec
from overnight.runner.trial_spec import trial_spec
from overnight.search.build_plan import build_plan


@dataclass
class ListLink:
    """Records the messages of a trial and answers them with the given decisions."""

    decisions: dict[int, Decision] = field(default_factory=dict)
    stop_in_epoch: int | None = None
    messages: list[TrialMessage] = field(default_factory=list)

    def send(self, message: TrialMessage) -> None:
        self.messages.append(message)

    def ask(self, message: Progress) -> Decision:
        self.messages.append(message)
        return self.decisions.get(message.index, Decision.CONTINUE)

    def stop_wanted(self) -> bool:
        return self.stop_in_epoch is not None and len(self.epochs) == self.stop_in_epoch

    @property
    def epochs(self) -> list[Progress]:
        return [m for m in self.messages if isinstance(m, Progress)]

    @property
    def curve(self) -> list[tuple[int, dict[str, float]]]:
        return [(e.index, e.metrics) for e in self.epochs]


def spec_for(folder: Path, *overrides: str, every_s: float = 1e9, **changes: Any) -> TrialSpec:
    study = build_plan(["search=none", "trainer.max_epochs=6", *overrides])
    spec = trial_spec(study, 7, study.config({}), 11, "cpu", folder=folder, every_s=every_s)
    return replace(spec, **{"cache": None, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.ckpt", weights_only=True)["state_dict"]


KEYS = ("hidden_sizes", "activation", "dropout", "batch_norm")

USER_MODEL = ["model._target_=user_networks.Plain", *(f"~model.{key}" for key in KEYS)]

"""The Lightning callback of a trial: it reports epochs and keeps the state that the trial resumes from."""

from __future__ import annotations

import time
from typing import Any, Protocol

from overnight.protocol import Alive, Decision, EpochEnd, StateSaved, TrialMessage, TrialSpec
from overnight.trial import checkpoint
from overnight.trial.state import (
    DROPPED,
    copy_to_cpu,
    get_random_state,
    identity_of,
    plain_hyperparameters,
    set_random_state,
)

# Seconds between two checks, within an epoch, of whether the trial is to stop.
POLL_EVERY_S = 0.1
# Seconds between two Alive messages within an epoch.
ALIVE_EVERY_S = 1.0
# Keys of Lightning's checkpoints for what save_hyperparameters() of the model and of the data module keeps.
_HYPERPARAMETERS = tuple(
    f"{owner}{name}" for owner in ("", "datamodule_") for name in ("hyper_parameters", "hparams_name", "hparams_type")
)


class Link(Protocol):
    """Connection to the supervisor: a pipe in a trial process, a list in tests."""

    def send(self, message: TrialMessage) -> None: ...
    def ask(self, message: EpochEnd) -> Decision: ...
    def stop_wanted(self) -> bool: ...


class TrialStopped(Exception):
    """Raised to leave Lightning's fit, as `decision` says."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.value)
        self.decision = decision


class InMemoryCheckpoints:
    """A CheckpointIO that keeps a copy of Lightning's checkpoint in memory and loads the state it was given."""

    def __init__(self, state: dict[str, Any] | None) -> None:
        self._state = state
        self.restores = state is not None
        self.saved: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        self.saved = copy_to_cpu(checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:  # noqa: ARG002
        return self._state

    def remove_checkpoint(self, path: Any) -> None:
        pass


class TrialTrainer:
    """A Trainer whose checkpoint callbacks are the user's. Without it they would find ours first."""

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        found: list[Any] = super().checkpoint_callbacks  # type: ignore[misc]
        return [callback for callback in found if not isinstance(callback, TrialCallback)]


class TrialCallback:
    """Reports each epoch and keeps the state of the last epoch boundary in memory.

    Its base is Lightning's Checkpoint, because Lightning calls these after everything else at the end of an epoch.

    Lightning's checkpoint at the end of an epoch precedes the step of the schedules. The callback therefore takes it
    there and completes it when the next epoch starts. Only then can training resume from it bit by bit.
    """

    def __init__(self, spec: TrialSpec, link: Link, memory: InMemoryCheckpoints) -> None:
        self._spec, self._link, self._memory = spec, link, memory
        self.history: list[EpochEnd] = []
        self.restoring = memory.restores  # until the model has the saved state
        self._boundary: dict[str, Any] | None = None
        self._boundary_incomplete = False
        self._stopping = False
        self._best: tuple[float, dict[str, Any]] | None = None  # (metric, weights)
        self._random_state: dict[str, Any] | None = None
        self._logged: dict[str, Any] = {}  # Lightning's metrics at the end of the last epoch
        self._epoch_started_at = self._saved_at = self._polled_at = self._alive_at = time.monotonic()

    def setup(self, trainer: Any, module: Any, stage: str) -> None:  # noqa: ARG002
        # The model's checkpoint callbacks are appended. What they change at the end of an epoch is part of its state.
        trainer.callbacks = [*(c for c in trainer.callbacks if c is not self), self]

    # Resuming

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        ours = checkpoint["overnight"]
        self.history = [EpochEnd(**e) for e in ours["history"]]
        self._random_state = ours["random"]
        self._best = (ours["best"]["value"], ours["best"]["weights"]) if ours["best"] else None
        self._logged = dict(ours["logged"])
        # A model whose schedule asks for the number of steps makes the DataLoader draw its order during setup.
        set_random_state(self._random_state)
        self._boundary = copy_to_cpu(checkpoint)  # the optimizer trains on in the very tensors that it is given

    def on_fit_start(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        # Any other DataLoader draws its order right after this. What the setup of the model drew does not count.
        if self._random_state is not None and trainer.train_dataloader is None:
            set_random_state(self._random_state)

    def on_train_start(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        self.restoring = False
        trainer.callback_metrics.update(self._logged)  # schedules and callbacks may read metrics of earlier epochs

    # Within an epoch

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        self._epoch_started_at = time.monotonic()
        if not self._boundary_incomplete:
            return
        self._boundary_incomplete = False
        assert self._boundary is not None
        self._boundary["optimizer_states"] = copy_to_cpu([o.state_dict() for o in trainer.optimizers])
        self._boundary["lr_schedulers"] = copy_to_cpu([c.scheduler.state_dict() for c in trainer.lr_scheduler_configs])
        if self._stopping:
            self._save_and_stop()
        if time.monotonic() - self._saved_at >= self._spec.checkpoint_every_s:
            self._save()

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:  # noqa: ARG002
        self.poll()

    def on_validation_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:  # noqa: ARG002
        self.poll()

    def poll(self) -> None:
        """Check now and then, between two batches, whether to stop, and send signs of life."""
        now = time.monotonic()
        if now - self._polled_at < POLL_EVERY_S:
            return
        self._polled_at = now
        if self._link.stop_wanted():
            self._save_and_stop()
        if now - self._alive_at >= ALIVE_EVERY_S:
            self._alive_at = now
            self._link.send(Alive(self._spec.number))

    # The end of an epoch

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        now = time.monotonic()
        # Lightning keeps a metric that was not logged in this epoch as the same object.
        logged = dict(trainer.callback_metrics)
        metrics = {name: float(value) for name, value in logged.items() if value is not self._logged.get(name)}
        self._logged = logged
        seconds = now - self._epoch_started_at
        epoch = EpochEnd(self._spec.number, trainer.current_epoch, metrics, time.time(), seconds)
        self.history.append(epoch)
        self._update_best(epoch, module)
        decision = self._link.ask(epoch)
        if decision is Decision.STOP:
            raise TrialStopped(decision)
        if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            return  # to finish takes less time than to save
        self._stopping = decision is Decision.SAVE_AND_STOP
        trainer.save_checkpoint("memory", weights_only=False)
        self._boundary = self._memory.saved
        for name in _HYPERPARAMETERS:
            self._boundary.pop(name, None)  # the configuration builds the same objects again
        self._boundary["overnight"] = {
            "identity": identity_of(self._spec),
            "history": [vars(e) for e in self.history],
            "random": get_random_state(),
            "logged": copy_to_cpu(logged),
            "best": {"value": self._best[0], "weights": self._best[1]} if self._best else None,
        }
        self._boundary_incomplete = True

    def weights(self, trainer: Any) -> dict[str, Any]:
        """Return a checkpoint of the epoch that gives the objective, for Lightning's load_from_checkpoint."""
        trainer.save_checkpoint("memory", weights_only=True)
        saved = self._memory.saved
        for name in _HYPERPARAMETERS:
            if name in saved:
                saved[name] = plain_hyperparameters(saved[name])
        saved = {name: value for name, value in saved.items() if value is not DROPPED}
        if self._best is not None:
            saved["state_dict"] = self._best[1]
        spec = self._spec
        saved["overnight"] = {
            "study": spec.study,
            "trial": spec.number,
            "seed": spec.seed,
            "config": spec.config,
            "identity": identity_of(spec),
            "history": [vars(e) for e in self.history],
        }
        return saved

    def _update_best(self, epoch: EpochEnd, module: Any) -> None:
        value = epoch.metrics.get(self._spec.metric)
        if self._spec.objective != "best" or value is None or value != value:
            return
        sign = 1 if self._spec.direction == "maximize" else -1
        if self._best is None or sign * value > sign * self._best[0]:
            self._best = (value, copy_to_cpu(module.state_dict()))

    def _save_and_stop(self) -> None:
        """Stop with the last boundary on disk. Before the first boundary there is nothing to save."""
        if self._boundary is not None:
            self._save()
        raise TrialStopped(Decision.SAVE_AND_STOP)

    def _save(self) -> None:
        assert self._boundary is not None
        self._saved_at = time.monotonic()
        try:
            checkpoint.save(self._spec.checkpoint_folder, self._boundary)
        except checkpoint.DiskFull:
            return  # the previous state is still there, and the supervisor makes trials wait for free space
        last = self._boundary["overnight"]["history"][-1]
        self._link.send(StateSaved(self._spec.number, last["epoch"]))

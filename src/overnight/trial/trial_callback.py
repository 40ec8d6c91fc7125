"""The Lightning callback of a trial: it reports epochs and keeps the state that the trial resumes from."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

from overnight.protocol import Alive, Decision, Progress, StateSaved, TrialMessage, TrialSpec
from overnight.trial import checkpoint
from overnight.trial.boundary import Boundary, match_param_groups, param_groups_of, set_weights
from overnight.trial.logger import TrialLogger
from overnight.trial.measured import MeasuredWeights
from overnight.trial.state import DROPPED, copy_to_cpu, history_of, identity_of, plain_hyperparameters

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
    def ask(self, message: Progress) -> Decision: ...
    def stop_wanted(self) -> bool: ...


class TrialStopped(Exception):
    """Raised to leave Lightning's fit, as `decision` says."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.value)
        self.decision = decision


class InMemoryCheckpoints:
    """A CheckpointIO that keeps Lightning's checkpoint in memory and loads the state it was given.

    Args:
        state: what the trial resumes from.
        module: the LightningModule that it is loaded into.

    Attributes:
        saved: the checkpoint that was saved last, not copied.
        initial: the weights before the state was loaded.
    """

    def __init__(self, state: dict[str, Any] | None, module: Any) -> None:
        self.state, self._module = state, module
        self.saved: dict[str, Any] = {}
        self.initial: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        self.saved = checkpoint

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:  # noqa: ARG002
        self.initial = copy_to_cpu(self._module.state_dict())
        return self.state

    def remove_checkpoint(self, path: Any) -> None:
        pass


class TrialTrainer:
    """A Trainer whose checkpoint callbacks are the user's. Without it they would find ours first.

    A DataLoader's worker that is spawned gets None instead: the Trainer belongs to the process with the pipe.
    """

    def __reduce__(self) -> Any:
        return type(None), ()

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        found: list[Any] = super().checkpoint_callbacks  # type: ignore[misc]
        return [callback for callback in found if not isinstance(callback, TrialCallback)]


class EpochStart:
    """Calls the TrialCallback before all other callbacks at the start of an epoch and at the end of a validation.

    It is the first of the Trainer's callbacks: others may unfreeze layers or exchange weights in these hooks.
    """

    def __init__(self, trial: TrialCallback) -> None:
        self._trial = trial

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._trial.at_boundary(trainer, module)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            self._trial.measured.validated(trainer, module)

    def on_train_end(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        self._trial.measured.trained(module)


class TrialCallback:
    """Reports each epoch and keeps the state of the last boundary between two epochs in memory.

    Its base is Lightning's Checkpoint, because Lightning calls these after everything else at the end of an epoch.

    Args:
        spec: the trial.
        link: the connection to the supervisor.
        memory: the Trainer's checkpoints, with the state that the trial resumes from.
        data: the data module.
        logger: the trial's logger, whose state belongs to that of the trial.

    Attributes:
        within_epochs: whether states are taken between two batches as well.
    """

    within_epochs = False

    def __init__(
        self, spec: TrialSpec, link: Link, memory: InMemoryCheckpoints, data: Any, logger: TrialLogger
    ) -> None:
        self._spec, self._link, self._memory, self._data = spec, link, memory, data
        self._log = logger.log.file
        self.history: list[Progress] = []
        self.restoring = memory.state is not None  # until all objects have the saved state
        self.lost: list[str] = []  # names of what this trial, since it resumed, trains without
        self.measured = MeasuredWeights(spec)
        self._boundary: Boundary | None = None
        self._param_groups: list[tuple[list[Any], list[Any]]] | None = None
        self._state: dict[str, Any] | None = None  # at the last boundary
        self._epoch_ended = False
        self._stopping = False
        self._logged: dict[str, Any] = {}  # Lightning's metrics at the end of the last epoch
        self._unit_started_at = self._saved_at = self._polled_at = self._alive_at = time.monotonic()
        if memory.state is not None:
            self._state = copy_to_cpu(memory.state)  # the optimizer trains on in the very tensors that it is given
            ours = self._state["overnight"]
            self.history = [*history_of(ours["history"])]
            self._logged = dict(ours["logged"])
            self.measured.restore(ours)
            self.lost = list(ours.get("resumed_without", []))

    def setup(self, trainer: Any, module: Any, stage: str) -> None:  # noqa: ARG002
        # The model's checkpoint callbacks are appended. What they change at the end of an epoch is part of its state.
        trainer.callbacks = [*(c for c in trainer.callbacks if c is not self), self]

    # Resuming

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        # Hooks before the first epoch, which may copy weights, find what the original found.
        set_weights(module, self._memory.initial)

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        if self._state is not None:
            match_param_groups(trainer, module, self._state["overnight"]["groups"])
            self._param_groups = param_groups_of(trainer)

    def on_train_start(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        trainer.callback_metrics.update(self._logged)  # schedules and callbacks may read metrics of earlier epochs

    def at_boundary(self, trainer: Any, module: Any) -> None:
        """Take the state of the trial, or put it back in a trial that resumes."""
        self._unit_started_at = time.monotonic()
        if self._boundary is None:
            self._begin(trainer, module)
            if self._state is not None:
                self._put_back()
        elif self._epoch_ended:
            self._epoch_ended = False
            self._keep(self._boundary.take(self._memory))

    def _begin(self, trainer: Any, module: Any) -> None:
        self._boundary = Boundary(trainer, module, self._data, self._param_groups, self.within_epochs)

    def _put_back(self) -> None:
        assert self._boundary is not None
        assert self._state is not None
        self.lost = [*dict.fromkeys([*self.lost, *self._boundary.put_back(self._state)])]
        self.restoring = False
        self._unit_started_at = time.monotonic()

    def _keep(self, state: dict[str, Any]) -> None:
        """Keep the state of a boundary. Write it, if it is time to, or if the trial is to stop."""
        for name in _HYPERPARAMETERS:
            state.pop(name, None)  # the configuration builds the same objects again
        state["overnight"].update(
            identity=identity_of(self._spec),
            history=[vars(e) for e in self.history],
            logged=copy_to_cpu(self._logged),
            resumed_without=self.lost,
            log=self._log.state(),
            **self.measured.state(state["overnight"]["weights"]),
        )
        self._state = state
        if self._stopping:
            self._save_and_stop()
        if time.monotonic() - self._saved_at >= self._spec.checkpoint_every_s:
            self._save()

    # Within an epoch

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

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        decision = self.report(trainer, trainer.current_epoch)
        if self.ends(trainer, trainer.current_epoch + 1 == trainer.max_epochs):
            return  # to finish takes less time than to save
        self._stopping = decision is Decision.SAVE_AND_STOP
        self._epoch_ended = True

    def ends(self, trainer: Any, is_done: bool) -> bool:
        """Return whether training ends here. Before min_epochs and min_steps the Trainer ignores `should_stop`."""
        return is_done or bool(trainer.should_stop and trainer.fit_loop._can_stop_early)

    def report(self, trainer: Any, index: int, step: int | None = None, total: int | None = None) -> Decision:
        """Report what was logged since the last report, and return what the trial is to do.

        Raises:
            TrialStopped: if it is to stop at once.
        """
        now = time.monotonic()
        logged = dict(trainer.callback_metrics)
        metrics = {name: float(value) for name, value in logged.items() if not _is_same(value, self._logged.get(name))}
        self._logged = logged
        seconds = now - self._unit_started_at
        done = Progress(self._spec.number, index, metrics, time.time(), seconds, step, total)
        self.history.append(done)
        self.measured.unit_ended(metrics)
        decision = self._link.ask(done)
        if decision is Decision.STOP:
            raise TrialStopped(decision)
        return decision

    def unsaved(self) -> list[str]:
        """Return the names of attributes that have changed since the first epoch began and can't be saved."""
        return self._boundary.unsaved() if self._boundary is not None else []

    def weights(self, trainer: Any) -> dict[str, Any]:
        """Return a checkpoint of the epoch that gives the objective, for Lightning's load_from_checkpoint."""
        trainer.save_checkpoint("memory", weights_only=True)
        saved = copy_to_cpu(self._memory.saved)
        for name in _HYPERPARAMETERS:
            if name in saved:
                saved[name] = plain_hyperparameters(saved[name])
        saved = {name: value for name, value in saved.items() if value is not DROPPED}
        if self.measured.weights is not None:
            saved["state_dict"] = self.measured.weights
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

    def _save_and_stop(self) -> None:
        """Stop with the last boundary on disk. Before the first boundary there is nothing to save."""
        if self._state is not None:
            self._save()
        raise TrialStopped(Decision.SAVE_AND_STOP)

    def _save(self) -> None:
        assert self._state is not None
        self._saved_at = time.monotonic()
        try:
            checkpoint.save(self._spec.checkpoint_folder, self._state)
        except checkpoint.DiskFull:
            return  # the previous state is still there, and the supervisor makes trials wait for free space
        self._log.commit(self._state["overnight"].get("log"))
        last = self._state["overnight"]["history"][-1]
        self._link.send(StateSaved(self._spec.number, last["index"]))


def _is_same(value: Any, before: Any) -> bool:
    """Return whether a metric was not logged since `before`: Lightning keeps the object, or its memory."""
    if value is before:
        return True
    both = isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor)
    return both and value.device == before.device and value.data_ptr() == before.data_ptr()

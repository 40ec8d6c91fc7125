"""One trial: data, model, Lightning's fit; an epoch reported, a verdict heard, a state that can be gone on from."""

from __future__ import annotations

import importlib
import inspect
import logging
import random
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from overnight.config.import_allowlist import apply_guard
from overnight.data.split import SplitData
from overnight.models.supervised import Supervised
from overnight.protocol import Alive, Decision, EpochEnd, Finished, Resumed, StateSaved, TrialSpec, Up
from overnight.trial import checkpoint, namespaces, targets

# Seconds between two looks, in the middle of an epoch, at whether the supervisor wants the trial to stop.
LOOK_EVERY_S = 0.1
# Seconds between two signs of life in the middle of an epoch.
ALIVE_EVERY_S = 1.0
# Batches of one step of the Trainer's, for modules of ours: its bookkeeping is some two thirds of a small step.
STEPS_AT_ONCE = 64
# What a data module may tell a model that names it in its constructor.
DATA_FACTS = ("task", "input_shape", "classes")
# Where Lightning's checkpoints hold what save_hyperparameters() kept, of the model and of the data module.
_HYPERPARAMETERS = tuple(
    f"{of}{name}" for of in ("", "datamodule_") for name in ("hyper_parameters", "hparams_name", "hparams_type")
)
_PLAIN = (bool, int, float, str, bytes, torch.Tensor, torch.dtype)
_DROPPED = object()


class Link(Protocol):
    """Where a trial reports to: a pipe in earnest, a list in a test."""

    def send(self, message: Up) -> None: ...
    def ask(self, message: EpochEnd) -> Decision: ...
    def stop_wanted(self) -> bool: ...


def fit(spec: TrialSpec, link: Link) -> Finished:
    """Train as `spec` says, from the state in its folder where there is one, and say how it ended.

    Raises whatever the person's own data and model raise.
    """
    torch.set_num_threads(spec.threads)
    quiet()
    pl.seed_everything(spec.seed, workers=True, verbose=False)
    history = checkpoint.trained(spec.folder, _of(spec))
    if history is not None:
        link.send(Resumed(spec.number, tuple(EpochEnd(**e) for e in history)))
        return Finished(spec.number, "complete")
    state, refused = checkpoint.load(spec.folder, _of(spec))
    data, model = build(spec.config, spec.cache)
    lightning = namespaces.lightning_of(data, model)
    environments = importlib.import_module(f"{lightning.__name__}.plugins.environments")
    memory = namespaces.joined(_InMemory, lightning.plugins.CheckpointIO)(state)
    reporter = namespaces.joined(_Reporter, lightning.callbacks.Checkpoint)(spec, link, memory)
    options = dict(spec.config["trainer"])
    if _steps_by_itself(data, model) and options["precision"] == "32-true":
        model.step_by_itself(options.pop("gradient_clip_val", None))
        # A rehearsal counts the Trainer's steps, and wants one batch in each.
        data.hand_over(1 if "limit_train_batches" in options else STEPS_AT_ONCE, reporter.look)
    trainer = lightning.Trainer(
        **options,
        accelerator="gpu" if spec.device.startswith("cuda") else "cpu",
        devices=[int(spec.device.removeprefix("cuda:"))] if spec.device.startswith("cuda") else 1,
        callbacks=[reporter],
        # Within Slurm Lightning would requeue jobs by itself; going on is the supervisor's business.
        plugins=[memory, environments.LightningEnvironment()],
        default_root_dir=spec.folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    if state is not None:
        link.send(Resumed(spec.number, tuple(EpochEnd(**e) for e in state["overnight"]["history"])))
    here = namespaces.at_home(lightning, data)
    data.trainer = trainer
    try:
        trainer.fit(model, datamodule=here, ckpt_path="state in memory" if state is not None else None)
    except _Stop as stop:
        # Its states stay until the ledger knows: whoever is killed on the way goes on from them.
        ending: Literal["ended", "saved"] = "ended" if stop.decision is Decision.STOP else "saved"
        return Finished(spec.number, ending, notes=tuple(refused))
    except Exception:
        if not reporter.restoring:
            raise
        return Finished(spec.number, "failed", "checkpoint_unusable", traceback.format_exc(), tuple(refused))
    if not reporter.history:
        raise RuntimeError("the trial trained no epoch: does the data module have a train_dataloader with batches?")
    if spec.keep_weights and not _kept(spec, reporter.weights(trainer), link):
        return Finished(spec.number, "saved", notes=tuple(refused))
    return Finished(spec.number, "complete", notes=tuple(refused))


def touch() -> None:
    """Go once through what every trial begins with, before there is one.

    A forked process copies a page of memory when it first writes there: thousands of them before its first step,
    which a slot would stand empty for.
    """
    torch.set_num_threads(1)
    pl.seed_everything(0, workers=True, verbose=False)
    # Not to a dict: Hydra holds one against every imported module, and so would copy them all.
    instantiate({"_target_": "types.SimpleNamespace", "_convert_": "all", "nothing": [0]})


def _kept(spec: TrialSpec, weights: dict[str, Any], link: Link) -> bool:
    """Save the trained weights, which waits for room on a full disk; False where the trial is to stop meanwhile."""
    while True:
        try:
            checkpoint.save_weights(spec.folder, weights)
            return True
        except checkpoint.DiskFull:
            if link.stop_wanted():
                return False
            link.send(Alive(spec.number))
            time.sleep(ALIVE_EVERY_S)


def build(config: Mapping[str, Any], cache: Path | None = None) -> tuple[Any, Any]:
    """The data module and the model of a trial's config, of either of the two Lightnings.

    A model gets the optimizer, as a callable that takes parameters, the schedule, as one that takes the optimizer and
    how many steps there will be, and the facts that the data module knows (DATA_FACTS), where its constructor names
    them and the config does not. A data module that names `cache_dir` gets the folder for what it decodes. Lists and
    mappings arrive as plain ones, unless the config says `_convert_` otherwise. Raises UntrustedError where guarded.
    """
    data = build_data(config, cache)
    config = apply_guard(config)
    targets.find_all(config, "model")
    facts = {fact: getattr(data, fact) for fact in DATA_FACTS if hasattr(data, fact)}
    task = config["data"].get("task")
    if task is not None and facts.setdefault("task", task) != task:
        raise ValueError(f"data.task: must be {facts['task']}, as the data module says, got {task}")
    names = inspect.signature(targets.find("model", config["model"]["_target_"])).parameters
    parts = {}
    for name in ("optimizer", "schedule"):
        if name in names and name in config:
            targets.find_all(config, name)
            parts[name] = instantiate({"_convert_": "all", **config[name]}, _partial_=True)
    model = _built("model", config, {**facts, **parts})
    namespaces.lightning_of(data, model)
    return data, model


def build_data(config: Mapping[str, Any], cache: Path | None = None) -> Any:
    """The data module alone; see build."""
    config = apply_guard(config)
    targets.find_all(config, "data")
    return _built("data", config, {"cache_dir": cache}, ours=("task",))


def _steps_by_itself(data: Any, model: Any) -> bool:
    """Whether both train as ours do: whoever made a step or a loader of their own has them as Lightning does."""
    ours = isinstance(model, Supervised) and type(model).training_step is Supervised.training_step
    return ours and isinstance(data, SplitData) and type(data).train_dataloader is SplitData.train_dataloader


def _built(key: str, config: Mapping[str, Any], offered: Mapping[str, Any], ours: tuple[str, ...] = ()) -> Any:
    """What a component's config describes, handed what is offered and its constructor names, and the config does not.

    ours: keys that are there for us, and are the constructor's only if it names them.
    """
    names = inspect.signature(targets.find(key, config[key]["_target_"])).parameters
    given = {name: value for name, value in config[key].items() if name not in ours or name in names}
    wanted = {name: value for name, value in offered.items() if name in names and name not in given}
    try:
        return instantiate({"_convert_": "all", **given}, **wanted)
    except InstantiationException as error:  # Hydra's wrapping of what the constructor said
        raise error.__cause__ or error from None


def quiet() -> None:
    """Silence what Lightning says to everybody; in a study it would be said in every trial's log."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # its own use of torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # one core a trial: they are no help
    for logger in map(logging.getLogger, namespaces.NAMES):
        if logger.level != logging.WARNING:  # to set it touches every logger there is
            logger.setLevel(logging.WARNING)  # its tips and device lists


class _Stop(Exception):
    """Leaves Lightning's fit as the verdict says."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.value)
        self.decision = decision


class _InMemory:
    """A CheckpointIO, short of a disk: what Lightning dumps is copied here, what it loads comes from here."""

    def __init__(self, state: dict[str, Any] | None) -> None:
        self._state = state
        self.restores = state is not None
        self.dumped: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        self.dumped = _copied(checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:  # noqa: ARG002
        return self._state

    def remove_checkpoint(self, path: Any) -> None:
        pass


class _Reporter:
    """Reports epochs and keeps, in memory, the trial's state as of the last epoch boundary.

    A Checkpoint by its base, because Lightning calls those after everything else that happens at an epoch's end.

    Lightning's dump at an epoch's end comes before the schedules step, so it is taken there, and completed when the
    next epoch starts; only then is it a boundary that can be gone on from bit by bit.
    """

    def __init__(self, spec: TrialSpec, link: Link, memory: _InMemory) -> None:
        self._spec, self._link, self._memory = spec, link, memory
        self.history: list[EpochEnd] = []
        self._boundary: dict[str, Any] | None = None
        self._boundary_open = False
        self._stopping = False
        self._best: tuple[float, dict[str, Any]] | None = None
        self._random: dict[str, Any] | None = None
        self._logged: dict[str, Any] = {}  # Lightning's metrics as of the last epoch's end
        self._started = self._saved_at = self._looked_at = self._told_at = time.monotonic()
        self.restoring = memory.restores  # until the saved state has found its place in the model

    # Going on

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        kept = checkpoint["overnight"]
        self.history = [EpochEnd(**e) for e in kept["history"]]
        self._random = kept["random"]
        self._best = (kept["best"]["value"], kept["best"]["weights"]) if kept["best"] else None
        self._logged = dict(kept["logged"])
        # A model whose schedule asks how many steps there will be has the DataLoader draw its order while it is set up.
        _set_random(self._random)
        self._boundary = _copied(checkpoint)  # an optimizer goes on in the very tensors that it was given

    def on_fit_start(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        # Otherwise it draws it right after this, and what was drawn meanwhile, to set the model up, counts for nothing.
        if self._random is not None and trainer.train_dataloader is None:
            _set_random(self._random)

    def on_train_start(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        self.restoring = False
        trainer.callback_metrics.update(self._logged)  # a schedule or a callback may look at one of an earlier epoch

    # An epoch

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        self._started = time.monotonic()
        if not self._boundary_open:
            return
        self._boundary_open = False
        assert self._boundary is not None
        self._boundary["optimizer_states"] = _copied([o.state_dict() for o in trainer.optimizers])
        self._boundary["lr_schedulers"] = _copied([c.scheduler.state_dict() for c in trainer.lr_scheduler_configs])
        if self._stopping:
            self._stop()
        if time.monotonic() - self._saved_at >= self._spec.every_s:
            self._save()

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:  # noqa: ARG002
        self.look()

    def on_validation_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:  # noqa: ARG002
        self.look()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        now = time.monotonic()
        # Lightning keeps a metric that was not logged this time as it was.
        logged = dict(trainer.callback_metrics)
        metrics = {name: float(value) for name, value in logged.items() if value is not self._logged.get(name)}
        self._logged = logged
        done = EpochEnd(self._spec.number, trainer.current_epoch, metrics, time.time(), now - self._started)
        self.history.append(done)
        self._note_best(done, module)
        decision = self._link.ask(done)
        if decision is Decision.STOP:
            raise _Stop(decision)
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if last:
            return  # what is left is less than saving would take
        self._stopping = decision is Decision.SAVE_AND_STOP
        trainer.save_checkpoint("memory", weights_only=False)
        self._boundary = self._memory.dumped
        for name in _HYPERPARAMETERS:
            self._boundary.pop(name, None)  # the config builds the same objects again
        self._boundary["overnight"] = {
            "of": _of(self._spec),
            "history": [vars(e) for e in self.history],
            "random": _get_random(),
            "logged": _copied(logged),
            "best": {"value": self._best[0], "weights": self._best[1]} if self._best else None,
        }
        self._boundary_open = True

    # The end

    def weights(self, trainer: Any) -> dict[str, Any]:
        """A checkpoint of the epoch that gives the objective, as Lightning's load_from_checkpoint takes it."""
        trainer.save_checkpoint("memory", weights_only=True)
        dumped = self._memory.dumped
        for name in _HYPERPARAMETERS:
            if name in dumped:
                dumped[name] = _plain(dumped[name])
        dumped = {name: value for name, value in dumped.items() if value is not _DROPPED}
        if self._best is not None:
            dumped["state_dict"] = self._best[1]
        spec = self._spec
        kept = {"study": spec.study, "trial": spec.number, "seed": spec.seed, "config": spec.config}
        dumped["overnight"] = {**kept, "of": _of(spec), "history": [vars(e) for e in self.history]}
        return dumped

    def _note_best(self, done: EpochEnd, module: Any) -> None:
        value = done.metrics.get(self._spec.metric)
        if self._spec.objective != "best" or value is None or value != value:
            return
        sign = 1 if self._spec.direction == "maximize" else -1
        if self._best is None or sign * value > sign * self._best[0]:
            self._best = (value, _copied(module.state_dict()))

    def look(self) -> None:
        """See whether to stop, once in a while; called between two batches."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        if self._link.stop_wanted():
            self._stop()
        if now - self._told_at >= ALIVE_EVERY_S:
            self._told_at = now
            self._link.send(Alive(self._spec.number))

    def _stop(self) -> None:
        """Leave with the last boundary on disk; before the first one there is nothing to save, nor to lose."""
        if self._boundary is not None:
            self._save()
        raise _Stop(Decision.SAVE_AND_STOP)

    def _save(self) -> None:
        assert self._boundary is not None
        self._saved_at = time.monotonic()
        try:
            checkpoint.save(self._spec.folder, self._boundary)
        except checkpoint.DiskFull:
            return  # the state before is there still; the supervisor sees to it that trials wait for room
        kept = self._boundary["overnight"]["history"]
        self._link.send(StateSaved(self._spec.number, kept[-1]["epoch"]))


def _of(spec: TrialSpec) -> dict[str, Any]:
    """What a checkpoint is of; one of anything else is not gone on from. Data may move, and stay the same data."""
    data = {key: value for key, value in spec.config["data"].items() if key != "root"}
    return {"study": spec.study, "trial": spec.number, "seed": spec.seed, "config": {**spec.config, "data": data}}


def _copied(value: Any) -> Any:
    """A deep copy with every tensor on the CPU, apart from the ones that training goes on to change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(v) for v in value) if type(value) in (list, tuple) else value
    return value


def _plain(value: Any) -> Any:
    """A module's own hyperparameters as a file of plain data can hold them; _DROPPED for what it can't: a class, a
    function, an object."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {k: kept for k, v in value.items() if (kept := _plain(v)) is not _DROPPED}
    if type(value) in (list, tuple):
        kept = [_plain(v) for v in value]
        return type(value)(kept) if not any(v is _DROPPED for v in kept) else _DROPPED
    return value if value is None or isinstance(value, _PLAIN) else _DROPPED


def _get_random() -> dict[str, Any]:
    """The state of every random generator, in types that a checkpoint may hold."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _set_random(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])

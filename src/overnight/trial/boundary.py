"""The state of a trial between two epochs: how it is taken, and how it is put back into the objects of a new process.

A boundary is just before the `on_train_epoch_start` of all callbacks. A trial that resumes builds its objects and calls
all hooks up to its first boundary as the original did, with the same random numbers, and gets the saved state there.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from overnight.trial import lightning_packages
from overnight.trial.live_state import LiveState
from overnight.trial.plain_values import ATOMS, equal_trees
from overnight.trial.state import copy_to_cpu, get_random_state, set_random_state

_OWN_MODULES = "overnight."
_CLOCKS = ("_last_val_time", "_train_start_time")  # of the process, for validations by time


class Boundary:
    """Takes and puts back the state of a trial. It is made at the first boundary of the process.

    Args:
        trainer: Lightning's Trainer, in fit.
        module: the LightningModule.
        data: the data module.
        param_groups: those of the optimizers before their states were loaded, as `param_groups_of` returns them.
        within_epochs: whether states are taken between two batches as well.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        data: Any,
        param_groups: list[tuple[list[Any], list[Any]]] | None = None,
        within_epochs: bool = False,
    ) -> None:
        self._trainer, self._module = trainer, module
        self._param_groups = param_groups if param_groups is not None else param_groups_of(trainer)
        _set_up_validation_data(trainer)
        for owner in (module, data):
            getattr(owner, "hparams", None)  # Lightning makes them when it first saves them
        roots: dict[str, Any] = {}
        self._unknown: list[str] = []  # of the loaders, what no state holds
        # Between two epochs our own modules hold nothing.
        if within_epochs or not type(module).__module__.startswith(_OWN_MODULES):
            roots["model"] = module
        if not type(data).__module__.startswith(_OWN_MODULES):
            roots["data"] = data
        skipped = {}
        for callback in trainer.callbacks:
            if not _restores_itself(callback):
                name = _unused(f"callbacks.{type(callback).__name__}", roots)
                roots[name], skipped[name] = callback, _of_averaging(callback)
        for stage, loop in (("train", trainer.fit_loop), ("val", trainer.fit_loop.epoch_loop.val_loop)):
            is_made_again = _reloads(trainer) and not _makes_own_loader(data, stage)
            for number, loader in enumerate(() if loop._combined_loader is None else loop._combined_loader.flattened):
                name = f"{stage}_dataloader" + (f"[{number}]" if number else "")
                if is_made_again:  # what the first one holds says nothing about those after it
                    self._unknown.append(f"the state of the reloaded {name}")
                    continue
                roots[name] = loader
                if getattr(loader, "persistent_workers", False):  # with generators and data that outlive an epoch
                    self._unknown.append(f"{name}.persistent_workers")
        for number, optimizer in enumerate(trainer.optimizers):
            roots[f"optimizers[{number}]"] = optimizer
        gradients = "model" in roots and (not module.automatic_optimization or _accumulates_gradients(trainer))
        self._live = LiveState(roots, ignored=_of_lightning(trainer), skipped=skipped, gradients=gradients)
        self._trainer_attributes = _attributes_of(trainer)
        self._group_sizes: list[list[int]] = []
        self._group_names: list[list[list[str]]] = []

    def live_state(self) -> dict[str, Any]:
        """Return what the objects hold besides their own states."""
        return self._live.save()[0]

    def restore_live_state(self, saved: dict[str, Any]) -> None:
        self._live.restore(saved)

    def take(self, memory: Any, epoch_start: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the state as plain data on the CPU.

        Args:
            memory: the Trainer's InMemoryCheckpoints.
            epoch_start: what `live_state` returned when the epoch began, for a state within an epoch.
        """
        trainer = self._trainer
        trainer.save_checkpoint("memory", weights_only=False)
        lightning_state = memory.saved
        changed, lost = self._live.save(epoch_start)
        state, copied_weights = copy_to_cpu((lightning_state, self._module.state_dict()))
        if epoch_start is None:
            _rewind(state)
        before = self._trainer_attributes
        state["overnight"] = {
            "random": get_random_state(),
            "weights": copied_weights,
            "live": changed,
            "lost": [*lost, *self._unknown],
            "trainer": {name: value for name, value in _attributes_of(trainer).items() if value != before.get(name)},
            "groups": self._groups(),
        }
        return state

    def unsaved(self) -> list[str]:
        """Return the names of attributes that have changed and can't be saved."""
        return [*self._live.save()[1], *self._unknown]

    def _groups(self) -> list[list[list[str]]]:
        """Return the names of the parameters in each group of each optimizer."""
        sizes = [[len(group["params"]) for group in o.param_groups] for o in self._trainer.optimizers]
        if sizes != self._group_sizes:
            self._group_sizes = sizes
            self._group_names = [_group_names(self._module, o) for o in self._trainer.optimizers]
        return self._group_names

    def put_back(self, state: dict[str, Any]) -> list[str]:
        """Restore a state that `take` returned, and return the names of attributes that can't be restored."""
        overnight_state, trainer = state["overnight"], self._trainer
        _resume_weight_averaging(trainer, self._module)
        lost = self._live.restore(overnight_state["live"])
        # Once more what Lightning has restored before: hooks such as on_train_start may have changed it.
        set_weights(self._module, overnight_state["weights"])
        for optimizer, saved in zip(trainer.optimizers, state["optimizer_states"], strict=True):
            if not equal_trees(copy_to_cpu(optimizer.state_dict()), saved):
                optimizer.load_state_dict(copy_to_cpu(saved))
        keep_param_groups(trainer, self._param_groups)
        for config, saved in zip(trainer.lr_scheduler_configs, state["lr_schedulers"], strict=False):
            config.scheduler.load_state_dict(saved)
        for name, value in overnight_state["trainer"].items():
            owner, _, attribute = name.rpartition(".")
            setattr(_parts_of(trainer)[owner], attribute, value)
        loaders = trainer.fit_loop._combined_loader.flattened
        if not any(hasattr(loader, "load_state_dict") for loader in loaders):
            # The Trainer then asks the loader for its iterator after on_train_epoch_start, as it does in other epochs.
            trainer.fit_loop._resuming_from_checkpoint = False
        set_random_state(overnight_state["random"])
        return [*overnight_state["lost"], *lost]


def _of_lightning(trainer: Any) -> tuple[Any, ...]:
    """Return the objects that Lightning restores, and those that hold them. A module may keep them as well."""
    schedulers = (config.scheduler for config in trainer.lr_scheduler_configs)
    return trainer, trainer.strategy, getattr(trainer.precision_plugin, "scaler", None), *schedulers


def _reloads(trainer: Any) -> bool:
    """Return whether the Trainer asks for the loaders again in a later epoch."""
    every = trainer.reload_dataloaders_every_n_epochs
    return bool(every) and not 0 < (trainer.max_epochs or 0) <= every


def _makes_own_loader(data: Any, stage: str) -> bool:
    """Return whether a loader is one of ours, which holds nothing and is the same whenever it is made."""
    return str(getattr(data, f"{stage}_dataloader").__module__).startswith(_OWN_MODULES)


def _rewind(state: dict[str, Any]) -> None:
    """Have the loops' progress say that the last epoch has just ended, which Lightning can resume from."""
    progress = state["loops"]["fit_loop"]["epoch_progress"]
    for counts in progress.values():
        counts["ready"] -= 1
        counts["completed"] -= 1
    state["epoch"] -= 1


def _accumulates_gradients(trainer: Any) -> bool:
    """Return whether gradients may be gathered over batches, so that there are some between two of them."""
    schedulers = (c for c in trainer.callbacks if type(c).__name__ == "GradientAccumulationScheduler")
    return trainer.accumulate_grad_batches > 1 or any(schedulers)


def set_weights(module: Any, weights: dict[str, Any]) -> None:
    """Copy tensors into the parameters and buffers of a module, past the hooks of load_state_dict."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if isinstance(tensor, torch.Tensor) and name in weights:
                tensor.copy_(weights[name])


def match_param_groups(trainer: Any, module: Any, saved: list[list[list[str]]]) -> None:
    """Give the optimizers the groups of parameters that they had, so that their states can be loaded.

    A network that is unfrozen in steps adds groups during training.
    """
    parameters = dict(module.named_parameters())
    for optimizer, groups in zip(trainer.optimizers, saved, strict=False):
        known = all(name in parameters for names in groups for name in names)
        if known and groups and _group_names(module, optimizer) != groups:
            first = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
            present = [*optimizer.param_groups]
            optimizer.param_groups[:] = [
                {**(present[i] if i < len(present) else first), "params": [parameters[name] for name in names]}
                for i, names in enumerate(groups)
            ]


def param_groups_of(trainer: Any) -> list[tuple[list[Any], list[Any]]]:
    """Return the list of groups of each optimizer, and the groups in it."""
    return [(optimizer.param_groups, [*optimizer.param_groups]) for optimizer in trainer.optimizers]


def keep_param_groups(trainer: Any, before: list[tuple[list[Any], list[Any]]]) -> None:
    """Give the optimizers the groups that they had before their states were loaded, with what was loaded.

    Loading replaces the groups. An optimizer in another one shares them with it.
    """
    for optimizer, (groups, kept) in zip(trainer.optimizers, before, strict=True):
        for group, loaded in zip(kept, optimizer.param_groups, strict=False):
            if group is not loaded:
                group.clear()
                group.update(loaded)
        groups[:] = [*kept, *optimizer.param_groups[len(kept) :]][: len(optimizer.param_groups)]
        optimizer.param_groups = groups


def _group_names(module: Any, optimizer: Any) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]


def _set_up_validation_data(trainer: Any) -> None:
    """Have the Trainer ask for the validation data now if it would in a later epoch, so that it can be restored."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    if trainer.enable_validation and loop._combined_loader is None:
        trainer.validating = True
        loop.setup_data()
        trainer.training = True


def _parts_of(trainer: Any) -> dict[str, Any]:
    loop = trainer.fit_loop
    return {
        "trainer": trainer,
        "fit_loop": loop,
        "epoch_loop": loop.epoch_loop,
        "val_loop": loop.epoch_loop.val_loop,
    }


def _attributes_of(trainer: Any) -> dict[str, Any]:
    """Return the numbers and texts of the Trainer and its loops, which hooks may set."""
    return {
        f"{part}.{name}": value
        for part, thing in _parts_of(trainer).items()
        for name, value in vars(thing).items()
        if type(value) in ATOMS and name not in _CLOCKS
    }


def _unused(name: str, taken: dict[str, Any]) -> str:
    names = [name, *(f"{name}[{number}]" for number in range(1, len(taken) + 1))]
    return next(n for n in names if n not in taken)


def _restores_itself(callback: Any) -> bool:
    kind = type(callback)
    if kind.__module__.startswith(_OWN_MODULES):
        return True
    return kind.__module__.startswith(lightning_packages.NAMES) and kind.state_dict is not _base_of(kind).state_dict


def _base_of(kind: type) -> Any:
    return next(
        k for k in kind.__mro__ if k.__name__ == "Callback" and k.__module__.startswith(lightning_packages.NAMES)
    )


# Lightning's StochasticWeightAveraging, which makes its schedule during training


def _averaging_class(callback: Any) -> type | None:
    kinds = (k for k in type(callback).__mro__ if k.__module__.startswith(lightning_packages.NAMES))
    return next((k for k in kinds if k.__name__ == "StochasticWeightAveraging"), None)


def _of_averaging(callback: Any) -> frozenset[str]:
    kind = _averaging_class(callback)
    return frozenset(vars(kind(swa_lrs=1.0))) if kind is not None else frozenset()


def _resume_weight_averaging(trainer: Any, module: Any) -> None:
    """Have StochasticWeightAveraging make its schedule, which otherwise happens later in the epoch.

    Making it changes the optimizer. `put_back` therefore restores the optimizer after that.
    """
    for callback in trainer.callbacks:
        resumes = _averaging_class(callback) is not None and callback._scheduler_state is not None
        if resumes and callback.swa_start <= trainer.current_epoch <= callback.swa_end:
            averaged_in, callback._latest_update_epoch = callback._latest_update_epoch, sys.maxsize
            callback.on_train_epoch_start(trainer, module)
            callback._latest_update_epoch = averaged_in

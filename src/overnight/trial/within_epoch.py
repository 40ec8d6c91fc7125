"""The state of a trial between two batches of an epoch, for trials whose progress is counted in validations.

Lightning can't resume within an epoch without reading other batches. Here the state is taken just before a batch is
fetched. A trial that resumes restores what the loaders and the random generators were when the epoch began, fetches the
batches that were trained without training, and gets the state there. Lightning's loops and hooks are skipped meanwhile.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Callable
from typing import Any

import torch

from overnight.trial.plain_values import Decoder, Encoder, NotPlain
from overnight.trial.state import copy_to_cpu, get_random_state, set_random_state

_META = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx"),
    *("dataloader_idx", "metric_attribute"),
)
_VALUES = ("has_reset", "_forward_cache", "_computed", "_update_count", "_update_called")
_CONNECTOR = ("_first_loop_iter", "_current_fx")


class WithinEpoch:
    """Runs hooks of a trial between two batches of Lightning's loop, and resumes the loop within an epoch.

    Args:
        trainer: Lightning's Trainer, before its loop starts.
        saved: what `state` returned, of the state that the trial resumes from; None for a state between two epochs.
        on_start: called before the first batch of a trial that resumes within an epoch.
        on_resumed: called once the loop is where the state was taken.
        before_batch: called before each batch is fetched.
        between: called between two batches that are fetched again.

    Attributes:
        boundary: the trial's Boundary, which is made at its first boundary.
        epoch_start: the random state and the live state when the epoch began, before its first batch was fetched.
    """

    def __init__(
        self,
        trainer: Any,
        saved: dict[str, Any] | None,
        *,
        on_start: Callable[[], None],
        on_resumed: Callable[[], None],
        before_batch: Callable[[], None],
        between: Callable[[], None],
    ) -> None:
        self._trainer, self._saved = trainer, saved
        self._on_start, self._on_resumed = on_start, on_resumed
        self._before_batch, self._between = before_batch, between
        self.boundary: Any = None
        self.epoch_start: dict[str, Any] = {}
        loop = trainer.fit_loop.epoch_loop
        self._advance, self._on_run_start, self._reset = loop.advance, loop.on_run_start, loop.reset
        loop.advance, loop.on_run_start, loop.reset = self.advance, self.on_run_start, self.reset

    # In the place of methods of Lightning's loop over the batches of an epoch

    def reset(self) -> None:
        if self._saved is None:
            self._reset()

    def on_run_start(self, fetcher: Any) -> None:
        if self._saved is not None:
            self._resume(fetcher, self._saved)
            return
        self.epoch_start = {"random": get_random_state(), "live": self.boundary.live_state()}
        self._on_run_start(fetcher)

    def advance(self, fetcher: Any) -> None:
        self._before_batch()
        self._advance(fetcher)

    # The state

    @property
    def can_save(self) -> bool:
        """Whether the batches that were trained can be counted: not if training_step takes them from the loader."""
        fetcher = self._trainer.fit_loop._data_fetcher
        return not any(k.__name__ == "_DataLoaderIterDataFetcher" for k in type(fetcher).__mro__)

    def state(self) -> tuple[dict[str, Any], list[str]]:
        """Return what a trial needs to resume here, and the names of what can't be saved."""
        loop = self._trainer.fit_loop.epoch_loop
        lost: list[str] = []
        connector = self._trainer._logger_connector
        state = {
            **self.epoch_start,
            "batches": loop.batch_progress.current.ready,
            "loops": copy_to_cpu(_progress_of(self._trainer.fit_loop)),
            "results": _save_results(loop._results, lost),
            "connector": {name: getattr(connector, name) for name in _CONNECTOR},
            "prefetched": self._save_prefetched(lost),
        }
        return state, lost

    def _resume(self, fetcher: Any, saved: dict[str, Any]) -> None:
        """Bring loaders and loop to where the state was taken."""
        self._saved = None
        fit_loop = self._trainer.fit_loop
        loop = fit_loop.epoch_loop
        self._on_start()
        self.boundary.restore_live_state(saved["live"])
        self.epoch_start = {"random": saved["random"], "live": saved["live"]}
        finish_restart(fit_loop)
        loop.batch_progress.reset_on_run()
        set_random_state(saved["random"])
        self._on_run_start(fetcher)
        for _ in range(saved["batches"]):
            try:
                next(fetcher)
            except StopIteration:
                raise ValueError(f"data: must yield the {saved['batches']} batches again that it did") from None
            self._between()
        fit_loop.load_state_dict(saved["loops"])
        finish_restart(fit_loop)
        _load_results(loop._results, saved["results"], self._trainer)
        for name, value in saved["connector"].items():
            setattr(self._trainer._logger_connector, name, value)
        if saved["prefetched"] is not None:
            fetcher.batches = Decoder(_refuse, {}).decode(saved["prefetched"])
        self._on_resumed()

    def _save_prefetched(self, lost: list[str]) -> Any:
        """Return the batches that were fetched ahead, where the process itself reads a dataset without a length.

        They may depend on random numbers that training has drawn meanwhile. Workers have generators of their own.
        """
        fit_loop = self._trainer.fit_loop
        batches = getattr(fit_loop._data_fetcher, "batches", None)
        loaders = fit_loop._combined_loader.flattened
        if not batches or all(getattr(loader, "num_workers", 0) > 0 for loader in loaders):
            return None
        try:
            return Encoder(_refuse, {}).encode(batches)
        except (NotPlain, RecursionError):
            lost.append("the next batch, which was fetched ahead")
            return None


def finish_restart(loop: Any) -> None:
    """Have a loop of Lightning, and those in it, go on as if they had not been loaded from a checkpoint."""
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    loop.reset_restart_stage()
    for inner in vars(loop).values():
        if hasattr(inner, "_restarting"):
            finish_restart(inner)


def expected_units(trainer: Any, index: int) -> int | None:
    """Return how many validations, or epochs without one, the whole training has; None if that can't be known.

    Args:
        index: of the one that has just ended.
    """
    loop, epoch_batches = trainer.fit_loop.epoch_loop, float(trainer.fit_loop.max_batches)
    done, steps = loop.batch_progress.total.ready, trainer.global_step
    total = epoch_batches * trainer.max_epochs if trainer.max_epochs != -1 else math.inf
    if trainer.max_steps != -1 and steps:
        total = min(total, trainer.max_steps * done / steps)  # an optimizer may step once for several batches
    between, every = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or between == math.inf:
        between = epoch_batches
    if between is None or not math.isfinite(total) or not math.isfinite(between):  # None: validation by time
        return None
    if every is None or not math.isfinite(epoch_batches):
        units = total / between
    else:  # the count starts at zero in each epoch
        epochs, rest = divmod(total, epoch_batches)
        units = (epochs * (epoch_batches // between) + rest // between) / every
    return max(index + 1, math.floor(units + 1e-9))


def _progress_of(fit_loop: Any) -> dict[str, Any]:
    state: dict[str, Any] = fit_loop.state_dict()
    state.get("state_dict", {}).pop("combined_loader", None)  # the loaders start at the beginning of the epoch
    return state


# What self.log has gathered in an epoch ------------------------------------------------------------------------------


def _save_results(results: Any, lost: list[str]) -> list[dict[str, Any]]:
    saved = []
    for key, metric in results.items():
        meta = metric.meta
        if not metric.is_tensor and meta.metric_attribute is None:
            lost.append(f"the values of {meta.name} in this epoch")
            continue
        entry: dict[str, Any] = {
            "key": key,
            "is_tensor": metric.is_tensor,
            "meta": {n: getattr(meta, n) for n in _META},
        }
        entry["reduce"] = meta.reduce_fx.__name__, meta.reduce_fx is getattr(torch, meta.reduce_fx.__name__)
        entry["sync"] = meta.sync.should, meta.sync.rank_zero_only
        names = (*_VALUES, "value", "cumulated_batch_size") if metric.is_tensor else ("has_reset",)
        entry["values"] = {n: copy_to_cpu(vars(metric)[n]) for n in names if n in vars(metric)}
        saved.append(entry)
    return saved


def _load_results(results: Any, saved: list[dict[str, Any]], trainer: Any) -> None:
    package = sys.modules[type(results).__module__]
    device = trainer.strategy.root_device
    results.clear()
    for entry in saved:
        name, is_torchs = entry["reduce"]
        should, rank_zero_only = entry["sync"]
        meta = package._Metadata(**entry["meta"], reduce_fx=getattr(torch if is_torchs else builtins, name))
        meta.sync = package._Sync(_should=should, fn=trainer.strategy.reduce, rank_zero_only=rank_zero_only)
        metric = package._ResultMetric(meta, entry["is_tensor"])
        for attribute, value in entry["values"].items():
            setattr(metric, attribute, value.to(device) if isinstance(value, torch.Tensor) else value)
        if not entry["is_tensor"]:
            metric.value = trainer.lightning_module.get_submodule(meta.metric_attribute)
            metric._forward_cache = metric.value._forward_cache
        results[entry["key"]] = metric.to(device)


def _refuse(thing: Any) -> Any:
    raise NotPlain(type(thing).__name__)

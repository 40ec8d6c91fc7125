"""Reads what a user's tree says about the search: the sweeper's space, its sampler, the metric and the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from overnight.config.problems import Problems

_SAMPLERS = {
    "TPESampler": "tpe",
    "RandomSampler": "random",
    "GridSampler": "grid",
    "BruteForceSampler": "grid",
    "QMCSampler": "qmc",
    "CmaEsSampler": "cma_es",
    "GPSampler": "gp",
}
_MODES = {"max": "maximize", "min": "minimize"}
_METRIC_KEYS = ("optimized_metric", "optimize_metric", "objective_metric")


@dataclass
class Taken:
    """What a tree says about the study.

    Attributes:
        space: Key of the tree -> draw.
        settings: Our key -> value, for the study, the sampler and the seed.
        origin: Our key -> the key of the tree that it was taken from.
        unused: Keys of the tree that have no counterpart, with the reason.
    """

    space: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def take(self, key: str, value: Any, origin: str) -> None:
        self.settings[key] = value
        self.origin[key] = origin


def read(tree: Mapping[str, Any], sweeper: Mapping[str, Any], problems: Problems) -> Taken:
    """Read the settings of a study from a tree.

    Args:
        tree: With our names for data, model, callbacks and trainer.
        sweeper: The node hydra.sweeper.
    """
    taken = Taken(space=_space(sweeper, problems))
    _take_objective(tree, sweeper, taken, problems)
    if taken.space:
        for name, ours in (("n_trials", "study.trials"), ("study_name", "study.name")):
            if sweeper.get(name) is not None:
                taken.take(ours, sweeper[name], f"hydra.sweeper.{name}")
        if isinstance(n_jobs := sweeper.get("n_jobs"), int) and n_jobs > 1:
            taken.take("slots", n_jobs, "hydra.sweeper.n_jobs")
        if sweeper.get("storage") is not None:
            taken.unused.append("hydra.sweeper.storage (storage= says where a study is kept)")
        if sweeper.get("custom_search_space") is not None:
            taken.unused.append("hydra.sweeper.custom_search_space (a function can't be stored)")
        _take_sampler(sweeper.get("sampler"), taken)
    if isinstance(seed := tree.get("seed"), int) and not isinstance(seed, bool):
        taken.take("seed", seed, "seed")
    return taken


def _space(sweeper: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """The search space: of `params`, and of `search_space`, its older form."""
    space: dict[str, Any] = {}
    for name in ("search_space", "params"):
        node = sweeper.get(name)
        if node is None:
            continue
        if not isinstance(node, Mapping):
            problems.add(f"hydra.sweeper.{name}", "must be a mapping from key to draw", node)
            continue
        space |= {str(key).lstrip("+"): draw for key, draw in node.items()}
    return space


def _take_objective(tree: Mapping[str, Any], sweeper: Mapping[str, Any], taken: Taken, problems: Problems) -> None:
    """Take metric and direction, from the monitor of a callback where no key names them."""
    metric_key = next((k for k in _METRIC_KEYS if isinstance(tree.get(k), str)), None)
    monitor = _monitor(tree.get("callbacks"))
    direction = sweeper.get("direction")
    if metric_key is not None:
        taken.take("study.metric", tree[metric_key], metric_key)
    elif monitor is not None:
        taken.take("study.metric", monitor[1]["monitor"], f"callbacks.{monitor[0]}.monitor")
        direction = None
    if isinstance(direction, list):
        problems.add("hydra.sweeper.direction", "must be one of maximize, minimize", direction)
    elif direction is not None and metric_key is not None and taken.space:
        taken.take("study.direction", direction, "hydra.sweeper.direction")
    elif monitor is not None and monitor[1]["monitor"] == taken.settings.get("study.metric"):
        mode = monitor[1].get("mode", "min")
        taken.take("study.direction", _MODES.get(mode, mode), f"callbacks.{monitor[0]}.mode")


def _monitor(callbacks: Any) -> tuple[str, Mapping[str, Any]] | None:
    """The checkpoint callback that monitors a metric, or the early stopping that does: its key and its node."""
    entries = callbacks.items() if isinstance(callbacks, Mapping) else enumerate(callbacks or ())
    nodes = [(str(key), node) for key, node in entries if isinstance(node, Mapping) and node.get("monitor")]
    for ending in ("ModelCheckpoint", "EarlyStopping"):
        for key, node in nodes:
            if str(node.get("_target_")).endswith(ending):
                return key, node
    return None


def _take_sampler(sampler: Any, taken: Taken) -> None:
    if not isinstance(sampler, Mapping) or not isinstance(sampler.get("_target_"), str):
        return
    arguments = {k: v for k, v in sampler.items() if v is not None and k not in ("_target_", "seed")}
    if isinstance(seed := sampler.get("seed"), int):
        taken.take("seed", seed, "hydra.sweeper.sampler.seed")
    name = _SAMPLERS.get(sampler["_target_"].rpartition(".")[2])
    startup = arguments.pop("n_startup_trials", None)
    if name is None or (arguments and name != "grid"):
        node = {k: v for k, v in sampler.items() if k != "seed"}
        taken.take("sampler", node, "hydra.sweeper.sampler")
        return
    taken.take(
        "sampler",
        {"name": name, **({"startup_trials": startup} if startup is not None else {})},
        "hydra.sweeper.sampler",
    )

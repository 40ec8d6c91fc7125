"""Build the data module and the model of a trial's configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from overnight.config.import_allowlist import apply_guard
from overnight.config.values import escaped
from overnight.trial import lightning_packages, own_optimizers, prepare_lock, targets

# Attributes of a data module that a model gets if its constructor names them.
DATA_FACTS = ("task", "input_shape", "classes")


def build(
    config: Mapping[str, Any],
    cache: Path | None = None,
    locks: Path | None = None,
    while_waiting: Callable[[str], None] = lambda _: None,
) -> tuple[Any, Any]:
    """Build the data module and the model, of either of the two Lightning packages.

    Constructors get, if they name them and the configuration does not:

    - a data module: `cache_dir`, the folder for decoded data.
    - a model: `optimizer`, a callable that takes the parameters; `schedule`, a callable that takes the optimizer and
      the number of steps of the whole trial; and the attributes of the data module in DATA_FACTS. A model without
      `configure_optimizers` uses the two as well.

    Lists and mappings arrive as plain ones, unless the configuration sets `_convert_`.

    Args:
        config: the plain tree with the nodes data, model, optimizer and schedule.
        cache: folder for decoded data; None keeps it in memory.
        locks: folder for the locks with which one process at a time calls prepare_data; None for no lock.
        while_waiting: called once a second, with what it waits for, while another process calls it.

    Raises:
        UntrustedError: in a guarded process, if a `_target_` is not on the allowlist.
        ImportError: if a `_target_` can't be imported.
    """
    data = build_data(config, cache, locks, while_waiting)
    config = apply_guard(config)
    targets.find_all(config, "model")
    facts = {fact: getattr(data, fact) for fact in DATA_FACTS if hasattr(data, fact)}
    task = config["data"].get("task")
    if task is not None and facts.setdefault("task", task) != task:
        raise ValueError(f"data.task: must be {facts['task']}, as the data module says, got {task}")
    parameters = inspect.signature(targets.find("model", config["model"]["_target_"])).parameters
    parts = {name: _partial(name, config) for name in ("optimizer", "schedule") if name in parameters}
    model = _instantiate("model", config, {**facts, **{name: part for name, part in parts.items() if part is not None}})
    if not lightning_packages.overrides(type(model), "configure_optimizers"):
        own_optimizers.give(model, _partial("optimizer", config), _partial("schedule", config))
    lightning_packages.lightning_of(data, model)
    prepare_lock.guard(model, locks, while_waiting)
    return data, model


def _partial(name: str, config: Mapping[str, Any]) -> Any:
    """The class of a node with its arguments, as a callable; None where the configuration has no such node."""
    if config.get(name) is None:
        return None
    targets.find_all(config, name)
    return instantiate({"_convert_": "all", **escaped(config[name])}, _partial_=True)


def build_data(
    config: Mapping[str, Any],
    cache: Path | None = None,
    locks: Path | None = None,
    while_waiting: Callable[[str], None] = lambda _: None,
) -> Any:
    """Build the data module alone. See `build`."""
    config = apply_guard(config)
    targets.find_all(config, "data")
    _check_folds(config["data"])
    data = _instantiate("data", config, {"cache_dir": cache}, optional=("task",))
    prepare_lock.guard(data, locks, while_waiting)
    return data


def _check_folds(node: Mapping[str, Any]) -> None:
    """Raise ValueError if the data module is to take a fold of a cross-validation and can't."""
    if "fold" not in node or "folds" not in node:
        return
    parameters = inspect.signature(targets.find("data", node["_target_"])).parameters
    missing = [name for name in ("fold", "folds") if name not in parameters]
    if missing:
        raise ValueError(
            f"data._target_: must name fold and folds in its constructor for study.folds={node['folds']}, got "
            f"{node['_target_']} without {' and '.join(missing)}; add them, or leave study.folds out"
        )


def _instantiate(
    key: str, config: Mapping[str, Any], offered: Mapping[str, Any], optional: tuple[str, ...] = ()
) -> Any:
    """Instantiate config[key].

    Args:
        offered: arguments for the constructor, if it names them and the configuration does not.
        optional: keys of the configuration that the constructor gets only if it names them.
    """
    parameters = inspect.signature(targets.find(key, config[key]["_target_"])).parameters
    given = {name: value for name, value in config[key].items() if name not in optional or name in parameters}
    added = {name: value for name, value in offered.items() if name in parameters and name not in given}
    try:
        return instantiate({"_convert_": "all", **escaped(given)}, **added)
    except InstantiationException as error:  # Hydra wraps the constructor's own error
        raise error.__cause__ or error from None

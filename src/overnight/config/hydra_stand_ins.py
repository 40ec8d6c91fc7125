"""Configs of Hydra plugins that a user's tree may select and that this environment lacks.

A tree with `override hydra/sweeper: optuna` composes only where that plugin is installed. overnight reads what such a
config says and never runs the plugin, so a config with the plugin's default values takes its place.
"""

from __future__ import annotations

from typing import Any

_OPTUNA: dict[str, Any] = {
    "defaults": [{"sampler": "tpe"}, "_self_"],
    "_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
    "direction": "minimize",
    "storage": None,
    "study_name": None,
    "n_trials": 20,
    "n_jobs": 1,
    "max_failure_rate": 0.0,
    "params": None,
    "search_space": None,
    "custom_search_space": None,
}
_SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "cmaes": "CmaEsSampler",
    "nsgaii": "NSGAIISampler",
    "grid": "GridSampler",
}
_STAND_INS: dict[tuple[str, str], dict[str, Any]] = {
    ("hydra/sweeper", "optuna"): _OPTUNA,
    **{
        ("hydra/sweeper/sampler", name): {"_target_": f"optuna.samplers.{target}", "seed": None}
        for name, target in _SAMPLERS.items()
    },
    **{("hydra/sweeper", name): {"params": None} for name in ("ax", "nevergrad")},
    **{("hydra/launcher", name): {} for name in ("joblib", "ray", "rq", "submitit_local", "submitit_slurm")},
    **{(group, "colorlog"): {} for group in ("hydra/hydra_logging", "hydra/job_logging")},
}


def register() -> None:
    """Give Hydra the configs of the plugins that are not installed. Plugins must have registered theirs before."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports the installed plugins
    store = ConfigStore.instance()
    for (group, name), node in _STAND_INS.items():
        try:
            known = f"{name}.yaml" in store.list(group)
        except OSError:  # there is no such group yet
            known = False
        if not known:
            store.store(group=group, name=name, node=node)

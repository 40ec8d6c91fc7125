"""The settings of a study: one frozen dataclass for each section of config.yaml, with the rules of its keys."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from overnight.config import callbacks, clock, credentials
from overnight.config.fields import at_least, build_section, check_value, nearest, rule
from overnight.config.paths import StudyLocation
from overnight.config.problems import Problems
from overnight.config.trainer import TrainerSettings, add_refusals, counts_validations, without_ours

# Top-level nodes with a `_target_`; callbacks is a mapping of such nodes, or absent. Their keys are those that the
# config of the target has.
COMPONENTS = ("data", "model", "optimizer", "schedule", callbacks.NODE)

SEARCHABLE = (*COMPONENTS, "trainer")

# Sections that a `_target_` may take the place of: an object of Optuna, with its arguments.
TARGETED = ("sampler", "scheduler")

# The default metric of each task, and the better direction by the last word of a metric's name.
OBJECTIVES = {"binary": "val/accuracy", "multiclass": "val/accuracy", "regression": "val/r2"}

_DIRECTIONS = {
    "maximize": ("accuracy", "acc", "auroc", "auc", "f1", "precision", "recall", "r2"),
    "minimize": ("loss", "error", "mae", "mse", "rmse", "nll"),
}


def _is_address(text: str) -> bool:
    return "://" in text and not credentials.has_password(text)


NAME_RULE = "1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit"


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text) is not None


@dataclass(frozen=True, kw_only=True)
class ConfirmSettings:
    top: int = at_least(1)
    seeds: int | None = at_least(0)


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Another study of the same home, whose `top` best trials are tried first."""

    study: str = rule(f"must be a study's name: {NAME_RULE}", _is_name)
    top: int = at_least(1, default=5)


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    name: str | None = rule(f"must be {NAME_RULE}", _is_name)
    metric: str = rule("must name a metric that the model logs, e.g. val/accuracy", bool)
    direction: Literal["maximize", "minimize"]
    objective: Literal["last", "best"]
    folds: int | None = rule("must be from 2 to 20, or null for no cross-validation", lambda v: 2 <= v <= 20, None)
    trials: int | None = at_least(1, None)
    budget: float | None = rule(
        "must be at least 1 whole training; with less no trial would be complete, so lower trainer.max_epochs instead",
        lambda v: v >= 1,
        None,
    )
    retries: int = at_least(0)
    max_consecutive_failures: int = at_least(1)
    keep_checkpoints: int = at_least(0)
    enqueue: tuple[dict[str, Any], ...] = ()
    warm_start_from: WarmStart | None = None
    confirm: ConfirmSettings
    hours: float | None = rule("must be above 0 hours, or null for no limit", lambda v: v > 0, None)
    until: str | None = rule(
        "must be a time of day such as 07:00, or a date with one such as 2026-11-25T07:00", clock.is_valid_time, None
    )
    patience: int | None = at_least(1, None)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    every_s: float = rule("must be 0 or more seconds", lambda v: v >= 0)


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    timeout_s: float | None = rule("must be above 0 seconds, or null for no limit", lambda v: v > 0)
    stall_s: float | None = rule("must be at least 2 seconds, or null for no limit", lambda v: v >= 2)
    memory_gib: float | None = rule("must be above 0 GiB, or null for a share of the machine's", lambda v: v > 0)


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    when: Literal["best", "winner", "never"]
    which: list[Literal["weights", "curves", "confusion", "mistakes", "predictions"]]
    look: Literal["white_zero", "black_zero"]


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """target: the node of a sampler that is named by `_target_`; its `name` is custom."""

    name: Literal["tpe", "random", "grid", "qmc", "cma_es", "gp", "custom"]
    startup_trials: int = at_least(1, default=10)
    target: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        return str(self.target["_target_"]) if self.target is not None else self.name


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """Which trials go on.

    Attributes:
        target: The node of a scheduler that is named by `_target_`. Its `name` is custom for a pruner of Optuna, and
            own for a class that pauses and resumes trials.
        min_epochs: None for 1, or for more where epochs are so short that pausing would cost more than they do, or
            where the values after them tell nothing about later ones.
        keep_gib: Disk space for the states of paused trials; None for a share of what is free.
    """

    name: Literal["halving", "median", "hyperband", "none", "custom", "own"]
    startup_trials: int = at_least(0, default=5)
    warmup_epochs: int = at_least(0, default=0)
    min_epochs: int | None = at_least(1, default=None)
    keep_gib: float | None = rule(
        "must be 0 or more GiB, or null for a share of the free space", lambda v: v >= 0, None
    )
    reduction_factor: int = at_least(2, default=3)
    target: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        return str(self.target["_target_"]) if self.target is not None else self.name


@dataclass(frozen=True, kw_only=True)
class TerminatorSettings:
    """error: what the improvement is compared with. threshold: static, in units of the metric; median, a ratio."""

    improvement: Literal["none", "regret_bound", "emmr", "stagnation"] = "none"
    error: Literal["static", "median"] = "static"
    threshold: float = rule("must be 0 or more", lambda v: v >= 0, 0.0)
    min_trials: int = at_least(2, 20)
    stagnation: int = at_least(1, 30)


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """url: None for the default of sqlite. The address of postgres comes from the environment."""

    name: Literal["sqlite", "postgres"] = "sqlite"
    url: str | None = rule(
        f"must be a database address such as sqlite:///FILE, without a password: storage=postgres reads one from the "
        f"environment variable {credentials.STORAGE_URL}",
        _is_address,
        None,
    )
    lease_s: float = rule(
        "must be at least 5 seconds: another process would take over the trials of a busy machine",
        lambda v: v >= 5,
        30.0,
    )


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """uri: None for the default of local. Address and login of a server come from the environment."""

    name: Literal["local", "server"] = "local"
    uri: str | None = rule(
        "must be a sqlite, postgresql or http address without a password; MLflow no longer takes a folder",
        _is_address,
        None,
    )
    artifacts: str | None
    register: Literal["auto", "never"] = "auto"
    system_metrics: bool = False


@dataclass(frozen=True, kw_only=True)
class NotifySettings:
    """Recipients of notifications. They may contain secrets, so they are not stored, logged or shown."""

    urls: list[str] = field(default_factory=list, repr=False)
    command: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class LauncherSettings:
    """Where the supervisors of a study run. The config of each launcher has the keys that it uses.

    Attributes:
        cpus_per_worker: None where the launcher does not assign CPUs.
        address: The address of a Ray cluster.
        cluster: Where submitit sends jobs.
    """

    name: Literal["local", "ray", "slurm"] = "local"
    workers: int = at_least(1, 1)
    cpus_per_worker: int | None = at_least(1, None)
    gpus_per_worker: int = at_least(0, 0)
    address: str | None = None
    memory_gib: float | None = rule("must be above 0 GiB, or null for what the cluster gives", lambda v: v > 0, None)
    timeout_min: int = at_least(5, 480)
    partition: str | None = None
    account: str | None = None
    cluster: Literal["slurm", "local"] = "slurm"

    @property
    def uses_workers(self) -> bool:
        """Whether workers run the study, and not the process of the command."""
        return self.name != "local" or self.workers > 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A composed and checked configuration, without the components and the search space.

    Attributes:
        import_path: Folders that the user's modules are imported from, as in PYTHONPATH.
        found_location: The location with the secrets from the environment. It is no key and is not stored.
    """

    study: StudySettings
    trainer: TrainerSettings
    trial: TrialSettings
    checkpoint: CheckpointSettings
    sampler: SamplerSettings
    scheduler: SchedulerSettings
    storage: StorageSettings
    tracking: TrackingSettings
    pictures: PictureSettings
    notify: NotifySettings = field(default_factory=NotifySettings)
    terminator: TerminatorSettings
    launcher: LauncherSettings
    seed: int = rule("must be from 0 to 4294967295", lambda v: 0 <= v < 2**32)
    slots: int | None = at_least(1)
    preflight: Literal["auto", "never"]
    min_free_mib: int = at_least(0)
    stay_awake: Literal["auto", "always", "never"]
    import_path: str | None = None
    home: str = rule("must name a folder", lambda v: v and "\0" not in v)
    found_location: StudyLocation | None = field(default=None, repr=False, compare=False)

    @property
    def study_name(self) -> str:
        assert self.study.name is not None, "compose fills the name in"
        return self.study.name

    @property
    def location(self) -> StudyLocation:
        if self.found_location is not None:
            return self.found_location
        assert (self.storage.name, self.tracking.name) == ("sqlite", "local"), "Plan.relocated sets the others"
        return StudyLocation(self.home, self.storage.url, self.tracking.uri, self.tracking.artifacts)


_NOT_STORED = ("notify", "found_location")

SECTIONS = {f.name: f for f in dataclasses.fields(Settings) if f.name != "found_location"}

_SECTION_TYPES = {name: kind for name, kind in typing.get_type_hints(Settings).items() if name in SECTIONS}


def to_json(settings: Settings) -> dict[str, Any]:
    """The settings that a plan and an MLflow run store: all but notifications and the location."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in _NOT_STORED}


def from_json(data: Mapping[str, Any]) -> Settings:
    """The settings that `to_json` wrote. Raises ConfigError for anything else."""
    problems = Problems()
    settings = build_settings(data, {}, problems)
    problems.raise_if_any()
    assert settings is not None
    return settings


def build_settings(tree: Mapping[str, Any], choices: Mapping[str, str], problems: Problems) -> Settings | None:
    """Build the settings that a tree holds. Adds every mistake to `problems` and then returns None.

    Args:
        choices: Config group -> option, from which an unnamed study gets its name; empty for a tree from `to_json`,
            which has no components.
    """
    before = len(problems)
    for key in tree:
        if key not in SECTIONS and key not in (*COMPONENTS, "search"):
            problems.add(f"{key}: no such key" + nearest(key, [*SECTIONS, *COMPONENTS]))
    for name in COMPONENTS if choices else ():
        node = tree.get(name)
        if name == callbacks.NODE:
            problems.extend(callbacks.problems(node))
        elif node is None and name not in ("data", "model"):  # a model may have an optimizer of its own
            continue
        elif not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            problems.add(name, "must be a mapping with a _target_, the class to build", node)
    values: dict[str, Any] = {}
    for name, declared in SECTIONS.items():
        section = _SECTION_TYPES[name]
        if name not in tree and declared.default_factory is not dataclasses.MISSING:
            values[name] = declared.default_factory()
        elif name not in tree and declared.default is not dataclasses.MISSING:
            values[name] = declared.default
        elif name not in tree:
            problems.add(f"{name}: missing; config.yaml must hold it")
        elif dataclasses.is_dataclass(section):
            node = _with_study_defaults(tree, problems) if name == "study" else tree[name]
            node = add_refusals(without_ours(node), problems) if name == "trainer" else node
            node = _with_target(node, section, name, problems) if name in TARGETED else node
            values[name] = build_section(section, node, name, problems)
        else:
            values[name] = check_value(declared, section, tree[name], name, problems)
    if values.get("trainer") is not None:
        problems.extend(values["trainer"].problems())
    if len(problems) > before:
        return None
    scheduler, max_epochs = values["scheduler"], values["trainer"].max_epochs
    counts_epochs = not counts_validations(vars(values["trainer"]))
    if scheduler.name == "hyperband" and counts_epochs and (scheduler.min_epochs or 1) > max_epochs:
        rule_text = f"must be at most trainer.max_epochs, which is {max_epochs}"
        problems.add("scheduler.min_epochs", rule_text, scheduler.min_epochs, "lower it, or train longer")
        return None
    if values["study"].name is None:
        default_name = _default_name(choices, problems)
        if default_name is None:
            return None
        values["study"] = dataclasses.replace(values["study"], name=default_name)
    return Settings(**values)


def _with_target(node: Any, section: Any, name: str, problems: Problems) -> Any:
    """The node of a sampler or scheduler that is named by `_target_`, in the form that its settings store.

    The keys of a shipped option that the `_target_` was added to are dropped.
    """
    if not isinstance(node, Mapping) or not {"_target_", "package"} & node.keys():
        if isinstance(node, Mapping) and node.get("name") == "custom" and not node.get("target"):
            problems.add(f"{name}._target_: must be given for a {name} of your own; add {name}._target_=CLASS")
        return node
    if "_target_" not in node:
        problems.add(f"{name}._target_: must name the class in the package, got {node['package']!r} alone")
    shipped = {f.name for f in dataclasses.fields(section)} if "name" in node else set()
    return {"name": "custom", "target": {k: v for k, v in node.items() if k not in shipped}}


def _default_name(choices: Mapping[str, str], problems: Problems) -> str | None:
    """The name of a study without one: DATA-MODEL, with `-` for each character that no name may have."""
    joined = f"{choices.get('data', 'data')}-{choices.get('model', 'model')}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", joined).strip("-")
    if _is_name(name):
        return name
    problems.add(f"study.name: must be given where {joined!r} can't be one ({NAME_RULE}); add study.name=NAME")
    return None


def _with_study_defaults(tree: Mapping[str, Any], problems: Problems) -> Any:
    """The study section with its defaults: the metric from the task of the data, the direction from the metric's name.

    Short forms are written out.
    """
    study, data = tree["study"], tree.get("data")
    if not isinstance(study, Mapping):
        return study
    filled, task = dict(study), data.get("task") if isinstance(data, Mapping) else None
    if isinstance(filled.get("warm_start_from"), str):
        filled["warm_start_from"] = {"study": filled["warm_start_from"]}
    if task is not None and (not isinstance(task, str) or task not in OBJECTIVES):
        problems.add("data.task", f"must be one of {', '.join(OBJECTIVES)}", task)
    if filled.get("folds") == 1:
        filled["folds"] = None
    if filled.get("metric") is None:
        filled["metric"] = OBJECTIVES.get(str(task), "val/accuracy")
    if filled.get("direction") is None:
        last = re.split(r"[/_.]", str(filled["metric"]).lower())[-1]
        filled["direction"] = next((d for d, names in _DIRECTIONS.items() if last in names), "maximize")
        if not any(last in names for names in _DIRECTIONS.values()):
            problems.add(
                f"study.direction: must be given where the metric's name does not tell which way is better, got null "
                f"for {filled['metric']!r}; add study.direction=maximize or study.direction=minimize"
            )
    return filled

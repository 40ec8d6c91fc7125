"""What a person may turn: a frozen dataclass a section, how a tree becomes one, and how they are kept."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from overnight.config import clock, credentials
from overnight.config.paths import StudyLocation, conf_dir
from overnight.config.problems import ConfigError, Problems
from overnight.config.rules import at_least, build, checked, listed, nearest, rule
from overnight.config.trees import read_yaml

# Top-level nodes whose keys belong to a `_target_`, ours or somebody else's: any key is fine that its config has.
COMPONENTS = ("data", "model", "optimizer", "schedule")

SEARCHABLE = (*COMPONENTS, "trainer")

# What each kind of answer is judged by, unless somebody says otherwise; and which way a metric's last word is better.
OBJECTIVES = {"binary": "val/accuracy", "multiclass": "val/accuracy", "regression": "val/r2"}

_BETTER = {
    "maximize": ("accuracy", "acc", "auroc", "auc", "f1", "precision", "recall", "r2"),
    "minimize": ("loss", "error", "mae", "mse", "rmse", "nll"),
}


def _is_address(text: str) -> bool:
    return "://" in text and not credentials.has_password(text)


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text) is not None


@dataclass(frozen=True, kw_only=True)
class ConfirmSettings:
    top: int = at_least(1)
    seeds: int | None = at_least(0)


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Another study of the same home, so many of whose best trials are tried first."""

    study: str = rule("must be a study's name", _is_name)
    top: int = at_least(1, default=5)


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    name: str | None = rule(
        "must be 1 to 100 letters, digits, '.', '_' or '-', and start with a letter or digit", _is_name
    )
    metric: str = rule("must name a metric that the model logs, e.g. val/accuracy", bool)
    direction: Literal["maximize", "minimize"]
    objective: Literal["last", "best"]
    trials: int = at_least(1)
    retries: int = at_least(0)
    max_consecutive_failures: int = at_least(1)
    keep_checkpoints: int = at_least(0)
    enqueue: tuple[dict[str, Any], ...] = ()
    warm_start_from: WarmStart | None = None
    confirm: ConfirmSettings = field(default_factory=lambda: ConfirmSettings(top=3, seeds=0))  # as 0.1 had it
    hours: float | None = rule("must be above 0 hours, or null for no limit", lambda v: v > 0, None)
    until: str | None = rule(
        "must be a time of day such as 07:00, or a date with one such as 2026-11-25T07:00", clock.is_valid_time, None
    )
    patience: int | None = at_least(1, None)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    max_epochs: int = at_least(1)
    precision: str
    gradient_clip_val: float | None = rule("must be positive", lambda v: v > 0)


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
    name: Literal["tpe", "random", "grid", "qmc", "cma_es", "gp"]
    startup_trials: int = at_least(1, default=10)


@dataclass(frozen=True, kw_only=True)
class PrunerSettings:
    name: Literal["median", "hyperband", "none"]
    startup_trials: int = at_least(0, default=5)
    warmup_epochs: int = at_least(0, default=0)
    min_epochs: int = at_least(1, default=1)
    reduction_factor: int = at_least(2, default=3)


@dataclass(frozen=True, kw_only=True)
class TerminatorSettings:
    """error: what is measured against; threshold: of static in the metric's units, of median a share of it."""

    improvement: Literal["none", "regret_bound", "emmr", "stagnation"] = "none"
    error: Literal["static", "median"] = "static"
    threshold: float = rule("must be 0 or more", lambda v: v >= 0, 0.0)
    min_trials: int = at_least(2, 20)
    stagnation: int = at_least(1, 30)


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """name: postgres has its address from the environment, and nothing of it here."""

    name: Literal["sqlite", "postgres"] = "sqlite"
    url: str | None = rule(
        f"must be a database address such as sqlite:///FILE, without a password: storage=postgres takes one from the "
        f"environment's {credentials.STORAGE_URL}",
        _is_address,
        None,
    )
    lease_s: float = rule(
        "must be at least 5 seconds: a busy machine is late, and its trials would be taken from it",
        lambda v: v >= 5,
        30.0,
    )


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """name: server has its address and its login from the environment, and nothing of them here."""

    name: Literal["local", "server"] = "local"
    uri: str | None = rule(
        "must be a sqlite, postgresql or http address without a password; MLflow no longer takes a folder",
        _is_address,
        None,
    )
    artifacts: str | None
    register: Literal["auto", "never"] = "auto"


@dataclass(frozen=True, kw_only=True)
class NotifySettings:
    """Whom to tell; nothing of it is kept, logged or shown, as it may hold secrets."""

    urls: list[str] = field(default_factory=list, repr=False)
    command: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class LauncherSettings:
    """Where the supervisors run that work on a study; what means nothing to a launcher is no key of its config.

    cpus_per_worker: None where nobody parcels them out. address: of a Ray cluster. cluster: where submitit sends jobs.
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
    def elsewhere(self) -> bool:
        """Whether a study is worked on by workers, and not by the process that is asked to."""
        return self.name != "local" or self.workers > 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A composed and checked configuration, less what belongs to the components and the search space."""

    study: StudySettings
    trainer: TrainerSettings
    trial: TrialSettings
    checkpoint: CheckpointSettings
    sampler: SamplerSettings
    pruner: PrunerSettings
    storage: StorageSettings
    tracking: TrackingSettings
    pictures: PictureSettings
    notify: NotifySettings = field(default_factory=NotifySettings)
    terminator: TerminatorSettings = field(default_factory=TerminatorSettings)  # which 0.1 had not
    launcher: LauncherSettings = field(default_factory=LauncherSettings)  # likewise
    seed: int = rule("must be from 0 to 4294967295", lambda v: 0 <= v < 2**32)
    slots: int | None = at_least(1)
    preflight: Literal["auto", "never"]
    min_free_mib: int = at_least(0)
    stay_awake: Literal["auto", "always", "never"]
    home: str = rule(
        "must name a folder, without ? and %, which a database's address can't hold",
        lambda v: v and not set("?%") & set(v),
    )
    # Where it lies, secrets included, found in the environment and told to nobody: no key, and not kept.
    found_location: StudyLocation | None = field(default=None, repr=False, compare=False)

    @property
    def study_name(self) -> str:
        assert self.study.name is not None, "compose fills the name in"
        return self.study.name

    @property
    def location(self) -> StudyLocation:
        if self.found_location is not None:
            return self.found_location
        assert (self.storage.name, self.tracking.name) == ("sqlite", "local"), "Plan.at says where a kept one lies"
        return StudyLocation(self.home, self.storage.url, self.tracking.uri, self.tracking.artifacts)


_UNKEPT = ("notify", "found_location")

SECTIONS = {f.name: f for f in dataclasses.fields(Settings) if f.name != "found_location"}

_SECTION_TYPES = {name: kind for name, kind in typing.get_type_hints(Settings).items() if name in SECTIONS}


def to_json(settings: Settings) -> dict[str, Any]:
    """What a plan and a run keep: all but whom to tell, and where it lies."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in _UNKEPT}


def from_json(data: Mapping[str, Any]) -> Settings:
    """The settings that `to_json` wrote, now or in an older version; what that did not have yet is as we ship it.

    Raises ConfigError for what no version that this one knows of wrote.
    """
    problems = Problems()
    settings = build_settings(_with_shipped(data), {}, problems)
    if settings is None:
        raise ConfigError(problems)
    return settings


def _with_shipped(data: Mapping[str, Any]) -> dict[str, Any]:
    """Kept settings with every key that must be there and is not, as conf/ has it. A default of our own comes first:
    it says what a version without the key did."""
    shipped = read_yaml(conf_dir() / "config.yaml")
    taken = {g: o for entry in shipped["defaults"] if isinstance(entry, dict) for g, o in entry.items()}
    filled = dict(data)
    for name, kind in _SECTION_TYPES.items():
        if not dataclasses.is_dataclass(kind):
            filled.setdefault(name, shipped.get(name))
            continue
        kept = dict(filled.get(name) or {})
        option = conf_dir() / name / f"{kept.get('name') or taken.get(name)}.yaml"
        texts = shipped.get(name) or (read_yaml(option) if option.exists() else {})
        for f in dataclasses.fields(kind):
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name in texts:
                kept.setdefault(f.name, texts[f.name])
        filled[name] = kept
    return filled


def build_settings(tree: Mapping[str, Any], choices: Mapping[str, str], problems: Problems) -> Settings | None:
    """The settings that a composed tree holds; notes every mistake and then returns None.

    choices: the options taken, which name a study without a name; empty for a tree that was kept, without components.
    """
    before = len(problems)
    for key in tree:
        if key not in SECTIONS and key not in (*COMPONENTS, "search"):
            problems.add(f"{key}: no such key" + nearest(key, [*SECTIONS, *COMPONENTS]))
    for name in COMPONENTS if choices else ():
        node = tree.get(name)
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            problems.add(f"{name}: must be a mapping with a _target_, the class to build, got {node!r}")
    values: dict[str, Any] = {}
    for name, declared in SECTIONS.items():
        kind = _SECTION_TYPES[name]
        if name not in tree and declared.default_factory is not dataclasses.MISSING:
            values[name] = declared.default_factory()
        elif name not in tree:
            problems.add(f"{name}: missing; config.yaml must hold it")
        elif dataclasses.is_dataclass(kind):
            node = _completed(tree, problems) if name == "study" else tree[name]
            values[name] = build(kind, node, name, problems)
        else:
            values[name] = checked(declared, kind, tree[name], name, problems)
    if len(problems) > before:
        return None
    pruner, max_epochs = values["pruner"], values["trainer"].max_epochs
    if pruner.name == "hyperband" and pruner.min_epochs > max_epochs:
        problems.add(
            f"pruner.min_epochs: must be at most trainer.max_epochs, which is {max_epochs}, got {pruner.min_epochs}; "
            f"lower it, or train longer"
        )
        return None
    if values["study"].name is None:
        default = f"{choices.get('data', 'data')}-{choices.get('model', 'model')}"
        values["study"] = dataclasses.replace(values["study"], name=default)
    return Settings(**values)


def _completed(tree: Mapping[str, Any], problems: Problems) -> Any:
    """The study's node with metric and direction filled in, by the data's task and by what the metric's name says;
    and with what may be written in short in full."""
    study, data = tree["study"], tree.get("data")
    if not isinstance(study, Mapping):
        return study
    filled, task = dict(study), data.get("task") if isinstance(data, Mapping) else None
    if isinstance(filled.get("warm_start_from"), str):
        filled["warm_start_from"] = {"study": filled["warm_start_from"]}
    if task is not None and task not in OBJECTIVES:
        problems.add(f"data.task: must be one of {listed(OBJECTIVES)}, got {task!r}")
    if filled.get("metric") is None:
        filled["metric"] = OBJECTIVES.get(str(task), "val/accuracy")
    if filled.get("direction") is None:
        last = re.split(r"[/_.]", str(filled["metric"]).lower())[-1]
        known = [direction for direction, names in _BETTER.items() if last in names]
        if known:
            filled["direction"] = known[0]
        else:
            problems.add(
                f"study.direction: must be given where the metric's name does not tell which way is better, got null "
                f"for {filled['metric']!r}; add study.direction=maximize or study.direction=minimize"
            )
            filled["direction"] = "maximize"
    return filled

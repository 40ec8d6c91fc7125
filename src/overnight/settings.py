"""What a person may turn: Hydra composes, this room checks, the rest of the project gets frozen dataclasses.

The only place that knows OmegaConf. Mistakes are collected, never raised one at a time: a person who made three
hears of three.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import math
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from overnight import clock, credentials
from overnight.paths import Place, conf_dir

# Top-level nodes whose keys belong to a `_target_`, ours or somebody else's: any key is fine that its config has.
COMPONENTS = ("data", "model", "optimizer", "schedule")
SEARCHABLE = (*COMPONENTS, "trainer")
# What each kind of answer is judged by, unless somebody says otherwise; and which way a metric's last word is better.
OBJECTIVES = {"binary": "val/accuracy", "multiclass": "val/accuracy", "regression": "val/r2"}
_BETTER = {
    "maximize": ("accuracy", "acc", "auroc", "auc", "f1", "precision", "recall", "r2"),
    "minimize": ("loss", "error", "mae", "mse", "rmse", "nll"),
}
# hydra.utils.instantiate's own words may be added to any component.
_INSTANTIATE_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")


class ConfigError(ValueError):
    """Mistakes in what was asked, all of them: `problems` holds one line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


def _rule(text: str, holds: Callable[[Any], bool], default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with a rule; None passes where the field's type allows it."""
    return field(default=default, metadata={"rule": text, "holds": holds})


def _at_least(low: int, default: Any = dataclasses.MISSING) -> Any:
    return _rule(f"must be at least {low}", lambda v: v >= low, default)


def _is_address(text: str) -> bool:
    return "://" in text and not credentials.holds_password(text)


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text) is not None


@dataclass(frozen=True, kw_only=True)
class ConfirmSettings:
    top: int = _at_least(1)
    seeds: int | None = _at_least(0)


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Another study of the same home, so many of whose best trials are tried first."""

    study: str = _rule("must be a study's name", _is_name)
    top: int = _at_least(1, default=5)


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    name: str | None = _rule(
        "must be 1 to 100 letters, digits, '.', '_' or '-', and start with a letter or digit", _is_name
    )
    metric: str = _rule("must name a metric that the model logs, e.g. val/accuracy", bool)
    direction: Literal["maximize", "minimize"]
    objective: Literal["last", "best"]
    trials: int = _at_least(1)
    retries: int = _at_least(0)
    max_consecutive_failures: int = _at_least(1)
    keep_checkpoints: int = _at_least(0)
    enqueue: tuple[dict[str, Any], ...] = ()
    warm_start_from: WarmStart | None = None
    confirm: ConfirmSettings = field(default_factory=lambda: ConfirmSettings(top=3, seeds=0))  # as 0.1 had it
    hours: float | None = _rule("must be above 0 hours, or null for no limit", lambda v: v > 0, None)
    until: str | None = _rule(
        "must be a time of day such as 07:00, or a date with one such as 2026-11-25T07:00", clock.is_time, None
    )
    patience: int | None = _at_least(1, None)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    max_epochs: int = _at_least(1)
    precision: str
    gradient_clip_val: float | None = _rule("must be positive", lambda v: v > 0)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    every_s: float = _rule("must be 0 or more seconds", lambda v: v >= 0)


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    timeout_s: float | None = _rule("must be above 0 seconds, or null for no limit", lambda v: v > 0)
    stall_s: float | None = _rule("must be at least 2 seconds, or null for no limit", lambda v: v >= 2)
    memory_gib: float | None = _rule("must be above 0 GiB, or null for a share of the machine's", lambda v: v > 0)


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    when: Literal["best", "winner", "never"]
    which: list[Literal["weights", "curves", "confusion", "mistakes", "predictions"]]
    look: Literal["white_zero", "black_zero"]


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    name: Literal["tpe", "random", "grid", "qmc", "cma_es", "gp"]
    startup_trials: int = _at_least(1, default=10)


@dataclass(frozen=True, kw_only=True)
class PrunerSettings:
    name: Literal["median", "hyperband", "none"]
    startup_trials: int = _at_least(0, default=5)
    warmup_epochs: int = _at_least(0, default=0)
    min_epochs: int = _at_least(1, default=1)
    reduction_factor: int = _at_least(2, default=3)


@dataclass(frozen=True, kw_only=True)
class TerminatorSettings:
    """error: what is measured against; threshold: of static in the metric's units, of median a share of it."""

    improvement: Literal["none", "regret_bound", "emmr", "stagnation"] = "none"
    error: Literal["static", "median"] = "static"
    threshold: float = _rule("must be 0 or more", lambda v: v >= 0, 0.0)
    min_trials: int = _at_least(2, 20)
    stagnation: int = _at_least(1, 30)


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """name: postgres has its address from the environment, and nothing of it here."""

    name: Literal["sqlite", "postgres"] = "sqlite"
    url: str | None = _rule(
        f"must be a database address such as sqlite:///FILE, without a password: storage=postgres takes one from the "
        f"environment's {credentials.STORAGE_URL}",
        _is_address,
        None,
    )
    lease_s: float = _rule(
        "must be at least 5 seconds: a busy machine is late, and its trials would be taken from it",
        lambda v: v >= 5,
        30.0,
    )


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """name: server has its address and its login from the environment, and nothing of them here."""

    name: Literal["local", "server"] = "local"
    uri: str | None = _rule(
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
    workers: int = _at_least(1, 1)
    cpus_per_worker: int | None = _at_least(1, None)
    gpus_per_worker: int = _at_least(0, 0)
    address: str | None = None
    memory_gib: float | None = _rule("must be above 0 GiB, or null for what the cluster gives", lambda v: v > 0, None)
    timeout_min: int = _at_least(5, 480)
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
    seed: int = _rule("must be from 0 to 4294967295", lambda v: 0 <= v < 2**32)
    slots: int | None = _at_least(1)
    preflight: Literal["auto", "never"]
    min_free_mib: int = _at_least(0)
    stay_awake: Literal["auto", "always", "never"]
    home: str = _rule(
        "must name a folder, without ? and %, which a database's address can't hold",
        lambda v: v and not set("?%") & set(v),
    )
    # Where it lies, secrets included, found in the environment and told to nobody: no key, and not kept.
    lies: Place | None = field(default=None, repr=False, compare=False)

    @property
    def study_name(self) -> str:
        assert self.study.name is not None, "compose fills the name in"
        return self.study.name

    @property
    def place(self) -> Place:
        if self.lies is not None:
            return self.lies
        assert (self.storage.name, self.tracking.name) == ("sqlite", "local"), "Plan.at says where a kept one lies"
        return Place(self.home, self.storage.url, self.tracking.uri, self.tracking.artifacts)


_UNKEPT = ("notify", "lies")
_SECTIONS = {f.name: f for f in dataclasses.fields(Settings) if f.name != "lies"}
_SECTION_TYPES = {name: kind for name, kind in typing.get_type_hints(Settings).items() if name in _SECTIONS}


@dataclass
class Draft:
    """A composed configuration on its way to a plan, with what is wrong with it so far.

    config: the whole composed tree, interpolations resolved. choices: the option taken in each config group.
    sweeps: key -> text in Hydra's sweep grammar, from the command line; added: those of them that no config holds
    (`+model.width=8,16`). fixed: the keys that were given a plain value there; absent: those of them that the
    configuration as written does not hold, but another option of a searched config group may, with their value and
    the problem that each is otherwise. settings: None where a problem kept them from being built.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    sweeps: dict[str, str]
    added: tuple[str, ...]
    fixed: tuple[str, ...]
    absent: dict[str, tuple[Any, str]]
    settings: Settings | None
    problems: list[str]
    config_dir: Path | None
    _folders: tuple[Path, ...]
    _overrides: list[str]

    def variant(self, groups: Mapping[str, str]) -> dict[str, Any]:
        """The searchable part of the tree, unresolved, with other options taken in some config groups.

        What was given for a key of such a group counts for the options that have the key.
        """
        kept, moved = self._split(groups)
        config, _ = _compose([*kept, *(f"{g}={option}" for g, option in groups.items())], self._folders)
        tree = _plain(config, resolve=False, only=SEARCHABLE)
        for override in _parse(moved, []):
            parent, _, last = override.key_or_group.rpartition(".")
            if has_key(tree, override.key_or_group):
                node = look_up(tree, parent)
                node.pop(last) if override.is_delete() else node.update({last: override.value()})
        return tree

    def search_of(self, model: str) -> dict[str, Any]:
        """The search space that comes with an option of `model`."""
        kept, _ = self._split({"model": "", "search": ""})
        config, _ = _compose([*kept, f"model={model}", f"search={model}"], self._folders)
        return _plain(config.search or {})

    def _split(self, groups: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """The overrides that hold whatever is taken in these groups, and those of keys that may not be there then."""
        rest = [o for o in self._overrides if _override_key(o) not in groups]
        moved = [o for o in rest if not o.startswith("+") and _override_key(o).split(".")[0] in groups]
        return [o for o in rest if o not in moved], moved

    def options(self, group: str) -> list[str]:
        return group_options(group, self._folders)


def compose(overrides: Iterable[str], config_dir: str | Path | None = None) -> Draft:
    """Compose conf/config.yaml with `overrides` and check all of it.

    Args:
        overrides: in Hydra's grammar; a sweep (`model.activation=relu,gelu`) is kept apart for the search space.
        config_dir: a folder of somebody's own configs, beside the ones that come with overnight.

    Returns:
        A draft; `draft.problems` lists every mistake found. Creates nothing on disk.
    """
    problems: list[str] = []
    folder = Path(config_dir).expanduser().absolute() if config_dir is not None else None
    if folder is not None and not folder.is_dir():
        problems.append(f"--config-dir: must be a folder, and {folder} is none")
        folder = None
    if folder is not None:
        # Hydra looks at its first folder first and says nothing of what that hides.
        problems.extend(
            f"--config-dir: {path.relative_to(folder)} has the name of a file that comes with overnight and would "
            f"never be read; give it another"
            for path in sorted(folder.rglob("*.yaml"))
            if (conf_dir() / path.relative_to(folder)).exists()
        )

    overrides = credentials.off_the_command_line(overrides, problems)
    parsed = _parse(overrides, problems)
    folders = (*([folder] if folder is not None else []), *_left_at_home(parsed))
    groups, values, sweeps = [], [], {}
    for override in parsed:
        key, text = override.key_or_group, override.input_line or ""
        if override.is_sweep_override():
            sweeps[key] = text.split("=", 1)[1].strip()
        elif key in _groups(folders):
            problem = _wrong_option(override, folders)
            if problem:
                problems.append(problem)
            else:
                groups.append(text)
        else:
            values.append(override)

    taken = {_override_key(g): g.split("=", 1)[1] for g in groups}
    if "search" not in taken and taken.get("model", "") not in ("", *group_options("search", folders)):
        problems.append(
            f"search: there is no search/{taken['model']}.yaml for model={taken['model']}; write one, or "
            f"take search=none"
        )
        groups.append("search=none")
    told = len(problems)
    base, choices = _compose_or_note(groups, folders, problems)
    if len(problems) > told:
        groups = []
    accepted = list(groups)
    absent: dict[str, tuple[Any, str]] = {}
    for override in values:
        problem = _wrong_value(override, base)
        if problem:
            problems.append(problem)
            key = override.key_or_group
            if (
                key.split(".")[0] in COMPONENTS
                and not override.is_delete()
                and problem.startswith(f"{key}: no such key")
            ):
                absent[key] = (override.value(), problem)
        else:
            accepted.append(override.input_line)
    for key in list(sweeps):
        if sum(o.key_or_group == key for o in parsed) > 1:
            problems.append(f"{key}: must be given once where one of them is a sweep, got it several times")
        if key.split(".")[0] not in SEARCHABLE:
            problems.append(f"{key}: only keys of {_listed(SEARCHABLE)} can be searched, got a sweep")
            del sweeps[key]

    told = len(problems)
    config, choices = _compose_or_note(accepted, folders, problems) if len(accepted) > len(groups) else (base, choices)
    if len(problems) > told:
        accepted = []  # what does not compose is told once, not again for every variant
    tree = _plain_or_note(config, problems)
    settings = _build_settings(tree, choices, problems) if tree else None
    if settings is not None:
        settings = dataclasses.replace(settings, lies=_place_of(settings, problems))
    if settings is not None and settings.notify.urls:
        tree["notify"]["urls"] = ["not shown"] * len(settings.notify.urls)
    if settings is not None and settings.notify.command:
        tree["notify"]["command"] = "not shown"
    fixed = tuple(o.key_or_group for o in parsed if not o.is_sweep_override() and not o.is_delete())
    added = tuple(o.key_or_group for o in parsed if o.is_sweep_override() and o.is_add())
    return Draft(tree, choices, sweeps, added, fixed, absent, settings, problems, folder, folders, accepted)


def place(overrides: Iterable[str]) -> Place:
    """Where the studies lie that `overrides` speak of. Raises ConfigError as `compose` notes it.

    Composing takes a third of a second, which a look at a study should not: with no more than a home given, the
    three files that hold the answer are read as they are.
    """
    import yaml

    texts = list(overrides)
    homes = [text.removeprefix("home=") for text in texts]
    if not all(re.fullmatch(r"home=[\w./~+-]+", text) for text in texts):
        draft = compose(texts)
        if draft.problems or draft.settings is None:
            raise ConfigError(draft.problems)
        return draft.settings.place
    config = yaml.safe_load((conf_dir() / "config.yaml").read_text())
    taken = {g: o for entry in config["defaults"] if isinstance(entry, dict) for g, o in entry.items()}
    storage, tracking = (
        yaml.safe_load((conf_dir() / group / f"{taken[group]}.yaml").read_text()) for group in ("storage", "tracking")
    )
    return Place(homes[-1] if homes else config["home"], storage["url"], tracking["uri"], tracking["artifacts"])


def _place_of(settings: Settings, problems: list[str]) -> Place:
    """Where a composed study lies, with what the environment says of it."""
    storage, tracking = settings.storage, settings.tracking
    url, uri = storage.url, tracking.uri
    if storage.name == "postgres":
        url = credentials.storage_url(problems)
    elif credentials.is_postgres(url):
        url = credentials.postgres_url("storage.url", str(url), problems)
    if tracking.name == "server":
        uri = credentials.tracking_uri(problems)
    found = Place(settings.home, url, uri, tracking.artifacts, storage.name, tracking.name, storage.lease_s)
    if found.server is not None:
        credentials.login(problems)
    return found


def with_values(variant: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's tree with `values` (dotted key -> value) put in and every interpolation resolved."""
    if not _interpolates(variant) and not _interpolates(values):  # and every trial is spared OmegaConf's 5 to 15 ms
        tree: dict[str, Any] = copy.deepcopy(dict(variant))
        for key, value in values.items():
            *path, last = key.split(".")
            node = tree
            for part in path:
                if not isinstance(node.get(part), dict):
                    node[part] = {}
                node = node[part]
            node[last] = copy.deepcopy(value)
        return tree
    from omegaconf import OmegaConf

    config = OmegaConf.create(copy.deepcopy(dict(variant)))
    for key, value in values.items():
        OmegaConf.update(config, key, value, merge=False)
    return _plain(config)


def _interpolates(node: Any) -> bool:
    if isinstance(node, Mapping):
        return any(map(_interpolates, node.values()))
    if isinstance(node, list | tuple):
        return any(map(_interpolates, node))
    return isinstance(node, str) and "${" in node


def look_up(tree: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key. Raises KeyError where there is none."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, Mapping):
            raise KeyError(key)
        node = node[part]
    return node


def has_key(tree: Mapping[str, Any], key: str) -> bool:
    try:
        look_up(tree, key)
    except KeyError:
        return False
    return True


def kind_problem(written: Any, value: Any) -> str | None:
    """What is wrong with putting `value` where `written` stands in a config, or None.

    Numbers go for numbers, true and false for themselves, lists for lists; where null is written, or given, or an
    interpolation, anything goes.
    """
    if written is None or value is None or (isinstance(value, str) and "${" in value):
        return None
    for kind, name in (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a text"),
        ((list, tuple), "a list"),
        (Mapping, "a mapping"),
    ):
        if isinstance(written, kind):
            fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if fits and isinstance(value, float) and not math.isfinite(value):
                return f"must be finite, got {value!r}"
            return None if fits else f"must be {name}, got {value!r}"
    return None


def nearest(word: str, known: Iterable[str], and_add: bool = False) -> str:
    """A hint at the known word that comes nearest, to be put at the end of a message."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else "; `overnight tune --cfg` prints every key"
    return hint + (f" (to hand a new key to the class: +{word}=...)" if and_add else "")


def group_options(group: str, folders: tuple[Path, ...] = ()) -> list[str]:
    """The options of a config group: the names of its files, in the folders too that somebody has beside ours."""
    return sorted({p.stem for folder in (conf_dir(), *folders) for p in (folder / group).glob("*.yaml")})


def config_text(tree: Mapping[str, Any]) -> str:
    """A plain tree as YAML that Hydra reads back as it was.

    Without OmegaConf, which takes ten times as long: one is written for every trial.
    """
    import yaml

    written = yaml.dump(dict(tree), Dumper=_dumper(), default_flow_style=False, allow_unicode=True, sort_keys=False)
    return str(written)


@functools.cache
def _dumper() -> type[Any]:
    """YAML's own, which leaves no text bare that Hydra would take for a number where YAML does not, as 1e-3."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        pass

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'" if _is_number(value) else None)

    Dumper.add_representer(str, text)
    return Dumper


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def to_json(settings: Settings) -> dict[str, Any]:
    """What a plan and a run keep: all but whom to tell, and where it lies."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in _UNKEPT}


def from_json(data: Mapping[str, Any]) -> Settings:
    """The settings that `to_json` wrote, now or in an older version; what that did not have yet is as we ship it.

    Raises ConfigError for what no version that this one knows of wrote.
    """
    problems: list[str] = []
    settings = _build_settings(_with_shipped(data), {}, problems)
    if settings is None:
        raise ConfigError(problems)
    return settings


def _with_shipped(data: Mapping[str, Any]) -> dict[str, Any]:
    """Kept settings with every key that must be there and is not, as conf/ has it. A default of our own comes first:
    it says what a version without the key did."""
    import yaml

    shipped = yaml.safe_load((conf_dir() / "config.yaml").read_text())
    taken = {g: o for entry in shipped["defaults"] if isinstance(entry, dict) for g, o in entry.items()}
    filled = dict(data)
    for name, kind in _SECTION_TYPES.items():
        if not dataclasses.is_dataclass(kind):
            filled.setdefault(name, shipped.get(name))
            continue
        kept = dict(filled.get(name) or {})
        option = conf_dir() / name / f"{kept.get('name') or taken.get(name)}.yaml"
        texts = shipped.get(name) or (yaml.safe_load(option.read_text()) if option.exists() else {})
        for f in dataclasses.fields(kind):
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name in texts:
                kept.setdefault(f.name, texts[f.name])
        filled[name] = kept
    return filled


# Hydra and OmegaConf ------------------------------------------------------------------------------------------------


def _left_at_home(parsed: Iterable[Any]) -> list[Path]:
    """The folder of winners below the home that `overrides` name; none where no study has left one."""
    homes = [str(o.value()) for o in parsed if o.key_or_group == "home" and not o.is_sweep_override()]
    left = Place(homes[-1] if homes else _written_home()).where.winners
    return [left] if left.is_dir() else []


def _written_home() -> str:
    return str(re.search(r"^home: *(\S+)", (conf_dir() / "config.yaml").read_text(), re.M)[1])  # type: ignore[index]


def _groups(folders: tuple[Path, ...]) -> set[str]:
    return {p.name for folder in (conf_dir(), *folders) for p in folder.iterdir() if p.is_dir()}


def _override_key(text: str) -> str:
    return text.split("=", 1)[0].lstrip("+~")


def _parse(overrides: Iterable[str], problems: list[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parsed = []
    for text in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(text))
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(f"{text}: must be KEY=VALUE in Hydra's grammar: {reason}")
    return parsed


def _compose(overrides: list[str], folders: tuple[Path, ...]) -> tuple[Any, dict[str, str]]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf, open_dict

    quoted = ("'file://" + str(folder).replace("'", "\\'") + "'" for folder in folders)
    path = [f"hydra.searchpath=[{','.join(quoted)}]"] if folders else []
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Hydra's word on defaults lists without _self_
        config = hydra_compose("config", overrides=[*overrides, *path], return_hydra_config=True)
    choices = {
        str(k): v
        for k, v in OmegaConf.to_container(config.hydra.runtime.choices).items()  # type: ignore
        if v is not None and "/" not in str(k)
    }
    with open_dict(config):
        del config["hydra"]
    return config, choices


def _compose_or_note(
    overrides: list[str], folders: tuple[Path, ...], problems: list[str]
) -> tuple[Any, dict[str, str]]:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return _compose(overrides, folders)
    except (HydraException, OmegaConfBaseException) as error:
        problems.append(f"conf: must compose: {' '.join(str(error).split())}")
        if overrides:
            return _compose_or_note([], folders, [])
        return {}, {}


def _plain(config: Any, resolve: bool = True, only: Iterable[str] | None = None) -> dict[str, Any]:
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.to_container(config, resolve=resolve)
    return {str(k): v for k, v in tree.items() if only is None or str(k) in only}


def _plain_or_note(config: Any, problems: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not config:
        return {}
    try:
        for key in sorted(OmegaConf.missing_keys(config)):
            problems.append(f"{key}: must be given a value: {key}=...")
        return _plain(config)
    except OmegaConfBaseException as error:
        problems.append(f"conf: must resolve: {' '.join(str(error).split())}")
        return _plain(config, resolve=False)


# Checks -------------------------------------------------------------------------------------------------------------


def _wrong_option(override: Any, folders: tuple[Path, ...]) -> str | None:
    """What is wrong with a GROUP=OPTION, or None."""
    group, known = override.key_or_group, group_options(override.key_or_group, folders)
    if override.is_delete():
        return f"{group}: can't be taken out; choose one of {_listed(known)}"
    option = override.value()
    if option not in known:
        hint = nearest(option, known) if isinstance(option, str) else ""
        return f"{group}: must be one of {_listed(known)}, got {option!r}{hint}"
    if override.is_add() and group in (*COMPONENTS, *_SECTIONS, "search"):
        return f"{group}: is chosen already; write {group}={option} without the +"
    return None


def _wrong_value(override: Any, config: Any) -> str | None:
    """What is wrong with a plain KEY=VALUE, or None."""
    from omegaconf import OmegaConf

    key, section = override.key_or_group, override.key_or_group.split(".")[0]
    if key == "search" or section == "search":
        return f"{key}: sweep the key itself, e.g. optimizer.lr='interval(0.001,0.1)', or take search=none"
    tree = _plain(config, resolve=False) if config else {}
    if not tree:
        return None
    known = has_key(tree, key)
    if override.is_add() and section in COMPONENTS:
        return None  # a key more for somebody's own class
    if not known:
        return f"{key}: no such key" + nearest(key, [*_flat(tree), *_INSTANTIATE_KEYS], and_add=section in COMPONENTS)
    if override.is_delete() or section not in COMPONENTS:
        return None  # our own sections are checked by their types
    value = override.value()
    written = OmegaConf.select(config, key) if not OmegaConf.is_missing(config, key) else None
    problem = kind_problem(OmegaConf.to_container(written) if OmegaConf.is_config(written) else written, value)
    return f"{key}: {problem}" if problem else None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        keys.append(path)
        if isinstance(value, Mapping) and path != "search":
            keys.extend(_flat(value, f"{path}."))
    return keys


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _build_settings(tree: Mapping[str, Any], choices: Mapping[str, str], problems: list[str]) -> Settings | None:
    before = len(problems)
    for key in tree:
        if key not in _SECTIONS and key not in (*COMPONENTS, "search"):
            problems.append(f"{key}: no such key" + nearest(key, [*_SECTIONS, *COMPONENTS]))
    for name in COMPONENTS if choices else ():
        node = tree.get(name)
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            problems.append(f"{name}: must be a mapping with a _target_, the class to build, got {node!r}")
    values: dict[str, Any] = {}
    for name, declared in _SECTIONS.items():
        kind = _SECTION_TYPES[name]
        if name not in tree and declared.default_factory is not dataclasses.MISSING:
            values[name] = declared.default_factory()
        elif name not in tree:
            problems.append(f"{name}: missing; config.yaml must hold it")
        elif dataclasses.is_dataclass(kind):
            node = _completed(tree, problems) if name == "study" else tree[name]
            values[name] = _build(kind, node, name, problems)
        else:
            values[name] = _checked(declared, kind, tree[name], name, problems)
    if len(problems) > before:
        return None
    pruner, max_epochs = values["pruner"], values["trainer"].max_epochs
    if pruner.name == "hyperband" and pruner.min_epochs > max_epochs:
        problems.append(
            f"pruner.min_epochs: must be at most trainer.max_epochs, which is {max_epochs}, got {pruner.min_epochs}; "
            f"lower it, or train longer"
        )
        return None
    if values["study"].name is None:
        default = f"{choices.get('data', 'data')}-{choices.get('model', 'model')}"
        values["study"] = dataclasses.replace(values["study"], name=default)
    return Settings(**values)


def _completed(tree: Mapping[str, Any], problems: list[str]) -> Any:
    """The study's node with metric and direction filled in, by the data's task and by what the metric's name says;
    and with what may be written in short in full."""
    study, data = tree["study"], tree.get("data")
    if not isinstance(study, Mapping):
        return study
    filled, task = dict(study), data.get("task") if isinstance(data, Mapping) else None
    if isinstance(filled.get("warm_start_from"), str):
        filled["warm_start_from"] = {"study": filled["warm_start_from"]}
    if task is not None and task not in OBJECTIVES:
        problems.append(f"data.task: must be one of {_listed(OBJECTIVES)}, got {task!r}")
    if filled.get("metric") is None:
        filled["metric"] = OBJECTIVES.get(str(task), "val/accuracy")
    if filled.get("direction") is None:
        last = re.split(r"[/_.]", str(filled["metric"]).lower())[-1]
        known = [direction for direction, names in _BETTER.items() if last in names]
        if known:
            filled["direction"] = known[0]
        else:
            problems.append(
                f"study.direction: must be given where the metric's name does not tell which way is better, got null "
                f"for {filled['metric']!r}; add study.direction=maximize or study.direction=minimize"
            )
            filled["direction"] = "maximize"
    return filled


def _build(kind: Any, node: Any, path: str, problems: list[str]) -> Any:
    """An instance of the dataclass `kind` from a mapping; notes every mistake and then returns None."""
    if not isinstance(node, Mapping):
        problems.append(f"{path}: must be a mapping, got {node!r}")
        return None
    before, values, hints = len(problems), {}, typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in node:
        if key not in fields:
            problems.append(f"{path}.{key}: no such key" + nearest(f"{path}.{key}", [f"{path}.{f}" for f in fields]))
    for name, declared in fields.items():
        if name in node:
            values[name] = _checked(declared, hints[name], node[name], f"{path}.{name}", problems)
        elif declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING:
            problems.append(f"{path}.{name}: missing; config.yaml must hold it")
    return kind(**values) if len(problems) == before else None


def _checked(declared: dataclasses.Field[Any], kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path, problems)
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in allowed:
        return None
    sections = [kind for kind in allowed if dataclasses.is_dataclass(kind)]
    if sections:
        return _build(sections[0], value, path, problems)
    if typing.get_origin(kind) is Literal:
        options = typing.get_args(kind)
        if value not in options:
            hint = nearest(value, map(str, options)) if isinstance(value, str) else ""
            problems.append(f"{path}: must be one of {_listed(map(str, options))}, got {value!r}{hint}")
        return value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(v, Mapping) for v in value):
            problems.append(
                f"{path}: must be a list of mappings from searched key to value, e.g. [{{optimizer.lr: 0.01}}], "
                f"got {value!r}"
            )
            return ()
        return tuple({str(k): v for k, v in entry.items()} for entry in value)
    if typing.get_origin(kind) is list:
        (options,) = (typing.get_args(entry) for entry in typing.get_args(kind))
        if not options:  # of texts: addresses, which no message may repeat
            if isinstance(value, list) and all(isinstance(v, str) and "://" in v for v in value):
                return value
            problems.append(f"{path}: must be a list of addresses such as mailto://NAME:PASSWORD@example.com")
            return []
        if not isinstance(value, list) or not set(map(str, value)) <= set(options):
            problems.append(f"{path}: must be a list of some of {_listed(options)}, got {value!r}")
        return value
    base: type = next(t for t in allowed if t is not type(None))
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, base) or isinstance(value, bool):
        names = {int: "a whole number", float: "a number", str: "a text"}
        # YAML reads 23:00 as so many minutes.
        quoted = "; a time in a YAML file wants quotes: '23:00'" if declared.name == "until" else ""
        problems.append(f"{path}: must be {names[base]}, got {value!r}{quoted}")
    elif isinstance(value, float) and not math.isfinite(value):
        problems.append(f"{path}: must be finite, got {value!r}")
    elif "holds" in declared.metadata and not declared.metadata["holds"](value):
        shown = credentials.discreet(value) if isinstance(value, str) else value
        problems.append(f"{path}: {declared.metadata['rule']}, got {shown!r}")
    return value

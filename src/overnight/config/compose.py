"""From overrides to a draft: Hydra composes, and what does not compose is said."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.config import credentials
from overnight.config.paths import StudyLocation, conf_dir
from overnight.config.problems import ConfigError, Problems
from overnight.config.rules import listed, nearest
from overnight.config.sections import COMPONENTS, SEARCHABLE, SECTIONS, Settings, build_settings
from overnight.config.trees import has_key, keys_of, look_up, read_yaml, to_plain, type_problem

# hydra.utils.instantiate's own words may be added to any component.
_INSTANTIATE_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")


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
    problems: Problems
    config_dir: Path | None
    _folders: tuple[Path, ...]
    _overrides: list[str]

    def variant(self, groups: Mapping[str, str]) -> dict[str, Any]:
        """The searchable part of the tree, unresolved, with other options taken in some config groups.

        What was given for a key of such a group counts for the options that have the key.
        """
        kept, moved = self._split(groups)
        config, _ = _compose([*kept, *(f"{g}={option}" for g, option in groups.items())], self._folders)
        tree = to_plain(config, resolve=False, only=SEARCHABLE)
        for override in _parse(moved, Problems()):
            parent, _, last = override.key_or_group.rpartition(".")
            if has_key(tree, override.key_or_group):
                node = look_up(tree, parent)
                node.pop(last) if override.is_delete() else node.update({last: override.value()})
        return tree

    def search_of(self, model: str) -> dict[str, Any]:
        """The search space that comes with an option of `model`."""
        kept, _ = self._split({"model": "", "search": ""})
        config, _ = _compose([*kept, f"model={model}", f"search={model}"], self._folders)
        return to_plain(config.search or {})

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
    problems = Problems()
    folder = Path(config_dir).expanduser().absolute() if config_dir is not None else None
    if folder is not None and not folder.is_dir():
        problems.add(f"--config-dir: must be a folder, and {folder} is none")
        folder = None
    if folder is not None:
        # Hydra looks at its first folder first and says nothing of what that hides.
        problems.merge(
            f"--config-dir: {path.relative_to(folder)} has the name of a file that comes with overnight and would "
            f"never be read; give it another"
            for path in sorted(folder.rglob("*.yaml"))
            if (conf_dir() / path.relative_to(folder)).exists()
        )

    overrides = credentials.reject_secrets(overrides, problems)
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
                problems.add(problem)
            else:
                groups.append(text)
        else:
            values.append(override)

    taken = {_override_key(g): g.split("=", 1)[1] for g in groups}
    if "search" not in taken and taken.get("model", "") not in ("", *group_options("search", folders)):
        problems.add(
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
            problems.add(problem)
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
            problems.add(f"{key}: must be given once where one of them is a sweep, got it several times")
        if key.split(".")[0] not in SEARCHABLE:
            problems.add(f"{key}: only keys of {listed(SEARCHABLE)} can be searched, got a sweep")
            del sweeps[key]

    told = len(problems)
    config, choices = _compose_or_note(accepted, folders, problems) if len(accepted) > len(groups) else (base, choices)
    if len(problems) > told:
        accepted = []  # what does not compose is told once, not again for every variant
    tree = _plain_or_note(config, problems)
    settings = build_settings(tree, choices, problems) if tree else None
    if settings is not None:
        settings = dataclasses.replace(settings, found_location=_location_of(settings, problems))
    if settings is not None and settings.notify.urls:
        tree["notify"]["urls"] = ["not shown"] * len(settings.notify.urls)
    if settings is not None and settings.notify.command:
        tree["notify"]["command"] = "not shown"
    fixed = tuple(o.key_or_group for o in parsed if not o.is_sweep_override() and not o.is_delete())
    added = tuple(o.key_or_group for o in parsed if o.is_sweep_override() and o.is_add())
    return Draft(tree, choices, sweeps, added, fixed, absent, settings, problems, folder, folders, accepted)


def study_location(overrides: Iterable[str]) -> StudyLocation:
    """Where the studies lie that `overrides` speak of. Raises ConfigError as `compose` notes it.

    Composing takes a third of a second, which a look at a study should not: with no more than a home given, the
    three files that hold the answer are read as they are.
    """
    texts = list(overrides)
    homes = [text.removeprefix("home=") for text in texts]
    if not all(re.fullmatch(r"home=[\w./~+-]+", text) for text in texts):
        draft = compose(texts)
        if draft.problems or draft.settings is None:
            raise ConfigError(draft.problems)
        return draft.settings.location
    config = read_yaml(conf_dir() / "config.yaml")
    taken = {g: o for entry in config["defaults"] if isinstance(entry, dict) for g, o in entry.items()}
    storage, tracking = (read_yaml(conf_dir() / group / f"{taken[group]}.yaml") for group in ("storage", "tracking"))
    return StudyLocation(homes[-1] if homes else config["home"], storage["url"], tracking["uri"], tracking["artifacts"])


def _location_of(settings: Settings, problems: Problems) -> StudyLocation:
    """Where a composed study lies, with what the environment says of it."""
    storage, tracking = settings.storage, settings.tracking
    url, uri = storage.url, tracking.uri
    if storage.name == "postgres":
        url = credentials.storage_url(problems)
    elif credentials.is_postgres(url):
        url = credentials.postgres_url("storage.url", str(url), problems)
    if tracking.name == "server":
        uri = credentials.tracking_uri(problems)
    found = StudyLocation(settings.home, url, uri, tracking.artifacts, storage.name, tracking.name, storage.lease_s)
    if found.server is not None:
        credentials.login(problems)
    return found


def group_options(group: str, folders: tuple[Path, ...] = ()) -> list[str]:
    """The options of a config group: the names of its files, in the folders too that somebody has beside ours."""
    return sorted({p.stem for folder in (conf_dir(), *folders) for p in (folder / group).glob("*.yaml")})


def _left_at_home(parsed: Iterable[Any]) -> list[Path]:
    """The folder of winners below the home that `overrides` name; none where no study has left one."""
    homes = [str(o.value()) for o in parsed if o.key_or_group == "home" and not o.is_sweep_override()]
    left = StudyLocation(homes[-1] if homes else _written_home()).paths.winners
    return [left] if left.is_dir() else []


def _written_home() -> str:
    return str(re.search(r"^home: *(\S+)", (conf_dir() / "config.yaml").read_text(), re.M)[1])  # type: ignore[index]


def _groups(folders: tuple[Path, ...]) -> set[str]:
    return {p.name for folder in (conf_dir(), *folders) for p in folder.iterdir() if p.is_dir()}


def _override_key(text: str) -> str:
    return text.split("=", 1)[0].lstrip("+~")


def _parse(overrides: Iterable[str], problems: Problems) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parsed = []
    for text in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(text))
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.add(f"{text}: must be KEY=VALUE in Hydra's grammar: {reason}")
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
        for k, v in OmegaConf.to_container(config.hydra.runtime.choices).items()  # type: ignore[union-attr]
        if v is not None and "/" not in str(k)
    }
    with open_dict(config):
        del config["hydra"]
    return config, choices


def _compose_or_note(overrides: list[str], folders: tuple[Path, ...], problems: Problems) -> tuple[Any, dict[str, str]]:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return _compose(overrides, folders)
    except (HydraException, OmegaConfBaseException) as error:
        problems.add(f"conf: must compose: {' '.join(str(error).split())}")
        if overrides:
            return _compose_or_note([], folders, Problems())
        return {}, {}


def _plain_or_note(config: Any, problems: Problems) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not config:
        return {}
    try:
        for key in sorted(OmegaConf.missing_keys(config)):
            problems.add(f"{key}: must be given a value: {key}=...")
        return to_plain(config)
    except OmegaConfBaseException as error:
        problems.add(f"conf: must resolve: {' '.join(str(error).split())}")
        return to_plain(config, resolve=False)


def _wrong_option(override: Any, folders: tuple[Path, ...]) -> str | None:
    """What is wrong with a GROUP=OPTION, or None."""
    group, known = override.key_or_group, group_options(override.key_or_group, folders)
    if override.is_delete():
        return f"{group}: can't be taken out; choose one of {listed(known)}"
    option = override.value()
    if option not in known:
        hint = nearest(option, known) if isinstance(option, str) else ""
        return f"{group}: must be one of {listed(known)}, got {option!r}{hint}"
    if override.is_add() and group in (*COMPONENTS, *SECTIONS, "search"):
        return f"{group}: is chosen already; write {group}={option} without the +"
    return None


def _wrong_value(override: Any, config: Any) -> str | None:
    """What is wrong with a plain KEY=VALUE, or None."""
    from omegaconf import OmegaConf

    key, section = override.key_or_group, override.key_or_group.split(".")[0]
    if key == "search" or section == "search":
        return f"{key}: sweep the key itself, e.g. optimizer.lr='interval(0.001,0.1)', or take search=none"
    tree = to_plain(config, resolve=False) if config else {}
    if not tree:
        return None
    known = has_key(tree, key)
    if override.is_add() and section in COMPONENTS:
        return None  # a key more for somebody's own class
    if not known:
        return f"{key}: no such key" + nearest(key, [*keys_of(tree), *_INSTANTIATE_KEYS], and_add=section in COMPONENTS)
    if override.is_delete() or section not in COMPONENTS:
        return None  # our own sections are checked by their types
    value = override.value()
    written = OmegaConf.select(config, key) if not OmegaConf.is_missing(config, key) else None
    problem = type_problem(OmegaConf.to_container(written) if OmegaConf.is_config(written) else written, value)
    return f"{key}: {problem}" if problem else None

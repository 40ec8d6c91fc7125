"""From overrides to a draft: a composed configuration with everything that is wrong with it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.config import callbacks, credentials
from overnight.config.overrides import (
    TARGET_KEYS,
    check_list,
    is_missing_key,
    is_trainer_argument,
    key_of,
    option_override,
    option_problem,
    parse_overrides,
    value_problem,
)
from overnight.config.paths import StudyLocation, conf_dir
from overnight.config.problems import ConfigError, Problems
from overnight.config.search_path import Composition, ConfigSearchPath
from overnight.config.settings import COMPONENTS, SEARCHABLE, Settings, build_settings
from overnight.config.trainer import ACCEPTED, default_of, without_ours
from overnight.config.trees import has_key, look_up, read_yaml, to_plain
from overnight.config.user_tree import TreeComposition, TreeUse, UserTree
from overnight.config.values import escaped, to_text
from overnight.config.yaml_files import file_problem


@dataclass
class Draft:
    """A composed configuration on its way to a plan.

    Attributes:
        config: The whole composed tree, with interpolations resolved.
        choices: Config group -> option.
        sweeps: Key -> text in Hydra's sweep grammar, from the command line.
        added: The keys of sweeps that no config has (`+model.width=8,16`).
        fixed: The keys with a plain value on the command line.
        absent: Key -> value and problem, for the fixed keys that the baseline lacks. Another option of a searched
            config group may have the key.
        settings: None where a problem keeps them from being built.
        problems: Everything that is wrong.
        config_dir: The user's config folder.
        tree: What was read from the user's own tree; None where the configs are laid out as ours.
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
    _search_path: ConfigSearchPath | UserTree
    _overrides: list[str]
    tree: TreeUse | None = None
    _composed: TreeComposition | None = None

    def variant(self, options: Mapping[str, str]) -> dict[str, Any]:
        """The searchable part of the tree with other options of some config groups (group -> option), unresolved.

        Overrides of keys in these groups apply to the options that have the key.
        """
        kept, moved = self._split(options)
        if self._composed is not None and not options:
            return to_plain(self._composed.config, resolve=False)
        composed = self._search_path.compose([*kept, *map(option_override, options, options.values())])
        only = SEARCHABLE if self.tree is None else None
        tree = _without_ours(callbacks.normalised(to_plain(composed.config, resolve=False, only=only)))
        for override in parse_overrides(moved, Problems()):
            parent, _, last = override.key_or_group.rpartition(".")
            if has_key(tree, override.key_or_group):
                node = look_up(tree, parent)
                node.pop(last) if override.is_delete() else node.update({last: override.value()})
        return tree

    def search_of(self, model: str) -> dict[str, Any]:
        """The search space that belongs to an option of `model`."""
        kept, _ = self._split({"model": "", "search": ""})
        composed = self._search_path.compose([*kept, *(option_override(g, model) for g in ("model", "search"))])
        return escaped(to_plain(composed.config.search or {}))  # a draw is resolved once more, with its trial

    def options(self, group: str) -> list[str]:
        return self._search_path.options(group)

    def _split(self, groups: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """The overrides that do not depend on the options of these groups, and those of keys in the groups."""
        rest = [o for o in self._overrides if key_of(o) not in groups]
        moved = [o for o in rest if not o.startswith("+") and key_of(o).split(".")[0] in groups]
        return [o for o in rest if o not in moved], moved


def compose(overrides: Iterable[str], config_dir: str | Path | None = None) -> Draft:
    """Compose conf/config.yaml with `overrides` and check all of it. Creates nothing on disk.

    Args:
        overrides: In Hydra's grammar. Sweeps (`model.activation=relu,gelu`) are kept apart for the search space.
        config_dir: The user's config folder. Its options are added to those that come with overnight.
    """
    if not __debug__:  # the command restarts itself
        raise ConfigError(["python -O: must not be used, because Hydra needs its assertions; start Python without it"])
    problems = Problems()
    folder = check_config_dir(config_dir, problems)
    parsed = parse_overrides(credentials.reject_secrets(check_list(overrides), problems), problems)
    path = ConfigSearchPath((*([folder] if folder is not None else []), *winners_dir(parsed)))
    options, values, sweeps = sort_overrides(parsed, path, problems)
    _check_search_of_model(options, path, problems)
    base = path.compose_or_default(options, problems)
    if base.failed:  # the keys of the user's components are not known
        options, values, sweeps = [], [o for o in values if _section(o) not in COMPONENTS], {}
    accepted, absent = check_values(values, base.config, path, problems)
    _check_sweeps(sweeps, parsed, problems)
    accepted += _searched_defaults(accepted, sweeps, base.config)
    composed = path.compose_or_default([*options, *accepted], problems) if accepted else base
    tree = resolve(composed, problems)
    settings = settings_of(tree, composed.choices, problems)
    return Draft(
        tree,
        composed.choices,
        sweeps,
        added=tuple(o.key_or_group for o in parsed if o.is_sweep_override() and o.is_add()),
        fixed=tuple(o.key_or_group for o in parsed if not o.is_sweep_override() and not o.is_delete()),
        absent=absent,
        settings=settings,
        problems=problems,
        config_dir=folder,
        _search_path=path,
        # The reason why overrides do not compose is not reported again for every variant.
        _overrides=[] if composed.failed else [*options, *accepted],
    )


def study_location(overrides: Iterable[str]) -> StudyLocation:
    """Where the studies are located that `overrides` name.

    To compose takes a third of a second, too much for a command that only shows a study. Where the overrides name
    nothing but a home, the three files with the answer are read instead.

    Raises:
        ConfigError: Lists every mistake.
    """
    texts = check_list(overrides)
    homes = [text.removeprefix("home=") for text in texts]
    if not all(re.fullmatch(r"home=(?!null$)[\w./~+-]+", text) for text in texts):
        draft = compose(texts)
        draft.problems.raise_if_any()
        assert draft.settings is not None, "a draft without settings has problems"
        return draft.settings.location
    config = read_yaml(conf_dir() / "config.yaml")
    defaults = {g: o for entry in config["defaults"] if isinstance(entry, dict) for g, o in entry.items()}
    storage, tracking = (read_yaml(conf_dir() / group / f"{defaults[group]}.yaml") for group in ("storage", "tracking"))
    return StudyLocation(homes[-1] if homes else config["home"], storage["url"], tracking["uri"], tracking["artifacts"])


# Steps of compose ---------------------------------------------------------------------------------------------------


def check_config_dir(config_dir: str | Path | None, problems: Problems) -> Path | None:
    """The user's config folder; None where there is none, or where a problem is added."""
    if config_dir is None:
        return None
    if not isinstance(config_dir, str | Path):
        problems.add("--config-dir", "must be a folder", config_dir)
        return None
    folder = Path(os.path.expanduser(config_dir)).absolute()
    if not folder.is_dir():
        problems.add(f"--config-dir: must be a folder, and {folder} is none")
        return None
    for file in sorted(folder.rglob("*.yaml")):
        name = file.relative_to(folder)
        if (conf_dir() / name).exists():  # Hydra would read its own file without a warning
            problems.add(
                f"--config-dir: {name} has the name of a file that comes with overnight and would never be read; "
                f"give it another"
            )
    return folder


def winners_dir(parsed: Iterable[Any]) -> list[Path]:
    """The folder of winners' configs below the home that `overrides` name, if it exists."""
    homes = [str(o.value()) for o in parsed if o.key_or_group == "home" and not o.is_sweep_override()]
    folder = StudyLocation(homes[-1] if homes else _default_home()).paths.winners
    can_be_read = os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)  # else it is reported later
    return [folder] if can_be_read else []


def _default_home() -> str:
    return str(re.search(r"^home: *(\S+)", (conf_dir() / "config.yaml").read_text("utf-8"), re.M)[1])  # type: ignore[index]


def sort_overrides(
    parsed: Iterable[Any], path: ConfigSearchPath, problems: Problems
) -> tuple[list[str], list[Any], dict[str, str]]:
    """The overrides of config groups that are valid, those of values, and the sweeps, key -> text.

    What is given for a key of a refused option is left out: the default option may lack the key.
    """
    options: list[str] = []
    values: list[Any] = []
    sweeps: dict[str, str] = {}
    refused: set[str] = set()
    groups = path.groups()
    for override in parsed:
        text = override.input_line or ""
        if override.is_sweep_override():
            sweeps[override.key_or_group] = text.split("=", 1)[1].strip()
        elif override.key_or_group not in groups:
            values.append(override)
        elif problem := option_problem(override, path):
            problems.add(problem)
            refused.add(override.key_or_group)
        else:
            options.append(text)
    return (
        options,
        [o for o in values if _section(o) not in refused],
        {key: text for key, text in sweeps.items() if key.split(".")[0] not in refused},
    )


def _section(override: Any) -> str:
    return str(override.key_or_group).split(".")[0]


def _check_search_of_model(options: list[str], path: ConfigSearchPath, problems: Problems) -> None:
    """Check that the model has a search space; where it has none, go on with search=none."""
    chosen = {key_of(text): text for text in options}
    if "search" in chosen or "model" not in chosen:
        return
    model = parse_overrides([chosen["model"]], problems)[0].value()
    file = path.file("search", model)
    if file is None:
        problems.add(f"search: there is no search/{model}.yaml for model={model}; write one, or take search=none")
    elif problem := file_problem(file):
        problems.add(problem)
    else:
        return
    options.append("search=none")


def check_values(
    values: Iterable[Any], config: Any, path: ConfigSearchPath, problems: Problems
) -> tuple[list[str], dict[str, tuple[Any, str]]]:
    """The overrides of values that are valid, and those of keys that the configuration lacks (see Draft.absent)."""
    accepted: list[str] = []
    absent: dict[str, tuple[Any, str]] = {}
    for override in values:
        problem = value_problem(override, config, path)
        if problem is None:
            accepted.append(_as_addition(override, config))
            continue
        problems.add(problem)
        if is_missing_key(override, problem):
            absent[override.key_or_group] = (override.value(), problem)
    return accepted, absent


def _as_addition(override: Any, config: Any) -> str:
    """The text of an override. One of a key that the configuration lacks and may have gets the + of Hydra."""
    text, key = str(override.input_line), override.key_or_group
    is_new = (is_trainer_argument(key) or key in TARGET_KEYS) and not has_key(config or {}, key)
    return f"+{text.lstrip('+')}" if is_new and not override.is_delete() else text


def _searched_defaults(accepted: Iterable[str], sweeps: Mapping[str, str], config: Any) -> list[str]:
    """Overrides that give the baseline Lightning's default of each searched argument of the Trainer that it lacks.

    Without a limit of steps the baseline might not end, so that it gets the first number of the search.
    """
    given = {key_of(text) for text in accepted}
    space = to_plain(config, resolve=False).get("search") if config else None
    searched = [*sweeps, *(key for key in (space if isinstance(space, Mapping) else {}) if isinstance(key, str))]
    names = (key.partition(".")[2] for key in searched if key.startswith("trainer.") and key not in given)
    lacking = [n for n in names if n in ACCEPTED and not has_key(config or {}, f"trainer.{n}")]
    values = {name: default_of(name) for name in lacking}
    if "max_steps" in values and (first := re.search(r"\d+", sweeps.get("trainer.max_steps", ""))):
        values["max_steps"] = int(first[0])
    return [f"+trainer.{name}={to_text(value)}" for name, value in values.items()]


def _without_ours(tree: dict[str, Any]) -> dict[str, Any]:
    return {**tree, "trainer": without_ours(tree["trainer"])} if "trainer" in tree else tree


def _check_sweeps(sweeps: dict[str, str], parsed: Iterable[Any], problems: Problems) -> None:
    """Check the keys of sweeps, and drop those that can't be searched."""
    keys = [o.key_or_group for o in parsed]
    for key in list(sweeps):
        if keys.count(key) > 1:
            problems.add(f"{key}: must be given once where one of them is a sweep, got it several times")
        if key.split(".")[0] not in SEARCHABLE:
            problems.add(f"{key}: only keys of {', '.join(SEARCHABLE)} can be searched, got a sweep")
            del sweeps[key]


def resolve(composed: Composition, problems: Problems) -> dict[str, Any]:
    """The composed tree with interpolations resolved, or unresolved where that fails."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not composed.config:
        return {}
    try:
        for key in sorted(OmegaConf.missing_keys(composed.config)):
            problems.add(f"{key}: must be given a value: {key}=...")
        tree = callbacks.normalised(to_plain(composed.config))
        search = escaped(tree.get("search"))  # a draw is resolved once more, with its trial
        return {**_without_ours(tree), "search": search}
    except OmegaConfBaseException as error:
        problems.add(f"conf: must resolve: {' '.join(str(error).split())}")
        return to_plain(composed.config, resolve=False)


def settings_of(tree: dict[str, Any], choices: Mapping[str, str], problems: Problems) -> Settings | None:
    """Build the settings, find the study's location, and hide the addresses of notifications in the tree."""
    settings = build_settings(tree, choices, problems) if tree else None
    if settings is None:
        return None
    if settings.notify.urls:
        tree["notify"]["urls"] = ["not shown"] * len(settings.notify.urls)
    if settings.notify.command:
        tree["notify"]["command"] = "not shown"
    return dataclasses.replace(settings, found_location=_find_location(settings, problems))


def _find_location(settings: Settings, problems: Problems) -> StudyLocation:
    """The location of a composed study, with what the environment says about the stores."""
    storage, tracking = settings.storage, settings.tracking
    url, uri = storage.url, tracking.uri
    if storage.name == "postgres":
        url = credentials.storage_url(problems)
    elif credentials.is_postgres(url):
        url = credentials.psycopg_url("storage.url", str(url), problems)
    if tracking.name == "server":
        uri = credentials.tracking_uri(problems)
    location = StudyLocation(settings.home, url, uri, tracking.artifacts, storage.name, tracking.name, storage.lease_s)
    if location.server is not None:
        credentials.login(problems)
    return location

"""The folders that configs come from, and Hydra's composition of them."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.config import literal, trees, values
from overnight.config.paths import conf_dir
from overnight.config.problems import Problems
from overnight.config.yaml_files import file_problem, reading_problem


@dataclass(frozen=True)
class Composition:
    """A configuration as Hydra composes it.

    Attributes:
        config: OmegaConf's tree, with interpolations; an empty mapping where nothing composes.
        choices: Config group -> option.
        failed: Whether the overrides did not compose, so that this is the configuration without them.
    """

    config: Any
    choices: dict[str, str]
    failed: bool = False


# (search path, overrides, versions of the files) -> what they compose to.
_composed: dict[tuple[ConfigSearchPath, tuple[str, ...], tuple[Any, ...]], Composition] = {}
_MAX_COMPOSED = 64


def _versions(*folders: Path) -> tuple[Any, ...]:
    """What changes when a config file in one of the folders, or in one of their groups, changes."""
    files = (file for folder in folders for level in ("*.yaml", "*/*.yaml") for file in sorted(folder.glob(level)))
    return tuple((str(file), *_version(file)) for file in files)


def _version(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:  # a link to nowhere
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


@dataclass(frozen=True)
class ConfigSearchPath:
    """The configs that come with overnight, and those in `folders`, which Hydra searches after them."""

    folders: tuple[Path, ...] = ()

    def groups(self) -> set[str]:
        """The names of all config groups."""
        return {p.name for folder in (conf_dir(), *self.folders) for p in folder.iterdir() if p.is_dir()}

    def options(self, group: str) -> list[str]:
        """The options of a config group: the names of its files. None for what is no config group."""
        if group not in self.groups():  # it may be any text, also one that is no name for a folder
            return []
        return sorted({p.stem for folder in (conf_dir(), *self.folders) for p in (folder / group).glob("*.yaml")})

    def options_with(self, key: str) -> list[str]:
        """The options that have a key in their own file: of scheduler.min_epochs halving and hyperband."""
        group, _, name = key.partition(".")
        found = []
        for option in self.options(group):
            file = self.file(group, option)
            if file is None or file_problem(file) is not None:
                continue
            tree = trees.read_yaml(file)
            if name and isinstance(tree, dict) and trees.has_key(tree, name):
                found.append(option)
        return found

    def file(self, group: str, option: str) -> Path | None:
        """The file of an option, which Hydra reads; None for an option of no file."""
        files = (folder / group / f"{option}.yaml" for folder in (conf_dir(), *self.folders))
        return next((file for file in files if file.exists()), None)

    def compose(self, overrides: Iterable[str]) -> Composition:
        """Compose config.yaml with overrides. Raises what Hydra, OmegaConf and the YAML reader raise.

        Hydra takes a tenth of a second for it, and a plan asks for some compositions more than once.
        """
        key = (self, tuple(overrides), _versions(conf_dir(), *self.folders))
        if key not in _composed:
            while len(_composed) >= _MAX_COMPOSED:
                del _composed[next(iter(_composed))]
            _composed[key] = self._compose(key[1])
        found = _composed[key]
        return dataclasses.replace(found, config=copy.deepcopy(found.config), choices={**found.choices})

    def _compose(self, overrides: Iterable[str]) -> Composition:
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from omegaconf import OmegaConf, open_dict

        sources = (values.to_text(f"file://{folder}") for folder in self.folders)
        searchpath = [f"hydra.searchpath=[{','.join(sources)}]"] if self.folders else []
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about defaults lists without _self_
            config = hydra_compose("config", overrides=[*overrides, *searchpath], return_hydra_config=True)
        choices: Any = OmegaConf.to_container(config.hydra.runtime.choices)
        with open_dict(config):
            del config["hydra"]
            literal.escape_commands(config)
        return Composition(config, {str(k): v for k, v in choices.items() if v is not None and "/" not in str(k)})

    def compose_or_default(self, overrides: list[str], problems: Problems) -> Composition:
        """Compose with overrides; where that fails, add the reason to `problems` and compose without them."""
        try:
            return self.compose(overrides)
        except Exception as error:
            problems.add(describe_failure(error))
            default = self.compose_or_default([], Problems()) if overrides else Composition({}, {})
            return Composition(default.config, default.choices, failed=True)


def describe_failure(error: Exception) -> str:
    """Describe in one line why configs do not compose. Hydra, OmegaConf and the YAML reader share no base class."""
    if problem := reading_problem(error):
        return problem
    text = " ".join(str(error).split())
    is_for_users = text and type(error).__module__.startswith(("hydra", "omegaconf"))
    return f"conf: must compose: {text if is_for_users else f'{type(error).__name__}: {text}'}"


def import_folders(config_dir: Path | None) -> tuple[str, ...]:
    """The folders that a user's classes are imported from, besides the start folder."""
    return (str(config_dir.parent),) if config_dir is not None else ()


def folders_of(import_path: str | None) -> list[str]:
    """The folders that the setting import_path names."""
    return [os.path.abspath(os.path.expanduser(p)) for p in (import_path or "").split(os.pathsep) if p]


def add_to_import_path(folders: Iterable[str]) -> None:
    """Make the user's modules importable. Trial processes inherit the path."""
    sys.path.extend(folder for folder in folders if folder not in sys.path)


def users_import_path() -> tuple[str, ...]:
    """The folders on the import path that belong to neither Python nor its installed packages, nor to overnight."""
    installed = (sys.prefix, sys.base_prefix)
    folders = (os.path.abspath(p or ".") for p in sys.path if "site-packages" not in p and not p.startswith(installed))
    return tuple(dict.fromkeys(p for p in folders if os.path.isdir(p) and not os.path.isdir(f"{p}/overnight/config")))

"""A user's own Hydra tree, or the YAML of their LightningCLI: composed by Hydra, and translated into our nodes."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overnight.config import hydra_stand_ins, interpolations, lightning_cli, tree_nodes
from overnight.config.callbacks import normalised
from overnight.config.problems import ConfigError, Problems
from overnight.config.settings import COMPONENTS
from overnight.config.trainer import OURS, REFUSED, without_ours
from overnight.config.trees import to_plain

PROJECT_ROOT = "PROJECT_ROOT"  # the environment variable that rootutils sets
_ROOT_FILES = (".project-root", "pyproject.toml", "setup.py", "setup.cfg", ".git")
# Keys of the root that are nodes of a trial, besides those that `tree_nodes` finds.
_PARTS = ("optimizer", "schedule")
_HYDRA_NAME = "overnight"  # of the job, where a tree asks for it


@dataclass(frozen=True)
class TreeUse:
    """What a study takes from a user's own tree.

    Attributes:
        config_name: The primary config.
        label: Its folder and file, for messages.
        overrides: The command line, without sweeps.
        taken: The settings that the tree gives, one text each.
        unused: What has no effect here, one text each.
        rest: The keys that no trial depends on. They are kept with the study.
        folders: The folders that the user's modules are imported from.
    """

    config_name: str
    label: str
    overrides: tuple[str, ...]
    taken: tuple[str, ...]
    unused: tuple[str, ...]
    rest: dict[str, Any]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class TreeComposition:
    """A user's tree, translated.

    Attributes:
        config: OmegaConf's tree with our nodes and the user's keys that they depend on.
        choices: Our config group -> the user's option, or the name of the class where no group has it.
        rest: The user's other keys, resolved.
        raw: The whole tree, unresolved.
        sweeper: The node hydra.sweeper.
        unused: What has no effect here, one text each.
    """

    config: Any
    choices: dict[str, str]
    rest: dict[str, Any]
    raw: dict[str, Any]
    sweeper: dict[str, Any]
    unused: list[str]


@dataclass(frozen=True)
class TreeLook:
    """What a user's tree has, before values are given.

    Attributes:
        raw: The whole tree, unresolved, with the user's names.
        shown: The same with `_target_`s.
        own: The node `overnight`, which holds our settings.
        nodes: Our node -> the user's key.
    """

    raw: dict[str, Any]
    shown: dict[str, Any]
    own: dict[str, Any]
    nodes: dict[str, str]

    @property
    def moved(self) -> dict[str, Any]:
        """The tree with our names."""
        return tree_nodes.move(self.shown, self.nodes)


@dataclass(frozen=True)
class UserTree:
    """A primary config in a folder of the user.

    Attributes:
        named: Our node -> the user's key, where the user says so.
        output_dir: What ${hydra:runtime.output_dir} is.
        trainer: Settings of the Trainer that the tree does not give.
        renames: Our node -> the user's key, of all nodes that were found.
    """

    folder: Path
    name: str
    named: Mapping[str, str] = field(default_factory=dict)
    output_dir: str = "."
    trainer: Mapping[str, Any] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    is_cli: bool = False

    @property
    def label(self) -> str:
        return f"{self.folder.name}/{self.name}.yaml"

    def groups(self) -> set[str]:
        """The names of all config groups, nested ones with slashes."""
        return {str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_dir() and any(p.glob("*.yaml"))}

    def options(self, group: str) -> list[str]:
        folder = self.folder / self.renames.get(group, group)
        return sorted(p.stem for p in folder.glob("*.yaml")) if folder.is_dir() else []

    def file(self, group: str, option: str) -> Path | None:
        path = self.folder / self.renames.get(group, group) / f"{option}.yaml"
        return path if path.exists() else None

    def key_in_tree(self, key: str, raw: Mapping[str, Any]) -> str:
        """The user's key for one of ours. A key that the tree has stays as it is."""
        first, dot, rest = key.partition(".")
        if first in self.renames and first not in raw:
            key = f"{self.renames[first]}{dot}{rest}"
        return lightning_cli.key_in_cli(key, raw) if self.is_cli else key

    def key_of_trial(self, key: str) -> str:
        """Our key for one of the user's."""
        for node, named in self.renames.items():
            if key == named or key.startswith(f"{named}."):
                key = f"{node}{key.removeprefix(named)}"
                break
        return lightning_cli.key_of_converted(key) if self.is_cli else key

    def compose(self, overrides: Iterable[str]) -> TreeComposition:
        """Compose and translate. Raises what Hydra and OmegaConf raise, and ConfigError for a tree without model."""
        config, choices, hydra = self._composed([self._in_tree(o) for o in overrides])
        look = self._looked_at(config)
        raw, shown, nodes, problems = look.raw, look.shown, look.nodes, Problems()
        trainer = _node(shown, nodes.get("trainer"))
        kept, dropped = _split_trainer(trainer)
        tree, unused = self._settled(config, raw, nodes, [k for k in trainer if k not in (*kept, "callbacks")])
        if self.is_cli:
            tree = interpolations.rewrite(lightning_cli.convert(tree), lightning_cli.key_of_converted)
        renamed = dataclasses.replace(self, renames=nodes)
        tree = interpolations.rewrite(tree_nodes.move(tree, nodes), renamed.key_of_trial)
        tree = _with_callbacks(tree)
        tree["trainer"] = self._with_defaults({k: v for k, v in (tree.get("trainer") or {}).items() if k in kept})
        present = [n for n in (*tree_nodes.KEYS, *_PARTS) if tree.get(n)]
        used = [k for k, v in tree.items() if k not in present and any(interpolations.open_texts(v))]
        missing = sorted(_missing({n: tree[n] for n in present}))
        problems.extend(f"{key}: must be given a value: {key}=..." for key in missing)
        problems.raise_if_any()
        from omegaconf import OmegaConf

        return TreeComposition(
            OmegaConf.create({k: tree[k] for k in (*present, *used)}),
            {g: _choice(g, nodes.get(g, g), choices, tree) for g in COMPONENTS if g in present},
            {k: v for k, v in tree.items() if k not in present and k not in used},
            raw,
            hydra,
            [*(f"{nodes.get('trainer')}.{k}" for k in dropped), *unused, *(["logger"] if tree.get("logger") else [])],
        )

    def _with_defaults(self, trainer: Mapping[str, Any]) -> dict[str, Any]:
        """The Trainer's arguments with our defaults. A limit in steps or in time takes the place of our epochs."""
        has_limit = "max_epochs" not in trainer and ("max_steps" in trainer or "max_time" in trainer)
        return {**self.trainer, **({"max_epochs": -1} if has_limit else {}), **trainer}

    def look(self, overrides: Iterable[str]) -> TreeLook:
        """Compose, and find the nodes. Raises what `compose` raises."""
        return self._looked_at(self._composed(list(overrides))[0])

    def _looked_at(self, config: Any) -> TreeLook:
        raw = to_plain(config, resolve=False)
        raw.pop("hydra", None)
        own = raw.pop("overnight", None) or {}
        problems = Problems()
        shown = lightning_cli.convert(raw) if self.is_cli else _shallow(config, raw)
        named = {**(own.pop("keys", None) or {}), **self.named}
        nodes = tree_nodes.find_nodes(shown, named, self.label, problems)
        problems.raise_if_any()
        if self.is_cli and raw.get("lr_scheduler"):
            nodes["schedule"] = "lr_scheduler"
        return TreeLook(raw, shown, own, nodes)

    def _in_tree(self, override: str) -> str:
        """An override of one of our config groups with the user's name of the group."""
        key, _, value = override.partition("=")
        return f"{self.renames[key]}={value}" if key in self.renames and "." not in self.renames[key] else override

    def _composed(self, overrides: list[str]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """The user's tree with its node `hydra`, the chosen options, and hydra.sweeper."""
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf, open_dict

        hydra_stand_ins.register()
        with initialize_config_dir(version_base="1.3", config_dir=str(self.folder)), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about defaults lists without _self_
            config = hydra_compose(self.name, overrides=overrides, return_hydra_config=True)
        OmegaConf.set_readonly(config.hydra, False)
        with open_dict(config):
            config.hydra.runtime.output_dir = self.output_dir
            config.hydra.job.update({"name": self.name, "num": 0, "id": _HYDRA_NAME})
        HydraConfig.instance().set_config(config)
        choices: Any = OmegaConf.to_container(config.hydra.runtime.choices)
        sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        return config, {str(k): v for k, v in choices.items() if v is not None}, sweeper or {}

    def _settled(
        self, config: Any, raw: Mapping[str, Any], nodes: Mapping[str, str], dropped: Iterable[str]
    ) -> tuple[dict[str, Any], list[str]]:
        """The tree with settled interpolations, and the keys of it that can't be resolved and that no node needs."""
        from omegaconf.errors import OmegaConfBaseException

        live = {key.split(".")[0] for key in (*nodes.values(), *_PARTS)}
        dead = [f"{nodes['trainer']}.{key}" for key in dropped] if "trainer" in nodes else []
        tree: dict[str, Any] = {}
        unused = []
        for key, node in raw.items():
            part = _without(node, [d.removeprefix(f"{key}.") for d in dead if d.startswith(f"{key}.")])
            try:
                tree |= interpolations.settle(config, {key: part}, raw, live, dead)
            except OmegaConfBaseException as error:
                if key in live:
                    raise
                unused.append(f"{key} ({' '.join(str(error).split())})")
        return tree, unused


def project_root(folder: Path) -> Path:
    """The root of the project that a config folder belongs to: the folder that rootutils finds, or the parent."""
    return next((p for p in folder.parents if any((p / name).exists() for name in _ROOT_FILES)), folder.parent)


def set_project_root(folder: Path) -> None:
    """Set the variable that rootutils sets, for ${oc.env:PROJECT_ROOT} and for trials. A given one stays."""
    os.environ.setdefault(PROJECT_ROOT, str(project_root(folder)))


def import_folders(folder: Path) -> list[Path]:
    """The folders that the modules of a project are imported from."""
    root = project_root(folder)
    source = root / "src"
    is_layout = source.is_dir() and not (source / "__init__.py").exists()
    return list(dict.fromkeys([folder.parent, root, *([source] if is_layout else []), folder]))


def find_tree(folder: Path, name: str) -> UserTree:
    """The tree that --config-dir and --config-name name. Raises ConfigError if there is none."""
    stem = re.sub(r"\.ya?ml$", "", name)
    file = folder / f"{stem}.yaml"
    if not file.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise ConfigError([f"--config-name: must be a config in {folder}, got {name!r}; there are {known}"])
    from omegaconf import OmegaConf

    try:
        raw: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception:  # Hydra says what is wrong with the file
        raw = {}
    return UserTree(folder, stem, is_cli=isinstance(raw, Mapping) and lightning_cli.is_cli(raw))


def _split_trainer(node: Mapping[str, Any]) -> tuple[set[str], list[str]]:
    """The arguments of a user's Trainer that are used, and those that a study sets itself.

    An argument that is null is not used either: it is the Trainer's default.
    """
    given = {key: value for key, value in without_ours(node).items() if value is not None and key != "callbacks"}
    is_own = not str(given.pop("_target_", "Trainer")).endswith("Trainer")
    dropped = [key for key in given if key in OURS or key in REFUSED]
    return set(given) - set(dropped), [*dropped, *(["_target_"] if is_own else [])]


def _shallow(config: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The tree, with a node in place of each key that interpolates a whole node."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    shown = dict(raw)
    for key, node in raw.items():
        if isinstance(node, str) and "${" in node:
            try:
                value = config[key]
            except OmegaConfBaseException:
                continue
            shown[key] = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value
    return shown


def _node(tree: Mapping[str, Any], key: str | None) -> Mapping[str, Any]:
    node: Any = tree
    for part in key.split(".") if key is not None else ():
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if key is not None and isinstance(node, Mapping) else {}


def _without(node: Any, keys: list[str]) -> Any:
    return {k: v for k, v in node.items() if k not in keys} if isinstance(node, Mapping) and keys else node


def _with_callbacks(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with all callbacks, those of the trainer too, in one node. Entries without a class are none."""
    given = (tree.get("trainer") or {}).get("callbacks")
    of_trainer = normalised({"callbacks": given if isinstance(given, list) else [given]}) if given else {}
    tree = normalised(tree)
    entries = {**(tree.get("callbacks") or {}), **of_trainer.get("callbacks", {})}
    return {**tree, "callbacks": {k: v for k, v in entries.items() if isinstance(v, Mapping) and "_target_" in v}}


def _missing(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _missing(child, f"{path}.{key}" if path else str(key))
    elif node == "???":
        yield path


def _choice(group: str, key: str, choices: Mapping[str, Any], tree: Mapping[str, Any]) -> str:
    """The option of a config group; where no group has the node, the class, or our name of the group."""
    return str(choices[key]) if key in choices else str(tree[group].get("_target_", group)).rpartition(".")[2]

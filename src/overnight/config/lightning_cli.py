"""Reads the YAML of LightningCLI: `class_path` and `init_args` become `_target_` and its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where LightningCLI looks for a class_path without a module, by the top-level key.
_SHORT_NAMES = {
    "optimizer": "torch.optim",
    "lr_scheduler": "torch.optim.lr_scheduler",
    "callbacks": "lightning.pytorch.callbacks",
}
_SUBCOMMANDS = ("fit", "validate", "test", "predict")


def is_cli(tree: Mapping[str, Any]) -> bool:
    """Whether a tree is written for LightningCLI."""
    return "seed_everything" in tree or any(
        isinstance(node, Mapping) and "class_path" in node for node in (tree, *tree.values(), *_trainer_callbacks(tree))
    )


def convert(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with `_target_`s, and with `seed` in place of `seed_everything`.

    `optimizer` and `lr_scheduler` become partial objects, because the parameters of the model are not known yet.
    """
    fit = tree.get("fit")
    source = {**{k: v for k, v in tree.items() if k not in _SUBCOMMANDS}, **(fit if isinstance(fit, Mapping) else {})}
    result = {key: _build(node, _SHORT_NAMES.get(key)) for key, node in source.items()}
    trainer = source.get("trainer")
    if isinstance(trainer, Mapping) and trainer.get("callbacks") is not None:
        callbacks = _build(trainer["callbacks"], _SHORT_NAMES["callbacks"])
        result["trainer"] = {**result["trainer"], "callbacks": callbacks}
    if "seed_everything" in result:
        seed = result.pop("seed_everything")
        result["seed"] = None if isinstance(seed, bool) else seed
    return result


def key_in_cli(key: str, tree: Mapping[str, Any]) -> str:
    """The key of LightningCLI's YAML for a key of the converted tree: model.lr is model.init_args.lr."""
    node: Any = tree
    parts: list[str] = []
    for part in key.split("."):
        if isinstance(node, Mapping) and "class_path" in node and part not in ("class_path", "init_args"):
            parts.append("init_args")
            node = node.get("init_args")
        parts.append(part)
        node = node.get(part) if isinstance(node, Mapping) else None
    return ".".join(parts)


def key_of_converted(key: str) -> str:
    """The key of the converted tree for a key of LightningCLI's YAML."""
    parts = [p for p in key.split(".") if p != "init_args"]
    return ".".join("_target_" if p == "class_path" else p for p in parts)


def _build(node: Any, package: str | None = None) -> Any:
    if isinstance(node, list):
        return [_build(child, package) for child in node]
    if not isinstance(node, Mapping):
        return node
    if "class_path" not in node:
        return {key: _build(child) for key, child in node.items()}
    target = node["class_path"]
    if package is not None and isinstance(target, str) and "." not in target:
        target = f"lightning.pytorch.cli.{target}" if target == "ReduceLROnPlateau" else f"{package}.{target}"
    others = {key: child for key, child in node.items() if key not in ("class_path", "init_args", "dict_kwargs")}
    arguments = {**others, **(node.get("init_args") or {}), **(node.get("dict_kwargs") or {})}
    return {"_target_": target, **{key: _build(child) for key, child in arguments.items()}}


def _trainer_callbacks(tree: Mapping[str, Any]) -> list[Any]:
    trainer = tree.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
    return callbacks if isinstance(callbacks, list) else [callbacks]

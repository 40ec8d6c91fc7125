"""The files that a study's run keeps of its configuration and its environment."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from typing import Any

from overnight.config import credentials
from overnight.config.settings import to_json
from overnight.config.trees import to_yaml
from overnight.config.values import escaped
from overnight.search.plan import Plan
from overnight.study.lost import PLAN_FILE
from overnight.tracking.reconcile import STUDY_FILES

_PACKAGES = (
    "overnight",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "optuna",
    "mlflow",
    "hydra-core",
    "numpy",
    "scikit-learn",
)


def study_files(plan: Plan) -> dict[str, str]:
    """Return name -> text: the baseline configuration, the search space, the environment of this process, the plan."""
    rest = plan.start.tree.rest if plan.start.tree is not None else {}
    baseline = {**rest, **plan.config({}), **to_json(plan.settings)}
    texts = (to_yaml(escaped(baseline)), to_yaml(plan.space.describe()), json.dumps(_environment(), indent=2))
    return {**dict(zip(STUDY_FILES, texts, strict=True)), PLAN_FILE: json.dumps(plan.to_json())}


def _environment() -> dict[str, Any]:
    return {
        "packages": {package: _version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "host": platform.node(), "cores": os.cpu_count()},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": [_without_secrets(argument) for argument in sys.argv],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _without_secrets(argument: str) -> str:
    """Hide the command of a notify hook and the credentials of an address."""
    argument = re.sub(r"^([+~]*notify\b[^=]*=).*", r"\1(not kept)", argument, flags=re.DOTALL)
    return credentials.mask_credentials(argument)


def _git(*arguments: str) -> str | None:
    """Return git's output for the current folder; None if there is no git or no repository."""
    try:
        process = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()

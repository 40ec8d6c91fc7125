"""Where a study comes from: the files that its run keeps of its configuration and of the machine that it ran on."""

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
from overnight.config.sections import to_json
from overnight.config.trees import to_yaml
from overnight.search.plan import Plan
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
    """What the parent run keeps: the configuration as written, the search space, and where it all ran."""
    written = {**plan.config({}), **to_json(plan.settings)}
    texts = (
        to_yaml(written),
        to_yaml(plan.space.describe()),
        json.dumps(_environment(), indent=2),
    )
    return dict(zip(STUDY_FILES, texts, strict=True))


def _environment() -> dict[str, Any]:
    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "packages": {p: version(p) for p in _PACKAGES},
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "host": platform.node(), "cores": os.cpu_count()},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        # A hook's command may hold what is nobody's business, and so may an address.
        "command": [_discreet(word) for word in sys.argv],
    }


def _discreet(word: str) -> str:
    word = re.sub(r"^([+~]*notify\b[^=]*=).*", r"\1(not kept)", word, flags=re.DOTALL)
    return credentials.mask_credentials(word)


def _git(*arguments: str) -> str | None:
    """What git says of the folder we were started in; None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

"""Small sets that scikit-learn carries, read from its files: importing it takes longer than many a trial."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np


def table(name: str, delimiter: str) -> np.ndarray:
    """The numbers of one of scikit-learn's gzipped tables, (rows, columns) or (rows,).

    Raises ModuleNotFoundError where scikit-learn is not installed, FileNotFoundError where it carries no such table.
    """
    found = importlib.util.find_spec("sklearn")  # it is looked for, and not imported
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("data: scikit-learn carries this set, and is not installed: pip install scikit-learn")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.csv.gz"
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, delimiter=delimiter)

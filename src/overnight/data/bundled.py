"""Small data sets that come with scikit-learn, read from its files: its import takes longer than many a trial."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np


def read_table(name: str, delimiter: str) -> np.ndarray:
    """Read one of scikit-learn's compressed tables as (rows, columns) or (rows,).

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
        FileNotFoundError: if it has no such table.
    """
    package = importlib.util.find_spec("sklearn")  # finds it without importing it
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            "data: this data set comes with scikit-learn, which is not installed: pip install scikit-learn"
        )
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return np.loadtxt(file, delimiter=delimiter)

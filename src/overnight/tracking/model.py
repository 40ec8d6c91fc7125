"""A network that was exported, laid out as a model of MLflow's."""

from __future__ import annotations

import json
import platform
import shutil
import warnings
from pathlib import Path
from typing import Any

from overnight.protocol import Exported


def write_model(folder: Path, made: Exported, logged: Any, run_id: str) -> None:
    """A model as MLflow's flavour for torch lays one out, written without torch, which this side never imports.

    The network is torch.export's pt2 file, of which MLflow loads only those that hold no pickle.
    """
    import mlflow
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of MLflow's, at MLflow's own type hints
        from mlflow.models import Model, ModelSignature
        from mlflow.models.utils import _save_example
        from mlflow.pyfunc import add_to_model
        from mlflow.types import Schema, TensorSpec

    assert made.file is not None, "there is something to register"
    pair = [np.array(v, dtype=d) for v, d in zip((made.example, made.answers), made.dtypes, strict=True)]
    rows, answers = (Schema([TensorSpec(a.dtype, (-1, *a.shape[1:]))]) for a in pair)
    model = Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
    model.signature = ModelSignature(rows, answers)
    model.metadata = {"rows": made.takes, "answers": made.says}
    _save_example(model, pair[0], str(folder))
    (folder / "data").mkdir()
    shutil.copy(made.file, folder / "data" / "model.pt2")
    model.add_flavor("pytorch", model_data="data", pytorch_version=made.torch, code=None)
    add_to_model(
        model, loader_module="mlflow.pytorch", data="data", python_env="python_env.yaml", model_config={"device": None}
    )
    model.save(str(folder / "MLmodel"))
    requirements = [
        f"mlflow=={mlflow.__version__}",
        f"torch=={made.torch.partition('+')[0]}",
        f"numpy=={np.__version__}",
    ]
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    wants = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(json.dumps(wants))  # which is YAML too

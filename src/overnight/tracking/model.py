"""Writes an exported network as an MLflow model."""

from __future__ import annotations

import json
import platform
import shutil
import warnings
from pathlib import Path
from typing import Any

from overnight.protocol import Exported


def write_model(folder: Path, exported: Exported, logged: Any, run_id: str) -> None:
    """Write a model of MLflow's PyTorch flavour, without importing torch.

    The network is a pt2 file of torch.export. MLflow loads such a file only if it contains no pickle.

    Args:
        folder: Where to write the model's files.
        logged: MLflow's LoggedModel.
    """
    import mlflow
    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of MLflow about its own type hints
        from mlflow.models import Model, ModelSignature
        from mlflow.models.utils import _save_example
        from mlflow.pyfunc import add_to_model
        from mlflow.types import Schema, TensorSpec

    assert exported.file is not None, "only an export that succeeded is registered"
    input_dtype, output_dtype = exported.dtypes
    inputs, outputs = np.array(exported.example_inputs, input_dtype), np.array(exported.example_outputs, output_dtype)
    input_schema, output_schema = (Schema([TensorSpec(a.dtype, (-1, *a.shape[1:]))]) for a in (inputs, outputs))
    # Without the location of the files, which changes when a home is moved. MLflow finds them by the model's id.
    model = Model(logged.name, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
    model.signature = ModelSignature(input_schema, output_schema)
    model.metadata = {"rows": exported.input_description, "answers": exported.output_description}
    _save_example(model, inputs, str(folder))
    (folder / "data").mkdir()
    shutil.copy(exported.file, folder / "data" / "model.pt2")
    model.add_flavor("pytorch", model_data="data", pytorch_version=exported.torch, code=None)
    add_to_model(
        model, loader_module="mlflow.pytorch", data="data", python_env="python_env.yaml", model_config={"device": None}
    )
    model.save(str(folder / "MLmodel"))
    requirements = [
        f"mlflow=={mlflow.__version__}",
        f"torch=={exported.torch.partition('+')[0]}",
        f"numpy=={np.__version__}",
    ]
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", "utf-8")
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(json.dumps(environment))  # JSON is YAML

"""Export a trained network to a file that needs none of its classes: the pt2 format of torch.export, without pickle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from overnight.data.split import PIXEL_MAX, SplitData
from overnight.models.supervised import Supervised
from overnight.protocol import Exported, ExportSpec
from overnight.system.errors import one_line
from overnight.trial.trained_model import ServedModel, TrainedModel, load_trained_model

FILE = "model.pt2"
_OUTPUT_DESCRIPTIONS = {
    "binary": "the probability of yes",
    "multiclass": "the probability of each class",
    "regression": "the number, in the units of the targets",
}


def export(spec: ExportSpec) -> Exported:
    """Write the network of spec.weights to FILE in spec.folder, or return why that is impossible."""
    trained = load_trained_model(spec.weights, spec.cache, spec.locks)
    try:
        rows = _example_rows(trained)
    except Exception as error:
        return Exported(None, error=f"its data gives no rows for an example: {one_line(error)}")
    served = ServedModel(trained).eval()
    path = spec.folder / FILE
    try:
        with torch.no_grad():
            outputs = served(rows)
            if not isinstance(outputs, Tensor):
                return Exported(None, error=f"its forward returns {type(outputs).__name__}, not one tensor")
            program = torch.export.export(served, (rows,), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
            torch.export.save(program, path)
            loaded = torch.export.load(path).module()
            three = torch.cat([rows, rows])[:3]  # the exported graph may be specialised to the example's two rows
            if not torch.allclose(loaded(three), served(three), rtol=1e-4, atol=1e-5, equal_nan=True):
                return Exported(None, error="the outputs of the exported network differ from those of the trained one")
    except Exception as error:  # torch raises many kinds, and a user's forward any
        path.unlink(missing_ok=True)
        return Exported(None, error=f"torch.export can't write it: {one_line(error)}")
    ours = isinstance(trained.model, Supervised)
    return Exported(
        path,
        rows.tolist(),
        outputs.tolist(),
        (_dtype(rows), _dtype(outputs)),
        "raw rows, prepared inside as in training" if trained.prepare else "rows as the data module hands them over",
        _OUTPUT_DESCRIPTIONS.get(str(trained.task), "") if ours else "what the network's forward returns",
        str(torch.__version__),
    )


def _example_rows(trained: TrainedModel) -> Tensor:
    """Return two rows that the network takes, (2, ...)."""
    data: Any = trained.data
    data.prepare_data()
    data.setup("fit")
    if isinstance(data, SplitData):
        return data.raw_rows(2)
    if trained.prepare is not None:  # its batches are prepared, and raw rows are needed
        return torch.rand(2, *data.input_shape) * float(getattr(data, "pixel_max", PIXEL_MAX))
    loader = data.val_dataloader()
    batch = next(iter(loader[0] if isinstance(loader, list | tuple) else loader))
    rows = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(rows, Tensor) or len(rows) < 2:
        raise ValueError("a validation batch must begin with a tensor of two rows or more")
    return rows[:2].clone()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

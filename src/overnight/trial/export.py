"""A trained network as a file that needs none of the classes it was written in: torch.export's pt2, no pickle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from overnight.data.split import SplitData
from overnight.models.supervised import Supervised
from overnight.protocol import Exported, ExportSpec
from overnight.system.errors import one_line
from overnight.trial.trained_model import Served, TrainedModel, take

FILE = "model.pt2"
_SAYS = {
    "binary": "the probability of yes",
    "multiclass": "the probability of each class",
    "regression": "the number, in the units of the targets",
}


def export(spec: ExportSpec) -> Exported:
    """Write the network of spec.weights to FILE in spec.folder, or say why it can't be written so."""
    taken = take(spec.weights, spec.cache)
    try:
        rows = _example(taken)
    except Exception as error:
        return Exported(None, why=f"its data gives no rows for an example: {one_line(error)}")
    served = Served(taken).eval()
    path = spec.folder / FILE
    try:
        with torch.no_grad():
            answers = served(rows)
            if not isinstance(answers, Tensor):
                return Exported(None, why=f"its forward returns {type(answers).__name__}, not one tensor")
            program = torch.export.export(served, (rows,), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
            torch.export.save(program, path)
            again = torch.export.load(path).module()
            three = torch.cat([rows, rows])[:3]  # a graph may have taken the example's batch for the only one
            if not torch.allclose(again(three), served(three), rtol=1e-4, atol=1e-5, equal_nan=True):
                return Exported(None, why="the exported network answers otherwise than the trained one")
    except Exception as error:  # torch raises many kinds, and somebody's forward any
        path.unlink(missing_ok=True)
        return Exported(None, why=f"torch.export can't write it: {one_line(error)}")
    ours = isinstance(taken.model, Supervised)
    return Exported(
        path,
        rows.tolist(),
        answers.tolist(),
        (_dtype(rows), _dtype(answers)),
        "raw rows, prepared inside as in training" if taken.prepared else "rows as the data module hands them over",
        _SAYS.get(str(taken.task), "") if ours else "what the network's forward returns",
        str(torch.__version__),
    )


def _example(taken: TrainedModel) -> Tensor:
    """Two rows that the network may be asked about."""
    data: Any = taken.data
    data.prepare_data()
    data.setup("fit")
    if isinstance(data, SplitData):
        return data.raw(2)
    if taken.prepared is not None:  # a batch is prepared already
        return torch.rand(2, *data.input_shape) * float(getattr(data, "brightest", 255.0))
    loader = data.val_dataloader()
    batch = next(iter(loader[0] if isinstance(loader, list | tuple) else loader))
    rows = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(rows, Tensor) or len(rows) < 2:
        raise ValueError("a validation batch must begin with a tensor of two rows or more")
    return rows[:2].clone()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

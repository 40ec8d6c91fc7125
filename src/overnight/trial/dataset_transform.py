"""How a user's data prepares images, read from the torchvision dataset that it validates on.

A dataset of torchvision keeps raw images, and a `transform` from an image to the network's input. A data module with
such a dataset needs no method of its own for predictions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from overnight.trial import lightning_packages


def find(data: Any) -> tuple[tuple[int, int, int], Callable[[Tensor], Tensor]] | None:
    """The shape (C, H, W) of raw images, and a function from images (B, C, H, W) of 0 to 255 to the network's inputs.

    Args:
        data: a data module. Its data is prepared and set up.

    Returns:
        None if the data module validates on no dataset of images with a transform.
    """
    if not lightning_packages.overrides(type(data), "val_dataloader"):
        return None
    data.prepare_data()
    data.setup("fit")
    dataset = _innermost(data.val_dataloader())
    transform = getattr(dataset, "transform", None)
    if not callable(transform):
        return None
    raw = copy.copy(dataset)  # of the object alone, not of its images
    raw.transform = raw.transforms = None
    image = raw[0][0]
    if not hasattr(image, "getbands"):  # of PIL
        return None
    width, height = image.size

    def prepare(rows: Tensor) -> Tensor:
        from torchvision.transforms.functional import to_pil_image

        images = (to_pil_image(row.round().to(torch.uint8)).convert(image.mode) for row in rows)
        return torch.stack([transform(image) for image in images])

    return (len(image.getbands()), height, width), prepare


def _innermost(loader: Any) -> Any:
    """The dataset of a loader, or of the first of several, below the subsets and concatenations around it."""
    loader = loader[0] if isinstance(loader, list | tuple) else loader
    dataset = getattr(loader, "dataset", None)
    while not callable(getattr(dataset, "transform", None)):
        inner = getattr(dataset, "dataset", None) or next(iter(getattr(dataset, "datasets", None) or ()), None)
        if inner is None:
            break
        dataset = inner
    return dataset

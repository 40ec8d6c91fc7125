"""Picture sets that torchvision knows: MNIST and its kin, CIFAR-10, and a fake one."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import socket
import struct
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets

from overnight.data import cache
from overnight.data.preparing import NORMALISATIONS, Normalise
from overnight.data.split import SplitData
from overnight.data.tensors import Part

# Seconds without a word from the other side after which a download is given up.
_PATIENCE_S = 30.0
T = TypeVar("T")


class Pictures(SplitData):
    """Pictures as bytes, 0 to 255, of ten classes; the official test set is test, validation is drawn from the rest.

    Nothing is copied where it can be mapped: trials side by side share the pictures' memory, and turn them into numbers
    a batch at a time.

    Args:
        root: the folder in which torchvision looks for the set, and where it is put if it can be fetched.
        cache_dir: where decoded pictures, and what was counted of them, are kept for other trials; None for nowhere.
        others: see SplitData.

    Raises:
        FileNotFoundError: from prepare_data, naming the files and where to put them, where they can't be fetched.
        ValueError: from setup, naming the file, where it is cut.
    """

    task = "multiclass"
    classes = 10
    validation = 5_000  # rows of the official training set

    def __init__(self, root: str | Path = "./data", cache_dir: str | Path | None = None, **others: Any) -> None:
        super().__init__(**others)
        self._root = Path(root).expanduser().absolute()
        self._cache_dir = Path(cache_dir) if cache_dir is not None else None

    @abstractmethod
    def read(self) -> dict[str, Tensor]:
        """images, labels, test_images and test_labels: (N, C, H, W) bytes and (N,) whole numbers."""

    def split(self, seed: int) -> dict[str, Part]:
        found = self.read()
        images, labels = found["images"], found["labels"].long()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        test = found["test_images"]
        return {
            "validation": Part(images, labels, order[: self.validation]),
            "train": Part(images, labels, order[self.validation :]),
            "test": Part(test, found["test_labels"].long(), torch.arange(len(test))),
        }


class MNIST(Pictures):
    """60,000 and 10,000 handwritten digits of 28x28 pixels (LeCun et al. 1998), mapped from the very files."""

    input_shape = (1, 28, 28)
    dataset = datasets.MNIST

    def prepare_data(self) -> None:
        missing = [file for file in self._files if not (self._folder / file).exists()]
        if missing:
            fetched(lambda: self.dataset(self._root, download=True), self._folder, missing)

    def read(self) -> dict[str, Tensor]:
        images, labels, test_images, test_labels = (_mapped(self._folder / file) for file in self._files)
        return {
            "images": images.unsqueeze(1),
            "labels": labels,
            "test_images": test_images.unsqueeze(1),
            "test_labels": test_labels,
        }

    def normalisation(self, part: Part, how: str) -> Normalise | None:
        """As everybody's, but counted once for all trials: it takes as long as a twentieth of a short one."""
        as_it_is = (
            type(self).read is MNIST.read and type(self).split is Pictures.split
        )  # else the files do not say it all
        if how not in NORMALISATIONS or how == "none" or not as_it_is:
            return super().normalisation(part, how)
        # All that the rows depend on. A file that changes has another time, or another size.
        found = [os.stat(self._folder / file) for file in self._files]
        of = [
            str(self._folder),
            [(f.st_size, f.st_mtime_ns) for f in found],
            self.validation,
            self._split_seed,
            len(part),
        ]
        key = hashlib.sha256(repr(of).encode()).hexdigest()[:16]

        def counted() -> dict[str, np.ndarray]:
            fresh = super(MNIST, self).normalisation(part, how)
            return {name: tensor.numpy() for name, tensor in vars(fresh).items()}

        with contextlib.suppress(OSError):  # a disk that is full, or may not be written: it is counted all the same
            return Normalise(**cache.load(self._cache_dir, f"{self.dataset.__name__.lower()}-{how}-{key}", counted))
        return super().normalisation(part, how)

    @property
    def _folder(self) -> Path:
        return self._root / self.dataset.__name__ / "raw"

    @property
    def _files(self) -> list[str]:
        return [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


class FashionMNIST(MNIST):
    """60,000 and 10,000 pictures of clothes (Xiao et al. 2017), of MNIST's shape."""

    dataset = datasets.FashionMNIST


class KMNIST(MNIST):
    """60,000 and 10,000 characters of cursive Japanese (Clanuwat et al. 2018), of MNIST's shape."""

    dataset = datasets.KMNIST


class CIFAR10(Pictures):
    """50,000 and 10,000 coloured photographs of 32x32 pixels (Krizhevsky 2009), decoded once into the cache."""

    input_shape = (3, 32, 32)

    def prepare_data(self) -> None:
        self.read()

    def read(self) -> dict[str, Tensor]:
        return cache.load(self._cache_dir, "cifar10", self._decoded)

    def _decoded(self) -> dict[str, np.ndarray]:
        folder = self._root / datasets.CIFAR10.base_folder
        wanted = [name for name, _ in (*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list)]
        known, test = fetched(
            lambda: [datasets.CIFAR10(self._root, train=train, download=True) for train in (True, False)],
            folder,
            [*wanted, datasets.CIFAR10.meta["filename"]],
        )
        return {
            "images": np.ascontiguousarray(known.data.transpose(0, 3, 1, 2)),
            "labels": np.array(known.targets),
            "test_images": np.ascontiguousarray(test.data.transpose(0, 3, 1, 2)),
            "test_labels": np.array(test.targets),
        }


class Fake(Pictures):
    """1,200 pictures of noise with labels by chance, decoded once into the cache: for trying out a machine."""

    input_shape = (3, 32, 32)
    validation = 200

    def prepare_data(self) -> None:
        self.read()

    def read(self) -> dict[str, Tensor]:
        return cache.load(self._cache_dir, "fake", self._decoded)

    def _decoded(self) -> dict[str, np.ndarray]:
        drawn = list(datasets.FakeData(1200, self.input_shape, self.classes))
        images = np.stack([np.asarray(image).transpose(2, 0, 1) for image, _ in drawn])
        labels = np.array([int(label) for _, label in drawn])
        return {
            "images": images[:1000],
            "labels": labels[:1000],
            "test_images": images[1000:],
            "test_labels": labels[1000:],
        }


def fetched(fetch: Callable[[], T], folder: Path, wanted: list[str]) -> T:
    """What `fetch` returns, one process at a time; it shows its progress and checks sums.

    Raises FileNotFoundError, saying which files to put into `folder`, where it fails.
    """
    root = folder.parents[0] if folder.name != "raw" else folder.parents[1]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".overnight.lock"), _patience():
            return fetch()
    except (OSError, RuntimeError) as error:  # torchvision's own, and a network's
        missing = [name for name in wanted if not (folder / name).exists()] or wanted
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"data.root: {folder} must hold {', '.join(missing)}; fetching them failed ({reason}). Put them there, or "
            f"let data.root or OVERNIGHT_DATA name the folder in which {folder.relative_to(root)} lies"
        ) from error


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """A network that says nothing is given up on: torchvision itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _mapped(path: Path) -> Tensor:
    """An idx file of bytes (LeCun's format: two zeros, 8 for bytes, the dimensions' number and sizes) as a tensor."""
    with open(path, "rb") as file:
        head = file.read(16)
    dimensions = head[3] if len(head) == 16 and head[:3] == b"\0\0\x08" and head[3] in (1, 3) else 0
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", head[4:start]) if dimensions else ()
    size = path.stat().st_size
    if not dimensions or size != start + math.prod(shape):
        wants = f"{start + math.prod(shape)} bytes by its own header" if dimensions else "an idx file of bytes"
        raise ValueError(f"{path}: must be {wants}, got {size} bytes; remove it and it is fetched again")
    return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=shape))

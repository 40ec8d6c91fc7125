"""Image data sets of torchvision: MNIST and its variants, CIFAR-10, and random images."""

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
from overnight.data.split import SplitData
from overnight.data.tensors import Part
from overnight.data.transforms import NORMALISATIONS, Normalisation

_DOWNLOAD_TIMEOUT_S = 30.0  # without any data from the server
Result = TypeVar("Result")


class ImageData(SplitData):
    """Images of ten classes as bytes, 0 to 255. The test part is the official one; validation comes from the rest.

    Files are memory-mapped where possible: trials side by side share the memory, and convert one batch at a time.

    Args:
        root: folder in which torchvision looks for the data set, and to which it is downloaded.
        cache_dir: folder for decoded images and their statistics, shared by all trials; None for none.
        fold, folds, options: of SplitData.

    Raises:
        FileNotFoundError: in prepare_data, with the missing files and their folder, if they can't be downloaded.
        ValueError: in setup, with the file, if it is incomplete.
    """

    task = "multiclass"
    classes = 10
    validation_rows = 5_000  # of the official training set

    def __init__(
        self,
        root: str | Path = "./data",
        cache_dir: str | Path | None = None,
        fold: int | None = None,
        folds: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(fold=fold, folds=folds, **options)
        self._root = Path(os.path.expanduser(root)).absolute()
        self._cache_dir = Path(cache_dir) if cache_dir is not None else None

    @abstractmethod
    def read(self) -> dict[str, Tensor]:
        """Return images and test_images, (N, C, H, W) bytes, and labels and test_labels, (N,) integers."""

    def split(self, seed: int) -> dict[str, Part]:
        data = self.read()
        images, labels = data["images"], data["labels"].long()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        test = data["test_images"]
        return {
            "validation": Part(images, labels, order[: self.validation_rows]),
            "train": Part(images, labels, order[self.validation_rows :]),
            "test": Part(test, data["test_labels"].long(), torch.arange(len(test))),
        }


class MNIST(ImageData):
    """60,000 and 10,000 handwritten digits of 28x28 pixels (LeCun et al. 1998), mapped from the original files."""

    input_shape = (1, 28, 28)
    dataset = datasets.MNIST

    def prepare_data(self) -> None:
        missing = [file for file in self._files if not (self._folder / file).exists()]
        if missing:
            download(lambda: self.dataset(self._root, download=True), self._folder, missing)

    def read(self) -> dict[str, Tensor]:
        images, labels, test_images, test_labels = (_map_idx_file(self._folder / file) for file in self._files)
        return {
            "images": images.unsqueeze(1),
            "labels": labels,
            "test_images": test_images.unsqueeze(1),
            "test_labels": test_labels,
        }

    def fit_normalisation(self, part: Part, method: str) -> Normalisation | None:
        """Compute the normalisation once for all trials; it takes a twentieth of a short trial."""
        # With a read or split of its own, a subclass may use other rows than the key below describes.
        unchanged = type(self).read is MNIST.read and type(self).split is ImageData.split
        if method not in NORMALISATIONS or method == "none" or not unchanged:
            return super().fit_normalisation(part, method)
        # The key is all that the rows depend on. A file that changes has another time or another size.
        stats = [os.stat(self._folder / file) for file in self._files]
        rows = [
            str(self._folder),
            [(s.st_size, s.st_mtime_ns) for s in stats],
            self.validation_rows,
            self._split_seed,
            len(part),
            *([] if self._folds is None else [self._fold, self._folds]),
        ]
        key = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]

        def compute() -> dict[str, np.ndarray]:
            normalisation = super(MNIST, self).fit_normalisation(part, method)
            return {name: tensor.numpy() for name, tensor in vars(normalisation).items()}

        with contextlib.suppress(OSError):  # the disk is full or read-only: compute it without the cache
            name = f"{self.dataset.__name__.lower()}-{method}-{key}"
            return Normalisation(**cache.load(self._cache_dir, name, compute))
        return super().fit_normalisation(part, method)

    @property
    def _folder(self) -> Path:
        return self._root / self.dataset.__name__ / "raw"

    @property
    def _files(self) -> list[str]:
        return [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


class FashionMNIST(MNIST):
    """60,000 and 10,000 images of clothes (Xiao et al. 2017), in MNIST's format."""

    dataset = datasets.FashionMNIST


class KMNIST(MNIST):
    """60,000 and 10,000 characters of cursive Japanese (Clanuwat et al. 2018), in MNIST's format."""

    dataset = datasets.KMNIST


class CIFAR10(ImageData):
    """50,000 and 10,000 colour photographs of 32x32 pixels (Krizhevsky 2009), decoded once into the cache."""

    input_shape = (3, 32, 32)

    def prepare_data(self) -> None:
        self.read()

    def read(self) -> dict[str, Tensor]:
        return cache.load(self._cache_dir, "cifar10", self._decode)

    def _decode(self) -> dict[str, np.ndarray]:
        folder = self._root / datasets.CIFAR10.base_folder
        batches = [name for name, _ in (*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list)]
        train, test = download(
            lambda: [datasets.CIFAR10(self._root, train=train, download=True) for train in (True, False)],
            folder,
            [*batches, datasets.CIFAR10.meta["filename"]],
        )
        return {
            "images": np.ascontiguousarray(train.data.transpose(0, 3, 1, 2)),
            "labels": np.array(train.targets),
            "test_images": np.ascontiguousarray(test.data.transpose(0, 3, 1, 2)),
            "test_labels": np.array(test.targets),
        }


class Fake(ImageData):
    """1,200 images of noise with random labels, decoded once into the cache, to try out a machine."""

    input_shape = (3, 32, 32)
    validation_rows = 200

    def prepare_data(self) -> None:
        self.read()

    def read(self) -> dict[str, Tensor]:
        return cache.load(self._cache_dir, "fake", self._decode)

    def _decode(self) -> dict[str, np.ndarray]:
        data = list(datasets.FakeData(1200, self.input_shape, self.classes))
        images = np.stack([np.asarray(image).transpose(2, 0, 1) for image, _ in data])
        labels = np.array([int(label) for _, label in data])
        return {
            "images": images[:1000],
            "labels": labels[:1000],
            "test_images": images[1000:],
            "test_labels": labels[1000:],
        }


def download(fetch: Callable[[], Result], folder: Path, files: list[str]) -> Result:
    """Call `fetch`, one process at a time. Torchvision shows the progress and verifies checksums.

    Args:
        fetch: downloads the data set.
        folder: where its files go.
        files: their names.

    Raises:
        FileNotFoundError: with the missing files and their folder, if the download fails.
    """
    root = folder.parents[0] if folder.name != "raw" else folder.parents[1]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".overnight.lock"), _socket_timeout():
            return fetch()
    except (OSError, RuntimeError) as error:  # of torchvision and of the network
        missing = [name for name in files if not (folder / name).exists()] or files
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"data.root: {folder} must hold {', '.join(missing)}; fetching them failed ({reason}). Put them there, or "
            f"set data.root or OVERNIGHT_DATA to the folder that holds {folder.relative_to(root)}"
        ) from error


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    """Set a timeout for a silent server; torchvision itself sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _map_idx_file(path: Path) -> Tensor:
    """Map an idx file of bytes (LeCun's format: 0, 0, 8 for bytes, number of dimensions, their sizes) as a tensor."""
    with open(path, "rb") as file:
        head = file.read(16)
    dimensions = head[3] if len(head) == 16 and head[:3] == b"\0\0\x08" and head[3] in (1, 3) else 0
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", head[4:start]) if dimensions else ()
    size = path.stat().st_size
    if not dimensions or size != start + math.prod(shape):
        expected = f"{start + math.prod(shape)} bytes by its own header" if dimensions else "an idx file of bytes"
        raise ValueError(f"{path}: must be {expected}, got {size} bytes; remove it and it is fetched again")
    return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=shape))

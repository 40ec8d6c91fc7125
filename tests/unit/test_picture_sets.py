"""Image data sets: mapped from their files, decoded once. Missing files are reported by name."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import user_downloads
from torchvision import datasets

from overnight.data.images import CIFAR10, KMNIST, MNIST, Fake, FashionMNIST
from support.paths import ROOT
from support.picture_files import write_idx

ROOT = Path(os.environ.get("OVERNIGHT_DATA") or ROOT.parent / "shared" / "data")


class Small(MNIST):
    validation_rows = 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write 100 and 10 pictures in MNIST's format, picture i filled with i; return the folder."""
    for part, count in (("train", 100), ("t10k", 10)):
        numbers = np.arange(count)
        pictures = np.broadcast_to(numbers[:, None, None], (count, 28, 28))
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", pictures)
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", numbers % 10)
    return tmp_path


def numbers_in(data: MNIST, loader: str) -> set[int]:
    """Return the numbers of the pictures that a loader yields, and check their labels."""
    found = [(inputs[:, 0, 0, 0].long(), targets) for inputs, targets in getattr(data, loader)()]
    numbers, labels = (torch.cat(list(column)) for column in zip(*found, strict=True))
    assert torch.equal(numbers % 10, labels)
    return set(numbers.tolist())


def ready(root: Path, **options: object) -> Small:
    data = Small(root, normalise="none", **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_validation_is_split_from_train_and_the_official_test_set_is_the_test_set(root: Path) -> None:
    data = ready(root)
    train, validation = numbers_in(data, "train_dataloader"), numbers_in(data, "val_dataloader")
    assert (len(train), len(validation)) == (80, 20)
    assert train | validation == set(range(100))
    assert numbers_in(data, "test_dataloader") == set(range(10))


def test_the_split_depends_on_its_seed_and_a_subset_does_not_change_it(root: Path) -> None:
    torch.manual_seed(1)
    validation = numbers_in(ready(root), "val_dataloader")
    torch.manual_seed(2)
    assert numbers_in(ready(root, subset=0.5), "val_dataloader") == validation
    assert numbers_in(ready(root, split_seed=1), "val_dataloader") != validation
    half, quarter = (numbers_in(ready(root, subset=s), "train_dataloader") for s in (0.5, 0.25))
    assert (len(half), len(quarter)) == (40, 20)
    assert quarter < half


def test_the_normalisation_is_computed_once_for_all_trials(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fed(cache_dir: Path | None, **options: object) -> torch.Tensor:
        data = Small(root, normalise="standard", cache_dir=cache_dir, **options)
        data.setup("fit")
        return next(iter(data.val_dataloader()))[0]

    def changed(train: np.ndarray) -> None:
        write_idx(root / "MNIST" / "raw" / "train-images-idx3-ubyte", train)

    kept = root / "cache"
    folds: tuple[dict[str, object], ...] = ({"fold": 0, "folds": 2}, {"fold": 1, "folds": 2})
    for options in ({}, {"subset": 0.5}, {"split_seed": 1}, *folds):
        counted = fed(None, **options)
        assert torch.equal(fed(kept, **options), counted)
        with monkeypatch.context() as patch:
            patch.setattr("overnight.data.split.fit_normalisation", lambda *_: pytest.fail("it is computed again"))
            assert torch.equal(fed(kept, **options), counted)

    class Inverted(Small):
        def read(self) -> dict[str, torch.Tensor]:
            found = super().read()
            return {key: 255 - tensor if "images" in key else tensor for key, tensor in found.items()}

    inverted = [Inverted(root, normalise="standard", cache_dir=folder) for folder in (kept, None)]
    for data in inverted:
        data.setup("fit")
    assert torch.equal(*(next(iter(data.val_dataloader()))[0] for data in inverted)), "other rows give other numbers"
    (root / "a file").touch()
    assert torch.equal(fed(root / "a file" / "cache"), fed(None)), "without a cache it is computed each time"
    pictures = np.zeros((100, 28, 28))
    pictures[::2] = 200
    changed(pictures)
    assert torch.equal(fed(kept), fed(None)), "it is computed again for other pictures in a file of the same name"


def test_a_missing_set_without_network_names_the_files_and_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.KMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(FileNotFoundError) as caught:
        KMNIST(tmp_path).prepare_data()
    words = str(caught.value)
    assert words.startswith(f"data.root: {tmp_path / 'KMNIST' / 'raw'} must hold train-images-idx3-ubyte, train-labels")
    assert "fetching them failed" in words
    assert "OVERNIGHT_DATA" in words


def test_a_missing_set_is_fetched_once_and_its_checksums_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with user_downloads.server(broken=True) as mirror:
        monkeypatch.setattr(user_downloads.Fetched, "mirrors", [mirror])
        with pytest.raises(FileNotFoundError, match=r"fetching them failed .*not found or corrupted"):
            user_downloads.Pictures(tmp_path).prepare_data()
    with user_downloads.server() as mirror:
        monkeypatch.setattr(user_downloads.Fetched, "mirrors", [mirror])
        user_downloads.Pictures(tmp_path).prepare_data()
    data = user_downloads.Pictures(tmp_path)  # from here on there is no server
    data.prepare_data()
    data.setup("fit")
    assert sum(len(targets) for _, targets in data.train_dataloader()) == 200


def test_missing_files_of_photographs_are_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(
        FileNotFoundError, match=r"cifar-10-batches-py must hold data_batch_1, .*batches\.meta; fetching"
    ):
        CIFAR10(tmp_path, cache_dir=tmp_path / "cache").prepare_data()


def test_photographs_are_decoded_channels_first_with_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tiny(CIFAR10):
        validation_rows = 4

    def write(name: str, start: int) -> list[str]:
        """Write five photographs in the format of CIFAR, rows of 3 x 32 x 32 bytes: red i, green i + 1, blue i + 2."""
        colours = np.arange(start, start + 5)[:, None] + np.arange(3)
        rows = np.repeat(colours, 1024, axis=1).astype(np.uint8)
        path = tmp_path / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps({"data": rows, "labels": [i % 10 for i in range(start, start + 5)]}))
        return [name, hashlib.md5(path.read_bytes()).hexdigest()]

    monkeypatch.setattr(datasets.CIFAR10, "train_list", [write("data_batch_1", 0), write("data_batch_2", 5)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", 10)])
    meta = tmp_path / "cifar-10-batches-py" / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    meta_with_checksum = {**datasets.CIFAR10.meta, "md5": hashlib.md5(meta.read_bytes()).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta_with_checksum)

    data = Tiny(tmp_path, cache_dir=tmp_path / "cache", normalise="none")
    data.prepare_data()
    data.setup("fit")
    reds: list[list[int]] = []
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for images, labels in loader:
            assert images.shape[1:] == (3, 32, 32)
            assert torch.equal(images[:, 2, 31, 31], images[:, 0, 0, 0] + 2)
            assert torch.equal(images[:, 0, 0, 0].long() % 10, labels)
            reds.append(sorted(images[:, 0, 0, 0].long().tolist()))
    assert [len(part) for part in reds] == [6, 4, 5]
    assert sorted(i for part in reds for i in part) == list(range(15))


def test_a_file_cut_in_half_is_refused_by_name(root: Path) -> None:
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[: 16 + 50 * 784])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: must be 78416 bytes .* got 39216 bytes; remove it"):
        ready(root)


def test_a_file_that_is_not_in_idx_format_is_refused_by_name(root: Path) -> None:
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte: must be an idx file of bytes, got 22 bytes"):
        ready(root)


def test_the_fake_set_is_decoded_once(tmp_path: Path) -> None:
    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        data = Fake(cache_dir=tmp_path)
        data.prepare_data()
        data.setup("fit")
        return next(iter(data.val_dataloader()))

    inputs, targets = batch()
    assert inputs.shape == (200, 3, 32, 32)
    assert targets.unique().tolist() == list(range(10))
    written = (tmp_path / "fake" / "images.npy").stat().st_mtime_ns
    assert torch.equal(batch()[0], inputs)
    assert (tmp_path / "fake" / "images.npy").stat().st_mtime_ns == written


@pytest.mark.parametrize(("kind", "mean"), [(MNIST, 0.1307), (FashionMNIST, 0.2860)])
def test_the_real_files_are_mapped_and_have_the_published_mean(kind: type[MNIST], mean: float) -> None:
    if not (ROOT / kind.dataset.__name__).is_dir():
        pytest.skip(f"{kind.dataset.__name__} is not in {ROOT}; OVERNIGHT_DATA names the folder that has it")
    data = kind(ROOT, normalise="standard", batch_size=5000)
    data.prepare_data()
    data.setup("fit")
    assert [len(data._parts[name]) for name in ("train", "validation", "test")] == [55_000, 5_000, 10_000]
    assert data._normalisation is not None
    assert data._normalisation.shift.item() / 255 == pytest.approx(mean, abs=1e-3)
    inputs, _ = next(iter(data.train_dataloader()))
    assert abs(inputs.mean().item()) < 0.05

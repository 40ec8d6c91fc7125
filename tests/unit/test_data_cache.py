"""The cache of decoded data: written once, by one process, and rebuilt if it is damaged."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from overnight.data import cache


class Maker:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.times += 1
        time.sleep(0.1)
        return {"images": np.arange(1000, dtype=np.uint8).reshape(10, 100), "labels": np.arange(10)}


def load(folder: Path, make: Maker) -> torch.Tensor:
    found = cache.load(folder, "set", make)
    assert found["labels"].tolist() == list(range(10))
    return found["images"]


def test_decoded_data_is_made_once_and_then_mapped(tmp_path: Path) -> None:
    make = Maker()
    first, second = load(tmp_path, make), load(tmp_path, make)
    assert make.times == 1
    assert torch.equal(first, second)
    assert first.dtype == torch.uint8
    first[0] = 0  # a trial that writes changes only its own copy
    assert torch.equal(load(tmp_path, make), second)


def test_of_concurrent_callers_one_makes_the_data(tmp_path: Path) -> None:
    make = Maker()
    threads = [threading.Thread(target=load, args=(tmp_path, make)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.times == 1


@pytest.mark.parametrize("harm", ["cut in half", "changed", "gone", "its index deleted"])
def test_a_damaged_file_is_reported_by_name_and_made_again(tmp_path: Path, harm: str) -> None:
    make = Maker()
    whole = load(tmp_path, make).clone()
    path = tmp_path / "set" / "images.npy"
    data = bytearray(path.read_bytes())
    if harm == "cut in half":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "changed":
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        path = path if harm == "gone" else tmp_path / "set" / "files.json"
        path.unlink()
    with pytest.warns(
        UserWarning, match=rf"{path.name if harm != 'its index deleted' else 'set'}: .*; it is made again"
    ):
        again = load(tmp_path, make)
    assert make.times == 2
    assert torch.equal(again, whole)
    assert torch.equal(load(tmp_path, make), whole)
    assert make.times == 2


def test_a_copied_cache_is_accepted_by_its_checksums(tmp_path: Path) -> None:
    make = Maker()
    load(tmp_path, make)
    os.utime(tmp_path / "set" / "images.npy", (1, 1))
    load(tmp_path, make)
    assert make.times == 1


def test_a_partial_file_of_a_dead_process_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "set.writing").mkdir()
    (tmp_path / "set.writing" / "images.npy").write_bytes(b"half")
    assert load(tmp_path, make := Maker()).shape == (10, 100)
    assert make.times == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set", "set.lock"]


def test_without_a_folder_nothing_is_written() -> None:
    assert cache.load(None, "set", Maker())["labels"].tolist() == list(range(10))

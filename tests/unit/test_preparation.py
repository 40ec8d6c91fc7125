"""The preparation of rows: normalisation by the training rows and seeded augmentation."""

from __future__ import annotations

import time

import pytest
import torch

from overnight.data.tensors import Batches, Part
from overnight.data.transforms import Augmentation, Normalisation, fit_normalisation


def part(inputs: torch.Tensor, rows: list[int] | None = None) -> Part:
    return Part(inputs, torch.zeros(len(inputs)), torch.tensor(rows if rows is not None else range(len(inputs))))


def how(inputs: torch.Tensor, name: str, rows: list[int] | None = None) -> Normalisation:
    found = fit_normalisation(part(inputs, rows), name)
    assert found is not None
    return found


def test_minmax_takes_the_training_rows_to_0_to_1() -> None:
    table = torch.tensor([[1.0, 10.0], [3.0, 30.0], [2.0, 20.0], [99.0, -99.0]])
    ready = how(table, "minmax", rows=[0, 1, 2])(table)
    assert ready[:3].tolist() == [[0, 0], [1, 1], [0.5, 0.5]]
    assert ready[3].tolist() != [1, 0], "only training rows count"


def test_standard_gives_each_channel_of_bytes_mean_0_and_deviation_1() -> None:
    images = torch.randint(0, 256, (3000, 3, 4, 4), dtype=torch.uint8)
    images[:, 1] //= 4
    ready = how(images, "standard")(images)
    assert torch.allclose(ready.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(ready.std((0, 2, 3)), torch.ones(3), atol=1e-3)


def test_a_constant_column_is_shifted_and_not_scaled() -> None:
    table = torch.tensor([[5.0, 1.0], [5.0, 2.0]])
    for name in ("minmax", "standard"):
        assert how(table, name)(table)[:, 0].tolist() == [0, 0]


def test_none_does_not_change_the_numbers() -> None:
    assert fit_normalisation(part(torch.ones(2, 2)), "none") is None


def dots() -> torch.Tensor:
    """Return (500, 1, 7, 7) images, each with a dot in the middle."""
    images = torch.zeros(500, 1, 7, 7)
    images[:, :, 3, 3] = 1
    return images


def places(images: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(location.tolist()) for location in images.nonzero()[:, 2:]}


def test_shift_moves_by_every_whole_number_of_pixels_up_to_its_value() -> None:
    torch.manual_seed(0)
    assert places(Augmentation(shift=1)(dots())) == {(y, x) for y in (2, 3, 4) for x in (2, 3, 4)}


def test_shift_fills_with_0() -> None:
    torch.manual_seed(0)
    moved = Augmentation(shift=2)(torch.full((200, 2, 5, 5), 9, dtype=torch.uint8))
    assert moved.dtype == torch.float32
    assert set(moved.unique().tolist()) == {0.0, 9.0}
    assert moved.flatten(1).sum(1).min() == 9 * 2 * 3 * 3


def test_flip_mirrors_every_other_image() -> None:
    torch.manual_seed(0)
    images = torch.arange(3.0).expand(400, 1, 2, 3).clone()
    flipped = (Augmentation(flip=True)(images)[:, 0, 0, 0] == 2).float().mean().item()
    assert 0.4 < flipped < 0.6


def test_a_quarter_turn_turns_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_: torch.ones(1, 1))  # the upper end of the range
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert torch.allclose(Augmentation(rotate=90)(image), image.rot90(1, (2, 3)), atol=1e-5)


def test_rotation_is_within_its_limit_and_can_be_combined_with_shift() -> None:
    torch.manual_seed(0)
    still = Augmentation(rotate=1e-3, shift=1)(dots())
    assert places((still > 0.5).float()) == {(y, x) for y in (2, 3, 4) for x in (2, 3, 4)}


def test_the_same_seed_gives_the_same_augmentation() -> None:
    augment, images = Augmentation(shift=2, rotate=20, flip=True), torch.rand(20, 1, 8, 8)
    torch.manual_seed(3)
    first = augment(images)
    assert not torch.equal(first, augment(images))
    torch.manual_seed(3)
    assert torch.equal(first, augment(images))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shift": -1}, r"data\.augment\.shift: must be a whole number of pixels, 0 or more, got -1"),
        ({"shift": 1.5}, r"data\.augment\.shift: must be a whole number"),
        ({"rotate": 181}, r"data\.augment\.rotate: must be from 0 to 180 degrees, got 181"),
        ({"zoom": 2}, r"data\.augment\.zoom: no such key; there are shift, rotate, flip"),
    ],
)
def test_an_impossible_augmentation_is_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Augmentation.from_options(options)
    assert Augmentation.from_options({"shift": 0, "rotate": 0.0, "flip": False}) is None


def test_an_augmented_batch_costs_less_than_the_smallest_step_it_feeds() -> None:
    """Compare 128 pictures of 28x28 with a step of one hidden layer of 64 on one thread, by the minimum of each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = torch.randint(0, 256, (10_000, 1, 28, 28), dtype=torch.uint8)
        augment, ready = Augmentation(shift=2, rotate=10), how(images, "standard")
        batches = Batches(
            images, torch.zeros(10_000).long(), 128, shuffle=True, prepare=lambda batch: ready(augment(batch))
        )
        net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(784, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )
        optimizer = torch.optim.Adam(net.parameters())
        feeding, stepping, rows = [], [], iter(batches)
        for _ in range(60):
            started = time.perf_counter()
            inputs, targets = next(rows)
            fed = time.perf_counter()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
            feeding.append(fed - started)
            stepping.append(time.perf_counter() - fed)
    finally:
        torch.set_num_threads(threads)
    print(f"batch {min(feeding) * 1e6:.0f} us, step {min(stepping) * 1e6:.0f} us")
    assert min(feeding) < min(stepping)

"""The stream of batches: complete, repeatable, normalized as the paper's code does."""

from __future__ import annotations

from itertools import islice, product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from undistill.data.dataset import Images
from undistill.data.loader import Batch, Loader, batches, normalize
from undistill.errors import DataError, RecipeError, ShapeError, UnknownNameError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)


def images(n: int, channels: int = 3, size: int = 8) -> Images:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    return Images(x, torch.randint(10, (n,), generator=generator))


def loader(data: Images, batch_size: int = 4, augment: str = "crop_flip", seed: int = 0, device: str = "cpu") -> Loader:
    return Loader(data, batch_size=batch_size, augment=augment, mean=MEAN, std=STD, seed=seed, device=device)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index)


def reference(x: Tensor) -> np.ndarray:
    """ToTensor and Normalize in numpy float32, one rounding an operation."""
    mean, std = (np.float32(v).reshape(3, 1, 1) for v in (MEAN, STD))
    return (x.numpy().astype(np.float32) / np.float32(255) - mean) / std


def test_normalize_is_bit_equal_to_the_reference_for_every_value() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16).contiguous()
    found = normalize(x, MEAN, STD)
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), reference(x))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    assert torch.equal(found, x.float().div(255).sub(mean).div(std))
    assert torch.equal(found, normalize(x, mean, std))


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (12, 4, [4, 4, 4]),
        (10, 4, [4, 4, 2]),  # the last, smaller batch is kept
        (9, 4, [4, 5]),  # a last batch of one image joins the one before
        (5, 4, [5]),
        (3, 4, [3]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
        (2, 1, [1, 1]),
        (1, 1, [1]),
    ],
)
def test_batch_sizes(n: int, batch_size: int, sizes: list[int]) -> None:
    stream = loader(images(n), batch_size)
    assert [len(batch.y) for batch in stream.epoch(0)] == sizes
    assert len(stream) == len(sizes)


def test_the_last_image_left_over_does_not_break_batch_norm() -> None:
    norm = nn.BatchNorm1d(3 * 8 * 8)
    for batch in loader(images(9)).epoch(0):
        assert norm(batch.x.flatten(1)).isfinite().all()


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "rotation_flip"])
def test_every_image_once_an_epoch_with_its_own_label(augment: str) -> None:
    data = images(23)
    found = list(loader(data, augment=augment).epoch(3))
    index = torch.cat([batch.index for batch in found])
    assert index.dtype == torch.int64
    assert sorted(index.tolist()) == list(range(23))
    assert index.tolist() != list(range(23))
    assert torch.equal(torch.cat([batch.y for batch in found]), data.y[index])
    assert all(batch.x.shape == (len(batch.y), 3, 8, 8) and batch.x.dtype == torch.float32 for batch in found)


def test_every_image_is_a_crop_of_the_image_that_its_index_names() -> None:
    data = images(7)
    padded = np.pad(data.x.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    seen = set()
    for batch in (batch for epoch in range(6) for batch in loader(data).epoch(epoch)):
        for x, i in zip(batch.x, batch.index.tolist(), strict=True):
            matches = []
            for top, left, step in product(range(9), range(9), (1, -1)):
                window = padded[i, :, top : top + 8, left : left + 8][:, :, ::step]
                if np.array_equal(x.numpy(), reference(torch.from_numpy(window.copy()))):
                    matches.append((top, left, step))
            assert len(matches) == 1
            seen.add(matches[0])
    assert len(seen) > 30  # of 42 draws out of 162: they are not shared by a batch or an epoch


def test_without_augmentation_the_pixels_are_the_images() -> None:
    data = images(9)
    for batch in loader(data, augment="none").epoch(0):
        assert np.array_equal(batch.x.numpy(), reference(data.x[batch.index]))


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "rotation_flip"])
def test_an_epoch_can_be_replayed_from_any_step(augment: str) -> None:
    data = images(22)
    first = loader(data, augment=augment, seed=5)
    whole = list(first.epoch(2))
    torch.rand(3)  # neither the global generator
    list(islice(first.epoch(4), 2))  # nor what came before has any influence
    for start in range(len(whole) + 1):
        again = list(loader(data, augment=augment, seed=5).epoch(2, start))
        assert len(again) == len(whole) - start
        assert all(same(a, b) for a, b in zip(again, whole[start:], strict=True))
    assert all(same(a, b) for a, b in zip(first.epoch(2), whole, strict=True))


def test_a_start_inside_an_epoch_whose_last_batch_is_larger() -> None:
    stream = loader(images(9))
    whole = list(stream.epoch(0))
    assert same(next(stream.epoch(0, start=1)), whole[1])
    assert list(stream.epoch(0, start=2)) == []


def test_seeds_and_epochs_have_streams_of_their_own() -> None:
    data = images(64)
    orders, draws = set(), set()
    for seed, epoch in product(range(4), repeat=2):
        stream = loader(data, batch_size=64, seed=seed)
        batch = next(stream.epoch(epoch))
        orders.add(tuple(batch.index.tolist()))
        draws.add(batch.x[batch.index.argsort()].sum().item())
    assert len(orders) == len(draws) == 16


def test_the_order_follows_the_documented_mix() -> None:
    state = np.random.SeedSequence([3, 7]).generate_state(1, np.uint64)
    expected = torch.randperm(30, generator=torch.Generator().manual_seed(int(state[0])))
    found = torch.cat([batch.index for batch in loader(images(30), seed=3).epoch(7)])
    assert torch.equal(found, expected)


def test_evaluation_batches_come_in_order_and_unchanged() -> None:
    data = images(9)
    found = list(batches(data, batch_size=4, mean=MEAN, std=STD, device="cpu"))
    assert [len(batch.y) for batch in found] == [4, 4, 1]
    assert torch.equal(torch.cat([batch.index for batch in found]), torch.arange(9))
    assert torch.equal(torch.cat([batch.y for batch in found]), data.y)
    assert np.array_equal(torch.cat([batch.x for batch in found]).numpy(), reference(data.x))


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "rotation_flip"])
def test_batches_live_on_the_device_and_no_value_is_read_back(augment: str) -> None:
    # The meta device holds no values and refuses any operation that needs one.
    data = images(10)
    trained = list(loader(data, augment=augment, device="meta").epoch(0))
    evaluated = list(batches(data, batch_size=4, mean=MEAN, std=STD, device="meta"))
    assert [batch.x.shape[0] for batch in trained] == [batch.x.shape[0] for batch in evaluated] == [4, 4, 2]
    for batch in trained + evaluated:
        assert {tensor.device.type for tensor in (batch.x, batch.y, batch.index)} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("augment", ["crop_flip", "rotation_flip"])
def test_cuda_gives_the_same_bits(augment: str) -> None:
    data = images(40, size=32)
    here, there = loader(data, augment=augment), loader(data, augment=augment, device="cuda")
    for a, b in zip(here.epoch(1), there.epoch(1), strict=True):
        assert same(a, Batch(b.x.cpu(), b.y.cpu(), b.index.cpu()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 0}, RecipeError, "batch size is 0"),
        ({"seed": -1}, RecipeError, "seed is -1"),
        ({"augment": "crop-flip"}, UnknownNameError, "did you mean 'crop_flip'"),
        ({"mean": (0.5,)}, ShapeError, "1 values, the images 3 channels"),
        ({"std": (0.5, 0.5)}, ShapeError, "2 values, the images 3 channels"),
    ],
)
def test_wrong_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"batch_size": 4, "augment": "none", "mean": MEAN, "std": STD, "seed": 0, "device": "cpu"} | change
    with pytest.raises(error, match=message):
        Loader(images(4), **arguments)


def test_wrong_arguments_of_evaluation_batches() -> None:
    with pytest.raises(RecipeError, match="batch size is -1"):
        batches(images(4), batch_size=-1, mean=MEAN, std=STD, device="cpu")
    with pytest.raises(ShapeError, match="3 values, the images 1 channels"):
        batches(images(4, channels=1), batch_size=2, mean=MEAN, std=STD, device="cpu")


def test_an_empty_split_is_refused() -> None:
    empty = Images(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="empty"):
        loader(empty)
    with pytest.raises(DataError, match="empty"):
        batches(empty, batch_size=2, mean=MEAN, std=STD, device="cpu")


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 4)])
def test_a_step_outside_the_epoch_is_refused(epoch: int, start: int) -> None:
    with pytest.raises(RecipeError, match=r"expected an epoch from 0, a step in 0\.\.3"):
        loader(images(12)).epoch(epoch, start)

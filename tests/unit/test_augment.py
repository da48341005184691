"""Batched augmentation against PIL, one image at a time."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats
from torch import Tensor

from undistill.bench.augment import _PIL_AUGMENTATIONS, PILImages, bench_augment
from undistill.data.augment import AUGMENTATIONS, Crop, CropFlip, RotationFlip, make_augmentation, pil_affine, rotate
from undistill.errors import RecipeError, UnknownNameError

NAMES = sorted(AUGMENTATIONS)


def random_images(n: int, channels: int, height: int, width: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, channels, height, width or height), dtype=torch.uint8, generator=generator)


def to_pil(x: Tensor) -> Image.Image:
    array = x.permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if len(x) == 1 else array))


def to_tensor(image: Image.Image) -> Tensor:
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def pil_crop(x: Tensor, padding: int, top: int, left: int, flip: bool) -> Tensor:
    height, width = x.shape[1:]
    image = ImageOps.expand(to_pil(x), border=padding, fill=0).crop((left, top, left + width, top + height))
    return to_tensor(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


def pil_rotate(x: Tensor, angle: float, flip: bool) -> Tensor:
    image = to_pil(x).rotate(angle, Image.Resampling.NEAREST, expand=False, fillcolor=0)
    return to_tensor(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_flip_equals_pil_at_every_offset(size: int, channels: int) -> None:
    x = random_images(5, channels, size)
    cases = list(product(range(9), range(9), (False, True)))
    index = torch.arange(len(cases)) % len(x)
    top, left, flip = (torch.tensor(column) for column in zip(*cases, strict=True))
    found = CropFlip(x).apply(index, {"top": top, "left": left, "flip": flip})
    expected = torch.stack([pil_crop(x[i], 4, *case) for i, case in zip(index, cases, strict=True)])
    assert found.dtype == torch.uint8
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("size", "padding"), [(8, 1), (28, 4), (32, 4), (64, 8)])
def test_crop_pads_by_an_eighth_and_equals_pil(size: int, padding: int) -> None:
    x = random_images(2, 1, size)
    cases = list(product((0, 1, 2 * padding), repeat=2))
    index = torch.arange(len(cases)) % len(x)
    top, left = (torch.tensor(column) for column in zip(*cases, strict=True))
    found = Crop(x).apply(index, {"top": top, "left": left})
    expected = torch.stack([pil_crop(x[i], padding, *case, False) for i, case in zip(index, cases, strict=True)])
    assert torch.equal(found, expected)
    drawn = Crop(x).draw(2000, torch.Generator().manual_seed(0))
    assert set(drawn) == {"top", "left"}
    assert set(drawn["top"].tolist()) == set(drawn["left"].tolist()) == set(range(2 * padding + 1))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 32), (24, 41)])
@pytest.mark.parametrize("channels", [1, 3])
def test_rotation_flip_equals_pil(height: int, width: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(height + channels)
    random = torch.empty(300).uniform_(-20, 20, generator=generator)
    edges = torch.tensor([0.0, -0.0, 20.0, -20.0, 1e-20, -1e-20, 1e-4, -1e-4, 0.5, 10.0, -10.0])
    angle = torch.cat((random, edges, edges))
    flip = torch.rand(len(angle), generator=generator) < 0.5
    flip[-2 * len(edges) :] = torch.tensor([False, True]).repeat_interleave(len(edges))
    x = random_images(len(angle), channels, height, width)
    found = rotate(x, pil_affine(angle, height, width), flip)
    expected = torch.stack([pil_rotate(*case) for case in zip(x, angle.tolist(), flip.tolist(), strict=True)])
    assert torch.equal(found, expected)


def test_rotation_flip_applies_its_own_draws() -> None:
    x = random_images(7, 3, 32)
    augmentation = RotationFlip(x)
    draws = augmentation.draw(40, torch.Generator().manual_seed(1))
    index = torch.arange(40) % 7
    angle = degrees(draws["affine"])
    found = augmentation.apply(index, draws)
    assert 0 < draws["flip"].sum() < 40
    # An angle read back from fixed-point numbers is off by 1e-3 degrees: a few pixels fall on the other side.
    for image, i, a, flip in zip(found, index, angle.tolist(), draws["flip"].tolist(), strict=True):
        assert (image == pil_rotate(x[i], a, flip)).float().mean() > 0.98


def degrees(affine: Tensor) -> Tensor:
    """The rotation in a PIL matrix, which leads from the output back to the input."""
    return -torch.rad2deg(torch.atan2(affine[:, 1].double(), affine[:, 0].double()))


def test_crop_flip_draws_are_uniform_and_independent() -> None:
    n = 81_000
    draws = CropFlip(random_images(1, 1, 8)).draw(n, torch.Generator().manual_seed(0))
    cells = (draws["top"] * 9 + draws["left"]) * 2 + draws["flip"]
    counts = torch.bincount(cells, minlength=162)
    assert len(counts) == 162
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    following = torch.bincount(draws["top"][:-1] * 9 + draws["top"][1:], minlength=81)  # one sample and the next
    assert stats.chisquare(following.numpy()).pvalue > 1e-3


def test_rotation_draws_are_uniform() -> None:
    draws = RotationFlip(random_images(1, 1, 64)).draw(20_000, torch.Generator().manual_seed(0))
    angle = degrees(draws["affine"])
    assert stats.kstest(angle.numpy(), stats.uniform(-20, 40).cdf).pvalue > 1e-3
    assert stats.binomtest(int(draws["flip"].sum()), 20_000).pvalue > 1e-3


def test_none_changes_nothing() -> None:
    x = random_images(4, 3, 8)
    augmentation = make_augmentation("none", x)
    index = torch.tensor([3, 0, 0])
    assert augmentation.draw(3, torch.Generator()) == {}
    assert torch.equal(augmentation.apply(index, {}), x[index])


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_influence_each_other(name: str) -> None:
    augmentation = make_augmentation(name, random_images(20, 3, 16))
    draws = augmentation.draw(20, torch.Generator().manual_seed(0))
    index = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    whole = augmentation.apply(index, draws)
    for i in range(20):
        one = augmentation.apply(index[i : i + 1], {k: v[i : i + 1] for k, v in draws.items()})
        assert torch.equal(one[0], whole[i])


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_a_copy(name: str) -> None:
    x = random_images(6, 1, 8)
    before = x.clone()
    augmentation = make_augmentation(name, x)
    draws = augmentation.draw(6, torch.Generator().manual_seed(0))
    index = torch.arange(6)
    first = augmentation.apply(index, draws)
    kept = first.clone()
    first.zero_()
    assert torch.equal(x, before)
    assert torch.equal(augmentation.apply(index, draws), kept)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_does_not_matter(name: str, channels: int) -> None:
    x = random_images(6, channels, 8)
    last = x.to(memory_format=torch.channels_last)
    plain, strided = make_augmentation(name, x), make_augmentation(name, last)
    draws = plain.draw(6, torch.Generator().manual_seed(0))
    assert torch.equal(plain.apply(torch.arange(6), draws), strided.apply(torch.arange(6), draws))


@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_read_back_from_the_device(name: str) -> None:
    # The meta device holds no values and refuses any operation that needs one.
    augmentation = make_augmentation(name, random_images(6, 3, 32).to("meta"))
    draws = augmentation.draw(5, torch.Generator().manual_seed(0))
    assert all(values.device.type == "cpu" and len(values) == 5 for values in draws.values())
    moved = {k: v.to("meta") for k, v in draws.items()}
    found = augmentation.apply(torch.arange(5, device="meta"), moved)
    assert found.device.type == "meta"
    assert found.shape == (5, 3, 32, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_gives_the_same_pixels(name: str) -> None:
    x = random_images(50, 3, 32)
    here, there = make_augmentation(name, x), make_augmentation(name, x.cuda())
    draws = here.draw(50, torch.Generator().manual_seed(0))
    found = there.apply(torch.arange(50, device="cuda"), {k: v.cuda() for k, v in draws.items()})
    assert torch.equal(found.cpu(), here.apply(torch.arange(50), draws))


def test_unknown_augmentation_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'crop_flip'"):
        make_augmentation("cropflip", random_images(1, 1, 8))


def test_pil_affine_of_a_quarter_of_a_right_angle_by_hand() -> None:
    # cos 22.5° = 0.92388, sin = 0.38268; at 2x2 the center is (1, 1) and the first pixel's center (½, ½):
    # it comes from column 1 - ½·0.92388 + ½·0.38268 and row 1 - ½·0.92388 - ½·0.38268.
    cos, sin = math.cos(math.pi / 8), math.sin(math.pi / 8)
    matrix = (cos, -sin, 1 - cos / 2 + sin / 2, sin, cos, 1 - cos / 2 - sin / 2)
    assert pil_affine(torch.tensor([22.5]), 2, 2)[0].tolist() == [math.floor(v * 65536 + 0.5) for v in matrix]


@pytest.mark.parametrize("name", sorted(_PIL_AUGMENTATIONS))
def test_baseline_of_the_benchmark_does_the_same_work(name: str) -> None:
    x = random_images(1, 3, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)))
    baseline = PILImages(x.permute(0, 2, 3, 1).contiguous().numpy(), _PIL_AUGMENTATIONS[name])
    for seed in range(10):
        torch.manual_seed(seed)
        if name == "crop_flip":
            left, top = (int(torch.randint(9, (1,))) for _ in range(2))
            expected = pil_crop(x[0], 4, top, left, bool(torch.rand(1) < 0.5))
        else:
            expected = pil_rotate(x[0], float(torch.empty(1).uniform_(-20, 20)), bool(torch.rand(1) < 0.5))
        torch.manual_seed(seed)
        assert torch.equal(baseline[0][0], (expected.float() / 255 - mean) / std)


def test_benchmark_reports_both_sides() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = bench_augment(images=256, workers=(0,), repeats=2, seconds=0.02)
    finally:
        torch.set_num_threads(threads)
    assert json.loads(json.dumps(found))["threads"] == 1
    assert [result["augment"] for result in found["results"]] == ["crop_flip", "rotation_flip"]
    for result in found["results"]:
        assert result["ratio"] == pytest.approx(result["undistill"] / result["baseline"][0], abs=0.01)
        assert result["ratio"] > 1


@pytest.mark.parametrize(
    "wrong", [{"images": 0}, {"batch_size": 0}, {"repeats": 0}, {"workers": ()}, {"workers": (-1,)}]
)
def test_benchmark_refuses_numbers_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="1 or more"):
        bench_augment(**wrong)

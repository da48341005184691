"""The speedrun net: its whitening stem, its shapes, and what prepares it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import undistill
from undistill.data import Images, load_dataset
from undistill.data.loader import Loader
from undistill.errors import RecipeError, ShapeError
from undistill.models import PreparedFromImages, build_model
from undistill.models.speedrun import Speedrun


def build(size: int = 32, channels: int = 3, **kwargs: object) -> Speedrun:
    spec = {"name": "speedrun", **kwargs}
    model = build_model(spec, num_classes=10, in_channels=channels, image_size=size, seed=0)
    assert isinstance(model, Speedrun)
    return model


def test_its_size_is_that_of_the_published_net():
    # 12 directions both ways; 3x3 convolutions 24-64-64-128-128-128-128; two biases a group; a head of 128 x 10.
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 128 + 3 * 128 * 128)
    trained = sum(p.numel() for p in build().parameters() if p.requires_grad)
    assert trained == convolutions + 2 * (64 + 128 + 128) + 128 * 10


def test_patches_come_out_white():
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)).cumsum(3).cumsum(2)
    images = (images - images.mean()) / images.std()  # neighbours are alike, as in photographs
    net = build()
    net.prepare_from_images(images)
    found = net.stem(images).transpose(0, 1).flatten(1)[:12].double()
    patches = F.unfold(images.double(), 2).transpose(0, 1).flatten(1)
    variances = torch.linalg.eigvalsh(torch.cov(patches))
    # Variance λ / (λ + 5e-4) along each direction, nothing between two; float32 leaves some 1e-3.
    assert torch.allclose(torch.cov(found), torch.diag(variances / (variances + 5e-4)), atol=5e-3)
    assert torch.equal(net.stem.weight[:12], -net.stem.weight[12:])


def test_the_first_channels_pass_through():
    net = build()
    for group in net.groups:
        for conv in (group[0], group[4]):
            x = torch.randn(2, conv.in_channels, 6, 6)
            passed = min(conv.in_channels, conv.out_channels)
            assert torch.allclose(conv(x)[:, :passed], x[:, :passed], atol=1e-6)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (48, 3), (64, 3), (9, 1)])
def test_any_size(size: int, channels: int):
    net = build(size, channels, widths=(8, 16, 16))
    assert net(torch.randn(3, channels, size, size)).shape == (3, 10)


@pytest.mark.parametrize("views", [1, 2, 6])
def test_views_are_averaged_when_it_is_asked_and_not_when_it_is_trained(views: int):
    net = build(widths=(4, 4, 4), views=views)
    x = torch.randn(3, 3, 32, 32)
    plain = build(widths=(4, 4, 4))
    net.load_state_dict(plain.state_dict())
    assert torch.equal(net.train()(x), plain.train()(x))
    net.load_state_dict(plain.state_dict())
    net.eval(), plain.eval()

    def shifted(by: int) -> torch.Tensor:  # pixel by pixel, over reflected borders
        at = [abs(i + by) if i + by < 32 else 62 - i - by for i in range(32)]
        return x[:, :, at][..., at]

    weights = {1: [1], 2: [0.5, 0.5], 6: [0.25] * 2 + [0.125] * 4}[views]
    images = [x, x.flip(3)] + [each for by in (-1, 1) for each in (shifted(by), shifted(by).flip(3))]
    expected = sum(weight * plain(image) for weight, image in zip(weights, images, strict=False))
    assert torch.allclose(net(x), expected, atol=1e-6)


@pytest.mark.parametrize("size", [7, 8, 9, 28, 32, 64])
def test_sizes(size: int):
    net = build(size).eval()
    features = net.groups(F.gelu(net.stem(torch.randn(2, 3, size, size))))
    assert features.shape[1:] == (128, *[max((size - 1) // 8, 1)] * 2)  # the stem takes a pixel, then halved thrice
    assert net.stem.padding == (int(size < 9),) * 2


def test_bad_arguments():
    with pytest.raises(RecipeError, match="widths must be three whole numbers above 0"):
        build(widths=(8, 16))
    with pytest.raises(RecipeError, match="scale must be a number above 0"):
        build(scale=0)
    with pytest.raises(RecipeError, match="views must be 1, 2 or 6, got 3"):
        build(views=3)
    with pytest.raises(ShapeError, match="needs images of 7x7 or more"):
        build(size=6)


def test_training_estimates_the_stem_from_its_own_images_and_the_checkpoint_holds_it(tmp_path: Path):
    digits = load_dataset("digits(subset=300)")
    larger = [Images(F.interpolate(each.x, 12), each.y) for each in (digits.train, digits.test)]
    data = replace(digits, train=larger[0], test=larger[1])
    fields = {"model": "speedrun(widths=(4, 4, 4))", "epochs": 1, "batch_size": 64, "holdout": 0, "selection": "last"}
    run = undistill.train(data=data, **fields, seed=3, runs=tmp_path, progress=False)
    loaded = run.load_model()
    assert isinstance(loaded, PreparedFromImages)
    again = build(12, 1, widths=(4, 4, 4))
    loader = Loader(data.train, batch_size=64, augment="none", mean=data.mean, std=data.std, seed=0, device="cpu")
    again.prepare_from_images(loader.sample(5000))
    assert torch.equal(loaded.stem.weight, again.stem.weight)

"""Domains: conversion against PIL, target batches, and the recipes that name them."""

from __future__ import annotations

import bz2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from undistill.data import dataset_shape, load_dataset
from undistill.data.convert import check_domains, convert, convert_images
from undistill.data.dataset import Dataset, Images, channel_stats
from undistill.data.domains import add_patch
from undistill.data.loader import Loader
from undistill.data.usps import _read
from undistill.errors import DataError, RecipeError, UnknownNameError
from undistill.recipe import make_recipe
from undistill.workspace import Workspace

OLD_HASH = "83088e3043bd"
BASE: dict[str, Any] = {"data": "digits(subset=60)", "model": "cnn(channels=2)", "epochs": 1, "batch_size": 20}


def images(n: int, channels: int, size: int, seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    return Images(x, torch.arange(n) % 10)


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy().squeeze())


class TestConversion:
    def test_grey_is_that_of_pil(self):
        every = torch.cartesian_prod(*[torch.arange(0, 256, 5, dtype=torch.uint8)] * 3)
        x = every[: 132 * 1004].T.reshape(1, 3, -1)[:, :, : 364 * 364].reshape(1, 3, 364, 364)
        expected = np.asarray(to_pil(x[0]).convert("L"))
        assert (convert_images(x, 364, 1)[0, 0].numpy() == expected).all()

    @pytest.mark.parametrize(
        ("channels", "size", "new"), [(1, 16, 32), (1, 28, 32), (3, 32, 28), (3, 32, 9), (1, 9, 9)]
    )
    def test_size_is_that_of_pil(self, channels: int, size: int, new: int):
        x = images(6, channels, size).x
        found = convert_images(x, new, channels)
        for mine, image in zip(found, x, strict=True):
            theirs = np.asarray(to_pil(image).resize((new, new), Image.Resampling.BILINEAR)).astype(int)
            mine_hwc = mine.permute(1, 2, 0).numpy().squeeze().astype(int)
            # Noise has many values halfway between two levels, which fixed point and floats round differently, twice.
            assert abs(mine_hwc - theirs).max() <= (0 if new >= size else 2)
            assert (mine_hwc != theirs).mean() < 0.12

    def test_grey_to_color_repeats(self):
        x = images(3, 1, 8).x
        assert torch.equal(convert_images(x, 8, 3), x.repeat(1, 3, 1, 1))

    def test_other_channels_are_refused(self):
        with pytest.raises(DataError, match=r"cannot turn 2 channel\(s\) into 3"):
            convert_images(images(2, 2, 8).x, 8, 3)

    def test_every_source_takes_the_arguments(self):
        plain, shown = load_dataset("digits"), load_dataset("digits(image_size=12, channels=3)")
        assert (shown.image_size, shown.in_channels, shown.mean, shown.std) == (12, 3, (0.5,) * 3, (0.5,) * 3)
        assert torch.equal(shown.train.y, plain.train.y)
        assert "converted to 12x12, color" in shown.note
        same = load_dataset("digits(channels=1)")
        assert torch.equal(same.train.x, plain.train.x)
        assert same.mean == (0.5,)
        assert convert(plain, channels=1).note == ""

    @pytest.mark.parametrize(
        "spec", ["digits(image_size=12, channels=3)", "mnist(image_size=16, channels=3, subset=50)"]
    )
    def test_shape_is_known_beforehand(self, spec: str):
        shape = dataset_shape(spec)
        assert (shape.image_size, shape.in_channels) in ((12, 3), (16, 3))

    @pytest.mark.parametrize(
        ("spec", "problem"),
        [
            ("digits(image_size=0)", "image_size must be a whole number of pixels above 0, got 0"),
            ("digits(image_size=0.5)", "image_size must be a whole number of pixels above 0, got 0.5"),
            ("digits(channels=2)", r"channels must be 1 \(grey\) or 3 \(color\), got 2"),
            ("digits(channels=True)", "channels must be 1"),
        ],
    )
    def test_nonsense_is_refused(self, spec: str, problem: str):
        with pytest.raises(RecipeError, match=problem):
            load_dataset(spec)


class TestSources:
    def test_negative(self):
        plain, other = load_dataset("digits(subset=40)"), load_dataset("negative(of='digits(subset=40)')")
        assert torch.equal(plain.train.x.int() + other.train.x.int(), torch.full_like(plain.train.x, 255).int())
        assert torch.equal(plain.test.y, other.test.y)
        assert other.mean == pytest.approx([1 - value for value in plain.mean])
        assert other.std == plain.std

    def test_npz_without_a_split(self, tmp_path: Path):
        whole = images(100, 1, 8)
        np.savez(tmp_path / "all.npz", x=whole.x.numpy(), y=whole.y.numpy())
        data = load_dataset(tmp_path / "all.npz")
        assert (len(data.train), len(data.test)) == (80, 20)
        assert torch.bincount(data.test.y).tolist() == [2] * 10
        assert "no official split" in data.note
        rows = {bytes(row) for row in whole.x.flatten(1).numpy()}
        assert {bytes(row) for part in (data.train, data.test) for row in part.x.flatten(1).numpy()} == rows
        assert load_dataset(tmp_path / "all.npz").fingerprint == data.fingerprint

    def test_usps_files(self, tmp_path: Path):
        values = [np.linspace(-1, 1, 256), np.full(256, -1.0), np.full(256, 1.0)]
        lines = [
            f"{label} " + " ".join(f"{i}:{v:.6g}" for i, v in enumerate(row, 1))
            for label, row in zip((1, 10, 5), values, strict=True)
        ]
        (tmp_path / "usps.bz2").write_bytes(bz2.compress("\n".join(lines).encode()))
        found = _read(tmp_path / "usps.bz2")
        assert found.y.tolist() == [0, 9, 4]
        assert torch.equal(found.x[0].flatten(), torch.arange(256, dtype=torch.uint8))
        assert found.x[1].max() == 0
        assert found.x[2].min() == 255
        for damaged in (b"no bz2", bz2.compress(b"1 1:0 2:0\n"), bz2.compress(b"1 1:x\n"), bz2.compress(b"")):
            (tmp_path / "usps.bz2").write_bytes(damaged)
            with pytest.raises(DataError, match=r"usps\.bz2"):
                _read(tmp_path / "usps.bz2")

    def test_mnist_m_folder(self, tmp_path: Path):
        expected = images(10, 3, 32)
        for part in ("train", "test"):
            folder = tmp_path / f"mnist_m_{part}"
            folder.mkdir()
            for i, image in enumerate(expected.x):
                to_pil(image).save(folder / f"{i:08}.png")
            (tmp_path / f"mnist_m_{part}_labels.txt").write_text(
                "".join(f"{i:08}.png {label}\n" for i, label in enumerate(expected.y.tolist()))
            )
        data = load_dataset({"name": "mnist_m", "path": tmp_path})
        assert torch.equal(data.test.x, expected.x)
        assert torch.equal(data.train.y, expected.y)
        (tmp_path / "mnist_m_test" / "00000003.png").unlink()
        with pytest.raises(DataError, match="cannot read MNIST-M"):
            load_dataset({"name": "mnist_m", "path": tmp_path, "subset": 10})
        with pytest.raises(DataError, match=r"no download; give its unpacked folder"):
            load_dataset("mnist_m")

    def test_patch(self):
        plain = images(4, 3, 8)
        marked = add_patch(plain, level=20)
        for row in range(8):
            for column in range(8):
                added = 20 if row % 2 == 0 or column % 2 == 0 else 0
                expected = (plain.x[:, 0, row, column].int() + added).clamp_max(255)
                assert torch.equal(marked.x[:, 0, row, column].int(), expected)
        assert torch.equal(marked.x[:, 1:], plain.x[:, 1:])
        corner = add_patch(plain, "corner", level=200)
        assert (corner.x[:, :, 6:, 6:] == 200).all()
        assert torch.equal(corner.x[:, :, :6], plain.x[:, :, :6])
        data = load_dataset("patched(of='digits(subset=30)', level=30)")
        assert torch.equal(data.test.x, add_patch(load_dataset("digits(subset=30)").test, level=30).x)
        with pytest.raises(RecipeError, match=r"level of a patch must be a whole number in 1..255, got 300"):
            add_patch(plain, level=300)
        with pytest.raises(UnknownNameError, match="did you mean 'corner'"):
            load_dataset("patched(of='digits', patch='corners')")


class TestTargetBatches:
    def loader(self, n: int = 50, targets: tuple[int, ...] = (30, 120), seed: int = 3, augment: str = "crop") -> Loader:
        return Loader(
            images(n, 1, 8),
            batch_size=16,
            augment=augment,
            mean=[0.2],
            std=[0.4],
            seed=seed,
            device="cpu",
            targets=[images(size, 1, 8, seed=size) for size in targets],
        )

    def test_as_many_of_each(self):
        for batch in self.loader().epoch(0):
            assert [len(target.y) for target in batch.targets] == [len(batch.y)] * 2

    def test_source_batches_do_not_depend_on_targets(self):
        alone = list(self.loader(targets=()).epoch(1))
        for one, other in zip(alone, self.loader().epoch(1), strict=True):
            assert torch.equal(one.x, other.x)
            assert torch.equal(one.index, other.index)
            assert one.targets == ()

    def test_replayed_from_any_step(self):
        whole = list(self.loader().epoch(2))
        for start in range(len(whole)):
            for one, other in zip(whole[start:], self.loader().epoch(2, start), strict=True):
                for mine, theirs in zip(one.targets, other.targets, strict=True):
                    assert torch.equal(mine.x, theirs.x)
                    assert torch.equal(mine.index, theirs.index)

    def test_order_depends_on_seed_epoch_and_which(self):
        def order(seed: int, epoch: int, which: int) -> tuple[int, ...]:
            loader = self.loader(targets=(60, 60), seed=seed)
            return tuple(torch.cat([batch.targets[which].index for batch in loader.epoch(epoch)]).tolist())

        assert len({order(*key) for key in ((3, 0, 0), (3, 0, 1), (3, 1, 0), (4, 0, 0))}) == 4

    def test_all_alike_often(self):
        found = torch.cat([batch.targets[0].index for batch in self.loader(n=100, targets=(30,)).epoch(0)])
        counts = torch.bincount(found, minlength=30)
        assert set(counts.tolist()) == {3, 4}
        few = torch.cat([batch.targets[0].index for batch in self.loader(n=50, targets=(120,)).epoch(0)])
        assert len(few.unique()) == 50

    def test_normalized_as_the_source(self):
        target = images(30, 1, 8, seed=30)
        for batch in self.loader(targets=(30,), augment="none").epoch(0):
            (found,) = batch.targets
            expected = (target.x[found.index].float() / 255 - 0.2) / 0.4
            torch.testing.assert_close(found.x, expected)
            assert torch.equal(found.y, target.y[found.index])


class TestRecipes:
    def test_targets_are_part_of_the_hash_only_where_there_are_any(self):
        plain = make_recipe({**BASE, "method": "ntl"})
        assert plain.hash == make_recipe({**BASE, "method": "ntl", "targets": []}).hash
        one = make_recipe({**BASE, "method": "ntl", "targets": "negative(of='digits')"})
        two = make_recipe({**BASE, "method": "ntl", "targets": ["patched(of='digits')", "negative(of='digits')"]})
        assert len({plain.hash, one.hash, two.hash}) == 3
        assert one.targets == ("negative(of='digits')",)

    def test_older_runs_keep_their_names(self):
        # Computed before recipes had targets.
        assert make_recipe({"data": "digits", "model": "cnn", "method": "ce"}).hash == OLD_HASH

    def test_round_trip(self):
        recipe = make_recipe({**BASE, "method": "ntl", "targets": ["negative(of='digits')"]})
        import yaml

        assert make_recipe(yaml.safe_load(recipe.to_yaml())) == recipe

    def test_the_last_epoch_counts_unless_told_otherwise(self):
        assert make_recipe({**BASE, "method": "ntl"}).selection == "last"
        assert make_recipe({**BASE, "method": "ntl", "selection": "heldout"}).selection == "heldout"
        assert make_recipe({**BASE, "method": "ce"}).selection == "heldout"

    def test_who_looks_at_none_takes_none(self):
        with pytest.raises(RecipeError, match="'ce' looks at no target domains; remove targets, or set method=ntl"):
            make_recipe({**BASE, "targets": ["digits"]})
        with pytest.raises(RecipeError, match="did you mean 'digits'"):
            make_recipe({**BASE, "method": "ntl", "targets": ["digit"]})

    def test_domains_must_fit(self, tmp_path: Path):
        recipe = make_recipe({**BASE, "method": "ntl", "targets": ["digits(image_size=12, channels=3)"]})
        with pytest.raises(DataError, match=r"digits has 3x12x12 images, digits 1x8x8; give both the same"):
            Workspace(tmp_path / "runs", watch=lambda r: pytest.fail("trained")).run(recipe)

    def test_classes_must_fit(self):
        part = images(20, 1, 8)
        ten = Dataset("ten", part, part, tuple("0123456789"), *channel_stats(part))
        few = Images(part.x, part.y % 5)
        five = Dataset("five", few, few, tuple("01234"), *channel_stats(part))
        check_domains(ten, [ten])
        with pytest.raises(DataError, match="five has 5 classes, ten 10"):
            check_domains(ten, [ten, five])

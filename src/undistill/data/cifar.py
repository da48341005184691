"""CIFAR-10 and CIFAR-100 from their binary archives, which need no pickle."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import numpy as np

from undistill.data import Remote, fetch, register_dataset
from undistill.data.dataset import Dataset, Images, Shape
from undistill.errors import DataError

__all__ = ["cifar10", "cifar100"]

_PIXELS = 3 * 32 * 32
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.247, 0.243, 0.261)

_CLASSES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# fmt: off
_CLASSES_100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
# fmt: on


@register_dataset(
    "cifar10",
    Remote(
        "cifar-10-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "md5:c32a1d4ab5d03f1284b67883e8d87530",
    ),
    shape=Shape(50_000, 10_000, num_classes=10, in_channels=3, image_size=32),
)
def cifar10() -> Dataset:
    """Return CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 color images of 32x32 in 10 classes.

    Raises:
        DataError: The archive cannot be downloaded, or is truncated or altered.
    """
    train = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _read("cifar10", train, "test_batch.bin", label_bytes=1, classes=_CLASSES_10)


@register_dataset(
    "cifar100",
    Remote(
        "cifar-100-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "md5:03b5dce01913d631647c71ecec9e9cb8",
    ),
    shape=Shape(50_000, 10_000, num_classes=100, in_channels=3, image_size=32),
)
def cifar100() -> Dataset:
    """Return CIFAR-100 (Krizhevsky, 2009) with its fine labels: 50,000 + 10,000 images of 32x32 in 100 classes.

    Paper vs code: the Nasty Teacher code normalizes CIFAR-100 with the statistics of CIFAR-10, and so does this.

    Raises:
        DataError: The archive cannot be downloaded, or is truncated or altered.
    """
    return _read("cifar100", ["train.bin"], "test.bin", label_bytes=2, classes=_CLASSES_100)


def _read(name: str, train: list[str], test: str, *, label_bytes: int, classes: tuple[str, ...]) -> Dataset:
    (archive,) = fetch(name)
    members = _members(archive, {*train, test})
    train_set = _images([members[member] for member in train], label_bytes, archive)
    test_set = _images([members[test]], label_bytes, archive)
    return Dataset(name, train_set, test_set, classes, _MEAN, _STD, augment="crop_flip")


def _members(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    """Read the wanted files straight from the archive: nothing is extracted, so no path in it matters."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = Path(member.name).name
                stream = tar.extractfile(member) if name in wanted and member.isfile() else None
                if stream is not None:
                    found[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is truncated or damaged ({error}); delete it and fetch it again") from error
    if wanted - found.keys():
        raise DataError(f"{archive} lacks {', '.join(sorted(wanted - found.keys()))}; delete it and fetch it again")
    return found


def _images(batches: list[bytes], label_bytes: int, archive: Path) -> Images:
    """Read records of ``label_bytes`` labels, the last being the one wanted, and three planes of 32x32."""
    record = label_bytes + _PIXELS
    for batch in batches:
        if len(batch) % record:
            raise DataError(
                f"{archive} is altered: a file of {len(batch):,} bytes is not a whole number of {record:,}-byte records"
            )
    rows = np.frombuffer(b"".join(batches), np.uint8).reshape(-1, record)
    return Images.from_numpy(rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1])

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from undistill.errors import CheckpointError
from undistill.models import build_model
from undistill.models.checkpoints import import_checkpoint, load_weights


def net(spec: str = "cnn(channels=4)", num_classes: int = 10, in_channels: int = 3, size: int = 32) -> nn.Module:
    return build_model(spec, num_classes=num_classes, in_channels=in_channels, image_size=size)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def save(model: nn.Module, path: Path, form: str) -> None:
    """Write the weights as other programs do."""
    state = model.state_dict()
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:  # the paper's code, which also keeps the optimizer; on several GPUs the model is wrapped
        wrapped = nn.DataParallel(model) if form == "module" else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.save({"epoch": 3, "state_dict": wrapped.state_dict(), "optim_dict": optimizer.state_dict()}, path)


@pytest.mark.parametrize("form", ["safetensors", "plain", "legacy", "paper", "module"])
def test_weights_survive_every_form(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"best_model.{'safetensors' if form == 'safetensors' else 'tar'}"
    trained, fresh = net(), net()
    save(trained, path, form)
    state = import_checkpoint(path)
    assert set(state) == set(trained.state_dict())
    load_weights(fresh, state, source=str(path))
    assert equal(fresh.state_dict(), trained.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(fresh.eval()(x), trained.eval()(x))


# Names and shapes of the public code's ResNet-18, PreResNet-20 and plain CNN, a few of each family's kinds.
PUBLIC_NAMES = {
    "resnet18": {
        "conv1.weight": (64, 3, 3, 3),
        "bn1.running_var": (64,),
        "layer2.0.shortcut.0.weight": (128, 64, 1, 1),
        "layer2.0.shortcut.1.num_batches_tracked": (),
        "layer4.1.bn2.bias": (512,),
        "linear.weight": (10, 512),
    },
    "preresnet20": {"layer2.0.downsample.0.weight": (32, 16, 1, 1), "bn.weight": (64,), "fc.bias": (10,)},
    "cnn": {"conv3.bias": (128,), "fc1.weight": (128, 2048), "fcbn1.running_mean": (128,), "fc2.weight": (10, 128)},
    "mlp": {"fc1.weight": (512, 3072), "fc2.bias": (512,), "fc3.weight": (10, 512)},
    "resnext29(width=1)": {
        "conv_1_3x3.weight": (64, 3, 3, 3),
        "stage_1.stage_1_bottleneck_0.conv_conv.weight": (512, 64, 3, 3),
        "stage_3.stage_3_bottleneck_0.shortcut.shortcut_bn.weight": (1024,),
        "classifier.weight": (10, 1024),
    },
    "mobilenetv2": {
        "pre.0.weight": (32, 3, 1, 1),
        "stage1.residual.3.weight": (32, 1, 3, 3),
        "stage6.2.residual.7.bias": (160,),
        "conv1.0.weight": (1280, 320, 1, 1),
        "conv2.weight": (10, 1280, 1, 1),
    },
    "shufflenetv2": {
        "pre.0.bias": (24,),
        "stage3.0.shortcut.2.weight": (116, 116, 1, 1),
        "stage3.7.residual.3.weight": (116, 1, 3, 3),
        "conv5.0.weight": (1024, 464, 1, 1),
        "fc.weight": (10, 1024),
    },
}


@pytest.mark.parametrize("spec", PUBLIC_NAMES)
def test_names_are_those_of_the_public_code(spec: str) -> None:
    shapes = {name: tuple(value.shape) for name, value in net(spec).state_dict().items()}
    assert PUBLIC_NAMES[spec].items() <= shapes.items()


class Malicious:
    """Unpickling this with Python's own pickle creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["torch", "nested", "legacy", "pickle0", "pickle2", "pickle5"])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(form: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    bomb = Malicious(trace)
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(bomb, protocol=int(form[-1])))
        pickle.loads(path.read_bytes())
        assert trace.exists()  # the bomb works
        trace.unlink()
    else:
        content = {"state_dict": {"a": torch.zeros(1)}, "extra": bomb} if form == "nested" else bomb
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(CheckpointError, match="would execute code") as caught:
        import_checkpoint(path)
    assert not trace.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="would execute code"):
        import_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", ["pt", "tar", "safetensors"])
def test_damaged_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        import_checkpoint(path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        import_checkpoint(tmp_path)
    path.touch()
    with pytest.raises(CheckpointError, match="is empty"):
        import_checkpoint(path)
    for garbage in (b"hello, this is no checkpoint" * 9, bytes(range(256)) * 9, b"PK\x03\x04" + bytes(99), b"\x80"):
        path.write_bytes(garbage)
        with pytest.raises(CheckpointError, match="is damaged or not a") as caught:
            import_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "plain", "legacy"])
@pytest.mark.parametrize("kept", [0.001, 0.1, 0.5, 0.99])
def test_truncated_files(form: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pt")
    save(net(), path, form)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match="is damaged or not a"):
        import_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "got the type Tensor"),
        ([torch.zeros(3)], "got the type list"),
        ({}, "got an empty mapping"),
        ({"epoch": 1, "weights": {"a": torch.zeros(1)}}, "got a mapping with 'epoch', 'weights'"),
        ({"state_dict": 5}, "got the type int"),
        ({"state_dict": {"a": 5}}, "got a mapping with 'a'"),
    ],
)
def test_files_without_weights(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(tmp_path / "model.pt")


def test_a_prefix_on_some_keys_only_is_part_of_the_names(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.ones(1)}, tmp_path / "model.pt")
    assert set(import_checkpoint(tmp_path / "model.pt")) == {"module.a", "b"}


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (net(num_classes=100), net(), "the checkpoint has 100 classes, the model 10;"),
        (net("resnet18(width=0.1)", 100), net("resnet18(width=0.1)"), "the checkpoint has 100 classes, the model 10;"),
        (
            net("mobilenetv2(width=0.1)", 9),
            net("mobilenetv2(width=0.1)"),
            "the checkpoint has 9 classes, the model 10;",
        ),
        (net(in_channels=1), net(), "the checkpoint has 1 input channels, the model 3;"),
        (net("mlp(hidden=(8,))", size=8), net("mlp(hidden=(8,))"), "the checkpoint has 192 inputs, the model 3072;"),
        (net(num_classes=7, in_channels=1), net(), "has 7 classes, the model 10; the checkpoint has 1 input channels"),
        (
            net("mlp(hidden=())", 7, size=8),
            net("mlp(hidden=())"),
            "has 7 classes, the model 10; the checkpoint has 192",
        ),
        (nn.BatchNorm1d(3), nn.BatchNorm1d(4), r"weight is \(3,\) in the checkpoint and \(4,\) in the model;"),
        (net(size=64), net(), r"fc1.weight is \(16, 1024\) in the checkpoint and \(16, 256\) in the model;"),
        (net("cnn(channels=8)"), net(), r"conv1.weight is \(8, 3, 3, 3\) .*; and \d+ more;"),
        (net("preresnet20"), net("preresnet32"), r"72 missing \(layer1.3.bn1.weight, .*, \.\.\.\)"),
        (net("preresnet32"), net("preresnet20"), r"72 unexpected \(layer1.3.bn1.weight, .*, \.\.\.\)"),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_untouched(theirs: nn.Module, ours: nn.Module, message: str) -> None:
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(ours, theirs.state_dict(), source="old/best_model.tar")
    assert "\n" not in str(caught.value)
    assert "old/best_model.tar" in str(caught.value)
    assert equal(ours.state_dict(), before)

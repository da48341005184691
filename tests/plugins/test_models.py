from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from undistill.errors import RecipeError, ShapeError, UnknownNameError
from undistill.models import MODELS, build_model, check_model, check_model_spec, list_models
from undistill.models.features import last_layer, logits_and_features
from undistill.models.sizing import scaled
from undistill.registry import Spec

# name: parameters at 10 classes, tensors in the state dict, features before the last layer; of the public code.
PAPER = {
    "cnn": (357_514, 30, 128),
    "mlp": (1_841_162, 6, 512),
    "preresnet20": (272_282, 118, 64),
    "preresnet32": (466_714, 190, 64),
    "preresnet44": (683_162, 389, 256),
    "preresnet56": (868_634, 497, 256),
    "preresnet110": (1_703_258, 983, 256),
    "resnet18": (11_173_962, 122, 512),
    "resnet34": (21_282_122, 218, 512),
    "resnet50": (23_520_842, 320, 2048),
    "resnext29": (34_426_698, 188, 1024),
    "mobilenetv2": (2_254_090, 373, 1280),
    "shufflenetv2": (1_268_646, 394, 1024),
}
# name: parameters at 100 classes and 32x32, and at 200 classes and 64x64; of the public code where it runs, and the
# last two nets' 64x64 worked by hand, layer by layer.
MORE_CLASSES = {
    "resnet18": (11_220_132, 11_271_432),
    "resnet34": (21_328_292, 21_379_592),
    "resnet50": (23_705_252, 23_910_152),
    "resnext29": (34_518_948, 34_621_448),
    "preresnet20": (278_132, 272_282 + 190 * 65),
    "preresnet32": (472_564, 466_714 + 190 * 65),
    "preresnet44": (706_292, 683_162 + 190 * 257),
    "preresnet56": (891_764, 868_634 + 190 * 257),
    "preresnet110": (1_726_388, 1_703_258 + 190 * 257),
    "mobilenetv2": (2_369_380, 2_497_480),
    "shufflenetv2": (1_360_896, 1_463_396),
    "cnn": (369_124, 896 + 64 + 18_496 + 128 + 73_856 + 256 + (64 * 128 * 128 + 128) + 256 + (128 * 200 + 200)),
    "mlp": (1_887_332, (12_288 * 512 + 512) + (512 * 512 + 512) + (512 * 200 + 200)),
}
SHAPE = {"num_classes": 10, "in_channels": 3, "image_size": 32}


def on_meta(name: str, **kwargs: object) -> nn.Module:
    """Build without memory: shapes only."""
    with torch.device("meta"):
        return MODELS[name](**kwargs)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def weights_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_all_of_the_papers_models_are_listed() -> None:
    assert set(PAPER) <= set(list_models())
    assert list(list_models()) == sorted(list_models())


@pytest.mark.parametrize("name", PAPER)
def test_parameter_counts_and_state_dict_lengths(name: str) -> None:
    model = on_meta(name)
    assert (parameters(model), len(model.state_dict())) == PAPER[name][:2]
    assert parameters(on_meta(name, num_classes=100)) == MORE_CLASSES[name][0]
    assert parameters(on_meta(name, num_classes=200, image_size=64)) == MORE_CLASSES[name][1]


@pytest.mark.parametrize("name", PAPER)
def test_every_net_takes_every_size_and_channel_count(name: str) -> None:
    for size, channels in itertools.product((8, 28, 32, 64), (1, 3)):
        spec = Spec(name, {"width": 0.125})
        model = build_model(spec, num_classes=7, in_channels=channels, image_size=size).eval()
        with torch.no_grad():
            assert model(torch.rand(1, channels, size, size)).shape == (1, 7)


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_a_net_of_fixed_size_refuses_other_images(name: str) -> None:
    model = build_model(name, **SHAPE).eval()
    with pytest.raises(ShapeError, match=r"\(3, 32, 32\), got \(3, 64, 64\)"):
        model(torch.rand(2, 3, 64, 64))


def test_cnn_refuses_images_that_are_too_small_when_it_is_built() -> None:
    with pytest.raises(ShapeError, match="8x8 or more, got 7x7"):
        build_model("cnn", num_classes=10, in_channels=3, image_size=7)


# Height of the map that leaves each part at 32x32. MobileNetV2's padded 1x1 stem makes 34 of it.
MAPS = {
    "resnet18": {"conv1": 32, "layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4},
    "resnet50": {"conv1": 32, "layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4},
    "preresnet20": {"conv1": 32, "layer1": 32, "layer2": 16, "layer3": 8},
    "resnext29": {"conv_1_3x3": 32, "stage_1": 32, "stage_2": 16, "stage_3": 8},
    "mobilenetv2": {"pre": 34, "stage1": 34, "stage2": 17, "stage3": 9, "stage4": 5, "stage5": 5, "stage7": 5},
    "shufflenetv2": {"pre": 32, "stage2": 16, "stage3": 8, "stage4": 4, "conv5": 4},
}


@pytest.mark.parametrize("name", MAPS)
def test_spatial_sizes_of_the_stages(name: str) -> None:
    model, seen = on_meta(name), {}

    def keep(part: str) -> object:
        return lambda module, inputs, output: seen.update({part: output.shape[-1]})

    for part in MAPS[name]:
        model.get_submodule(part).register_forward_hook(keep(part))
    model(torch.empty(2, 3, 32, 32, device="meta"))
    assert seen == MAPS[name]


def test_resnet18_does_the_multiplications_worked_by_hand() -> None:
    stem, stage1, classifier = 3 * 64 * 9 * 32**2, 4 * 64 * 64 * 9 * 32**2, 512 * 10
    stage2 = (64 * 128 * 9 + 3 * 128 * 128 * 9 + 64 * 128) * 16**2  # stages 3 and 4 cost the same
    with FlopCounterMode(display=False) as counter:
        on_meta("resnet18")(torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() == 2 * (stem + stage1 + 3 * stage2 + classifier) == 2 * 555_422_720


def test_channel_shuffle_interleaves_the_branches() -> None:
    unit = build_model("shufflenetv2", **SHAPE).eval().get_submodule("stage2.1")
    x = torch.rand(2, 116, 4, 4)
    with torch.no_grad():
        out, right = unit(x), unit.get_submodule("residual")(x[:, 58:])
    for channel in range(58):
        assert torch.equal(out[:, 2 * channel], x[:, channel])
        assert torch.allclose(out[:, 2 * channel + 1], right[:, channel])


def test_mlp_has_a_relu_on_its_logits_unless_told_otherwise() -> None:
    x = torch.randn(8, 3, 32, 32)
    plain = build_model("mlp(relu_logits=False)", **SHAPE, seed=0)
    paper = build_model("mlp", **SHAPE, seed=0)
    assert plain(x).min() < 0
    assert torch.equal(paper(x), plain(x).clamp(min=0))
    w1, b1, w2, b2, w3, b3 = plain.parameters()
    h = torch.relu(torch.relu(x.flatten(1) @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(plain(x), h @ w3.T + b3)


def test_cnn_channels_dropout_and_width() -> None:
    small = on_meta("cnn", channels=4)
    assert [layer.out_channels for layer in small.modules() if isinstance(layer, nn.Conv2d)] == [4, 8, 16]
    assert [layer.out_features for layer in small.modules() if isinstance(layer, nn.Linear)] == [16, 10]
    assert parameters(on_meta("cnn", width=0.5)) == parameters(on_meta("cnn", channels=16))
    dropping = build_model("cnn(dropout=0.5)", **SHAPE, seed=0).train()
    x = torch.rand(64, 3, 32, 32)
    assert not torch.equal(dropping(x), dropping(x))
    plain = build_model("cnn", **SHAPE, seed=0).train()
    assert torch.equal(plain(x), plain(x))


def test_mlp_hidden_layers() -> None:
    model = on_meta("mlp", hidden=[32, 16], width=0.5)
    assert [tuple(p.shape) for p in model.parameters() if p.ndim == 2] == [(16, 3072), (8, 16), (10, 8)]
    assert list(on_meta("mlp", hidden=()).state_dict()) == ["fc1.weight", "fc1.bias"]


@pytest.mark.parametrize(
    ("channels", "width", "multiple", "expected"),
    [
        (64, 1.0, 1, 64),
        (116, 1, 2, 116),
        (1024, 1.0, 4, 1024),
        (64, 0.5, 1, 32),
        (24, 0.0001, 1, 1),
        (116, 0.25, 2, 30),
        (256, 0.01, 4, 4),
        (16, 0.3, 1, 5),
    ],
)
def test_scaled(channels: int, width: float, multiple: int, expected: int) -> None:
    assert scaled(channels, width, multiple=multiple) == expected


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("width", [0.001, 0.37, 1.3])
def test_any_width_runs(name: str, width: float) -> None:
    model = on_meta(name, width=width)
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert (parameters(model) > PAPER[name][0]) == (width > 1)


def test_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    a = build_model("preresnet20", **SHAPE, seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    b = build_model("preresnet20", **SHAPE, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_equal(a, b)
    assert not weights_equal(a, build_model("preresnet20", **SHAPE, seed=4))
    torch.manual_seed(3)
    assert weights_equal(a, build_model("preresnet20", **SHAPE))
    with torch.device("meta"):
        assert weights_equal(a, build_model("preresnet20", **SHAPE, seed=3))


def test_initial_weights_follow_the_families_rules() -> None:
    pre = build_model("preresnet56", **SHAPE, seed=0)
    for conv in (m for m in pre.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 4000):
        target = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        assert conv.weight.std().item() == pytest.approx(target, rel=0.1)
    nxt = build_model("resnext29(width=0.25)", **SHAPE, seed=0)
    for conv in (m for m in nxt.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 4000):
        # the init rule reads the tensor's shape, so groups do not enter
        target = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        assert conv.weight.std().item() == pytest.approx(target, rel=0.1)
    classifier = nxt.get_submodule("classifier")
    assert classifier.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.1)
    assert not classifier.bias.any()
    res = build_model("resnet18(width=0.25)", **SHAPE, seed=0)
    conv = res.get_submodule("layer4.1.conv2")
    assert conv.weight.abs().max().item() == pytest.approx(1 / math.sqrt(9 * 128), rel=0.01)  # torch's uniform


@pytest.mark.parametrize("name", PAPER)
def test_features_before_the_last_layer(name: str) -> None:
    model = build_model(name, num_classes=5, in_channels=3, image_size=16 if name != "mlp" else 32, seed=0).eval()
    size = 32 if name == "mlp" else 16
    x = torch.rand(3, 3, size, size)
    with torch.no_grad():
        logits, features = logits_and_features(model, x)
        assert features.shape == (3, PAPER[name][2])
        assert torch.equal(logits, model(x))
        assert torch.equal(features, last_layer(model, x)[1].flatten(1))
    weight, bias = list(model.parameters())[-2:]
    again = F.linear(features, weight.flatten(1), bias)
    torch.testing.assert_close(again.relu() if name == "mlp" else again, logits)
    assert not any(module._forward_pre_hooks for module in model.modules())


class HeadFirst(nn.Module):
    """The head is registered first and runs last, after a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.body = nn.Linear(4, 6)
        self.unused = nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def test_the_last_layer_is_the_one_that_runs_last() -> None:
    model, x = HeadFirst(), torch.rand(5, 4)
    features = logits_and_features(model, x)[1]
    assert torch.equal(features, model.body(x))
    assert features.requires_grad
    with pytest.raises(ShapeError, match="no linear layer"):
        logits_and_features(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), torch.rand(2, 3, 8, 8))


NETS = """
from torch import nn

def make(num_classes, image_size, depth=1):
    layers = [nn.Linear(3 * image_size**2, 3 * image_size**2) for _ in range(depth)]
    return nn.Sequential(nn.Flatten(1), *layers, nn.Linear(3 * image_size**2, num_classes))

def anything(**kwargs):
    raise SystemExit("called")

def with_options(num_classes, **kwargs):
    return make(num_classes, kwargs["image_size"])

def needs(num_classes, depth):
    return None

def picky(num_classes):
    raise ValueError("I do not like\\nthis")

def two_rows(num_classes):
    class Twice(nn.Module):
        def forward(self, x):
            return x.new_zeros(2 * len(x), num_classes)
    return Twice()

def several(num_classes):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()

def broken(num_classes):
    return nn.Linear(5, num_classes)

class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3, num_classes)
        self.frozen = nn.BatchNorm1d(3).eval()

    def forward(self, x):
        return self.fc(self.frozen(self.pool(x).flatten(1)))

NUMBER = 5
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory, which is not on the import path."""
    (tmp_path / "own_nets.py").write_text(NETS)
    (tmp_path / "bad_nets.py").write_text("import there_is_no_such_module")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return "own_nets"


def test_module_and_callable(nets: str) -> None:
    path = list(sys.path)
    model = build_model("own_nets:make(depth=2)", **SHAPE, seed=0)
    assert [m.out_features for m in model if isinstance(m, nn.Linear)] == [3072, 3072, 10]
    assert build_model({"name": "own_nets:with_options"}, **SHAPE)(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    net = build_model(Spec("own_nets:Net"), **SHAPE)
    assert net.training
    assert not net.get_submodule("frozen").training
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_nets:make(dept=2)", "no argument 'dept'; did you mean 'depth'"),
        ("own_nets:needs", "needs the argument 'depth'"),
        ("own_nets:needs(depth=1)", "returned NoneType, expected a torch.nn.Module"),
        ("own_nets:picky", "cannot be built: ValueError: I do not like this"),
        ("own_nets:zzz", "has no 'zzz' to build a model with; name a function"),
        ("own_nets:mak", "did you mean 'make'"),
        ("own_nets:NUMBER", "is of type int, expected a function or a class"),
        ("no_such_nets:make", "cannot import 'no_such_nets'"),
        ("bad_nets:make", "there_is_no_such_module"),
        ("own-nets:make", "expected module:callable"),
        ("own_nets:", "expected 'name' or 'name"),
    ],
)
def test_bad_callables(nets: str, spec: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build_model(spec, **SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", ["os:system(command={!r})", "subprocess:run(args={!r}, shell=True)"])
def test_a_spec_runs_no_commands(tmp_path: Path, call: str) -> None:
    marker = tmp_path / "executed"
    with pytest.raises(RecipeError, match=r"was not called: expected a subclass of torch\.nn\.Module, or a function"):
        build_model(call.format(f"touch {marker}"), **SHAPE)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["anything", "nn.functional.relu"])
def test_only_what_builds_models_is_called(nets: str, name: str) -> None:
    with pytest.raises(RecipeError, match="a parameter named num_classes"):
        build_model(f"own_nets:{name}", **SHAPE)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_nets:two_rows", r"turns a batch of shape \(2, 3, 32, 32\) into \(4, 10\), expected \(2, 10\)"),
        ("own_nets:several", "into tuple"),
        ("own_nets:broken", "fails on a batch"),
    ],
)
def test_bad_outputs(nets: str, spec: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        build_model(spec, **SHAPE)


def test_an_instance_is_checked_the_same_way() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Dropout(), nn.Linear(3, 10))
    model[2].eval()
    check_model(model, name="mine", **SHAPE)
    assert [module.training for module in model] == [True, True, False, True]
    with pytest.raises(ShapeError, match=r"'mine' .* expected \(2, 11\)"):
        check_model(model, name="mine", num_classes=11, in_channels=3, image_size=32)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet81", "did you mean 'resnet18'"),
        ("resnet18(widht=0.5)", "no argument 'widht'; did you mean 'width'"),
        ("resnet18(zzz=0.5)", "it takes: width"),
        ("resnet18(num_classes=5)", "num_classes comes from the data set"),
        ("resnet18(width=0)", "width must be a number above 0"),
        ("resnet18(width=-1.0)", "width must be a number above 0"),
        ("resnet18(width='a')", "width must be a number above 0"),
        ("resnet18(width=True)", "width must be a number above 0"),
        ({"name": "resnet18", "width": math.nan}, "width must be a number above 0"),
        ("cnn(channels=0)", "channels must be a whole number from 1 up"),
        ("cnn(channels=1.5)", "channels must be a whole number from 1 up"),
        ("cnn(dropout=1)", "dropout must be"),
        ("mlp(hidden=32)", "hidden must be a list"),
        ("mlp(hidden=(32, 0))", "hidden must be a list"),
        ("mlp(relu_logits=1)", "relu_logits must be true or false"),
        ("resnet18(0.5)", "cannot read"),
        ({"width": 0.5}, "'name'"),
    ],
)
def test_bad_specs(spec: str | dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build_model(spec, **SHAPE)
    assert "\n" not in str(caught.value)


def test_every_problem_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        build_model("cnn(channels=0, dropout=2)", **SHAPE)
    assert len(caught.value.problems) == 2
    with pytest.raises(RecipeError) as caught:
        build_model("mlp(width=-1)", num_classes=1, in_channels=0, image_size=3.5)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4
    assert len(check_model_spec("resnet18(widht=1, image_size=8, colour='red')")) == 3


def test_check_model_spec_finds_problems_without_building() -> None:
    assert check_model_spec("resnext29(width=0.5)") == []
    assert check_model_spec("no_such_module:make(depth=3)") == []
    assert check_model_spec({"name": "cnn", "channels": 16}) == []
    assert "did you mean 'cnn'" in check_model_spec("cnnn")[0]
    assert "did you mean 'channels'" in check_model_spec("cnn(chanels=16)")[0]
    assert "module:callable" in check_model_spec("a-b:make")[0]
    assert len(check_model_spec("cnn(16)")) == 1
    with pytest.raises(UnknownNameError):
        build_model("cnnn", **SHAPE)

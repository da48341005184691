"""Operations are counted right, and counting leaves no trace."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from undistill.attacks.kd import KD
from undistill.data.loader import Batch
from undistill.defenses.nasty import Nasty
from undistill.engine.flops import count_flops, forward_flops, matmul_rate, shapes_only
from undistill.errors import RecipeError
from undistill.methods.ce import CE
from undistill.models import build_model
from undistill.objective import Frozen, Nets, StepOutput
from undistill.victim import Victim


def batch(size: int, channels: int = 3, pixels: int = 8) -> Batch:
    labels = torch.arange(size) % 2
    return Batch(torch.rand(size, channels, pixels, pixels), labels, labels)


def test_convolution_and_linear_layer_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(1), nn.Linear(64, 10))
    conv, linear = 4 * 16 * 3 * 9, 64 * 10  # multiplications with an addition: 4x4 positions
    assert forward_flops(net, (5, 3, 8, 8)) == 5 * 2 * (conv + linear)
    step = count_flops(CE(), Nets(net), batch(5))
    assert step.forward == 5 * 2 * (conv + linear)
    # Back to the weights of both, and to the images of the linear layer; nobody asks for those of the convolution.
    assert step.backward == 5 * 2 * (conv + 2 * linear)
    assert (step.total, step.images) == (step.forward + step.backward, 5)
    assert step.per_image == step.total / 5


def test_gradient_of_a_grouped_convolution_is_not_that_of_a_full_one() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, padding=1, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
    )
    first, grouped = 64 * 6 * 3, 64 * 12 * 2 * 9  # every output channel sees 6 / 3 = 2 input channels
    step = count_flops(CE(), Nets(net), batch(2))
    assert step.forward == 2 * 2 * (first + grouped)
    assert step.backward == 2 * 2 * (first + 2 * grouped)


def test_transposed_convolution_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.ConvTranspose2d(2, 5, 2, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    first, transposed = 64 * 2 * 3, 64 * 2 * 5 * 4  # each of 8x8 inputs goes to a 2x2 patch
    step = count_flops(CE(), Nets(net), batch(2))
    assert (step.forward, step.backward) == (4 * (first + transposed), 4 * (first + 2 * transposed))


@pytest.mark.parametrize(
    ("model", "gflop"),
    [
        ("cnn", 0.021),
        ("shufflenetv2", 0.087),
        ("preresnet20", 0.082),
        ("preresnet32", 0.138),
        ("mobilenetv2", 0.130),
        ("resnet18", 1.111),
        ("resnet50", 2.596),
        ("resnext29", 10.775),
    ],
)
def test_paper_nets_take_what_the_authors_nets_take(model: str, gflop: float) -> None:
    """The figures were counted on the networks of the paper's own code, at 3x32x32."""
    with shapes_only():
        net = build_model(model, num_classes=10, in_channels=3, image_size=32)
        assert forward_flops(net, (1, 3, 32, 32)) / 1e9 == pytest.approx(gflop, rel=0.02, abs=0.0005)


def test_a_step_takes_three_forward_passes() -> None:
    """Every layer but the first has two gradients of its own size; the nets of the paper with groups and without."""
    for model in ("preresnet20", "resnext29"):
        with shapes_only():
            net = build_model(model, num_classes=10, in_channels=3, image_size=32)
            step = count_flops(CE(), Nets(net), batch(4, pixels=32))
            assert step.per_image / forward_flops(net, (1, 3, 32, 32)) == pytest.approx(3, rel=0.01)


def test_frozen_nets_count_one_forward_pass() -> None:
    student, teacher = (
        build_model(name, num_classes=10, in_channels=3, image_size=16) for name in ("cnn", "resnet18(width=0.125)")
    )
    images = batch(6, pixels=16)
    alone, frozen = count_flops(CE(), Nets(student), images), forward_flops(teacher, (6, 3, 16, 16))
    assert count_flops(KD(), Nets(student, victim=Victim(deepcopy(teacher))), images).total == alone.total + frozen
    nasty = count_flops(Nasty(), Nets(student, adversary=Frozen(deepcopy(teacher))), images)
    assert (nasty.forward, nasty.backward) == (alone.forward + frozen, alone.backward)


def test_counting_leaves_no_trace() -> None:
    net = build_model("resnet18(width=0.125)", num_classes=10, in_channels=3, image_size=16).eval()
    pixels = ((0.5,) * 3, (0.2,) * 3), ((0.4,) * 3, (0.2,) * 3)
    victim = Victim(deepcopy(net), trained_on=pixels[0], queried_with=pixels[1])
    images = batch(4, pixels=16)
    before, state = deepcopy(net.state_dict()), torch.get_rng_state()
    count_flops(KD(), Nets(net, victim=victim), images)
    forward_flops(net, (4, 3, 16, 16))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert victim.queries == 0
    assert not net.training
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert net(torch.ones(1, 3, 16, 16)).isfinite().all()  # it still computes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_counting_works_where_gradients_are_off(mode: Callable[[], AbstractContextManager[None]]) -> None:
    net, images = nn.Sequential(nn.Flatten(1), nn.Linear(192, 10)), batch(2)
    with mode():
        assert count_flops(CE(), Nets(net), images).total == 2 * 2 * 2 * 1920


def test_a_step_that_reads_values_is_refused() -> None:
    class Reads(CE):
        name = "reads"

        def step(self, batch: Batch, nets: Nets) -> StepOutput:
            output = super().step(batch, nets)
            return output if output.loss.item() > 0 else StepOutput(2 * output.loss, output.logits)

    with pytest.raises(RecipeError, match=r"'reads' cannot be counted.*\.item\(\)"):
        count_flops(Reads(), Nets(nn.Sequential(nn.Flatten(1), nn.Linear(192, 2))), batch(2))


def test_matrix_rate_is_that_of_a_product_by_hand() -> None:
    def seconds(a: Tensor) -> float:
        start = time.perf_counter()
        a @ a
        return time.perf_counter() - start

    rate = matmul_rate(torch.device("cpu"), seconds=0.1)
    a = torch.ones(1024, 1024)
    assert 0.25 < 2 * 1024**3 / min(seconds(a) for _ in range(8)) / rate < 4

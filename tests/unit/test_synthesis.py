"""The terms that thieves without data minimise, against values worked out by hand, and the victim that they open."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from undistill.attacks import ATTACKS
from undistill.attacks.dfme import disagreement, forward_difference
from undistill.attacks.generating import Generating
from undistill.data.dataset import Frame
from undistill.errors import AccessError, RecipeError, ShapeError
from undistill.functional.synthesis import (
    activation_loss,
    batch_norm_loss,
    centered_log_probs,
    image_norm,
    information_entropy_loss,
    jensen_shannon,
    one_hot_loss,
    total_variation,
)
from undistill.models import build_model
from undistill.models.generator import Generator
from undistill.objective import Nets
from undistill.victim import Access, Victim


def log(*rows: list[float]) -> Tensor:
    """Return logits whose softmax are these probabilities, shifted by a constant, which must not matter."""
    return torch.tensor(rows).log() + 3.0


# --- terms ------------------------------------------------------------------------------------------------------------


def test_one_hot() -> None:
    found = one_hot_loss(log([0.5, 0.25, 0.25], [0.1, 0.1, 0.8]))
    assert float(found) == pytest.approx((math.log(2) - math.log(0.8)) / 2, rel=1e-6)


def test_information_entropy() -> None:
    # The mean answer is (0.75, 0.25).
    found = information_entropy_loss(log([0.9, 0.1], [0.6, 0.4]))
    assert float(found) == pytest.approx(0.75 * math.log10(0.75) + 0.25 * math.log10(0.25), rel=1e-6)
    sure = torch.eye(10) * 100.0  # every class once
    assert float(information_entropy_loss(sure)) == pytest.approx(-1.0, rel=1e-6)
    assert float(information_entropy_loss(sure[:1].repeat(4, 1))) == pytest.approx(0.0, abs=1e-6)


def test_information_entropy_has_a_gradient_where_a_class_never_occurs() -> None:
    logits = torch.tensor([[200.0, -200.0], [200.0, -200.0]], requires_grad=True)
    information_entropy_loss(logits).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_activation() -> None:
    assert float(activation_loss(torch.tensor([[1.0, -2.0], [0.0, 5.0]]))) == -2.0


def test_batch_norm() -> None:
    found = batch_norm_loss(
        torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 4.0]), torch.tensor([1.0, 3.0])
    )
    assert float(found) == 5.0 + 2.0


def test_batch_norm_has_a_gradient_where_it_is_zero() -> None:
    mean = torch.tensor([1.0, 2.0], requires_grad=True)
    batch_norm_loss(mean, mean, mean.detach(), mean.detach()).backward()  # type: ignore[no-untyped-call]
    assert mean.grad is not None
    assert mean.grad.tolist() == [0.0, 0.0]


def test_total_variation() -> None:
    x = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    right, down = math.sqrt(1**2 + 2**2), math.sqrt(2**2 + 3**2)
    assert float(total_variation(x)) == pytest.approx(right + down + 4 + 1, rel=1e-6)
    assert float(total_variation(torch.full((2, 3, 5, 5), 7.0))) == 0.0


def test_image_norm() -> None:
    assert float(image_norm(torch.tensor([[[[3.0]]], [[[4.0]]]]))) == 5.0


def test_jensen_shannon() -> None:
    p, q = [0.5, 0.5], [0.9, 0.1]
    m = [0.7, 0.3]
    by_hand = sum(a * math.log(a / c) for row in (p, q) for a, c in zip(row, m, strict=True)) / 2
    assert float(jensen_shannon(log(p), log(q))) == pytest.approx(by_hand, rel=1e-5)
    assert float(jensen_shannon(log(p), log(p))) == pytest.approx(0.0, abs=1e-7)
    far = torch.tensor([[100.0, -100.0]])
    assert float(jensen_shannon(far, -far)) == pytest.approx(math.log(2), rel=1e-6)
    # Temperature 2 of squared probabilities is temperature 1 of the probabilities.
    assert float(jensen_shannon(2 * log(p), 2 * log(q), 2.0)) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("gap", [1.0, 15.0, 40.0, 80.0])
def test_centered_log_probs_of_a_victim_that_is_sure(gap: float) -> None:
    logits = gap * torch.tensor([[1.0, 0.5, 0.0, 0.25]])
    exact = logits.double().log_softmax(dim=1)
    expected = exact - exact.mean(dim=1, keepdim=True)
    torch.testing.assert_close(centered_log_probs(logits.softmax(dim=1)).double(), expected, rtol=1e-5, atol=1e-5)


def test_centered_log_probs() -> None:
    found = centered_log_probs(torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]))
    third = math.log(2) / 3
    assert found[0].tolist() == pytest.approx([2 * third, -third, -third], rel=1e-5)
    assert bool(found.isfinite().all())


def test_wrong_shapes_are_refused() -> None:
    for term in (one_hot_loss, information_entropy_loss):
        with pytest.raises(ShapeError):
            term(torch.zeros(3))
    with pytest.raises(ShapeError):
        jensen_shannon(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(RecipeError):
        jensen_shannon(torch.zeros(2, 3), torch.zeros(2, 3), 0.0)


# --- gradients from values --------------------------------------------------------------------------------------------


def test_disagreement() -> None:
    found = disagreement(torch.tensor([[1.0, -1.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    assert found.tolist() == [2.0, 0.0]


def test_forward_differences_find_the_gradient_on_average() -> None:
    torch.manual_seed(0)
    weight = torch.randn(1, 2, 3, 3)
    asked = []

    def score(x: Tensor) -> Tensor:
        asked.append(len(x))
        return (x * weight).flatten(1).sum(dim=1)

    x = torch.randn(4, 2, 3, 3)
    found = forward_difference(score, x, 4000, 0.5)
    assert asked == [4] * 4001
    # The standard error of an entry is about |w| / sqrt(4000) = 0.07.
    torch.testing.assert_close(found, weight.expand_as(x), rtol=0, atol=0.35)


def test_one_direction_is_the_slope_along_it() -> None:
    torch.manual_seed(0)
    found = forward_difference(lambda x: 3 * x[:, 0, 0, 0], torch.zeros(1, 1, 1, 2), 1, 0.25)
    torch.manual_seed(0)
    u = torch.randn(2)
    u /= u.norm()
    torch.testing.assert_close(found.flatten(), 2 * 3 * u[0] * u)


# --- the open victim --------------------------------------------------------------------------------------------------


@pytest.fixture
def net() -> nn.Module:
    """A net with BatchNorm that has seen some images."""
    model = build_model("cnn(channels=4)", num_classes=10, in_channels=3, image_size=8, seed=0).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(torch.randn(64, 3, 8, 8))
    return model


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_an_open_victim_answers_as_a_closed_one(net: nn.Module) -> None:
    victim = Victim(net, access=Access.GRADIENTS)
    x = images().requires_grad_()
    opened = victim.white_box(x)
    torch.testing.assert_close(opened.logits, victim.logits(x), rtol=0, atol=0)
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(last(opened.features), opened.logits)
    assert opened.statistics == ()
    (gradient,) = torch.autograd.grad(opened.logits.sum(), x)
    y = images().requires_grad_()
    (expected,) = torch.autograd.grad(net.eval()(y).sum(), y)
    torch.testing.assert_close(gradient, expected)


def test_statistics_are_those_of_what_flows_into_each_layer(net: nn.Module) -> None:
    victim = Victim(net, access=Access.GRADIENTS)
    x = images()
    found = victim.white_box(x, statistics=True).statistics
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    assert len(found) == len(norms) == 4
    first = net.conv1(x)  # type: ignore[operator]
    torch.testing.assert_close(found[0].mean, first.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(found[0].var, first.var(dim=(0, 2, 3), unbiased=False))
    for statistics, norm in zip(found, norms, strict=True):
        assert statistics.running_mean is norm.running_mean
        assert statistics.running_var is norm.running_var


def test_statistics_agree_where_the_batch_is_what_the_layer_knows() -> None:
    x = images(16)
    norm = nn.BatchNorm2d(3)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(x.mean(dim=(0, 2, 3)))
    norm.running_var.copy_(x.var(dim=(0, 2, 3), unbiased=False))
    victim = Victim(nn.Sequential(norm, nn.Flatten(1), nn.Linear(192, 10)), access=Access.GRADIENTS)
    (layer,) = victim.white_box(x, statistics=True).statistics
    assert float(batch_norm_loss(layer.mean, layer.var, layer.running_mean, layer.running_var)) < 1e-6
    (other,) = victim.white_box(x + 1, statistics=True).statistics
    found = float(batch_norm_loss(other.mean, other.var, other.running_mean, other.running_var))
    assert found == pytest.approx(math.sqrt(3), rel=1e-5)


def test_opening_changes_nothing_and_is_counted(net: nn.Module) -> None:
    before = {key: value.clone() for key, value in net.state_dict().items()}
    victim = Victim(net, access=Access.GRADIENTS)
    x = images().requires_grad_()
    opened = victim.white_box(x, statistics=True)
    (opened.logits.sum() + sum(layer.var.sum() for layer in opened.statistics)).backward()
    assert victim.queries == 6
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())
    another = victim.another()
    another.white_box(x)
    assert (victim.queries, another.queries) == (6, 6)


@pytest.mark.parametrize("access", [access for access in Access if access < Access.GRADIENTS])
def test_a_closed_victim_does_not_open(net: nn.Module, access: Access) -> None:
    victim = Victim(net, access=access)
    with pytest.raises(AccessError, match=f"the victim gives {access}, not gradients"):
        victim.white_box(images())
    assert victim.queries == 0


def test_an_open_victim_renormalizes(net: nn.Module) -> None:
    own, thief = ((0.5,) * 3, (0.25,) * 3), ((0.4,) * 3, (0.2,) * 3)
    victim = Victim(net, access=Access.GRADIENTS, trained_on=own, queried_with=thief)
    x = images()
    torch.testing.assert_close(victim.white_box(x).logits, victim.logits(x), rtol=0, atol=0)


def test_has_statistics(net: nn.Module) -> None:
    assert Victim(net).has_statistics
    assert not Victim(build_model("mlp", num_classes=10, in_channels=3, image_size=8, seed=0)).has_statistics


# --- the generator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64), (3, 30)])
def test_generator_makes_images_of_any_size(channels: int, size: int) -> None:
    x = Generator(16, channels, size, channels=8, last=nn.Identity())(torch.randn(12, 16))
    assert x.shape == (12, channels, size, size)


def published(name: str) -> nn.Module:
    """Return an attack's generator of 3 x 32 x 32 images, layer by layer as its authors have it."""
    epsilon = 0.8 if name == "dafl" else 1e-5
    bias = name != "fast_datafree"
    last: dict[str, list[nn.Module]] = {
        "dafl": [nn.Tanh(), nn.BatchNorm2d(3, affine=False)],
        "dfme": [nn.BatchNorm2d(3, affine=False)],
        "fast_datafree": [nn.Sigmoid()],
    }
    return nn.Sequential(
        nn.Linear(16, 8 * 64),
        nn.Unflatten(1, (8, 8, 8)),
        nn.BatchNorm2d(8),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 8, 3, stride=1, padding=1, bias=bias),
        nn.BatchNorm2d(8, epsilon),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 4, 3, stride=1, padding=1, bias=bias),
        nn.BatchNorm2d(4, epsilon),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 3, 3, stride=1, padding=1),
        *last[name],
    )


@pytest.mark.parametrize("name", ["dafl", "dfme", "fast_datafree"])
def test_generators_are_those_of_the_authors(name: str) -> None:
    frame = Frame(10, 3, 32, (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    companion = ATTACKS[name](latent=16, channels=8).companion(Nets(nn.Identity()), frame, torch.device("cpu"))
    assert isinstance(companion, Generating)
    own = [m for m in companion.generator.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm2d)]
    theirs = published(name)
    layers = [m for m in theirs if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm2d)]  # type: ignore[attr-defined]
    for layer, twin in zip(layers, own, strict=True):
        layer.load_state_dict({key: twin.state_dict()[key] for key in layer.state_dict()})
    z = torch.randn(12, 16)
    torch.testing.assert_close(companion.generator(z), theirs(z), rtol=1e-4, atol=1e-5)

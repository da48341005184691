"""The victim: what it gives away, what it counts, and that it never changes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import undistill
from undistill.data.loader import normalize
from undistill.errors import AccessError, RunError, ShapeError, UndistillError, UnknownNameError
from undistill.models import build_model
from undistill.victim import Access, Victim, asked_once
from undistill.victim.answers import check_answers

CLASSES = 10


@pytest.fixture
def net() -> nn.Module:
    """A net with BatchNorm and dropout that has seen some images."""
    model = build_model("cnn(channels=4, dropout=0.5)", num_classes=CLASSES, in_channels=3, image_size=8, seed=0)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(torch.randn(64, 3, 8, 8))
    return model


def images(n: int = 7) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_levels_are_ordered():
    assert [str(access) for access in sorted(Access)] == ["labels", "probs", "logits", "features", "gradients"]


def test_answers_are_the_nets(net: nn.Module):
    x = images()
    expected = net.eval()(x).detach()
    victim = Victim(net, access=Access.GRADIENTS)
    torch.testing.assert_close(victim.logits(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(victim.probs(x), torch.softmax(expected, 1), rtol=0, atol=0)
    assert victim.labels(x).tolist() == expected.argmax(1).tolist()
    assert victim.labels(x).dtype == torch.int64


def test_half_precision_answers_are_float32(net: nn.Module):
    victim = Victim(net.half(), access=Access.LOGITS)
    assert victim.logits(images().half()).dtype == torch.float32
    assert victim.probs(images().half()).dtype == torch.float32


@pytest.mark.parametrize("access", Access)
def test_only_what_is_given_away(net: nn.Module, access: Access):
    victim = Victim(net, access=access)
    questions = victim.labels, victim.probs, victim.logits, victim.features, victim.white_box
    for needed, ask in zip(Access, questions, strict=True):
        before = victim.queries
        if needed <= access:
            ask(images())
            assert victim.queries == before + 7
        else:
            with pytest.raises(AccessError, match=f"the victim gives {access}, not {needed}"):
                ask(images())
            assert victim.queries == before  # what was refused was not asked


@pytest.mark.parametrize("access", Access)
def test_require(net: nn.Module, access: Access):
    victim = Victim(net, access=access)
    for needed in Access:
        if needed <= access:
            victim.require(needed, "kd")
        else:
            with pytest.raises(AccessError) as caught:
                victim.require(needed, "kd")
            assert str(caught.value) == (
                f"attack 'kd' needs the victim's {needed}, but it gives {access}; choose an attack that needs no more "
                f"than {access}, or declare access={needed}"
            )
            assert caught.value.exit_code == 2
            assert isinstance(caught.value, UndistillError)
    assert victim.queries == 0


def test_default_is_logits(net: nn.Module):
    assert Victim(net).access == Access.LOGITS


def test_queries_are_images(net: nn.Module):
    victim = Victim(net)
    for n in (3, 1, 5):
        victim.labels(images(n))
        victim.logits(images(n))
    assert victim.queries == 2 * (3 + 1 + 5)


def test_renormalization(net: nn.Module):
    """The thief's images are normalized with other numbers than those that the victim was trained with."""
    pixels = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    own = ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    thief = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    expected = net.eval()(normalize(pixels, *own)).detach()
    victim = Victim(net, trained_on=own, queried_with=thief)
    torch.testing.assert_close(victim.logits(normalize(pixels, *thief)), expected, rtol=1e-4, atol=1e-4)
    naive = Victim(net).logits(normalize(pixels, *thief))
    assert float((naive - expected).abs().max()) > 0.01  # it matters
    same = Victim(net, trained_on=own, queried_with=own)
    torch.testing.assert_close(same.logits(normalize(pixels, *own)), expected, rtol=0, atol=0)


class Copies(TorchDispatchMode):
    """Counts copies to another device or type."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_normalization_moves_once_per_device(net: nn.Module):
    victim = Victim(net.to("meta"), trained_on=((0.0,) * 3, (1.0,) * 3), queried_with=((0.5,) * 3, (0.2,) * 3))
    with Copies() as first:
        victim.logits(images().to("meta"))
    x = images().to("meta")
    with Copies() as second:
        victim.logits(x)
    assert (first.count, second.count) == (3, 0)  # the images, scale and shift


def test_normalization_keeps_half_precision(net: nn.Module):
    pixels = ((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.2,) * 3)
    expected = Victim(net, trained_on=pixels[0], queried_with=pixels[1]).logits(images())
    half = Victim(net.half(), trained_on=pixels[0], queried_with=pixels[1]).logits(images().half())
    torch.testing.assert_close(half, expected, rtol=0.02, atol=0.02)


def test_policy_is_applied_to_every_answer(net: nn.Module):
    asked: list[Tensor] = []

    def reversed_classes(probs: Tensor, x: Tensor) -> Tensor:
        assert probs.dtype == torch.float32
        asked.append(x)
        return probs.flip(1)

    x = images()
    expected = torch.softmax(net.eval()(x).detach(), 1).flip(1)
    victim = Victim(net, policy=reversed_classes)
    torch.testing.assert_close(victim.logits(x), expected.log())
    torch.testing.assert_close(victim.probs(x), expected)
    assert victim.labels(x).tolist() == expected.argmax(1).tolist()
    assert all(torch.equal(seen, x) for seen in asked)
    assert victim.queries == 3 * len(x)


def test_policy_that_lets_zeros_out_has_finite_logits():
    victim = Victim(nn.Flatten(), policy=lambda probs, x: (probs == probs.amax(dim=1, keepdim=True)).float())
    x = torch.tensor([[1.0, 3.0, 2.0]])[:, None, None]
    torch.testing.assert_close(victim.logits(x), torch.tensor([[2.0**-126, 1.0, 2.0**-126]]).log())
    torch.testing.assert_close(victim.logits(x).softmax(dim=1), victim.probs(x), rtol=0, atol=1e-6)


def test_policy_of_another_shape_is_refused(net: nn.Module):
    victim = Victim(net, policy=lambda probs, x: probs[:, :3])
    with pytest.raises(ShapeError, match=r"the policy answers \(7, 3\) to probabilities \(7, 10\)"):
        victim.probs(images())


def test_policy_does_not_reach_whoever_has_the_weights(net: nn.Module):
    x = images()
    expected = net.eval()(x).detach()
    victim = Victim(net, access=Access.GRADIENTS, policy=lambda probs, x: probs.flip(1))
    torch.testing.assert_close(victim.white_box(x).logits, expected)


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_are_what_the_classifier_computes_on_the_way(net: nn.Module):
    x = images().requires_grad_(True)
    victim = Victim(net, access=Access.FEATURES, policy=lambda probs, x: probs.flip(1))
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    features = victim.features(x)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(linear(features), net(x).detach())  # no policy either
    assert victim.queries == 7
    name = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    torch.testing.assert_close(victim.features(x, name), net.get_submodule(name)(x).detach().flatten(1))
    assert victim.queries == 14
    with pytest.raises(UnknownNameError, match="unknown module 'nowhere'"):
        victim.features(x, "nowhere")


def test_features_of_images_that_are_normalized_otherwise(net: nn.Module):
    own, thief = ((0.5,) * 3, (0.25,) * 3), ((0.0,) * 3, (1.0,) * 3)
    pixels = torch.rand(4, 3, 8, 8)
    victim = Victim(net, access=Access.FEATURES, trained_on=own, queried_with=thief)
    expected = Victim(net, access=Access.FEATURES).features((pixels - 0.5) / 0.25)
    torch.testing.assert_close(victim.features(pixels), expected, rtol=1e-4, atol=1e-5)


def test_frozen(net: nn.Module):
    assert net.training
    victim = Victim(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = images().requires_grad_(True)
    answers = [victim.logits(x), victim.probs(x), victim.logits(x)]
    assert not any(answer.requires_grad for answer in answers)
    assert torch.equal(answers[0], answers[2])  # no dropout
    assert not any(module.training for module in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_answers_can_be_saved_by_a_graph(net: nn.Module):
    """Outputs of inference mode could not be: a loss that multiplies by them would raise."""
    student = build_model("mlp(hidden=(8,))", num_classes=CLASSES, in_channels=3, image_size=8, seed=1)
    loss = (Victim(net).logits(images()) * student(images())).sum()
    loss.backward()
    assert all(p.grad is not None for p in student.parameters())


# --- answers at hand, as captured steps read them ---------------------------------------------------------------------


def test_what_was_written_is_answered_with_access_and_policy():
    passes = []
    net = nn.Flatten()
    net.register_forward_hook(lambda *_: passes.append(1))
    victim = Victim(net, access=Access.PROBS, policy=lambda probs, x: probs.flip(1))
    x, answers, thief = torch.rand(4, 1, 1, 3), {}, victim.another()
    for _ in range(2):
        x.copy_(torch.rand_like(x))
        same = x.clone()
        with asked_once(same):
            victim.write_answer(same, answers)
            expected = x.flatten(1).softmax(dim=1).flip(1)
            assert victim.labels(same).tolist() == expected.argmax(dim=1).tolist()  # another thief, the same pass
        with asked_once(x, answers):
            for _ in range(3):
                torch.testing.assert_close(thief.probs(x), expected)
            with pytest.raises(AccessError):
                thief.logits(x)
    assert len(passes) == 2
    assert (thief.queries, victim.queries) == (2 * 3 * 4, 2 * 4)


def test_what_was_not_written_is_computed():
    victim = Victim(nn.Flatten())
    x, answers = torch.rand(4, 1, 1, 3), {}
    victim.computed_by(lambda net: nn.Sequential(net, nn.Softmax(dim=1))).write_answer(x, answers)
    with asked_once(x, answers):
        torch.testing.assert_close(victim.logits(x), x.flatten(1).softmax(dim=1))
        torch.testing.assert_close(victim.logits(x.flip(0)), x.flip(0).flatten(1))
        torch.testing.assert_close(Victim(nn.Flatten()).logits(x), x.flatten(1))
    torch.testing.assert_close(victim.logits(x), x.flatten(1))


def test_the_answer_at_hand_stays_as_it_is():
    victim, x, answers = Victim(nn.Flatten()), torch.rand(4, 1, 1, 3), {}
    victim.write_answer(x, answers)
    with asked_once(x, answers):
        victim.logits(x).zero_()
        torch.testing.assert_close(victim.logits(x), x.flatten(1))


def test_answers_are_written_to_one_place():
    victim, answers = Victim(nn.Flatten()), {}
    victim.write_answer(torch.zeros(4, 1, 1, 3), answers)
    (place,) = answers.values()
    victim.write_answer(torch.ones(4, 1, 1, 3), answers)
    assert place.eq(1).all()
    assert victim.queries == 0


def test_an_answer_is_shared_with_those_that_compute_alike(net: nn.Module):
    asked: list[str] = []

    def computing(name: str) -> Any:
        def rebuild(model: nn.Module) -> nn.Module:
            rebuilt = deepcopy(model)
            rebuilt.register_forward_hook(lambda *_: asked.append(name))
            return rebuilt

        return rebuild

    victim, x = Victim(net), images(4)
    first, second = (victim.computed_by(computing("float32"), how="float32") for _ in range(2))
    other = victim.computed_by(computing("bf16"), how="bf16")
    with asked_once(x):
        for each in (first, second, other):
            each.logits(x)
    assert asked == ["float32", "bf16"]
    assert victim.queries == 3 * len(x)  # the meter is the victim's


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p * float("nan"), "3 are not finite numbers, first that to image 0"),
        (
            lambda p: p - torch.tensor([[0.0, 0.0], [0.6, -0.6], [0.0, 0.0]]),
            "1 have negative values, first that to image 1",
        ),
        (
            lambda p: p * torch.tensor([[1.0], [1.0], [0.5]]),
            "1 do not sum to 1 (by more than 0.001), first that to image 2",
        ),
    ],
)
def test_answers_that_are_no_probabilities_are_refused(change, said):
    probs = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.25, 0.75]])
    check_answers(probs, probs, "a victim")
    with pytest.raises(RunError, match="a victim: of the answers to 3 test images") as caught:
        check_answers(change(probs), change(probs), "a victim")
    assert said in str(caught.value)


def test_answers_that_change_are_refused():
    probs = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(RunError, match="1 differ when the same image is asked about again"):
        check_answers(probs, torch.tensor([[0.5, 0.5], [0.6, 0.4]]), "a victim")
    check_answers(probs, probs + 1e-6, "a victim")  # rounding


def test_a_thief_is_refused_a_victim_that_answers_with_nothing(tmp_path):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            return (x.flatten(1)[:, :10] + self.shift).log()  # dark pixels have none

    with pytest.raises(RunError, match="not finite numbers"):
        undistill.attack(
            victim=Broken(),
            data="digits(subset=100)",
            model="mlp(hidden=(8,))",
            epochs=1,
            runs=tmp_path,
            progress=False,
        )

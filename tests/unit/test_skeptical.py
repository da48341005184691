"""The skeptical student: its loss written out with PyTorch's own, where its exits are, and how far its victim gets."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undistill.attacks.skeptical import Skeptical
from undistill.data import Shape
from undistill.data.dataset import Frame
from undistill.data.loader import Batch
from undistill.errors import RecipeError
from undistill.models import build_model
from undistill.models.features import logits_and_outputs
from undistill.objective import Nets, StepOutput
from undistill.orchestrate.estimate import _parts
from undistill.recipe import make_recipe
from undistill.victim import Access, Victim


class Student(nn.Module):
    """Maps of 8x8, 4x4 and 2x2 pixels, and a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(1, 3, 3, 1, 1),
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.Conv2d(4, 5, 3, 2, 1),
        )
        self.linear = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(x)[-1]

    def all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the first and the second layer give, and the logits."""
        first = self.first(x)
        second = self.second(first.relu())
        return first, second, self.linear(self.third(second.relu()).relu().mean((2, 3)))


class Answers(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)]


def frame(classes: int = 10) -> Frame:
    return Frame(classes, 1, 8, (0.5,), (0.5,))


def batch(classes: int, rows: int = 6) -> Batch:
    torch.manual_seed(classes)
    return Batch(torch.randn(rows, 1, 8, 8), torch.arange(rows) % classes, torch.arange(rows))


def step(
    attack: Skeptical, student: nn.Module, answers: Tensor, access: Access = Access.PROBS
) -> tuple[StepOutput, Nets]:
    """Take a step on answers (B, K), and go back; return what came out, and the nets."""
    nets = Nets(student, victim=Victim(Answers(answers), access=access))
    torch.manual_seed(7)
    nets = Nets(student, victim=nets.victim, modules=attack.modules(nets, frame(answers.shape[1])))
    out = attack.step(batch(answers.shape[1], len(answers)), nets)
    out.loss.backward()
    return out, nets


def kl(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """Return KL(p ‖ q) of softened logits."""
    q, p = (q / temperature).log_softmax(1), (p / temperature).softmax(1)
    return F.kl_div(q, p, reduction="batchmean")


@pytest.mark.parametrize(
    ("classes", "listener", "access"), [(10, 2, Access.PROBS), (2, 1, Access.LOGITS), (3, 9, Access.PROBS)]
)
def test_loss_by_hand(classes: int, listener: int, access: Access) -> None:
    torch.manual_seed(0)
    student, answers = Student(classes), 3 * torch.randn(6, classes)
    attack = Skeptical(temperature=4.0, alpha=0.7, own=0.2, listener=listener)
    out, nets = step(attack, student, answers, access)
    assert set(nets.modules) == ({"listener"} if listener == 1 else {"listener", "last"})
    images, y = batch(classes).x, batch(classes).y
    first, second, logits = student.all(images)
    last = nets.modules["last" if "last" in nets.modules else "listener"](second)
    heard = last if listener == 1 else nets.modules["listener"](first)
    assert heard.shape == last.shape == (6, classes)
    expected = F.cross_entropy(logits, y)
    expected += 0.8 * F.cross_entropy(last, y) + 0.2 * kl(logits, last, 4.0)
    expected += 0.7 * 16 * kl(answers, heard, 4.0) + 0.3 * F.cross_entropy(heard, y)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.logs["ce"], F.cross_entropy(logits, y))
    torch.testing.assert_close(out.logits, logits)


def test_the_victim_reaches_the_layers_before_the_exit_that_listens_only() -> None:
    gradients = []
    for seed in (1, 2):
        torch.manual_seed(0)
        student = Student(10)
        torch.manual_seed(seed)
        step(Skeptical(listener=2), student, 3 * torch.randn(6, 10))
        gradients.append({name: p.grad for name, p in student.named_parameters()})
    same = {name for name, gradient in gradients[0].items() if torch.equal(gradient, gradients[1][name])}
    assert same == {f"{layer}.{of}" for layer in ("second", "third", "linear") for of in ("weight", "bias")}


@pytest.mark.parametrize("classes", [2, 10])
def test_saturated_and_level_answers_give_finite_gradients(classes: int) -> None:
    sure = torch.zeros(4, classes)
    sure[:, 0] = 1e4
    for answers, scale in itertools.product((sure, torch.zeros_like(sure)), (1.0, 1e5)):
        student = Student(classes)
        with torch.no_grad():
            student.linear.weight.mul_(scale)
        out, nets = step(Skeptical(), student, answers)
        assert torch.isfinite(out.loss)
        assert all(torch.isfinite(p.grad).all() for net in (student, nets.modules) for p in net.parameters())


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("resnet18(width=0.1)", ["layer1", "layer2", "layer3"]),  # the paper's, from the first to the last
        ("preresnet20(width=0.5)", ["layer1", "layer2"]),
        ("mobilenetv2(width=0.1)", ["stage1", "stage2", "stage3"]),
        ("cnn(channels=2)", ["bn1", "bn2"]),
        ("speedrun(width=0.1)", ["stem", "groups.0", "groups.1"]),  # in eval mode it looks at an image six times
        ("mlp(hidden=(9, 8, 7))", ["fc1", "fc2", "fc3"]),
    ],
)
def test_places_of_the_exits(model: str, layers: list[str]) -> None:
    student = build_model(model, num_classes=10, in_channels=3, image_size=32, seed=0).train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    for listener in (1, 2, 3, 4):
        modules = Skeptical(listener=listener).modules(Nets(student), Frame(10, 3, 32, (0.5,) * 3, (0.5,) * 3))
        assert modules["listener"].layer == layers[max(len(layers) - listener, 0)]
        if listener > 1:
            assert modules["last"].layer == layers[-1]
        nets = Nets(student, victim=Victim(Answers(torch.zeros(2, 10)), access=Access.PROBS), modules=modules)
        assert student.training
        assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    out = Skeptical().step(Batch(images, torch.tensor([0, 1]), torch.arange(2)), nets)
    assert torch.isfinite(out.loss)


def test_an_exit_halves_maps_down_to_the_smallest() -> None:
    student = build_model("resnet18(width=0.1)", num_classes=10, in_channels=3, image_size=32, seed=0)
    modules = Skeptical(listener=3).modules(Nets(student), Frame(10, 3, 32, (0.5,) * 3, (0.5,) * 3))
    for name, sides in (("listener", [16, 8, 4]), ("last", [4])):
        maps = torch.zeros(
            2, 6 if name == "listener" else 26, 32 if name == "listener" else 8, 32 if name == "listener" else 8
        )
        channels = maps.shape[1]
        for block, side in zip(modules[name], sides, strict=False):
            maps, channels = block(maps), 2 * channels
            assert maps.shape == (2, channels, side, side)


@pytest.mark.parametrize("wrapper", ["net", "_orig_mod"])
def test_layers_are_found_inside_of_a_wrapper(wrapper: str) -> None:
    student, x = Student(10), torch.randn(2, 1, 8, 8)

    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = getattr(self, wrapper)(x)
            return logits

    wrapped = Wrapped()
    wrapped.add_module(wrapper, student)
    first, second, logits = student.all(x)
    for found, outputs in (logits_and_outputs(net, x, ["second", "first"]) for net in (student, wrapped)):
        torch.testing.assert_close((found, *outputs), (logits, second, first))


def test_a_student_without_a_place_is_refused() -> None:
    student = nn.Sequential(nn.Flatten(1), nn.Linear(64, 10))
    with pytest.raises(RecipeError, match="maps of two sizes or a hidden linear layer; Sequential has none"):
        Skeptical().modules(Nets(student), frame())


def test_its_cost_can_be_estimated() -> None:
    data = "digits(subset=60, test_subset=30)"
    victim = {"data": data, "model": "cnn(channels=4)", "epochs": 1}
    recipe = make_recipe(
        {"data": data, "model": "cnn(channels=4)", "method": "skeptical", "access": "probs", "victim": victim}
    )
    assert all(flops > 0 for flops in _parts(recipe, Shape(60, 30, 10, 1, 8), 60).values())

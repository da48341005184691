"""Teachers that are trained to be defended: each loss against its formula, written out in float64."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from undistill.data.dataset import Frame
from undistill.data.loader import Batch
from undistill.defenses.ast import AST, adversarial_views, exponential_divergence
from undistill.defenses.cmim import CMIM, Centroids
from undistill.defenses.half_nasty import HalfNasty
from undistill.defenses.light_nasty import LightNasty
from undistill.defenses.nasty import Nasty
from undistill.errors import RecipeError
from undistill.methods import build_method
from undistill.models import build_model
from undistill.objective import Frozen, Nets, StepOutput

FRAME = Frame(10, 1, 8, (0.5,), (0.25,))


def net(seed: int, spec: str = "cnn(channels=4)") -> nn.Module:
    return build_model(spec, num_classes=10, in_channels=1, image_size=8, seed=seed)


def batch(n: int = 12, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (n,), generator=random)
    return Batch(torch.randn(n, 1, 8, 8, generator=random), y, y)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {key: torch.zeros_like(named[key]) if g is None else g for key, g in zip(named, found, strict=True)}


def number(value: Tensor) -> float:
    return float(value.detach())


def divergence(logits: Tensor, twin: Tensor, temperature: float) -> float:
    """τ² KL of softened answers, by plain loops."""
    total = 0.0
    for ours, theirs in zip((logits / temperature).tolist(), (twin / temperature).tolist(), strict=True):
        of = [math.exp(z) / sum(math.exp(other) for other in ours) for z in ours]
        beside = [math.exp(z) / sum(math.exp(other) for other in theirs) for z in theirs]
        total += sum(p * math.log(p / q) for p, q in zip(of, beside, strict=True))
    return temperature**2 * total / len(logits)


# --- nasty in the last layer ------------------------------------------------------------------------------------------


# The MLP has a ReLU behind its last layer, as the paper's does.
SPECS = pytest.mark.parametrize("spec", ["cnn(channels=4)", "preresnet20(width=0.25)", "mlp(hidden=(8,))"])


def losses(model: nn.Module, twin: Frozen, images: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and τ² KL by torch's own functions."""
    ours, theirs = ((each(images.x) / temperature).log_softmax(1) for each in (model, twin))
    kl = nn.functional.kl_div(theirs, ours, reduction="batchmean", log_target=True)
    return nn.functional.cross_entropy(model(images.x), images.y), temperature**2 * kl


@SPECS
def test_half_nasty_is_two_backward_passes_with_zeros_set_in_between(spec: str) -> None:
    model, twin, images = net(1, spec), Frozen(net(2, spec)), batch()
    found = gradients(model, HalfNasty(temperature=3.0, weight=0.5).step(images, Nets(model, twin)).loss)
    labels, away = (gradients(model, loss) for loss in losses(model, twin, images, 3.0))
    *below, weight, bias = found
    for key in below:
        torch.testing.assert_close(found[key], labels[key])
    assert max(float(away[key].abs().max()) for key in below) > 1e-3  # what nasty would add
    for key in (weight, bias):
        torch.testing.assert_close(found[key], labels[key] - 0.5 * away[key], rtol=1e-4, atol=1e-6)
        assert float(away[key].abs().max()) > 1e-3


def test_half_nasty_has_the_loss_of_nasty() -> None:
    model, twin, images = net(1), Frozen(net(2)), batch()
    half, whole = (
        defense(temperature=3.0, weight=0.5).step(images, Nets(model.eval(), twin)) for defense in (HalfNasty, Nasty)
    )
    torch.testing.assert_close(half.loss, whole.loss)
    assert torch.equal(half.logits, whole.logits)
    assert half.logs.keys() == whole.logs.keys()
    assert number(half.logs["adversary_kl"]) == pytest.approx(divergence(half.logits, twin(images.x), 3.0), rel=1e-4)


@SPECS
def test_light_nasty_trains_the_last_layer_of_its_twin_and_nothing_else(spec: str) -> None:
    twin, model, images = net(2, spec).train(), net(1, spec), batch()
    twin(images.x)  # statistics that are not those of a new net
    nets, defense = Nets(model, Frozen(deepcopy(twin))), LightNasty(temperature=3.0, weight=0.5)
    defense.begin(nets, FRAME)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for step in range(3):
        model.train()
        output = defense.step(batch(seed=step), nets)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    before, after = twin.state_dict(), model.state_dict()
    assert [key for key in after if not torch.equal(before[key], after[key])] == [*dict(model.named_parameters())][-2:]


def test_light_nasty_is_the_formula_and_nothing_at_its_start() -> None:
    twin, model, images = net(2), net(1), batch()
    nets, defense = Nets(model, Frozen(twin)), LightNasty(temperature=3.0, weight=0.5)
    defense.begin(nets, FRAME)
    first = defense.step(images, nets)
    assert number(first.logs["adversary_kl"]) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    ce, kl = losses(model, Frozen(twin), images, 3.0)
    assert number(kl) > 0.01
    torch.testing.assert_close(defense.step(images, nets).loss, ce - 0.5 * kl)


def test_light_nasty_needs_a_twin_of_the_same_architecture() -> None:
    with pytest.raises(RecipeError, match="needs a twin of the same architecture"):
        LightNasty().begin(Nets(net(1), Frozen(net(2, "cnn(channels=8)"))), FRAME)
    with pytest.raises(RecipeError, match="defense 'light_nasty' needs an adversary"):
        LightNasty().begin(Nets(net(1)), FRAME)


# --- minimized conditional mutual information -------------------------------------------------------------------------


class Answers(nn.Module):
    """Answers with these logits, whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)] + 0 * x.sum()


def cmim_step(defense: CMIM, logits: Tensor, y: Tensor) -> tuple[StepOutput, nn.Parameter]:
    """Return what the first step on these answers comes to, and the logits as they are trained."""
    model = Answers(logits)
    nets = Nets(model)
    frame = Frame(logits.shape[1], 1, 8, (0.5,), (0.25,))
    nets = Nets(model, companion=defense.companion(nets, frame, torch.device("cpu")))
    return defense.step(Batch(torch.zeros(len(y), 1, 8, 8), y, y), nets), model.logits


def entropy(p: np.ndarray) -> float:
    return -sum(q * math.log(q) for q in p.tolist() if q > 0)


def softened(logits: Tensor, temperature: float) -> np.ndarray:
    return (logits.double() / temperature).softmax(1).numpy()


def mutual_information(logits: Tensor, y: Tensor, temperature: float) -> float:
    """I(X; Ŷ | Y) = Σ_c p(c) (H(Q_c) - E H(p_x)) of a sample: entropies, and no divergence."""
    p, total = softened(logits, temperature), 0.0
    for label in y.unique().tolist():
        rows = p[y.numpy() == label]
        total += len(rows) / len(p) * (entropy(rows.mean(0)) - sum(map(entropy, rows)) / len(rows))
    return total


def some_answers(seed: int, n: int = 24, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, classes, generator=random), torch.randint(classes, (n,), generator=random)


@given(st.integers(0, 1000), st.integers(2, 8), st.floats(0.1, 10))
def test_cmim_is_the_mutual_information_by_entropies(seed: int, classes: int, scale: float) -> None:
    z, y = some_answers(seed, classes=classes, scale=scale)
    temperatures = (0.5, 1.0, 8.0)
    output, _ = cmim_step(CMIM(weight=0.7, temperatures=temperatures), z, y)
    expected = sum(mutual_information(z, y, temperature) for temperature in temperatures) / 3
    assert number(output.logs["cmi"]) == pytest.approx(expected, rel=1e-3, abs=2e-6)
    ce = float(nn.functional.cross_entropy(z, y))
    assert number(output.loss) == pytest.approx(ce + 0.7 * expected, rel=1e-3, abs=2e-6)
    assert -1e-6 <= number(output.logs["cmi"]) <= math.log(classes)


def test_centroids_need_no_gradient_as_they_are_where_the_divergence_is_least() -> None:
    z, y = some_answers(3)
    output, logits = cmim_step(CMIM(temperatures=(2.0,)), z, y)
    (found,) = torch.autograd.grad(output.logs["cmi"], logits)
    leaf = z.double().requires_grad_()
    p = (leaf / 2).softmax(1)
    centers = torch.stack([p[y == label].mean(0) for label in y])  # with a graph
    (expected,) = torch.autograd.grad((p * (p / centers).log()).sum(1).mean(), leaf)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


def test_answers_that_say_nothing_but_their_class_have_none() -> None:
    z, y = some_answers(4)
    same = torch.randn(5, 5)[y]
    assert number(cmim_step(CMIM(), same, y)[0].logs["cmi"]) == pytest.approx(0, abs=1e-6)
    assert number(cmim_step(CMIM(temperatures=(1e4,)), z, y)[0].logs["cmi"]) == pytest.approx(0, abs=1e-6)
    one_each, classes = torch.randn(5, 5), torch.arange(5)  # of a single image a class nothing can be told
    assert number(cmim_step(CMIM(), one_each, classes)[0].logs["cmi"]) == pytest.approx(0, abs=1e-6)
    assert number(cmim_step(CMIM(), z, y)[0].logs["cmi"]) > 0.1


def test_saturated_answers_have_finite_gradients() -> None:
    z, y = some_answers(5, scale=500.0)
    output, logits = cmim_step(CMIM(), z, y)
    output.loss.backward()
    assert bool(output.loss.isfinite())
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("memory", [1.0, 3.0, 100.0])
def test_a_centroid_is_the_mean_of_its_class_with_weights_that_fade(memory: float) -> None:
    random = torch.Generator().manual_seed(6)
    centroids, past = Centroids(2, 4, memory, torch.device("cpu")), []
    for size in (5, 9, 1, 12):
        y = torch.randint(3, (size,), generator=random)  # the last class never comes
        answers = torch.randn(2, size, 4, generator=random).softmax(2)
        found = centroids.follow(answers, y)
        past.append((answers.double().numpy(), y.tolist()))
        for which, label in enumerate(y.tolist()):
            total, mass = np.zeros((2, 4)), 0.0
            for i, (rows, labels) in enumerate(past):
                later = sum(other.count(label) for _, other in past[i + 1 :])
                for row, of in enumerate(labels):
                    if of == label:
                        total += (1 - 1 / memory) ** later * rows[:, row]
                        mass += (1 - 1 / memory) ** later
            np.testing.assert_allclose(found[:, which].numpy(), total / mass, rtol=1e-4)


def test_centroids_go_on_as_they_were() -> None:
    def play(centroids: Centroids, steps: range) -> list[Tensor]:
        found = []
        for step in steps:
            z, y = some_answers(step)
            found.append(centroids.follow(z.softmax(1).expand(3, -1, -1), y))
        return found

    whole, first, second = (Centroids(3, 5, 10.0, torch.device("cpu")) for _ in range(3))
    expected = play(whole, range(6))
    play(first, range(3))
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(play(second, range(3, 6)), expected[3:], strict=True))


def test_temperatures_are_above_zero() -> None:
    with pytest.raises(RecipeError, match="cmim: temperatures"):
        build_method("cmim(temperatures=(1.0, 0.0))")
    with pytest.raises(RecipeError, match="cmim: temperatures"):
        build_method("cmim(temperatures=())")


# --- the adversarial sparse teacher -----------------------------------------------------------------------------------


def distributions(seed: int, n: int, classes: int) -> Tensor:
    return (3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))).double().softmax(1)


@given(st.integers(0, 1000), st.integers(2, 8))
def test_the_exponential_divergence_is_torchs_kl_of_probabilities_for_logarithms(seed: int, classes: int) -> None:
    p, a = distributions(seed, 6, classes), distributions(seed + 1, 6, classes)
    found = exponential_divergence(p, a)
    expected = nn.functional.kl_div(p, a, reduction="batchmean", log_target=True)
    torch.testing.assert_close(found, expected)
    loops = sum(math.exp(b) * (b - q) for row, other in zip(p, a, strict=True) for q, b in zip(row, other, strict=True))
    assert float(found) == pytest.approx(float(loops) / 6)
    assert float(exponential_divergence(a, a)) == 0
    for of, beside in zip(p, a, strict=True):
        one = float(exponential_divergence(of[None], beside[None]))
        assert -math.e < one <= math.e - 1
        vertices = [float(exponential_divergence(vertex[None], beside[None])) for vertex in torch.eye(classes)]
        assert min(vertices) <= one + 1e-12  # linear: no answer is better than the best class alone
        assert min(vertices) == vertices[int(beside.argmax())] <= 0


def test_of_two_classes_the_least_divergence_is_that_of_the_card() -> None:
    a = torch.tensor([[0.7, 0.3]], dtype=torch.float64)
    least = 0.3 * (math.exp(0.3) - math.exp(0.7))
    assert float(exponential_divergence(torch.tensor([[1.0, 0.0]]).double(), a)) == pytest.approx(least)


class Linear(nn.Module):
    """Two classes, told apart by a weighted sum of pixels."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        score = (self.weight * x.flatten(1)).sum(1)
        return torch.stack((score, -score), dim=1)


@pytest.mark.parametrize(("steps", "step_size", "reached"), [(1, 0.05, 0.05), (3, 0.05, 0.15), (40, 0.01, 0.3)])
def test_views_against_a_linear_net_go_against_its_weights(steps: int, step_size: float, reached: float) -> None:
    random = torch.Generator().manual_seed(7)
    weight, x, y = (
        torch.randn(16, generator=random),
        torch.randn(6, 1, 4, 4, generator=random),
        torch.tensor([0, 1] * 3),
    )
    views = adversarial_views(Frozen(Linear(weight)), x, y, epsilon=0.3, step_size=step_size, steps=steps)
    away = torch.where(y == 0, -1.0, 1.0)[:, None] * weight.sign()
    torch.testing.assert_close(views, x + reached * away.view_as(x), rtol=0, atol=1e-5)
    assert not views.requires_grad
    cut = adversarial_views(Frozen(Linear(weight)), x, y, epsilon=0.3, step_size=step_size, steps=steps, cut_off=True)
    assert float(cut.min()) >= 0
    assert float(cut.max()) <= 1


@given(st.floats(0, 1), st.floats(0.01, 1), st.integers(1, 4))
def test_views_stay_near_and_are_taken_for_something_else(epsilon: float, step_size: float, steps: int) -> None:
    twin, images = Frozen(net(2)), batch()
    views = adversarial_views(twin, images.x, images.y, epsilon=epsilon, step_size=step_size, steps=steps)
    assert float((views - images.x).abs().max()) <= epsilon + 1e-5
    if epsilon >= 0.05 and step_size <= 0.05:
        before, after = (nn.functional.cross_entropy(twin(x), images.y) for x in (images.x, views))
        assert float(after) > float(before)


@pytest.mark.parametrize("paired", [True, False])
def test_ast_is_its_formula(paired: bool) -> None:
    model, twin, images = net(1), Frozen(net(2)), batch()
    model(torch.randn(64, 1, 8, 8))  # statistics of its own
    defense = AST(temperature=3.0, alpha=0.2, kept=3, steps=2, paired=paired)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    output = defense.step(images, Nets(model, twin))
    found = gradients(model, output.loss)

    model.load_state_dict(before)
    settings = {"epsilon": 0.3, "step_size": 0.04, "steps": 2, "cut_off": not paired}
    views = adversarial_views(twin, images.x, images.y, **settings)
    targets = []
    for row in model.eval()(views).tolist():
        kept = sorted(row, reverse=True)[:3]
        powers = [math.exp(z / 3) if z in kept else 0.0 for z in row]
        targets.append([power / sum(powers) for power in powers])
    if not paired:
        targets = [targets[-1], *targets[:-1]]
    model.train()
    logits = model(images.x)
    p = (logits / 3).softmax(1)
    epd = sum(
        math.exp(a) * (a - q) for row, other in zip(targets, p, strict=True) for a, q in zip(row, other, strict=True)
    ) / len(p)
    ce = nn.functional.cross_entropy(logits, images.y)
    assert number(output.logs["epd"]) == pytest.approx(number(epd), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(output.loss, 0.8 * ce + 0.2 * 9 * epd)
    for key, value in gradients(model, 0.8 * ce + 0.2 * 9 * epd).items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-6)


def test_more_logits_than_classes_cannot_be_kept() -> None:
    with pytest.raises(RecipeError, match="ast: keeps kept=11 logits, but there are only 10 classes; set kept to 10"):
        AST(kept=11).begin(Nets(net(1), Frozen(net(2))), FRAME)

"""What every output defense must do, whoever wrote it; a new one is tested by being registered."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog
from torch import Tensor

from undistill.defenses import (
    OUTPUT_DEFENSES,
    OutputDefense,
    build_output_defense,
    gaussian_noise,
    list_defenses,
    list_output_defenses,
)
from undistill.errors import RecipeError, UnknownNameError
from undistill.methods import REFERENCES
from undistill.objective import Paper
from undistill.recipe import Recipe, load_recipe, make_recipe
from undistill.registry import Spec
from undistill.workspace import Workspace

DEFENSES = [OUTPUT_DEFENSES[name] for name in OUTPUT_DEFENSES.names()]
by_name = pytest.mark.parametrize("defense", DEFENSES, ids=lambda defense: defense.name)

DATA = "digits(subset=100, test_subset=50)"
VICTIM = {"model": "cnn(channels=4)", "epochs": 1, "lr": 0.05}


def smoke(defense: type[OutputDefense]) -> OutputDefense:
    assert "smoke" in vars(defense), f"{defense.name} declares no smoke arguments of its own; {{}} if the defaults do"
    return defense(**defense.smoke)


def answers(classes: int = 7) -> Tensor:
    """Sure and unsure answers, ties and certainty among them."""
    random = torch.randn(40, classes, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([4 * random, 0.1 * random]).softmax(dim=1)
    return torch.cat([rows, torch.full((1, classes), 1 / classes), torch.eye(classes)])


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def thief(policy: object, **changes: object) -> Recipe:
    fields = {"data": DATA, "model": "mlp(hidden=(8,))", "method": "kd", "victim": VICTIM, "epochs": 1, "lr": 0.05}
    return make_recipe({**fields, "policy": policy, **changes})


def test_the_first_ones_are_there():
    assert {"rounding", "top_k"} <= set(list_output_defenses())
    assert not set(list_output_defenses()) & set(list_defenses())
    assert not set(list_output_defenses()) & set(REFERENCES.names())


@by_name
def test_is_described(defense: type[OutputDefense]):
    assert defense.__doc__
    assert defense.__doc__.strip() != OutputDefense.__doc__
    if defense.name != "chain":  # which is of nobody
        assert isinstance(defense.paper, Paper)
        assert defense.paper.url.startswith("https://")
    for name, field in defense.model_fields.items():
        assert field.description, f"{defense.name}.{name} has no description"
        assert not field.is_required(), f"{defense.name}.{name} has no default"


@by_name
def test_round_trip(defense: type[OutputDefense]):
    for configured in (defense(), smoke(defense)):
        assert build_output_defense(configured.spec) == configured
        assert build_output_defense({"name": defense.name, **configured.model_dump()}) == configured
        told = {key for key, value in configured.model_dump().items() if defense.added.get(key, ...) != value}
        assert set(Spec.parse(configured.spec).kwargs) == told
        assert thief(configured).policy == thief(configured.spec).policy == configured.spec


@by_name
def test_wrong_hyperparameters(defense: type[OutputDefense]):
    numbers = [name for name, field in defense.model_fields.items() if field.annotation in (int, float)]
    wrong = {name: value for name in numbers for value in (-1e9, "text", math.nan)}
    for name, value in wrong.items():
        with pytest.raises(RecipeError, match=f"{defense.name}: {name}: must be"):
            build_output_defense({"name": defense.name, name: value})
    with pytest.raises(RecipeError) as caught:
        thief({"name": defense.name, **wrong, "no_such_field": 1})
    assert len(caught.value.problems) == len(numbers) + 1
    assert all(problem.startswith(f"policy: {defense.name}: ") for problem in caught.value.problems)


@by_name
def test_is_frozen(defense: type[OutputDefense]):
    for name in defense.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(smoke(defense), name, 1)


@by_name
def test_lets_out_distributions(defense: type[OutputDefense]):
    probs = answers()
    before = probs.clone()
    defended = smoke(defense)(probs, images(len(probs)))
    assert defended.dtype == torch.float32
    assert defended.shape == probs.shape
    assert bool(((defended >= 0) & (defended <= 1)).all())
    torch.testing.assert_close(defended.sum(dim=1), torch.ones(len(probs)))
    assert torch.equal(probs, before)  # they are the victim's


@by_name
def test_answers_the_same_again_whoever_is_beside(defense: type[OutputDefense]):
    probs, x, defend = answers(), images(len(answers())), smoke(defense)
    defended = defend(probs, x)
    assert torch.equal(defend(probs, x), defended)
    for row in range(len(probs)):
        torch.testing.assert_close(defend(probs[row : row + 1], x[row : row + 1])[0], defended[row])


@by_name
def test_has_an_effect(defense: type[OutputDefense]):
    probs = answers()
    assert not torch.allclose(smoke(defense)(probs, images(len(probs))), probs, atol=1e-3)


@by_name
def test_stands_before_the_victim(defense: type[OutputDefense], tmp_path: Path):
    workspace = Workspace(tmp_path)
    plain, defended = workspace.run(thief(None)), workspace.run(thief(smoke(defense)))
    assert plain.folder != defended.folder
    assert plain.metrics != defended.metrics
    assert plain.result["queries"] == defended.result["queries"]
    assert plain.result["sources_sha256"] == defended.result["sources_sha256"]  # the victim itself is the same
    assert load_recipe(defended.folder) == defended.recipe


# --- the field of a recipe --------------------------------------------------------------------------------------------


def test_it_is_part_of_the_hash_where_it_is_set():
    none, top, other = thief(None), thief("top_k(k=2)"), thief("top_k(k=3)")
    fields = {key: value for key, value in none.model_dump(exclude_none=True).items() if key != "policy"}
    assert make_recipe(fields).hash == none.hash
    assert "policy" not in none.to_yaml()
    assert len({recipe.hash for recipe in (none, top, other)}) == 3
    assert thief("top_k").hash == thief("top_k(k=5)").hash


def test_runs_from_before_there_were_policies_keep_their_names():
    before = {"data": "digits", "model": "mlp", "method": "kd", "victim": {"model": "cnn"}, "epochs": 3}
    assert make_recipe(before).hash == "bee501b4f849"


def test_it_is_changed_like_any_spec(tmp_path: Path):
    path = tmp_path / "thief.yaml"
    path.write_text(thief("top_k(k=2)").to_yaml())
    assert load_recipe(path, ["policy.k=4"]).policy == "top_k(k=4)"
    assert load_recipe(path, ["policy=rounding"]).policy == "rounding(digits=2)"
    assert load_recipe(path, ["policy=null"]).hash == thief(None).hash
    other = tmp_path / "other.yaml"
    other.write_text(f"recipe: {path}\npolicy: {{k: 3}}\n")
    assert load_recipe(other).policy == "top_k(k=3)"


def test_only_attacks_have_one():
    for method in ("ce", "nasty"):
        with pytest.raises(RecipeError, match=f"'{method}' is not an attack: it has no victim whose answers a policy"):
            make_recipe({"data": DATA, "model": "cnn", "method": method, "policy": "top_k"})


def test_it_stays_with_the_recipe_that_sets_it():
    assert thief("top_k").victim == thief(None).victim


def test_whoever_has_the_weights_meets_none():
    with pytest.raises(RecipeError, match="with access=gradients the thief has the weights and answers himself"):
        thief("top_k", access="gradients")
    assert thief("top_k", access="features").policy == "top_k(k=5)"


def test_unknown():
    with pytest.raises(UnknownNameError, match=r"unknown output defense 'topk'; did you mean 'top_k'\?"):
        build_output_defense("topk")
    with pytest.raises(RecipeError, match=r"policy: unknown output defense 'topk'; did you mean 'top_k'\?"):
        thief("topk")


def test_what_does_not_suit_the_classes_is_refused_before_anything_is_trained(tmp_path: Path):
    workspace = Workspace(tmp_path / "runs", watch=lambda recipe: pytest.fail("trained"))
    with pytest.raises(RecipeError, match="keeps k=11 classes, but there are only 10; set k to 10 or less"):
        workspace.run(thief("top_k(k=11)"))
    assert not (tmp_path / "runs").exists()


# --- the residents, by hand -------------------------------------------------------------------------------------------

NOTHING = torch.empty(0)


def test_top_k_by_hand():
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]])
    expected = [[0, 2 / 3, 0, 1 / 3], [0.5, 0.5, 0, 0], [0, 0, 1, 0]]
    torch.testing.assert_close(build_output_defense("top_k(k=2)")(probs, NOTHING), torch.tensor(expected))
    torch.testing.assert_close(build_output_defense("top_k(k=4)")(probs, NOTHING), probs)


@pytest.mark.parametrize("k", range(1, 7))
def test_top_k_keeps_exactly_k(k: int):
    probs = answers()[:-7]  # without those that are certain: their zeros are zero either way
    defended = build_output_defense({"name": "top_k", "k": k})(probs, NOTHING)
    for row, kept in zip(probs.tolist(), defended, strict=True):
        best = sorted(range(7), key=lambda index: (-row[index], index))[:k]
        assert kept.nonzero().flatten().tolist() == sorted(best)


def test_rounding_by_hand():
    defend = build_output_defense("rounding(digits=1)")
    probs = torch.tensor([[0.64, 0.27, 0.09], [0.96, 0.03, 0.01], [0.46, 0.46, 0.08]])
    expected = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0], [5 / 11, 5 / 11, 1 / 11]])
    torch.testing.assert_close(defend(probs, NOTHING), expected)
    unsure = torch.full((1, 25), 0.04)
    unsure[0, 7], unsure[0, 8] = 0.045, 0.035  # everything rounds to zero: the most probable class alone
    assert defend(unsure, NOTHING).tolist() == torch.eye(25)[7:8].tolist()


# --- each by its formula ----------------------------------------------------------------------------------------------


def test_label_only_may_look_soft_and_says_as_little():
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.98, 0.01, 0.01]])
    named = build_output_defense("label_only(smoothing=0.3)")(probs, images(2))
    assert named.tolist() == [pytest.approx([0.1, 0.8, 0.1]), pytest.approx([0.8, 0.1, 0.1])]
    assert build_output_defense("label_only(smoothing=0)").spec == "label_only"  # as before there was a choice


def test_label_only_names_the_class_and_the_first_of_equals():
    probs = answers()
    named = build_output_defense("label_only")(probs, images(len(probs)))
    assert torch.equal(named.argmax(1), probs.argmax(1))
    assert set(named.unique().tolist()) == {0.0, 1.0}
    level = build_output_defense("label_only")(torch.full((1, 4), 0.25), images(1))
    assert level.tolist() == [[1.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_temperature_is_that_of_the_softmax(temperature: float):
    z = torch.randn(20, 7, dtype=torch.float64)
    given = build_output_defense(f"temperature(temperature={temperature})")(z.softmax(1).float(), images(20))
    torch.testing.assert_close(given, (z / temperature).softmax(1).float())
    sure = build_output_defense(f"temperature(temperature={temperature})")(torch.eye(7), images(7))
    assert torch.equal(sure, torch.eye(7))


def reversed_sigmoid(row: list[float], beta: float, gamma: float) -> list[float]:
    cut = [max(0.0, y - beta * (1 / (1 + (y / (1 - y)) ** -gamma) - 0.5)) for y in row]
    return [y / sum(cut) for y in cut]


def test_reverse_sigmoid_is_its_formula():
    rows = [[0.9, 0.07, 0.03], [0.5, 0.3, 0.2], [0.34, 0.33, 0.33]]
    for beta, gamma in ((0.21, 0.2), (2.0, 1.0)):
        given = build_output_defense(f"reverse_sigmoid(beta={beta}, gamma={gamma})")(torch.tensor(rows), images(3))
        for row, found in zip(rows, given.tolist(), strict=True):
            assert found == pytest.approx(reversed_sigmoid(row, beta, gamma), rel=1e-5)


def test_dcp_leaves_sure_answers_alone_and_turns_unsure_ones():
    sure, unsure = [0.9, 0.07, 0.03], [0.5, 0.3, 0.2]
    given = build_output_defense("dcp(beta=0.7, gamma=0.1)")(torch.tensor([sure, unsure]), images(2)).tolist()
    assert given[0] == pytest.approx(sure, rel=1e-5)
    assert given[1] == pytest.approx(reversed_sigmoid(unsure, 0.7, 0.1), rel=1e-5)


@by_name
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 12), spread=st.floats(0, 20))
def test_the_label_stays_where_it_is_said_to(defense: type[OutputDefense], seed: int, classes: int, spread: float):
    if not defense.keeps_label:
        return
    logits = spread * torch.randn(16, classes, generator=torch.Generator().manual_seed(seed))
    probs = logits.softmax(1)
    given = defense(**({"k": 1} if "k" in defense.model_fields else {}))(probs, images(16))
    assert torch.equal(given.argmax(1), probs.argmax(1))


@by_name
def test_of_equals_the_first_stays_where_the_label_is_said_to_stay(defense: type[OutputDefense]):
    level = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.1, 0.4], [0.4, 0.1, 0.4, 0.1]])
    given = defense(**({"k": 1} if "k" in defense.model_fields else {}))(level, images(3))
    if defense.keeps_label:
        assert given.argmax(1).tolist() == [0, 1, 0]


def test_a_chain_is_one_after_the_other():
    probs, x = answers(), images(len(answers()))
    one, two = build_output_defense("top_k(k=3)"), build_output_defense("rounding(digits=1)")
    both = build_output_defense("chain(defenses=('top_k(k=3)', 'rounding(digits=1)'))")
    assert torch.equal(both(probs, x), two(one(probs, x), x))
    assert not torch.equal(both(probs, x), one(two(probs, x), x))
    inner = build_output_defense({"name": "chain", "defenses": (both.spec, "label_only")})
    assert torch.equal(inner(probs, x), build_output_defense("label_only")(both(probs, x), x))
    with pytest.raises(RecipeError, match="topk"):
        build_output_defense("chain(defenses=('topk(k=3)',))")


@pytest.mark.parametrize("name", ["reverse_sigmoid", "dcp"])
def test_the_label_may_change_as_said(name: str):
    # Hardly more likely, and taken more off: log-odds fall faster than what they are of.
    row = [0.34, 0.33, *[0.33 / 8] * 8]
    given = build_output_defense(f"{name}(beta=4, gamma=1)")(torch.tensor([row]), images(1))[0]
    cut = [y - 4 * (1 / (1 + (1 - y) / y) - 0.5) for y in row]  # σ(logit(y)) is y itself: y - 4 (y - 1/2)
    assert sorted(range(10), key=lambda k: -cut[k])[0] != 0
    assert int(given.argmax()) != 0


def linear_program(y: np.ndarray, budget: float, margin: float) -> float | None:
    """Return the least of ModelGuard-W's objective, by a solver; None where nothing satisfies it."""
    classes, top = len(y), int(y.argmax())
    eye, one, none = np.eye(classes), np.ones(classes), np.zeros(classes)
    leads = np.delete(eye - eye[top], top, axis=0)
    found = linprog(
        np.r_[np.log(y + 1e-6), none],  # y', and how far each is from y
        A_ub=np.block([[eye, -eye], [-eye, -eye], [none, one], [leads, 0 * leads]]),
        b_ub=np.r_[y, -y, budget, np.full(classes - 1, -margin)],
        A_eq=np.r_[one, none][None],
        b_eq=[1],
        bounds=[(0, 1)] * classes + [(0, None)] * classes,
    )
    return found.fun if found.status == 0 else None


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("budget", [0.02, 0.3, 1.0, 2.0])
def test_modelguard_w_is_the_optimum_of_its_linear_program(classes: int, budget: float):
    probs = torch.cat([answers(classes)[::8], answers(classes)[-2:]])
    given = build_output_defense(f"modelguard_w(budget={budget})")(probs, images(len(probs)))
    assert torch.equal(given.argmax(1), probs.argmax(1))
    for y, found in zip(probs.double().numpy(), given.double().numpy(), strict=True):
        y = y / y.sum()
        least = linear_program(y, budget, 1e-4)
        assert least is not None
        assert found @ np.log(y + 1e-6) == pytest.approx(least, abs=2e-6)
        assert abs(found - y).sum() <= budget + 1e-6
        assert found.max() - np.partition(found, -2)[-2] >= 0.99e-4


def test_modelguard_w_leaves_alone_what_it_cannot_change():
    level = torch.full((1, 10), 0.1)  # the label is to lead by more than the budget allows
    assert torch.equal(build_output_defense("modelguard_w(budget=1e-5)")(level, images(1)), level)
    assert linear_program(level[0].double().numpy(), 1e-5, 1e-4) is None


def test_stingy_keeps_a_share_of_the_classes():
    probs = answers()[:-7]
    for share, k in ((0.01, 1), (0.29, 2), (0.3, 2), (3 / 7, 3), (1.0, 7)):
        given = build_output_defense({"name": "stingy", "share": share})(probs, NOTHING)
        for row, found in zip(probs.double().tolist(), given.tolist(), strict=True):
            best = sorted(range(7), key=lambda index: (-row[index], index))[:k]
            assert found == pytest.approx([row[i] / sum(row[j] for j in best) * (i in best) for i in range(7)])
    # The published settings: 2 of 10 classes, 10 of 100, 20 of 200; and 29 of 100, of which floats make 28.999…
    for share, classes, k in ((0.2, 10, 2), (0.1, 100, 10), (0.1, 200, 20), (0.29, 100, 29)):
        given = build_output_defense({"name": "stingy", "share": share})(torch.rand(3, classes).softmax(1), NOTHING)
        assert (given > 0).sum(1).tolist() == [k] * 3


@given(st.integers(2, 12), st.floats(0.01, 1), st.integers(0, 10_000))
def test_stingy_is_the_softmax_of_logits_with_nothing_for_the_rest(classes: int, share: float, seed: int):
    z = 3 * torch.randn(4, classes, generator=torch.Generator().manual_seed(seed))
    k = max(1, math.floor(share * classes + 1e-9))
    kept = torch.full_like(z, -math.inf).scatter(1, z.topk(k).indices, z.topk(k).values)
    found = build_output_defense({"name": "stingy", "share": share})(z.softmax(1), NOTHING)
    torch.testing.assert_close(found, kept.softmax(1))


def test_reversed_ranks_by_hand():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.3, 0.6, 0.1, 0.0]])
    found = build_output_defense("reversed_ranks")(probs, NOTHING)
    assert found.tolist() == torch.tensor([[0.3, 0.4, 0.2, 0.1], [0.0, 0.6, 0.1, 0.3]]).tolist()


@given(st.integers(2, 12), st.sampled_from([0.5, 4.0, 20.0]), st.integers(0, 10_000))
def test_reversed_ranks_are_those_of_the_logits_at_any_temperature(classes: int, temperature: float, seed: int):
    z = 3 * torch.randn(4, classes, generator=torch.Generator().manual_seed(seed))
    turned = z.clone()
    for row, new in zip(z, turned, strict=True):
        ranks = sorted(range(classes), key=lambda index: -row[index])  # new[idx_k] = v_(K + 2 - k), k = 2..K
        for k in range(2, classes + 1):
            new[ranks[k - 1]] = row[ranks[classes + 2 - k - 1]]
    defend = build_output_defense("reversed_ranks")
    found = defend((z / temperature).softmax(1), NOTHING)
    torch.testing.assert_close(found, (turned / temperature).softmax(1))
    torch.testing.assert_close(defend(found, NOTHING), (z / temperature).softmax(1))


def gradients_of_the_last_layer(classes: int) -> np.ndarray:
    """Return what a thief whose last layer is zero learns from each class, one row a class, by autograd."""
    weight = torch.zeros(classes, 5, dtype=torch.float64, requires_grad=True)
    features = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    losses = -(weight @ features).log_softmax(0)
    return np.stack([torch.autograd.grad(loss, weight, retain_graph=True)[0].flatten().numpy() for loss in losses])


def turned(G: np.ndarray, y: np.ndarray, other: np.ndarray) -> float:
    """Return ‖Gᵀỹ/‖Gᵀỹ‖ - Gᵀy/‖Gᵀy‖‖², MAD's objective."""
    there, here = G.T @ other, G.T @ y
    return float(np.square(there / np.linalg.norm(there) - here / np.linalg.norm(here)).sum())


@pytest.mark.parametrize("classes", [3, 4, 7])
def test_mad_goes_to_the_best_of_all_subsets_with_the_label(classes: int):
    rows = torch.cat([answers(classes)[::7], torch.eye(classes)])
    probs = rows[(rows.amax(1) - rows.amin(1)) > 1e-3]  # a level answer has no gradient to turn
    G = gradients_of_the_last_layer(classes)
    far = build_output_defense("mad(budget=2)")(probs, NOTHING).double().numpy()
    near = build_output_defense("mad(budget=0.3)")(probs, NOTHING).double().numpy()
    for y, end, found in zip(probs.double().numpy(), far, near, strict=True):
        top = int(y.argmax())
        subsets = [
            np.isin(np.arange(classes), (top, *others)) / (size + 1)
            for size in range(classes - 1)
            for others in itertools.combinations(sorted(set(range(classes)) - {top}), size)
        ]
        best = max(turned(G, y, v) for v in subsets)
        assert turned(G, y, end) == pytest.approx(best, abs=2e-4)  # the label leads by a little
        assert min(abs(end - v).max() for v in subsets) < 2e-5
        share = min(1.0, 0.3 / abs(end - y).sum())
        assert found == pytest.approx(y + share * (end - y), abs=1e-6)
        assert abs(found - y).sum() == pytest.approx(share * abs(end - y).sum(), abs=1e-5)
        assert int(end.argmax()) == int(found.argmax()) == top


@given(st.integers(3, 30), st.floats(0, 2), st.integers(0, 10_000))
def test_mad_keeps_label_and_budget(classes: int, budget: float, seed: int):
    probs = (4 * torch.randn(8, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)
    found = build_output_defense({"name": "mad", "budget": budget})(probs, NOTHING)
    assert torch.equal(found.argmax(1), probs.argmax(1))
    assert float((found - probs).abs().sum(1).max()) <= budget + 1e-5


def test_of_two_classes_mad_can_turn_nothing():
    probs = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    found = build_output_defense("mad(budget=0.2)")(probs, NOTHING)
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.2], [0.3, 0.7]]))


# --- noise that is a function of the image ----------------------------------------------------------------------------


def test_the_mixing_is_that_of_splitmix64():
    golden = torch.tensor([0x9E3779B97F4A7C15 - 2**64])
    seeds = golden * torch.arange(1, 4)
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # its first outputs from the seed 0
    assert [number % 2**64 for number in gaussian_noise._mixed(seeds).tolist()] == published


def test_the_noise_is_normal_and_of_no_other_image_or_class():
    noise = gaussian_noise._normal(gaussian_noise._mixed(torch.arange(20_000)), 6).double()
    assert stats.kstest(noise.flatten()[::3].numpy(), "norm").pvalue > 1e-3
    assert float((torch.corrcoef(noise.T) - torch.eye(6)).abs().max()) < 0.03
    assert float((noise[1:] * noise[:-1]).mean()) == pytest.approx(0, abs=0.02)
    assert bool(noise.isfinite().all())


def log_odds(row: list[float]) -> np.ndarray:
    y = np.array(row)
    return np.log(y / (1 - y))


@pytest.mark.parametrize("length", [0.2, 2.0, 50.0])
def test_gaussian_noise_is_its_formula(length: float):
    probs, x = answers()[:40], images(40)
    seeds = gaussian_noise._mixed(gaussian_noise._fingerprint(x))
    given = build_output_defense({"name": "gaussian_noise", "length": length})(probs, x)
    for row, found, noise in zip(probs.tolist(), given.tolist(), gaussian_noise._normal(seeds, 7).numpy(), strict=True):
        shortened = noise * min(1.0, length / np.linalg.norm(noise))
        moved = 1 / (1 + np.exp(-np.clip(log_odds(row), *log_odds([1e-7, 1 - 1e-7])) - shortened))
        assert found == pytest.approx(moved / moved.sum(), rel=1e-4, abs=1e-7)


def test_an_image_has_its_noise_wherever_it_comes_and_another_one_has_another():
    probs, x = torch.tensor([0.5, 0.3, 0.15, 0.05]).expand(80, 4), images(80)
    defend = build_output_defense("gaussian_noise(length=2.0)")
    given, order = defend(probs, x), torch.randperm(80)
    assert torch.equal(defend(probs, x[order]), given[order])
    assert torch.equal(defend(probs, x.to(memory_format=torch.channels_last)), given)
    assert torch.equal(defend(probs, x.double()), given)
    assert len({tuple(row) for row in given.tolist()}) == 80
    assert not torch.allclose(build_output_defense("gaussian_noise(length=2.0, key=1)")(probs, x), given, atol=0.01)
    nearly = x.clone()
    nearly[:, 0, 0, 0] = nearly[:, 0, 0, 0].nextafter(torch.tensor(math.inf))
    assert float((defend(probs, nearly) - given).abs().amax(1).min()) > 1e-3  # one bit of one pixel
    zero = torch.zeros(1, 1, 2, 2)
    assert torch.equal(defend(probs[:1], zero), defend(probs[:1], -zero))


@given(st.integers(0, 255), st.integers(0, 2**63 - 1))
def test_pixels_that_change_places_are_another_image(level: int, key: int):
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0, 1, 2] = x[1, 0, 2, 1] = (level + 1) / 256
    given = build_output_defense({"name": "gaussian_noise", "length": 2.0, "key": key})(torch.full((2, 5), 0.2), x)
    assert not torch.allclose(given[0], given[1], atol=1e-4)


def test_no_perturbation_is_none():
    probs = answers()
    for spec in (
        "reverse_sigmoid(beta=0)",
        "dcp(beta=0)",
        "temperature(temperature=1)",
        "modelguard_w(budget=0)",
        "mad(budget=0)",
        "stingy(share=1)",
        "gaussian_noise(length=0)",
    ):
        torch.testing.assert_close(build_output_defense(spec)(probs, images(len(probs))), probs)

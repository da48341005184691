"""What a thief has: images, labels of some of them, queries; and what he is measured by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import undistill
from played import played
from undistill import functional as F
from undistill.attacks.htc import HTC
from undistill.attacks.kd import KD
from undistill.attacks.ttm import TTM
from undistill.data import DATASETS, load_dataset
from undistill.data.dataset import UNKNOWN, Dataset, Images
from undistill.data.holdings import hold, on_hand, overlap
from undistill.data.loader import Batch, Loader
from undistill.engine.answers import read_answers, write_answers
from undistill.engine.fast.graphs import GraphStepper
from undistill.engine.stepping import Learner, take_step
from undistill.errors import AccessError, CheckpointError, DataError, RecipeError
from undistill.objective import Nets
from undistill.recipe import load_recipe
from undistill.run import Run
from undistill.victim import Access, Victim, asked_once
from undistill.victim.asked import Asked
from undistill.workspace import Workspace

QUICK = {"data": "digits", "epochs": 2, "schedule": "one_cycle", "holdout": 0, "selection": "last"}
STUDENT = "mlp(hidden=(8,), relu_logits=False)"


class Counting(nn.Module):
    """Answers with a linear net, and counts the images that it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(64, 10)
        self.register_buffer("asked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return self.net(x.flatten(1))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return undistill.train(model=STUDENT, runs=tmp_path_factory.mktemp("runs"), progress=False, **QUICK)


def steal(teacher: Run, **fields: object) -> Run:
    given = {**QUICK, "model": STUDENT, "victim": teacher, "runs": teacher.folder.parent, "progress": False, **fields}
    return undistill.attack(**given)  # type: ignore[arg-type]


# --- which images, which labels -------------------------------------------------------------------------------------


def test_fewer_queries_and_labels_are_parts_of_more(digits: Dataset) -> None:
    images = digits.train
    few, many = (hold(images, labels=20, queries=n, asks=True).images for n in (100, 400))
    rows = [{x.numpy().tobytes() for x in one.x} for one in (few, many)]
    assert len(few) == 100
    assert rows[0] < rows[1]
    assert int((few.y != UNKNOWN).sum()) == int((many.y != UNKNOWN).sum()) == 20


def test_labels_are_true_and_of_every_class_alike(digits: Dataset) -> None:
    held = hold(digits.train, labels=50, queries=None, asks=True)
    assert len(held.images) == len(digits.train)
    assert held.labels == 50
    known = held.images.y != UNKNOWN
    assert torch.equal(held.images.y[known], digits.train.y[known])
    assert torch.bincount(held.images.y[known]).tolist() == [5] * 10
    same = load_dataset("digits(subset=50)").train
    assert torch.equal(held.images.x[known], same.x)


def test_a_reference_learns_from_the_images_with_a_label_in_epochs_as_long_as_the_thiefs(digits: Dataset) -> None:
    held = hold(digits.train, labels=50, queries=400, asks=False)
    assert len(held.images) == held.labels == 50
    assert held.epoch == len(digits.train)
    loader = Loader(
        held.images,
        batch_size=128,
        augment="none",
        mean=(0.0,),
        std=(1.0,),
        seed=0,
        device="cpu",
        length=held.epoch,
    )
    counts = torch.bincount(torch.cat([batch.index for batch in loader.epoch(0)]), minlength=50)
    assert int(counts.sum()) == len(digits.train)
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize(
    ("labels", "queries", "error"),
    [(200, 100, "more than there are 100 queries"), (5000, None, "more than there are 1,297 images")],
)
def test_more_labels_than_images_are_refused(digits: Dataset, labels: int, queries: int | None, error: str) -> None:
    with pytest.raises(RecipeError, match=error):
        hold(digits.train, labels=labels, queries=queries, asks=True)


def test_too_few_labels_for_the_classes_are_refused(digits: Dataset) -> None:
    with pytest.raises(DataError, match="labels=3"):
        hold(digits.train, labels=3, queries=None, asks=True)


def test_other_images_take_the_owners_size_and_lose_labels_of_other_classes(digits: Dataset) -> None:
    x = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8)
    images = Images(x, torch.tensor([0, 1, 2] * 2))
    other = Dataset("other", images, images, ("cat", "dog", "cow"), (0.5,) * 3, (0.5,) * 3)
    found = on_hand(digits, other, labels=False)
    assert found.x.shape == (6, 1, 8, 8)
    assert set(found.y.tolist()) == {UNKNOWN}
    with pytest.raises(DataError, match="labels=false"):
        on_hand(digits, other, labels=True)


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"method": "nasty", "queries": 10}, "is a defense"),
        ({"method": "ce", "labels": False}, "learns from labels alone"),
        ({"method": "dfme", "victim": True, "transfer": "mnist"}, "makes its own images"),
        ({"method": "fitnet", "victim": True, "access": "features", "labels": False}, "needs the label of every"),
        ({"method": "fitnet", "victim": True, "access": "features", "queries": 9}, "only labels, probs and logits"),
        ({"method": "kd", "victim": True, "transfer": "no_such_set"}, "no_such_set"),
    ],
)
def test_means_that_a_method_cannot_use_are_refused(fields: dict[str, object], problem: str) -> None:
    if fields.get("victim"):
        fields = {**fields, "victim": {"data": "digits", "model": STUDENT}}
    with pytest.raises(RecipeError, match=problem):
        load_recipe(data="digits", model=STUDENT, **fields)


def test_what_a_thief_has_is_in_the_hash_and_what_it_is_by_default_is_not() -> None:
    victim = {"data": "digits", "model": STUDENT}
    base = {"data": "digits", "model": STUDENT, "method": "kd", "victim": victim}
    plain = load_recipe(**base)
    assert load_recipe(**base, transfer="digits", labels=True).hash == plain.hash
    others = [{"transfer": "mnist"}, {"labels": False}, {"labels": 50}, {"queries": 50}, {"labels": 2}]
    assert len({plain.hash, *(load_recipe(**base, **other).hash for other in others)}) == 6


# --- queries ----------------------------------------------------------------------------------------------------------


def test_every_image_is_asked_about_once_and_its_answer_serves_all_epochs(digits: Dataset, tmp_path: Path) -> None:
    victim = Counting()
    given = {**QUICK, "epochs": 3, "model": STUDENT, "runs": tmp_path, "progress": False, "augment": "crop"}
    run = undistill.attack(victim=victim, method="kd", queries=200, labels=False, **given)
    assert run.result["queries"] == run.result["images"] == 200
    assert run.result["labels"] == 0
    assert run.result["trained_images"] == 3 * len(digits.train)
    held = hold(digits.train, labels=False, queries=200, asks=True).images
    x = (held.x.float() / 255 - digits.mean[0]) / digits.std[0]
    answers = load_file(run.folder / "answers.safetensors")["answers"]
    assert torch.allclose(answers, victim.net(x.flatten(1)), atol=1e-5)


def test_an_asked_victim_answers_about_its_images_only_and_its_meter_stands_still() -> None:
    victim = Victim(Counting(), access=Access.PROBS)
    x = torch.rand(7, 1, 8, 8)
    asked = Asked.of(victim, lambda ask: ask(x))
    assert victim.queries == asked.queries == asked.another().queries == 7
    rows = torch.tensor([3, 0])
    moved = x[rows] + 1.0  # as the thief has augmented them
    with asked_once(moved, rows=rows):
        assert torch.equal(asked.probs(moved), victim.probs(x)[rows])
        assert torch.equal(asked.labels(moved), victim.labels(x)[rows])
        assert torch.allclose(asked.scores(moved).softmax(1), victim.probs(x)[rows], atol=1e-6)
        with pytest.raises(AccessError):
            asked.logits(moved)
    assert asked.queries == 7
    with pytest.raises(AccessError, match="spent"):
        asked.probs(moved)


def test_kept_answers_of_another_victim_are_refused(teacher: Run, tmp_path: Path) -> None:
    path = tmp_path / "answers.safetensors"
    assert read_answers(path, "a") is None
    write_answers(path, torch.arange(3), "a")
    assert torch.equal(read_answers(path, "a"), torch.arange(3))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="another victim"):
        read_answers(path, "b")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="delete it"):
        read_answers(path, "a")


def test_a_step_on_kept_answers_is_that_of_the_plain_formula(digits: Dataset) -> None:
    victim = Counting()
    held = hold(digits.train, labels=20, queries=64, asks=True).images
    x = (held.x.float() / 255 - digits.mean[0]) / digits.std[0]
    rows = torch.tensor([5, 1, 60, 33, 2, 40])
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    batch = Batch(x[rows], held.y[rows], rows, partial=True)
    asked = Asked.of(Victim(victim), lambda ask: ask(x))
    with asked_once(batch.x, rows=rows):
        loss = KD(temperature=3.0, alpha=0.7).step(batch, Nets(net, victim=asked)).loss
    loss, net = loss.detach(), net.requires_grad_(False)
    victim.requires_grad_(False)
    p, q = (victim.net(x[rows].flatten(1)) / 3).log_softmax(1), (net(x[rows]) / 3).log_softmax(1)
    known = [i for i, row in enumerate(rows) if held.y[row] >= 0]
    each = [-net(x[rows]).log_softmax(1)[i, held.y[rows[i]]] for i in known]
    ce = sum(each) / len(each) if each else 0.0
    expected = 0.7 * 9 * (p.exp() * (p - q)).sum(1).mean() + 0.3 * ce
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_unknown_labels_count_for_nothing() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    known = torch.tensor([True, False, True, False, False, True])
    hidden = labels.where(known, -1)
    expected = torch.nn.functional.cross_entropy(logits, hidden, ignore_index=-1)
    assert float(F.cross_entropy(logits, hidden, known=known)) == pytest.approx(float(expected))
    assert float(F.cross_entropy(logits, hidden, known=torch.zeros(6, dtype=torch.bool))) == 0.0


def test_a_captured_step_reads_kept_answers_by_the_rows_of_its_batch() -> None:
    x = torch.rand(8, 1, 8, 8)
    asked = Asked.of(Victim(Counting()), lambda ask: ask(x))
    nets = Nets(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), victim=asked)
    optimizer = torch.optim.SGD(nets.model.parameters(), lr=torch.tensor(0.1))
    learner = Learner(KD(), nets, optimizer, lambda loss, norm: None)
    label = torch.zeros(4, dtype=torch.int64)
    first, second = (Batch(x[rows], label, rows) for rows in (torch.arange(4), torch.arange(4, 8)))
    before = {k: v.clone() for k, v in nets.model.state_dict().items()}
    stepper = GraphStepper([learner], first, capture=played)
    stepper(second, [0.1])
    got = {k: v.clone() for k, v in nets.model.state_dict().items()}
    nets.model.load_state_dict(before)
    with asked_once(second.x, rows=second.index):
        take_step([learner], second, [torch.tensor(0.1)])
    assert all(torch.allclose(got[k], v) for k, v in nets.model.state_dict().items())


# --- choices and measures ---


def test_who_has_no_labels_chooses_by_agreement_and_pays_for_it(teacher: Run, digits: Dataset) -> None:
    fields = {"holdout": 0.1, "selection": "heldout", "method": "hard_label", "access": "labels"}
    fresh = steal(teacher, labels=False, **fields)
    held = round(0.1 * len(digits.train))
    assert fresh.result["queries"] == QUICK["epochs"] * (len(digits.train) - held) + held  # type: ignore[operator]
    assert fresh.result["heldout"] is None
    assert "heldout_agreement" in fresh.metrics[0]
    budget = steal(teacher, labels=False, queries=300, **fields)
    assert budget.result["queries"] == 300
    assert 0 <= budget.result["agreement"] <= 1
    some = steal(teacher, labels=100, **{**fields, "method": "kd", "access": "probs"})
    assert some.result["heldout"] is not None
    assert "heldout_accuracy" in some.metrics[0]


def test_fidelity_and_distance_are_those_of_the_two_nets_on_the_test_images(teacher: Run, digits: Dataset) -> None:
    run = steal(teacher, method="kd(temperature=2)", policy="rounding(digits=1)")
    x = (digits.test.x.float() / 255 - digits.mean[0]) / digits.std[0]
    with torch.no_grad():
        thief, victim = run.load_model()(x), teacher.load_model()(x)
    assert run.result["fidelity"] == pytest.approx(float((thief.argmax(1) == victim.argmax(1)).float().mean()))
    p, q = victim.log_softmax(1), thief.log_softmax(1)
    assert run.result["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)
    assert torch.equal(run.predictions(), thief.argmax(1).int())  # type: ignore[arg-type]
    assert torch.equal(run.predictions("victim"), victim.argmax(1).int())  # type: ignore[arg-type]
    right = (run.predictions().long() == digits.test.y).float().mean()  # type: ignore[union-attr]
    assert run.accuracy == pytest.approx(100 * float(right))


def test_answers_that_are_the_labels_are_told(teacher: Run, digits: Dataset) -> None:
    run = steal(teacher, method="hard_label", labels=False, queries=100)
    held = hold(digits.train, labels=False, queries=100, asks=True)
    x = (held.images.x.float() / 255 - digits.mean[0]) / digits.std[0]
    with torch.no_grad():
        right = (teacher.load_model()(x).argmax(1) == held.truth).float().mean()
    assert run.result["answers_right"] == pytest.approx(float(right))


def test_a_thief_with_other_images_is_measured_on_the_owners(teacher: Run, digits: Dataset) -> None:
    run = steal(teacher, method="hard_label", labels=False, transfer="negative(of='digits')", queries=50)
    assert run.result["test_images"] == len(digits.test)
    assert run.result["images"] == 50
    assert run.result["transfer_fingerprint"] == load_dataset("negative(of='digits')").fingerprint
    again = steal(teacher, method="hard_label", labels=False, transfer="negative(of='digits')", queries=50)
    assert again.folder == run.folder


def test_thieves_with_the_same_means_end_alone_as_together(teacher: Run, tmp_path: Path) -> None:
    base = {**QUICK, "model": STUDENT, "victim": teacher.recipe, "labels": 30, "queries": 90, "access": "probs"}
    recipes = [load_recipe(**base, method=method) for method in ("kd(temperature=2)", "hard_label")]
    together = Workspace(tmp_path / "together").run_together(recipes)
    alone = [Workspace(tmp_path / "alone").run(recipe) for recipe in recipes]
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, Run)
        assert one.result["weights_sha256"] == other.result["weights_sha256"]
    with pytest.raises(RecipeError, match="same batches"):
        Workspace(tmp_path).run_together([recipes[0], load_recipe(**{**base, "queries": 91}, method="hard_label")])


# --- images that others do not have ---


def test_the_rest_is_what_a_subset_leaves_out(digits: Dataset) -> None:
    owned, left = load_dataset("digits(subset=1000)").train, load_dataset("rest(of='digits(subset=1000)')").train
    rows = [sorted(x.numpy().tobytes() for x in images.x) for images in (owned, left, digits.train)]
    assert sorted(rows[0] + rows[1]) == rows[2]
    assert len(load_dataset("rest(of='digits(subset=1000)', subset=20)").train) == 20
    with pytest.raises(RecipeError, match="leaves nothing out"):
        load_dataset("rest(of='digits')")


def test_a_collage_is_of_two_images_on_the_two_sides_of_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two flat images, each made one shows both levels, split by one straight line, but for what a turn cuts off."""
    flat = torch.stack([torch.full((1, 8, 8), level, dtype=torch.uint8) for level in (90, 200)])
    images = Images(flat, torch.tensor([0, 1]))
    source = Dataset("flat", images, images, ("a", "b"), (0.5,), (0.5,))
    monkeypatch.setitem(DATASETS._members, "flat_for_a_test", lambda: source)
    made = load_dataset("collage(of='flat_for_a_test', count=300)")
    assert torch.equal(made.train.x[:2], flat)
    assert made.train.y.tolist() == [0, 1] + [UNKNOWN] * 300
    assert torch.equal(made.train.x, load_dataset("collage(count=300, of='flat_for_a_test')").train.x)
    assert not torch.equal(made.train.x, load_dataset("collage(of='flat_for_a_test', count=300, seed=1)").train.x)
    inner = made.train.x[2:, 0, 3:5, 3:5].reshape(300, 4)  # the middle is turned out of sight in none
    kinds = {len(set(pixels.tolist())) for pixels in inner}
    assert set(inner.flatten().tolist()) == {90, 200}
    assert kinds == {1, 2}
    with pytest.raises(RecipeError, match="whole number"):
        load_dataset("collage(of='digits', count=-1)")


def test_who_has_few_labels_asks_about_those_first_and_a_reference_has_only_these(teacher: Run) -> None:
    spec = "collage(count=80, of=\"rest(of='digits(subset=1000)', subset=20)\")"
    data = load_dataset(spec)
    thief, alone = (hold(data.train, labels=20, queries=q, asks=a) for q, a in ((50, True), (None, False)))
    assert len(thief.images) == 50
    assert thief.labels == alone.labels == len(alone.images) == 20
    assert thief.epoch == alone.epoch == 100
    assert hold(data.train, labels=True, queries=50, asks=True).labels == 20
    with pytest.raises(RecipeError, match="needs the label of every image"):
        steal(teacher, method="finetune", access="gradients", transfer=spec)


def test_htc_is_its_formula() -> None:
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    net, victim = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False), Counting().requires_grad_(False)
    nets = Nets(net, victim=Victim(victim, access=Access.PROBS))
    loss = HTC(temperature=5.0, alpha=0.8, multiplier=3.0).step(Batch(x, y, y), nets).loss
    p = (victim.net(x.flatten(1)).double().softmax(1).log() / 5).softmax(1)
    q = net(x).double().log_softmax(1)
    expected = 0.8 * 3 * (p * (p.log() - q)).sum(1).mean() - 0.2 * q[range(6), y].mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_ttm_is_its_formula(weighted: bool) -> None:
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    net, victim = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False), Counting().requires_grad_(False)
    nets = Nets(net, victim=Victim(victim, access=Access.PROBS))
    loss = TTM(power=0.2, multiplier=3.0, label_weight=0.5, weighted=weighted).step(Batch(x, y, y), nets).loss
    powers = victim.net(x.flatten(1)).double().softmax(1) ** 0.2
    q, u = powers / powers.sum(1, keepdim=True), powers.sum(1) if weighted else torch.ones(6)
    log_s = net(x).double().log_softmax(1)
    expected = 3 * (u * (q * (q.log() - log_s)).sum(1)).mean() - 0.5 * log_s[range(6), y].mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_ttm_at_the_power_of_one_is_plain_distillation_and_of_a_fiftieth_is_htc() -> None:
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    victim = Victim(Counting().requires_grad_(False), access=Access.PROBS)
    students = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(3)]
    for student in students[1:]:
        student.load_state_dict(students[0].state_dict())
    methods = (
        TTM(power=0.02, multiplier=2.0, label_weight=0.0),
        HTC(temperature=50.0, alpha=1.0, multiplier=2.0),
        TTM(power=1.0, multiplier=1.0, label_weight=0.0, weighted=True),
    )
    for method, student in zip(methods, students, strict=True):
        method.step(Batch(x, y, y), Nets(student, victim=victim)).loss.backward()
    ttm, htc, _ = (student[1].weight.grad for student in students)
    assert torch.allclose(ttm, htc, atol=1e-7)
    kd = KD(temperature=1.0, alpha=1.0).step(Batch(x, y, y), Nets(students[2], victim=victim)).loss
    same = methods[2].step(Batch(x, y, y), Nets(students[2], victim=victim)).loss
    assert float(same.detach()) == pytest.approx(float(kd.detach()))


def test_images_that_are_the_owners_are_counted(teacher: Run, digits: Dataset) -> None:
    run = steal(teacher, method="hard_label", labels=False, transfer="digits(subset=300)", queries=100)
    assert (run.result["images_of_owner"], run.result["images_of_test"]) == (100, 0)
    assert overlap(digits.test, digits.test) == len(digits.test)
    other = steal(teacher, method="hard_label", labels=False, transfer="negative(of='digits')", queries=50)
    assert (other.result["images_of_owner"], other.result["images_of_test"]) == (0, 0)


def test_too_few_labels_to_hold_some_out_are_said_so(teacher: Run) -> None:
    with pytest.raises(DataError, match=r"holdout=0\.1: .*set holdout=0 selection=last, or have more labels"):
        steal(teacher, method="kd", labels=10, holdout=0.1, selection="heldout")

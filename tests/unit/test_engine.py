"""The training loop and what it stands on."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from undistill.data import load_dataset
from undistill.data.dataset import Dataset, Images
from undistill.data.loader import Batch
from undistill.engine.callbacks import Callbacks, MetricsLog, TensorBoard, read_metrics
from undistill.engine.config import Training
from undistill.engine.device import exact_arithmetic, pick_device
from undistill.engine.evaluate import evaluate, predict
from undistill.engine.guard import DivergenceGuard, gradient_norm
from undistill.engine.interrupt import stop_on_interrupt
from undistill.engine.job import Job
from undistill.engine.optim import learning_rate, make_optimizer
from undistill.engine.state import TrainState
from undistill.engine.stepping import Learner, take_step
from undistill.engine.train import fit
from undistill.errors import CheckpointError, DeviceError, DivergenceError, MissingExtraError, RecipeError, RunError
from undistill.methods import build_method
from undistill.models import build_model
from undistill.objective import Frozen, Nets, Objective, StepOutput
from undistill.storage import append_text, atomic_path, write_json, write_tensors, write_text

CPU = torch.device("cpu")
SHORT = Training(epochs=2, batch_size=40, lr=0.05, holdout=0, selection="last")


def data(train: int = 100, test: int = 50) -> Dataset:
    return load_dataset(f"digits(subset={train}, test_subset={test})")


def net(spec: str = "mlp(hidden=(16,), relu_logits=False)", seed: int = 0) -> nn.Module:
    return build_model(spec, num_classes=10, in_channels=1, image_size=8, seed=seed)


class Recorder:
    """Remember what a run says."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, int]] = []
        self.records: list[dict[str, Any]] = []

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.steps.append((epoch, step, steps))

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)


# --- schedules and optimizers


def rates(config: Training, scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int, every_step: bool) -> Tensor:
    """Return the learning rates that torch's scheduler sets, one a step."""
    found = []
    for _ in range(config.epochs):
        for _ in range(steps):
            found.append(scheduler.get_last_lr()[0])
            scheduler.optimizer.step()
            if every_step and len(found) < config.epochs * steps:
                scheduler.step()
        if not every_step:
            scheduler.step()
    return torch.tensor(found, dtype=torch.float64)


def ours(config: Training, steps: int) -> Tensor:
    return torch.tensor(
        [learning_rate(config, epoch, step, steps) for epoch in range(config.epochs) for step in range(steps)],
        dtype=torch.float64,
    )


def sgd(config: Training) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)


@pytest.mark.parametrize(
    ("epochs", "milestones", "gamma"),
    [(160, (80, 120), 0.1), (200, (60, 120, 160), 0.2), (100, (999,), 0.1), (7, (0, 3), 0.5), (1, (), 0.1)],
)
def test_step_schedule(epochs: int, milestones: tuple[int, ...], gamma: float):
    config = Training(epochs=epochs, milestones=milestones, gamma=gamma, lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(sgd(config), config.milestones, gamma)
    torch.testing.assert_close(ours(config, 3), rates(config, scheduler, 3, every_step=False), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("epochs", "steps"), [(60, 11), (10, 1), (1, 5), (2, 2), (1, 3), (1, 2)])
def test_one_cycle_schedule(epochs: int, steps: int):
    config = Training(epochs=epochs, schedule="one_cycle", lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        sgd(config), max_lr=config.lr, total_steps=epochs * steps, cycle_momentum=False
    )
    torch.testing.assert_close(ours(config, steps), rates(config, scheduler, steps, every_step=True), rtol=1e-9, atol=0)


def test_constant_schedule():
    assert set(ours(Training(epochs=5, schedule="constant", lr=0.3), 4).tolist()) == {0.3}


def test_default_milestones_are_at_a_half_and_three_quarters():
    assert Training().milestones == (80, 120)
    assert Training(epochs=20).milestones == (10, 15)
    assert Training(epochs=20, milestones=(3,)).milestones == (3,)


def test_optimizers():
    model = net()
    sgd = make_optimizer(Training(lr=0.3, momentum=0.8, weight_decay=1e-3), model)
    assert isinstance(sgd, torch.optim.SGD)
    (group,) = sgd.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.8, 1e-3)
    assert (group["nesterov"], group["dampening"]) == (False, 0)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    adam = make_optimizer(Training(optimizer="adam", lr=1e-3, weight_decay=0), model)
    assert type(adam) is torch.optim.Adam
    (group,) = adam.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.9, 0.999), 1e-8, 0)


def test_optimizer_leaves_frozen_parameters_alone():
    model = net()
    next(model.parameters()).requires_grad_(False)
    (group,) = make_optimizer(SHORT, model).param_groups
    assert len(group["params"]) == len(list(model.parameters())) - 1
    model.requires_grad_(False)
    with pytest.raises(RecipeError, match="there is nothing to train"):
        make_optimizer(SHORT, model)


# --- the loop


def test_a_step_is_gradients_guard_update_count():
    """What the guard raises ends the step of its own net before the update."""
    said: list[Any] = []
    found = [net(seed=seed) for seed in range(2)]
    before = [next(model.parameters()).detach().clone() for model in found]

    def learner(model: nn.Module, which: int) -> Learner:
        @contextlib.contextmanager
        def turn() -> Iterator[None]:
            said.append((which, "turn"))
            try:
                yield
            except DivergenceError as error:
                said.append((which, error.epoch))

        def guard(loss: Tensor, norm: Tensor) -> None:
            assert torch.equal(next(model.parameters()), before[which])
            assert norm == gradient_norm(model.parameters()) > 0
            said.append((which, "guard"))
            if which == 0:
                raise DivergenceError("here", epoch=7, step=1, last_finite_loss=None)

        def count(output: StepOutput, batch: Batch) -> None:
            assert not torch.equal(next(model.parameters()), before[which])
            said.append((which, "count", len(batch.y), bool(output.loss > 0)))

        return Learner(build_method("ce"), Nets(model), make_optimizer(SHORT, model), guard, count, turn)

    batch = Batch(torch.rand(6, 1, 8, 8), torch.arange(6), torch.arange(6))
    take_step([learner(model, which) for which, model in enumerate(found)], batch, [0.1, 0.1])
    assert said == [(0, "turn"), (0, "guard"), (0, 7), (1, "turn"), (1, "guard"), (1, "count", 6, True)]
    assert torch.equal(next(found[0].parameters()), before[0])


def test_every_image_is_trained_on_and_the_last_batch_is_small():
    seen: list[tuple[int, list[int]]] = []

    class Spy(Objective):
        name = "spy"

        def step(self, batch: Batch, nets: Nets) -> StepOutput:
            seen.append((len(batch.y), batch.index.tolist()))
            logits = nets.model(batch.x)
            return StepOutput(F.cross_entropy(logits, batch.y), logits)

    recorder = Recorder()
    fit(Job(Spy(), Nets(net()), SHORT, callback=recorder), data(), device=CPU)
    assert [size for size, _ in seen] == [40, 40, 20] * 2
    for epoch in (0, 1):
        rows = [row for _, rows in seen[3 * epoch : 3 * epoch + 3] for row in rows]
        assert sorted(rows) == list(range(100))
    assert seen[0][1] != seen[3][1]  # another order in the second epoch
    assert recorder.steps == [(epoch, step, 3) for epoch in (1, 2) for step in (1, 2, 3)]


def test_record_of_an_epoch():
    """With a rate of next to nothing every step sees the first weights, so one pass over the set gives the figures."""
    split, recorder = data(), Recorder()
    model = net()
    config = Training(epochs=1, batch_size=40, lr=1e-30, schedule="constant", holdout=0, selection="last")
    with torch.no_grad():
        images = (split.train.x.float() / 255 - split.mean[0]) / split.std[0]
        logits = model(images)
        loss = float(F.cross_entropy(logits, split.train.y))
        accuracy = 100 * float((logits.argmax(1) == split.train.y).float().mean())
        test = model((split.test.x.float() / 255 - split.mean[0]) / split.std[0])
        test_nll = float(F.cross_entropy(test, split.test.y))
        test_accuracy = 100 * float((test.argmax(1) == split.test.y).float().mean())
    fit(Job(build_method("ce"), Nets(model), config, callback=recorder), split, device=CPU)
    (record,) = recorder.records
    assert (record["epoch"], record["lr"]) == (1, 1e-30)
    assert record["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert record["train_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    assert record["test_nll"] == pytest.approx(test_nll, rel=1e-5)
    assert record["test_accuracy"] == pytest.approx(test_accuracy, rel=1e-6)
    json.dumps(record, allow_nan=False)


def test_same_seed_same_weights_another_seed_others():
    states = []
    for seed in (0, 0, 1):
        model = net("cnn(channels=4, dropout=0.3)")
        config = SHORT.model_copy(update={"seed": seed, "epochs": 1})
        torch.manual_seed(1000 + len(states))  # what the program did before does not matter
        fit(Job(build_method("ce"), Nets(model), config), data(), device=CPU)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not all(torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_the_random_state_of_the_program_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(Job(build_method("ce"), Nets(net("cnn(channels=4, dropout=0.3)")), SHORT), data(), device=CPU)
    assert torch.equal(torch.rand(3), expected)


def scores(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[int]:
    """Make the evaluations of the monitored images return ``values`` in turn; returns where to read their sizes."""
    sizes: list[int] = []
    real = evaluate

    def scripted(logits: Tensor, labels: Tensor) -> Any:
        found = real(logits, labels)
        sizes.append(len(labels))
        if len(sizes) <= len(values):
            value = values[len(sizes) - 1]
            return SimpleNamespace(
                **{**vars(found), "accuracy": value, "batch_mean_accuracy": 100 - value}
            )  # the two disagree, so which one decides shows
        return found

    monkeypatch.setattr("undistill.engine.trainer.evaluate", scripted)
    return sizes


@pytest.mark.parametrize(
    ("selection", "expected", "monitored"), [("heldout", 3, 20), ("paper", 4, 50), ("last", 4, 20)]
)
def test_selection(monkeypatch: pytest.MonkeyPatch, selection: str, expected: int, monitored: int):
    """Epochs 1 and 3 are best by accuracy, 2 and 4 by the mean over batches: a tie goes to the later one."""
    sizes = scores(monkeypatch, [70.0, 50.0, 70.0, 50.0])
    config = Training(epochs=4, batch_size=40, lr=0.1, holdout=0.2, selection=selection, schedule="constant")
    model, weights = net(), []

    class Keep(Recorder):
        def epoch(self, record: dict[str, Any]) -> None:
            weights.append({key: value.clone() for key, value in model.state_dict().items()})

    fitted = fit(Job(build_method("ce"), Nets(model), config, callback=Keep()), data(), device=CPU)
    assert fitted.selected_epoch == expected
    assert all(torch.equal(value, weights[expected - 1][key]) for key, value in model.state_dict().items())
    assert sizes[:4] == [monitored] * 4
    # At the end the test set, with the last and the selected weights, and the held-out images with the selected ones.
    assert sizes[4:] == ([50] if expected == 4 else [50, 50]) + [20]
    assert (fitted.last == fitted.selected) == (expected == 4)


def test_held_out_images_are_never_trained_on():
    split = data()
    seen: set[bytes] = set()

    class Spy(Objective):
        name = "spy"

        def step(self, batch: Batch, nets: Nets) -> StepOutput:
            seen.update(image.numpy().tobytes() for image in batch.x)
            logits = nets.model(batch.x)
            return StepOutput(F.cross_entropy(logits, batch.y), logits)

    config = Training(epochs=3, batch_size=40, lr=0.05, holdout=0.3, seed=4)
    fit(Job(Spy(), Nets(net()), config), split, device=CPU)
    rest, held_out = split.holdout(0.3, 4)
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (split.mean, split.std))
    pixels = [{image.numpy().tobytes() for image in (part.x.float() / 255 - mean) / std} for part in (rest, held_out)]
    assert seen == pixels[0]
    assert not seen & pixels[1]
    assert len(held_out) == 30
    assert len(pixels[1]) == 30


def test_collapsed_student_is_a_result():
    """A net whose bias drowns everything else answers one class for every image."""
    model = net()
    with torch.no_grad():
        next(reversed(list(model.parameters())))[3] = 1e4
    config = SHORT.model_copy(update={"lr": 1e-9, "epochs": 1})
    recorder = Recorder()
    fitted = fit(Job(build_method("ce"), Nets(model), config, callback=recorder), data(), device=CPU)
    assert fitted.last.collapsed
    assert (fitted.last.top_class, fitted.last.top_class_share) == (3, 1.0)
    assert fitted.last.accuracy == pytest.approx(100 * float((data().test.y == 3).float().mean()))
    assert recorder.records[0]["test_top_class_share"] == 1.0


# --- divergence


def grads(*values: float) -> list[Tensor]:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor([0.0, value])
    return parameters


def test_guard_on_loss():
    guard = DivergenceGuard(CPU)
    guard.watch(0, 0, torch.tensor(2.5), gradient_norm(grads(1.0)))
    guard.watch(0, 1, torch.tensor(1.25), gradient_norm(grads(1.0)))
    with pytest.raises(DivergenceError) as caught:
        guard.watch(1, 4, torch.tensor(math.inf), gradient_norm(grads(1.0)))
    error = caught.value
    assert (error.epoch, error.step, error.last_finite_loss) == (2, 5, 1.25)
    assert str(error).startswith("training diverged: loss is not finite at epoch 2, step 5 (last finite loss: 1.25)")
    assert error.exit_code == 4


def test_guard_on_gradient():
    guard = DivergenceGuard(CPU)
    with pytest.raises(DivergenceError, match=r"gradient is not finite at epoch 1, step 1 \(last finite loss: none\)"):
        guard.watch(0, 0, torch.tensor(1.0), gradient_norm([nn.Parameter(torch.zeros(1)), *grads(1.0, math.nan)]))


def test_guard_goes_on_after_a_resume():
    guard = DivergenceGuard(CPU, last_finite_loss=0.5)
    with pytest.raises(DivergenceError, match=r"last finite loss: 0\.5"):
        guard.watch(3, 0, torch.tensor(math.nan), gradient_norm(grads(1.0)))


def test_guard_waits_on_an_accelerator():
    guard = DivergenceGuard(torch.device("cuda"))  # the losses themselves are on the CPU here
    for step, loss in enumerate((3.0, 2.0, math.nan, 7.0)):
        guard.watch(0, step, torch.tensor(loss), gradient_norm(grads(1.0)))
    assert guard.last_finite_loss is None
    with pytest.raises(DivergenceError, match="loss is not finite at epoch 1, step 3") as caught:
        guard.check()
    assert caught.value.last_finite_loss == 2.0
    fresh = DivergenceGuard(torch.device("cuda"))
    fresh.watch(0, 0, torch.tensor(3.0), gradient_norm(grads(1.0)))
    fresh.check()
    fresh.check()
    assert fresh.last_finite_loss == 3.0


@pytest.mark.parametrize("lr", [1e20, 3e38])  # the second one is next to the largest float32
@pytest.mark.parametrize("model", ["mlp(hidden=(16,), relu_logits=False)", "cnn(channels=4)"])
def test_diverging_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lr: float, model: str):
    monkeypatch.setattr("undistill.engine.trainer._SAVE_RATIO", 0)  # a save after every step
    path = tmp_path / "state.safetensors"
    config = SHORT.model_copy(update={"lr": lr, "schedule": "constant"})

    class Steep(Objective):
        name = "steep"

        def step(self, batch: Batch, nets: Nets) -> StepOutput:
            logits = nets.model(batch.x)
            return StepOutput(100 * F.cross_entropy(logits, batch.y), logits)

    with pytest.raises(DivergenceError, match="training diverged") as caught:
        fit(Job(Steep(), Nets(net(model)), config, state_path=path), data(), device=CPU)
    error = caught.value
    assert error.last_finite_loss is not None
    assert math.isfinite(error.last_finite_loss)
    assert 1 <= error.epoch <= 2
    assert 1 <= error.step <= 3
    tensors = load_file(path)
    assert all(bool(value.isfinite().all()) for key, value in tensors.items() if key.startswith("model/"))
    fresh = net(model)
    good = TrainState(fresh, make_optimizer(config, fresh), torch.device("cpu"))
    good.load(path)
    assert (good.position.epoch, good.position.step) < (error.epoch - 1, error.step)


def test_divergence_that_is_not_read_yet_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On an accelerator the losses wait; whoever saves, Ctrl-C too, has to read them first."""
    guard = DivergenceGuard(torch.device("cuda"))
    monkeypatch.setattr("undistill.engine.trainer.DivergenceGuard", lambda device, last: guard)
    monkeypatch.setattr("undistill.engine.trainer._SAVE_RATIO", math.inf)

    class NanAtTwo(Objective):
        name = "nan_at_two"

        def step(self, batch: Batch, nets: Nets) -> StepOutput:
            logits = nets.model(batch.x)
            factor = math.nan if len(recorder.steps) == 1 else 1.0
            return StepOutput(factor * F.cross_entropy(logits, batch.y), logits)

    class InterruptAtThree(Recorder):
        def step(self, epoch: int, step: int, steps: int) -> None:
            super().step(epoch, step, steps)
            if step == 3:
                signal.raise_signal(signal.SIGINT)

    recorder, path = InterruptAtThree(), tmp_path / "state.safetensors"
    config = SHORT.model_copy(update={"batch_size": 20})  # five steps an epoch
    with pytest.raises(DivergenceError, match="loss is not finite at epoch 1, step 2"):
        fit(Job(NanAtTwo(), Nets(net()), config, state_path=path, callback=recorder), data(), device=CPU)
    start = net().state_dict()
    assert all(torch.equal(load_file(path)[f"model/{key}"], value) for key, value in start.items())


def test_divergence_in_the_very_last_step(tmp_path: Path):
    """No step follows it, so the evaluation has to notice; and the log stays JSON."""
    config = Training(epochs=1, batch_size=100, lr=1e38, holdout=0, selection="last", schedule="constant")
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(DivergenceError, match="loss on unseen images is not finite at epoch 1, step 1") as caught:
        fit(
            Job(build_method("ce"), Nets(net()), config, state_path=tmp_path / "state", callback=log),
            data(),
            device=CPU,
        )
    assert math.isfinite(caught.value.last_finite_loss or math.nan)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_textbook_gradient_would_be_nan_and_ours_is_finite():
    """KL through an underflowed softmax: finite loss, NaN gradient in the textbook form."""
    logits = torch.tensor([[0.0, 2000.0]], requires_grad=True)
    other = torch.log_softmax(torch.tensor([[1.0, 2.0]]), 1)
    textbook = F.kl_div(other, torch.softmax(logits / 4, 1), reduction="batchmean")
    textbook.backward()
    assert bool(textbook.isfinite())
    assert logits.grad is not None
    assert bool(logits.grad.isnan().any())

    class Nasty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.tensor([0.0, 2000.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.row.expand(len(x), 2)

    model = Nasty()
    batch = Batch(torch.zeros(3, 1, 8, 8), torch.ones(3, dtype=torch.int64), torch.arange(3))
    adversary = Frozen(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    build_method("nasty").step(batch, Nets(model, adversary)).loss.backward()
    assert model.row.grad is not None
    assert bool(model.row.grad.isfinite().all())


# --- frozen nets


def test_frozen_net_stays_in_eval_mode():
    inner = net("cnn(channels=4, dropout=0.5)")
    frozen = Frozen(inner.train())
    outer = nn.ModuleList([frozen])
    for call in (frozen.train, outer.train, inner.eval):
        call()
        assert not any(module.training for module in frozen.modules())
    frozen.train(True)
    before = {key: value.clone() for key, value in inner.state_dict().items()}
    x = torch.randn(5, 1, 8, 8, requires_grad=True)
    answer = frozen(x)
    assert not answer.requires_grad
    assert not answer.is_inference()
    assert torch.equal(answer, frozen(x))
    assert all(torch.equal(value, before[key]) for key, value in inner.state_dict().items())
    assert not any(p.requires_grad for p in frozen.parameters())


# --- evaluation


def test_evaluate_by_hand():
    """Four answers, worked out on paper: logits (log p) of probabilities that are easy to add."""
    p = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5 + 0.125, 0.375], [0.25, 0.75]])
    labels = torch.tensor([0, 1, 0, 0])
    found = evaluate(p.log(), labels)
    assert found.accuracy == 50.0
    assert found.batch_mean_accuracy == 50.0
    assert found.nll == pytest.approx(-(math.log(0.75) + 2 * math.log(0.25) + math.log(0.625)) / 4, rel=1e-6)
    # 15 bins: 0.75 three times (accuracy 1/3, gap 5/12), 0.625 once (accuracy 1, gap 3/8).
    assert found.ece == pytest.approx(3 / 4 * (0.75 - 1 / 3) + 1 / 4 * (1 - 0.625), rel=1e-6)
    assert (found.top_class, found.top_class_share, found.collapsed) == (0, 0.75, False)


def test_evaluate_in_the_papers_way():
    """128 right, then 2 wrong: 130 images are 98.46 % right, two batches are 50 %."""
    labels = torch.zeros(130, dtype=torch.int64)
    logits = torch.zeros(130, 3)
    logits[:128, 0] = 1
    logits[128:, 1] = 1
    found = evaluate(logits, labels)
    assert found.accuracy == pytest.approx(100 * 128 / 130, abs=1e-4)
    assert found.batch_mean_accuracy == 50.0
    assert found.collapsed


def test_predict_keeps_order_and_mode():
    split = data(100, 50)
    model = net("cnn(channels=4, dropout=0.5)").train()
    images = Images(split.test.x.repeat(25, 1, 1, 1), split.test.y.repeat(25))  # 1,250: more than one batch
    logits = predict(model, images, mean=split.mean, std=split.std, device=CPU)
    assert model.training
    model.eval()
    with torch.no_grad():
        expected = model((images.x.float() / 255 - split.mean[0]) / split.std[0])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not logits.requires_grad
    assert not model.training


# --- what is written down


def test_metrics_log_writes_over_repeated_epochs(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(path)
    for epoch in (1, 2, 3):
        first.epoch({"epoch": epoch, "session": 1})
    with path.open("a") as file:
        file.write('{"epoch": 4, "sess')  # the process was killed here
    assert [record["epoch"] for record in read_metrics(path)] == [1, 2, 3]
    second = MetricsLog(path)
    second.step(2, 1, 5)
    for epoch in (3, 4):
        second.epoch({"epoch": epoch, "session": 2})
    assert read_metrics(path) == [{"epoch": epoch, "session": 1 if epoch < 3 else 2} for epoch in (1, 2, 3, 4)]
    assert len(path.read_text().splitlines()) == 4


def test_no_metrics(tmp_path: Path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_tensorboard(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path / "metrics.jsonl")
    with Callbacks(log, TensorBoard(tmp_path), None) as callbacks:
        fit(Job(build_method("ce"), Nets(net()), SHORT, callback=callbacks), data(), device=CPU)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    records = read_metrics(tmp_path / "metrics.jsonl")
    tags = {name: name.replace("_", "/", 1) for name in records[0] if name != "epoch"}
    assert set(found.Tags()["scalars"]) == set(tags.values())
    for name, tag in tags.items():
        events = found.Scalars(tag)
        assert [event.step for event in events] == [1, 2]
        np.testing.assert_allclose([event.value for event in events], [r[name] for r in records], rtol=1e-6)


def test_tensorboard_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'undistill\[track\]'"):
        TensorBoard(tmp_path)


def test_callbacks_are_closed_after_an_error():
    closed = []
    callback = SimpleNamespace(step=lambda *a: None, epoch=lambda r: None, close=lambda: closed.append(1))
    with pytest.raises(KeyError), Callbacks(callback, Recorder()):
        raise KeyError
    assert closed == [1]


# --- files


def test_atomic_path_replaces_whole(tmp_path: Path):
    path = tmp_path / "new" / "file"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert not path.exists()
        temporary.write_text("first")
    assert path.read_text() == "first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_atomic_path_keeps_the_old_file_when_the_block_raises(tmp_path: Path, error: BaseException):
    path = tmp_path / "file"
    path.write_text("old")

    def half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)):
        half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space and run the same command again"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "no permission; choose another folder"),
        (errno.EROFS, "no permission; choose another folder"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_atomic_path_explains(tmp_path: Path, number: int, message: str):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RunError, match=rf"cannot write .*file: {message}"), atomic_path(path):
        raise OSError(number, os.strerror(number))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_writing_where_no_file_can_be(tmp_path: Path):
    (tmp_path / "file").write_text("a file, not a folder")
    for write in (
        lambda path: write_text(path, "x"),
        lambda path: append_text(path, "x"),
        lambda path: write_tensors(path, {"x": torch.zeros(1)}),
    ):
        with pytest.raises(RunError, match=r"cannot write .*inside"):
            write(tmp_path / "file" / "inside")


def test_write_json_and_tensors(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": math.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2.5, None]}
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared[2:], "c": shared.view(2, 3).T, "d": nn.Parameter(torch.ones(2))}
    write_tensors(tmp_path / "a.safetensors", tensors)
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)


def test_state_of_another_net_is_refused(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    small, large = net("cnn(channels=4)"), net("cnn(channels=8)")
    TrainState(small, make_optimizer(SHORT, small), torch.device("cpu")).save(path)
    with pytest.raises(CheckpointError, match=r"cannot resume from .*the net has changed.*start anew") as caught:
        TrainState(large, make_optimizer(SHORT, large), torch.device("cpu")).load(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="the file is damaged"):
        TrainState(small, make_optimizer(SHORT, small), torch.device("cpu")).load(path)


# --- signals and devices


def test_stop_on_interrupt_restores_the_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with stop_on_interrupt() as request:
        assert not request.asked
        signal.raise_signal(signal.SIGTERM)
        assert request.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before
    with pytest.raises(ZeroDivisionError), stop_on_interrupt():
        1 / 0  # noqa: B018
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_handler_of_another_language_becomes_the_default(monkeypatch: pytest.MonkeyPatch):
    """Python returns None for a handler that it did not install, and takes no None back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    install = signal.signal
    try:
        with monkeypatch.context() as patch:
            patch.setattr(signal, "signal", lambda number, handler: (install(number, handler), None)[1])
            with stop_on_interrupt():
                pass
        assert {signal.getsignal(number) for number in before} == {signal.SIG_DFL}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_training_in_a_thread():
    """Python delivers no signals there, and setting a handler would raise."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            fit(Job(build_method("ce"), Nets(net()), SHORT), data(), device=CPU)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []


def test_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == CPU
    with pytest.raises(DeviceError, match="'cuda' was asked for, but torch finds no CUDA here; use device=cpu"):
        pick_device("cuda")
    with pytest.raises(DeviceError, match="unknown device 'gpu'; expected auto, cpu, cuda or cuda:N"):
        pick_device("gpu")
    with pytest.raises(DeviceError, match="'meta' is not supported"):
        pick_device("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="there are only 2 CUDA devices"):
        pick_device("cuda:2")


def test_exact_arithmetic_puts_the_settings_back():
    """Through torch's present settings, which cannot be mixed with the older ``allow_tf32``."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with contextlib.suppress(KeyError), exact_arithmetic(torch.device("cuda")):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
            assert torch.backends.cudnn.deterministic
            raise KeyError
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert not torch.backends.cudnn.deterministic
        with exact_arithmetic(torch.device("cpu")):
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before

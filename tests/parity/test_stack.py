"""Equal nets as one: the numbers of each alone, whatever becomes of the others."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from played import played
from undistill.bench.ours import EngineLoop
from undistill.bench.train import bench_train
from undistill.data import load_dataset
from undistill.data.loader import Batch, Loader
from undistill.engine.config import Training, Tuning
from undistill.engine.fast.graphs import GraphStepper
from undistill.engine.fast.stack import Stack, StackStepper
from undistill.engine.fast.tuning import choose_for, choose_tuning, settled
from undistill.engine.job import Job, TrainResult
from undistill.engine.optim import make_optimizer
from undistill.engine.stepping import Learner, take_step
from undistill.engine.train import fit_together
from undistill.errors import DivergenceError, InterruptedRunError
from undistill.methods import build_method
from undistill.models import build_model, list_models
from undistill.objective import Nets, Objective, StepOutput
from undistill.victim import Victim

CPU = torch.device("cpu")
DATA = load_dataset("digits").take(train=304, test=50)  # 5 steps an epoch, the last one of 48 images
BASE = Training(
    epochs=3, batch_size=64, lr=1e-3, schedule="constant", holdout=0, selection="last", augment="none", profile="fast"
)
SPEC = "cnn(channels=4)"


def net(seed: int, spec: str = SPEC, channels: int = 1, size: int = 8) -> nn.Module:
    return build_model(spec, num_classes=10, in_channels=channels, image_size=size, seed=seed)


def config(*, stack: bool | None, **changes: Any) -> Training:
    return BASE.model_copy(update={"tuning": Tuning(channels_last=False, winograd=False, stack=stack), **changes})


def thieves(count: int, of: Training | Sequence[Training], spec: str = SPEC, **job: Any) -> list[Job]:
    """Students of one architecture, seeds and objectives of their own, of one victim."""
    victim = Victim(net(9))
    methods = [f"kd(temperature={1 + 3 * which}, alpha=0.{9 - which})" for which in range(count)]
    configs = [of] * count if isinstance(of, Training) else of
    return [
        Job(build_method(method), Nets(net(which, spec), victim=victim.another()), configs[which], **job)
        for which, method in enumerate(methods)
    ]


def trained(jobs: Sequence[Job]) -> list[Any]:
    return fit_together(jobs, DATA, device=CPU)


def difference(left: nn.Module, right: nn.Module) -> float:
    """Of weights and statistics, relative."""
    ours, theirs = (torch.cat([v.double().flatten() for v in of.state_dict().values()]) for of in (left, right))
    return float((ours - theirs).norm() / theirs.norm())


def assert_same(ours: Sequence[Job], theirs: Sequence[Job], tolerance: float = 1e-5) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert difference(mine.nets.model, other.nets.model) < tolerance
        assert mine.nets.victim.queries == other.nets.victim.queries


def batch(size: int = 32) -> Batch:
    loader = Loader(DATA.train, batch_size=size, augment="none", mean=DATA.mean, std=DATA.std, seed=0, device=CPU)
    return next(iter(loader.epoch(0)))


def learners(count: int, objective: Objective | str = "kd", spec: str = SPEC, lr: float = 0.01) -> list[Learner]:
    method = build_method(objective) if isinstance(objective, str) else objective
    victim, found = Victim(net(9)), []
    for which in range(count):
        nets = Nets(net(which, spec).train(), victim=victim.another())
        found.append(Learner(method, nets, make_optimizer(BASE, nets.model), lambda *_: None))
    return found


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many nets took each step as one."""
    found: list[int] = []
    call = StackStepper.__call__

    def counted(stepper: StackStepper, stacked: Sequence[Learner], given: Batch, lrs: Sequence[float]) -> Any:
        found.append(len(lrs))
        return call(stepper, stacked, given, lrs)

    monkeypatch.setattr(StackStepper, "__call__", counted)
    return found


# The numbers.


@pytest.mark.parametrize("name", list_models())
def test_gradients_and_statistics_are_those_of_the_nets_alone(name: str):
    nets = [net(seed, f"{name}(width=0.125)", 3, 16).double().train() for seed in range(3)]
    alone = deepcopy(nets)
    x, y = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.arange(8)
    stack = Stack(nets)
    stack.expect(x)
    stack.backward([(1 + which) * F.cross_entropy(part(x), y) for which, part in enumerate(stack.parts)])
    for which, (ours, theirs) in enumerate(zip(nets, alone, strict=True)):
        ((1 + which) * F.cross_entropy(theirs(x), y)).backward()
        for (key, mine), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            gradient = torch.zeros_like(expected) if expected.grad is None else expected.grad  # of what is frozen
            assert float((mine.grad - gradient).norm()) < 1e-9, key
        for (key, mine), expected in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("spec", ["cnn(channels=8)", "preresnet20(width=0.125)"])
def test_50_steps_are_those_of_the_nets_alone(spec: str, sizes: list[int]):
    start = net(0, spec)
    jobs = {stack: thieves(3, config(stack=stack, epochs=10, lr=1e-4), spec) for stack in (True, False)}
    found = {stack: trained(each) for stack, each in jobs.items()}
    assert sizes == [3] * 50
    assert_same(jobs[True], jobs[False])
    assert difference(jobs[True][0].nets.model, start) > 1e-3
    for mine, other in zip(found[True], found[False], strict=True):
        assert mine.last.nll == pytest.approx(other.last.nll, rel=1e-4)
        assert mine.tuning["stack"]
        assert not other.tuning["stack"]


def test_each_has_its_own_learning_rate_length_and_method(sizes: list[int]):
    changes = [{"lr": 1e-3, "epochs": 1}, {"lr": 1e-4, "epochs": 2, "schedule": "one_cycle"}, {"weight_decay": 0.1}]
    jobs = {
        stack: thieves(3, [config(stack=stack).model_copy(update=change) for change in changes])
        for stack in (True, False)
    }
    found = trained(jobs[True])
    trained(jobs[False])
    assert sizes == [3] * 5 + [2] * 5
    assert_same(jobs[True], jobs[False])
    assert [one.tuning["stack"] for one in found] == [True, True, False]  # the last epoch was one net's
    assert [job.nets.victim.queries for job in jobs[True]] == [304, 608, 912]


# Failures of their own.


class Own(Objective):
    """An objective from a function."""

    name = "own"

    loss: Any

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        logits = nets.model(batch.x)
        return StepOutput(self.loss(batch, nets, logits), logits)


def plain(given: Batch, nets: Nets, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, given.y)


def test_one_that_diverges_leaves_the_others_alone(sizes: list[int]):
    rates = [1e-3, 1e30, 1e-3]
    together = thieves(3, [config(stack=True, lr=lr) for lr in rates])
    alone = thieves(3, [config(stack=False, lr=lr) for lr in rates])
    first, second, third = trained(together)
    assert isinstance(second, DivergenceError)
    assert isinstance(first, TrainResult)
    assert isinstance(third, TrainResult)
    trained(alone)
    assert_same(together[::2], alone[::2])
    assert sizes[:3] == [3, 3, 2]


def test_a_net_of_nan_does_not_reach_the_others():
    found = learners(3)
    for parameter in found[1].nets.model.parameters():
        parameter.data.fill_(float("nan"))
    nets = [of.nets.model for of in found]
    stack, x = Stack(nets), batch().x
    stack.expect(x)
    stack.backward([part(x).square().sum() for part in stack.parts])
    finite = [all(bool(p.grad.isfinite().all()) for p in of.parameters()) for of in nets]
    assert finite == [True, False, True]
    assert all(bool(b.isfinite().all()) for of in nets[::2] for b in of.buffers())


def test_an_objective_that_fails_fails_alone():
    def fail_later(given: Batch, nets: Nets, logits: Tensor) -> Tensor:
        if broken:
            raise KeyError("here")
        return plain(given, nets, logits)

    @contextmanager
    def turn(which: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            failed.append((which, error))

    broken: list[int] = []
    failed: list[tuple[int, Exception]] = []
    found = [*learners(1), *learners(1, Own(loss=fail_later)), *learners(1)]
    found = [replace(of, turn=partial(turn, which)) for which, of in enumerate(found)]
    stack = StackStepper(found, batch())
    broken.append(1)
    before = [[p.detach().clone() for p in of.nets.model.parameters()] for of in found]
    stack(stack.learners, batch(), [0.01] * 3)
    ((which, error),) = failed
    assert which == 1
    assert isinstance(error, KeyError)
    stayed = [
        all(torch.equal(*pair) for pair in zip(of.nets.model.parameters(), was, strict=True))
        for of, was in zip(found, before, strict=True)
    ]
    assert stayed == [False, True, False]


# Interruptions.


class StopAt:
    """Interrupts at a step of an epoch, both from 1."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = epoch, step

    def step(self, epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == self.at:
            raise InterruptedRunError("here")

    def epoch(self, record: dict[str, Any]) -> None:
        pass


def saved(jobs: Sequence[Job], folder: Path, callback: Any = None) -> list[Job]:
    return [
        Job(job.objective, job.nets, job.config, folder / f"{which}.safetensors", callback)
        for which, job in enumerate(jobs)
    ]


def test_a_stack_goes_on_from_saved_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = thieves(3, config(stack=True))
    trained(whole)
    monkeypatch.setattr("undistill.engine.trainer._SAVE_RATIO", 0)
    with pytest.raises(InterruptedRunError):
        trained(saved(thieves(3, config(stack=True)), tmp_path, StopAt(2, 3)))
    resumed = saved(thieves(3, config(stack=True)), tmp_path)
    trained(resumed)
    assert_same(resumed, whole)


def test_one_that_was_ahead_joins_when_the_others_have_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
):
    alone = thieves(3, config(stack=False))
    trained(alone)
    monkeypatch.setattr("undistill.engine.trainer._SAVE_RATIO", 0)
    with pytest.raises(InterruptedRunError):
        trained(saved(thieves(3, config(stack=True)), tmp_path, StopAt(1, 4))[:1])
    assert not sizes
    resumed = saved(thieves(3, config(stack=True)), tmp_path)
    trained(resumed)
    assert sizes == [2] * 3 + [3] * 12  # two are behind by three steps
    assert_same(resumed, alone)


# What cannot be stacked.


def test_nets_that_draw_random_numbers_train_one_after_the_other(caplog: pytest.LogCaptureFixture):
    dropout = "cnn(channels=4, dropout=0.5)"
    jobs = {stack: thieves(2, config(stack=stack, epochs=1), dropout) for stack in (True, False)}
    with caplog.at_level(logging.WARNING, logger="undistill"):
        found = trained(jobs[True])
    assert "2 nets cannot be stacked" in caplog.text
    assert [one.tuning["stack"] for one in found] == [False, False]
    trained(jobs[False])
    assert_same(jobs[True], jobs[False], tolerance=1e-12)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda given, nets, logits: plain(given, nets, nets.model(given.x)), "asks for more"),
        (lambda given, nets, logits: plain(given, nets, nets.model(given.x.flip(3))), "asks for more"),
        (lambda given, nets, logits: plain(given, nets, logits * torch.rand(())), "random numbers"),
        (lambda given, nets, logits: plain(given, nets, logits) + 9 * nets.model.training, "other losses"),
    ],
)
def test_objectives_that_cannot_be_stacked_are_found_out(loss: Callable[..., Tensor], reason: str):
    found = learners(2, Own(loss=loss))
    if reason == "other losses":
        found[0].nets.model.eval()
    before, state = [deepcopy(of.nets.model.state_dict()) for of in found], torch.get_rng_state()
    with pytest.raises(RuntimeError, match=reason):
        StackStepper(found, batch())
    for of, weights in zip(found, before, strict=True):
        assert all(torch.equal(value, weights[key]) for key, value in of.nets.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_objective_may_look_at_the_weights_of_its_net():
    decay = Own(
        loss=lambda given, nets, logits: (
            plain(given, nets, logits) + sum(p.square().sum() for p in nets.model.parameters())
        )
    )
    ours, theirs = learners(2, decay), learners(2, decay)
    stack = StackStepper(ours, batch())
    for _ in range(3):
        stack(stack.learners, batch(), [0.01, 0.02])
        take_step(theirs, batch(), [0.01, 0.02])
    for mine, other in zip(ours, theirs, strict=True):
        assert difference(mine.nets.model, other.nets.model) < 1e-5


def test_other_architectures_are_refused():
    with pytest.raises(RuntimeError, match="different architectures"):
        StackStepper([*learners(1), *learners(1, spec="cnn(channels=8)")], batch())


def test_exact_is_never_stacked(sizes: list[int]):
    trained(thieves(2, config(stack=True, profile="exact")))
    assert not sizes


# How it is chosen.


def test_equal_jobs_choose_once(monkeypatch: pytest.MonkeyPatch, sizes: list[int]):
    asked = []

    def choose(pinned: Tuning, trial: Any, what: Any, steps: int) -> Tuning:
        found = settled(pinned)
        before = [deepcopy(job.nets.model.state_dict()) for job in jobs]
        asked.append([trial(found.model_copy(update={"stack": stack}))() for stack in (False, True)])
        for job, weights in zip(jobs, before, strict=True):
            assert all(torch.equal(value, weights[key]) for key, value in job.nets.model.state_dict().items())
        assert [job.nets.victim.queries for job in jobs] == [0, 0, 0]
        return found.model_copy(update={"stack": True})

    monkeypatch.setattr("undistill.engine.fast.tuning.choose_tuning", choose)
    jobs = thieves(3, config(stack=None, epochs=1))
    trained(jobs)
    assert len(asked) == 1
    assert all(seconds > 0 for seconds in asked[0])
    assert sizes == [3] + [3] * 5  # the trial's, and all steps


@pytest.mark.parametrize(
    ("seconds", "share", "expected"), [(0.1, 0.5, True), (0.1, 0.99, False), (0.1, 2.0, False), (0.3, 0.5, False)]
)
def test_auto_stacks_where_it_pays(seconds: float, share: float, expected: bool):
    def trial(tuning: Tuning) -> Callable[[], float]:
        tried.append(tuning.stack)
        return lambda: seconds * (share if tuning.stack else 1.0)

    tried: list[bool | None] = []
    assert choose_tuning(Tuning(), trial, ("stack", seconds, share), steps=1000).stack is expected
    assert (True in tried) is (seconds < 0.2)  # large steps take too much memory in a stack
    tried.clear()
    assert choose_tuning(Tuning(stack=False), trial, ("stack", seconds, share), steps=1000).stack is False
    assert True not in tried


def test_auto_compiles_a_stack_apart_if_that_is_faster_still():
    def trial(tuning: Tuning) -> Callable[[], float]:
        assert not (tuning.stack and tuning.compile)
        return lambda: 0.1 * (0.8 if tuning.stack else 0.5 if tuning.compile else 1.0)

    found = choose_tuning(Tuning(), trial, ("compiled",), steps=100_000)
    assert (found.stack, found.compile) == (False, True)


def test_a_step_that_cannot_be_tried_leaves_the_choice_to_the_default(caplog: pytest.LogCaptureFixture):
    def trial(tuning: Tuning) -> Callable[[], float]:
        raise KeyError("of the first net")

    found = [replace(of, config=config(stack=None), steps=1000) for of in learners(2)]
    assert choose_for(found, batch(), trial) == settled(Tuning(channels_last=False, winograd=False))
    assert "no tuning could be tried (KeyError" in caplog.text


def test_alone_there_is_nothing_to_stack():
    (found,) = trained(thieves(1, config(stack=True, epochs=1)))
    assert not found.tuning["stack"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_stack_goes_with_winograd_for_its_victim():
    found = {}
    for stack in (True, False):
        tuning = Tuning(channels_last=True, winograd=True, stack=stack)
        found[stack] = thieves(2, BASE.model_copy(update={"tuning": tuning, "epochs": 1}), "cnn(channels=16)")
        trained(found[stack])
    assert_same(found[True], found[False])


# As a graph, whose capture is played.


def test_a_captured_stack_is_a_stack():
    counted: dict[str, list[StepOutput]] = {"ours": [], "theirs": []}
    ours, theirs = (
        [replace(of, count=lambda output, _, found=found: found.append(output)) for of in learners(3)]
        for found in counted.values()
    )
    eager, made = StackStepper(theirs, batch()), StackStepper(ours, batch())
    graph = GraphStepper(made.learners, batch(), made, played)
    given = batch(64)
    for rows, lrs in ((slice(0, 32), [0.01, 0.02, 0.0]), (slice(32, 64), [0.001, 0.0, 0.02])):
        part = Batch(given.x[rows], given.y[rows], given.index[rows])
        graph(part, lrs)
        eager(eager.learners, part, lrs)
        for one, other in zip(*(found[-3:] for found in counted.values()), strict=True):
            torch.testing.assert_close(one.loss, other.loss.detach(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(one.logits, other.logits.detach(), rtol=1e-4, atol=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        assert difference(mine.nets.model, other.nets.model) < 1e-6
        assert mine.nets.victim.queries == other.nets.victim.queries == 64


def test_the_bench_measures_equal_nets_with_and_without_a_stack(monkeypatch: pytest.MonkeyPatch, sizes: list[int]):
    measured = []
    monkeypatch.setattr("undistill.bench.train.measure", lambda work, sides, **_: measured.append((work, sides)) or {})
    list(bench_train([SPEC], ["kd-stack"], ["exact", "fast"], batch_size=16, images=32, image_size=8))
    ((work, sides),) = measured
    assert work.models == (SPEC,) * 4
    assert sides == ["exact", "separate", "stacked"]
    loops = [EngineLoop(work, side) for side in ("separate", "stacked")]
    for loop in loops:
        loop.run(3)
    assert sizes == [4, 4, 4]
    separate, stacked = (loop.weights() for loop in loops)
    assert float((stacked - separate).norm() / separate.norm()) < 1e-5


@pytest.mark.parametrize("change", ["momentum", "frozen"])
def test_nets_that_differ_in_more_than_their_weights_are_not_stacked(change: str, sizes: list[int]):
    def jobs(stack: bool) -> list[Job]:
        found = thieves(2, config(stack=stack))
        if change == "momentum":
            found[1].nets.model.bn1.momentum = 0.01
        else:
            found[0].nets.model.conv1.weight.requires_grad_(False)
        trained(found)
        return found

    assert_same(jobs(True), jobs(False))
    assert not sizes


def test_afterwards_each_net_has_its_own_memory(sizes: list[int]):
    jobs = thieves(2, config(stack=True))
    trained(jobs)
    assert 2 in sizes
    for value in jobs[0].nets.model.state_dict().values():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_a_pass_that_fails_is_not_repeated():
    asked = []

    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            asked.append(x)
            raise MemoryError("no memory")

    stack = Stack([Failing(), Failing()])
    stack.expect(batch().x)
    with pytest.raises(MemoryError):
        stack.parts[0](stack._x)
    with pytest.raises(RuntimeError, match="failed"):
        stack.parts[1](stack._x)
    assert len(asked) == 1

"""The profile ``fast`` against ``exact``: the same up to rounding, whatever is switched on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from played import played
from undistill.data import load_dataset
from undistill.data.loader import Batch, Loader
from undistill.engine import train as engine
from undistill.engine.config import Training, Tuning
from undistill.engine.device import arithmetic, memory_kept
from undistill.engine.fast.folding import fold_batchnorm
from undistill.engine.fast.graphs import GraphStepper
from undistill.engine.fast.mixed import MixedPrecision
from undistill.engine.fast.steps import measured, rebuild, use_layout
from undistill.engine.fast.tuning import choose_for, choose_tuning
from undistill.engine.job import Job
from undistill.engine.optim import make_optimizer
from undistill.engine.stepping import Learner, take_step
from undistill.errors import AccessError, InterruptedRunError, RunError
from undistill.methods import build_method
from undistill.models import build_model, list_models
from undistill.objective import Frozen, Nets
from undistill.recipe import make_recipe
from undistill.victim import Access, Victim, asked_once

CPU = torch.device("cpu")
DATA = load_dataset("digits").take(train=1216, test=100)  # 10 steps an epoch, the last one of 64 images
EXACT = Training(epochs=5, batch_size=128, lr=1e-3, schedule="constant", holdout=0, selection="last", augment="none")
FULL = Tuning(channels_last=True, winograd=False, compile=False, threads=1, precision="float32", graphs=False)


def net(seed: int, spec: str = "cnn(channels=8)", channels: int = 1, size: int = 8) -> nn.Module:
    return build_model(spec, num_classes=10, in_channels=channels, image_size=size, seed=seed)


def nets(method: str, spec: str = "cnn(channels=8)") -> Nets:
    adversary = Frozen(net(2, spec)) if method == "nasty" else None
    victim = Victim(net(2, spec)) if method == "kd" else None
    return Nets(net(1, spec), adversary, victim)


def fit(
    method: str, config: Training, *, spec: str = "cnn(channels=8)", **kwargs: Any
) -> tuple[Nets, list[dict[str, Any]]]:
    found, records = nets(method, spec), []

    class Callback:
        def step(self, epoch: int, step: int, steps: int) -> None:
            pass

        def epoch(self, record: dict[str, Any]) -> None:
            records.append(record)

    engine.fit(
        Job(build_method(method), found, config, callback=kwargs.pop("callback", Callback()), **kwargs),
        DATA,
        device=CPU,
    )
    return found, records


def fast(tuning: Tuning | None = None) -> Training:
    return EXACT.model_copy(update={"profile": "fast", "tuning": tuning})


def vector(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def difference(left: nn.Module, right: nn.Module) -> float:
    return float((vector(left) - vector(right)).norm() / vector(right).norm())


def batch(size: int = 32) -> Batch:
    loader = Loader(DATA.train, batch_size=size, augment="none", mean=DATA.mean, std=DATA.std, seed=0, device=CPU)
    return next(iter(loader.epoch(0)))


def randomize_statistics(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


# Parity: 50 steps, after which the weights have moved. The rate is low: where a ReLU or a maximum tips over, rounding
# grows from step to step until even float32 and float64 are 0.5 % apart.


@pytest.mark.parametrize("method", ["ce", "nasty", "kd"])
def test_fast_is_exact_up_to_rounding(method: str):
    start = net(1)
    exact, exact_log = fit(method, EXACT)
    found, log = fit(method, fast())
    assert 0 < difference(found.model, exact.model) < 1e-3
    assert difference(exact.model, start) > 5e-3
    if method == "nasty":
        assert log[-1]["train_adversary_kl"] == pytest.approx(exact_log[-1]["train_adversary_kl"], rel=0.02)
    if method == "kd":
        assert found.victim.queries == exact.victim.queries == 5 * 1216


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("method", ["nasty", "kd"])
def test_fast_by_winograd_is_exact_up_to_rounding(method: str):
    wide = "preresnet20"  # with 16 to 64 channels
    exact, exact_log = fit(method, EXACT, spec=wide)
    found, log = fit(method, fast(FULL.model_copy(update={"winograd": True})), spec=wide)
    assert 0 < difference(found.model, exact.model) < 1e-3
    if method == "nasty":
        assert log[-1]["train_adversary_kl"] == pytest.approx(exact_log[-1]["train_adversary_kl"], rel=0.02)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by itself
def test_fast_compiled_is_exact_up_to_rounding(caplog: pytest.LogCaptureFixture):
    exact, exact_log = fit("nasty", EXACT)
    with caplog.at_level(logging.INFO, logger="undistill"):
        found, log = fit("nasty", fast(Tuning(channels_last=True, compile=True)))
    assert "tuning.compile=true" in caplog.text
    assert 0 < difference(found.model, exact.model) < 1e-3
    assert log[-1]["train_adversary_kl"] == pytest.approx(exact_log[-1]["train_adversary_kl"], rel=0.02)


def test_a_fast_run_resumes(tmp_path: Path):
    whole, _ = fit("kd", fast())

    class Interrupt:
        def step(self, epoch: int, step: int, steps: int) -> None:
            if (epoch, step) == (3, 4):
                raise InterruptedRunError("here")

        def epoch(self, record: dict[str, Any]) -> None:
            pass

    path = tmp_path / "state.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undistill.engine.trainer._SAVE_RATIO", 0)
        with pytest.raises(InterruptedRunError):
            fit("kd", fast(), state_path=path, callback=Interrupt())
    resumed, _ = fit("kd", fast(), state_path=path)
    assert difference(resumed.model, whole.model) < 1e-5
    assert resumed.victim.queries == 5 * 1216


# What it consists of.


@pytest.mark.parametrize("name", list_models())
def test_folded_nets_answer_alike(name: str):
    model = randomize_statistics(net(0, f"{name}(width=0.125)", 3, 32))
    x = torch.randn(8, 3, 32, 32)
    folded = fold_batchnorm(model, x)
    with torch.no_grad():
        expected = model(x)
        assert float((folded(x) - expected).norm() / expected.norm()) < 1e-5
    left = sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in folded.modules())
    # Pre-activation: a shortcut reads the input of a block's first one too. In the speedrun net three follow a maximum.
    expected_left = {"preresnet20": 10, "preresnet32": 16, "preresnet44": 22, "preresnet56": 28, "preresnet110": 55}
    assert left == {**expected_left, "speedrun": 3}.get(name, 0)
    assert not any(p.requires_grad for p in folded.parameters())


def test_folding_leaves_what_it_cannot_fold():
    class Twice(nn.Module):
        """One convolution that runs twice, one whose output is read twice, and one that is changed in between."""

        def __init__(self) -> None:
            super().__init__()
            self.shared, self.read, self.changed = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norms[1](self.shared(self.norms[0](self.shared(x))))
            out = self.read(x)
            x = self.norms[2](out) + out
            return self.norms[3](F.relu_(self.changed(x))).flatten(1)

    model, x = randomize_statistics(Twice()), torch.randn(4, 3, 5, 5)
    folded = fold_batchnorm(model, x)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 4
    assert torch.equal(folded(x), model(x))


def test_a_layout_keeps_every_number():
    model = net(1, "resnet18(width=0.125)", 3)
    optimizer = make_optimizer(fast(), model)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    use_layout(model, optimizer, channels_last=True)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for parameter, buffer in zip(model.parameters(), buffers, strict=True):
        now = optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(now, buffer)
        assert now.stride() == parameter.stride()


def test_a_victim_that_shows_its_gradients_keeps_its_batchnorm():
    for access, left in ((Access.LOGITS, 0), (Access.GRADIENTS, 4)):
        victim = rebuild(Nets(net(1), victim=Victim(net(2), access=access)), batch().x, FULL).victim
        assert sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in victim._model.modules()) == left


def test_the_last_layer_is_float32_over_a_bfloat16_trunk():
    model, x = net(1, "resnet18(width=0.125)", 3).eval(), torch.randn(8, 3, 8, 8)
    seen: dict[str, torch.dtype] = {}
    model.layer1.register_forward_hook(lambda *args: seen.update(trunk=args[2].dtype))
    model.linear.register_forward_hook(lambda *args: seen.update(head=args[2].dtype, head_input=args[1][0].dtype))
    with torch.no_grad():
        logits = MixedPrecision(model, x)(x)
        assert seen == {"trunk": torch.bfloat16, "head": torch.float32, "head_input": torch.float32}
        expected = model(x)
    assert logits.dtype == torch.float32
    assert 0 < float((logits - expected).norm() / expected.norm()) < 0.05
    assert seen["trunk"] == torch.float32  # nothing is left behind on the net


# A captured step. Without CUDA the capture is played: what it must keep in order is the same.


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_captured_step_is_a_step(optimizer: str):
    config = EXACT.model_copy(update={"optimizer": optimizer})
    losses: dict[str, list[float]] = {"eager": [], "graph": []}
    made = {}
    for kind, found in losses.items():
        of, first = nets("kd"), batch()
        of.model.train()
        optimizing = make_optimizer(config, of.model)
        watch = lambda loss, norm, found=found: found.append(float(loss.detach()))  # noqa: E731
        method = build_method("kd")
        learner = Learner(method, of, optimizing, watch)
        eager = partial(take_step, [learner])
        step = GraphStepper([learner], first, capture=played) if kind == "graph" else eager
        for lr in (0.01, 0.002):
            for rows in (slice(0, 32), slice(32, 64)):
                given = batch(64)
                step(Batch(given.x[rows], given.y[rows], given.index[rows]), [lr])
        eager(batch(16), [0.01])
        made[kind] = of
    assert losses["graph"] == pytest.approx(losses["eager"], rel=1e-4)
    assert len(losses["graph"]) == 5
    assert difference(made["graph"].model, made["eager"].model) < 1e-4
    for ours, theirs in zip(made["graph"].model.buffers(), made["eager"].model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert made["graph"].victim.queries == made["eager"].victim.queries == 4 * 32 + 16


def test_a_capture_that_fails_leaves_everything_as_it_was():
    of = nets("kd")
    optimizer = make_optimizer(EXACT, of.model)
    before = {key: value.clone() for key, value in of.model.state_dict().items()}

    def refuse(run: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        GraphStepper([Learner(build_method("kd"), of, optimizer, lambda *_: None)], batch(), capture=refuse)
    assert all(torch.equal(value, before[key]) for key, value in of.model.state_dict().items())
    assert of.victim.queries == 0


class Counting(nn.Module):
    """Counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.passes = net(2), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.net(x)


def test_a_victim_that_cannot_be_captured_answers_all_the_same(caplog: pytest.LogCaptureFixture):
    def only_the_step(run: Any) -> Any:
        if "_ReplayedNet" in run.__qualname__:
            raise RuntimeError("operation not permitted when stream is capturing")
        return played(run)

    first, second = batch(), batch(16)
    second = replace(second, x=torch.cat([second.x] * 2), y=second.y.repeat(2), index=second.index.repeat(2))
    results = []
    for capture in (played, only_the_step):
        of = nets("kd")
        losses: list[float] = []
        watch = lambda loss, norm, found=losses: found.append(float(loss))  # noqa: E731
        step = GraphStepper(
            [Learner(build_method("kd"), of, make_optimizer(EXACT, of.model), watch)], first, capture=capture
        )
        for given in (first, second, first):
            step(given, [0.01])
        results.append(losses)
    assert results[0] == results[1]
    assert caplog.text.count("the victim's pass cannot be captured") == 1


def captured_thieves(
    victim: Victim, methods: list[str], first: Batch
) -> tuple[list[GraphStepper], list[Nets], list[float]]:
    """Return steps of thieves of one victim, their nets, and where their losses go."""
    losses: list[float] = []
    found = [Nets(net(1).train(), victim=victim.another()) for _ in methods]
    return (
        [GraphStepper([thief(*each, losses)], first, capture=played) for each in zip(methods, found, strict=True)],
        found,
        losses,
    )


def thief(method: str, of: Nets, losses: list[float]) -> Learner:
    watch = lambda loss, norm: losses.append(float(loss.detach()))  # noqa: E731
    return Learner(build_method(method), of, make_optimizer(EXACT, of.model), watch)


def test_captured_steps_share_their_victims_pass():
    counting = Counting()
    methods = ["kd(temperature=2)", "kd(temperature=8)", "hard_label"]
    steppers, found, losses = captured_thieves(Victim(counting), methods, batch())
    eager = [Nets(net(1).train(), victim=Victim(net(2))) for _ in methods]
    expected: list[float] = []
    alone = [thief(method, of, expected) for method, of in zip(methods, eager, strict=True)]
    before = counting.passes
    for rows in (slice(0, 32), slice(32, 64)):
        whole = batch(64)
        given = Batch(whole.x[rows], whole.y[rows], whole.index[rows])
        with asked_once(given.x):
            for stepper in steppers:
                stepper(given, [0.01])
        take_step(alone, given, [0.01] * 3)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(losses) == 6
    assert counting.passes - before == 2  # batches
    assert [of.victim.queries for of in found] == [64, 64, 64]


def test_a_captured_step_gets_no_more_than_its_victim_gives():
    labels_only = Victim(net(2), access=Access.LABELS)
    (stepper,), (found,), _ = captured_thieves(labels_only, ["hard_label"], batch())
    stepper(batch(), [0.01])
    assert found.victim.queries == 32
    with pytest.raises(AccessError, match="gives labels, not probs"):
        captured_thieves(labels_only, ["kd"], batch())


def test_a_victim_that_shows_its_gradients_is_asked_inside():
    counting = Counting()
    steppers, found, _ = captured_thieves(Victim(counting, access=Access.GRADIENTS), ["kd", "kd"], batch())
    before, given = counting.passes, batch()
    with asked_once(given.x):
        for stepper in steppers:
            stepper(given, [0.01])
    assert counting.passes - before == 2  # thieves
    assert [of.victim.queries for of in found] == [32, 32]


# How it chooses.


class Trials:
    """Times from a table, in place of a clock."""

    def __init__(self, seconds: Any) -> None:
        self.seconds, self.asked = seconds, []

    def __call__(self, tuning: Tuning) -> Callable[[], float]:
        self.asked.append(tuning)
        return lambda: float(self.seconds(tuning))


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_auto_takes_what_is_fastest_and_remembers_it():
    trials = Trials(lambda t: 0.04 * (0.5 if not t.channels_last else 1) * (0.8 if t.threads == 1 else 1))
    found = choose_tuning(Tuning(), trials, ("cnn",), steps=1000)
    assert (found.channels_last, found.threads, found.compile) == (False, 1, False)
    asked = len(trials.asked)
    assert choose_tuning(Tuning(), trials, ("cnn",), steps=1000) == found
    assert len(trials.asked) == asked
    choose_tuning(Tuning(), trials, ("another net",), steps=1000)
    assert len(trials.asked) > asked


def test_auto_takes_winograd_where_it_pays():
    assert choose_tuning(Tuning(), Trials(lambda t: 0.5 if t.winograd else 1.0), ("a",), steps=1000).winograd
    assert not choose_tuning(Tuning(), Trials(lambda t: 1.5 if t.winograd else 1.0), ("b",), steps=1000).winograd
    rows = Trials(lambda t: 2.0 if t.channels_last else 1.0)  # it needs the channels side by side
    assert not choose_tuning(Tuning(), rows, ("c",), steps=1000).winograd
    assert not any(tuning.winograd for tuning in rows.asked)


def test_a_remembered_choice_survives_the_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def gone() -> None:
        raise RunError("there is no C compiler")

    monkeypatch.setattr("undistill.kernels.winograd.library", gone)
    found, _ = fit("ce", fast(Tuning(winograd=True)))
    same, _ = fit("ce", fast(Tuning(winograd=False)))
    assert difference(found.model, same.model) == 0
    assert caplog.text.count("convolutions are computed directly: there is no C compiler") == 1


@pytest.mark.usefixtures("two_threads")
def test_auto_leaves_pinned_fields_alone():
    trials = Trials(lambda t: 0.04 if t.channels_last else 0.01)
    found = choose_tuning(Tuning(channels_last=True, threads=2), trials, (), steps=1000)
    assert (found.channels_last, found.threads) == (True, 2)
    assert all(tuning.channels_last and tuning.threads == 2 for tuning in trials.asked)


def test_auto_does_not_probe_for_a_short_job():
    trials = Trials(lambda t: 1.0)
    assert choose_tuning(Tuning(), trials, (), steps=20).channels_last
    assert not trials.asked


def test_auto_compiles_only_where_it_pays():
    pays = Trials(lambda t: 0.5 if t.compile else 1.0)
    assert not choose_tuning(Tuning(), pays, (), steps=1000).compile  # a quarter of an hour
    assert not any(tuning.compile for tuning in pays.asked)
    assert choose_tuning(Tuning(), pays, (), steps=10_000).compile  # hours: now it is tried
    ruins = Trials(lambda t: 12.0 if t.compile else 1.0)
    assert not choose_tuning(Tuning(), ruins, ("mobilenet",), steps=10_000).compile
    assert any(tuning.compile for tuning in ruins.asked)


def test_auto_survives_what_does_not_work_here(caplog: pytest.LogCaptureFixture):
    def seconds(tuning: Tuning) -> float:
        if tuning.compile:
            raise RuntimeError("no C++ compiler")
        return 1.0

    with caplog.at_level(logging.WARNING, logger="undistill"):
        assert not choose_tuning(Tuning(), Trials(seconds), (), steps=10_000).compile
    assert "no C++ compiler" in caplog.text


def test_a_probe_changes_nothing_but_the_layout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("undistill.engine.fast.tuning._WORTH_COMPILING_S", float("inf"))
    of, state = nets("kd"), torch.get_rng_state()
    before = {key: value.clone() for key, value in of.model.state_dict().items()}
    optimizer = make_optimizer(fast(), of.model)
    learner = Learner(build_method("kd"), of, optimizer, lambda *_: None, config=fast(), steps=1000)
    choose_for([learner], batch(), partial(measured, [learner], batch()))
    assert all(torch.equal(value, before[key]) for key, value in of.model.state_dict().items())
    assert of.victim.queries == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_tuning_is_not_part_of_the_hash_but_the_profile_is():
    recipe = {"data": "digits", "model": "cnn", "method": "ce"}
    exact, auto = make_recipe(recipe), make_recipe({**recipe, "profile": "fast"})
    pinned = make_recipe({**recipe, "profile": "fast", "tuning": {"compile": False, "threads": 1}})
    assert auto.hash == pinned.hash != exact.hash
    assert make_recipe({**recipe, "tuning": None}).hash == exact.hash


# The machine.


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with arithmetic(fast(), CPU):
        torch.set_num_threads(2)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts page faults as Linux does")
def test_freed_memory_is_kept():
    import resource

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(4 * 2**20)  # 16 MB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with memory_kept(CPU):
        faults()  # what has been freed before has to be had once
        kept = faults()
    without = faults()
    if without < 1000:
        pytest.skip("pages are so large here, or kept anyway, that there is nothing to gain")
    assert kept < without / 2

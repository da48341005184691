"""The speed benchmarks: what they compare is the same work, and what they print is arithmetic on what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from undistill.bench import train as bench
from undistill.bench.ours import EngineLoop, step_flops
from undistill.bench.plain import PlainLoop
from undistill.bench.scaling import bench_scaling, estimate_imagenet, plot_scaling
from undistill.bench.work import METHODS, Work
from undistill.cli import main
from undistill.data.loader import Batch
from undistill.engine.flops import forward_flops
from undistill.errors import InterruptedRunError, RunError
from undistill.methods import build_method
from undistill.objective import Frozen, Nets
from undistill.victim import Victim

SMALL = {"victim": "cnn(channels=4)", "batch_size": 16, "images": 40, "threads": 1, "image_size": 8}


def work(objective: Any = "kd", models: tuple[str, ...] = ("cnn(channels=4)",)) -> Work:
    return Work(objective=objective, models=models, **SMALL)


@pytest.mark.parametrize("objective", list(METHODS))
def test_the_plain_loop_minimizes_what_the_engine_does(objective: Any):
    job = PlainLoop(work(objective))._jobs[0]
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    logits = job.model(x)
    model, frozen = work().net("cnn(channels=4)", 1).train(), work().net("cnn(channels=4)", 2)
    nets = Nets(model, Frozen(frozen), Victim(frozen))
    expected = build_method(METHODS[objective]).step(Batch(x, y, y), nets).loss
    assert float(job._loss(x, y, logits).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_both_loops_train():
    for loop in (PlainLoop(work()), EngineLoop(work(), "exact")):
        nets = loop.models()
        before = [p.detach().clone() for net in nets for p in net.parameters()]
        loop.run(3)  # the third batch is the smaller one
        after = [p.detach() for net in nets for p in net.parameters()]
        assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_students_of_one_victim_are_trained_side_by_side():
    loop = EngineLoop(work(models=("cnn(channels=4)", "cnn(channels=8)")), "exact")
    asked = []
    victims = [job.nets.victim for job in loop.jobs]
    victims[0]._model.register_forward_hook(lambda *args: asked.append(len(args[2])))
    loop.run(2)
    assert asked == [16, 16]  # once a batch, not once a student
    assert [victim.queries for victim in victims] == [32, 32]


def test_students_apart_ask_a_victim_each():
    loop = EngineLoop(work(models=("cnn(channels=4)", "cnn(channels=8)")), "apart")
    asked = []
    for job in loop.jobs:
        job.nets.victim._model.register_forward_hook(lambda *args: asked.append(len(args[2])))
    assert loop.jobs[0].nets.victim._model is not loop.jobs[1].nets.victim._model
    loop.run(2)
    assert [job.nets.victim.queries for job in loop.jobs] == [32, 32]


def test_the_students_of_a_group_are_those_named(monkeypatch: pytest.MonkeyPatch):
    found = []
    monkeypatch.setattr(
        bench, "measure", lambda work, sides, **_: found.append((work.models, work.victim, tuple(sides)))
    )
    args = [["cnn"], ["kd-group"], ["exact", "fast"]]
    list(bench.bench_train(*args, group=["cnn", "speedrun"], victim="speedrun"))
    list(bench.bench_train(*args))
    table_1 = "cnn", "preresnet20", "preresnet32", "resnet18"
    sides = "exact", "fast", "apart"
    assert found == [(("cnn", "speedrun"), "speedrun", sides), (table_1, "resnet18", sides)]


def test_turns_of_a_loop_go_on_where_the_last_one_ended():
    whole, parts = (EngineLoop(work(models=("cnn(channels=4)",) * 2), "exact") for _ in range(2))
    whole.run(7)  # of three steps an epoch
    turns, taken = iter([2, 4, 1]), []

    def turn() -> int:
        taken.append([job.nets.victim.queries for job in parts.jobs])
        for steps in turns:
            return steps
        raise InterruptedRunError("over")

    parts.train(turn)
    assert taken == [[0, 0], [32, 32], [80, 80], [96, 96]]  # batches of 16, 16 and 8
    assert torch.equal(whole.weights(), parts.weights())


def test_a_net_that_fails_ends_the_turn(monkeypatch: pytest.MonkeyPatch):
    loop = EngineLoop(work(models=("cnn(channels=4)", "cnn(channels=8)")), "exact")
    victim, asked = loop.jobs[0].nets.victim, []

    def broken(x: torch.Tensor) -> torch.Tensor:
        asked.append(x)
        if len(asked) == 2:
            raise MemoryError("here")
        return type(victim).logits(victim, x)

    monkeypatch.setattr(victim, "logits", broken)
    with pytest.raises(MemoryError, match="here"):
        loop.run(100)
    assert len(asked) == 2


def test_operations_of_a_step():
    small, large = ("cnn(channels=4)", "cnn(channels=8)")
    normal, kd = (step_flops(work(objective, (large,))) for objective in ("normal", "kd"))
    assert kd - normal == forward_flops(work().net(small, 0), (16, 3, 8, 8))  # the victim, asked once
    assert step_flops(work("kd", (small, large))) == step_flops(work("kd", (small,))) + kd


def test_ratios_are_taken_turn_by_turn(monkeypatch: pytest.MonkeyPatch):
    """A machine that is three times slower in every other round weighs on both sides alike."""
    load = [1.0, 3.0, 1.0, 3.0, 3.0]
    speed = {"plain": 2.0, "exact": 1.6, "fast": 1.0}

    class Worker:
        def __init__(self, side: str) -> None:
            self.side, self.turns = side, 0

        def __enter__(self) -> Worker:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, what: str, steps: int = 0) -> Any:
            if what == "report":
                weights = torch.tensor([3.0, 4.0 + (self.side == "fast") * 5e-4])
                kl = {"exact": 2.0, "fast": 2.02}.get(self.side)
                engine = {"weights": weights, "kl": kl} if self.side != "plain" else {}
                return {"memory_mb": 7, "how": self.side, **engine}
            self.turns += 1
            return steps * speed[self.side] * (load[self.turns - 3] if self.turns > 2 else 1)

    monkeypatch.setattr(bench, "worker", lambda _, side: Worker(side))
    monkeypatch.setattr(bench, "matmul_rate", lambda _: 1e9)
    monkeypatch.setattr(bench, "step_flops", lambda _: int(5e8))
    found = bench.measure(work("nasty"), ("exact", "fast"), rounds=5, seconds=4.0)
    sides = found["sides"]
    assert {side: value["ratio"] for side, value in sides.items()} == {"plain": 1.0, "exact": 1.25, "fast": 2.0}
    assert found["steps"] == 2 + 1 + 5 * 2
    assert sides["fast"]["images_per_s"] == pytest.approx(median(16 / load_ for load_ in load), abs=0.1)
    assert sides["fast"]["mfu"] == pytest.approx(0.5 / 3, abs=1e-3)
    assert sides["fast"]["weights"] == pytest.approx(1e-4, rel=0.01)
    assert sides["fast"]["kl"] == pytest.approx(0.01)
    assert "weights" not in sides["exact"]
    assert "weights" not in sides["plain"]


class Side:
    """A process that takes a second a step."""

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, what: str, steps: int = 0) -> Any:
        return {"memory_mb": 7, "how": "", "weights": None} if what == "report" else float(steps)


@pytest.mark.parametrize(
    ("rates", "gflops", "mfu", "asked"),
    [
        # 1.2e9 operations a step. The rates of three turns; the machine had something else to do in the second one.
        ([2e9, 1e8, 2e9, 2e9], 2.0, 0.6, 4),
        ([1e9, 1e9, 1e9], 1.0, 1.2, 3),  # a little above is where convolutions have the better kernels
        ([2e9, 1e8, 2e8, 3e8, 4e8, 2e9], 2.0, 0.6, 6),  # one turn is lost, the median is not
        ([1e8] * 12, 0.1, None, 12),  # busy all along: nothing is said of the side, and what it took is
        ([8e8, 4e8, 2e8, 1e8] * 3, 0.8, None, 12),  # the highest counts, not the last
    ],
)
def test_the_matrix_rate_is_measured_beside_every_turn(
    rates: list[float], gflops: float, mfu: float | None, asked: int, monkeypatch: pytest.MonkeyPatch
):
    left = iter(rates)
    monkeypatch.setattr(bench, "worker", lambda *_: Side())
    monkeypatch.setattr(bench, "matmul_rate", lambda _: next(left))
    monkeypatch.setattr(bench, "step_flops", lambda _: int(1.2e9))
    found = bench.measure(work("normal"), ("exact",), rounds=3, seconds=2.0)
    assert found["matmul_gflops"] == gflops
    assert {side["mfu"] for side in found["sides"].values()} == {mfu}
    assert {(side["ratio"], side["images_per_s"]) for side in found["sides"].values()} == {(1.0, 16.0)}
    assert len(rates) - len(list(left)) == asked


def test_bench_train_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "speed.json"
    args = ["--model", "cnn(channels=4)", "--objective", "normal", "--batch-size", "16", "--images", "32"]
    code = main(["bench", "train", *args, "--threads", "1", "--rounds", "1", "--seconds", "0", "--out", str(out)])
    assert code == 0
    (result,) = json.loads(out.read_text())["results"]
    assert list(result["sides"]) == ["plain", "exact", "fast"]
    assert all(side["images_per_s"] > 0 and side["memory_mb"] > 0 for side in result["sides"].values())
    assert result["sides"]["fast"]["weights"] < 1e-3
    assert "channels_last" in result["sides"]["fast"]["how"]
    printed = capsys.readouterr().out
    assert "cnn(channels=4): normal" in printed
    assert f"{result['sides']['fast']['ratio']:.2f}x" in printed


def test_a_side_that_fails_is_named():
    broken = Work(objective="normal", models=("no_such_net",), **SMALL)
    with bench.worker(broken, "plain") as worker, pytest.raises(RunError, match=r"'plain' failed: .*no_such_net"):
        worker.ask("run", 1)


def test_unknown_objectives_are_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "train", "--objective", "nastie"]) == 2
    assert "did you mean 'nasty'?" in capsys.readouterr().err


def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine on which an image takes a millisecond a net, and nothing besides."""

    class Process:
        def __init__(self, work: Work) -> None:
            self.work = work

        def __enter__(self) -> Process:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, what: str, steps: int = 0) -> Any:
            seconds = 1e-3 * steps * self.work.batch_size * len(self.work.models)
            return seconds if what == "run" else {"memory_mb": 10 * len(self.work.models) + self.work.classes}

    monkeypatch.setattr("undistill.bench.scaling.worker", lambda work, profile: Process(work))
    axes = {"images": (512, 2048), "classes": (10, 100), "students": (1, 4), "seeds": (3,)}
    found = bench_scaling("cnn(channels=4)", "cnn(channels=4)", threads=1, batch_size=128, axes=axes)
    rows = {(row["axis"], row["value"]): row for row in found["rows"]}
    assert list(rows) == [(axis, value) for axis, values in axes.items() for value in values]
    assert {key: row["seconds"] for key, row in rows.items()} == {
        ("images", 512): 0.512,
        ("images", 2048): 2.048,
        ("classes", 10): 1.024,  # of 1,024 images, as all that follow
        ("classes", 100): 1.024,
        ("students", 1): 1.024,
        ("students", 4): 4.096,
        ("seeds", 3): 3.072,
    }
    assert all(row["images_per_s"] == 1000 for row in rows.values())
    assert rows["students", 4]["memory_mb"] == 50
    assert rows["classes", 100]["memory_mb"] == 110
    assert plot_scaling(found, tmp_path).read_bytes().startswith(b"\x89PNG")


def test_imagenet_on_paper():
    found = estimate_imagenet()
    # A ResNet-50: 3 forward passes' worth of 7.6 GFLOP, 1.281167 million images, 90 epochs, 296.7 TFLOP/s.
    assert found["hours"]["teacher"] == pytest.approx(3 * 7.6e9 * 1_281_167 * 90 / 296.7e12 / 3600, abs=0.1)
    assert found["hours"]["nasty teacher"] == pytest.approx(found["hours"]["teacher"] * 4 / 3, abs=0.1)
    assert found["hours"]["four students, one victim"] < 4 * found["hours"]["student by distillation"]
    assert any("193 GB" in line for line in found["assumptions"])

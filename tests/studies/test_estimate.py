"""What runs will cost: operations by hand, time from probes, and never a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from undistill.data import Shape, dataset_shape, list_datasets, load_dataset
from undistill.data.download import REMOTES, cache_dir
from undistill.engine.job import Job
from undistill.errors import DataError, InterruptedRunError, RecipeError
from undistill.orchestrate import estimate as module
from undistill.orchestrate.estimate import (
    Estimate,
    StepEstimate,
    estimate,
    format_flops,
    format_seconds,
    rows,
    totals,
)
from undistill.orchestrate.plan import Plan, Step
from undistill.recipe import Recipe, load_recipe, make_recipe
from undistill.workspace import Workspace

CPU = torch.device("cpu")
TINY = "digits(subset=200, test_subset=100)"


def plan(*recipes: Recipe) -> tuple[Step, ...]:
    return Plan.of(recipes).steps


def tiny(**values: Any) -> Recipe:
    return make_recipe({"data": TINY, "model": "cnn(channels=4)", "epochs": 2, "batch_size": 32, **values})


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the speeds, FLOP/s by model, that probes find; a model that is not there cannot be probed."""
    table: dict[str, float] = {}
    monkeypatch.setattr(module, "_probe", lambda net, *rest: table.get(net.model))
    monkeypatch.setattr(module, "matmul_rate", lambda *args, **kwargs: 1e9)
    return table


def test_operations_of_the_papers_teacher_without_its_data(speeds: dict[str, float]) -> None:
    """26.7 PFLOP of training, counted on the authors' net, and 160 evaluations of 10,000 images at 1.111 GFLOP."""
    (found,) = estimate(plan(load_recipe("paper/cifar10/resnet18")), device=CPU).steps
    assert found.flops is not None
    assert found.flops / 1e15 == pytest.approx(26.7 + 160 * 10_000 * 1.111e9 / 1e15, rel=0.005)
    assert found.how == "scaled"
    assert found.seconds
    assert not cache_dir().exists()


def test_operations_by_hand(speeds: dict[str, float]) -> None:
    model = "undistill.models.mlp:mlp(hidden=(), relu_logits=False)"
    recipe = make_recipe({"data": TINY, "model": model, "epochs": 3, "holdout": 0.1})
    (found,) = estimate(plan(recipe), device=CPU).steps
    product = 2 * 64 * 10  # 8x8 pixels to 10 logits; backward, only the weights have a gradient
    assert found.flops == 3 * 180 * 2 * product + (3 * 20 + 2 * 100 + 20) * product


@pytest.mark.parametrize(
    ("values", "evaluated"),
    [
        ({"holdout": 0.0, "selection": "last"}, 2 * 100 + 100),
        ({"holdout": 0.0, "selection": "paper"}, 2 * 100 + 2 * 100),
        ({"holdout": 0.5, "selection": "heldout"}, 2 * 100 + 2 * 100 + 100),
    ],
)
def test_evaluations_count_as_the_protocol_makes_them(
    speeds: dict[str, float], values: dict[str, Any], evaluated: int
) -> None:
    (found,) = estimate(plan(tiny(model="mlp(hidden=(), relu_logits=False)", **values)), device=CPU).steps
    trained = 2 * round(200 * (1 - values["holdout"]))
    assert found.flops == (2 * trained + evaluated) * 2 * 64 * 10


def test_each_net_of_a_run_has_its_own_speed(speeds: dict[str, float]) -> None:
    """A student that costs nothing leaves the victim's passes, a victim that costs nothing the student alone."""
    student, teacher = "cnn(channels=4)", "cnn(channels=16)"
    steps = plan(tiny(method="kd", victim=tiny(model=teacher)), tiny())

    def seconds(**found: float) -> list[float | None]:
        speeds.update({student: found["student"], teacher: found["teacher"]})
        return [step.seconds for step in estimate(steps, device=CPU).steps]

    first, attack, alone = (step.flops or 0.0 for step in estimate(steps, device=CPU).steps)
    assert seconds(student=1e6, teacher=1e30)[1:] == pytest.approx([alone / 1e6] * 2)
    victim = seconds(student=1e30, teacher=1e6)
    assert victim == pytest.approx([first / 1e6, (attack - alone) / 1e6, 0.0], abs=1e-12)
    both = seconds(student=1e6, teacher=2e6)
    assert both == pytest.approx([first / 2e6, alone / 1e6 + (attack - alone) / 2e6, alone / 1e6])


def test_a_net_without_a_probe_has_the_speed_of_the_nearest(speeds: dict[str, float]) -> None:
    speeds.update({"cnn(channels=4)": 1e6, "cnn(channels=64)": 3e6})
    steps = plan(*(tiny(model=f"cnn(channels={channels})") for channels in (4, 64, 48)))
    *_, found = estimate(steps, device=CPU).steps
    assert found.how == "scaled"
    assert found.seconds == pytest.approx((found.flops or 0) / 3e6)


def test_runs_without_data_or_nets_are_unknown_and_the_rest_is_not(speeds: dict[str, float], tmp_path: Path) -> None:
    speeds["cnn(channels=4)"] = 1e9
    missing = tiny(data=f"npz(path='{tmp_path / 'gone.npz'}')")
    foreign = tiny(model="no_such_module:Net")
    found = estimate(plan(missing, tiny(), foreign), device=CPU)
    assert [step.how for step in found.steps] == ["unknown", "probed", "unknown"]
    assert "there is no file" in found.steps[0].note
    assert "no_such_module" in found.steps[2].note
    assert (found.unknown, found.seconds) == (2, found.steps[1].seconds)
    assert rows(found)[0] == {
        "hash": missing.hash,
        "flops": None,
        "seconds": None,
        "how": "unknown",
        "note": found.steps[0].note,
    }


def test_a_probe_that_fails_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "fit", fit)
    (found,) = estimate(plan(tiny()), device=CPU).steps
    assert found.how == "scaled"
    assert found.seconds


def test_ctrl_c_ends_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*args: Any, **kwargs: Any) -> None:
        raise InterruptedRunError("interrupted")

    monkeypatch.setattr(module, "fit", fit)
    with pytest.raises(InterruptedRunError):
        estimate(plan(tiny()), device=CPU)


def test_nothing_to_run_costs_nothing() -> None:
    found = estimate((), device=CPU)
    assert (found.flops, found.seconds, found.duration(2)) == (0, 0, (0, 0))


def test_probed_time_is_that_of_the_run(tmp_path: Path) -> None:
    """Within a factor that a busy machine needs; nothing else of the process changes."""
    recipe = tiny(data="digits", model="cnn(channels=16)", epochs=5, batch_size=128)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    found = estimate(plan(recipe), device=CPU, threads=1, budget_s=2)
    assert found.threads == 1
    assert found.steps[0].how == "probed"
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    run = Workspace(tmp_path).run(recipe)
    assert 0.2 < run.result["seconds"] / found.seconds < 5


@pytest.mark.parametrize(("rate", "batch_size"), [(1e9, None), (2e10, 3), (1e30, 128)])
def test_a_heavy_net_is_probed_with_the_images_that_fit(
    monkeypatch: pytest.MonkeyPatch, rate: float, batch_size: int | None
) -> None:
    """A step of ResNet-50 takes 3 x 2.596 GFLOP an image, and four seconds are to hold three steps."""
    seen: list[int] = []

    def fit(job: Job, *args: Any, **kwargs: Any) -> None:
        assert job.callback is not None
        seen.append(job.config.batch_size)
        job.callback.step(1, 1, 40)
        job.callback.step(1, 2, 40)

    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(module, "matmul_rate", lambda *args, **kwargs: rate / module._FIRST_GUESS)
    (found,) = estimate(plan(load_recipe("paper/cifar10/resnet50")), device=CPU, budget_s=4).steps
    assert seen == ([] if batch_size is None else [batch_size])
    assert found.how == ("scaled" if batch_size is None else "probed")


def test_time_of_a_step_is_the_median_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks at 0, 9, 10, 12 and 15 s: steps of 9 (a warm-up), 1, 2 and 3 s."""
    marks = iter((0.0, 9.0, 10.0, 12.0, 15.0))
    monkeypatch.setattr(module, "clock", lambda device: next(marks))
    watch = module._StopWatch(CPU, limit_s=14)
    watch.step(1, 1, 9)
    assert watch.step_seconds == 9
    watch.step(1, 2, 9)
    watch.step(1, 3, 9)
    with pytest.raises(module._Enough):
        watch.step(1, 4, 9)
    assert watch.step_seconds == 2


def costs(*seconds: tuple[float, tuple[int, ...]], device: str = "cpu") -> Estimate:
    """Return an estimate of runs that take so many seconds and need the runs at these positions."""
    recipes = [tiny(seed=seed) for seed in range(len(seconds))]
    steps = [
        StepEstimate(Step(recipe, tuple(recipes[need].hash for need in needs)), 1.0, time, "probed")
        for recipe, (time, needs) in zip(recipes, seconds, strict=True)
    ]
    return Estimate(tuple(steps), device, 1)


def test_duration_by_hand() -> None:
    """A run of 2 s and one of 3 s after it, and beside them one of 4 s."""
    runs = ((2.0, ()), (3.0, (0,)), (4.0, ()))
    found, error = costs(*runs), module._ERROR
    assert (found.seconds, found.critical_path) == (9, 5)
    assert found.duration(1) == pytest.approx((9 / error, 9 * error))
    # No schedule is shorter than the chain; none is longer than 9 / 2 + 5 / 2.
    assert found.duration(2) == pytest.approx((5 / error, 7 * error))
    assert costs(*runs, device="cuda").duration(2) == pytest.approx((5 / error, 9 * error))
    assert totals(found, 2) == {
        "flops": 3.0,
        "seconds": 9.0,
        "critical_path_s": 5.0,
        "duration_s": list(found.duration(2)),
        "unknown": 0,
        "jobs": 2,
        "device": "cpu",
        "threads": 1,
    }


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (0.0, "0 FLOP"),
        (999.0, "999 FLOP"),
        (999.7, "1 kFLOP"),
        (1.111e9, "1.11 GFLOP"),
        (26.7e15, "26.7 PFLOP"),
        (323.2e15, "323 PFLOP"),
        (3.1e19, "31 EFLOP"),
        (None, "?"),
    ],
)
def test_operations_in_words(flops: float | None, text: str) -> None:
    assert format_flops(flops) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "under 1 s"),
        (45.2, "45 s"),
        (59.7, "1 min"),
        (90, "1 min 30 s"),
        (599.9, "10 min"),
        (12_000, "3 h 20 min"),
        (50_000, "14 h"),
        (100_000, "1 d 4 h"),
        (1e8, "1,157 d"),
        (None, "?"),
    ],
)
def test_time_in_words(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


def test_sizes_of_data_sets_are_known_before_they_are_downloaded() -> None:
    assert dataset_shape("cifar10") == Shape(50_000, 10_000, num_classes=10, in_channels=3, image_size=32)
    assert dataset_shape("cifar100(subset=500)") == Shape(500, 10_000, 100, 3, 32)
    assert dataset_shape("cifar100(subset=0.3)").train == 15_000
    assert dataset_shape("tiny_imagenet(test_subset=400)") == Shape(100_000, 400, 200, 3, 64)
    assert {name for name in list_datasets() if name in REMOTES and dataset_shape(name)} == REMOTES.keys()
    assert not cache_dir().exists()


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """Return an unpacked Tiny-ImageNet of 3 + 2 images a class, none of which can be decoded."""
    for wnid in (f"n{number:08d}" for number in range(200)):
        for part, count in (("train", 3), ("val", 2)):
            (tmp_path / part / wnid).mkdir(parents=True)
            for number in range(count):
                (tmp_path / part / wnid / f"{number}.JPEG").write_bytes(b"no image")
    return tmp_path


def test_size_of_a_folder_is_counted_not_that_of_the_published_set(tiny_folder: Path) -> None:
    def shape(more: str = "") -> Shape:
        return dataset_shape(f"tiny_imagenet(path={str(tiny_folder)!r}{more})")

    assert shape() == Shape(600, 400, num_classes=200, in_channels=3, image_size=64)
    assert shape(", subset=0.5, test_subset=200") == Shape(300, 200, 200, 3, 64)
    assert shape(", subset=600, image_size=32, channels=1") == Shape(600, 400, 200, 1, 32)
    for more, message in ((", subset=700", "cannot take 700 of 600"), (", test_subset=0.1", "cannot take 40 of 400")):
        with pytest.raises(DataError, match=message):
            shape(more)
    with pytest.raises(DataError, match="subset=50001: cannot take 50,001 of 50,000 images"):
        dataset_shape("cifar10(subset=50001)")
    for spec in ("tiny_imagenet(path='/nowhere')", "mnist_m(path='/nowhere')"):
        with pytest.raises(DataError, match="/nowhere"):
            dataset_shape(spec)
    assert not cache_dir().exists()


def test_operations_go_with_the_images_of_the_folder(
    speeds: dict[str, float], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear net: 600 images instead of 100,000 are trained on, and their files are counted once for all runs."""
    counted: list[str] = []

    def shape_of(spec: str) -> Shape:
        counted.append(spec)
        return dataset_shape(spec)

    monkeypatch.setattr(module, "dataset_shape", shape_of)
    data = f"tiny_imagenet(path={str(tiny_folder)!r})"
    values = {"data": data, "model": "mlp(hidden=(), relu_logits=False)", "holdout": 0.0, "selection": "last"}
    found = estimate(plan(*(tiny(**values, seed=seed) for seed in range(3))), device=CPU).steps
    assert {step.flops for step in found} == {(2 * 2 * 600 + 3 * 400) * 2 * 3 * 64 * 64 * 200}
    assert counted == [data]


def test_size_of_a_data_set_that_declares_none_is_that_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset(TINY)
    assert dataset_shape(TINY) == data.shape == Shape(len(data.train), len(data.test), 10, 1, 8)
    monkeypatch.setitem(REMOTES, "digits", REMOTES["cifar10"])
    with pytest.raises(DataError, match="undistill data fetch digits"):
        dataset_shape("digits")
    with pytest.raises(RecipeError, match="subset"):
        dataset_shape("cifar10(subset=-1)")

"""The study of accuracy over minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from undistill.errors import RecipeError, UnknownNameError
from undistill.orchestrate.reproduce import reproduce
from undistill.orchestrate.request import Request, load_studies
from undistill.run import Run
from undistill.studies.changes import PAPER, Changes
from undistill.studies.protocols import protocols


def test_three_protocols_see_as_many_images() -> None:
    study = protocols(seeds=1, changes=PAPER, nets=("cnn", "preresnet20"))
    for net, epochs in {"cnn": 10, "preresnet20": 16}.items():
        (turbo,), (cycle,), (paper,) = study.nets[net].values()
        assert {(each.model, each.epochs, each.batch_size, each.holdout) for each in (turbo, cycle, paper)} == {
            (net, epochs, 128, 0.1)
        }
        assert [each.profile for each in (turbo, cycle, paper)] == ["turbo", "fast", "exact"]
        assert [each.schedule for each in (turbo, cycle)] == ["linear", "one_cycle"]
    (paper,), (cycle,) = (study.nets["preresnet20"][name] for name in ("paper", "cycle"))
    assert (paper.schedule, paper.milestones, paper.optimizer, paper.lr) == ("step", (8, 12), "sgd", 0.1)
    assert cycle.lr == pytest.approx(0.2)


def test_bad_minutes_and_names() -> None:
    with pytest.raises(RecipeError, match="expected numbers above 0"):
        protocols(seeds=1, changes=PAPER, minutes=(0,))
    with pytest.raises(UnknownNameError, match="net of protocols 'cnnn'; did you mean 'cnn'"):
        load_studies("protocols", parameters={"nets": ["cnnn"]})


def test_a_point_is_the_last_epoch_that_had_ended(tmp_path: Path) -> None:
    changes = Changes(data={"cifar10": "digits(subset=200, test_subset=100)"}, epochs=4, width=0.25)
    minutes = [1e-9, *(0.001 * step for step in range(1, 60)), 1000.0]
    request = Request("protocols", changes=changes, parameters={"minutes": minutes})
    found = reproduce(request, tmp_path, jobs=1, device="cpu")
    assert not found.failed
    (part,) = found.document.parts
    (panel,) = part.to_json()["panels"]
    assert [line["name"] for line in panel["lines"]] == ["turbo", "cycle", "paper"]
    for line in panel["lines"]:
        run = Run(tmp_path / "runs" / line["points"][-1]["runs"]["0"])
        ends = [run.result["seconds"] / 60 * (epoch + 1) / 4 for epoch in range(4)]
        for point in line["points"]:
            ended = [record for record, end in zip(run.metrics, ends, strict=True) if end <= point["x"]]
            assert point["mean"] == ended[-1]["heldout_accuracy"]
        assert line["points"][0]["x"] >= ends[0]
        assert line["points"][-1]["mean"] == run.metrics[-1]["heldout_accuracy"]

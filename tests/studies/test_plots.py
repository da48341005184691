"""The figures of a study, drawn from parts that are written down here."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from undistill.errors import RunError
from undistill.reporting import style
from undistill.reporting.parts import part_of
from undistill.reporting.style import save

Part = dict[str, Any]


def draw(part: Part) -> Figure:
    return style.draw(part_of(part))


def drawable(part: Part) -> bool:
    return part_of(part).drawn


def cell(mean: float | None, half_width: float | None = None, **more: Any) -> Part:
    failures = {} if mean is not None else {"0": {"reason": "diverged", "log": None}}
    return {
        "values": {} if mean is None else {"0": mean},
        "mean": mean,
        "half_width": half_width,
        "n": 1,
        "difference": None,
        "paper": None,
        "paper_difference": None,
        "disagrees": None,
        "runs": {},
        "collapsed_seeds": [],
        "failures": failures,
        **more,
    }


def line(name: str, role: str, against: str | None, points: dict[Any, Part], label: str | None = None) -> Part:
    cells = [{"x": x, **each} for x, each in points.items()]
    return {"name": name, "label": label or name, "role": role, "against": against, "points": cells}


def panel(lines: list[Part], references: list[Part] | None = None, scale: str = "log", name: str = "cifar10") -> Part:
    return {
        "name": name,
        "title": name.upper(),
        "x": {"label": "ω", "scale": scale},
        "y": {"label": "Test accuracy, %"},
        "lines": lines,
        "references": references or [],
    }


def curves(*panels: Part) -> Part:
    return {"kind": "curves", "name": "figure3", "title": "", "failed": False, "notes": [], "panels": list(panels)}


def sweep() -> Part:
    """Return a figure like the paper's third."""
    teacher = line("teacher", "teacher", None, {0.01: cell(95.0), 0.04: cell(94.5, paper=94.56), 0.1: cell(93.0)})
    cnn = line("cnn", "student", "nasty", {0.01: cell(85.0, 0.5), 0.04: cell(82.0, 0.4), 0.1: cell(78.0, 0.6)})
    collapsed = cell(10.0, collapsed_seeds=[0])
    other = line("preresnet20", "student", "nasty", {0.01: cell(91.0), 0.04: cell(None), 0.1: collapsed})
    references = [{"name": "cnn", "label": "CNN", "line": "cnn", **cell(86.5, paper=86.64)}]
    return curves(panel([teacher, cnn, other], references), panel([cnn], name="cifar100"))


def responses(classes: int, examples: int, channels: int = 3, size: int = 4) -> Part:
    rng = np.random.RandomState(0)
    shown = []
    for index in range(examples):
        pixels = rng.randint(0, 256, (size, size, channels)).astype(np.uint8)
        image = {"width": size, "height": size, "channels": channels}
        image["pixels_base64"] = base64.b64encode(pixels.tobytes()).decode()
        answers = {name: rng.dirichlet(np.full(classes, 0.2)).tolist() for name in ("normal", "nasty")}
        shown.append({"index": index, "label": index % classes, "image": image, "both_right": True, **answers})
    names = [f"class {k}" for k in range(classes)]
    return {
        "kind": "responses",
        "name": "figure1",
        "title": "",
        "failed": False,
        "temperature": 4.0,
        "classes": names,
        "examples": shown,
    }


def embeddings(classes: int, points: int = 60) -> Part:
    rng = np.random.RandomState(0)
    labels = (np.arange(points) % classes).tolist()
    panels = [
        {
            "name": name,
            "title": name,
            "dimension": 512,
            "points": rng.normal(size=(points, 2)).round(2).tolist(),
            "silhouette": 0.25,
            "knn_accuracy": 0.905,
        }
        for name in ("features-normal", "features-nasty", "logits-normal", "logits-nasty")
    ]
    names = [f"class {k}" for k in range(classes)]
    return {
        "kind": "embeddings",
        "name": "figure2",
        "title": "",
        "failed": False,
        "classes": names,
        "labels": labels,
        "panels": panels,
    }


def plots(figure: Figure) -> list[Axes]:
    """Return the axes that show something; of curves, not those that hold the legends."""
    return [axes for axes in figure.axes if axes.axison]


def lines_of(axes: Axes, style: str) -> list[Line2D]:
    return [found for found in axes.lines if found.get_linestyle() == style]


def inside(figure: Figure) -> list[str]:
    """Return the texts of the legends, and fail where one hides data or leaves the figure."""
    texts = []
    figure.draw_without_rendering()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    for legend in legends:
        box = legend.get_window_extent()
        assert all(not box.overlaps(axes.get_window_extent()) for axes in plots(figure))
        assert box.x0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y0 >= -1
        texts += [text.get_text() for text in legend.get_texts()]
    return texts


def test_which_parts_have_a_figure() -> None:
    assert drawable(sweep())
    assert drawable({**sweep(), "failed": True})  # what is there is shown
    assert drawable(responses(10, 2))
    assert not drawable({"kind": "responses", "name": "figure1", "title": "", "failed": True})
    assert not drawable({"kind": "embeddings", "name": "figure2", "title": "", "failed": True})
    assert not drawable({"kind": "table", "name": "table1", "title": "", "columns": [], "rows": []})


def test_a_panel_shows_the_values() -> None:
    left, right = plots(draw(sweep()))
    assert (left.get_title(), right.get_title()) == ("CIFAR10", "CIFAR100")
    assert left.get_ylabel() == "Test accuracy, %"
    shown = {tuple(found.get_ydata()): tuple(found.get_xdata()) for found in lines_of(left, "-")}
    assert shown[95.0, 94.5, 93.0] == (0.01, 0.04, 0.1)
    assert shown[85.0, 82.0, 78.0] == (0.01, 0.04, 0.1)
    assert len(lines_of(right, "-")) == 1


def test_the_x_axis_names_the_values_that_were_run() -> None:
    axes, _ = plots(draw(sweep()))
    assert axes.get_xscale() == "log"
    assert axes.get_xticks().tolist() == [0.01, 0.04, 0.1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.01", "0.04", "0.1"]
    assert axes.get_xticks(minor=True).size == 0


def test_a_category_axis_keeps_the_order_of_the_points() -> None:
    points = {"10%": cell(1.0), "5%": cell(2.0), "all": cell(3.0)}
    (axes,) = plots(draw(curves(panel([line("cnn", "student", "nasty", points)], scale="category"))))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10%", "5%", "all"]
    assert lines_of(axes, "-")[0].get_xdata().tolist() == [0, 1, 2]


def test_a_linear_axis_is_sorted() -> None:
    points = {20: cell(3.0), 1: cell(1.0), 4: cell(2.0)}
    (axes,) = plots(draw(curves(panel([line("cnn", "student", "nasty", points)], scale="linear"))))
    assert lines_of(axes, "-")[0].get_xdata().tolist() == [1, 4, 20]
    assert lines_of(axes, "-")[0].get_ydata().tolist() == [1, 2, 3]


def test_a_failed_point_is_absent_and_marked() -> None:
    axes, other = plots(draw(sweep()))
    (broken,) = [found for found in lines_of(axes, "-") if np.isnan(found.get_ydata()).any()]
    assert np.isnan(broken.get_ydata()).tolist() == [False, True, False]
    (mark,) = [found for found in axes.lines if found.get_marker() == "x"]
    assert mark.get_xdata().tolist() == [0.04]
    assert mark.get_color() == broken.get_color()
    assert mark.get_window_extent().y0 < axes.get_window_extent().y0 + 20  # on the axis
    assert not [found for found in other.lines if found.get_marker() == "x"]


def test_failures_at_one_place_do_not_hide_each_other() -> None:
    part = curves(panel([line(f"n{i}", "student", "nasty", {1: cell(None), 2: cell(None)}) for i in range(3)]))
    (axes,) = plots(draw(part))
    crosses = [found for found in axes.lines if found.get_marker() == "x"]
    marks = [(float(found.get_xdata()[0]), float(found.get_ydata()[0])) for found in crosses]
    assert len(marks) == len(set(marks)) == 6
    assert "no result" in [text.get_text() for text in axes.texts]
    assert "a run failed" in inside(axes.figure)


def test_a_collapsed_point_has_a_dagger() -> None:
    axes, other = plots(draw(sweep()))
    (dagger,) = axes.texts
    assert (dagger.get_text(), dagger.xy) == ("†", (0.1, 10))
    assert not other.texts


def test_the_normal_accuracy_is_a_dashed_line_of_the_same_color() -> None:
    axes, other = plots(draw(sweep()))
    (student,) = [found for found in axes.lines if list(found.get_ydata()) == [85.0, 82.0, 78.0]]
    (dashed,) = [found for found in axes.lines if list(found.get_ydata()) == [86.5, 86.5]]
    assert dashed.get_linestyle() == "--"
    assert dashed.get_color() == student.get_color()
    assert not lines_of(other, "--")


def test_intervals_are_bars_where_there_are_some() -> None:
    _, axes = plots(draw(sweep()))
    (bars,) = axes.collections
    spans = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert np.allclose(spans, [[84.5, 85.5], [81.6, 82.4], [77.4, 78.6]])
    none = curves(panel([line("cnn", "student", "nasty", {1: cell(5.0)})]))
    assert not plots(draw(none))[0].collections


def test_bars_stay_where_accuracies_can_be() -> None:
    wide = line("cnn", "student", "nasty", {1: cell(98.0, 3.0), 2: cell(1.0, 3.0)})
    dashed = {"name": "cnn", "label": "CNN", "line": "cnn", **cell(99.0, 4.0)}
    (axes,) = plots(draw(curves(panel([wide], [dashed]))))
    (bars,) = axes.collections
    assert np.allclose([segment[:, 1] for segment in bars.get_segments()], [[95, 100], [0, 4]])
    (band,) = axes.patches
    assert np.allclose([band.get_y(), band.get_y() + band.get_height()], [95, 100])
    dots = ({"of": "alone", "mean": 98.0, "half_width": 3.0}, {"of": "normal", "mean": 90.0, "half_width": None})
    ladder = {"label": "cnn", "dots": dots}
    figure = draw({"kind": "findings", "name": "verdict", "title": "", "ladders": [ladder]})
    (bar,) = figure.axes[0].collections
    assert np.allclose(bar.get_segments()[0][:, 0], [95, 100])


def test_the_papers_values_are_hollow_and_where_they_belong() -> None:
    axes, _ = plots(draw(sweep()))
    hollow = [found for found in axes.lines if found.get_markerfacecolor() == "none"]
    point, reference = sorted(hollow, key=lambda found: -found.get_ydata()[0])
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.04, 94.56)
    assert reference.get_ydata()[0] == 86.64
    assert reference.get_color() == next(f for f in axes.lines if list(f.get_ydata()) == [86.5, 86.5]).get_color()
    low, high = axes.get_ylim()
    assert low < 86.64 < 94.56 < high


def test_teachers_have_their_colors_and_every_net_a_panel_of_the_same_scale() -> None:
    def pair(net: str, of_normal: float, of_nasty: float) -> list[Part]:
        means = {"normal": of_normal, "nasty": of_nasty}
        return [line(f"{net}-{x}", "student", x, {1: cell(mean), 2: cell(mean)}) for x, mean in means.items()]

    cnn, mlp = plots(draw(curves(panel([*pair("cnn", 9, 5), *pair("mlp", 8, 4)]))))
    assert cnn.get_ylim() == mlp.get_ylim()
    looks = {float(found.get_ydata()[0]): found for found in (*cnn.lines, *mlp.lines)}
    assert looks[9].get_color() == looks[8].get_color() == style.NORMAL
    assert looks[5].get_color() == looks[4].get_color() == style.DEFENDED
    assert [looks[y].get_linestyle() for y in (9, 5, 8, 4)] == [":", "-", ":", "-"]
    assert len({looks[y].get_marker() for y in (9, 5, 8, 4)}) == 4


def test_a_student_alone_is_grey_and_dashed() -> None:
    lines = [line(f"cnn-{x}", "student", None if x == "alone" else x, {1: cell(5.0)}) for x in ("alone", "nasty")]
    alone, nasty = plots(draw(curves(panel(lines))))[0].lines
    assert (alone.get_color(), nasty.get_color()) == (style.ALONE, style.DEFENDED)
    assert (alone.get_linestyle(), nasty.get_linestyle()) == ("--", "-")
    assert alone.get_markersize() < nasty.get_markersize()


def test_a_net_has_one_color_in_all_panels_and_the_teacher_one_of_its_own() -> None:
    points = {1: cell(5.0), 2: cell(5.0)}
    nets = ("a", "b", "c", "d", "e", "f")
    teacher = line("teacher", "teacher", None, points)
    left = panel([teacher, *(line(name, "student", "nasty", points) for name in nets)])
    right = panel([line(name, "student", "nasty", points) for name in reversed(nets)], name="cifar100")
    first, second = plots(draw(curves(left, right)))
    colors = [to_hex(found.get_color()) for found in first.lines]
    assert len(set(colors)) == 7
    assert colors[1:] == [to_hex(found.get_color()) for found in second.lines][::-1]
    assert len({found.get_marker() for found in first.lines}) == 7


def test_the_legends_are_complete_and_hide_nothing() -> None:
    texts = inside(draw(sweep()))
    assert texts[:5] == ["trained normally", "the paper's value", "95 % interval", "a run failed", "collapsed"]
    assert texts[5:] == ["teacher", "cnn", "preresnet20", "cnn"]
    plain = curves(panel([line("cnn", "student", "nasty", {1: cell(5.0)})]))
    assert inside(draw(plain)) == ["cnn"]


@pytest.mark.parametrize(("lines", "panels"), [(1, 2), (12, 1)])
def test_long_labels_fit(lines: int, panels: int) -> None:
    label = "S: a student whose name is long, of a reduced width, against something else that is long as well"
    many = [line(f"n{i}", "student", "nasty", {1: cell(5.0 + i)}, label) for i in range(lines)]
    texts = inside(draw(curves(*(panel(many, name=f"p{i}") for i in range(panels)))))
    assert [" ".join(text.split()) for text in texts] == [label] * lines * panels


def test_a_single_point_does_not_look_like_an_effect() -> None:
    points = {1: cell(95.001), 2: cell(95.002)}
    (axes,) = plots(draw(curves(panel([line("cnn", "student", "nasty", points)]))))
    low, high = axes.get_ylim()
    assert high - low >= 2


def test_crowded_labels_are_turned() -> None:
    def rotation(values: list[float]) -> float:
        crowded = line("n", "student", "nasty", {x: cell(1.0) for x in values})
        (axes,) = plots(draw(curves(panel([crowded], scale="linear"))))
        return float(axes.get_xticklabels()[0].get_rotation())

    assert rotation([1, 2, 4, 8]) == 0
    assert rotation([0.0001, 0.0002, 0.0003, 0.0014]) == 45
    assert rotation([0.0001, 0.0002, 0.0003, 0.0114]) == 90


@pytest.mark.parametrize("examples", [1, 4])
def test_each_example_has_its_image_and_the_bars_of_both_teachers(examples: int) -> None:
    part = responses(10, examples)
    shown = [axes for axes in draw(part).axes if axes.images or axes.patches]
    assert len(shown) == 3 * examples
    for i, example in enumerate(part["examples"]):
        image, normal, nasty = shown[3 * i : 3 * i + 3]
        pixels = np.frombuffer(base64.b64decode(example["image"]["pixels_base64"]), np.uint8)
        assert image.images[0].get_array().flatten().tolist() == pixels.tolist()
        assert image.get_title() == f"class {example['label']}"
        for axes, name in ((normal, "normal"), (nasty, "nasty")):
            assert [bar.get_height() for bar in axes.patches] == example[name]
            highlighted = [bar.get_facecolor() == to_rgba("#D55E00") for bar in axes.patches]
            assert highlighted == [k == example["label"] for k in range(10)]
        assert normal.get_ylim() == nasty.get_ylim() == (0, 1)
    assert [axes.get_title() for axes in shown[1:3]] == ["normal teacher", "nasty teacher"]
    for column in shown[-2:]:
        assert [tick.get_text() for tick in column.get_xticklabels()] == part["classes"]


def test_grey_images_and_a_hundred_classes() -> None:
    figure = draw(responses(100, 2, channels=1))
    shown = [axes for axes in figure.axes if axes.images or axes.patches]
    assert len(shown) == 6
    assert shown[0].images[0].get_array().shape == (4, 4)
    assert len(shown[1].patches) == 100
    assert len(shown[1].get_xticks()) <= 5
    assert "true class" in inside(figure)


def test_small_probabilities_are_not_stubs() -> None:
    part = responses(10, 2)
    for example in part["examples"]:
        example["normal"] = example["nasty"] = [0.1] * 10
    shown = [axes for axes in draw(part).axes if axes.patches]
    assert {axes.get_ylim() for axes in shown} == {(0, 0.1)}


@pytest.mark.parametrize("classes", [2, 15])
def test_each_panel_of_embeddings_shows_every_point_in_the_color_of_its_class(classes: int) -> None:
    part = embeddings(classes)
    figure = draw(part)
    assert len(figure.axes) == 4
    for axes, shown in zip(figure.axes, part["panels"], strict=True):
        assert axes.get_title() == shown["title"]
        assert axes.get_xlabel() == "512 dimensions · silhouette 0.25 · nearest neighbors right 90.5 %"
        assert axes.get_xticks().size == axes.get_yticks().size == 0
        assert len(axes.collections) == classes
        assert len({to_hex(cloud.get_facecolor()[0]) for cloud in axes.collections}) == classes
        for k, cloud in enumerate(axes.collections):
            members = [point for point, label in zip(shown["points"], part["labels"], strict=True) if label == k]
            assert cloud.get_offsets().tolist() == members
    assert inside(figure) == part["classes"]


def test_many_classes_have_no_legend_and_an_undefined_silhouette_a_dash() -> None:
    part = embeddings(100, points=100)
    part["panels"][0]["silhouette"] = None
    figure = draw(part)
    assert inside(figure) == []
    assert "silhouette – ·" in figure.axes[0].get_xlabel()


def test_greek_letters_carry_what_is_below_them() -> None:
    part = curves({**panel([line("cnn", "student", "nasty", {1: cell(5.0)})]), "title": "τ_A = 4 on a_b"})
    assert plots(draw(part))[0].get_title() == "$τ_{A}$ = 4 on a_b"


@pytest.mark.parametrize("part", [sweep(), responses(5, 1), embeddings(3)], ids=["curves", "responses", "embeddings"])
def test_the_same_part_gives_the_same_bytes_whatever_the_users_style(part: Part, tmp_path: Path) -> None:
    figure = draw(part)
    save(figure, tmp_path / "once")
    save(figure, tmp_path / "again")
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.hashsalt": "x", "figure.dpi": 31}):
        mine = dict(matplotlib.rcParams)
        save(draw(part), tmp_path / "styled")
        assert dict(matplotlib.rcParams) == mine
    assert dict(matplotlib.rcParams) == before
    for kind in ("png", "svg"):
        once, again, styled = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("once", "again", "styled"))
        assert once == again == styled
    width, height = figure.get_size_inches()
    with Image.open(tmp_path / "once.png") as image:
        assert np.allclose(image.size, (200 * width, 200 * height), atol=1)
    root = ElementTree.parse(tmp_path / "once.svg").getroot()
    assert root.tag.endswith("svg")
    assert b"<dc:date>" not in (tmp_path / "once.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{kind}" for name in ("once", "again", "styled") for kind in ("png", "svg")
    )


_ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv[1])
import undistill
from undistill.cli import main
assert "matplotlib" not in sys.modules
from pathlib import Path
from test_plots import responses
from undistill.reporting.style import save
from test_plots import draw
save(draw(responses(4, 2)), Path(sys.argv[2]))
assert "matplotlib.pyplot" not in sys.modules
"""


def test_another_process_writes_the_same_bytes_and_never_loads_pyplot(tmp_path: Path) -> None:
    code = [sys.executable, "-c", _ELSEWHERE, str(Path(__file__).parent), str(tmp_path / "there")]
    subprocess.run(code, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    save(draw(responses(4, 2)), tmp_path / "here")
    for kind in ("png", "svg"):
        assert (tmp_path / f"here.{kind}").read_bytes() == (tmp_path / f"there.{kind}").read_bytes()


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        save(draw(responses(2, 1)), tmp_path / "file" / "figure1")

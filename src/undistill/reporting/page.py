"""The page: one HTML file without scripts that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from undistill._version import __version__
from undistill.recipe import Recipe
from undistill.reporting.answers import MAPPED_CLASSES, Answers, Pair, neighbors_alike, pairs, tsne
from undistill.reporting.figures import LINE_STYLES, Line, class_map, line_chart, png_uri, response_chart
from undistill.reporting.images import drawn_images
from undistill.reporting.runs import Replicates, RunGroup
from undistill.reporting.runs_table import Table
from undistill.reporting.verdict import Verdict
from undistill.reporting.wording import join, method_label, model_label, value

__all__ = ["render"]

_SAMPLES = 6
_MOST_BARS = 10
_NAME_LENGTH = 14


def render(studies: Sequence[RunGroup], tables: Sequence[Table], verdicts: Sequence[Verdict]) -> str:
    """Return the HTML of a report.

    Raises:
        CheckpointError: A teacher's weights are not those that its run wrote.
    """
    environment = Environment(
        loader=PackageLoader("undistill.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(unbroken=lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%"), value=value)
    contents = [
        _content(study, table, verdict) for study, table, verdict in zip(studies, tables, verdicts, strict=True)
    ]
    style = Markup(environment.get_template("style.css").render())  # ours, and free of anything to escape
    return environment.get_template("page.html").render(contents=contents, style=style, version=__version__)


def _content(study: RunGroup, table: Table, verdict: Verdict) -> dict[str, Any]:
    found = list(pairs(study))
    return {
        "study": study,
        "table": table,
        "verdict": verdict,
        "charts": _charts(study),
        "pairs": [_pair(pair) for pair in found if isinstance(pair, Pair)],
        "drawn": list(drawn_images(study)),
        "problems": [problem for problem in found if isinstance(problem, str)],
        "recipes": list(_recipes(study)),
        "notes": sorted({run.result.get("data_note") or "" for run in study.runs} - {""}),
    }


def _charts(study: RunGroup) -> dict[str, Any]:
    """Return the training curves: of the teachers, and of each student under every way of learning."""
    teachers = [(teacher.label, teacher.replicates) for teacher in study.teachers if teacher.replicates is not None]
    references = sorted({(method != "ce", method) for student in study.students for method in student.references})
    ways: list[tuple[str, int, dict[str, Replicates]]] = []
    for i, (_, method) in enumerate(references):  # from the last style down: a style of a thief is of a thief only
        by = {student.key: student.references[method] for student in study.students if method in student.references}
        ways.append((f"alone, {method_label(method)}", -i % LINE_STYLES, by))
    for i, extraction in enumerate(study.extractions, start=1):
        label = f"{extraction.label} from {study.teacher_name(extraction.teacher)}"
        ways.append((label, i % LINE_STYLES, dict(extraction.by)))
    charts = []
    for title, metric, top, number in (
        ("Teachers: accuracy, percent", "accuracy", 100, "{:.1f} %"),
        ("Teachers: distance from the normal twin, τ² KL, training images", "adversary_kl", None, "{:.2f}"),
    ):
        lines = [_line(label, replicates, metric, i) for i, (label, replicates) in enumerate(teachers, start=1)]
        charts.append(_chart(title, lines, top, number))
    for student in study.students:
        lines = [_line(label, by[student.key], "accuracy", i) for label, i, by in ways if student.key in by]
        charts.append(_chart(f"Student {student.name}: accuracy, percent", lines, 100, "{:.1f} %"))
    return {
        "charts": [chart for chart in charts if chart is not None],
        "teachers": [(label, i % LINE_STYLES) for i, (label, _) in enumerate(teachers, start=1)],
        "ways": [(label, style) for label, style, _ in ways],
    }


def _line(label: str, replicates: Replicates, metric: str, style: int) -> Line:
    curves = [list(_curve(run.metrics, metric)) for run in replicates.runs]
    return Line(label, style, [curve for curve in curves if curve])


def _curve(records: Sequence[Mapping[str, Any]], metric: str) -> Iterator[tuple[float, float]]:
    """Yield epoch and value: on held-out or test images where they were measured, else on training images."""
    for record in records:
        measured = [record[key] for split in ("heldout", "test", "train") if (key := f"{split}_{metric}") in record]
        if measured and math.isfinite(measured[0]):
            yield record["epoch"], measured[0]


def _chart(title: str, lines: Sequence[Line], top: float | None, number: str) -> dict[str, Any] | None:
    lines = [line for line in lines if line.curves]
    if not lines:
        return None
    ends = [f"{line.label}: {number.format(np.mean([curve[-1][1] for curve in line.curves]))}" for line in lines]
    epochs = max(curve[-1][0] for line in lines for curve in line.curves)
    alt = f"{title}, over {epochs:g} epochs. At the end: {'; '.join(ends)}."
    return {"title": title, "svg": line_chart(lines, top=top, x_name="epoch", alt=alt)}


def _pair(pair: Pair) -> dict[str, Any]:
    labels = pair.data.test.y[pair.mapped]
    shown = [int(k) for k in torch.unique(labels)]
    return {
        "pair": pair,
        "samples": _samples(pair),
        "features": _maps(pair, "features before the last layer", [a.features for a in (pair.normal, pair.defended)]),
        "logits": _maps(pair, "logits", [_mapped_logits(pair, a) for a in (pair.normal, pair.defended)]),
        "legend": [(i, pair.data.classes[k]) for i, k in enumerate(shown)],
        "all_classes": len(shown) == pair.data.num_classes,
        "most_classes": MAPPED_CLASSES,
        "most_entropy": math.log(pair.data.num_classes),
    }


def _mapped_logits(pair: Pair, answers: Answers) -> torch.Tensor:
    return answers.logits[pair.mapped]


def _samples(pair: Pair) -> list[dict[str, Any]]:
    """Show images of different classes that both nets get right."""
    y = pair.data.test.y
    normal, defended = (answers.logits for answers in (pair.normal, pair.defended))
    right = (normal.argmax(1) == y) & (defended.argmax(1) == y)
    order = np.random.RandomState(0).permutation(len(y))
    first: dict[int, int] = {}
    for i in order:
        if bool(right[i]):
            first.setdefault(int(y[i]), int(i))
    chosen = list(first.values())[:_SAMPLES]
    p, q = ((logits[chosen] / pair.temperature).softmax(1) for logits in (normal, defended))
    scale = float(torch.cat([p, q]).max()) if chosen else 1.0
    return [_sample(pair, i, p[row], q[row], scale) for row, i in enumerate(chosen)]


def _sample(pair: Pair, index: int, normal: torch.Tensor, defended: torch.Tensor, scale: float) -> dict[str, Any]:
    true = int(pair.data.test.y[index])
    likely = [int(k) for k in (normal + defended).argsort(descending=True) if k != true]
    shown = sorted([true, *likely[: _MOST_BARS - 1]])
    names = [_shorten(pair.data.classes[k]) for k in shown]
    name = pair.data.classes[true]
    alt = (
        f"Answers to an image of class {name}, softened at τ={pair.temperature:g}. The normal teacher: "
        f"{_most_likely(pair, normal)}. The {pair.method} teacher: {_most_likely(pair, defended)}."
    )
    answers = [("normal", normal[shown].tolist()), (pair.method, defended[shown].tolist())]
    chart = response_chart(names, shown.index(true), answers, scale=scale, alt=alt)
    return {"name": name, "image": png_uri(pair.data.test.x[index]), "svg": chart}


def _most_likely(pair: Pair, answer: torch.Tensor) -> str:
    top = answer.topk(min(3, len(answer)))
    return join([f"{pair.data.classes[int(k)]} {100 * float(p):.0f} %" for p, k in zip(*top, strict=True)])


def _maps(pair: Pair, what: str, values: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
    labels = pair.data.test.y[pair.mapped]
    names = [_shorten(name) for name in pair.data.classes]
    maps = []
    for owner, vectors in zip(("normal", pair.method), values, strict=True):
        layout = tsne(vectors)
        alike = f"{100 * neighbors_alike(layout, labels):.0f} %"
        alt = (
            f"Map of {len(labels)} test images by the {what} ({vectors.shape[1]} numbers) of the {owner} teacher, "
            f"colored by class. Of the ten images nearest to each, {alike} are of its class."
        )
        svg = class_map(layout, labels.tolist(), names, alt=alt)
        maps.append({"owner": owner, "alike": alike, "size": vectors.shape[1], "svg": svg})
    return maps


def _recipes(study: RunGroup) -> Iterator[tuple[str, str]]:
    families: dict[str, list[Recipe]] = {}
    for run in study.runs:
        families.setdefault(run.recipe.family, []).append(run.recipe)
    for recipes in families.values():
        seeds = sorted({recipe.seed for recipe in recipes})
        title = f"{model_label(recipes[0].model)}, {method_label(recipes[0].method)}"
        victim = recipes[0].victim
        if victim is not None:
            method = f", {method_label(victim.method)}" if isinstance(victim, Recipe) else ""
            title += f", from {model_label(victim.model)}{method}"
        plural = "seeds" if len(seeds) > 1 else "seed"
        yield f"{title}; {plural} {join([str(seed) for seed in seeds])}", _without_folders(recipes[0]).to_yaml()


def _without_folders(recipe: Recipe) -> Recipe:
    """Leave out where runs lie: a page may be handed on."""
    changes: dict[str, Any] = {"folder": None}
    for key in ("adversary", "victim"):
        source = getattr(recipe, key)
        if isinstance(source, Recipe):
            changes[key] = _without_folders(source)
        elif source is not None:
            changes[key] = source.model_copy(update={"checkpoint": None})
    return recipe.model_copy(update=changes)


def _shorten(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"

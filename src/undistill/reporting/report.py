"""The report: what a thief gets, as one page that opens offline and in other forms.

``collect`` groups runs, ``judge`` puts a group into words, ``make_table`` into a table, and ``report`` writes them down
with figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from undistill._version import __version__
from undistill.errors import RecipeError
from undistill.recipe import Recipe
from undistill.reporting import measures
from undistill.reporting.answers import MAPPED_CLASSES, NEIGHBORS, Pair, choose_examples, measure_space, pairs
from undistill.reporting.cell import Shown
from undistill.reporting.document import Document
from undistill.reporting.parts import Grid, GridRow, Part
from undistill.reporting.parts.embeddings import Embeddings, Space
from undistill.reporting.parts.findings import Finding, Findings
from undistill.reporting.parts.images import ImageGrids, ImagePanel, image_panel
from undistill.reporting.parts.recipes import Recipes
from undistill.reporting.parts.responses import Example, Picture, Responses
from undistill.reporting.parts.training import Chart, Course, Training
from undistill.reporting.parts.values import Values
from undistill.reporting.runs import Replicates, RunGroup, Teacher, collect
from undistill.reporting.runs_table import Cell, Table, make_table
from undistill.reporting.verdict import judge, ladders
from undistill.reporting.wording import join, method_label, model_label
from undistill.reporting.write import write
from undistill.run import Run
from undistill.storage import write_json

__all__ = ["make_document", "report", "write_report"]

_SAMPLES = 6
_DRAWN_ROWS = 6
_ENDINGS = (".html", ".md", ".tex", ".json", ".csv")


def report(
    runs: Run | str | Path | Sequence[Run | str | Path],
    out: str | Path = "report.html",
) -> Path:
    """Write one self-contained HTML page about runs, and beside it the same as Markdown, LaTeX, CSV and JSON.

    Runs that differ in their seeds only become one number, the mean with its 95 % interval. The runs of victims and
    adversaries that lie beside a run belong to it. The same runs give the same files on the same machine.

    Args:
        runs: Runs, run folders, or folders that hold runs (down to two levels); unfinished runs in such a folder, and
            those of methods that are not installed, are left out and counted.
        out: The page, ``….html``, or the path of any of the other forms; all of them have its stem. A folder gets a
            ``report.html``.

    Returns:
        The path that was asked for.

    Raises:
        RecipeError: ``out`` has another ending.
        RunError: There is no finished run, a result is damaged, or ``out`` cannot be written.
        CheckpointError: A teacher's weights are not those that its run wrote.
    """
    return write_report(make_document(runs), out)


def write_report(document: Document, out: str | Path) -> Path:
    """Write a report in all its forms; see ``report``."""
    path = Path(out)
    if path.is_dir():
        path = path / "report.html"
    if path.suffix not in _ENDINGS:
        raise RecipeError(f"out: expected a path that ends in {', '.join(_ENDINGS)}, got {str(path)!r}")
    write(document, path.with_suffix(".html"), texts=path.stem, figures=f"{path.stem}_figures")
    write_json(path.with_suffix(".json"), document.content)
    return path


def make_document(runs: Run | str | Path | Sequence[Run | str | Path]) -> Document:
    """Return what ``report`` writes.

    Raises:
        RunError: There is no finished run, or a result is damaged.
        CheckpointError: A teacher's weights are not those that its run wrote.
    """
    groups = collect(runs)
    tables = [make_table(group) for group in groups]
    verdicts = [judge(group) for group in groups]
    parts = [
        part
        for number, (group, table, findings) in enumerate(zip(groups, tables, verdicts, strict=True), start=1)
        for part in _parts(group, table, findings, "" if len(groups) == 1 else f"-{number}")
    ]
    return Document("What can be stolen", tuple(parts), _content(groups, tables, verdicts))


def _parts(group: RunGroup, table: Table, findings: tuple[Finding, ...], suffix: str) -> Iterator[Part]:
    """Yield the parts about one data set; the suffix tells their names from those of others."""
    first = group.runs[0].result
    notes = "; ".join(sorted({run.result.get("data_note") or "" for run in group.runs} - {""}))
    about = f"{first['classes']} classes, {first['test_images']:,} test images{f'; {notes}' if notes else ''}."
    rungs = tuple(ladders(group))
    yield Findings.make(
        name=f"verdict{suffix}",
        header="Verdict",
        title=f"Data set {group.data}",
        about=about,
        findings=findings,
        ladders=rungs,
    )
    yield Values.make(
        name=f"table{suffix}", header="Results", title=table.caption.rstrip("."), grid=table.grid, notes=table.notes
    )
    yield from _measured(group, suffix)
    charts = tuple(_charts(group))
    if charts:
        yield Training.make(
            name=f"curves{suffix}",
            header="Training",
            title="Measured after every epoch on images that were not trained on (held-out ones, or the test set where "
            "none were held out), unless a title says otherwise; one line a seed",
            charts=charts,
        )
    found = list(pairs(group))
    problems = tuple(problem for problem in found if isinstance(problem, str))
    asked = [pair for pair in found if isinstance(pair, Pair)]
    for number, pair in enumerate(asked):
        yield from _pair(pair, f"{suffix}-{number}" if len(asked) > 1 else suffix)
    panels = tuple(_drawn(group))
    if panels:
        classes = next(run for run in group.runs if run.images() is not None).dataset().classes
        yield ImageGrids.make(
            name=f"images{suffix}",
            header="Images that thieves made",
            title="Not one of these was seen by anybody: they were drawn out of the teacher, or by a generator that "
            "was trained on its answers; a column a class, the first ones of the first seed",
            classes=classes,
            panels=panels,
        )
    yield Recipes.make(
        name=f"recipes{suffix}",
        header="Recipes",
        title="Everything that decides a run; each of these, saved as a file, makes the same run again. Of runs that "
        "differ in their seeds only, the first is shown",
        texts=tuple(_recipes(group)),
        notes=problems,
    )
    yield _provenance(group, f"provenance{suffix}")


def _measured(group: RunGroup, suffix: str) -> Iterator[Part]:
    """Yield what thieves had and got, and what teachers are worth."""
    thieves, victims = measures.thieves(group), measures.victims(group)
    if thieves is not None:
        yield Values.make(
            name=f"thieves{suffix}",
            header="Thieves",
            title="What each had and got, on the owner's test images; fidelity: how often it names the class that the "
            "victim names, excess fidelity: how much more often than its reference, the same student alone with the "
            "same labels or, without any, on the classes that the victim names; KL of its answers from the victim's",
            grid=thieves,
            notes=tuple(_thief_notes(group)),
        )
    if victims is not None:
        yield Values.make(
            name=f"victims{suffix}",
            header="Teachers",
            title="What they are worth to those who ask honestly, on the test images; the median non-target mass is "
            "what an answer leaves for the classes that it does not name",
            grid=victims,
        )


def _thief_notes(group: RunGroup) -> Iterator[str]:
    if any(one.means.transfer is None for one in group.extractions):
        yield "The owner's images are the training set itself: more than a thief usually has."
    if any(one.means.queries is None and one.means.transfer != "" for one in group.extractions):
        yield "Asked at every step: without a budget, as in the paper; every question counts."
    for key, whose in (("images_of_owner", "in the owner's training set"), ("images_of_test", "among the test images")):
        count = max((int(run.result.get(key) or 0) for run in group.runs), default=0)
        if count:
            yield f"Of a thief's own images up to {count:,} are {whose}, pixel by pixel."
    if any(measures.is_tautology(group, one) for one in group.extractions):
        yield (
            "Answers are the labels: the thief has the labels of these images and the victim names them, so this is "
            "the student alone once more."
        )


def _charts(group: RunGroup) -> Iterator[Chart]:
    """Yield the training curves: of the teachers, and of each student under every way of learning."""
    teachers = [(t.label, _side(t), t.replicates) for t in group.teachers if t.replicates is not None]
    for title, metric, top in (
        ("Teachers: accuracy, %", "accuracy", 100.0),
        ("Teachers: τ² KL from the normal twin, training images", "adversary_kl", None),
    ):
        yield from _chart(title, top, [_course(label, of, own, metric) for label, of, own in teachers])
    sure = [_course(label, of, own, "confidence") for label, of, own in teachers]
    sure += [_course(f"normal twin of {t}", "normal", own, "adversary_confidence") for t, _, own in teachers]
    yield from _chart("Teachers: highest softened probability", 1.0, sure)
    for student in group.students:
        alone = {means: of for (key, means), of in group.references.items() if key == student.key}
        ways = [
            (f"alone, {method_label(method)}" + (f", {told}" if (told := means.among(alone)) else ""), "alone", own)
            for means, of in alone.items()
            for method, own in of.items()
        ]
        for one in group.extractions:
            teacher = group.teacher(one.teacher)
            if student.key in one.by and teacher is not None:
                ways.append((f"{one.label} from {teacher.name}", _side(teacher), one.by[student.key]))
        courses = [_course(label, of, own, "accuracy") for label, of, own in ways]
        yield from _chart(f"Student {student.name}: accuracy, %", 100.0, courses)


def _side(teacher: Teacher) -> str:
    return "defended" if teacher.defended else "normal"


def _chart(title: str, top: float | None, courses: Sequence[Course]) -> Iterator[Chart]:
    shown = tuple(course for course in courses if course.curves)
    if shown:
        yield Chart(title=title, top=top, courses=shown)


def _course(label: str, of: str, replicates: Replicates, metric: str) -> Course:
    curves = (tuple(_curve(run.metrics, metric)) for run in replicates.runs)
    return Course(label=label, of=of, curves=tuple(curve for curve in curves if curve))


def _curve(records: Sequence[Mapping[str, Any]], metric: str) -> Iterator[tuple[float, float]]:
    """Yield epoch and value: on held-out or test images where they were measured, else on training images."""
    for record in records:
        measured = [record[key] for split in ("heldout", "test", "train") if (key := f"{split}_{metric}") in record]
        if measured and math.isfinite(measured[0]):
            yield record["epoch"], measured[0]


def _pair(pair: Pair, suffix: str) -> Iterator[Part]:
    """Yield what a defended teacher answers beside its normal twin: samples, maps, distances."""
    samples = tuple(_samples(pair))
    about = f"{pair.label}, seed {pair.seed}"
    classes = pair.data.classes
    if samples:
        yield Responses.make(
            name=f"answers{suffix}",
            header="Softened answers",
            title=f"Test images that both teachers get right, and their answers as a thief sees them, softened at "
            f"τ={pair.temperature:g}; {about}",
            classes=classes,
            temperature=pair.temperature,
            examples=samples,
            defense=pair.method,
        )
    labels = pair.data.test.y[pair.mapped]
    shown = torch.unique(labels)
    some = "" if len(shown) == len(classes) else f" of the first {MAPPED_CLASSES} classes"
    yield Embeddings.make(
        name=f"maps{suffix}",
        header="Maps of the test images",
        title=f"t-SNE of {len(labels)} test images{some}, by the features before the last layer and by the logits: "
        f"neighbors in a map are neighbors there, distances between groups mean little; {about}",
        classes=tuple(classes[int(k)] for k in shown),
        labels=tuple(torch.searchsorted(shown, labels).tolist()),
        neighbors=NEIGHBORS,
        panels=tuple(_maps(pair)),
        notes=(f"Silhouette and the {NEIGHBORS} nearest neighbors are of the original space, not of the map.",),
    )
    rows = tuple(GridRow((name,), (Shown(normal), Shown(defended))) for name, normal, defended in pair.distances)
    yield Values.make(
        name=f"distance{suffix}",
        header="Distance from the normal teacher",
        title=f"All test images; entropy and KL divergence in nats, without the factor τ²; the largest possible "
        f"entropy is {math.log(len(classes)):.3f}; calibration error in 15 bins; {about}",
        grid=Grid("", ("Measure",), ("normal", pair.method), rows),
    )


def _samples(pair: Pair) -> Iterator[Example]:
    """Yield images of different classes that both nets get right."""
    y = pair.data.test.y
    normal, defended = (answers.logits for answers in (pair.normal, pair.defended))
    right = (normal.argmax(1) == y) & (defended.argmax(1) == y)
    for i in (i for i in choose_examples(y, right, _SAMPLES) if right[i]):
        p, q = ((logits[i] / pair.temperature).softmax(0).tolist() for logits in (normal, defended))
        picture = Picture.of(pair.data.test.x[i])
        yield Example(index=i, label=int(y[i]), image=picture, both_right=True, normal=tuple(p), nasty=tuple(q))


def _maps(pair: Pair) -> Iterator[Space]:
    labels = pair.data.test.y[pair.mapped].numpy()
    for space in ("features", "logits"):
        for owner, answers in (("normal", pair.normal), (pair.method, pair.defended)):
            vectors = answers.features if space == "features" else answers.logits[pair.mapped]
            yield Space(
                name=f"{space}-{owner}",
                title=f"{space.capitalize()}, {owner} teacher",
                **measure_space(vectors, labels, NEIGHBORS),
            )


def _drawn(group: RunGroup) -> Iterator[ImagePanel]:
    """Yield the first images of every thief who made his own; those of the first seed."""
    for one in group.extractions:
        for key, replicates in one.by.items():
            run = replicates.runs[0]
            images = run.images()
            if images is None or not len(images):
                continue
            student = next(student.name for student in group.students if student.key == key)
            title = f"{one.label}\nfrom {group.teacher_name(one.teacher)}, student {student}"
            yield image_panel(f"{one.method}-{key}", title, images, run.result["classes"], _DRAWN_ROWS)


def _recipes(group: RunGroup) -> Iterator[tuple[str, str]]:
    families: dict[str, list[Recipe]] = {}
    for run in group.runs:
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


def _provenance(group: RunGroup, name: str) -> Values:
    keys = ("profile", "undistill", "torch", "python", "device", "device_name", "threads")
    rows = []
    for run in group.runs:
        made = run.result["provenance"]
        facts = [run.recipe.hash, run.recipe.seed, *(made.get(key, "–") for key in keys)]
        facts += [f"{run.result['seconds']:.1f}", f"{run.result['images_per_s']:,.0f}"]
        rows.append(GridRow((run.folder.name,), tuple(Shown(str(fact)) for fact in facts)))
    columns = ("recipe", "seed", *(key.replace("_", " ") for key in keys), "seconds", "images/s")
    fingerprint = group.runs[0].result["data_fingerprint"]
    return Values.make(
        name=name,
        header="Provenance",
        title=f"Images: SHA-256 {fingerprint}",
        grid=Grid("", ("Run",), columns, tuple(rows), of_text=True),
    )


def _content(
    groups: Sequence[RunGroup], tables: Sequence[Table], verdicts: Sequence[tuple[Finding, ...]]
) -> dict[str, Any]:
    """Return tables and verdicts as plain values; accuracies in percent, differences in points."""
    return {
        "undistill": __version__,
        "studies": [
            {
                "data": group.data,
                "caption": table.caption,
                "verdict": [
                    {"subject": f.subject, "headline": f.headline, "findings": [f"{a} {b}" for a, b in f.items]}
                    for f in verdict
                ],
                "students": [student.label for student in table.students],
                "rows": [
                    {
                        "teacher": row.teacher or None,
                        "method": row.method or None,
                        "teacher_accuracy": _json(row.accuracy),
                        "students": [_json(cell) for cell in row.students],
                    }
                    for row in table.rows
                ],
                "notes": list(table.notes),
            }
            for group, table, verdict in zip(groups, tables, verdicts, strict=True)
        ],
    }


def _json(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    runs = cell.replicates.runs
    return {
        "mean": cell.accuracy.mean,
        "half_width": cell.accuracy.half_width,
        "n": cell.accuracy.n,
        "difference": None if cell.difference is None else cell.difference._asdict(),
        "last_epoch_mean": cell.replicates.last_accuracy.mean,
        "selection": cell.replicates.recipe.selection,
        "runs": [
            {
                "hash": run.recipe.hash,
                "seed": run.recipe.seed,
                "accuracy": run.accuracy,
                "last_epoch_accuracy": last,
                "collapsed": run.collapsed,
                "top_class_share": run.result["selected"]["top_class_share"],
                "weights_sha256": run.result["weights_sha256"],
                "data_fingerprint": run.result["data_fingerprint"],
                "data_note": run.result["data_note"],
                "seconds": run.result["seconds"],
                "provenance": run.result["provenance"],
                "recipe": _recipe(run.recipe.model_dump(mode="json", exclude_none=True)),
            }
            for run, last in zip(runs, cell.replicates.last_accuracies, strict=True)
        ],
    }


def _recipe(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe without paths of the machine that it ran on."""
    return {
        key: _recipe(value) if isinstance(value, dict) else value
        for key, value in fields.items()
        if key not in {"folder", "checkpoint"}
    }

"""From run folders to studies: teachers, students, and who was stolen from how."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undistill.engine.config import Training
from undistill.errors import RecipeError, RunError
from undistill.functional import (
    Difference,
    Interval,
    may_be_chance,
    mean_interval,
    paired_difference,
    paired_proportions,
)
from undistill.methods import build_method
from undistill.recipe import Recipe, Source
from undistill.registry import Spec
from undistill.reporting.wording import distinguish, method_label, model_label
from undistill.run import Run
from undistill.victim import Access
from undistill.workspace import Workspace

__all__ = ["ALONE", "Extraction", "Means", "Replicates", "RunGroup", "Student", "Teacher", "collect"]

ALONE = "the same student alone"
_EVALUATION = ("accuracy", "batch_mean_accuracy", "collapsed", "top_class_share", "nll", "ece")
_RESULT = ("classes", "test_images", "parameters", "seconds", "images_per_s", "data_fingerprint", "provenance")


@dataclass(frozen=True)
class Replicates:
    """Runs that differ in their seeds only.

    Attributes:
        runs: At least one, by seed.
    """

    runs: tuple[Run, ...]

    @property
    def recipe(self) -> Recipe:
        """Of the first run."""
        return self.runs[0].recipe

    @property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy in percent of the weights that the recipe keeps, by seed."""
        return {run.recipe.seed: run.accuracy for run in self.runs}

    @cached_property
    def accuracy(self) -> Interval:
        """Test accuracy in percent of the weights that the recipe keeps."""
        return mean_interval(self.accuracies.values())

    @property
    def resolution(self) -> float:
        """The step in which accuracies are counted, in points: one test image."""
        return 100 / float(self.runs[0].result["test_images"])

    def measure(self, key: str, scale: float = 1.0) -> Interval | None:
        """Return a measure of the result over seeds, ``fidelity`` or ``selected.ece`` say; None if a run has none."""
        found = [_read(run.result, key) for run in self.runs]
        known = [scale * value for value in found if value is not None]
        return mean_interval(known) if len(known) == len(found) else None

    def by_seed(self, key: str, scale: float = 1.0) -> dict[int, float]:
        """Return a measure of the result by seed, where it is known."""
        found = {run.recipe.seed: _read(run.result, key) for run in self.runs}
        return {seed: scale * value for seed, value in found.items() if value is not None}

    def at(self, seeds: Collection[int]) -> Replicates:
        """Return those of some seeds, one or more."""
        return Replicates(tuple(run for run in self.runs if run.recipe.seed in seeds))

    @property
    def chance(self) -> bool:
        """Whether one of them may be guessing, without having collapsed."""
        images, classes = (int(self.runs[0].result[key]) for key in ("test_images", "classes"))
        return any(may_be_chance(run.accuracy, images, classes) and not run.collapsed for run in self.runs)

    @property
    def labelled(self) -> bool:
        """Whether every image that was trained on has a label; taken for granted of runs that did not say."""
        return all(run.result.get("labels") == run.result.get("images") for run in self.runs)

    @cached_property
    def right(self) -> NDArray[np.bool_] | None:
        """Whether the net of the only run is right about each test image; None for several runs, or if not kept."""
        named = self.runs[0].predictions() if len(self.runs) == 1 else None
        if named is None:
            return None
        found: NDArray[np.bool_] = (named == self.runs[0].dataset().test.y).numpy()
        return found

    def beyond(self, other: Replicates) -> Difference | None:
        """Return by how many points these are better than others.

        Over common seeds; of one seed, over the test images. None without a common seed.
        """
        if len(self.runs) == len(other.runs) == 1 and self.accuracies.keys() == other.accuracies.keys():
            one, two = self.right, other.right
            if one is not None and two is not None and self.recipe.selection != "paper":
                return paired_proportions(one, two)
        return paired_difference(self.accuracies, other.accuracies, resolution=self.resolution)

    @property
    def last_accuracies(self) -> list[float]:
        """Test accuracy in percent of each run at its last epoch."""
        key = "batch_mean_accuracy" if self.recipe.selection == "paper" else "accuracy"
        return [float(run.result["last"][key]) for run in self.runs]

    @cached_property
    def last_accuracy(self) -> Interval:
        """Test accuracy in percent at the last epoch."""
        return mean_interval(self.last_accuracies)

    @property
    def collapsed(self) -> tuple[Run, ...]:
        """Those that answer one class for nearly every test image."""
        return tuple(run for run in self.runs if run.collapsed)


@dataclass(frozen=True)
class Teacher:
    """A net that was stolen from, defended, or trained without anyone learning from it.

    Attributes:
        key: Tells it from other teachers.
        label: What it is called in full, e.g. ``resnet18, nasty (τ=4, ω=0.04)``.
        name: What it is called in short where that is unique in the study, e.g. ``the nasty teacher``.
        source: Its recipe, or its weights where no recipe made them.
        replicates: Its runs; None where they are not at hand.
        twin: Key of its adversary, the normally trained twin; None for a teacher without one.
    """

    key: str
    label: str
    name: str
    source: Source
    replicates: Replicates | None
    twin: str | None

    @property
    def defended(self) -> bool:
        """Whether a defense trained it."""
        return isinstance(self.source, Recipe) and self.source.kind == "defense"

    @property
    def temperature(self) -> float | None:
        """Temperature τ_A of its defense."""
        return getattr(self.source.objective, "temperature", None) if isinstance(self.source, Recipe) else None


@dataclass(frozen=True)
class Student:
    """One architecture under one protocol: a column of the table.

    Attributes:
        key: Tells it from other students.
        label: Its model spec.
        name: A short name, unique in the study.
    """

    key: str
    label: str
    name: str


@dataclass(frozen=True)
class Means:
    """What a thief has, or a reference with the same.

    Attributes:
        transfer: Data set spec of its images; None for the owner's training set, empty for none at all.
        labels: Whether it has the label of every image, of none, or of how many.
        queries: Its budget; None for all its images, asked about anew at every step.
    """

    transfer: str | None
    labels: bool | int
    queries: int | None

    @classmethod
    def of(cls, recipe: Recipe) -> Means:
        """Return those of a recipe."""
        return cls(*recipe.means) if recipe.objective.images == "train" else cls("", False, None)

    @property
    def yardstick(self) -> Means:
        """Those of a reference that has as much: how many images have no label is nothing to it."""
        return self if self.labels is True else replace(self, queries=None)

    @property
    def label(self) -> str:
        """In words: ``the owner's images, all labels, 1,000 queries``."""
        return ", ".join(self._words)

    def shared(self, others: Iterable[Means]) -> list[str]:
        """Return what of it is the same with all others, in words."""
        return [word for word in self._words if all(word in other._words for other in others)]

    def among(self, others: Iterable[Means]) -> str:
        """Return what of it is not the same with all others, in words; empty if all is."""
        shared = self.shared([*others])
        return ", ".join(word for word in self._words if word not in shared)

    @property
    def _words(self) -> tuple[str, ...]:
        if self.transfer == "":
            return ("no image",)
        images = "the owner's images" if self.transfer is None else f"images of {self.transfer}"
        labels = "all labels" if self.labels is True else f"{self.labels:,} labels" if self.labels else "no labels"
        return images, labels, "asked at every step" if self.queries is None else f"{self.queries:,} queries"

    @property
    def order(self) -> tuple[str, float, float]:
        """Sorts those with more behind those with less."""
        labels = math.inf if self.labels is True else float(self.labels)
        return self.transfer or "", labels, math.inf if self.queries is None else self.queries


@dataclass(frozen=True)
class Extraction:
    """One way of stealing from one teacher, by every student that tried it.

    Attributes:
        teacher: Key of the victim.
        method: Spec of the attack.
        label: What it is called, e.g. ``kd (τ=4, α=0.9)``, with what the thief has where thieves differ in it.
        means: What the thief has.
        soft: It learns from probabilities or logits: more than the named class, less than what is inside the victim.
        policy: Output defense that its answers passed; None for none.
        textbook: Distillation at the very temperature that the defense was made for; any other way is adaptive.
        uses_labels: The attack needs the true labels too.
        by: Its runs by the key of the student.
    """

    teacher: str
    method: str
    label: str
    means: Means
    soft: bool
    policy: str | None
    textbook: bool
    uses_labels: bool
    by: Mapping[str, Replicates]

    @property
    def named(self) -> bool:
        """Whether it learns from the named class alone."""
        return build_method(self.method).access == Access.LABELS


@dataclass(frozen=True)
class RunGroup:
    """Everything that was run on one data set.

    Attributes:
        data: Data set spec.
        runs: All runs.
        teachers: Every normal one before its defended twins.
        students: From small to large.
        extractions: In the order of the teachers, textbook first.
        references: Runs of students without any victim, by the key of the student, what they had, and method spec.
        unfinished: Number of runs that were found but are not finished.
        unknown: Folders of runs that cannot be read here: their method is not installed, say.
    """

    data: str
    runs: tuple[Run, ...]
    teachers: tuple[Teacher, ...]
    students: tuple[Student, ...]
    extractions: tuple[Extraction, ...]
    references: Mapping[tuple[str, Means], Mapping[str, Replicates]]
    unfinished: int = 0
    unknown: tuple[str, ...] = ()

    def teacher(self, key: str | None) -> Teacher | None:
        """Return a teacher of the study."""
        return next((teacher for teacher in self.teachers if teacher.key == key), None)

    def teacher_name(self, key: str) -> str:
        """Return the short name of a teacher of the study."""
        return next(teacher.name for teacher in self.teachers if teacher.key == key)

    def references_of(self, student: Student, means: Means) -> Mapping[str, Replicates]:
        """Return a student's runs without any victim on the same images and labels, by method spec."""
        return self.references.get((student.key, means.yardstick), {})

    def yardsticks(self, extraction: Extraction, student: Student) -> dict[str, Replicates]:
        """Return what a thief has to beat to have gained anything, by name: the references with the same means.

        Those are the student alone on the labels that he has; of images without one he who looks at more than the
        class that the victim names has to beat the student on these classes.
        """
        found = self.references_of(student, extraction.means)
        alone = {f"{ALONE} by {method_label(method)}": runs for method, runs in found.items()}
        return {**alone, **self._named(extraction, student)}

    def _named(self, extraction: Extraction, student: Student) -> dict[str, Replicates]:
        """Return the student on the classes that the victim names, where some images have no other label."""
        if not extraction.soft or extraction.by[student.key].labelled:
            return {}
        return {
            other.label: other.by[student.key]
            for other in self.extractions_from(extraction.teacher)
            if other.named
            and (other.means, other.policy) == (extraction.means, extraction.policy)
            and student.key in other.by
        }

    def alone(self, extraction: Extraction, student: Student) -> tuple[str, Replicates] | None:
        """Return what tables compare with, and its name: the student alone, or the best on the named classes."""
        if extraction.means.labels is not False:
            found = self.references_of(student, extraction.means).get("ce")
            return None if found is None else (f"{ALONE} by ce", found)
        named = self.yardsticks(extraction, student).items()
        return max(named, key=lambda one: one[1].accuracy.mean, default=None)

    def untried(self, extraction: Extraction, student: Student) -> list[str]:
        """Return the references that a thief who has gained something must have beaten, and that nobody tried."""
        methods = {build_method(method).name for method in self.references_of(student, extraction.means)}
        needed = {"ce", "label_smoothing"} if extraction.means.labels is not False else set()
        unlabelled = extraction.soft and not extraction.by[student.key].labelled
        return sorted(needed - methods) + ["hard_label"] * (unlabelled and not self._named(extraction, student))

    def extractions_from(self, key: str) -> list[Extraction]:
        """Return how a teacher was stolen from."""
        return [extraction for extraction in self.extractions if extraction.teacher == key]


def collect(runs: Run | str | Path | Sequence[Run | str | Path]) -> tuple[RunGroup, ...]:
    """Group runs into one study a data set.

    Args:
        runs: Runs, run folders, or folders that hold runs (down to two levels).

    Raises:
        RunError: There is no finished run, or a result is damaged.
    """
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    found: dict[str, Run] = {}
    unknown: list[str] = []
    unfinished = 0
    for source in given:
        finished, left_out, strange = _find(source)
        unfinished += left_out
        unknown += strange
        for run in finished:
            _check(run)
            found.setdefault(run.recipe.hash, run)
    if not found:
        raise RunError("no runs were given; give run folders, or a folder that holds finished runs")
    for run in list(found.values()):
        for other in _sources_beside(run):
            found.setdefault(other.recipe.hash, other)
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in found.values():
        groups[run.recipe.data, run.result["data_fingerprint"]].append(run)
    return tuple(_group(data, group, unfinished, tuple(unknown)) for (data, _), group in sorted(groups.items()))


def _read(result: Mapping[str, Any], key: str) -> float | None:
    """Return a number of a result, of an older one perhaps, that has none; ``selected.ece`` is one inside."""
    outer, _, inner = key.rpartition(".")
    value = result.get(outer, {}).get(inner) if outer else result.get(key)
    return None if value is None else float(value)


def _find(source: Run | str | Path) -> tuple[list[Run], int, list[str]]:
    """Return the finished runs of a run, run folder or folder of runs, how many are not finished, and the unknown ones.

    A run in a folder of runs whose recipe cannot be read, because its method is not installed here, is unknown.
    """
    if isinstance(source, Run):
        return [source], 0, []
    folder = Path(source)
    if not folder.is_dir():
        raise RunError(f"there is no folder {str(folder)!r}; give a run folder, or a folder that holds runs")
    if (folder / "recipe.yaml").is_file():
        return [Run(folder)], 0, []
    inside = [Run(path.parent) for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/recipe.yaml"))]
    unknown = [run.folder.name for run in inside if not _is_known(run)]
    finished = [run for run in inside if run.finished and run.folder.name not in unknown]
    if not finished:
        hint = f"{len(inside)} unfinished; run their commands again to go on" if inside else "make one with train"
        raise RunError(f"{str(folder)!r} holds no finished run ({hint})")
    return finished, len(inside) - len(finished) - len(unknown), unknown


def _is_known(run: Run) -> bool:
    try:
        _ = run.recipe
    except RecipeError:
        return False
    return True


def _sources_beside(run: Run) -> Iterator[Run]:
    """Yield the runs of a run's victim and adversary, and theirs, where they are at hand."""
    beside = Workspace(run.folder.parent, instances=run.instances)
    for source in run.recipe.sources:
        other = beside.find(source)
        if other is not None:
            _check(other)
            yield other
            yield from _sources_beside(other)


def _check(run: Run) -> None:
    """Refuse a run whose recipe or result cannot be read."""
    try:
        _ = run.recipe
    except RecipeError as error:
        raise RunError(f"the recipe of {run.folder} cannot be used: {'; '.join(error.problems)}") from error
    try:
        result: dict[str, Any] = run.result
        missing = [key for key in _RESULT if key not in result]
        missing += [f"{part}.{key}" for part in ("selected", "last") for key in _EVALUATION if key not in result[part]]
    except (KeyError, TypeError) as error:
        missing = [str(error)]
    if missing:
        raise RunError(
            f"{run.folder / 'result.json'} is damaged ({', '.join(missing)} missing); "
            "delete it and run the same command"
        )


def _group(data: str, runs: Iterable[Run], unfinished: int, unknown: tuple[str, ...]) -> RunGroup:
    families: dict[str, list[Run]] = defaultdict(list)
    ordered = sorted(runs, key=lambda run: (run.recipe.model, run.recipe.method, run.recipe.seed, run.recipe.hash))
    for run in ordered:
        family = families[run.recipe.family]
        if family and family[-1].recipe.seed == run.recipe.seed:
            raise RunError(
                f"{family[-1].folder.name} and {run.folder.name} are of one seed and differ in the seed of a victim or "
                "adversary: give each its own seed too, or report them apart"
            )
        family.append(run)
    replicates = [Replicates(tuple(family)) for family in families.values()]
    teachers = _teachers(replicates)
    attacks = [replicate for replicate in replicates if replicate.recipe.kind == "attack"]
    students = _students(attacks)
    references = _references([replicate for replicate in replicates if replicate.recipe.kind == "reference"], students)
    extractions = _extractions(attacks, teachers)
    return RunGroup(data, tuple(ordered), teachers, students, extractions, references, unfinished, unknown)


def _references(
    alone: Sequence[Replicates], students: Sequence[Student]
) -> dict[tuple[str, Means], dict[str, Replicates]]:
    keys, found = {student.key for student in students}, defaultdict[tuple[str, Means], dict[str, Replicates]](dict)
    for replicates in alone:
        recipe = replicates.recipe
        if (key := _student_key(recipe)) in keys:
            found[key, Means.of(recipe).yardstick][recipe.method] = replicates
    return dict(found)


def _teachers(replicates: Sequence[Replicates]) -> tuple[Teacher, ...]:
    sources: dict[str, Source] = {}
    learned_from: set[str] = set()
    for recipe in (replicate.recipe for replicate in replicates):
        for source in (recipe.adversary, recipe.victim):
            if source is not None:
                sources.setdefault(source.key, source)
                learned_from.add(source.key)
    student_models = {_student_key(replicate.recipe) for replicate in replicates if replicate.recipe.kind == "attack"}
    own = {replicate.recipe.family: replicate for replicate in replicates}
    for family, replicate in own.items():
        alone = replicate.recipe.kind == "reference" and _student_key(replicate.recipe) not in student_models
        if replicate.recipe.kind == "defense" or alone or family in learned_from:
            sources[family] = replicate.recipe
    keys = sorted(sources, key=lambda key: _teacher_order(sources[key]))
    labels = distinguish([_teacher_label(sources[key]) for key in keys], [_details(sources[key]) for key in keys])
    names = [_teacher_name(sources[key]) for key in keys]
    short = [name if names.count(name) == 1 else label for name, label in zip(names, labels, strict=True)]
    return tuple(
        Teacher(key, label, name, sources[key], own.get(key), _twin(sources[key]))
        for key, label, name in zip(keys, labels, short, strict=True)
    )


def _twin(source: Source) -> str | None:
    return source.adversary.key if isinstance(source, Recipe) and source.adversary is not None else None


def _teacher_order(source: Source) -> tuple[str, bool, str, str]:
    """Put a normal teacher first and its defended twins behind it."""
    if isinstance(source, Recipe):
        first = source.adversary if isinstance(source.adversary, Recipe) else source
        return first.model, source.kind == "defense", source.method, source.family
    return source.model, False, "", source.sha256


def _teacher_label(source: Source) -> str:
    if not isinstance(source, Recipe):
        return f"{model_label(source.model)} (weights {source.sha256[:8]})"
    method = "normal" if source.method == "ce" else method_label(source.method)
    return f"{model_label(source.model)}, {method}"


def _teacher_name(source: Source) -> str:
    if not isinstance(source, Recipe):
        return "the given weights"
    return "the normal teacher" if source.method == "ce" else f"the {source.objective.name} teacher"


def _details(source: Source) -> dict[str, Any]:
    dump = source.model_dump(mode="json", exclude={"name", "folder", "device", "tensorboard", "seed"})
    if isinstance(source, Recipe) and source.adversary is not None:
        dump["adversary"] = {"model": source.adversary.model, "key": source.adversary.key[:6]}
    return dump


def _student_key(recipe: Recipe) -> str:
    module = Spec.parse(recipe.model).name.partition(":")[0]  # whose source makes it another net
    code = [each for each in recipe.code if each.partition("=")[0] == module]
    return f"{recipe.model}|{sorted(_protocol(recipe).items())}|{code}"


def _protocol(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", include=set(Training.model_fields) - {"seed"})


def _students(attacks: Sequence[Replicates]) -> tuple[Student, ...]:
    """Return a student for each model and protocol: only the same protocol makes a fair reference."""
    first: dict[str, Run] = {}
    for replicate in attacks:
        first.setdefault(_student_key(replicate.recipe), replicate.runs[0])
    keys = sorted(first, key=lambda key: (first[key].result["parameters"], key))
    recipes = [first[key].recipe for key in keys]
    protocols = [_protocol(recipe) for recipe in recipes]
    labels = distinguish([model_label(recipe.model) for recipe in recipes], protocols)
    names = [label.partition("(")[0].partition(" [")[0] for label in labels]
    short = [name if names.count(name) == 1 else label for name, label in zip(names, labels, strict=True)]
    return tuple(Student(key, label, name) for key, label, name in zip(keys, labels, short, strict=True))


def _extractions(attacks: Sequence[Replicates], teachers: Sequence[Teacher]) -> tuple[Extraction, ...]:
    rows: dict[tuple[str, str, str, str | None, Means], dict[str, Replicates]] = defaultdict(dict)
    for replicate in attacks:
        recipe = replicate.recipe
        if recipe.victim is not None:
            where = recipe.victim.key, recipe.method, recipe.access, recipe.policy, Means.of(recipe)
            rows[where][_student_key(recipe)] = replicate
    order = {teacher.key: i for i, teacher in enumerate(teachers)}
    accesses = defaultdict[str, set[str]](set)
    for _, spec, access, *_ in rows:
        accesses[spec].add(access)
    all_means = {means for *_, means in rows}
    specs = list(dict.fromkeys(spec for _, spec, *_ in rows))
    named = distinguish([method_label(spec) for spec in specs], [build_method(spec).model_dump() for spec in specs])
    labels = dict(zip(specs, named, strict=True))
    extractions = []
    for (victim, spec, access, policy, means), by in rows.items():
        method = build_method(spec)
        expected = _temperatures(teachers[order[victim]], teachers)
        textbook = method.textbook and (not expected or getattr(method, "temperature", None) in expected)
        label = _with(labels[spec], means.among(all_means))
        label += f", victim gives {access}" if len(accesses[spec]) > 1 else ""
        label += "" if policy is None else f", behind {policy}"
        soft = Access.PROBS <= method.access <= Access.LOGITS
        extractions.append(Extraction(victim, spec, label, means, soft, policy, textbook, method.uses_labels, by))
    return tuple(
        sorted(extractions, key=lambda one: (order[one.teacher], one.means.order, not one.textbook, one.label))
    )


def _with(label: str, told: str) -> str:
    """Return a method's label with more in its brackets."""
    if not told:
        return label
    return f"{label[:-1]}; {told})" if label.endswith(")") else f"{label} ({told})"


def _temperatures(teacher: Teacher, teachers: Sequence[Teacher]) -> set[float]:
    """Return the temperatures at which the textbook would distill a teacher: those of its own or its twins' defense."""
    own = [teacher] if teacher.defended else [other for other in teachers if other.twin == teacher.key]
    return {other.temperature for other in own if other.temperature is not None}

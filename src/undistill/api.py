"""The verbs of the command line as functions."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from undistill.data.dataset import Dataset
from undistill.errors import RecipeError
from undistill.identity import Named, digest_of
from undistill.objective import Objective
from undistill.recipe import Recipe, Source, Weights, load_recipe
from undistill.run import Run
from undistill.workspace import Workspace

if TYPE_CHECKING:
    from undistill.orchestrate.reproduce import Reproduction

__all__ = ["attack", "audit", "check_kind", "default_root", "defend", "reproduce", "train"]

Net = str | nn.Module | Named


def default_root() -> Path:
    """Return the folder of runs: ``$UNDISTILL_RUNS``, or ``runs`` in the working directory."""
    return Path(os.environ.get("UNDISTILL_RUNS", "runs"))


def train(
    recipe: str | Path | None = None,
    *,
    data: str | Dataset | None = None,
    model: Net | None = None,
    method: str | Objective | None = None,
    runs: str | Path | None = None,
    progress: bool = True,
    **fields: Any,
) -> Run:
    """Train a net on labels alone: a normal teacher, or a reference student.

    Args:
        recipe: Name of a packaged recipe or path of a YAML file to start from.
        data: Data set spec, path, or a ``Dataset``.
        model: Model spec, or a module, which is copied and trained from the weights that it has. One whose content does
            not tell what it computes is given as ``named(module, key=...)``, here and wherever a module is taken.
        method: ``"ce"`` (default) or ``"label_smoothing(smoothing=0.1)"``.
        runs: Folder of all runs; default ``default_root()``.
        progress: Show how training goes, and say so where a net collapses, on standard error.
        fields: Other fields of ``Recipe``: ``epochs``, ``seed``, ``lr``, …

    Returns:
        The finished run. The same recipe never trains twice: a second call reads the result.

    Raises:
        RecipeError: With every problem of the recipe.
        DataError, DivergenceError, InterruptedRunError, RunError: See ``Workspace.run``.
    """
    return _carry_out("reference", "ce", recipe, data, model, method, runs, progress, fields)


def defend(
    recipe: str | Path | None = None,
    *,
    data: str | Dataset | None = None,
    model: Net | None = None,
    method: str | Objective | None = None,
    adversary: str | Run | Recipe | nn.Module | Named | None = None,
    runs: str | Path | None = None,
    progress: bool = True,
    **fields: Any,
) -> Run:
    """Train a defended teacher.

    Args:
        recipe: Name of a packaged recipe or path of a YAML file to start from.
        data: Data set spec, path, or a ``Dataset``.
        model: Model spec, or a module, which is copied.
        method: ``"nasty"`` (default), e.g. ``"nasty(temperature=4, weight=0.04)"``.
        adversary: The normally trained twin: a run, a recipe or a module. By default the same net is trained on
            labels first.
        runs: Folder of all runs; default ``default_root()``.
        progress: Show how training goes, and say so where a net collapses, on standard error.
        fields: Other fields of ``Recipe``.

    Returns:
        The finished run.

    Raises:
        RecipeError: With every problem of the recipe.
    """
    return _carry_out("defense", "nasty", recipe, data, model, method, runs, progress, fields, adversary=adversary)


def attack(
    recipe: str | Path | None = None,
    *,
    victim: str | Run | Recipe | nn.Module | Named | None = None,
    data: str | Dataset | None = None,
    model: Net | None = None,
    method: str | Objective | None = None,
    runs: str | Path | None = None,
    progress: bool = True,
    **fields: Any,
) -> Run:
    """Train a student on a victim's answers.

    Args:
        recipe: Name of a packaged recipe or path of a YAML file to start from.
        victim: A run, a recipe, the path of either, or a module.
        data: Data set spec, path, or a ``Dataset``; default: what the victim was trained on.
        model: The student: model spec, or a module, which is copied.
        method: ``"kd"`` (default), e.g. ``"kd(temperature=4, alpha=0.9)"`` or ``"hard_label"``.
        runs: Folder of all runs; default ``default_root()``.
        progress: Show how training goes, and say so where a net collapses, on standard error.
        fields: Other fields of ``Recipe``, ``access`` (what the victim gives away) among them.

    Returns:
        The finished run.

    Raises:
        AccessError: The attack needs more than the victim gives.
        RecipeError: With every problem of the recipe.
    """
    return _carry_out("attack", "kd", recipe, data, model, method, runs, progress, fields, victim=victim)


def audit(
    victim: str | Path | Mapping[str, Any],
    *,
    student: Mapping[str, Any] | None = None,
    suite: str = "standard",
    minutes: float | None = None,
    seeds: int | None = None,
    trials: int | None = None,
    access: str = "probs",
    insider: float = 0.1,
    queries: int = 1000,
    surrogate: str | None = None,
    attacks: Sequence[str] | None = None,
    policies: Sequence[str] = (),
    margin: float = 1.0,
    out: str | Path = "undistill-audit",
    jobs: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Reproduction:
    """Say what a classifier's answers give away, to whom, and at what price.

    Args:
        victim: Its run folder or recipe, or ``{"checkpoint": FILE, "model": SPEC}``.
        student: Fields of the students' recipes, such as ``model`` and ``epochs``; by default the victim's own.
        suite: How much is tried: ``quick``, ``standard`` or ``full``.
        minutes: Leave out the thieves that are not expected to fit into so many; the page says which.
        seeds: Of the numbers, 2 or more; by default the suite's.
        trials: Settings that are tried of each thief and reference; by default the suite's.
        access: The most that the victim gives away: ``labels``, ``probs`` or ``logits``.
        insider: Share of the training images that an insider has with their labels; 0 for no insider.
        queries: Images that a customer, who has no label, and a stranger ask about; 0 for neither.
        surrogate: Data set spec of the stranger's images; None for no stranger.
        attacks: Names or specs of attacks, in place of the suite's.
        policies: Output defenses whose effect is measured besides.
        margin: Points that gains must surely stay below for the victim to be called undistillable.
        out: Folder of the runs and of what comes out.
        jobs: Runs at a time; default: one on CUDA, one a core on CPU.
        device: Overrides the recipes' device.
        progress: Show on standard error how far it is.

    Returns:
        What came out; its document's part of kind ``audit`` holds the judgement.

    Raises:
        DataError: A data set is missing; before anything is trained.
        InterruptedRunError: Ctrl-C; the same call goes on.
        RecipeError: With the problem of the request, or not even one thief fits into the minutes.
        RunError: Another process works in ``out``, or a file cannot be written.
    """
    from undistill.orchestrate.afford import afford
    from undistill.orchestrate.progress import make_observer
    from undistill.orchestrate.reproduce import reproduce as carry_out
    from undistill.orchestrate.request import Request
    from undistill.studies.suite import suite_of

    given = {
        "student": dict(student or {}),
        "suite": suite,
        "trials": trials,
        "access": access,
        "insider": insider,
        "queries": queries,
        "surrogate": surrogate,
        "attacks": attacks,
        "policies": list(policies),
        "margin": margin,
    }
    usual = {"student": {}, "suite": "standard", "access": "probs", "insider": 0.1, "queries": 1000, "margin": 1.0}
    said = {name: value for name, value in given.items() if value not in (None, [], usual.get(name))}
    request = Request("audit", suite_of(suite).seeds if seeds is None else seeds, parameters={"victim": victim, **said})
    if minutes is not None:
        request = afford(request, Path(out), minutes, jobs=jobs, device=device)
    return carry_out(
        request, Path(out), jobs=jobs, device=device, observe=lambda total: make_observer(total, quiet=not progress)
    )


def reproduce(
    study: str,
    *,
    out: str | Path = "undistill-studies",
    seeds: int = 1,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    smoke: bool = False,
    data: Mapping[str, str] | None = None,
    epochs: int | None = None,
    width: float | None = None,
    models: Mapping[str, str] | None = None,
    profile: Literal["exact", "fast", "turbo"] = "exact",
    jobs: int | None = None,
    device: str | None = None,
    executor: Literal["local", "ray", "slurm"] = "local",
    executor_options: Mapping[str, str] | None = None,
    address: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Reproduction:
    """Run a table or figure of the paper, or all, and write the paper's numbers beside ours.

    What is there already is not trained again: the same call goes on after Ctrl-C.

    Args:
        study: One of ``list_studies()``, or ``"all"``.
        out: Folder of the runs, which all studies in it share, and of what comes out.
        seeds: Repetitions, 1 or more.
        only: Rows, panels, lines or studies to run; all if empty.
        skip: Those to leave out.
        smoke: Tiny nets, data and epochs: shows that all of it works, and nothing else.
        data: Data set specs that replace data sets of the paper, by name; labels the study as reduced.
        epochs: Of every run; labels the study as reduced.
        width: Factor on the channels of every net; labels the study as reduced.
        models: Model specs that replace nets of the paper, by name; labels the study as reduced.
        profile: Of every run; ``turbo`` is another protocol, and labels the study so.
        jobs: Runs at a time; default: one on CUDA, one a core on CPU.
        device: Overrides the recipes' device.
        executor: Where the runs are carried out.
        executor_options: What that executor takes besides.
        address: Of the Ray cluster.
        parameters: Of the study, by name: numbers, text, paths, and lists or mappings of them.
        progress: Show on standard error how far it is.

    Returns:
        What came out, and its folder. A run that failed is a number that is missing.

    Raises:
        DataError: A data set is missing; before anything is trained.
        InterruptedRunError: Ctrl-C.
        RecipeError: With every problem of the request.
        RunError: Another process works in ``out``, a file cannot be written, or the cluster cannot be reached.
    """
    from undistill.orchestrate.progress import make_observer
    from undistill.orchestrate.reproduce import reproduce as carry_out
    from undistill.orchestrate.request import Request
    from undistill.studies.changes import Changes

    changes = Changes(smoke, dict(data or {}) or None, epochs, width, dict(models or {}) or None, profile)
    return carry_out(
        Request(study, seeds, tuple(only), tuple(skip), changes, parameters or {}),
        Path(out),
        jobs=jobs,
        device=device,
        executor=executor,
        executor_options=executor_options,
        address=address,
        observe=lambda total: make_observer(total, quiet=not progress),
    )


def _carry_out(
    kind: str,
    default: str,
    recipe: str | Path | None,
    data: str | Dataset | None,
    model: Net | None,
    method: str | Objective | None,
    runs: str | Path | None,
    progress: bool,
    fields: dict[str, Any],
    **sources: str | Run | Recipe | nn.Module | Named | None,
) -> Run:
    instances: dict[str, Any] = {}
    given: dict[str, Any] = dict(fields)
    if data is not None:
        given["data"] = str(data) if isinstance(data, str | Path) else _register(data, _data_digest(data), instances)
    if model is not None:
        given["model"] = _spec(model, instances)
    if method is not None:
        given["method"] = method.spec if isinstance(method, Objective) else method
    elif recipe is None:
        given["method"] = default
    for key, source in sources.items():
        if source is not None:
            given[key] = _source(source, instances)
    resolved = load_recipe(recipe, **given)
    check_kind(resolved, kind)
    root = Path(runs) if runs is not None else default_root()
    workspace = Workspace(root, instances=instances)
    if progress:
        from undistill.console import watch

        workspace = replace(workspace, watch=watch)
    return workspace.run(resolved)


def check_kind(recipe: Recipe, kind: str) -> None:
    """Refuse a recipe whose method belongs to another verb.

    Raises:
        RecipeError: It names the verb to use.
    """
    verbs = {"reference": "train", "defense": "defend", "attack": "attack"}
    nouns = {"reference": "a reference", "defense": "a defense", "attack": "an attack"}
    if recipe.kind != kind:
        name = recipe.objective.name
        raise RecipeError(f"method: {name!r} is {nouns[recipe.kind]}, not {nouns[kind]}; use `{verbs[recipe.kind]}`")


def _spec(model: Net, instances: dict[str, Any]) -> str:
    if isinstance(model, str):
        return model
    return _register(model.module if isinstance(model, Named) else model, digest_of(model), instances)


def _source(source: str | Run | Recipe | nn.Module | Named, instances: dict[str, Any]) -> str | Source:
    if isinstance(source, Run):
        instances.update(source.instances)
        return source.recipe.model_copy(update={"folder": str(source.folder)})
    if isinstance(source, nn.Module | Named):
        return Weights(model=_spec(source, instances), sha256=digest_of(source))
    return source


def _register(instance: object, digest: str, instances: dict[str, Any]) -> str:
    kind = type(instance)
    spec = f"instance(type={f'{kind.__module__}.{kind.__qualname__}'!r}, sha256={digest[:16]!r})"
    instances[spec] = instance
    return spec


def _data_digest(data: Dataset) -> str:
    """Return a checksum of everything in a data set that a run depends on."""
    return sha256(repr((data.fingerprint, data.classes, data.mean, data.std, data.augment)).encode()).hexdigest()

"""Non-transferable learning on digits: which domains a net works on, trained as usual, closed to one, closed to all.

References:
    Wang et al., "Non-Transferable Learning: A New Approach for Model Ownership Verification and Applicability
    Authorization", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undistill._version import __version__
from undistill.data import load_dataset, parse_dataset_spec
from undistill.engine.device import exact_arithmetic, pick_device
from undistill.engine.evaluate import evaluate, predict
from undistill.functional import mean_interval
from undistill.recipe import Recipe, load_recipe, make_recipe
from undistill.registry import Spec
from undistill.reporting.cell import Cell
from undistill.reporting.parts import Part
from undistill.reporting.parts.table import Column, Row, Table
from undistill.run import Failure, Run
from undistill.storage import remember
from undistill.studies.cells import against, chance_seeds, common, make_cell
from undistill.studies.changes import Changes, adapt
from undistill.studies.study import STUDIES, Keep, Study
from undistill.workspace import Workspace

__all__ = ["LABELS", "DomainNet", "NTLStudy", "domain_cell", "domains", "make_table", "measure", "recipe_of"]

_FORMAT = {"image_size": 28, "channels": 3}
_DOMAINS = {
    "mnist": {"subset": 20_000, "test_subset": 2_000},
    "usps": {},
    "mnist_m": {},
}
LABELS = {"mnist": "MNIST", "usps": "USPS", "mnist_m": "MNIST-M"}
_DIGITS = "digits(subset=100, test_subset=50)"
_SMOKE = {
    "mnist": "digits(channels=1, image_size=8, subset=100, test_subset=50)",
    "usps": f"negative(channels=1, image_size=8, of={_DIGITS!r})",
    "mnist_m": f"patched(channels=1, image_size=8, level=255, of={_DIGITS!r}, patch='corner')",
}


@dataclass(frozen=True)
class DomainNet:
    """A row of the table: a net of one domain, or the student of one.

    Attributes:
        name: ``"mnist-supervised"``, ``"mnist-to-usps"``, ``"mnist-source-only"``.
        label: As it is shown.
        source: Name of the domain that it is to work on.
        closed: Name of the domain that it is closed to; None for none, or for all others.
        recipes: One a seed.
    """

    name: str
    label: str
    source: str
    closed: str | None
    recipes: tuple[Recipe, ...]


@dataclass(frozen=True)
class NTLStudy(Study):
    """A table of nets against domains.

    Attributes:
        domains: Spec of each domain by its name.
        nets: Rows; of a source the one that is trained as usual comes first.
    """

    domains: Mapping[str, str]
    nets: tuple[DomainNet, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the sources and of the rows."""
        return tuple(dict.fromkeys(name for net in self.nets for name in (net.source, net.name)))

    @property
    def recipes(self) -> Iterator[Recipe]:
        """The recipes of all rows."""
        for net in self.nets:
            yield from net.recipes

    @property
    def data(self) -> Iterator[str]:
        """All domains: each net is measured on each."""
        yield from self.domains.values()

    def pick(self, keep: Keep) -> NTLStudy | None:
        """Return the table with the sources or rows that were asked for, None if there are none."""
        nets = tuple(net for net in self.nets if keep(self.name, net.source, net.name))
        return replace(self, nets=nets) if nets else None

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        """Return a part of kind ``table``: a row a net, a column a domain; the differences are to the usual net."""
        cells = {
            (net.name, domain): domain_cell(net.recipes, spec, workspace, failures, cache)
            for net in self.nets
            for domain, spec in self.domains.items()
        }
        usual = {net.source: net.name for net in reversed(self.nets) if net.name.endswith("-supervised")}
        for net in self.nets:
            for domain in self.domains:
                reference = usual.get(net.source)
                if reference is not None and reference != net.name:
                    cells[net.name, domain] = against(cells[net.name, domain], cells[reference, domain])
        labels = {net.name: net.label for net in self.nets}
        named = [(f"{labels[name]}, on {_label(domain)}", cell) for (name, domain), cell in cells.items()]
        notes = (
            "Test accuracy in percent on each domain. In brackets: the difference, in points, to the net of the same "
            "source that was trained as usual.",
            "The paper's nets start from ImageNet weights, ours do not: its numbers are not put beside these.",
        )
        return Table.make(
            **common(self, named, notes),
            columns=tuple(Column(name=name, label=f"on {_label(name)}", data="domains") for name in self.domains),
            rows=tuple(
                Row(name=net.name, label=net.label, cells={domain: cells[net.name, domain] for domain in self.domains})
                for net in self.nets
            ),
        )


def domain_cell(
    recipes: Sequence[Recipe], domain: str, workspace: Workspace, failures: Mapping[str, Failure], cache: Path
) -> Cell:
    """Return what nets say on the test set of a domain, which need not be the one that they were trained on.

    Args:
        recipes: One a seed.
        domain: Spec of the domain.
        workspace: Where their runs are.
        failures: Why runs have no result, by hash.
        cache: Folder for what was measured before.
    """
    cell = make_cell(recipes, workspace, failures)
    runs = {str(recipe.seed): run for recipe in recipes if (run := workspace.find(recipe)) is not None}
    if not runs:
        return cell
    values = {seed: measure(run, domain, workspace, cache) for seed, run in runs.items()}
    accuracies = {seed: value["accuracy"] for seed, value in values.items()}
    found, data = mean_interval(accuracies.values()), load_dataset(domain)
    return cell.model_copy(
        update={
            "values": accuracies,
            "mean": found.mean,
            "half_width": found.half_width,
            "collapsed_seeds": tuple(int(seed) for seed, value in values.items() if value["collapsed"]),
            "images": len(data.test),
            "chance_seeds": chance_seeds(accuracies, len(data.test), data.num_classes),
        }
    )


def measure(run: Run, domain: str, workspace: Workspace, cache: Path) -> dict[str, Any]:
    """Return ``accuracy``, in percent, and ``collapsed`` of a run's net on the test set of a domain.

    Args:
        run: Finished.
        domain: Spec of the domain; its images are normalized as those of the run.
        workspace: Of the run.
        cache: Folder for what was measured before.
    """
    data = load_dataset(domain)
    device = pick_device(workspace.device or run.recipe.device)
    key = {
        "undistill": __version__,
        "weights": run.result["weights_sha256"],
        "data": data.fingerprint,
        "device": device.type,
    }

    def ask() -> dict[str, Any]:
        own = run.dataset()
        with exact_arithmetic(device):
            net = run.load_model().to(device)
            logits = predict(net, data.test, mean=own.mean, std=own.std, device=device)
        found = evaluate(logits, data.test.y)
        return {"accuracy": found.accuracy, "collapsed": found.collapsed}

    return remember(cache, "ntl", key, ask)


def domains(changes: Changes) -> dict[str, str]:
    """Return the spec of each domain: of one size and with as many channels."""
    if changes.smoke:
        return dict(_SMOKE)
    found = {}
    for name, size in _DOMAINS.items():
        given = (changes.data or {}).get(name)
        spec = Spec(name, size) if given is None else parse_dataset_spec(given)
        found[name] = str(Spec(spec.name, {**_FORMAT, **spec.kwargs}))
    return found


def recipe_of(name: str, data: str, seed: int, changes: Changes, **fields: Any) -> Recipe:
    """Return a packaged recipe of ``ntl/`` for a domain, with the changes of a study made in it.

    Args:
        name: ``supervised``, ``target``, ``source`` or ``finetune``.
        data: Spec of the source.
        seed: Of the run.
        changes: Of the study; the data are already those that it asks for.
        fields: To change in the recipe.
    """
    if changes.smoke:
        small = {"model": "cnn(channels=4)", "epochs": 2, "batch_size": 25, "name": f"smoke-ntl-{name}"}
        return load_recipe(f"ntl/{name}", [], data=data, seed=seed, **small, **fields)
    recipe = load_recipe(f"ntl/{name}", [], data=data, seed=seed, name=f"ntl-{name}", **fields)
    plain = replace(changes, data=None)
    if plain.label == "paper":
        return recipe
    # What is nested was adapted when it was made.
    return make_recipe({**_fields(adapt(recipe, plain)), "victim": recipe.victim})


def make_table(*, seeds: int, changes: Changes) -> NTLStudy:
    """Return the table: every source, trained as usual, closed to each other domain, and closed to all of them."""
    specs = domains(changes)
    nets = tuple(net for source in specs for net in _nets(source, specs, seeds, changes))
    return NTLStudy("ntl", "Accuracy on each domain of nets that are to work on one", seeds, changes, specs, nets)


def _nets(source: str, specs: Mapping[str, str], seeds: int, changes: Changes) -> Iterator[DomainNet]:
    shown, data = _label(source), specs[source]
    smoke = {"method": "ntl(warmup=4, directions=1)"} if changes.smoke else {}

    def net(name: str, label: str, kind: str, closed: str | None = None, **fields: Any) -> DomainNet:
        recipes = tuple(recipe_of(kind, data, seed, changes, **fields) for seed in range(seeds))
        return DomainNet(f"{source}-{name}", f"{shown}, {label}", source, closed, recipes)

    yield net("supervised", "as usual", "supervised")
    for target in specs:
        if target != source:
            yield net(
                f"to-{target}", f"closed to {_label(target)}", "target", target, targets=(specs[target],), **smoke
            )
    yield net("source-only", "closed to all others", "source", **smoke)


STUDIES.register("ntl")(make_table)


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {key: getattr(recipe, key) for key in Recipe.model_fields}


def _label(domain: str) -> str:
    return LABELS.get(domain, domain)

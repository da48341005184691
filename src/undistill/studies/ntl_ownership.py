"""Whose net is it? What tells an owner, a trigger patch, and whether it still does after the net was fine-tuned.

References:
    Wang et al., "Non-Transferable Learning: A New Approach for Model Ownership Verification and Applicability
    Authorization", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undistill.recipe import Recipe
from undistill.registry import Spec
from undistill.reporting.parts import Part
from undistill.reporting.parts.table import Column, Row, Table
from undistill.run import Failure
from undistill.studies.cells import against, common
from undistill.studies.changes import Changes
from undistill.studies.ntl import LABELS, domain_cell, domains, recipe_of
from undistill.studies.ntl_removal import SMOKE_SHARES, SOURCE, TUNED, share_of
from undistill.studies.study import STUDIES, Keep, Study
from undistill.workspace import Workspace

__all__ = ["GAP", "OwnershipStudy", "Suspect", "ntl_ownership"]

GAP = 20.0
"""Points that the patch must cost a net for its owner to claim it."""

_SHARES = (0.01, 0.1)


@dataclass(frozen=True)
class Suspect:
    """A net that an owner may claim.

    Attributes:
        name: ``"marked"``, ``"marked-last-0.05"``.
        label: As it is shown.
        marked: Whether it comes from the owner's net.
        recipes: One a seed.
    """

    name: str
    label: str
    marked: bool
    recipes: tuple[Recipe, ...]


@dataclass(frozen=True)
class OwnershipStudy(Study):
    """Nets on images without and with the owner's patch.

    Attributes:
        clean: Spec of the domain.
        patched: Spec of the domain with the patch on every image.
        suspects: Rows.
    """

    clean: str
    patched: str
    suspects: tuple[Suspect, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the nets."""
        return tuple(suspect.name for suspect in self.suspects)

    @property
    def recipes(self) -> Iterator[Recipe]:
        """The recipes of all nets."""
        for suspect in self.suspects:
            yield from suspect.recipes

    def pick(self, keep: Keep) -> OwnershipStudy | None:
        """Return the study with the nets that were asked for, None if there are none."""
        suspects = tuple(suspect for suspect in self.suspects if keep(self.name, suspect.name))
        return replace(self, suspects=suspects) if suspects else None

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Part:
        """Return a part of kind ``table``: a row a net, with ``gaps`` in points and whether it ``shows``, by seed."""
        rows = []
        for suspect in self.suspects:
            clean, patched = (
                domain_cell(suspect.recipes, spec, workspace, failures, cache) for spec in (self.clean, self.patched)
            )
            gaps = {seed: round(value - patched.values[seed], 4) for seed, value in clean.values.items()}
            rows.append(
                Row(
                    name=suspect.name,
                    label=suspect.label,
                    marked=suspect.marked,
                    cells={"clean": clean, "patched": against(patched, clean)},
                    gaps=gaps,
                    shows={seed: gap >= GAP for seed, gap in gaps.items()},
                )
            )
        named = [(f"{row.label}, {column}", cell) for row in rows for column, cell in row.cells.items()]
        notes = (
            "Test accuracy in percent. In brackets: the difference that the patch makes, in points.",
            *_verdicts(rows),
        )
        return Table.make(
            **common(self, named, notes),
            columns=(
                Column(name="clean", label="without the patch", data="mnist"),
                Column(name="patched", label="with the patch", data="mnist"),
            ),
            rows=tuple(rows),
        )


def _verdicts(rows: list[Row]) -> Iterator[str]:
    """Yield where ownership shows: of the owner's nets in how many seeds, of all others the widest gap."""
    yield f"Ownership shows where the patch costs a net {GAP:g} points or more."
    for row in rows:
        if row.marked and row.shows:
            yield f"{row.label}: it shows in {sum(row.shows.values())} of {len(row.shows)} seeds."
    others = [gap for row in rows if not row.marked for gap in (row.gaps or {}).values()]
    if others:
        yield f"The patch costs a net that is not the owner's at most {max(others):.2f} points, fine-tuned or not."


@STUDIES.register("ntl_ownership")
def ntl_ownership(*, seeds: int, changes: Changes) -> OwnershipStudy:
    """Return nets with and without the owner's mark, as they are and fine-tuned on shares of the domain."""
    clean = domains(changes)[SOURCE]
    patched = str(Spec("patched", {"of": clean}))
    shares = SMOKE_SHARES if changes.smoke else _SHARES
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "usual": ("Usual net", "supervised", {}),
        "marked": ("Net with the mark", "patch", {"targets": (patched,)}),
    }

    def suspects() -> Iterator[Suspect]:
        for kind, (label, name, fields) in kinds.items():
            nets = tuple(recipe_of(name, clean, seed, changes, **fields) for seed in range(seeds))
            marked = kind == "marked"
            yield Suspect(kind, label, marked, nets)
            for layers, tuned in TUNED.items():
                for share in shares:
                    recipes = tuple(
                        recipe_of(
                            "finetune",
                            share_of(clean, share),
                            net.seed,
                            changes,
                            victim=net,
                            method={"name": "finetune", "layers": layers},
                        )
                        for net in nets
                    )
                    shown = f"{label}, fine-tuned on {100 * share:g} %, {tuned}"
                    yield Suspect(f"{kind}-{layers}-{share:g}", shown, marked, recipes)

    title = f"Whose net of {LABELS[SOURCE]} is it? What the owner's patch says after fine-tuning"
    return OwnershipStudy("ntl_ownership", title, seeds, changes, clean, patched, tuple(suspects()))

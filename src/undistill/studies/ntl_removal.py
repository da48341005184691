"""What little data does to a net that is closed to a domain: fine-tuning there, and students distilled from it.

References:
    Wang et al., "Non-Transferable Learning: A New Approach for Model Ownership Verification and Applicability
    Authorization", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from undistill.recipe import Recipe
from undistill.registry import Spec
from undistill.studies.changes import Changes
from undistill.studies.curves import CurveStudy, Line, Panel, Point, Reference
from undistill.studies.ntl import LABELS, domains, recipe_of
from undistill.studies.study import STUDIES

__all__ = ["ntl_removal"]

SOURCE, CLOSED = "mnist", "mnist_m"
SHARES = (0.01, 0.05, 0.1)
_SMOKE_SHARES = (0.2, 0.5)
_TUNED = {"all": "all layers", "last": "last layer", "reinit_last": "all layers, last one new"}


@STUDIES.register("ntl_removal")
def ntl_removal(*, seeds: int, changes: Changes) -> CurveStudy:
    """Return accuracies over the share of data: on the domain that a net is closed to, and on its own."""
    specs = domains(changes)
    shares = _SMOKE_SHARES if changes.smoke else SHARES

    def victim(kind: str, seed: int) -> Recipe:
        closed = {"targets": (specs[CLOSED],)} if kind == "target" else {}
        return recipe_of(kind, specs[SOURCE], seed, changes, **closed)

    def usual(domain: str) -> Reference:
        nets = tuple(recipe_of("supervised", specs[domain], seed, changes) for seed in range(seeds))
        return Reference(domain, "trained as usual on all of it", Point(None, nets))

    def stolen(name: str, domain: str, kind: str, **fields: Any) -> tuple[Point, ...]:
        def recipes(share: float) -> Iterator[Recipe]:
            for seed in range(seeds):
                yield recipe_of(name, _part(specs[domain], share), seed, changes, victim=victim(kind, seed), **fields)

        return tuple(Point(share, tuple(recipes(share)), reference=usual(domain).point) for share in shares)

    there = tuple(
        Line(
            f"{layers}-nasty",
            f"fine-tuned, {label}",
            "nasty",
            stolen("finetune", CLOSED, "target", method={"name": "finetune", "layers": layers}),
            usual(CLOSED) if layers == "all" else None,
        )
        for layers, label in _TUNED.items()
    )
    there += (
        Line("all-normal", "usual net fine-tuned, all layers", "normal", stolen("finetune", CLOSED, "supervised")),
        Line("kd-nasty", "student of the closed net", "nasty", stolen("kd", CLOSED, "target")),
    )
    here = (
        Line("kd-nasty", "student of the closed net", "nasty", stolen("kd", SOURCE, "target"), usual(SOURCE)),
        Line("kd-normal", "student of the usual net", "normal", stolen("kd", SOURCE, "supervised")),
    )
    return CurveStudy(
        "ntl_removal",
        f"Nets of {LABELS[SOURCE]} closed to {LABELS[CLOSED]}, and what a share of either domain does to them",
        seeds,
        changes,
        "Share of the training images",
        "log",
        (
            Panel("closed", f"On {LABELS[CLOSED]}, which the net is closed to", there),
            Panel("own", f"On {LABELS[SOURCE]}, the net's own domain", here),
        ),
        (
            "Accuracy on the test set of the domain that the thief has images of. Fine-tuning starts from the weights, "
            "a student learns from logits and labels.",
            "In brackets: the difference, in points, to a net that is trained as usual on all images of that domain.",
        ),
    )


def _part(spec: str, share: float) -> str:
    """Return a share of a domain, of the part that is asked for where it is a part already."""
    parsed = Spec.parse(spec)
    size = parsed.kwargs.get("subset")
    part = share if size is None else round(share * size) if isinstance(size, int) else share * size
    return str(Spec(parsed.name, {**parsed.kwargs, "subset": part}))

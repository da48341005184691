"""What little data does to a net that is closed to a domain: fine-tuning there, and students distilled from it.

References:
    Wang et al., "Non-Transferable Learning: A New Approach for Model Ownership Verification and Applicability
    Authorization", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from undistill.recipe import Recipe
from undistill.registry import Spec
from undistill.studies.changes import Changes
from undistill.studies.curves import CurveStudy, Line, Panel, Point, Reference
from undistill.studies.ntl import LABELS, domains, recipe_of
from undistill.studies.study import STUDIES

__all__ = ["SMOKE_SHARES", "SOURCE", "TUNED", "ntl_removal", "share_of"]

SOURCE, CLOSED = "mnist", "mnist_m"
_SHARES = (0.01, 0.05, 0.1)
SMOKE_SHARES = (0.2, 0.5)
TUNED = {"all": "all layers", "last": "last layer", "reinit_last": "all layers, last one new"}


@STUDIES.register("ntl_removal")
def ntl_removal(*, seeds: int, changes: Changes) -> CurveStudy:
    """Return accuracies over the share of data: on the domain that a net is closed to, and on its own."""
    specs = domains(changes)
    shares = SMOKE_SHARES if changes.smoke else _SHARES

    def victim(kind: str, seed: int) -> Recipe:
        closed = {"targets": (specs[CLOSED],)} if kind == "target" else {}
        return recipe_of(kind, specs[SOURCE], seed, changes, **closed)

    def usual(domain: str) -> Reference:
        nets = tuple(recipe_of("supervised", specs[domain], seed, changes) for seed in range(seeds))
        return Reference(domain, "trained as usual on all of it", Point(None, nets))

    def points(domain: str, recipe: Callable[[str, int], Recipe]) -> tuple[Point, ...]:
        def recipes(share: float) -> tuple[Recipe, ...]:
            return tuple(recipe(share_of(specs[domain], share), seed) for seed in range(seeds))

        return tuple(Point(share, recipes(share), reference=usual(domain).point) for share in shares)

    def stolen(name: str, domain: str, kind: str, **fields: Any) -> tuple[Point, ...]:
        return points(
            domain, lambda data, seed: recipe_of(name, data, seed, changes, victim=victim(kind, seed), **fields)
        )

    def students(domain: str) -> Iterator[Line]:
        """Yield what the library's attacks get out of the closed net, beside the usual net and no teacher at all."""
        reference = usual(domain) if domain == SOURCE else None
        yield Line("kd-nasty", "student of the closed net", "nasty", stolen("kd", domain, "target"), reference)
        classes = stolen("kd", domain, "target", method="hard_label", access="labels")
        yield Line("hard_label-nasty", "student of the closed net's classes", "nasty", classes)
        yield Line("kd-normal", "student of the usual net", "normal", stolen("kd", domain, "supervised"))
        alone = points(domain, lambda data, seed: recipe_of("student", data, seed, changes))
        yield Line("kd-alone", "student without a teacher", None, alone)

    tuned = (
        Line(
            f"{layers}-nasty",
            f"fine-tuned, {label}",
            "nasty",
            stolen("finetune", CLOSED, "target", method={"name": "finetune", "layers": layers}),
            usual(CLOSED) if layers == "all" else None,
        )
        for layers, label in TUNED.items()
    )
    again = Line("all-normal", "usual net fine-tuned, all layers", "normal", stolen("finetune", CLOSED, "supervised"))
    there, here = (*tuned, again, *students(CLOSED)), tuple(students(SOURCE))
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
            "a student learns from logits and labels, or from the class that the net names and nothing else.",
            "In brackets: the difference, in points, to a net that is trained as usual on all images of that domain.",
        ),
    )


def share_of(spec: str, share: float) -> str:
    """Return a share of a domain, of the part that is asked for where it is a part already."""
    parsed = Spec.parse(spec)
    size = parsed.kwargs.get("subset")
    part = share if size is None else round(share * size) if isinstance(size, int) else share * size
    return str(Spec(parsed.name, {**parsed.kwargs, "subset": part}))

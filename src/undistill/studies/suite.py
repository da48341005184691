"""Who may steal, with what, and which thieves an audit sends: three persons, and suites of every attack that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from undistill.attacks import ATTACKS
from undistill.data import dataset_shape
from undistill.data.dataset import Shape
from undistill.errors import RecipeError, UnknownNameError
from undistill.registry import Spec
from undistill.victim import Access

__all__ = ["ALONE", "NAMED", "SUITES", "Persona", "Suite", "on_named_class", "personas", "suite_of", "thieves"]

NAMED = "hard_label"
"""Who learns from the named class alone: a thief, and what soft answers have to beat where there are no labels."""

ALONE = ("ce", "label_smoothing")
"""Who learns from labels, without any victim."""


@dataclass(frozen=True)
class Suite:
    """How much an audit tries.

    Attributes:
        thieves: Names of attacks; None for every one that fits.
        trials: Settings of each, the published one among them.
        seeds: Of the numbers.
    """

    thieves: tuple[str, ...] | None
    trials: int
    seeds: int


SUITES: Mapping[str, Suite] = {
    "quick": Suite(("kd", "htc", "dist"), 4, 3),
    "standard": Suite(None, 8, 5),
    "full": Suite(None, 32, 10),
}


def on_named_class(method: str) -> str:
    """Return what a thief is called who learns in the same way from the class that the victim names alone."""
    return f"{method} on the named class"


def suite_of(name: str) -> Suite:
    """Return the suite of a name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in SUITES:
        raise UnknownNameError("suite", name, SUITES)
    return SUITES[name]


@dataclass(frozen=True)
class Persona:
    """Somebody who would steal, and what is assumed to be in their hands.

    Attributes:
        name: ``insider``, ``customer`` or ``stranger``.
        about: What they have, in words.
        fields: Of a thief's recipe.
        alone: Of the recipe of a student without any victim who has the same labels; None for who has no label.
    """

    name: Literal["insider", "customer", "stranger"]
    about: str
    fields: Mapping[str, Any]
    alone: Mapping[str, Any] | None

    @property
    def references(self) -> tuple[str, ...]:
        """What soft answers have to beat, besides each thief's own way to learn from the named class."""
        return (NAMED,) if self.alone is None else ALONE


def personas(shape: Shape, *, insider: float, queries: int, surrogate: str | None) -> tuple[Persona, ...]:
    """Return who may steal from a victim.

    Args:
        shape: Of the victim's data set.
        insider: Share of its training images that the insider has, with their labels; 0 for no insider.
        queries: Images that customer and stranger ask about; 0 for no such persons.
        surrogate: Data set spec of the stranger's images; None for no stranger.

    Raises:
        RecipeError: A share or a number is out of range, or nobody is left.
        DataError: The stranger's images are not there.
    """
    if not 0 <= insider <= 1:
        raise RecipeError(f"insider: expected a share of the training images, 0 to 1, got {insider}")
    if isinstance(queries, bool) or not isinstance(queries, int) or queries < 0:
        raise RecipeError(f"queries: expected a whole number of 0 or more, got {queries}")
    found = []
    labels = round(insider * shape.train)
    if labels and labels < 2 * shape.num_classes:
        raise RecipeError(
            f"insider={insider:g} is {labels} of {shape.train:,} images, too few for {shape.num_classes} classes; "
            f"raise it to {2 * shape.num_classes / shape.train:.3g} or more, or set insider=0"
        )
    if labels:
        about = f"{labels:,} of the owner's {shape.train:,} training images with their labels, and soft answers to them"
        found.append(Persona("insider", about, {"labels": labels, "queries": labels}, {"labels": labels}))
    asked = min(queries, shape.train)
    if asked:
        about = f"{asked:,} of the owner's {shape.train:,} training images without their labels, each asked about once"
        found.append(Persona("customer", about, {"labels": False, "queries": asked}, None))
    if surrogate is not None:
        other = min(queries, dataset_shape(surrogate).train)
        if not other:
            raise RecipeError("queries=0 leaves a stranger nothing to ask; raise it, or leave out surrogate")
        about = f"{other:,} images of {surrogate} without labels, each asked about once"
        fields = {"labels": False, "queries": other, "transfer": surrogate}
        found.append(Persona("stranger", about, fields, None))
    if not found:
        raise RecipeError("insider=0 and queries=0 leave nobody who could steal; raise one of them")
    return tuple(found)


def thieves(persona: Persona, asked: Sequence[str] | None, access: Access) -> tuple[str, ...]:
    """Return the attacks, by name or spec, that learn from soft answers with what a person has.

    Args:
        persona: Who steals.
        asked: Names or specs; None for every attack that there is.
        access: The most that the victim gives away.

    Raises:
        RecipeError: One that was asked for does not learn from soft answers about images, or needs more access.
        UnknownNameError: There is no such attack.
    """
    for spec in asked or ():
        name = Spec.parse(spec).name
        if name not in ATTACKS:
            raise UnknownNameError("attack", name, ATTACKS.names())
        if not _learns_from_answers(name):
            raise RecipeError(
                f"thieves: {name!r} does not learn from soft answers about images of its own; leave it out, and see "
                "`undistill attack` and `undistill report` for the others"
            )
        if ATTACKS[name].access > access:
            raise RecipeError(
                f"thieves: {name!r} needs the victim's {ATTACKS[name].access}, but it gives {access}; leave it out"
            )
    fits = [spec for spec in asked or ATTACKS.names() if _fits(Spec.parse(spec).name, persona, access)]
    if asked and not fits and access > Access.LABELS:
        raise RecipeError(
            f"the {persona.name} has no label, and no attack that was asked for does without: {', '.join(asked)}; ask "
            "for others too, or leave the person out (queries=0)"
        )
    return tuple(fits)


def _learns_from_answers(name: str) -> bool:
    attack = ATTACKS[name]
    return attack.images == "train" and Access.LABELS < attack.access <= Access.LOGITS


def _fits(name: str, persona: Persona, access: Access) -> bool:
    attack = ATTACKS[name]
    if not _learns_from_answers(name) or attack.access > access:
        return False
    return persona.alone is not None or attack.partial_labels or not attack.uses_labels

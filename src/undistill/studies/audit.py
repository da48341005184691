"""An audit: what the answers of one classifier give away, to whom, and whether it is more than its labels say.

Every thief of a suite learns from the victim with what a person is assumed to have. Thieves and the references that
they have to beat are tuned alike, on held-out images; the numbers come from seeds that the search has not seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from undistill.data import dataset_shape
from undistill.defenses import build_output_defense
from undistill.engine.config import Training
from undistill.errors import RecipeError, UnknownNameError
from undistill.functional import Best, mean_interval
from undistill.recipe import Recipe, Source, load_recipe, make_recipe
from undistill.registry import Spec
from undistill.reporting.parts import Part
from undistill.reporting.parts.audit import Audit, Front, Gain, Rival, judge
from undistill.reporting.parts.heat import Heat, HeatMap, Spot
from undistill.reporting.parts.plane import Deal, Leak, Plane
from undistill.reporting.wording import method_label, model_label
from undistill.run import Failure
from undistill.studies.audit_curve import curve, curve_recipes, favourite
from undistill.studies.audit_words import PLANE_NOTE, Contest, Offer, finding, suite_note
from undistill.studies.cells import common, make_cell
from undistill.studies.changes import Changes, adapt
from undistill.studies.leak import ERROR, gains
from undistill.studies.search import Tuned, with_epochs
from undistill.studies.study import STUDIES, Keep, Study
from undistill.studies.suite import NAMED, Persona, on_named_class, personas, suite_of, thieves
from undistill.studies.worth import worth
from undistill.victim import Access
from undistill.workspace import Workspace

__all__ = ["Arm", "AuditStudy", "audit"]

_NAMED_CLASS = "label_only"  # the policy that leaves an answer its class
_PROTOCOL = tuple(name for name in Training.model_fields if name not in ("seed", "tuning"))


@dataclass(frozen=True)
class Arm:
    """One way to learn for one person.

    Attributes:
        persona: Who learns.
        policy: Output defense on the victim's answers; None for none.
        name: As it is shown, and told from the person's other ways to learn.
        method: The attack or reference, by name or spec.
        thief: Whether it learns from soft answers; else it is a reference, whatever the defense on these.
        tuned: Its search.
    """

    persona: Persona
    policy: str | None
    name: str
    method: str
    thief: bool
    tuned: Tuned


@dataclass(frozen=True)
class AuditStudy(Study):
    """An audit of one victim.

    Attributes:
        victim: Where it comes from.
        set: Spec of its data set.
        arms: Every way to learn.
        policies: Defenses on the answers that thieves meet; None, for none, is the first.
        margin: Points that a thief may gain without it being called a leak.
        suite: Name of the suite.
        untried: Attacks that would fit and were left out.
    """

    victim: Source
    set: str
    arms: tuple[Arm, ...]
    policies: tuple[str | None, ...]
    margin: float
    suite: str
    untried: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the persons and of the ways to learn."""
        return tuple(dict.fromkeys(name for arm in self.arms for name in (arm.persona.name, arm.name)))

    @property
    def recipes(self) -> Iterator[Recipe]:
        """Those of the victim and of the published settings."""
        yield from (one for one in (self.victim,) if isinstance(one, Recipe))
        for arm in self.arms:
            yield from arm.tuned.published

    def ask(self, workspace: Workspace, failed: Collection[str] = ()) -> Iterator[Recipe]:
        """Yield the victim, and whatever the searches want now."""
        yield from (one for one in (self.victim,) if isinstance(one, Recipe))
        for arm in self.arms:
            yield from arm.tuned.ask(workspace, failed)
        for points in curve_recipes(self._unlabelled, workspace, failed).values():
            yield from chain.from_iterable(points.values())

    @property
    def _unlabelled(self) -> list[Arm]:
        """The arms of the first person without labels, from the victim as it is: those that a curve is of."""
        person = next((arm.persona for arm in self.arms if arm.persona.alone is None), None)
        return [] if person is None else self._front(None, person)

    def _front(self, policy: str | None, persona: Persona) -> list[Arm]:
        """Return the arms of a person who meets a defense on the answers: references, and thieves."""
        arms = [arm for arm in self.arms if arm.persona == persona]
        return [arm for arm in arms if not arm.thief or arm.policy == policy]

    def pick(self, keep: Keep) -> AuditStudy | None:
        """Return the audit with the persons and thieves that were asked for; references stay beside their thieves."""
        kept = [arm for arm in self.arms if arm.thief and keep(self.name, arm.persona.name, arm.method)]
        needed = {(arm.persona.name, arm.method) for arm in kept}
        needed |= {(arm.persona.name, name) for arm in kept for name in arm.persona.references}
        arms = tuple(arm for arm in self.arms if (arm.persona.name, arm.method) in needed)
        return replace(self, arms=arms) if arms else None

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Audit:
        """Return a part of kind ``audit``."""
        persons = {arm.persona.name: arm.persona for arm in self.arms}.values()
        contests = {
            (policy, persona.name): _contest(
                self._front(policy, persona), policy, workspace, failures, error=ERROR / len(persons)
            )
            for policy in self.policies
            for persona in persons
        }
        offers = {policy: self._offer(policy, workspace, cache) for policy in self.policies}
        behind = {policy: [one for key, one in contests.items() if key[0] == policy] for policy in offers}
        shown = [contest.front for contest in contests.values()]
        trials = max(arm.tuned.trials for arm in self.arms)
        named = [
            (f"{front.title}, {rival.name}", cell)
            for front in shown
            for rival in front.rivals
            for cell in ([rival.tuned] if rival.tuned == rival.published else [rival.tuned, rival.published])
        ]
        return Audit.make(
            **common(self, named, suite_note(self.suite, trials, self.seeds, self.margin, self.untried)),
            header="Audit",
            about=f"Data set {self.set}.",
            findings=tuple(finding(offers[policy], behind[policy], self.margin) for policy in offers),
            judgement=judge([gain for one in behind[None] for gain in one.front.gains], self.margin),
            margin=self.margin,
            fronts=tuple(shown),
            deals=tuple(_deal(policy, offers[policy], behind[policy]) for policy in offers),
        )

    def parts(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Iterator[Part]:
        """Yield the audit, what fewer queries give and, where there are defenses on the answers, what these change."""
        found = self.evaluate(workspace, failures, cache)
        yield found
        asked = curve_recipes(self._unlabelled, workspace, failures)
        if asked:
            yield curve(asked, self._unlabelled[0].persona.name.capitalize(), self.seeds, workspace, failures)
        if len(found.deals) > 1:
            yield Plane.make(
                name="plane",
                header="Leak against price",
                title="What soft answers give the strongest thief of each person, over what each defense on the "
                "answers takes from honest users",
                seeds=self.seeds,
                notes=(PLANE_NOTE,),
                deals=found.deals,
            )
            yield Heat.make(
                name="heat",
                header="Every thief against every defense",
                title="Points beyond the best reference with the same means, tuned; bold where the interval excludes 0",
                seeds=self.seeds,
                maps=tuple(_maps(found)),
            )

    def _offer(self, policy: str | None, workspace: Workspace, cache: Path) -> Offer:
        """Return the victim behind a defense on its answers, beside itself without; or, without one, its twin."""
        now = worth(self.victim, self.set, policy, workspace, cache)
        subject = f"{model_label(self.victim.model)}" if isinstance(self.victim, Recipe) else self.victim.label
        if isinstance(self.victim, Recipe):
            subject += f", {method_label(self.victim.method)}"
        if policy is not None:
            bare = worth(self.victim, self.set, None, workspace, cache)
            return Offer(f"{subject}, behind {policy}", now, bare, "its answers without that defense", behind=True)
        twin = self.victim.adversary if isinstance(self.victim, Recipe) else None
        before = None if twin is None else worth(twin, self.set, None, workspace, cache)
        return Offer(subject, now, before, "its normal twin")


def _maps(found: Audit) -> Iterator[HeatMap]:
    """Yield of each person what every thief gains behind every defense."""
    defenses = {deal.name: deal.label for deal in found.deals}
    for person in dict.fromkeys(front.person for front in found.fronts):
        gains = {
            front.defense: {rival.name: rival.gain for rival in front.rivals if rival.role == "thief"}
            for front in found.fronts
            if front.person == person
        }
        thieves = sorted({name for by in gains.values() for name in by})
        spots = tuple(tuple(_spot(gains[name].get(thief)) for thief in thieves) for name in defenses)
        yield HeatMap(person=person, defenses=tuple(defenses.values()), thieves=tuple(thieves), spots=spots)


def _spot(gain: Gain | None) -> Spot | None:
    return None if gain is None else Spot(mean=gain.mean, low=gain.low, high=gain.high)


def _deal(policy: str | None, offer: Offer, contests: Sequence[Contest]) -> Deal:
    worth_now = {"accuracy": offer.now.accuracy, **offer.now.measures}
    return Deal(name=policy or "", worth=worth_now, leaks=tuple(leak for one in contests for leak in _strongest(one)))


def _strongest(contest: Contest) -> Iterator[Leak]:
    """Yield what the strongest thief of a person has, if there is one: the one whose leak is decided, if one is."""
    gains = [(best, best.difference.ends) for best in contest.gains.values()]
    known = [(best, ends) for best, ends in gains if ends is not None]
    if known:
        best, (low, high) = max(known, key=lambda one: (one[0].verdict == "leak", one[0].difference.mean))
        person = contest.front.person
        yield Leak(person=person, thief=best.candidate, mean=best.difference.mean, low=low, high=high)


def _contest(
    arms: Sequence[Arm], policy: str | None, workspace: Workspace, failures: Mapping[str, Failure], *, error: float
) -> Contest:
    """Return the numbers of one person's thieves and references.

    Args:
        arms: All of them.
        policy: Defense on the answers.
        workspace: Where the runs are.
        failures: Why runs have no result, by hash.
        error: What may be spent on these thieves.

    Returns:
        Without any gain where a reference has no result: nobody is said to have beaten what was not there.
    """
    rivals = {arm.name: _rival(arm, workspace, failures) for arm in arms}
    values = {name: {int(seed): value for seed, value in one.tuned.values.items()} for name, one in rivals.items()}
    thieves = {arm.name: values[arm.name] for arm in arms if arm.thief and values[arm.name]}
    references = {arm.name: values[arm.name] for arm in arms if not arm.thief}
    favoured = favourite(arms, workspace)
    best = None if favoured is None else favoured.name
    images = next((rival.tuned.images for rival in rivals.values() if rival.tuned.images), None)
    resolution = 100 / images if images else 0.0
    found = gains(thieves, references, best, error=error, resolution=resolution) if all(references.values()) else {}
    persona = arms[0].persona
    behind = "" if policy is None else f", behind {policy}"
    front = Front(
        name=persona.name if policy is None else f"{persona.name}, {policy}",
        title=f"{persona.name.capitalize()}{behind}",
        about=persona.about,
        favourite=best,
        rivals=tuple(sorted((_with_gain(rival, found) for rival in rivals.values()), key=_rank)),
    )
    return Contest(front, found)


def _rank(rival: Rival) -> tuple[bool, float]:
    """Sort references before thieves, and these from strong to weak; what failed comes last."""
    thief = rival.role == "thief"
    return thief, -(rival.tuned.mean or 0.0) if thief else 0.0


def _with_gain(rival: Rival, found: Mapping[str, Best]) -> Rival:
    return rival.model_copy(update={"gain": _gain(found.get(rival.name))})


def _rival(arm: Arm, workspace: Workspace, failures: Mapping[str, Failure]) -> Rival:
    chosen = arm.tuned.best(workspace)
    runs = [run for recipe in chosen if (run := workspace.find(recipe)) is not None]
    scores = [score for run in runs if (score := arm.tuned.score(run)) is not None]
    copies = bool(runs) and all(run.result.get("fidelity") is not None for run in runs)
    return Rival(
        name=arm.name,
        role="thief" if arm.thief else "reference",
        published=make_cell(arm.tuned.published, workspace, failures),
        tuned=make_cell(chosen or arm.tuned.published, workspace, failures),
        settings=_settings(arm.tuned, chosen),
        heldout=mean_interval(scores).mean if scores else None,
        fidelity=make_cell(chosen, workspace, failures, read=_fidelity) if copies else None,
    )


def _fidelity(run: Any) -> float:
    return 100 * float(run.result["fidelity"])


def _settings(tuned: Tuned, chosen: Sequence[Recipe]) -> str:
    """Return in words what the search chose: in what the method and its rate differ from the published ones."""
    if not chosen:
        return "no trial has a result"
    before, now = (recipe.objective.model_dump() for recipe in (tuned.base, chosen[0]))
    changed = [f"{key}={_plain(value)}" for key, value in now.items() if value != before[key]]
    factor = f"{chosen[0].lr / tuned.base.lr:.2g}"
    return ", ".join([*changed, *([] if factor == "1" else [f"lr × {factor}"])]) or "as published"


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def _gain(best: Best | None) -> Gain | None:
    if best is None or best.difference.ends is None:
        return None
    low, high = best.difference.ends
    return Gain(mean=best.difference.mean, low=low, high=high, beyond=best.reference)


def audit(
    *,
    seeds: int,
    changes: Changes,
    victim: str | Mapping[str, Any],
    student: Mapping[str, Any] | None = None,
    suite: str = "standard",
    access: str = "probs",
    insider: float = 0.1,
    queries: int = 1000,
    surrogate: str | None = None,
    attacks: Sequence[str] | None = None,
    trials: int | None = None,
    policies: Sequence[str] = (),
    margin: float = 1.0,
) -> AuditStudy:
    """Return the audit of one victim.

    Args:
        seeds: Of the numbers, 2 or more: seeds 1 to ``seeds``; seed 0 is the search's.
        changes: To the recipes.
        victim: Its run, recipe, or checkpoint and model: ``{checkpoint: x.pt, model: resnet18}``.
        student: Fields of the students' recipes; by default the net and protocol of the victim.
        suite: How much is tried: quick, standard, full.
        access: The most that the victim gives away: labels, probs, logits.
        insider: Share of the training images that the insider has with labels; 0 for no insider.
        queries: Images that customer and stranger ask about; 0 for none of them.
        surrogate: Data set spec of the stranger's images; none, no stranger.
        attacks: Names or specs of attacks, in place of the suite's.
        trials: Settings of each, in place of the suite's.
        policies: Output defenses that are tried on the victim's answers besides.
        margin: Points that a thief may gain without it being called a leak.

    Raises:
        RecipeError: With the problem of a parameter.
        UnknownNameError: A suite, an attack or an access is none.
    """
    usual = suite_of(suite)
    if access not in ("labels", "probs", "logits"):
        raise UnknownNameError("access of an audit", access, ("labels", "probs", "logits"))
    if seeds < 2:
        raise RecipeError(f"seeds: an audit needs 2 or more for its intervals, got {seeds}; set --seeds 5")
    if margin < 0:
        raise RecipeError(f"margin: expected points of 0 or more, got {margin}")
    settings = usual.trials if trials is None else trials
    if isinstance(settings, bool) or not isinstance(settings, int) or settings < 1:
        raise RecipeError(f"trials: expected a whole number of 1 or more, got {settings}")
    base = adapt(_base(victim, dict(student or {}), access), changes)
    who = personas(dataset_shape(base.data), insider=insider, queries=queries, surrogate=surrogate)
    asked = usual.thieves if attacks is None else tuple(attacks)
    behind = tuple(dict.fromkeys([None, *(build_output_defense(policy).spec for policy in policies)]))

    def arm(persona: Persona, method: str, policy: str | None, *, thief: bool, named: bool = False) -> Arm:
        tuned = Tuned(_recipe(base, persona, policy, method), method, settings, tuple(range(1, seeds + 1)))
        return Arm(persona, policy, on_named_class(method) if named else method, method, thief, tuned)

    arms: list[Arm] = []
    for persona in who:
        soft = thieves(persona, asked, Access[access.upper()])
        arms += [arm(persona, name, None, thief=False) for name in persona.references]
        arms += [arm(persona, name, _NAMED_CLASS, thief=False, named=True) for name in soft]
        arms += [arm(persona, name, policy, thief=True) for policy in behind for name in soft]
    if base.victim is None:
        raise RecipeError("audit needs a victim")
    tried = {Spec.parse(one.method).name for one in arms}
    fitting = (name for persona in who for name in thieves(persona, None, Access[access.upper()]))
    return AuditStudy(
        "audit",
        "What its answers give away",
        seeds,
        changes,
        base.victim,
        base.data,
        tuple(arms),
        behind,
        margin,
        suite,
        tuple(dict.fromkeys(name for name in fitting if name not in tried)),
    )


STUDIES.register("audit")(audit)  # as a decorator it would hide what is returned


def _base(victim: str | Mapping[str, Any], student: dict[str, Any], access: str) -> Recipe:
    """Return the recipe of a thief who has everything, with the victim's own net and protocol unless others are given.

    The victim is fixed, its seed too. What a decaying rate ends with is kept; a rate that stays as it is ends at
    random, and there the best epoch on held-out images is.
    """
    stand_in = {"model": "mlp", **student}
    found = load_recipe(None, method=NAMED, victim=victim, **{**stand_in, "access": access}).victim
    fields: dict[str, Any] = {}
    if isinstance(found, Recipe):
        fields = {name: getattr(found, name) for name in (*_PROTOCOL, "model", "data")}
        fields["profile"] = "fast" if found.profile == "exact" else found.profile
    elif "model" not in student:
        raise RecipeError("student: a victim without a recipe does not say what its thieves train; give student.model")
    fields["holdout"] = fields.get("holdout") or Training.model_fields["holdout"].default
    schedule = student.get("schedule", fields.get("schedule", "step"))
    fields["selection"] = "heldout" if schedule == "constant" else "last"
    epochs = None if "milestones" in student else student.pop("epochs", None)
    recipe = load_recipe(None, method=NAMED, victim=found, **{**fields, **student, "access": access})
    return recipe if epochs is None else with_epochs(recipe, epochs)


def _recipe(base: Recipe, persona: Persona, policy: str | None, name: str) -> Recipe:
    """Return what somebody with a person's means learns by, at its published settings."""
    kept = {key: getattr(base, key) for key in Recipe.model_fields if key not in ("name", "folder", "code")}
    kept["method"] = name
    if persona.alone is not None and name in persona.references:
        return make_recipe({**kept, "victim": None, "policy": None, "access": "logits", **persona.alone})
    access = "labels" if name == NAMED else base.access
    return make_recipe({**kept, "policy": policy, "access": access, **persona.fields})

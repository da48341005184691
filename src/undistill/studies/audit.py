"""An audit: what the answers of one classifier give away, to whom, and whether it is more than its labels say.

Every thief of a suite learns from the victim with what a person is assumed to have. Thieves and the references that
they have to beat are tuned alike, on held-out images; the numbers come from seeds that the search has not seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from undistill.data import dataset_shape
from undistill.defenses import build_output_defense
from undistill.engine.config import Training
from undistill.errors import RecipeError, UnknownNameError
from undistill.functional import mean_interval
from undistill.recipe import Recipe, Source, load_recipe
from undistill.registry import Spec
from undistill.reporting.parts import Part
from undistill.reporting.parts.audit import Audit, Front, Gain, Rival, judge
from undistill.reporting.parts.heat import Heat, HeatMap, Spot
from undistill.reporting.parts.plane import PRICES, Deal, Leak, Plane
from undistill.reporting.wording import model_label
from undistill.run import Failure
from undistill.studies.audit_curve import curve, curve_recipes, favourite
from undistill.studies.audit_words import PLANE_NOTE, Contest, Offer, finding, suite_note
from undistill.studies.cells import common, fidelity_of, make_cell
from undistill.studies.changes import Changes, adapt
from undistill.studies.leak import Found, gains
from undistill.studies.search import Tuned, changed, with_epochs
from undistill.studies.study import STUDIES, Keep, Study
from undistill.studies.suite import ALONE, NAMED, Persona, on_named_class, personas, suite_of, thieves
from undistill.studies.worth import Worth, worth
from undistill.victim import Access
from undistill.workspace import Workspace

__all__ = ["Arm", "AuditStudy", "audit"]

_NAMED_CLASS = "label_only"  # the policy that leaves an answer its class
_PROTOCOL = tuple(name for name in Training.model_fields if name not in ("seed", "tuning"))
# What the audit itself decides of a student.
_DECIDED = ("seed", "method", "victim", "adversary", "targets", "transfer", "labels", "queries", "access", "policy")


@dataclass(frozen=True)
class Arm:
    """One way to learn for one person.

    Attributes:
        persona: Who learns.
        meets: Defenses on the victim's answers in whose contests it counts: a thief in one, a reference in all that
            leave it the same answers; None is the victim as it is.
        name: As it is shown, and told from the person's other ways to learn.
        method: The attack or reference, by name or spec.
        thief: Whether it learns from soft answers.
        tuned: Its search.
    """

    persona: Persona
    meets: tuple[str | None, ...]
    name: str
    method: str
    thief: bool
    tuned: Tuned


@dataclass(frozen=True)
class AuditStudy(Study):
    """An audit of one victim.

    Attributes:
        victim: Where it comes from.
        twin: What a defense of its training is priced beside; None where it has none.
        set: Spec of its data set.
        arms: Every way to learn.
        policies: Defenses on the answers that thieves meet; None, for none, is the first.
        margin: Points that gains must surely stay below for a victim to be called undistillable.
        suite: Name of the suite.
        untried: Attacks that would fit and were left out.
    """

    victim: Source
    twin: Source | None
    set: str
    arms: tuple[Arm, ...] = field(repr=False)
    policies: tuple[str | None, ...]
    margin: float
    suite: str
    untried: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the persons and of the thieves."""
        thieves = (arm for arm in self.arms if arm.thief)
        return tuple(dict.fromkeys(name for arm in thieves for name in (arm.persona.name, arm.method)))

    @property
    def recipes(self) -> Iterator[Recipe]:
        """Those of the victim, of its twin, and of the published settings."""
        yield from (one for one in (self.twin, self.victim) if isinstance(one, Recipe))
        for arm in self.arms:
            yield from arm.tuned.published

    def ask(self, workspace: Workspace, failed: Collection[str] = ()) -> Iterator[Recipe]:
        """Yield the victim and its twin, and whatever the searches want now."""
        yield from (one for one in (self.twin, self.victim) if isinstance(one, Recipe))
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
        """Return the arms of a person who meets a defense on the answers."""
        return [arm for arm in self.arms if arm.persona.name == persona.name and policy in arm.meets]

    def pick(self, keep: Keep) -> AuditStudy | None:
        """Return the audit with the persons and thieves that were asked for; references stay beside their thieves."""
        thieves = [arm for arm in self.arms if arm.thief]
        kept = [arm for arm in thieves if keep(self.name, arm.persona.name, arm.method)]
        if len(kept) == len(thieves):
            return self
        needed = {(arm.persona.name, arm.method) for arm in kept}
        needed |= {(arm.persona.name, name) for arm in kept for name in arm.persona.references}
        arms = tuple(arm for arm in self.arms if (arm.persona.name, arm.method) in needed)
        gone = dict.fromkeys(f"{arm.method} ({arm.persona.name})" for arm in thieves if arm not in kept)
        return replace(self, arms=arms, untried=(*self.untried, *gone)) if kept else None

    def evaluate(self, workspace: Workspace, failures: Mapping[str, Failure], cache: Path) -> Audit:
        """Return a part of kind ``audit``."""
        persons = {arm.persona.name: arm.persona for arm in self.arms}.values()
        contests = {
            policy: [_contest(self._front(policy, one), policy, workspace, failures, len(persons)) for one in persons]
            for policy in self.policies
        }
        offers = {policy: self._offer(policy, workspace, cache) for policy in self.policies}
        shown = [contest.front for found in contests.values() for contest in found]
        named = [
            (f"{front.title}, {rival.name}", cell)
            for front in shown
            for rival in front.rivals
            for cell in ([rival.tuned] if rival.tuned == rival.published else [rival.tuned, rival.published])
        ]
        return Audit.make(
            **common(self, named, self._notes(workspace)),
            header="Audit",
            about=f"Data set {self.set}.",
            findings=tuple(finding(offers[policy], contests[policy], self.margin) for policy in offers),
            judgement=judge([gain for one in contests[None] for gain in one.front.gains], self.margin),
            margin=self.margin,
            board=self.board,
            fronts=tuple(shown),
            deals=tuple(_deal(policy, offers[policy], contests[policy]) for policy in offers),
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

    @property
    def board(self) -> dict[str, Any]:
        """What audits must have in common for their victims to be compared, in plain values."""
        base = self.arms[0].tuned.base
        return {
            "data": self.set,
            "student": {name: getattr(base, name) for name in (*_PROTOCOL, "model")},
            "access": str(self._access),
            "persons": {arm.persona.name: arm.persona.about for arm in self.arms},
            "thieves": sorted({f"{arm.persona.name}: {arm.method}" for arm in self.arms if arm.thief}),
            "trials": max(arm.tuned.trials for arm in self.arms),
            "seeds": self.seeds,
        }

    @property
    def _access(self) -> Access:
        """The most that the victim gives away to anybody who learns from it."""
        return max(arm.tuned.base.victim_access for arm in self.arms if arm.method not in ALONE)

    def _notes(self, workspace: Workspace) -> Iterator[str]:
        trials = max(arm.tuned.trials for arm in self.arms)
        yield from suite_note(self.suite, trials, self.seeds, self.margin, self.untried)
        recipes = [one for arm in self.arms if arm.persona.name == "stranger" for one in arm.tuned.published]
        runs = [run for one in recipes if (run := workspace.find(one)) is not None]
        for key, whose in (("images_of_owner", "in the owner's training set"), ("images_of_test", "test images")):
            count = max((int(run.result.get(key) or 0) for run in runs), default=0)
            if count:
                yield f"Of the stranger's images up to {count:,} are {whose}, pixel by pixel."

    def _offer(self, policy: str | None, workspace: Workspace, cache: Path) -> Offer:
        """Return the victim behind a defense on its answers, beside itself without; or, without one, its twin."""

        def measure(source: Source, policy: str | None) -> Worth | None:
            told = policy or (_NAMED_CLASS if self._access == Access.LABELS else None)
            return worth(source, self.set, told, workspace, cache)

        now = measure(self.victim, policy)
        subject = self.victim.label if not isinstance(self.victim, Recipe) else _label(self.victim)
        if policy is not None:
            bare = measure(self.victim, None)
            return Offer(f"{subject}, behind {policy}", now, bare, "its answers without that defense", behind=True)
        return Offer(subject, now, None if self.twin is None else measure(self.twin, None), "its normal twin")


def _label(recipe: Recipe) -> str:
    """Return what a victim is called: its net, and its method with all that is not as by default."""
    method = recipe.objective
    usual = type(method)()
    told = ", ".join(f"{key}={value}" for key, value in method.model_dump().items() if value != getattr(usual, key))
    return f"{model_label(recipe.model)}, {method.name}{f'({told})' if told else ''}"


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
        if thieves:
            yield HeatMap(person=person, defenses=tuple(defenses.values()), thieves=tuple(thieves), spots=spots)


def _spot(gain: Gain | None) -> Spot | None:
    return None if gain is None else Spot(mean=gain.mean, low=gain.low, high=gain.high)


def _deal(policy: str | None, offer: Offer, contests: Sequence[Contest]) -> Deal:
    now, before = (
        {} if one is None else {"accuracy": one.accuracy, **one.measures} for one in (offer.now, offer.before)
    )
    price = {name: PRICES[name][2] * (now[name] - before[name]) for name in PRICES if name in now and name in before}
    return Deal(
        name=policy or "", worth=now, price=price, leaks=tuple(leak for one in contests for leak in _strongest(one))
    )


def _strongest(contest: Contest) -> Iterator[Leak]:
    """Yield what the thieves of a person have at most and at least, and the one who has most on average."""
    if contest.gains:
        thief, best = max(contest.gains.items(), key=lambda one: one[1].mean)
        low, high = (max(getattr(one, end) for one in contest.gains.values()) for end in ("low", "high"))
        yield Leak(person=contest.front.person, thief=thief, mean=best.mean, low=low, high=high)


def _contest(
    arms: Sequence[Arm], policy: str | None, workspace: Workspace, failures: Mapping[str, Failure], persons: int
) -> Contest:
    """Return the numbers of one person's thieves and references.

    Args:
        arms: All of them.
        policy: Defense on the answers.
        workspace: Where the runs are.
        failures: Why runs have no result, by hash.
        persons: How many share the error.

    Returns:
        Without the gain of a thief one of whose references has no result: nobody is said to have beaten what was not
        there.
    """
    rivals = {arm.name: _rival(arm, workspace, failures) for arm in arms}
    persona = arms[0].persona
    tuned = {name: _by_seed(rival.tuned.values) for name, rival in rivals.items()}
    references, known = {}, {}
    for arm in arms:
        beside = [*persona.references, on_named_class(arm.name)]
        if arm.thief and tuned[arm.name] and all(tuned[name] for name in beside):
            known[arm.name] = tuned[arm.name]
            published = [(f"{name} as published", _by_seed(rivals[name].published.values)) for name in beside]
            references[arm.name] = [*((name, tuned[name]) for name in beside), *(one for one in published if one[1])]
    favoured = favourite(arms, workspace)
    images = next((rival.tuned.images for rival in rivals.values() if rival.tuned.images), None)
    best = None if favoured is None else favoured.name
    found = gains(known, references, best, persons=persons, resolution=100 / images if images else 0.0)
    front = Front(
        name=persona.name if policy is None else f"{persona.name}, {policy}",
        title=f"{persona.name.capitalize()}{'' if policy is None else f', behind {policy}'}",
        about=persona.about,
        favourite=best,
        rivals=tuple(sorted((_with_gain(rival, found) for rival in rivals.values()), key=_rank)),
    )
    return Contest(front, found)


def _by_seed(values: Mapping[str, float]) -> dict[int, float]:
    return {int(seed): value for seed, value in values.items()}


def _rank(rival: Rival) -> tuple[bool, float]:
    """Sort references before thieves, and these from strong to weak; what failed comes last."""
    thief = rival.role == "thief"
    return thief, -(rival.tuned.mean or 0.0) if thief else 0.0


def _with_gain(rival: Rival, found: Mapping[str, Found]) -> Rival:
    one = found.get(rival.name)
    gain = None if one is None else Gain(mean=one.mean, low=one.low, high=one.high, beyond=one.beyond)
    return rival.model_copy(update={"gain": gain})


def _rival(arm: Arm, workspace: Workspace, failures: Mapping[str, Failure]) -> Rival:
    chosen = arm.tuned.best(workspace)
    runs = [run for recipe in chosen if (run := workspace.find(recipe)) is not None]
    scores = [score for run in runs if (score := arm.tuned.score(run)) is not None]
    copies = bool(runs) and all(run.result.get("fidelity") is not None for run in runs)
    return Rival(
        name=arm.name,
        role="thief" if arm.thief else "reference",
        published=make_cell(arm.tuned.published, workspace, failures),
        tuned=make_cell(chosen, workspace, failures),
        settings=_settings(arm.tuned, chosen),
        heldout=mean_interval(scores).mean if scores else None,
        fidelity=make_cell(chosen, workspace, failures, read=fidelity_of) if copies else None,
    )


def _settings(tuned: Tuned, chosen: Sequence[Recipe]) -> str:
    """Return in words what the search chose: in what the method and its rate differ from the published ones."""
    if not chosen:
        return "no trial has a result"
    before, now = (recipe.objective.model_dump() for recipe in (tuned.base, chosen[0]))
    different = [f"{key}={_plain(value)}" for key, value in now.items() if value != before[key]]
    factor = f"{chosen[0].lr / tuned.base.lr:.2g}"
    return ", ".join([*different, *([] if factor == "1" else [f"lr × {factor}"])]) or "as published"


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


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
        changes: To the recipes; a victim that is there already stays as it is.
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
        margin: Points that gains must surely stay below for the victim to be called undistillable.

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
    base = _adapted(_base(victim, dict(student or {}), access), changes)
    if base.victim is None:
        raise RecipeError("audit needs a victim")
    who = personas(dataset_shape(base.data), insider=insider, queries=queries, surrogate=surrogate)
    asked = usual.thieves if attacks is None else tuple(attacks)
    behind = tuple(dict.fromkeys([None, *(build_output_defense(policy).spec for policy in policies)]))
    fresh = tuple(range(1, seeds + 1))

    def arms_of(persona: Persona) -> Iterator[Arm]:
        soft = thieves(persona, asked, Access[access.upper()])

        def arm(method: str, policy: str | None, meets: Sequence[str | None], name: str, *, thief: bool) -> Arm:
            tuned = Tuned(_recipe(base, persona, policy, method), method, settings, fresh)
            return Arm(persona, tuple(meets), name, method, thief, tuned)

        for policy, meets in _alike(behind).items():
            if persona.alone is None:
                yield arm(NAMED, policy, meets, NAMED, thief=False)
            elif policy is None:
                yield from (arm(name, None, behind, name, thief=False) for name in persona.references)
            for name in soft:
                yield arm(name, _class_of(policy), meets, on_named_class(name), thief=False)
        for policy in behind:
            yield from (arm(name, policy, (policy,), name, thief=True) for name in soft)

    arms = tuple(arm for persona in who for arm in arms_of(persona))
    tried = {Spec.parse(arm.method).name for arm in arms}
    fitting = (name for persona in who for name in thieves(persona, None, Access[access.upper()]))
    return AuditStudy(
        "audit",
        "What its answers give away",
        seeds,
        changes,
        base.victim,
        _twin(base.victim),
        base.data,
        arms,
        behind,
        margin,
        suite,
        tuple(dict.fromkeys(name for name in fitting if name not in tried)),
    )


STUDIES.register("audit")(audit)  # as a decorator it would hide what is returned


def _alike(policies: Sequence[str | None]) -> dict[str | None, list[str | None]]:
    """Return by policy all those behind which the named class is the same: that of the victim, where they keep it."""
    found: dict[str | None, list[str | None]] = {None: []}
    for policy in policies:
        keeps = policy is None or build_output_defense(policy).keeps_label
        found.setdefault(None if keeps else policy, []).append(policy)
    return found


def _class_of(policy: str | None) -> str:
    """Return the policy that names the class of what another one lets out."""
    return _NAMED_CLASS if policy is None else str(Spec("chain", {"defenses": (policy, _NAMED_CLASS)}))


def _twin(victim: Source) -> Source | None:
    """Return what a defended victim would be without its defense: its adversary, or the same trained on labels."""
    if not isinstance(victim, Recipe) or victim.method == "ce":
        return None
    if victim.adversary is not None:
        return victim.adversary
    return None if victim.kind == "attack" else changed(victim, method="ce")


def _adapted(base: Recipe, changes: Changes) -> Recipe:
    """Return a recipe with the changes made, but for a victim that has a run: that one is audited, and no other."""
    found = adapt(base, changes)
    there = isinstance(base.victim, Recipe) and base.victim.folder is not None
    return changed(found, victim=base.victim) if there else found


def _base(victim: str | Mapping[str, Any], student: dict[str, Any], access: str) -> Recipe:
    """Return the recipe of a thief who has everything, with the victim's own net and protocol unless others are given.

    The victim is fixed, its seed too. What a decaying rate ends with is kept; a rate that stays as it is ends at
    random, and there the best epoch on held-out images is.
    """
    wrong = [f"student: {name} is decided by the audit; leave it out" for name in _DECIDED if name in student]
    if student.get("selection") == "paper":
        wrong.append("student: selection=paper chooses on test images; leave it out")
    if student.get("holdout") == 0:
        wrong.append("student: holdout=0 leaves thieves nothing to choose by; leave it out")
    if wrong:
        raise RecipeError(wrong)
    found = load_recipe(None, method=NAMED, victim=victim, **{"model": "mlp", **student, "access": access}).victim
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
    if persona.alone is not None and name in persona.references:
        return changed(base, method=name, victim=None, policy=None, access="logits", **persona.alone)
    access = "labels" if name == NAMED else base.access
    return changed(base, method=name, policy=policy, access=access, **persona.fields)

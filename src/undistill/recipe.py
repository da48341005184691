"""A recipe: everything that decides what a run computes, and the hash that names it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, StrictBool, ValidationError, ValidationInfo, field_validator, model_validator

from undistill.data import DATASETS, DatasetFactory, check_dataset_spec, parse_dataset_spec
from undistill.defenses import OutputDefense, build_output_defense
from undistill.engine.config import SHARED_FIELDS, Training
from undistill.errors import RecipeError, UnknownNameError, did_you_mean
from undistill.identity import source_of
from undistill.methods import build_method
from undistill.models import check_model_spec, maker_of
from undistill.objective import Objective
from undistill.problems import checked_spec, describe, several
from undistill.registry import Spec
from undistill.storage import digest_of
from undistill.victim import Access
from undistill.victim.sources import Weights

__all__ = ["Recipe", "Source", "Weights", "list_recipes", "load_recipe", "make_recipe", "read_override"]

# libyaml's, which reads a recipe ten times faster; a study reads hundreds.
_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PACKAGED = Path(__file__).parent / "recipes"
# Fields that came later, with their defaults, which are no part of the hash: older runs keep their names.
_LATER: dict[str, Any] = {"targets": [], "policy": None, "transfer": None, "labels": True, "queries": None, "code": []}
_MEANS = ("transfer", "labels", "queries")
_WORLD = ("data", "seed", "profile", "holdout", "selection", "device")


@dataclass(frozen=True)
class _Nested:
    """What was given for a net, and what it takes from the recipe around it."""

    given: Any
    inherited: dict[str, Any]


class Recipe(Training):
    """What one run trains, on what, how, and against or from which other net.

    ``adversary`` and ``victim`` are recipes themselves (trained first, unless their run exists) or weights. In a file
    or on the command line they may also be the path of a run folder, of a recipe file, or the name of a packaged
    recipe; single fields of it can be changed beside ``recipe:``. A nested recipe takes ``data``, ``seed``,
    ``profile``, ``holdout`` and ``selection`` from the one around it where it does not set them, and an adversary, the
    twin of its teacher, everything.
    """

    name: str | None = Field(None, pattern=r"^[\w.\-]+$", description="of the run's folder; not part of the hash")
    data: str = Field(description="data set spec: cifar10, npz(path='x.npz'), a folder of images")
    model: str = Field(description="model spec: resnet18, preresnet20(width=0.5), module:callable")
    method: str = Field("ce", description="reference, defense or attack: ce, nasty(weight=0.04), kd(temperature=4)")
    targets: tuple[str, ...] = Field((), description="data sets of other domains, which a defense closes its net to")
    transfer: str | None = Field(
        None, description="data set whose training images a thief learns on; by default the owner's, those of data"
    )
    labels: StrictBool | Annotated[int, Field(ge=2, strict=True)] = Field(
        True, description="whether the thief has the label of every image, of none, or of how many"
    )
    queries: int | None = Field(
        None,
        ge=1,
        strict=True,
        description="images that a thief asks about, each once, its answer kept; by default all, anew at every step",
    )
    adversary: Recipe | Weights | None = Field(None, description="frozen, normally trained twin of a defense")
    victim: Recipe | Weights | None = Field(None, description="what an attack steals from")
    access: Literal["labels", "probs", "logits", "features", "gradients"] = Field(
        "logits", description="the most that the victim gives away"
    )
    policy: str | None = Field(
        None, description="output defense on the victim's answers: rounding(digits=2), top_k(k=3); none by default"
    )
    code: tuple[Annotated[str, Field(pattern=r"^[^=]+=(\w{16}|unknown)$")], ...] = Field(
        (), description="digests of the source of what is not part of undistill, as module:callable; noted by itself"
    )
    folder: str | None = Field(
        None, description="of the run, instead of one named after it in the folder of runs; not part of the hash"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; not part of the hash")
    tensorboard: bool = Field(False, description="also log for TensorBoard; not part of the hash")

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        method, victim = _method_of(values.get("method")), _resolved(values.get("victim"))
        if "data" not in values and (data := _data_of(victim)) is not None:
            values = {"data": data, **values}
        if values.get("transfer") is not None and _same_data(values["transfer"], values.get("data")):
            values = {**values, "transfer": None}  # the owner's own
        world = {key: values[key] for key in _WORLD if key in values}
        if method is not None:
            values = {**_defaults(method), **values, "method": method}
        twin = {key: values[key] for key in (*Training.model_fields, *_WORLD, "model") if key in values}
        if victim is not None:
            values["victim"] = _Nested(victim, world)
        adversary = _resolved(values.get("adversary"))
        if adversary is not None or (method is not None and method.needs_adversary):
            values["adversary"] = _Nested(adversary, twin)
        return values

    @field_validator("adversary", "victim", mode="before")
    @classmethod
    def _source(cls, value: Any) -> Any:
        return _nested(value.given, value.inherited) if isinstance(value, _Nested) else value

    @field_validator("data", "transfer", mode="before")
    @classmethod
    def _data(cls, value: Any, info: ValidationInfo) -> str | None:
        if value is None and info.field_name == "transfer":
            return None
        return checked_spec(value, parse_dataset_spec, check_dataset_spec)

    @field_validator("targets", mode="before")
    @classmethod
    def _targets(cls, value: Any) -> tuple[str, ...]:
        given = value if isinstance(value, list | tuple) else (value,)
        return tuple(checked_spec(each, parse_dataset_spec, check_dataset_spec) for each in given)

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: Any) -> str:
        return checked_spec(value, Spec.parse, check_model_spec)

    @field_validator("method", mode="before")
    @classmethod
    def _method(cls, value: Any) -> str:
        if isinstance(value, Objective):
            return value.spec
        try:
            return build_method(value).spec
        except RecipeError as error:
            raise several(error) from error

    @field_validator("policy", mode="before")
    @classmethod
    def _policy(cls, value: Any) -> str | None:
        if value is None or isinstance(value, OutputDefense):
            return None if value is None else value.spec
        try:
            return build_output_defense(value).spec
        except RecipeError as error:
            raise several(error) from error

    @model_validator(mode="after")
    def _fits_method(self) -> Self:
        method = self.objective
        if method.kind == "attack" and self.victim is None:
            raise ValueError(
                f"attack {method.name!r} needs a victim: victim=<run folder, recipe, or checkpoint with its model>"
            )
        if method.kind != "attack" and self.victim is not None:
            raise ValueError(f"{method.name!r} is not an attack and takes no victim; remove it, or set method=kd")
        if method.kind != "attack" and self.policy is not None:
            raise ValueError(
                f"{method.name!r} is not an attack: it has no victim whose answers a policy could defend; remove "
                "policy, and set it in the recipes of the attacks"
            )
        if self.policy is not None and self.access == "gradients":
            raise ValueError(
                "policy changes answers, and with access=gradients the thief has the weights and answers himself; "
                "remove policy, or declare access=features or less"
            )
        if method.images == "none" and (self.holdout or self.selection == "heldout"):
            raise ValueError(
                f"{method.name!r} sees no image of the training set, so none can be held out; leave out holdout and "
                "selection (those of its victim are victim.holdout and victim.selection)"
            )
        if self.victim is not None and self.victim_access > self.victim.gives:
            gives = self.victim.gives
            raise ValueError(
                f"access={self.access} is more than its victim has to give: {self.victim.label} gives {gives} at most; "
                f"set access={gives}"
            )
        if self.adversary is not None and self.adversary.gives < Access.LOGITS:
            raise ValueError(
                f"an adversary is asked for logits, but {self.adversary.label} gives {self.adversary.gives} at most; "
                "give a recipe or weights"
            )
        if self.adversary is not None and not method.needs_adversary:
            raise ValueError(f"{method.name!r} takes no adversary; remove it, or set method=nasty")
        if self.targets and not method.uses_targets:
            raise ValueError(f"{method.name!r} looks at no target domains; remove targets, or set method=ntl")
        return self

    @model_validator(mode="after")
    def _fits_means(self) -> Self:
        """Refuse means that the method cannot use."""
        method, given = self.objective, [key for key in _MEANS if getattr(self, key) != _LATER[key]]
        if given and (method.kind == "defense" or method.images != "train"):
            whose = "is a defense" if method.kind == "defense" else "makes its own images"
            raise ValueError(f"{method.name!r} {whose}: {', '.join(given)} is what a thief has; remove it")
        if method.kind == "reference" and self.labels is False:
            raise ValueError(f"{method.name!r} learns from labels alone; set labels to true or a number")
        some = self.labels is not True and self.labels != self.queries  # as many labels as queries: of each image one
        if some and method.kind == "attack" and method.uses_labels and not method.partial_labels:
            raise ValueError(
                f"{method.name!r} needs the label of every image, but labels={self.labels}; set labels=true, or choose "
                "an attack that does without, such as hard_label"
            )
        if self.queries is not None and method.kind == "attack" and method.access > Access.LOGITS:
            raise ValueError(
                f"{method.name!r} needs the victim's {method.access}, and only labels, probs and logits are kept; "
                "remove queries"
            )
        return self

    @model_validator(mode="after")
    def _note_code(self) -> Self:
        if "code" not in self.model_fields_set:
            object.__setattr__(self, "code", self.code_now)
        return self

    @cached_property
    def objective(self) -> Objective:
        """The configured method."""
        return build_method(self.method)

    @cached_property
    def output_defense(self) -> OutputDefense | None:
        """The configured policy; None for none."""
        return None if self.policy is None else build_output_defense(self.policy)

    @property
    def kind(self) -> Literal["reference", "defense", "attack"]:
        """What the method is."""
        return self.objective.kind

    @property
    def means(self) -> tuple[str | None, bool | int, int | None]:
        """What a thief has: ``transfer``, ``labels`` and ``queries``. A reference with the same is its yardstick."""
        return self.transfer, self.labels, self.queries

    @property
    def stream(self) -> tuple[tuple[str, object], ...]:
        """What its batches depend on, by name: recipes that agree in it can be carried out side by side."""
        asks = self.labels is True or self.kind == "attack"
        fields = ("data", "targets", *_MEANS, *SHARED_FIELDS)
        return *((name, getattr(self, name)) for name in fields), ("asks", asks)

    @property
    def nested(self) -> dict[str, Recipe]:
        """Its ``adversary`` and its ``victim``, where these are recipes and nothing that is there already."""
        nets = {"adversary": self.adversary, "victim": self.victim}
        return {what: source for what, source in nets.items() if isinstance(source, Recipe)}

    @property
    def code_now(self) -> tuple[str, ...]:
        """What ``code`` would be of the same recipe made now."""
        sets = [spec for spec in (self.data, self.transfer, *self.targets) if spec is not None]
        makers = chain.from_iterable(_data_makers(spec) for spec in sets)
        policy = None if self.output_defense is None else type(self.output_defense)
        return source_of([maker_of(self.model), type(self.objective), policy, *makers])

    @property
    def sources(self) -> tuple[Recipe, ...]:
        """The recipes that it builds on."""
        return tuple(self.nested.values())

    @property
    def gives(self) -> Access:
        """The most that can be had of its net as a victim: everything, since the net is here."""
        return Access.GRADIENTS

    @property
    def victim_access(self) -> Access:
        """The most that the victim gives away."""
        return Access[self.access.upper()]

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits over everything that decides the result."""
        return digest_of(_content(self.model_dump(mode="json")))[:12]

    @property
    def family(self) -> str:
        """Hash of the recipe without its seeds: runs of one family are repetitions of each other."""
        return digest_of(_content(self.model_dump(mode="json"), drop=("seed",)))[:12]

    @property
    def key(self) -> str:
        """What identifies it as the source of a net: its family."""
        return self.family

    @property
    def label(self) -> str:
        """What its net is called where people read."""
        return f"{self.model}, {'normal' if self.method == 'ce' else self.method}"

    @property
    def folder_name(self) -> str:
        """Name of the run's folder under the folder of all runs."""
        label = self.name or f"{Spec.parse(self.method).name}-{Spec.parse(self.model).name.replace(':', '.')}"
        return f"{label}-{self.hash}"

    def to_yaml(self) -> str:
        """Return the recipe as YAML that loads as the same recipe."""
        content = _in_order(self.model_dump(mode="json", exclude_none=True))
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


Source = Recipe | Weights
"""What a recipe names where it builds on a net; each is a ``victim.sources.Source``."""


def make_recipe(values: Mapping[str, Any], *, lines: Mapping[tuple[str, ...], str] | None = None) -> Recipe:
    """Return the recipe of plain values.

    Args:
        values: Fields of ``Recipe``.
        lines: Where each field was written (``"file.yaml:7"``), to say so beside a problem.

    Raises:
        RecipeError: With every problem of every field.
    """
    try:
        return Recipe(**_named(values))
    except ValidationError as error:
        problems = [f"{_line(lines or {}, where)}{text}" for where, text in describe(error, Recipe)]
        raise RecipeError(list(dict.fromkeys(problems))) from None
    except RecursionError:
        raise RecipeError("a recipe is its own victim or adversary; name another one there") from None


def load_recipe(source: str | Path | None = None, overrides: Iterable[str] = (), **values: Any) -> Recipe:
    """Return the recipe of a file or packaged name, changed by ``key=value`` overrides and then by ``values``.

    A file may name another recipe under ``recipe:`` and say only what differs from it. Where ``epochs`` are changed and
    ``milestones`` are not, the milestones move in proportion.

    Args:
        source: Path of a YAML file or run folder, or a name from ``list_recipes()``; None to start from nothing.
        overrides: Such as ``lr=0.05``, ``method.temperature=8``, ``victim.seed=1``.
        values: Fields of ``Recipe``.

    Raises:
        RecipeError: With every problem.
    """
    fields: dict[str, Any] = {}
    lines: dict[tuple[str, ...], str] = {}
    if source is not None:
        fields, lines = _read(source)
    overrides, before = list(overrides), dict(fields)
    if overrides or values:
        _renew(fields)
    for override in overrides:
        key, value = read_override(override)
        path = tuple(key.split("."))
        _assign(fields, path, value)
        lines.pop(path[:1], None)
    fields.update(values)
    given = {tuple(override.partition("=")[0].split(".")) for override in overrides}
    _move_milestones(before, fields, given | {(key,) for key in values})
    lines = {where: line for where, line in lines.items() if where[0] not in values}
    return make_recipe(fields, lines=lines)


def read_override(text: str) -> tuple[str, Any]:
    """Return the key and the value of ``key=value``, whose value is YAML, or text where it is none.

    Raises:
        RecipeError: It has another form.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError(f"expected key=value, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value


def list_recipes() -> tuple[str, ...]:
    """Return the names of the packaged recipes, sorted."""
    return tuple(sorted(str(path.relative_to(_PACKAGED).with_suffix("")) for path in _PACKAGED.rglob("*.yaml")))


def _read(source: str | Path, seen: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """Return the fields of a YAML recipe, and where each was written."""
    if not isinstance(source, str | Path):
        raise RecipeError(f"recipe: expected a name or a path, got {source!r}")
    path = Path(source)
    run = path if (path / "recipe.yaml").is_file() else None
    if run is not None:
        path = run / "recipe.yaml"
    if not path.is_file():
        packaged = _PACKAGED / f"{source}.yaml"
        if not packaged.is_file():
            raise _not_found(str(source))
        path = packaged
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        fields = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not a YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}: expected fields such as 'data: cifar10', got {type(fields).__name__}")
    if run is not None:
        fields = {**_as_noted(fields), "folder": str(run)}
    lines = {where: f"{path.name}:{line}" for where, line in _marks(node)}
    base = fields.pop("recipe", None)
    if base is not None:
        if path in seen:
            raise RecipeError(f"{path} is built on itself through 'recipe:'; remove one of these lines")
        base_fields, base_lines = _read(base, (*seen, path))
        fields, lines = _changed(base_fields, fields), {**base_lines, **lines}
    return fields, lines


def _not_found(source: str) -> RecipeError:
    if "/" in source and not did_you_mean(source, list_recipes()):
        return RecipeError(f"no run folder and no recipe file at {source!r}")
    return UnknownNameError("recipe", source, list_recipes())


def _changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe with some of them changed; ``method: {weight: 0.1}`` keeps the method's name."""
    merged = {**base, **changes}
    _move_milestones(base, merged, {(key,) for key in changes})
    if changes:
        _renew(merged)
        merged |= {"code": changes["code"]} if "code" in changes else {}
    for key in ("data", "model", "method", "policy"):
        change = changes.get(key)
        if isinstance(change, Mapping) and "name" not in change and base.get(key) is not None:
            merged[key] = {**_mapping(key, base[key]), **change}
    return merged


def _renew(fields: dict[str, Any]) -> None:
    """Make the fields of a run those of another recipe, which is another run, of the source as it is now."""
    for key in ("folder", "code"):
        fields.pop(key, None)


def _as_noted(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a run on disk, with the source that it notes: older ones note none."""
    nets = {key: _as_noted(fields[key]) for key in ("adversary", "victim") if isinstance(fields.get(key), dict)}
    return {"code": [], **fields, **nets}


def _move_milestones(before: Mapping[str, Any], after: dict[str, Any], given: Set[tuple[str, ...]]) -> None:
    """Keep milestones where they were, in proportion, if the epochs were changed and they were not among the given."""
    for key in ("victim", "adversary"):
        inside = {path[1:] for path in given if path[0] == key}
        if inside and () not in inside and isinstance(before.get(key), Mapping) and isinstance(after.get(key), dict):
            _move_milestones(before[key], after[key], inside)
    old, new, milestones = before.get("epochs"), after.get("epochs"), before.get("milestones")
    if not (isinstance(old, int) and isinstance(new, int) and isinstance(milestones, list | tuple)):
        return  # there is nothing to keep, or validation will say what is wrong
    if new != old and ("milestones",) not in given:
        after["milestones"] = sorted({new * milestone // old for milestone in milestones} - {0})


def _marks(node: Any, prefix: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*prefix, str(key.value))
            yield where, key.start_mark.line + 1
            yield from _marks(value, where)


def _line(lines: Mapping[tuple[str, ...], str], where: tuple[str, ...]) -> str:
    while where and where not in lines:
        where = where[:-1]
    return f"{lines[where]} " if where else ""


def _assign(fields: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a dotted key; a spec or a recipe name on the way becomes the mapping that it stands for."""
    for key in path[:-1]:
        inner = fields.get(key)
        if isinstance(inner, str):
            inner = {"recipe": inner} if key in {"victim", "adversary"} else _mapping(key, inner)
        if inner is not None and not isinstance(inner, Mapping):
            raise RecipeError(f"{'.'.join(path)}: {key!r} is {inner!r}, which has no fields; write {key}=value")
        fields[key] = dict(inner or {})
        fields = fields[key]
        if key in {"victim", "adversary"}:
            fields.pop("code", None)
    fields[path[-1]] = value


def _mapping(key: str, spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec under one of a recipe's fields as a mapping, to change single arguments of it."""
    parsed = parse_dataset_spec(spec) if key == "data" else Spec.parse(spec)
    return {"name": parsed.name, **parsed.kwargs}


def _resolved(value: Any) -> Any:
    """Return what was given for a net as a recipe, as weights, or as the fields of either.

    What cannot be read is returned as the error, for where the field is validated.
    """
    if isinstance(value, (str, Path)):
        value = {"recipe": str(value)}
    if not isinstance(value, dict) or value.get("recipe") is None or "checkpoint" in value or "sha256" in value:
        return value
    changes = dict(value)
    base = changes.pop("recipe")
    try:
        fields, _ = _read(base)
        return _changed(fields, changes)
    except RecipeError as error:
        return _checkpoint_hint(base) or error


def _nested(value: Any, inherited: dict[str, Any]) -> Any:
    """Return the recipe or the weights of what ``_resolved`` returned; by default, a twin that is trained on labels."""
    if value is None:
        try:
            return Recipe(**{**inherited, "method": "ce"})
        except ValidationError:
            return None  # all its fields are those around it, whose problems are reported there
    if isinstance(value, Recipe | Weights):
        return value
    if isinstance(value, RecipeError):
        raise several(value)
    if not isinstance(value, dict):
        problem = f"expected a run folder, a recipe, or a checkpoint with its model, got {value!r}"
        raise several(RecipeError(problem))
    if "checkpoint" in value or "sha256" in value:
        return _validated(Weights, value)
    return _validated(Recipe, {**inherited, **value}, reported=inherited.keys() - value.keys())


def _checkpoint_hint(base: Any) -> RecipeError | None:
    """Return what to say of a recipe that cannot be read where it looks like somebody's weights."""
    if isinstance(base, str | Path) and Path(base).is_file() and Path(base).suffix not in {".yaml", ".yml"}:
        return RecipeError(f"{str(base)!r} is a checkpoint: give it as checkpoint=… with its model=…")
    return None


def _validated(schema: type[BaseModel], values: dict[str, Any], reported: Set[str] = frozenset()) -> BaseModel | None:
    """Validate here, and not as a member of a union, whose errors speak of every alternative.

    Problems of the fields in ``reported`` are left to the recipe around; None if there are no others.
    """
    try:
        return schema(**_named(values))
    except ValidationError as error:
        problems = [text for where, text in describe(error, schema) if not reported & {*where[:1]}]
        if not problems:
            return None
        raise several(RecipeError(problems)) from error


def _named(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the fields with text for keys: YAML also has numbers there."""
    return {str(key): value for key, value in values.items()}


def _same_data(one: Any, other: Any) -> bool:
    try:
        return other is not None and str(parse_dataset_spec(one)) == str(parse_dataset_spec(other))
    except RecipeError:
        return False  # reported where the field itself is validated


def _data_of(victim: Any) -> Any:
    """Return the data set that a victim was trained on: what an attack uses where its recipe names none."""
    if isinstance(victim, Recipe):
        return victim.data
    if not isinstance(victim, dict):
        return None
    return victim["data"] if victim.get("data") is not None else _data_of(_resolved(victim.get("victim")))


def _defaults(method: Objective) -> dict[str, Any]:
    """Return fields that a method sets where the recipe does not."""
    if method.images == "none":
        return {"holdout": 0, "selection": "last"}
    # The epoch that is best on the source's own images may be one before the net was closed to all others.
    return {"selection": "last"} if method.uses_targets else {}


def _data_makers(spec: str) -> Iterator[DatasetFactory]:
    if spec.startswith("instance("):
        return
    parsed = parse_dataset_spec(spec)
    yield DATASETS[parsed.name]
    if isinstance(of := parsed.kwargs.get("of"), str):  # made of another data set
        yield from _data_makers(of)


def _method_of(method: Any) -> Objective | None:
    if method is None or isinstance(method, Objective):
        return method
    try:
        return build_method(method)
    except RecipeError:
        return None  # reported where the field itself is validated


def _in_order(fields: dict[str, Any]) -> dict[str, Any]:
    """Put what a run is first, how it trains next, and the nets that it builds on last."""
    first: dict[str, Any] = {key: fields[key] for key in ("name", "data", "model", "method") if key in fields}
    nets: dict[str, Any] = {key: _in_order(fields[key]) for key in ("adversary", "victim") if key in fields}
    rest = {key: value for key, value in fields.items() if key not in nets and (key != "code" or value)}
    return {**first, **rest, **nets}


def _content(fields: Mapping[str, Any], drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what decides the result: no label, no device, no path."""
    ignored = {"name", "folder", "device", "tensorboard", "checkpoint", "tuning", *drop}
    return {
        key: _content(value, drop) if isinstance(value, Mapping) else value
        for key, value in fields.items()
        if key not in ignored and not (key in _LATER and value == _LATER[key])
    }

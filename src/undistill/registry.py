"""Names for models, data sets and methods, and the spec strings that configure them.

A registry finds its members by importing every module of its package, so a new member is one new file. Other
distributions add members through an entry-point group of the same name as the package, e.g. ``undistill.models``.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from undistill.errors import RecipeError, UnknownNameError

__all__ = ["Registry", "Spec"]

T = TypeVar("T")

_SPEC = re.compile(r"^\s*(?P<name>[\w.\-]+(?::[\w.]+)?)\s*(?P<call>\(.*\))?\s*$", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A name with keyword arguments: ``nasty(temperature=4, weight=0.04)``.

    Attributes:
        name: Registered name, or ``module:callable`` where one is allowed.
        kwargs: Literal keyword arguments.
    """

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: str | Mapping[str, Any] | Spec) -> Spec:
        """Read a spec from its string form or from a mapping with a ``name`` key.

        Only literals are accepted as arguments, so nothing in a spec is ever executed.

        Raises:
            RecipeError: The text is not ``name`` or ``name(key=literal, ...)``.
        """
        if isinstance(value, Spec):
            return value
        if isinstance(value, Mapping):
            kwargs = {str(k): v for k, v in value.items()}
            name = kwargs.pop("name", None)
            if not isinstance(name, str):
                raise RecipeError(f"expected a mapping with a 'name', got {dict(value)!r}")
            return cls(name, kwargs)
        match = _SPEC.match(value) if isinstance(value, str) else None
        if match is None:
            raise RecipeError(f"expected 'name' or 'name(key=value, ...)', got {value!r}")
        call = match["call"]
        return cls(match["name"], _literal_kwargs(call, value) if call else {})

    def __str__(self) -> str:
        args = ", ".join(f"{key}={self.kwargs[key]!r}" for key in sorted(self.kwargs))
        return f"{self.name}({args})" if args else self.name


def _literal_kwargs(call: str, text: str) -> dict[str, Any]:
    """Return the keyword arguments in ``"(a=1, b='x')"``."""
    try:
        node = ast.parse(f"f{call}", mode="eval").body
        # f(a=1)(b=2) is a call too, of what another one returns
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise ValueError("not one call with keywords")
        keys = [keyword.arg for keyword in node.keywords]
        if None in keys or len(set(keys)) < len(keys):
            raise ValueError("keywords out of a mapping, or one of them twice")
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, ValueError) as error:
        raise RecipeError(
            f"cannot read {text!r}: expected 'name(key=value, ...)' with plain values (text in quotes)"
        ) from error


class Registry(Generic[T]):
    """Members of one kind by name.

    Args:
        kind: What a member is, for messages: ``"model"``.
        package: Package whose modules register the built-in members.
        group: Entry-point group of members in other distributions; by default called like the package.
    """

    def __init__(self, kind: str, package: str, group: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self.group = group or package
        self._members: dict[str, T] = {}
        self._loaded = self._loading = False
        self._lock = threading.RLock()

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument under ``name``.

        Raises:
            RecipeError: Another member has that name.
        """

        def decorate(member: T) -> T:
            if name in self._members and self._members[name] is not member:
                raise RecipeError(f"{self.kind} {name!r} is registered twice; choose another name")
            self._members[name] = member
            return member

        return decorate

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        self._load()
        return tuple(sorted(self._members))

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._members

    def __getitem__(self, name: str) -> T:
        """Return the member called ``name``.

        Raises:
            UnknownNameError: There is none; the message names the nearest one.
        """
        self._load()
        try:
            return self._members[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._members) from None

    def _load(self) -> None:
        if self._loaded:
            return
        with self._lock:  # other threads wait for the whole registry; after a failed import the next call tries again
            if self._loaded or self._loading:  # loading: a module looks something up while it is imported
                return
            self._loading = True
            try:
                self._import_members()
                self._loaded = True
            finally:
                self._loading = False

    def _import_members(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry in entry_points(group=self.group):
            try:
                member = entry.load()
            except Exception as error:  # somebody else's package must not take ours down
                warnings.warn(f"{self.kind} {entry.name!r} of another package cannot be loaded: {error}", stacklevel=2)
            else:
                self.register(entry.name)(member)

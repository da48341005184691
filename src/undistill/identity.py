"""What tells a module that was handed over in Python from any other: its content, or the key that its owner gives.

Content is the weights and buffers, the plain attributes of every submodule, and the compiled code of classes and
functions with the globals that they use; of what is installed (PyTorch, this package), the name. Any other object
counts by what ``pickle`` would write of it. What holds more than that (a lock, a session, an open file) is opaque.
"""

from __future__ import annotations

import dis
import os
import sys
from abc import ABC
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from hashlib import sha256
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any
from weakref import ReferenceType

import numpy as np
import torch
from torch import Tensor, nn

from undistill.code import UNKNOWN, code_of
from undistill.errors import RecipeError

__all__ = ["Named", "copy_of", "digest_of", "named", "source_of"]

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented), range, slice)
_TORCH_ATOMS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_TRUSTED = {*sys.stdlib_module_names, "numpy", "torch", "pydantic", "pydantic_core", "undistill"}
_INSTALLED = {"site-packages", "dist-packages"}
_WEIGHTS = {"_parameters", "_buffers", "_modules"}
_CALLED = (FunctionType, staticmethod, classmethod)
_SLOTS = (GetSetDescriptorType, MemberDescriptorType, type(vars(ABC)["_abc_impl"]))
_PICKLING = ("__reduce__", "__reduce_ex__", "__getstate__")


@dataclass(frozen=True)
class Named:
    """A module and its owner's word for what it does; see ``named``."""

    module: nn.Module
    key: str


def named(module: nn.Module, *, key: str) -> Named:
    """Say of a module what its weights do not: of an endpoint, an ONNX session, a wrapped function.

    Give the result as ``model=``, ``victim=`` or ``adversary=``. Runs are found again by the key, the class and the
    weights: give another key whenever the module answers otherwise.

    Args:
        module: Logits (B, K) from normalized images (B, C, H, W).
        key: Any text, such as the endpoint's address with the version of the model behind it.

    Raises:
        RecipeError: That is not a module, or not a text.
    """
    if not isinstance(module, nn.Module) or not isinstance(key, str) or not key.strip():
        raise RecipeError(f"named: expected a torch.nn.Module and a key that is a text, got {module!r} and {key!r}")
    return Named(module, key)


def digest_of(module: nn.Module | Named) -> str:
    """Return the SHA-256 of everything that decides what a module computes, in hexadecimal digits.

    Whether it is in training mode is left out, as training and asking set that themselves.

    Raises:
        RecipeError: The module holds something that nothing tells from another; it names the attribute.
    """
    content = _Content()
    given: object = module
    if isinstance(module, Named):
        weights = [*module.module.named_parameters(), *module.module.named_buffers()]
        given = (module.key, _name(type(module.module)), weights)
    try:
        content.add(given, ())
    except _OpaqueError as error:
        raise RecipeError(
            f"the {type(module).__name__} handed over holds {error}, and nothing tells whether that does the same the "
            "next time; hand over named(module, key='...'), with a key that changes whenever it does something else"
        ) from None
    return content.hexdigest()


def source_of(makers: Iterable[object]) -> tuple[str, ...]:
    """Return digests of the source of what recipes name, sorted; of what is part of this package there are none.

    Args:
        makers: Names of modules, which are not imported; registered classes and functions, which count by their module
            or, where that has no file (in a notebook), by their own code; None for nothing.
    """
    return tuple(sorted({_source(maker) for maker in makers if maker is not None} - {""}))


def _source(maker: object) -> str:
    while isinstance(maker, partial):
        maker = maker.func
    module = maker if isinstance(maker, str) else str(maker.__module__)
    if module.partition(".")[0] == "undistill":
        return ""
    # A process of a pool knows the script that started it by another name.
    source = code_of("__main__" if module == "__mp_main__" else module)
    if isinstance(maker, str) or not source.endswith(f"={UNKNOWN}"):
        return source
    content = _Content()
    try:
        content.add(maker, ())
    except _OpaqueError:
        return source
    return f"{module}.{getattr(maker, '__qualname__', '')}={content.hexdigest()[:16]}"


def copy_of(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares nothing with it but attributes that cannot be copied, such as sessions."""
    try:
        return deepcopy(module)
    except Exception:  # whatever an object raises that is not made to be copied
        held = [value for part in module.modules() for key, value in vars(part).items() if key != "_modules"]
        return deepcopy(module, {id(value): value for value in held if not _copies(value)})


def _copies(value: object) -> bool:
    try:
        deepcopy(value)
    except Exception:
        return False
    return True


class _OpaqueError(Exception):
    def __init__(self, value: object, where: tuple[str, ...]) -> None:
        super().__init__(f"{' -> '.join(where) or 'itself'}, of type {_name(type(value))}")


class _Content:
    """A checksum of values, told apart by type; what occurs twice counts as the same thing the second time."""

    def __init__(self) -> None:
        self._digest = sha256()
        self._met: dict[int, tuple[int, object]] = {}  # with the object, so that its id stays its own

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def add(self, value: Any, where: tuple[str, ...]) -> None:
        """Take a value in.

        Raises:
            _OpaqueError: It, or what it holds, cannot be told from another.
        """
        if type(value) in _ATOMS or isinstance(value, _TORCH_ATOMS):
            self._say(type(value).__name__, repr(value))
        elif type(value) in (tuple, torch.Size):
            self._all(type(value).__name__, value, where)
        elif type(value) is frozenset:
            self._set(value, where)
        elif id(value) in self._met:
            self._say("again", str(self._met[id(value)][0]))
        else:
            self._met[id(value)] = len(self._met), value
            self._add_new(value, where)

    def _add_new(self, value: Any, where: tuple[str, ...]) -> None:
        if isinstance(value, Tensor):
            self._tensor(value, where)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._say("array", repr((value.dtype.str, value.shape)), value.tobytes())
        elif type(value) is list:
            self._all("list", value, where)
        elif type(value) is set:
            self._set(value, where)
        elif isinstance(value, Enum):
            self._say("enum", _name(type(value)), value.name)
            self.add(value.value, where)
        elif isinstance(value, ModuleType):
            self._say("module", code_of(value.__name__) if _own(value.__name__) else value.__name__)
        elif isinstance(value, type):
            self._class(value, where)
        elif _is_installed(value):
            self._say("installed", value.__module__, value.__qualname__)
        elif isinstance(value, FunctionType):
            self._function(value, where)
        elif isinstance(value, CodeType):
            self._code(value, where)
        elif isinstance(value, MethodType | BuiltinFunctionType):
            self._say("method", value.__qualname__)
            self.add(None if isinstance(value.__self__, ModuleType) else value.__self__, where)
            self.add(getattr(value, "__func__", value.__module__), where)
        elif isinstance(value, nn.Module):
            self.add(type(value), where)
            self._items(_attributes(value), where)
        elif isinstance(value, property | cached_property | staticmethod | classmethod):
            parts = ("fget", "fset", "fdel", "func", "__func__")
            self._all(type(value).__name__, [getattr(value, part, None) for part in parts], where)
        elif isinstance(value, ReferenceType):
            self.add(value(), where)
        elif type(value) is dict:
            self._items(value, where)
        else:
            self._object(value, where)

    def _say(self, *texts: str | bytes) -> None:
        self._digest.update(b"%d;" % len(texts))
        for content in (text if isinstance(text, bytes) else text.encode() for text in texts):
            self._digest.update(b"%d:" % len(content))
            self._digest.update(content)

    def _all(self, kind: str, values: Iterable[Any], where: tuple[str, ...]) -> None:
        values = list(values)
        self._say(kind, str(len(values)))
        for value in values:
            self.add(value, where)

    def _items(self, values: Mapping[Any, Any], where: tuple[str, ...]) -> None:
        self._say("items", str(len(values)))
        for key, value in values.items():
            self.add(key, where)
            self.add(value, where if key in _WEIGHTS else (*where, str(key)))

    def _set(self, values: Iterable[Any], where: tuple[str, ...]) -> None:
        digests = []
        for value in values:
            content = _Content()
            content.add(value, where)
            digests.append(content.hexdigest())
        self._say("set", *sorted(digests))

    def _tensor(self, value: Tensor, where: tuple[str, ...]) -> None:
        try:
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        except (RuntimeError, TypeError, NotImplementedError):
            raise _OpaqueError(value, where) from None
        self._say("tensor", repr((value.dtype, tuple(value.shape), value.requires_grad)), content)

    def _class(self, value: type, where: tuple[str, ...]) -> None:
        self._say("class", _name(value))
        if not _own(value.__module__):
            return
        self._all("bases", value.__bases__, where)
        for name, member in sorted(vars(value).items()):
            if isinstance(member, _CALLED) or not (name.startswith("__") or isinstance(member, _SLOTS)):
                self._say("member", name)
                self.add(member, (*where, f"{value.__name__}.{name}"))

    def _function(self, value: FunctionType, where: tuple[str, ...]) -> None:
        self._say("function", f"{value.__module__}.{value.__qualname__}")
        self._all("given", (value.__defaults__, value.__kwdefaults__, vars(value)), where)
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=True):
            self.add(_inside(cell), (*where, f"{name!r} of {value.__name__}()"))
        if _own(value.__module__):
            self.add(value.__code__, where)
            for name in sorted(set(_globals_of(value.__code__)) & value.__globals__.keys()):
                self.add(value.__globals__[name], (*where, f"the global {name!r} of {value.__name__}()"))

    def _code(self, value: CodeType, where: tuple[str, ...]) -> None:
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        self._say("code", repr((names, counts)), value.co_code, value.co_exceptiontable)
        self._all("constants", value.co_consts, where)

    def _object(self, value: object, where: tuple[str, ...]) -> None:
        homes = {base.__module__ for base in type(value).__mro__[:-1] if any(name in vars(base) for name in _PICKLING)}
        if not {home.partition(".")[0] for home in homes} <= _TRUSTED:
            raise _OpaqueError(value, where)  # what it leaves out may decide what it does
        try:
            parts = value.__reduce_ex__(4)
        except Exception:  # whatever an object raises that is not made to be written
            raise _OpaqueError(value, where) from None
        if isinstance(parts, str):
            self._say("global", type(value).__module__, parts)
            self.add(getattr(value, "__wrapped__", None), where)  # lru_cache writes the name only
            return
        make, arguments, state, items, pairs = (*parts[:5], None, None, None)[:5]
        self.add(make, where)
        self._all("arguments", arguments, where)
        self._items(state, where) if isinstance(state, dict) else self.add(state, where)
        self._all("items", items or (), where)
        self._all("pairs", pairs or (), where)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds: weights, modules, hooks, and attributes of its own."""
    empty = vars(nn.Module())
    held = {key: value for key, value in vars(module).items() if key != "training" and (key not in empty or value)}
    hooks = {key for key, value in held.items() if key in empty and isinstance(value, dict)} - _WEIGHTS
    return {key: list(value.values()) if key in hooks else value for key, value in held.items()}  # hooks by their order


def _globals_of(code: CodeType) -> Iterator[str]:
    yield from (str(step.argval) for step in dis.get_instructions(code) if step.opname in {"LOAD_GLOBAL", "LOAD_NAME"})
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def _inside(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return NotImplemented


def _own(module: str | None) -> bool:
    """Whether code is somebody's own, and neither installed nor of this package."""
    top = str(module).partition(".")[0]
    if top in _TRUSTED:
        return False
    file = getattr(sys.modules.get(str(module)), "__file__", None) or ""
    return not _INSTALLED & {*file.split(os.sep)}


def _is_installed(value: object) -> bool:
    """Whether something is what an installed module calls by its name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or _own(module):
        return False
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"

"""The source text that a recipe names and does not hold: what it is now, in sixteen hexadecimal digits.

Of a module it is the file, with every module that it imports from the same folder of the import path (of an installed
one: from the same package), and what these import there, wherever in a file the ``import`` stands. Not covered are
modules elsewhere, installed packages among them, those that are imported by a computed name, and files that code reads.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from undistill.errors import RunError

__all__ = ["UNKNOWN", "check_code", "check_imported", "code_of", "current_directory_importable", "forget_changed"]

UNKNOWN = "unknown"
"""Stands for the digest of a module whose source cannot be found: nothing can be trained with it."""

_INSTALLED = {"site-packages", "dist-packages"}
_STANDARD = os.path.dirname(os.__file__)
# What the file of an imported module said when it was first looked at. Reloading gives a module another __spec__.
_seen: dict[str, tuple[ModuleType, ModuleSpec | None, str]] = {}


def code_of(module: str) -> str:
    """Return ``"module=digest"``; the module is not imported.

    The digest depends on the names and the text of the files, and on no path. It is ``unknown`` where a module has no
    source, or is not there.
    """
    files = _files(module)
    _changed(module, files)  # takes note of what is imported already
    listing = "".join(f"{part} {_sha(text)}\n" for part, text in sorted(files.items()))
    return f"{module}={_sha(listing) if module in files else UNKNOWN}"


def check_code(noted: Iterable[str], now: Iterable[str], *, trains: bool = False) -> None:
    """Refuse source that is another than it was noted to be.

    Args:
        noted: Digests of when a recipe was made, as ``code_of`` writes them.
        now: Those of now.
        trains: Something is about to be trained, so that none may be missing among the noted.

    Raises:
        RunError: It was changed, is not here, or was never noted.
    """
    before, after = (dict(one.rsplit("=", 1) for one in digests) for digests in (noted, now))
    for module, digest in before.items():
        if UNKNOWN in (digest, after.get(module, UNKNOWN)):
            raise RunError(
                f"the source of {module!r} cannot be found, so nothing tells what it does; put it into a file on the "
                "import path or in the current directory"
            )
        if digest != after[module]:
            raise RunError(
                f"the source of {module!r} is not what it was when the recipe was made (digest {digest}, now "
                f"{after[module]}); restore it, or make the recipe anew: by its fields in place of its folder, and "
                "without 'code'"
            )
    if trains and (missing := sorted(after.keys() - before.keys())):
        raise RunError(
            f"nothing tells with what source of {', '.join(missing)} the recipe was made; make it anew, by its fields "
            "in place of its folder"
        )


def check_imported(noted: Iterable[str]) -> None:
    """Refuse a module that was imported before its file, or that of a module that it imports, was changed.

    Raises:
        RunError: What this process computes with is not what the file says.
    """
    for one in noted:
        if changed := _changed(module := one.rsplit("=", 1)[0]):
            raise RunError(
                f"{', '.join(changed)} of {module!r} has changed since this process imported it; start Python again"
            )


def forget_changed(module: str) -> None:
    """Have a module whose source was changed since it was imported, and those that it imports, imported anew."""
    if _changed(module):
        for part in _files(module).keys() - {"__main__"}:
            sys.modules.pop(part, None)


@contextmanager
def current_directory_importable() -> Iterator[None]:
    """Look into the current directory last, so that a file there never hides an installed module."""
    here = os.getcwd()
    sys.path.append(here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def _sha(text: str | bytes) -> str:
    return sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:16]


def _changed(module: str, files: dict[str, bytes] | None = None) -> list[str]:
    """Return which imported files of a module say something else than when they were first looked at."""
    changed = []
    for part, text in (_files(module) if files is None else files).items():
        if (imported := sys.modules.get(part)) is None:
            continue
        now = (imported, imported.__spec__, _sha(text))
        before = _seen.get(part)
        if before is None or before[0] is not now[0] or before[1] is not now[1]:
            _seen[part] = now
        elif before != now:
            changed.append(part)
    return changed


def _files(module: str) -> dict[str, bytes]:
    """Return the files of a module, of the packages that it lies in and of its neighbors that it imports, by name."""
    found: dict[str, bytes] = {}
    with current_directory_importable():
        importing = _find(module, None)
        if module not in importing:
            return {}
        path, family = _neighborhood(module.partition(".")[0], next(iter(importing.values())))
        while importing:
            name, spec = importing.popitem()
            if name in found or spec.origin is None or not os.path.isfile(spec.origin):
                continue
            found[name] = Path(spec.origin).read_bytes().replace(b"\r\n", b"\n")
            for other in _imports(name, spec, found[name]):
                if family in {"", other.partition(".")[0]}:
                    importing |= _find(other, path)
    return found


def _neighborhood(top: str, spec: ModuleSpec) -> tuple[list[str], str]:
    """Return the folders in which imports count, and the package that they must be of; empty for any."""
    inside = spec.submodule_search_locations
    folders = [os.path.dirname(folder) for folder in inside] if inside else [os.path.dirname(str(spec.origin))]
    installed = any(folder == _STANDARD or _INSTALLED & {*Path(folder).parts} for folder in folders)
    return folders, top if installed else ""


def _find(name: str, path: list[str] | None) -> dict[str, ModuleSpec]:
    """Return how a module and the packages around it would be imported, as far as they are found; none is imported."""
    found: dict[str, ModuleSpec] = {}
    if name == "__main__":
        file = getattr(sys.modules[name], "__file__", None)
        return {name: ModuleSpec(name, None, origin=str(file))} if file else {}
    finders = sys.meta_path if path is None else [PathFinder]
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        part = ".".join(parts[:end])
        specs = (finder.find_spec(part, path) for finder in finders if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            break
        found[part] = spec
        if spec.submodule_search_locations is None:
            break
        path = list(spec.submodule_search_locations)
    return found


def _imports(name: str, spec: ModuleSpec, text: bytes) -> Iterator[str]:
    """Yield what a module imports, and what may be a module of it: ``from a import b`` gives ``a.b``."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError):  # a compiled module, or one that cannot be imported either
        return
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*around, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names if base)

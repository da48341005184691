"""The rooms of the package: which of them may know which, and what asking for names may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import undistill

ROOT = Path(undistill.__file__).parent
# From the ground up: a room imports from its own floor's line and from those before it, never from a later one.
FLOORS = (
    ("_version", "errors"),
    ("registry", "storage", "problems", "functional", "code"),
    ("identity",),
    ("data", "models"),
    ("victim",),
    ("objective",),
    ("kernels",),
    ("engine",),
    ("attacks", "defenses"),
    ("methods",),
    ("recipe",),
    ("run",),
    ("workspace",),
    ("console",),
    ("reporting",),
    ("studies",),
    ("orchestrate",),
    ("bench",),
    ("api",),
    ("demo",),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {".".join(("undistill", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports, anywhere in it but for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped and (node.module or "").startswith("undistill"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if file(inner) in MODULES else str(node.module)


def file(module: str) -> str:
    return module if module in MODULES else f"{module}.__init__"


def room(module: str) -> str:
    return module.removeprefix("undistill.").partition(".")[0]


GRAPH = {module: {file(found) for found in imports(path)} - {module} for module, path in MODULES.items()}


def test_every_room_has_its_floor():
    assert {room(module) for module in MODULES} == set(FLOOR)


def test_no_import_runs_upwards():
    upwards = [
        f"{module} imports {found}"
        for module, known in GRAPH.items()
        for found in known
        if found != "undistill.__init__" and FLOOR[room(found)] > FLOOR[room(module)]
    ]
    assert not upwards


def test_no_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"files import each other in a circle: {' -> '.join(error.args[1])}")


def test_the_exact_path_reads_alone():
    fast = {module for module, known in GRAPH.items() for found in known if _exact(module, found)}
    assert fast == {"undistill.engine.train"}


def _exact(module: str, found: str) -> bool:
    inside = module.startswith("undistill.engine.") and not module.startswith("undistill.engine.fast.")
    return inside and found.startswith(("undistill.engine.fast.", "undistill.kernels."))


@pytest.mark.parametrize("ask", ["list_studies", "list_attacks", "list_models", "list_defenses", "list_references"])
def test_asking_for_names_imports_nothing_that_draws_or_runs(ask: str):
    heavy = ("matplotlib", "jinja2", "undistill.orchestrate", "ray", "submitit")
    code = (
        f"import sys, undistill; assert undistill.{ask}(); "
        f"print(sorted(name for name in sys.modules if name.startswith({heavy!r})))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

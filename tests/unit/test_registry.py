"""Names, spec strings, and how a new member is found."""

from __future__ import annotations

import importlib.metadata
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undistill.errors import RecipeError, UnknownNameError
from undistill.registry import Registry, Spec

literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
keys = st.sampled_from(["temperature", "alpha", "path", "hidden", "x_1"])


@settings(max_examples=60)
@given(st.sampled_from(["kd", "resnet18", "my_pkg.nets:Make", "a-b.c"]), st.dictionaries(keys, literals, max_size=4))
def test_spec_round_trip(name: str, kwargs: dict):
    spec = Spec(name, kwargs)
    assert Spec.parse(str(spec)) == spec
    assert str(Spec.parse(str(spec))) == str(spec)
    assert Spec.parse({"name": name, **kwargs}) == spec


@pytest.mark.parametrize(
    ("text", "name", "kwargs"),
    [
        ("resnet18", "resnet18", {}),
        ("  resnet18 ( ) ", "resnet18", {}),
        ("kd(temperature=4, alpha=-.9)", "kd", {"temperature": 4, "alpha": -0.9}),
        ("kd(\n  temperature=4,\n)", "kd", {"temperature": 4}),
        ("mlp(hidden=(16, 8), relu_logits=False)", "mlp", {"hidden": (16, 8), "relu_logits": False}),
        ("my.nets:Net.small(depth=3)", "my.nets:Net.small", {"depth": 3}),
        ("""npz(path="it's (here), a=1.npz")""", "npz", {"path": "it's (here), a=1.npz"}),
        (r"""npz(path='say "a" \'b\' \\n')""", "npz", {"path": "say \"a\" 'b' \\n"}),
    ],
)
def test_spec_text(text: str, name: str, kwargs: dict):
    assert Spec.parse(text) == Spec(name, kwargs)


def test_spec_order_of_arguments_does_not_matter():
    assert str(Spec.parse("kd(temperature=4, alpha=0.9)")) == str(Spec.parse("kd(alpha=0.9, temperature=4)"))


@pytest.mark.parametrize(
    "text",
    [
        "kd(4)",
        "kd(*[1])",
        "kd(**{'temperature': 4})",
        "kd(temperature=tau)",
        "kd(temperature=2 * 2)",
        "kd(temperature=float('nan'))",
        "kd(temperature=f'{1}')",
        "kd(temperature=4, temperature=5)",
        "kd(temperature=4",
        "kd(temperature=4)(alpha=1)",
        "kd(temperature=4).run(alpha=1)",
        "kd(temperature=4) or x(alpha=1)",
        "kd temperature=4",
        "a:b:c",
        "",
        "(a=1)",
        "a/b",
    ],
)
def test_spec_refuses(text: str):
    with pytest.raises(RecipeError, match=r"expected 'name"):
        Spec.parse(text)


@pytest.mark.parametrize("value", [None, 3, ["kd"], {"temperature": 4}, {"name": 4}])
def test_spec_of_another_type(value: object):
    with pytest.raises(RecipeError, match="expected"):
        Spec.parse(value)


def test_spec_executes_nothing(tmp_path: Path):
    target = tmp_path / "executed"
    for text in (
        f"kd(a=open({str(target)!r}, 'w'))",
        f"kd(a=__import__('pathlib').Path({str(target)!r}).touch())",
        f"kd(a=[x for x in (open({str(target)!r}, 'w'),)])",
        f"kd(a=(lambda: open({str(target)!r}, 'w'))())",
    ):
        with pytest.raises(RecipeError, match="plain values"):
            Spec.parse(text)
    assert not target.exists()


def test_registered_twice():
    registry: Registry[object] = Registry("shape", "undistill.data")
    first = registry.register("square")(object())
    assert registry.register("square")(first) is first  # the same one again, as a reloaded module does
    with pytest.raises(RecipeError, match="shape 'square' is registered twice; choose another name"):
        registry.register("square")(object())


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of shapes with one module."""
    package = tmp_path / "shapes_for_test"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from undistill.registry import Registry\nSHAPES = Registry('shape', 'shapes_for_test')\n"
    )
    (package / "square.py").write_text(
        "from shapes_for_test import SHAPES\n\n@SHAPES.register('square')\ndef square():\n    return 4\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield package
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in {"shapes_for_test", "plugin_for_test"}:
            del sys.modules[name]


def shapes() -> Registry:
    return importlib.import_module("shapes_for_test").SHAPES


def test_one_new_file_is_found(plugins: Path):
    (plugins / "triangle.py").write_text((plugins / "square.py").read_text().replace("square", "triangle"))
    found = shapes()
    assert found.names() == ("square", "triangle")
    assert found["triangle"]() == 4
    assert "triangle" in found
    assert "circle" not in found


def test_entry_points_are_found(plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plugin_for_test.py").write_text("def circle():\n    return 0\n")
    dist_info = tmp_path / "plugin_for_test-1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-for-test\nVersion: 1.0\n")
    (dist_info / "entry_points.txt").write_text("[shapes_for_test]\ncircle = plugin_for_test:circle\n")
    assert importlib.metadata.distribution("plugin-for-test").version == "1.0"
    assert shapes().names() == ("circle", "square")
    assert shapes()["circle"]() == 0


def test_entry_point_of_a_taken_name(plugins: Path, monkeypatch: pytest.MonkeyPatch):
    entry = SimpleNamespace(name="square", load=lambda: object())
    monkeypatch.setattr("undistill.registry.entry_points", lambda group: [entry])
    with pytest.raises(RecipeError, match="'square' is registered twice"):
        shapes().names()


def test_a_failed_import_leaves_no_partial_registry(plugins: Path):
    (plugins / "triangle.py").write_text("import there_is_no_such_module\n")
    found = shapes()
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            found.names()
    (plugins / "triangle.py").write_text("# mended: another size than before, so no stale bytecode\n")
    assert found.names() == ("square",)


def test_another_thread_waits_for_the_whole_registry(plugins: Path):
    (plugins / "a_slow_one.py").write_text("import time\ntime.sleep(0.3)\n")  # imported before square
    found, seen = shapes(), []
    threads = [threading.Thread(target=lambda: seen.append(found.names())) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert seen == [("square",)] * 2


def test_a_member_may_look_up_names_while_it_is_imported(plugins: Path):
    (plugins / "triangle.py").write_text(
        "from shapes_for_test import SHAPES\nSEEN = SHAPES.names()\nSHAPES.register('triangle')(3)\n"
    )
    assert shapes().names() == ("square", "triangle")
    assert sys.modules["shapes_for_test.triangle"].SEEN == ("square",)


def test_unknown_name(plugins: Path):
    with pytest.raises(UnknownNameError, match=r"unknown shape 'sqare'; did you mean 'square'\?"):
        shapes()["sqare"]
    with pytest.raises(UnknownNameError, match=r"unknown shape 'zzz'; known: square$"):
        shapes()["zzz"]
    with pytest.raises(LookupError):
        shapes()["zzz"]
    with pytest.raises(RecipeError):
        shapes()["zzz"]

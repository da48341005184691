"""What a run is found again by: everything that decides it, so that two different things never share a folder."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import sys
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import undistill
from undistill import attack, named, train
from undistill.attacks import ATTACKS
from undistill.errors import RecipeError, RunError
from undistill.identity import copy_of, digest_of, source_of
from undistill.orchestrate.executors.worker import work
from undistill.recipe import Recipe, Weights, load_recipe, make_recipe
from undistill.run import Run

DATA = "digits(subset=100, test_subset=50)"
BASE: dict[str, Any] = {"data": DATA, "epochs": 1, "holdout": 0, "selection": "last", "progress": False}
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1)) * 1.0
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with ``edit.py`` in it; what is imported from there is forgotten at the end."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    (tmp_path / "edit.py").write_text(NET)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def recipe(model: str = "edit:Net", **fields: Any) -> Recipe:
    return make_recipe({"data": DATA, "model": model, **fields})


def outcome(run: Run) -> tuple[Path, list[int]]:
    return run.folder, run.load_model()(torch.ones(2, 1, 8, 8)).argmax(1).tolist()


# --- the source of module:callable


def test_a_module_that_is_edited_is_another_run(here: Path):
    first = train(model="edit:Net", **BASE, runs="runs")
    assert train(model="edit:Net", **BASE, runs="runs").folder == first.folder
    assert first.load_model()(torch.ones(1, 1, 8, 8)).abs().max() > 0
    (here / "edit.py").write_text(NET.replace("1.0", "0.0"))
    second = train(model="edit:Net", **BASE, runs="runs")
    assert second.folder != first.folder
    assert second.load_model()(torch.ones(1, 1, 8, 8)).abs().max() == 0  # computed with the new source
    (here / "edit.py").write_text(NET)
    assert train(model="edit:Net", **BASE, runs="runs").folder == first.folder
    assert first.load_model()(torch.ones(1, 1, 8, 8)).abs().max() > 0


def test_what_a_module_imports_beside_it_counts(here: Path):
    package = here / "pack" / "inner"
    package.mkdir(parents=True)
    texts = {
        here / "pack" / "__init__.py": "",
        package / "__init__.py": "",
        package / "nets.py": "import torch\nfrom . import layers\nfrom ..sizes import WIDTH\n" + NET,
        package / "layers.py": "def f():\n    import beside\n",
        here / "pack" / "sizes.py": "WIDTH = 1\n",
        here / "beside.py": "X = 1\n",
    }
    for path, text in texts.items():
        path.write_text(text)
    (here / "stranger.py").write_text("")
    (package / "other.py").write_text("")
    hashes = {recipe("pack.inner.nets:Net").hash}
    for path in texts:
        path.write_text(path.read_text() + "# edited\n")
        hashes.add(recipe("pack.inner.nets:Net").hash)
    assert len(hashes) == 1 + len(texts)
    known = recipe("pack.inner.nets:Net").hash
    (here / "stranger.py").write_text("x = 1\n")
    (package / "other.py").write_text("x = 1\n")
    assert recipe("pack.inner.nets:Net").hash == known  # nobody imports these
    assert "pack" not in sys.modules  # nor did anything of ours import the package


def test_the_digest_is_of_content_wherever_it_lies(here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch):
    known = recipe().code
    other = tmp_path_factory.mktemp("other")
    (other / "edit.py").write_bytes(NET.replace("\n", "\r\n").encode())
    monkeypatch.chdir(other)
    assert recipe().code == known
    assert known[0].startswith("edit=")


def test_a_recipe_is_checked_without_importing_the_module(here: Path):
    (here / "edit.py").write_text("raise SystemExit('imported')\n")
    assert recipe().code
    assert recipe("no_such_module:Net").code == ("no_such_module=unknown",)
    assert recipe("os:system").code == ("os=unknown",)


def test_what_is_part_of_the_package_leaves_the_hash_alone():
    plain = make_recipe({"data": "digits", "model": "cnn", "method": "kd", "victim": {"model": "mlp"}})
    assert plain.code == () == plain.victim.code
    assert "code" not in plain.to_yaml()
    assert plain.hash == "4c47865e7716"  # as before there was such a field


def test_a_module_without_source_trains_nothing(here: Path):
    module = type(sys)("made_up")
    exec(NET, module.__dict__)
    sys.modules["made_up"] = module
    try:
        with pytest.raises(RunError, match=r"source of 'made_up' cannot be found.* put it into a file"):
            train(model="made_up:Net", **BASE, runs="runs")
    finally:
        del sys.modules["made_up"]


@pytest.mark.parametrize("edited", [True, False])
def test_a_finished_run_outlives_its_module(here: Path, edited: bool):
    run = train(model="edit:Net", **BASE, runs="runs")
    thief = attack(victim=run, model="mlp", **{**BASE, "data": None}, runs="runs")
    (here / "edit.py").write_text(NET + "# edited\n") if edited else (here / "edit.py").unlink()
    for known in (run, thief):
        again = Run(known.folder)
        assert again.recipe.hash == known.recipe.hash
        assert again.result == known.result
        assert load_recipe(known.folder).hash == known.recipe.hash
    reason = "is not what it was when the recipe was made" if edited else "cannot be found"
    for use in (
        lambda: Run(run.folder).load_model(),
        lambda: train(run.folder, progress=False),
        lambda: attack(victim=run, model="mlp", **{**BASE, "data": None, "seed": 1}, runs="runs"),
        lambda: attack(victim=str(run.folder), model="mlp", **{**BASE, "data": None, "seed": 1}, runs="runs"),
    ):
        with pytest.raises(RunError, match=f"source of 'edit' {reason}"):
            use()
    changed = load_recipe(run.folder, ["lr=0.05"])  # another recipe is of the source as it is now
    assert changed.code == recipe().code != run.recipe.code
    assert load_recipe(thief.folder, ["lr=0.05"]).victim == thief.recipe.victim  # whose victim is the one it was
    assert load_recipe(thief.folder, ["victim.lr=0.05"]).victim.code == recipe().code


def test_runs_from_before_there_was_a_digest(here: Path):
    run = train(model="edit:Net", **BASE, runs="runs")
    result, before = run.result, outcome(run)
    fields = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    del fields["code"]
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(fields))
    noted = {**result, "recipe_hash": make_recipe({**fields, "code": []}).hash}
    (run.folder / "result.json").write_text(json.dumps(noted))
    old = Run(run.folder)
    assert old.result["recipe_hash"] == old.recipe.hash != run.recipe.hash
    assert outcome(old) == before
    assert attack(victim=old, model="mlp", **{**BASE, "data": None}, runs="runs").finished
    shutil.move(run.folder, f"runs/ce-edit.Net-{old.recipe.hash}")
    assert train(model="edit:Net", **BASE, runs="runs").folder.name != f"ce-edit.Net-{old.recipe.hash}"
    (here / "runs" / f"ce-edit.Net-{old.recipe.hash}" / "result.json").unlink()  # one that was interrupted
    with pytest.raises(RunError, match="with what source of edit the recipe was made"):
        train(f"runs/ce-edit.Net-{old.recipe.hash}", progress=False)


def test_a_worker_holds_to_the_source_of_the_recipe(here: Path):
    known = recipe(epochs=1, name="one")
    sent = pickle.loads(pickle.dumps(known))
    assert (sent.hash, sent.code) == (known.hash, known.code)
    assert [one.kind for one in work(here / "runs", here, None, None, [sent])] == ["finished"]
    other = pickle.loads(pickle.dumps(recipe(epochs=2)))
    (here / "edit.py").write_text(NET + "# edited\n")
    (outcome,) = work(here / "runs", here, None, None, [other])
    assert outcome.kind == "failed"
    assert "source of 'edit' is not what it was" in outcome.text


def test_weights_and_nested_recipes_have_the_source_of_their_model(here: Path):
    victims = [{"model": "edit:Net"}, {"model": "edit:Net", "sha256": "0" * 64}]
    thieves = [{"data": DATA, "model": "mlp", "method": "kd", "victim": victim} for victim in victims]
    before = [make_recipe(thief) for thief in thieves]
    (here / "edit.py").write_text(NET + "# edited\n")
    after = [make_recipe(thief) for thief in thieves]
    for one, other in zip(before, after, strict=True):
        for name in ("hash", "family"):
            assert getattr(one, name) != getattr(other, name)
        assert one.victim.key != other.victim.key
        assert load_recipe(write(here, one.to_yaml())).hash == one.hash


def write(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder


METHOD = """
from undistill.attacks import ATTACKS, Access, Attack, StepOutput, register_attack
from undistill import functional as F

@register_attack("edited")
class Edited(Attack):
    smoke = {}

    def step(self, batch, nets):
        logits = nets.model(batch.x)
        return StepOutput(F.cross_entropy(logits, self.victim(nets).labels(batch.x)) * 1.0, logits)
"""


def test_a_method_of_another_package_counts_by_its_source(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(ATTACKS, "_members", dict(ATTACKS._members))
    (here / "own_attack.py").write_text(METHOD)
    __import__("own_attack")
    thief = {"data": DATA, "model": "mlp", "method": "edited", "victim": {"model": "mlp", "epochs": 1}, "epochs": 1}
    first = attack(None, **thief, runs="runs", progress=False)
    (here / "own_attack.py").write_text(METHOD.replace("1.0", "2.0"))
    assert make_recipe(thief).hash != first.recipe.hash
    with pytest.raises(RunError, match=r"own_attack.* has changed since this process imported it; start Python again"):
        attack(None, **thief, runs="runs", progress=False)


def test_a_method_without_a_file_counts_by_its_code():
    text = "class it:\n    def step(self, batch):\n        return batch * {}\n"
    (one,), (same,), (other,) = (source_of([define(text.format(factor))]) for factor in (1, 1, 2))
    assert one == same != other
    assert one.startswith("written.it=")
    assert source_of([None, undistill.attack, partial(undistill.train)]) == ()


# --- modules that were handed over


class Scaled(nn.Module):
    def __init__(self, scale: Any = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(64, 10)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) * float(self.scale)


class Holding(nn.Module):
    """Holds anything, and computes with none of it."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.inner.held = held

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_plain_attribute_is_another_run(tmp_path: Path):
    one, zero = (train(model=Scaled(scale), **BASE, runs=tmp_path) for scale in (1.0, 0.0))
    assert one.folder != zero.folder
    assert zero.load_model()(torch.ones(1, 1, 8, 8)).abs().max() == 0
    assert train(model=Scaled(1.0), **BASE, runs=tmp_path).folder == one.folder
    stolen = [attack(victim=Scaled(scale), model="mlp", **BASE, runs=tmp_path) for scale in (1.0, 0.0)]
    assert stolen[0].folder != stolen[1].folder


class Color(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Options:
    width: int = 1
    kind: Any = None


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: Any) -> None:
        self.a = a


Pair = namedtuple("Pair", "a b")


def times(factor: float) -> Callable[[Any], Any]:
    return lambda x: x * factor


def define(text: str) -> Any:
    space: dict[str, Any] = {"__name__": "written", "nn": nn, "torch": torch}
    exec(text, space)
    return space["it"]


HELPED = "FACTOR = {}\ndef helper(x):\n    return x * FACTOR\n\ndef it(x):\n    return helper(x)\n"

# Pairs of builders: what they build differs; what one of them builds twice does not.
DIFFERENT: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "number": (lambda: 1, lambda: 2),
    "type of number": (lambda: 1, lambda: 1.0),
    "bool and number": (lambda: True, lambda: 1),
    "text": (lambda: "a", lambda: "b"),
    "nothing": (lambda: None, lambda: ()),
    "list": (lambda: [1, [2]], lambda: [1, 2]),
    "tuple": (lambda: (1, (2, 3)), lambda: ((1, 2), 3)),
    "dict": (lambda: {"a": 1}, lambda: {"a": 2}),
    "ordered dict": (lambda: OrderedDict(a=1), lambda: OrderedDict(b=1)),
    "set": (lambda: {"a", "b", "c"}, lambda: {"a", "b", "d"}),
    "enum": (lambda: Color.RED, lambda: Color.BLUE),
    "dtype": (lambda: torch.float32, lambda: torch.float16),
    "device": (lambda: torch.device("cpu"), lambda: torch.device("cuda")),
    "tensor": (lambda: torch.ones(2), lambda: torch.zeros(2)),
    "shape": (lambda: torch.ones(2, 3), lambda: torch.ones(3, 2)),
    "bfloat16": (lambda: torch.ones(2, dtype=torch.bfloat16), lambda: torch.zeros(2, dtype=torch.bfloat16)),
    "array": (lambda: np.ones(2), lambda: np.zeros(2)),
    "array's scalar": (lambda: np.float32(1), lambda: np.float32(2)),
    "array of objects": (lambda: np.array([None, 1], object), lambda: np.array([None, 2], object)),
    "path": (lambda: Path("a"), lambda: Path("b")),
    "dataclass": (lambda: Options(1, [2]), lambda: Options(1, [3])),
    "slots": (lambda: Slotted(1), lambda: Slotted(2)),
    "named tuple": (lambda: Pair(1, 2), lambda: Pair(1, 3)),
    "function": (lambda: define("def it(x): return x + 1"), lambda: define("def it(x): return x + 2")),
    "default of a function": (lambda: define("def it(x=1): return x"), lambda: define("def it(x=2): return x")),
    "closure": (lambda: times(1), lambda: times(2)),
    "what a function calls": (lambda: define(HELPED.format(1)), lambda: define(HELPED.format(2))),
    "cached function": (
        lambda: lru_cache(define("def it(x): return x + 1")),
        lambda: lru_cache(define("def it(x): return x + 2")),
    ),
    "partial": (lambda: partial(torch.add, 1), lambda: partial(torch.add, 2)),
    "function of torch": (lambda: torch.relu, lambda: torch.sigmoid),
    "function of torch.nn": (lambda: nn.functional.relu, lambda: nn.functional.gelu),
    "bound method": (lambda: Slotted(1).__init__, lambda: Slotted(2).__init__),
    "class": (
        lambda: define("class it:\n    def f(self): return 1"),
        lambda: define("class it:\n    def f(self): return 2"),
    ),
    "attribute of a class": (lambda: define("class it:\n    a = 1"), lambda: define("class it:\n    a = 2")),
    "base of a class": (
        lambda: define("class base:\n    a = 1\nclass it(base): pass"),
        lambda: define("class base:\n    a = 2\nclass it(base): pass"),
    ),
    "generator": (lambda: np.random.default_rng(1), lambda: np.random.default_rng(2)),
    "hidden option of torch": (lambda: nn.AvgPool2d(2), lambda: nn.AvgPool2d(2, ceil_mode=True)),
    "list of modules": (lambda: [Scaled(1)], lambda: [Scaled(2)]),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_attributes_count_by_content(kind: str):
    one, other = DIFFERENT[kind]
    assert digest_of(Holding(one())) == digest_of(Holding(one()))
    assert digest_of(Holding(other())) == digest_of(Holding(other()))
    assert digest_of(Holding(one())) != digest_of(Holding(other()))


def test_classes_of_one_name_are_told_apart_by_what_they_compute():
    text = "class it(nn.Module):\n    def forward(self, x):\n        return x.flatten(1) {} 2\n"
    assert digest_of(define(text.format("+"))()) == digest_of(define(text.format("+"))())
    assert digest_of(define(text.format("+"))()) != digest_of(define(text.format("*"))())


def test_what_else_decides_what_a_module_computes():
    plain, frozen, hooked, tied, buffered = (Holding(None) for _ in range(5))
    frozen.inner[1].weight.requires_grad_(False)
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    tied.inner.held, twice = [tied.inner[1]], Holding(None)
    twice.inner.held = [nn.Linear(64, 10)]
    twice.inner.held[0].load_state_dict(twice.inner[1].state_dict())
    buffered.register_buffer("hidden", torch.ones(1), persistent=False)
    assert len({digest_of(net) for net in (plain, frozen, hooked, tied, twice, buffered)}) == 6
    known = digest_of(plain)
    plain.eval()(torch.ones(2, 1, 8, 8))
    assert digest_of(plain) == known
    again = Holding(None)
    again.register_forward_hook(lambda module, inputs, output: output * 2)
    assert digest_of(again) != known


def test_ordinary_modules_are_not_asked_for_a_key():
    class Logging(nn.Module):
        logger = logging.getLogger("mine")

        def forward(self, x: Tensor) -> Tensor:
            self.logger.debug("called")
            return x

    encoder = nn.TransformerEncoderLayer(8, 2, activation=nn.functional.gelu)
    norm = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    shape = {"num_classes": 10, "in_channels": 3, "image_size": 32}
    ours = [undistill.build_model(name, **shape) for name in ("cnn", "mlp", "lenet", "preresnet20", "mobilenetv2")]
    modules = [nn.Sequential(nn.Linear(2, 2), nn.GELU()), encoder, norm, nn.LSTM(2, 2), Logging(), *ours]
    assert len({digest_of(module) for module in modules}) == len(modules)


ENDPOINT = threading.Lock()


class Ask(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with ENDPOINT:
            return x.flatten(1)[:, :10]


def of(held: Any) -> Callable[[Any], Any]:
    return lambda x: held


class Connection:
    """Leaves out, when it is written, what decides what it answers."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __getstate__(self) -> None:
        return None


@pytest.mark.parametrize(
    ("module", "named_in_message"),
    [
        (lambda: Holding(threading.Lock()), "inner -> held, of type _thread.lock"),
        (lambda: Holding({"a": [of(threading.Lock())]}), r"'held' of <lambda>\(\), of type _thread.lock"),
        (lambda: Holding(sys.__stderr__), "inner -> held, of type _io.TextIOWrapper"),
        (lambda: Holding(x for x in "ab"), "of type builtins.generator"),
        (lambda: Holding(Options(1, threading.Lock())), "inner -> held -> kind, of type _thread.lock"),
        (lambda: Holding(Connection("a")), "inner -> held, of type .*Connection"),
        (lambda: Ask(), r"the global 'ENDPOINT' of forward\(\), of type _thread.lock"),
    ],
)
def test_what_is_opaque_needs_a_key(tmp_path: Path, module: Callable[[], nn.Module], named_in_message: str):
    for use in (lambda net: train(model=net, **BASE, runs=tmp_path), lambda net: attack(victim=net, **BASE)):
        with pytest.raises(RecipeError, match=rf"handed over holds .*{named_in_message}.*named\(module, key="):
            use(module())
    assert not any(tmp_path.iterdir())


class Endpoint(nn.Module):
    """Answers as something does that is out of sight, as an ONNX session or a server would."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.session = Session(label)

    def forward(self, x: Tensor) -> Tensor:
        return self.session.run(x)


class Session:
    def __init__(self, label: int) -> None:
        self.label, self.lock = label, threading.Lock()

    def run(self, x: Tensor) -> Tensor:
        with self.lock:
            return nn.functional.one_hot(torch.full((len(x),), self.label), 10).float()


def test_two_keys_are_two_folders_and_one_is_found_again(tmp_path: Path):
    fields = {**BASE, "model": "mlp", "runs": tmp_path}
    one, two = (attack(victim=named(Endpoint(label), key=f"server {label}"), **fields) for label in (1, 2))
    assert one.folder != two.folder
    assert one.result["selected"] != two.result["selected"]
    assert attack(victim=named(Endpoint(1), key="server 1"), **fields).folder == one.folder
    assert isinstance(one.recipe.victim, Weights)
    twin = undistill.defend(adversary=named(Endpoint(1), key="server 1"), **{**fields, "method": "nasty"})
    assert isinstance(twin.recipe.adversary, Weights)


class Wrapped(Scaled):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.session = Session(0)
        torch.manual_seed(seed)
        nn.init.normal_(self.fc.weight)


def test_a_named_module_is_trained_as_a_copy(tmp_path: Path):
    net = Wrapped()
    before = net.fc.weight.detach().clone()
    run = train(model=named(net, key="a"), **BASE, runs=tmp_path)
    assert torch.equal(net.fc.weight, before)
    assert run.load_model().session is net.session  # which nothing can copy
    net.session.label = 5  # its owner's word is taken for what it does, and its weights are looked at
    assert train(model=named(net, key="a"), **BASE, runs=tmp_path).folder == run.folder
    assert train(model=named(Wrapped(seed=1), key="a"), **BASE, runs=tmp_path).folder != run.folder
    copy = copy_of(nn.Sequential(net))
    assert copy[0].fc.weight is not net.fc.weight


@pytest.mark.parametrize("arguments", [(nn.Identity(), ""), (nn.Identity(), 3), ("mlp", "a")])
def test_a_name_is_a_module_and_a_text(arguments: tuple[Any, Any]):
    with pytest.raises(RecipeError, match=r"named: expected a torch.nn.Module and a key that is a text"):
        named(arguments[0], key=arguments[1])


# --- different content, different hash

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.frozensets(st.integers() | st.text(max_size=2), max_size=3)
    ),
    max_leaves=6,
)


def written(value: Any) -> str:
    """Say a plain value in full, sets in order."""
    if isinstance(value, frozenset):
        return f"set{sorted(map(repr, value))}"
    if isinstance(value, dict):
        return f"dict{[(key, written(inner)) for key, inner in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[written(inner) for inner in value]}"
    return repr(value)


@given(plain, plain)
def test_attributes_that_differ_have_digests_that_differ(one: Any, other: Any):
    assert (digest_of(Holding(one)) == digest_of(Holding(other))) == (written(one) == written(other))


models = st.builds("{}(channels={}, dropout={})".format, st.just("cnn"), st.integers(1, 5), st.sampled_from([0.0, 0.5]))
methods = st.one_of(
    st.builds("label_smoothing(smoothing={})".format, st.sampled_from([0.1, 0.2])),
    st.builds("nasty(weight={}, temperature={})".format, st.sampled_from([0.1, 0.2]), st.sampled_from([2.0, 4.0])),
    st.just("ce"),
)
digests = st.lists(st.sampled_from(["edit=0123456789abcdef", "edit=0123456789abcdee", "own=unknown"]), max_size=2)
worlds = st.fixed_dictionaries(
    {"data": st.builds("digits(subset={})".format, st.integers(20, 25)), "model": models, "method": methods},
    optional={
        "epochs": st.integers(1, 4),
        "lr": st.sampled_from([0.1, 0.2]),
        "seed": st.integers(0, 3),
        "code": digests,
        "schedule": st.sampled_from(["step", "constant"]),
    },
)
weights = st.fixed_dictionaries({"model": models, "sha256": st.sampled_from(["a" * 64, "b" * 64]), "code": digests})
thieves = st.fixed_dictionaries(
    {
        "model": models,
        "data": st.just("digits"),
        "method": st.builds("kd(temperature={})".format, st.sampled_from([1.0, 2.0])),
        "victim": worlds | weights,
    },
    optional={"policy": st.builds("top_k(k={})".format, st.integers(1, 3)), "access": st.just("probs")},
)


@given(*[worlds | thieves] * 2)
def test_recipes_that_differ_have_hashes_that_differ(one: dict[str, Any], other: dict[str, Any]):
    try:
        first, second = make_recipe(one), make_recipe(other)
    except RecipeError:
        return  # of the thief's access
    assert (first.hash == second.hash) == (first == second)
    assert (first.family == second.family) or first.hash != second.hash
    assert first.hash == load_text(first.to_yaml()).hash


def load_text(text: str) -> Recipe:
    fields = yaml.safe_load(text)
    return make_recipe({"code": [], **fields})

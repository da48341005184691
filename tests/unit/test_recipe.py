"""Recipes: what names them, what they take from each other, and what is said of a wrong one."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

import undistill
from undistill.engine.config import Training
from undistill.errors import RecipeError, UnknownNameError
from undistill.models import build_model
from undistill.recipe import Recipe, Weights, list_recipes, load_recipe, make_recipe
from undistill.registry import Spec

PACKAGED = Path(undistill.__file__).parent / "recipes"
BASE: dict[str, Any] = {"data": "digits", "model": "cnn(channels=4)"}
KD: dict[str, Any] = {**BASE, "method": "kd", "victim": {"model": "mlp"}}

# Another value for every field that decides what a run computes.
OTHER: dict[str, Any] = {
    "data": "digits(subset=100)",
    "model": "cnn(channels=8)",
    "method": "label_smoothing",
    "epochs": 7,
    "batch_size": 64,
    "optimizer": "adam",
    "lr": 0.2,
    "momentum": 0.8,
    "weight_decay": 1e-4,
    "schedule": "constant",
    "milestones": (5,),
    "gamma": 0.2,
    "augment": "crop",
    "holdout": 0.2,
    "selection": "last",
    "seed": 1,
    "access": "labels",
    "profile": "fast",
    "code": ["edit=0123456789abcdef"],
}
LABELS: dict[str, Any] = {
    "name": "mine",
    "folder": "/elsewhere",
    "device": "cpu",
    "tensorboard": True,
    "tuning": {"threads": 1},
}


def recipe(**changes: Any) -> Recipe:
    return make_recipe({**BASE, **changes})


def problems(fields: dict[Any, Any]) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        make_recipe(fields)
    return caught.value.problems


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# --- the hash


def test_every_field_is_looked_at():
    # Tested below; policy with the output defenses, what a thief has with its means.
    nets = {"adversary", "victim", "targets", "policy", "transfer", "labels", "queries"}
    assert set(Recipe.model_fields) == {*OTHER, *LABELS, *nets}
    assert set(Training.model_fields) <= {*OTHER, *LABELS, *nets}


@pytest.mark.parametrize("field", OTHER)
def test_hash_depends_on(field: str):
    assert recipe(**{field: OTHER[field]}).hash != recipe().hash


@pytest.mark.parametrize("field", LABELS)
def test_hash_does_not_depend_on(field: str):
    assert recipe(**{field: LABELS[field]}).hash == recipe().hash
    nested = make_recipe({**KD, "victim": {"model": "mlp", field: LABELS[field]}})
    assert nested.hash == make_recipe(KD).hash


def test_hash_does_not_depend_on_how_a_recipe_is_written():
    same = recipe(method={"name": "kd", "alpha": 0.9, "temperature": 4.0}, victim={"model": {"name": "mlp"}})
    assert same.hash == make_recipe({**KD, "method": "kd( temperature = 4 )"}).hash
    assert recipe(lr="1e-1", milestones=[80, 120]).hash == recipe().hash  # the defaults


def test_hash_depends_on_the_victim_and_the_adversary():
    hashes = [make_recipe(KD).hash, make_recipe({**KD, "victim": {"model": "mlp", "lr": 0.3}}).hash]
    hashes += [recipe(method="nasty").hash, recipe(method="nasty", adversary={"epochs": 3}).hash]
    assert len(set(hashes)) == 4


def test_a_checkpoint_counts_by_its_content(tmp_path: Path):
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        net = build_model("mlp", num_classes=10, in_channels=1, image_size=8, seed=seed)
        save_file(net.state_dict(), path)
    a, b, c = (make_recipe({**KD, "victim": {"model": "mlp", "checkpoint": str(path)}}) for path in paths)
    assert a.hash == b.hash != c.hash
    assert isinstance(a.victim, Weights)
    assert a.victim.sha256 == sha256(paths[0].read_bytes()).hexdigest()


def test_family_is_a_recipe_without_its_seeds():
    one, two = make_recipe(KD), make_recipe({**KD, "seed": 1})
    nested = make_recipe({**KD, "victim": {"model": "mlp", "seed": 9}})
    assert one.family == two.family == nested.family
    assert len({one.hash, two.hash, nested.hash}) == 3
    assert recipe(lr=0.2).family != recipe().family
    assert make_recipe({**KD, "victim": {"model": "mlp", "lr": 0.3}}).family != one.family


def test_folder_name():
    assert recipe().folder_name == f"ce-cnn-{recipe().hash}"
    assert recipe(name="mine").folder_name == f"mine-{recipe().hash}"
    assert re.fullmatch("[0-9a-f]{12}", recipe().hash)


# --- packaged recipes

# Table A.3 of the field survey: the authors' params.json.
SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "step", "batch_size": 128}
ADAM = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0, "schedule": "constant", "batch_size": 128, "epochs": 100}
PROTOCOL: dict[str, dict[str, Any]] = {
    "cifar10": {**SGD, "epochs": 160, "milestones": (80, 120), "gamma": 0.1},
    "cifar100": {**SGD, "epochs": 200, "milestones": (60, 120, 160), "gamma": 0.2},
    "tiny_imagenet": {**SGD, "epochs": 200, "milestones": (60, 120, 160), "gamma": 0.2},
}
KD_SPEC = {name: {"temperature": tau, "alpha": 0.9} for name, tau in (("cifar10", 4), ("cifar100", 20))}
KD_SPEC["tiny_imagenet"] = KD_SPEC["cifar100"]
NASTY = {
    "cifar10": {"temperature": 4, "weight": 0.04},
    "cifar100": {"temperature": 20, "weight": 0.005},
    "tiny_imagenet": {"temperature": 20, "weight": 0.01},
}


def packaged() -> list[str]:
    return sorted(str(path.relative_to(PACKAGED).with_suffix("")) for path in PACKAGED.rglob("*.yaml"))


def net_of(source: Recipe | Weights | None) -> Recipe:
    assert isinstance(source, Recipe)
    return source


def test_recipes_are_there():
    assert len(packaged()) >= 80
    assert list_recipes() == tuple(packaged())


@pytest.mark.parametrize("folder", ["demo", "paper/cifar10", "paper/cifar100", "paper/tiny_imagenet"])
def test_packaged_recipes_are_right(folder: str, tmp_path: Path):
    names = [name for name in packaged() if name.startswith(f"{folder}/")]
    assert names
    hashes = set()
    for name in names:
        found = load_recipe(name)
        again = load_recipe(write(tmp_path, found.to_yaml()))
        assert again == found, name
        assert again.hash == found.hash, name
        assert again.to_yaml() == found.to_yaml(), name
        hashes.add(found.hash)
    assert len(hashes) == len(names)  # no recipe twice


@pytest.mark.parametrize("data", PROTOCOL)
def test_paper_values(data: str):
    kinds = []
    for name in packaged():
        if not name.startswith(f"paper/{data}/"):
            continue
        found, title = load_recipe(name), Path(name).name
        kinds.append(found.kind)
        expected = ADAM if Spec.parse(found.model).name in {"cnn", "mlp"} else PROTOCOL[data]
        assert {key: getattr(found, key) for key in expected} == expected, name
        assert (found.data, found.holdout, found.selection, found.augment) == (data, 0, "paper", "auto"), name
        method = Spec.parse(found.method)
        if found.kind == "defense":
            assert (method.name, method.kwargs) == ("nasty", NASTY[data]), name
            twin = net_of(found.adversary)
            assert (twin.model, twin.method) == (found.model, "ce"), name
            assert title == f"nasty_{found.model}"
        elif found.kind == "attack":
            assert (method.name, method.kwargs) == ("kd", KD_SPEC[data]), name
            victim = net_of(found.victim)
            assert found.access == "logits"
            assert title == f"kd_{found.model}__from_{'nasty_' if victim.kind == 'defense' else ''}{victim.model}"
        else:
            assert (method, title) == (Spec("ce"), found.model)
    assert set(kinds) == {"reference", "defense", "attack"}
    assert kinds.count("attack") >= 10


def test_paper_victims_are_the_papers_teachers():
    """A student's recipe and its teacher's share one teacher run, and a nasty one its adversary with the baseline."""
    kd = load_recipe("paper/cifar10/kd_cnn__from_nasty_resnet18")
    nasty = load_recipe("paper/cifar10/nasty_resnet18")
    assert net_of(kd.victim).hash == nasty.hash
    assert net_of(nasty.adversary).hash == load_recipe("paper/cifar10/resnet18").hash
    for seed in (0, 3):
        assert net_of(load_recipe("paper/cifar10/nasty_resnet18", seed=seed).adversary).seed == seed


# --- nets inside


def test_victim_takes_the_world_of_its_thief():
    found = recipe(
        method="kd", victim={"model": "mlp"}, seed=5, holdout=0.3, selection="last", epochs=9, lr=0.7, device="cpu"
    )
    victim = net_of(found.victim)
    world = (victim.data, victim.seed, victim.holdout, victim.selection, victim.device)
    assert world == ("digits", 5, 0.3, "last", "cpu")
    assert (victim.method, victim.epochs, victim.lr) == ("ce", 160, 0.1)  # its own protocol: the defaults
    own = net_of(recipe(method="kd", seed=5, victim={**BASE, "data": "digits(subset=90)", "seed": 2}).victim)
    assert (own.data, own.seed) == ("digits(subset=90)", 2)


def test_default_twin_is_the_same_net_trained_on_labels():
    found = recipe(method="nasty", epochs=9, lr=0.7, seed=4, optimizer="adam", name="mine")
    twin = net_of(found.adversary)
    assert twin == recipe(method="ce", epochs=9, lr=0.7, seed=4, optimizer="adam")
    assert twin.hash == recipe(epochs=9, lr=0.7, seed=4, optimizer="adam").hash


def test_adversary_that_says_less_takes_the_rest():
    found = recipe(method="nasty", epochs=9, lr=0.7, seed=4, adversary={"model": "mlp", "lr": 0.1})
    assert net_of(found.adversary) == make_recipe({**BASE, "model": "mlp", "epochs": 9, "lr": 0.1, "seed": 4})


def test_three_levels_share_one_seed():
    found = recipe(method="kd", victim={"model": "mlp", "method": "nasty"}, seed=6)
    assert net_of(net_of(found.victim).adversary).seed == 6
    assert net_of(net_of(found.victim).adversary).model == "mlp"


def test_victim_by_name_by_file_and_by_run_folder(tmp_path: Path):
    file = write(tmp_path, load_recipe("demo/teacher").to_yaml())
    run = tmp_path / "run"
    run.mkdir()
    write(run, load_recipe("demo/teacher").to_yaml(), "recipe.yaml")
    fields = {**KD, "holdout": 0, "selection": "last"}
    by_name, by_file, by_run = (
        make_recipe({**fields, "victim": source}) for source in ("demo/teacher", str(file), str(run))
    )
    assert by_name.hash == by_file.hash == by_run.hash
    assert net_of(by_run.victim).folder == str(run)
    changed = make_recipe({**fields, "victim": {"recipe": str(run), "seed": 1}})
    assert net_of(changed.victim).folder is None  # another recipe is another run
    assert load_recipe(run).folder == str(run)
    assert load_recipe(run, ["seed=1"]).folder is None


# --- overrides


def test_overrides_at_every_level():
    found = load_recipe(
        "demo/nasty_teacher",
        [
            "lr=0.05",
            "epochs=8",
            "milestones=[2, 4]",
            "method.weight=0.5",
            "model.channels=3",
            "data.subset=200",
            "adversary.epochs=2",
            "adversary.model.channels=5",
            "name=mine",
        ],
    )
    assert (found.lr, found.epochs, found.milestones, found.name) == (0.05, 8, (2, 4), "mine")
    assert Spec.parse(found.method) == Spec("nasty", {"temperature": 10.0, "weight": 0.5})
    assert found.model == "cnn(channels=3)"
    assert found.data == "digits(subset=200)"
    twin = net_of(found.adversary)
    assert (twin.epochs, twin.model, twin.lr, twin.schedule) == (2, "cnn(channels=5)", 0.1, "one_cycle")
    assert net_of(load_recipe("demo/nasty_teacher").adversary).epochs == 60  # the packaged one is as it was


def test_overrides_of_a_victim_and_its_adversary():
    found = load_recipe(
        "demo/mlp",
        ["method=kd", "victim=demo/nasty_teacher", "victim.method.temperature=2", "victim.adversary.seed=3", "seed=1"],
    )
    victim = net_of(found.victim)
    assert Spec.parse(victim.method) == Spec("nasty", {"temperature": 2.0, "weight": 0.03})
    assert (found.seed, victim.seed, net_of(victim.adversary).seed) == (1, 1, 3)


def test_values_come_last():
    assert load_recipe("demo/teacher", ["lr=0.5"], lr=0.25).lr == 0.25


@pytest.mark.parametrize("override", ["lr", "=3", "lr:0.1"])
def test_override_without_a_value(override: str):
    with pytest.raises(RecipeError, match=f"expected key=value, got '{override}'"):
        load_recipe("demo/teacher", [override])


def test_override_inside_a_number():
    with pytest.raises(RecipeError, match=r"lr\.x: 'lr' is 0\.1, which has no fields"):
        load_recipe("demo/teacher", ["lr.x=3"])


# --- recipes on recipes


def test_recipe_on_a_recipe(tmp_path: Path):
    base = write(tmp_path, "recipe: demo/teacher\nmethod: nasty(temperature=8)\nlr: 0.3\n", "base.yaml")
    found = load_recipe(write(tmp_path, f"recipe: {base}\nmethod:\n  weight: 0.7\nepochs: 5\n"))
    assert Spec.parse(found.method) == Spec("nasty", {"temperature": 8.0, "weight": 0.7})
    assert (found.lr, found.epochs, found.schedule, found.data) == (0.3, 5, "one_cycle", "digits(subset=1000)")


def test_recipe_on_itself(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    write(tmp_path, f"recipe: {path}\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml is built on itself"):
        load_recipe(path)
    other = write(tmp_path, f"recipe: {path}\n", "other.yaml")
    write(tmp_path, f"recipe: {other}\n")
    with pytest.raises(RecipeError, match="is built on itself"):
        load_recipe(path)
    with pytest.raises(RecipeError, match=r"victim: .* is built on itself"):
        make_recipe({**KD, "victim": str(path)})


def test_recipe_that_is_its_own_victim(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    write(tmp_path, yaml.safe_dump({**KD, "victim": str(path)}))
    with pytest.raises(RecipeError, match="a recipe is its own victim or adversary"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected fields such as 'data: cifar10', got NoneType"),
        ("- lr", "expected fields such as 'data: cifar10', got list"),
        ("lr: [", "is not a YAML file"),
        ("\x00", "is not a YAML file"),
        ("recipe: 5", "recipe: expected a name or a path, got 5"),
        ("recipe: [demo/teacher]", "recipe: expected a name or a path"),
        ("recipe: demo/teachr", r"unknown recipe 'demo/teachr'; did you mean 'demo/teacher'\?"),
        ("!!python/object/apply:os.getcwd []", "is not a YAML file"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))


def test_file_that_is_not_text(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(RecipeError, match=r"mine\.yaml is not a YAML file"):
        load_recipe(path)


# --- everything that can be wrong


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model": "resnet19"}, "model: unknown model 'resnet19'; did you mean 'resnet18'?"),
        ({"data": "digit"}, "data: unknown data set 'digit'; did you mean 'digits'?"),
        ({"method": "nastyy"}, "method: unknown method 'nastyy'; did you mean 'nasty'?"),
        ({"epoch": 3}, "unknown field 'epoch'; did you mean 'epochs'?"),
        ({"model": "cnn(chanels=4)"}, "model: model 'cnn' has no argument 'chanels'; did you mean 'channels'?"),
        ({"data": "digits(subsets=4)"}, "data: data set 'digits' has no argument 'subsets'; did you mean 'subset'?"),
        ({"method": "ce(temperature=4)"}, "method: ce: unknown field 'temperature'; known: "),
        ({"method": "nasty(temperatur=4)"}, "method: nasty: unknown field 'temperatur'; did you mean 'temperature'?"),
        ({"method": "nasty(temperature=0)"}, "method: nasty: temperature: must be greater than 0, got 0"),
        ({"method": "nasty(weight=-1)"}, "method: nasty: weight: must be greater than or equal to 0, got -1"),
        ({"method": "nasty(weight=1e999)"}, "method: nasty: weight: must be a finite number, got inf"),
        ({"method": "nasty(weight='x')"}, "method: nasty: weight: must be a valid number"),
        ({"method": "label_smoothing(smoothing=1)"}, "method: label_smoothing: smoothing: must be less than 1, got 1"),
        ({"epochs": 0}, "epochs: must be greater than or equal to 1, got 0"),
        ({"epochs": 1.5}, "epochs: must be a valid integer"),
        ({"batch_size": 1}, "batch_size: must be greater than or equal to 2, got 1"),
        ({"lr": 0}, "lr: must be greater than 0, got 0"),
        ({"lr": float("nan")}, "lr: must be a finite number, got nan"),
        ({"lr": "fast"}, "lr: must be a valid number, unable to parse string as a number, got 'fast'"),
        ({"momentum": 1}, "momentum: must be less than 1, got 1"),
        ({"weight_decay": float("inf")}, "weight_decay: must be a finite number, got inf"),
        ({"optimizer": "lion"}, "optimizer: must be 'sgd', 'adam' or 'muon', got 'lion'"),
        ({"schedule": "cosine"}, "schedule: must be 'step', 'one_cycle', 'linear' or 'constant', got 'cosine'"),
        ({"milestones": [5, 5]}, "milestones must increase, got [5, 5]"),
        ({"milestones": [-5, 5]}, "milestones.0: must be greater than or equal to 0, got -5"),
        ({"gamma": 1.5}, "gamma: must be less than or equal to 1, got 1.5"),
        ({"augment": "cutout"}, "augment: must be 'auto', 'alternating', 'none', 'crop', 'crop_flip',"),
        ({"holdout": 1}, "holdout: must be less than 1, got 1"),
        ({"holdout": 0}, "selection=heldout needs holdout > 0; set holdout=0.1, or selection=last"),
        ({"selection": "best"}, "selection: must be 'heldout', 'last' or 'paper', got 'best'"),
        ({"profile": "slow"}, "profile: must be 'exact', 'fast' or 'turbo', got 'slow'"),
        ({"seed": -1}, "seed: must be greater than or equal to 0, got -1"),
        ({"seed": 2**32}, "seed: must be less than 4294967296, got 4294967296"),
        ({"name": "a/b"}, "name: must match pattern"),
        ({"method": "kd"}, "attack 'kd' needs a victim: victim=<run folder, recipe, or checkpoint with its model>"),
        ({"victim": {"model": "mlp"}}, "'ce' is not an attack and takes no victim; remove it, or set method=kd"),
        ({"adversary": {"lr": 0.1}}, "'ce' takes no adversary; remove it, or set method=nasty"),
        ({**KD, "access": "logit"}, "access: must be 'labels', 'probs', 'logits', 'features' or 'gradients'"),
        ({**KD, "method": "kd(alpha=1.1)"}, "method: kd: alpha: must be less than or equal to 1, got 1.1"),
        ({**KD, "method": "kd(alpha=-0.1)"}, "method: kd: alpha: must be greater than or equal to 0, got -0.1"),
        ({**KD, "method": "kd(temperature=-4)"}, "method: kd: temperature: must be greater than 0, got -4"),
        ({**KD, "victim": 5}, "victim: expected a run folder, a recipe, or a checkpoint with its model, got 5"),
        ({**KD, "victim": {"recipe": 5}}, "victim: recipe: expected a name or a path, got 5"),
        ({**KD, "victim": "demo/teachr"}, "victim: unknown recipe 'demo/teachr'; did you mean 'demo/teacher'?"),
        ({**KD, "victim": {"lr": 0.2}}, "victim: model: is missing"),
        ({**KD, "victim": {"model": "mlp", 1: 2}}, "victim: unknown field '1'; known: "),
        ({**KD, "victim": {"model": "mlp", "checkpoint": "x.tar"}}, "victim: no checkpoint at 'x.tar'"),
        ({"data": None}, "data: expected 'name' or 'name(key=value, ...)', got None"),
        ({"model": "a:b:c"}, "model: expected 'name' or 'name(key=value, ...)', got 'a:b:c'"),
        ({"device": 5}, "device: must be a valid string, got 5"),
        ({1: 2}, "unknown field '1'; known: "),
    ],
)
def test_one_mistake_is_one_line(fields: dict[Any, Any], problem: str):
    found = problems({**BASE, **fields})
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_missing_fields():
    assert problems({}) == ("data: is missing", "model: is missing")


def test_all_mistakes_at_once():
    found = problems(
        {
            "data": "digit",
            "model": "cnn(chanels=4, colour=3)",
            "method": "kd(temperature=0, alpha=2, tau=4)",
            "victim": {"model": "resnet19", "lr": -1, "epoch": 4},
            "epochs": 0,
            "momentum": 1,
            "selecton": "last",
        }
    )
    expected = [
        "data: unknown data set 'digit'",
        "model: model 'cnn' has no argument 'chanels'",
        "model: model 'cnn' has no argument 'colour'",
        "method: kd: temperature: must be greater than 0, got 0",
        "method: kd: alpha: must be less than or equal to 1, got 2",
        "method: kd: unknown field 'tau'",
        "victim: model: unknown model 'resnet19'",
        "victim: lr: must be greater than 0, got -1",
        "victim: unknown field 'epoch'",
        "epochs: must be greater than or equal to 1, got 0",
        "momentum: must be less than 1, got 1",
        "unknown field 'selecton'",
    ]
    for start in expected:
        assert sum(line.startswith(start) for line in found) == 1, start
    assert len(found) == len(expected)


@pytest.mark.parametrize("adversary", [None, {"lr": 0.2}])
def test_what_a_net_inherits_is_blamed_once(adversary: dict[str, Any] | None):
    """The twin has the wrong model and the wrong holdout too, as it takes both from the recipe around it."""
    found = problems({**BASE, "model": "resnet19", "method": "nasty", "holdout": 2, "adversary": adversary})
    assert len(found) == 2
    assert {line.partition(":")[0] for line in found} == {"model", "holdout"}
    assert problems({**KD, "data": "digit"}) == ("data: unknown data set 'digit'; did you mean 'digits'?",)


def test_problems_say_where(tmp_path: Path):
    base = write(tmp_path, "data: digits\nmodel: cnn\nlr: -1\ngamma: 3\n", "base.yaml")
    path = write(tmp_path, f"# mine\nrecipe: {base}\nmethod: kd(temperature=0)\n\nvictim:\n  model: mlp\n  lr: 0\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["epochs=0", "gamma=2"])
    assert set(caught.value.problems) == {
        "base.yaml:3 lr: must be greater than 0, got -1",
        "gamma: must be less than or equal to 1, got 2",  # not the one of the file
        "epochs: must be greater than or equal to 1, got 0",
        "mine.yaml:3 method: kd: temperature: must be greater than 0, got 0",
        "mine.yaml:5 victim: lr: must be greater than 0, got 0",
    }
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["method.temperature=-3"], lr=-2, gamma=0.1, victim="demo/teacher")
    assert set(caught.value.problems) == {
        "lr: must be greater than 0, got -2",
        "method: kd: temperature: must be greater than 0, got -3",
    }


def test_weights_given_as_a_recipe(tmp_path: Path):
    path = tmp_path / "net.safetensors"
    save_file(build_model("mlp", num_classes=10, in_channels=1, image_size=8, seed=0).state_dict(), path)
    assert problems({**KD, "victim": str(path)}) == (
        f"victim: {str(path)!r} is a checkpoint: give it as checkpoint=… with its model=…",
    )
    broken = write(tmp_path, "lr: [")
    assert "is not a YAML file" in problems({**KD, "victim": str(broken)})[0]


def test_unknown_recipe_has_its_own_error():
    with pytest.raises(UnknownNameError, match=r"did you mean 'paper/cifar10/resnet18'"):
        load_recipe("paper/cifar10/resnet81")


@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_yaml_of_any_schedule_is_the_same_recipe(epochs: int):
    recipe = make_recipe({"data": "digits", "model": "cnn", "epochs": epochs})
    assert make_recipe(yaml.safe_load(recipe.to_yaml())).hash == recipe.hash
    assert 0 not in recipe.milestones


@pytest.mark.parametrize("value", [3.0, "3", True])
def test_epochs_are_whole_numbers(value: object):
    with pytest.raises(RecipeError, match="epochs: must be a valid integer"):
        make_recipe({"data": "digits", "model": "cnn", "epochs": value})


def test_milestones_move_with_the_epochs(tmp_path: Path) -> None:
    assert load_recipe("paper/cifar10/resnet18", ["epochs=16"]).milestones == (8, 12)  # 80 and 120 of 160
    assert load_recipe("paper/cifar10/resnet18", epochs=40).milestones == (20, 30)
    assert load_recipe("paper/cifar10/resnet18", ["epochs=16", "milestones=[3]"]).milestones == (3,)
    assert load_recipe("paper/cifar10/resnet18", ["epochs=160"]).milestones == (80, 120)
    assert load_recipe("paper/cifar10/resnet18", ["epochs=200", "milestones=[80, 120]"]).milestones == (80, 120)
    written_out = tmp_path / "run.yaml"
    written_out.write_text(load_recipe("paper/cifar10/kd_cnn__from_resnet18").to_yaml())
    for source in ("paper/cifar10/kd_cnn__from_resnet18", written_out):
        for override, expected in (("victim.epochs=40", (20, 30)), ("seed=1", (80, 120))):
            victim = load_recipe(source, [override]).victim
            assert isinstance(victim, Recipe)
            assert victim.milestones == expected
    (tmp_path / "short.yaml").write_text("recipe: paper/cifar100/resnet18\nepochs: 20\n")
    assert load_recipe(tmp_path / "short.yaml").milestones == (6, 12, 16)  # 60, 120 and 160 of 200
    assert load_recipe("paper/cifar10/resnet18", ["epochs=1"]).milestones == ()

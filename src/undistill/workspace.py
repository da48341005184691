"""Who carries recipes out, and where their runs live."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from undistill._version import __version__
from undistill.code import check_code, check_imported
from undistill.data.convert import check_domains
from undistill.data.dataset import UNKNOWN, Dataset, Images
from undistill.data.holdings import Holdings, hold, on_hand, overlap
from undistill.engine.answers import read_answers, write_answers
from undistill.engine.callbacks import Callbacks, MetricsLog, TensorBoard
from undistill.engine.device import pick_device
from undistill.engine.evaluate import ask_all
from undistill.engine.job import Callback, Job, TrainResult
from undistill.engine.train import fit_together
from undistill.errors import CheckpointError, DataError, InterruptedRunError, RecipeError, RunError, RunInUseError
from undistill.functional import agreement, kl_divergence
from undistill.kernels.machine import processor_name
from undistill.models import check_model
from undistill.objective import Frozen, Nets
from undistill.recipe import Recipe
from undistill.run import (
    ANSWERS,
    METRICS,
    PREDICTIONS,
    RECIPE,
    RESULT,
    STATE,
    WEIGHTS,
    Run,
    build_net,
    checksum_of,
    load_data,
)
from undistill.storage import locked, write_json, write_tensors, write_text
from undistill.victim import Access, Victim
from undistill.victim.answers import check_answers
from undistill.victim.asked import Asked
from undistill.victim.sources import Given

__all__ = ["Workspace"]

_LOOKED_AT = 256  # test images whose answers are checked before a thief learns from a victim

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Workspace:
    """Where runs live, and how they are carried out.

    Attributes:
        root: Folder of all run folders.
        device: Overrides the recipes' device where it is given.
        watch: Called with a recipe before its run starts; returns who watches it, or None.
        instances: Objects that stand for ``instance(...)`` specs.
    """

    root: Path
    device: str | None = None
    watch: Callable[[Recipe], Callback | None] = lambda recipe: None
    instances: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def run(self, recipe: Recipe) -> Run:
        """Carry out a recipe and those that it builds on, unless their results are there.

        An interrupted run goes on where it stopped; the same recipe never trains twice.

        Args:
            recipe: What to run.

        Raises:
            AccessError: The attack needs more than the victim gives; before anything is trained.
            DataError: The data set is missing or changed since the run.
            DivergenceError: The loss stopped being finite.
            InterruptedRunError: Ctrl-C.
            RunError: The folder is in use, not writable or holds another recipe's run; or source that the recipe names
                was changed since it was made.
        """
        (outcome,) = self.run_together([recipe])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def run_together(self, recipes: Sequence[Recipe]) -> list[Run | Exception]:
        """Carry out recipes that see the same batches side by side: the same results as one by one, with less work.

        Students of one victim share its forward pass. A run that fails does not stop the others.

        Args:
            recipes: One or more; they agree in ``device`` and ``stream``.

        Returns:
            For each recipe its run, or what stopped it.

        Raises:
            InterruptedRunError: Ctrl-C; every run has saved its state.
            RecipeError: The recipes do not see the same batches.
        """
        for name in ("device", "stream"):
            if len(values := {getattr(recipe, name) for recipe in recipes}) > 1:
                raise RecipeError(f"recipes that run together must see the same batches, but {name} is one of {values}")
        datasets: dict[str, Dataset] = {}
        with ExitStack() as locks:
            found = [_attempt(self._prepare, recipe, datasets) for recipe in recipes]
            found = [_attempt(_lock, one, locks) if isinstance(one, _Prepared) else one for one in found]
            trained = iter(self._train([one for one in found if isinstance(one, _Prepared)]))
            return [next(trained) if isinstance(one, _Prepared) else one for one in found]

    def _prepare(self, recipe: Recipe, datasets: dict[str, Dataset]) -> Run | _Prepared:
        """Check everything that can be checked before training, and carry out what the recipe builds on."""
        device = pick_device(self.device or recipe.device)
        if recipe.kind == "attack":
            Victim(nn.Identity(), access=recipe.victim_access).require(recipe.objective.access, recipe.objective.name)
        run = Run(self._folder(recipe), self.instances)
        _claim(run.folder, recipe)

        def load(spec: str) -> Dataset:
            if spec not in datasets:
                datasets[spec] = load_data(spec, self.instances)
            return datasets[spec]

        data = load(recipe.data)
        targets = tuple(load(target) for target in recipe.targets)
        transfer = None if recipe.transfer is None else load(recipe.transfer)
        check_domains(data, targets)
        _check_policy(recipe, data)
        if run.finished:
            check_code(recipe.code, recipe.code_now)
            _check_unchanged(run, data, targets, transfer)
            return run
        holdings = _holdings(recipe, data, transfer)
        model = build_net(recipe.model, data, recipe.seed, self.instances)
        check_code(recipe.code, recipe.code_now, trains=True)
        check_imported(recipe.code)
        shape = {"num_classes": data.num_classes, "in_channels": data.in_channels, "image_size": data.image_size}
        check_model(model, name=recipe.model, **shape)
        for what, source in recipe.nested.items():
            _check_alike(load(source.data), data, what)
        adversary, victim = (self._source(source) for source in (recipe.adversary, recipe.victim))
        return _Prepared(run, recipe, model, data, targets, transfer, holdings, device, adversary, victim)

    def find(self, recipe: Recipe) -> Run | None:
        """Return the finished run of a recipe, or None."""
        for folder in {self._folder(recipe), self._folder(recipe.model_copy(update={"folder": None}))}:
            run = Run(folder, self.instances)
            if run.finished and run.recipe.hash == recipe.hash:
                return run
        return None

    def _folder(self, recipe: Recipe) -> Path:
        """Return where a recipe's run is or, if there is none yet, will be; its label does not matter."""
        if recipe.folder:
            return Path(recipe.folder)
        folder = self.root / recipe.folder_name
        return folder if folder.exists() else next(self.root.glob(f"*-{recipe.hash}"), folder)

    def source(self, source: Recipe | Given, data: Dataset) -> tuple[nn.Module, Dataset, str]:
        """Return the net of a source in eval mode, the data set that it was trained on, and its weights' checksum.

        Args:
            source: A recipe, which is run first where it has no result, or one that is there already.
            data: Taken for the data set of such a one, which does not tell.
        """
        return _net(self._source(source), data, self.instances)

    def _source(self, source: Recipe | Given | None) -> Run | Given | None:
        if isinstance(source, Recipe):  # whose net has to be trained, unless it has been
            return self.find(source) or self.run(source.model_copy(update={"folder": None}))
        return source

    def _train(self, prepared: Sequence[_Prepared]) -> list[Run | Exception]:
        if not prepared:
            return []
        first = prepared[0]
        data, device, holdings = first.data, first.device, first.holdings
        targets = [target.train for target in first.targets]
        nets = _Nets(data, device, self.instances, holdings)
        with ExitStack() as watching:
            started = [_attempt(self._start, one, nets, watching) for one in prepared]
            jobs = [one.job for one in started if isinstance(one, _Started)]
            fitted = iter(fit_together(jobs, data, device=device, targets=targets, holdings=holdings) if jobs else ())
        return [
            start if isinstance(start, Exception) else _finish(one, start, next(fitted))
            for one, start in zip(prepared, started, strict=True)
        ]

    def _start(self, prepared: _Prepared, nets: _Nets, watching: ExitStack) -> _Started:
        run, recipe, data = prepared.run, prepared.recipe, prepared.data
        _write_recipe(run.folder, recipe)
        sources: dict[str, str] = {}
        frozen = stolen = told = None
        if prepared.adversary is not None:
            net, sources["adversary"] = nets.adversary(prepared.adversary)
            frozen = Frozen(net)
        if prepared.victim is not None:
            stolen, sources["victim"] = nets.victim(prepared.victim, recipe)
            told = nets.told(prepared.victim)
        digest = _inputs_digest(data, (*prepared.targets, *filter(None, [prepared.transfer])), sources)
        if stolen is not None and recipe.queries is not None:
            stolen = nets.asked(stolen, run.folder / ANSWERS, digest)
        callbacks = Callbacks(
            MetricsLog(run.folder / METRICS),
            TensorBoard(run.folder) if recipe.tensorboard else None,
            self.watch(recipe),
        )
        job = Job(
            recipe.objective,
            Nets(prepared.model.to(prepared.device), frozen, stolen),
            recipe,
            state_path=run.folder / STATE,
            callback=watching.enter_context(callbacks),
            inputs_digest=digest,
        )
        return _Started(job, sources, told)


@dataclass(frozen=True)
class _Prepared:
    """A recipe that can be trained, with what it builds on."""

    run: Run
    recipe: Recipe
    model: nn.Module
    data: Dataset
    targets: tuple[Dataset, ...]
    transfer: Dataset | None
    holdings: Holdings
    device: torch.device
    adversary: Run | Given | None
    victim: Run | Given | None


@dataclass(frozen=True)
class _Started:
    """The training job of a run, the checksums of the nets that it builds on, and what its victim says of test images.

    That is the victim's own answer, logits (N, K), whatever a thief gets to see: thieves are measured by it.
    """

    job: Job
    sources: Mapping[str, str]
    told: Tensor | None


@dataclass
class _Nets:
    """The frozen nets of runs that train together; thieves of one victim share it, so that it answers them at once.

    Thieves whom it answers in another way, by its access or its policy, meet another victim.
    """

    data: Dataset
    device: torch.device
    instances: Mapping[str, Any]
    holdings: Holdings
    victims: dict[tuple[Run | Given, Access, str | None], tuple[Victim, str]] = field(default_factory=dict)
    answers: dict[Run | Given, Tensor] = field(default_factory=dict)

    def adversary(self, source: Run | Given) -> tuple[nn.Module, str]:
        net, _, checksum = _net(source, self.data, self.instances)
        _check_fit(net, self.data, "adversary")
        return net.to(self.device), checksum

    def victim(self, source: Run | Given, recipe: Recipe) -> tuple[Victim, str]:
        key = source, recipe.victim_access, recipe.policy
        if key not in self.victims:
            net, known, checksum = _net(source, self.data, self.instances)
            _check_fit(net, self.data, "victim")
            victim = Victim(
                net.to(self.device),
                access=recipe.victim_access,
                trained_on=(known.mean, known.std),
                queried_with=(self.data.mean, self.data.std),
                policy=recipe.output_defense,
            )
            self._check(victim, source, recipe)
            self.victims[key] = victim, checksum
        victim, checksum = self.victims[key]
        return victim.another(), checksum

    def _check(self, victim: Victim, source: Run | Given, recipe: Recipe) -> None:
        """Refuse a victim whose answers are none, before anybody has learned from them."""
        asked = victim.another()
        asked.access = max(asked.access, Access.PROBS)
        some = self.data.test.subset(torch.arange(min(len(self.data.test), _LOOKED_AT)))
        whose = source.recipe.label if isinstance(source, Run) else source.label
        behind = f", behind {recipe.policy}" if recipe.policy else ""
        first, again = (self._ask_all(asked.probs, some) for _ in range(2))
        check_answers(first, again, f"victim {whose}{behind}")

    def told(self, source: Run | Given) -> Tensor:
        """Return what a victim says of the test images, logits (N, K) on the CPU, with nothing held back."""
        if source not in self.answers:
            victim = next(victim for (other, *_), (victim, _) in self.victims.items() if other == source)
            self.answers[source] = self._ask_all(victim.undefended().logits, self.data.test).cpu()
        return self.answers[source]

    def asked(self, victim: Victim, path: Path, digest: str) -> Victim:
        """Return a victim that was asked about every image of the thief's once, as its file or the victim has it.

        Args:
            victim: To be asked, unless that was done.
            path: Of the file that keeps what it said.
            digest: Of images and victim, which answers that were kept must be of.
        """
        kept = read_answers(path, digest)
        if kept is not None:
            return Asked(kept.to(self.device), min(victim.access, Access.LOGITS))
        asked = Asked.of(victim, lambda ask: self._ask_all(ask, self.holdings.images))
        write_answers(path, asked.answers, digest)
        return asked

    def _ask_all(self, ask: Callable[[Tensor], Tensor], images: Images) -> Tensor:
        return ask_all(ask, images, mean=self.data.mean, std=self.data.std, device=self.device)


def _attempt(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Exception:
    """Return what comes out, or what was raised; Ctrl-C is for everybody."""
    try:
        return act(*args, **kwargs)
    except InterruptedRunError:
        raise
    except Exception as error:  # of one run only
        return error


def _lock(prepared: _Prepared, locks: ExitStack) -> Run | _Prepared:
    """Keep other processes out of a run's folder; one of them may have finished it in the meantime."""
    folder = prepared.run.folder
    busy = RunInUseError(f"{folder} is in use by another process; wait for it, or choose another folder")
    locks.enter_context(locked(folder, busy))
    return prepared.run if prepared.run.finished else prepared


def _finish(prepared: _Prepared, started: _Started, fitted: TrainResult | Exception) -> Run | Exception:
    return fitted if isinstance(fitted, Exception) else _attempt(_write_result, prepared, started, fitted)


def _write_result(prepared: _Prepared, started: _Started, fitted: TrainResult) -> Run:
    """Write the weights and then the result, whose presence makes the run finished."""
    run, recipe, data, nets = prepared.run, prepared.recipe, prepared.data, started.job.nets
    weights = run.folder / WEIGHTS
    write_tensors(weights, nets.model.state_dict())
    write_tensors(run.folder / PREDICTIONS, _predictions(fitted.logits, started.told))
    found = asdict(replace(fitted, logits=torch.empty(0)))
    found.pop("logits")
    result = {
        "recipe_hash": recipe.hash,
        "name": recipe.folder_name,
        **found,
        "classes": data.num_classes,
        "test_images": len(data.test),
        "parameters": sum(p.numel() for p in nets.model.parameters()),
        **_means(prepared, started, fitted),
        "weights_sha256": checksum_of(weights),
        "sources_sha256": dict(started.sources),
        "data_fingerprint": data.fingerprint,
        "data_note": data.note,
        **({"target_fingerprints": [target.fingerprint for target in prepared.targets]} if prepared.targets else {}),
        **({"transfer_fingerprint": prepared.transfer.fingerprint} if prepared.transfer is not None else {}),
        "provenance": _provenance(recipe, prepared.device),
    }
    write_json(run.folder / RESULT, result)
    (run.folder / STATE).unlink(missing_ok=True)
    return run


def _means(prepared: _Prepared, started: _Started, fitted: TrainResult) -> dict[str, Any]:
    """Return what a net was made of: images and labels and, for a thief, queries and what he got for them.

    ``fidelity`` is the share of the test images, in 0..1, on which he names the class that the victim names, ``kl`` the
    mean KL(victim ‖ thief) there, in nats. ``answers_right`` is how often the answers that were kept are right about
    his images: where they always are, they are the labels.
    """
    victim, images = started.job.nets.victim, prepared.holdings.images
    used = prepared.recipe.objective.images == "train"
    means = {"images": len(images) if used else 0, "labels": prepared.holdings.labels if used else 0}
    if victim is None or started.told is None:
        return {"queries": None, **means}
    return {
        "queries": victim.queries,
        **means,
        "fidelity": agreement(fitted.logits, started.told),
        "kl": float(kl_divergence(started.told, fitted.logits)),
        "answers_right": _right(victim, prepared.holdings.truth),
        **_overlaps(prepared),
    }


def _overlaps(prepared: _Prepared) -> dict[str, int]:
    """Return how many of a thief's own images are the owner's: a theft looks better for each of these."""
    images, data = prepared.holdings.images, prepared.data
    if prepared.transfer is None:
        return {}
    return {"images_of_owner": overlap(images, data.train), "images_of_test": overlap(images, data.test)}


def _right(victim: Victim, truth: Tensor) -> float | None:
    """Return the share of images about which kept answers name their class; None where nobody knows one."""
    known = truth != UNKNOWN
    if not isinstance(victim, Asked) or not bool(known.any()):
        return None
    return agreement(victim.named.cpu()[known], truth[known])


def _predictions(logits: Tensor, told: Tensor | None) -> dict[str, Tensor]:
    """Return the classes that a net names for the test images and, for a thief, those that his victim names."""
    named = {"own": logits} if told is None else {"own": logits, "victim": told}
    return {of: answers.argmax(dim=1).to(torch.int32) for of, answers in named.items()}


def _holdings(recipe: Recipe, data: Dataset, transfer: Dataset | None) -> Holdings:
    """Return what a recipe trains on."""
    asks = recipe.kind == "attack"
    method = recipe.objective
    images = on_hand(data, transfer, labels=recipe.labels is not False and (method.uses_labels or not asks))
    held = hold(images, labels=recipe.labels, queries=recipe.queries, asks=asks)
    if held.labels < len(held.images) and method.uses_labels and not method.partial_labels:
        raise RecipeError(
            f"{method.name!r} needs the label of every image, and {recipe.transfer or recipe.data} has images without; "
            "choose another data set, or an attack that does without, such as hard_label"
        )
    return held


def _inputs_digest(data: Dataset, targets: Sequence[Dataset], sources: Mapping[str, str]) -> str:
    """Return the digest of what a saved state was trained with."""
    others = tuple(target.fingerprint for target in targets)
    return sha256(repr((data.fingerprint, *others, sorted(sources.items()))).encode()).hexdigest()


def _provenance(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "undistill": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "profile": recipe.profile,
        "seed": recipe.seed,
    }


def _claim(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder that holds the run of another recipe, or files that are not a run's."""
    if (folder / RECIPE).is_file():
        found = Run(folder).recipe
        if found.hash != recipe.hash:
            raise RunError(
                f"{folder} holds the run of another recipe ({found.folder_name}); choose another folder, or delete it"
            )
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise RunError(f"{folder} is not empty and not a run; choose another folder")


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    if not (folder / RECIPE).is_file():
        write_text(folder / RECIPE, recipe.to_yaml())


def _check_unchanged(run: Run, data: Dataset, targets: Sequence[Dataset], transfer: Dataset | None) -> None:
    recipe, result = run.recipe, run.result
    sets = [(recipe.data, result["data_fingerprint"], data)]
    sets += zip(recipe.targets, result.get("target_fingerprints", ()), targets, strict=True)
    if transfer is not None:
        sets.append((str(recipe.transfer), result["transfer_fingerprint"], transfer))
    for spec, before, now in sets:
        if before != now.fingerprint:
            raise DataError(
                f"{run.folder} was trained on other images: data set {spec!r} has changed since; "
                "restore it, or delete the folder to train anew"
            )


def _net(source: Run | Given | None, data: Dataset, instances: Mapping[str, Any]) -> tuple[nn.Module, Dataset, str]:
    if isinstance(source, Run):
        return source.load_model(), source.dataset(), source.result["weights_sha256"]
    if source is None:
        raise RunError("there is no net to load")
    return source.load(lambda spec: build_net(spec, data, None, instances)), data, source.checksum


def _check_policy(recipe: Recipe, data: Dataset) -> None:
    """Let an output defense answer once, so that one that does not suit the classes is refused before any training."""
    if recipe.output_defense is not None:
        blank = torch.zeros(1, data.in_channels, data.image_size, data.image_size)
        recipe.output_defense(torch.full((1, data.num_classes), 1 / data.num_classes), blank)


def _check_alike(known: Dataset, data: Dataset, what: str) -> None:
    """Refuse a net that is yet to be trained on other images or classes, before it is."""
    theirs, ours = ((d.num_classes, d.in_channels, d.image_size) for d in (known, data))
    if theirs != ours:
        text = "{} classes of {}x{size}x{size}".format
        raise CheckpointError(
            f"the {what} is trained on {known.name} ({text(*theirs[:2], size=theirs[2])}), which does not fit "
            f"{data.name} ({text(*ours[:2], size=ours[2])}); choose one for the same images and classes"
        )


def _check_fit(net: nn.Module, data: Dataset, what: str) -> None:
    """Refuse a net for other images or another number of classes, before any training."""
    first = next(net.parameters(), None)
    shape = (2, data.in_channels, data.image_size, data.image_size)
    try:
        with torch.no_grad():
            answer = net(torch.zeros(shape, device=None if first is None else first.device))
    except Exception as error:  # somebody else's net may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"the {what} cannot take images of shape {shape[1:]}: {reason}; choose a net trained on such images"
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        raise CheckpointError(f"the {what} does not answer with logits (B, K); wrap it in a module that does")
    if not answer.isfinite().all():
        raise CheckpointError(f"the {what} answers NaN or infinity; its weights are broken, choose another checkpoint")
    if answer.shape[1] != data.num_classes:
        raise CheckpointError(
            f"the {what} answers {answer.shape[1]} classes, but {data.name} has {data.num_classes}; "
            "choose a net trained for the same classes"
        )

"""When each run of a plan is started, and what becomes of those that are lost. Where they run is a pool's business."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from undistill.engine.interrupt import stop_on_interrupt
from undistill.errors import InterruptedRunError
from undistill.orchestrate.plan import Step
from undistill.orchestrate.progress import Observer, Silence
from undistill.recipe import Recipe
from undistill.run import Failure, Run
from undistill.storage import write_text
from undistill.workspace import Workspace

__all__ = ["At", "Ended", "Event", "Executor", "Lost", "Outcome", "Pool", "Unit", "summary", "units"]

_ATTEMPTS = 2


@dataclass(frozen=True, eq=False)
class Unit:
    """Steps that one worker carries out together."""

    steps: tuple[Step, ...]

    @property
    def recipes(self) -> list[Recipe]:
        """What to run."""
        return [step.recipe for step in self.steps]


@dataclass(frozen=True)
class Outcome:
    """What became of one run of a unit.

    Attributes:
        kind: ``interrupted`` means that it saved its state and can go on; ``busy``, that another process has it.
        text: Its accuracy, or why it failed, in one line.
        story: The traceback of a failure.
    """

    kind: Literal["finished", "failed", "interrupted", "busy"]
    text: str = ""
    story: str = ""


@dataclass(frozen=True)
class At:
    """So many epochs of a run are done; ``text`` is what was measured last."""

    hash: str
    epochs: float
    text: str


@dataclass(frozen=True)
class Ended:
    """A worker is through with a unit; one outcome a step."""

    unit: Unit
    outcomes: Sequence[Outcome]


@dataclass(frozen=True)
class Lost:
    """The process, job or machine that had a unit is gone, and how: ``killed by signal 9``."""

    unit: Unit
    how: str
    story: str = ""


Event = At | Ended | Lost


class Pool(ABC):
    """Workers that carry out units.

    Attributes:
        slots: Units that it carries out at a time.
    """

    slots: int

    def adopt(self, steps: Sequence[Step]) -> Iterable[Unit]:
        """Return units of these steps that an earlier coordinator started and that are still under way."""
        return ()

    @abstractmethod
    def start(self, unit: Unit) -> None:
        """Have a unit carried out."""

    @abstractmethod
    def listen(self) -> Iterable[Event]:
        """Wait a moment, and return what happened to the units that were started."""

    @abstractmethod
    def stop(self) -> None:
        """Have every unit save its states and stop; return when they have, or had the time for it."""

    @abstractmethod
    def close(self) -> None:
        """Leave nothing running."""


@dataclass(frozen=True)
class Executor(ABC):
    """Carries out plans somewhere.

    Attributes:
        root: Folder of all runs, which every worker sees.
        logs: Folder for what is known about runs that failed.
        jobs: Units at a time; None for as many as the place holds.
        threads: CPU threads of each; None for as many as torch takes.
        device: Overrides the recipes' device where it is given.
    """

    root: Path
    logs: Path
    jobs: int | None = None
    threads: int | None = None
    device: str | None = None

    @abstractmethod
    def open(self) -> Pool:
        """Return workers, ready to take units.

        Raises:
            MissingExtraError: What they need is not installed.
            RunError: They cannot be reached, or cannot see the folder of runs.
        """

    def carry_out(self, steps: Sequence[Step], observer: Observer | None = None) -> dict[str, Failure]:
        """Run steps, each as soon as what it needs is finished; those that attack one victim alike go together.

        A run that fails does not stop the others; what needs it is skipped. One whose process dies (killed, out of
        memory, with its machine) is tried again and goes on from its last state, until it dies twice without having
        come an epoch further.

        Args:
            steps: In topological order; what they need besides each other has its result.
            observer: Told about everything that happens.

        Returns:
            Why runs have no result, by hash.

        Raises:
            InterruptedRunError: Ctrl-C or SIGTERM; the same call goes on.
        """
        observer = observer or Silence()
        try:
            pool = self.open()
            try:
                return _Schedule(pool, Workspace(self.root), self.logs, list(steps), observer).carry_out()
            finally:
                pool.close()
        finally:
            observer.close()


def units(ready: Iterable[Step], slots: int, alone: Iterable[str] = ()) -> list[Unit]:
    """Return what to start next: ready steps that see the same batches and victim together, in order.

    A shared pass of the victim saves less than an idle slot costs, so groups are split while there are too few.

    Args:
        ready: Steps that could start now.
        slots: Units that could start now.
        alone: Hashes of steps that share with nobody: one of them may have taken a whole unit down.
    """
    alone = set(alone)
    groups: dict[object, list[Step]] = {}
    for step in ready:
        groups.setdefault(step.hash if step.hash in alone else _shared(step), []).append(step)
    found = list(groups.values())
    while len(found) < slots and (largest := max(found, key=len, default=[])) and len(largest) > 1:
        where, half = found.index(largest), (len(largest) + 1) // 2
        found[where : where + 1] = [largest[:half], largest[half:]]
    return [Unit(tuple(group)) for group in found[: max(slots, 0)]]


def _shared(step: Step) -> object:
    """Return what steps of one unit have in common; steps that attack nobody have nothing to share."""
    recipe = step.recipe
    if recipe.kind != "attack":
        return step.hash
    victim = step.needs or recipe.victim  # its run, or weights
    return victim, recipe.access, recipe.device, recipe.stream


def summary(run: Run) -> str:
    """Return what is told of a finished run."""
    collapsed = ", collapsed" if run.collapsed else ""
    return f"{run.accuracy:.2f} %{collapsed}, {run.result['seconds']:,.1f} s"


@dataclass
class _Schedule:
    pool: Pool
    workspace: Workspace
    logs: Path
    waiting: list[Step]
    observer: Observer
    busy: list[Unit] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)  # in a row, without an epoch in between
    reached: dict[str, int] = field(default_factory=dict)  # epochs done at the last loss
    finished: int = 0

    def carry_out(self) -> dict[str, Failure]:
        total = len(self.waiting)
        with stop_on_interrupt() as request:
            for unit in self.pool.adopt(self.waiting):
                self.take(unit)
            while self.waiting or self.busy:
                self.skip_hopeless()
                for unit in units(self.ready(), self.pool.slots - len(self.busy), self.losses):
                    self.take(unit)
                    self.pool.start(unit)
                for event in self.pool.listen() if self.busy else ():
                    self.hear(event)
                if request.asked:
                    self.pool.stop()
                    raise InterruptedRunError(
                        f"interrupted with {self.finished} of {total} runs finished; "
                        "run the same command again to go on"
                    )
        return self.failures

    def take(self, unit: Unit) -> None:
        self.busy.append(unit)
        for step in unit.steps:
            self.waiting.remove(step)
            self.observer.started(step.recipe)

    def ready(self) -> list[Step]:
        under_way = [step for unit in self.busy for step in unit.steps]
        unfinished = {step.hash for step in (*self.waiting, *under_way)}
        return [step for step in self.waiting if not unfinished & set(step.needs)]

    def skip_hopeless(self) -> None:
        """Lose every run that needs a lost one; in topological order, so that what needs it in turn comes after."""
        for step in list(self.waiting):
            lost = next((self.failures[need] for need in step.needs if need in self.failures), None)
            if lost is not None:
                self.waiting.remove(step)
                self.fail(step, lost.passed_on())

    def hear(self, event: Event) -> None:
        if isinstance(event, At):
            step = next((step for unit in self.busy for step in unit.steps if step.hash == event.hash), None)
            if step is not None:
                self.observer.at(step.recipe, event.epochs, event.text)
            return
        self.busy.remove(event.unit)
        if isinstance(event, Lost):
            for step in event.unit.steps:
                self.again(step, event.how, event.story)
            return
        for step, outcome in zip(event.unit.steps, event.outcomes, strict=True):
            if outcome.kind == "finished":
                self.finish(step, outcome.text)
            elif outcome.kind == "failed":
                self.fail(step, self.logged(step, outcome.text, outcome.story))
            elif outcome.kind == "interrupted":  # by a signal to its worker alone; it saved its state
                self.waiting.insert(0, step)
            else:
                self.again(step, "kept waiting by another process")

    def finish(self, step: Step, text: str) -> None:
        self.finished += 1
        self.observer.ended(step.recipe, text, ok=True)

    def fail(self, step: Step, failure: Failure) -> None:
        self.failures[step.hash] = failure
        self.observer.ended(step.recipe, failure.reason, ok=False)

    def again(self, step: Step, how: str, story: str = "") -> None:
        """Put a run back in line whose process was lost, unless it has its result, or is lost again and again."""
        run = self.workspace.find(step.recipe)
        if run is not None:
            self.finish(step, summary(run))
            return
        epochs = len(Run(self.workspace.root / step.recipe.folder_name).metrics)
        further = epochs > self.reached.get(step.hash, epochs)
        losses = self.losses[step.hash] = 1 if further else self.losses.get(step.hash, 0) + 1
        self.reached[step.hash] = epochs
        if losses < _ATTEMPTS:
            self.waiting.insert(0, step)
        else:
            reason = f"its process was {how}, {losses} times"
            self.fail(step, self.logged(step, reason, story or reason))

    def logged(self, step: Step, reason: str, story: str) -> Failure:
        log = self.logs / f"{step.recipe.folder_name}.log"
        write_text(log, f"{step.recipe.to_yaml()}\n{story}\n")
        return Failure(reason, log, step.recipe.folder_name)

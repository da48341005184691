"""The skeptical student (Kundu et al., 2021): only a shallow part of it listens to the victim."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from undistill import functional as F
from undistill.attacks import (
    Access,
    Attack,
    Batch,
    Field,
    Frame,
    Nets,
    Paper,
    Range,
    Search,
    StepOutput,
    register_attack,
)
from undistill.errors import RecipeError
from undistill.models.features import logits_and_outputs

__all__ = ["Skeptical"]


@register_attack("skeptical")
class Skeptical(Attack):
    """Learn from softened answers at an exit on the way only, at the end from true labels.

    loss = CE(s, y) + (1 - β) CE(d, y) + β KL(softmax(s/τ) ‖ softmax(d/τ))
         + α τ² KL(softmax(t/τ) ‖ softmax(e/τ)) + (1 - α) CE(e, y),

    where s are the student's logits, t the victim's, d those of the student's last exit and e those of the exit that
    listens. Gradients of the victim's answers reach the layers before that exit, and none after it. The third term has
    no τ², and its gradient reaches both sides.

    An exit is a classifier that is trained with the student and thrown away. One comes after the last layer of each
    size of maps but the smallest: in a ResNet-18 after its first three stages, as in the paper. It has two separable
    convolutions and half the size for each size that is still to come, the mean of every channel, and a linear layer.
    In a student without maps of two sizes one comes after each hidden linear layer, with a ReLU and a linear layer.

    Probabilities do as well as logits. Every image needs its label, from which the student's own logits learn.

    Paper vs ours: the formula is that of the authors' code, whose other exits are trained by nothing. There the victim
    is heard, and the exits are trained, after some epochs (5 to 20 in public settings) of CE(s, y) alone; here from the
    start. There each exit also weights its maps, pixel by pixel, with a sigmoid of convolutions; here it takes them as
    they are.
    """

    access = Access.PROBS
    uses_labels = True
    paper = Paper(
        "Analyzing the Confidentiality of Undistillable Teachers in Knowledge Distillation",
        "NeurIPS",
        2021,
        "https://papers.nips.cc/paper/2021/hash/4ca82782c5372a547c104929f03fe7a9-Abstract.html",
    )
    search: ClassVar[Search] = {
        "temperature": Range(1, 32, log=True),
        "alpha": Range(0.3, 1),
        "listener": (1, 2, 3),
    }
    smoke: ClassVar[dict[str, Any]] = {}

    temperature: float = Field(4.0, gt=0, description="τ: 20 in public settings for CIFAR-100")
    alpha: float = Field(0.9, ge=0, le=1, description="α, the share of the victim's answers in the loss of their exit")
    own: float = Field(
        0.3, ge=0, le=1, description="β, the share of the student's answers in the loss of the last exit"
    )
    listener: int = Field(
        2,
        ge=1,
        strict=True,
        description="which exit listens, counted from the end: 2 or 3 in public settings; where there are fewer, the "
        "first of the net",
    )

    def modules(self, nets: Nets, frame: Frame) -> nn.ModuleDict:
        """Return the exit that listens and, where that is another, the last one: ``listener`` and ``last``.

        Raises:
            RecipeError: The student has neither maps of two sizes nor a hidden linear layer.
        """
        model = nets.model
        device = next(model.parameters()).device
        blank = torch.zeros(1, frame.in_channels, frame.image_size, frame.image_size, device=device)
        training = model.training
        places = _places(model.eval(), blank)
        model.train(training)
        if not places:
            raise RecipeError(
                f"attack {self.name!r} needs a student with a place for an exit, maps of two sizes or a hidden linear "
                f"layer; {type(model).__name__} has none"
            )
        last = len(places) - 1
        chosen = {"listener": max(last + 1 - self.listener, 0)}
        if chosen["listener"] < last:
            chosen["last"] = last
        return nn.ModuleDict(
            {
                name: _Exit(*places[at], halvings=last + 1 - at, num_classes=frame.num_classes)
                for name, at in chosen.items()
            }
        )

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch; logs ``ce``, ``listener`` and ``last``, of the three classifiers."""
        answers = self.victim(nets).scores(batch.x)
        exits = {name: one for name, one in nets.modules.items() if isinstance(one, _Exit)}
        logits, outputs = logits_and_outputs(nets.model, batch.x, [one.layer for one in exits.values()])
        scores = {name: one(output.float()) for (name, one), output in zip(exits.items(), outputs, strict=True)}
        heard, last = scores["listener"], scores.get("last", scores["listener"])
        ce = F.cross_entropy(logits, batch.y)
        of_listener = F.kd_loss(heard, answers, batch.y, temperature=self.temperature, alpha=self.alpha)
        of_last = (1 - self.own) * F.cross_entropy(last, batch.y)
        of_last = of_last + self.own * F.kl_divergence(logits, last, self.temperature)
        logs = {"ce": ce, "listener": of_listener, "last": of_last}
        return StepOutput(ce + of_last + of_listener, logits, logs)


class _Exit(nn.Sequential):
    """A classifier of what one layer of a net returns.

    Args:
        layer: Its name in the net.
        shape: Of its output for one image: (C, H, W), or (D,).
        halvings: How often maps are halved, and their channels doubled.
        num_classes: Number of logits.
    """

    def __init__(self, layer: str, shape: tuple[int, ...], *, halvings: int, num_classes: int) -> None:
        width = shape[0]
        if len(shape) == 1:
            super().__init__(nn.ReLU(), nn.Linear(width, num_classes))
        else:
            halved = [_halve(width * 2**at) for at in range(halvings)]
            pool = nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
            super().__init__(*halved, *pool, nn.Linear(width * 2**halvings, num_classes))
        self.layer = layer


def _halve(channels: int) -> nn.Sequential:
    """Return two separable convolutions, from maps (B, C, H, W) to (B, 2 C, H/2, W/2), rounded up."""
    return nn.Sequential(*_separable(channels, channels, stride=2), *_separable(channels, 2 * channels, stride=1))


def _separable(inputs: int, outputs: int, *, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


@torch.no_grad()
def _places(model: nn.Module, x: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Return the layers after which a net may have an exit, in the order in which they run, with their output's shape.

    Of the layers that return maps of one size it is the outermost one, and of several such the last: what is inside of
    a block may not be all that the block passes on. One that returns several shapes is passed over.
    """
    shapes: dict[str, set[tuple[int, ...]]] = {}
    linear: set[str] = set()

    def listen(name: str) -> Any:
        def note(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            shapes.setdefault(name, set()).add(tuple(output.shape[1:]) if isinstance(output, Tensor) else ())
            if isinstance(module, nn.Linear):
                linear.add(name)

        return note

    hooks = [module.register_forward_hook(listen(name)) for name, module in model.named_modules() if name]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = {name: next(iter(found)) for name, found in shapes.items() if len(found) == 1}
    maps: dict[tuple[int, ...], str] = {}
    for name, shape in outputs.items():
        size = shape[1:]
        if len(size) == 2 and max(size) > 1 and name.count(".") <= maps.get(size, name).count("."):
            maps[size] = name
    names = list(maps.values())
    if len(names) < 2:
        names = [name for name, shape in outputs.items() if name in linear and len(shape) == 1]
    return [(name, outputs[name]) for name in names[:-1]]

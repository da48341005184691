"""Softened answers of a normal and of a nasty teacher to the same images."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import Field

from undistill.reporting.cell import Plain, Shown
from undistill.reporting.parts import Grid, GridRow, Part, register_part
from undistill.reporting.style import OTHER, TRUE, new_figure, swatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["Example", "Picture", "Responses"]

_NAMED_CLASSES = 20  # more names than that do not fit below bars


class Picture(Plain):
    """An image in plain values, uint8 (H, W, C)."""

    width: int
    height: int
    channels: int
    pixels_base64: str

    @classmethod
    def of(cls, image: Tensor) -> Self:
        """Return an image of uint8 (C, H, W)."""
        channels, height, width = image.shape
        pixels = image.permute(1, 2, 0).contiguous().cpu().numpy().tobytes()
        return cls(
            width=width, height=height, channels=channels, pixels_base64=base64.b64encode(pixels).decode("ascii")
        )


class Example(Plain):
    """An image of the test set, and the probabilities that both teachers give its classes.

    Attributes:
        index: In the test set.
        label: Its class.
        image: To look at.
        both_right: Whether both teachers name its class.
        normal: Of the normal teacher, softened, by class.
        nasty: Of the nasty teacher, likewise.
    """

    index: int
    label: int
    image: Picture
    both_right: bool
    normal: tuple[float, ...]
    nasty: tuple[float, ...]


@register_part("responses")
class Responses(Part):
    """Softened answers; where a teacher is missing there are none.

    Attributes:
        runs: Folders of the teachers.
        temperature: τ.
        classes: Names.
        examples: In the order of their classes.
        summary: What holds of the whole test set, by the name of a measure.
        defense: What the second teacher is called.
    """

    ends_with: ClassVar[tuple[str, ...]] = ("notes", "failed")

    kind: str = "responses"
    runs: dict[str, str] = Field(default_factory=dict)
    temperature: float | int = 1.0
    classes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    summary: dict[str, Any] = Field(default_factory=dict)
    defense: str = "nasty"

    def grids(self) -> Iterator[Grid]:
        """Yield the three highest probabilities of both teachers for each image."""

        def highest(probabilities: Sequence[float]) -> Shown:
            order = sorted(range(len(self.classes)), key=lambda k: -probabilities[k])[:3]
            return Shown(", ".join(f"{self.classes[k]}: {probabilities[k]:.2f}" for k in order))

        rows = tuple(
            GridRow(
                (f"{self.classes[example.label]} (image {example.index})",),
                (highest(example.normal), highest(example.nasty)),
            )
            for example in self.examples
        )
        columns = tuple(f"{name.capitalize()} teacher, highest three" for name in ("normal", self.defense))
        yield Grid("", ("True class",), columns, rows)

    @property
    def drawn(self) -> bool:
        """Whether both teachers are there."""
        return not self.failed

    def draw(self) -> Figure:
        """Return images and bars, two examples a row."""
        return _draw(self)


def _draw(part: Responses) -> Figure:
    examples, classes = part.examples, part.classes
    rows = (len(examples) + 1) // 2
    named = len(classes) <= _NAMED_CLASSES
    top = _top(max(max(*example.normal, *example.nasty) for example in examples))
    figure = new_figure(7.2, 1.05 * rows + (0.9 if named else 0.7))
    axes = figure.subplots(rows, 6, squeeze=False, gridspec_kw={"width_ratios": [1, 1.5, 1.5] * 2})
    for spot in axes.flat[3 * len(examples) :]:
        spot.set_axis_off()
    for i, example in enumerate(examples):
        image, *bars = axes[i // 2, 3 * (i % 2) : 3 * (i % 2) + 3]
        _draw_image(image, example.image, classes[example.label])
        for spot, teacher, answer in zip(bars, ("normal", part.defense), (example.normal, example.nasty), strict=True):
            _draw_bars(spot, answer, example.label, top)
            if i < 2:
                spot.set_title(f"{teacher} teacher", fontsize=8)
            lowest = i + 2 >= len(examples)
            _name_classes(spot, classes, named=named, shown=lowest)
        bars[1].tick_params(labelleft=False)
    handles = [swatch(TRUE, "true class"), swatch(OTHER, "other classes")]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        title=f"softmax(logits / τ), τ = {part.temperature:g}",
        title_fontsize=7.5,
    )
    return figure


def _top(highest: float) -> float:
    """Return where the axis of probabilities ends: at 1, unless all bars would be stubs."""
    return next(top for top in (0.05, 0.1, 0.2, 0.5, 1.0) if highest <= top or top == 1.0)


def _draw_image(axes: Axes, image: Picture, label: str) -> None:
    shape = image.height, image.width, image.channels
    pixels = np.frombuffer(base64.b64decode(image.pixels_base64), dtype=np.uint8).reshape(shape)
    axes.imshow(pixels[:, :, 0] if shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(textwrap.shorten(label, 18, placeholder="…"), fontsize=7.5, pad=3)
    axes.set_axis_off()


def _draw_bars(axes: Axes, probabilities: Sequence[float], label: int, top: float) -> None:
    colors = [TRUE if k == label else OTHER for k in range(len(probabilities))]
    axes.bar(range(len(probabilities)), probabilities, color=colors, width=0.85 if len(colors) <= _NAMED_CLASSES else 1)
    axes.set_xlim(-0.7, len(probabilities) - 0.3)
    axes.set_ylim(0, top)
    axes.set_yticks([0, top / 2, top], ["0", f"{top / 2:g}", f"{top:g}"])
    axes.tick_params(labelsize=6.5, length=2)


def _name_classes(axes: Axes, classes: Sequence[str], *, named: bool, shown: bool) -> None:
    if named:
        names = [textwrap.shorten(name, 14, placeholder="…") for name in classes]
        rotation = 90 if max(map(len, names)) > 1 else 0
        axes.set_xticks(range(len(classes)), names if shown else [""] * len(names), rotation=rotation)
    else:
        axes.set_xticks(range(0, len(classes), len(classes) // 4))
        axes.tick_params(labelbottom=shown)
        axes.set_xlabel("class" if shown else "", fontsize=7)

"""What thieves without data have in common: a generator that is trained beside the student."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from undistill.data.dataset import Frame, Images
from undistill.errors import RecipeError
from undistill.models.generator import Generator
from undistill.objective import Companion, Nets, optimizer_tensors, restore_optimizer, under

__all__ = ["Generating", "companion_of", "pixel_scale", "to_pixels"]

_SHOWN = 256  # images that are kept to be looked at

C = TypeVar("C", bound=Companion)


class Generating(Companion):
    """A generator with its optimizer (Adam), and the images that it made last.

    Args:
        generator: New.
        frame: Of the images.
        device: Where to compute.
        lr: The generator's learning rate.
        betas: Of its Adam.

    Attributes:
        updates: Steps that the generator has taken.
    """

    def __init__(
        self,
        generator: Generator,
        frame: Frame,
        device: torch.device,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.generator = generator.to(device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=lr, betas=betas)
        self.updates = 0
        self._frame, self._device = frame, device
        shape = 0, frame.in_channels, frame.image_size, frame.image_size
        self._shown = torch.empty(shape), torch.empty(0, dtype=torch.int64)

    def draw(self, count: int) -> Tensor:
        """Return so many images as the generator makes them, with a graph."""
        images: Tensor = self.generator(torch.randn(count, self.generator.latent, device=self._device))
        return images

    def update(self, loss: Tensor) -> None:
        """Take one step of the generator down the gradient of ``loss``."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.updates += 1

    def show(self, x: Tensor, labels: Tensor) -> None:
        """Remember normalized images and the victim's labels, to be looked at."""
        self._shown = x[:_SHOWN].detach(), labels[:_SHOWN]

    def gallery(self) -> Images | None:
        """Return the images that were shown last."""
        x, labels = self._shown
        return Images(to_pixels(x, self._frame), labels) if len(labels) else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return generator, optimizer and images."""
        shown = zip(("images", "labels"), self._shown, strict=True)
        return {
            **{f"generator/{key}": value for key, value in self.generator.state_dict().items()},
            **{f"optimizer/{key}": value for key, value in optimizer_tensors(self.optimizer).items()},
            **{f"shown/{key}": value for key, value in shown},
            "updates": torch.tensor(self.updates),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` returned."""
        self.generator.load_state_dict(under("generator/", state))
        restore_optimizer(self.optimizer, under("optimizer/", state))
        self._shown = state["shown/images"].to(self._device), state["shown/labels"].to(self._device)
        self.updates = int(state["updates"])


def companion_of(nets: Nets, kind: type[C]) -> C:
    """Return the companion of a step.

    Raises:
        RecipeError: It has none of that kind.
    """
    if not isinstance(nets.companion, kind):
        raise RecipeError(f"the step needs its {kind.__name__} in nets.companion; make it with Objective.companion")
    return nets.companion


def pixel_scale(frame: Frame, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of pixels in 0..1, each of shape (C, 1, 1)."""
    mean, std = (torch.tensor(values, device=device).reshape(-1, 1, 1) for values in (frame.mean, frame.std))
    return mean, std


def to_pixels(x: Tensor, frame: Frame) -> Tensor:
    """Return normalized images (B, C, H, W) as uint8, clipped to what pixels can be."""
    mean, std = pixel_scale(frame, x.device)
    return ((x.detach().float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

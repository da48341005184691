"""Domains around a source, made from the source alone: styles that push its images outwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from undistill.data.dataset import Frame
from undistill.functional.losses import cross_entropy
from undistill.functional.mmd import mmd
from undistill.objective import Companion, optimizer_tensors, restore_optimizer, under

__all__ = ["Critic", "Outwards", "Pusher"]

_CRITIC_LR = 1e-3
_PARTS = 4  # of a batch, each pushed in a direction of its own
_KERNEL, _NOISE = 5, 8  # width of a filter and of the noise behind a texture, in pixels
_LEAST = 0.3  # share of the way that an image goes at least


class Pusher(nn.Module):
    """A style: images are warped, filtered, recolored and laid over a random texture.

    Every part is linear, so that a style changes images as another camera or another hand might, and leaves no traces
    of a deep net's own that would give it away.

    Args:
        in_channels: Channels of an image.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.warp = nn.Parameter(0.3 * torch.randn(2, 3))
        self.filter = nn.Parameter(0.1 * torch.randn(_KERNEL, _KERNEL))
        self.color = nn.Parameter(0.3 * torch.randn(in_channels, in_channels))
        self.shade = nn.Parameter(0.3 * torch.randn(in_channels))
        self.texture = nn.Parameter(0.3 * torch.randn(in_channels))

    def forward(self, x: Tensor, way: Tensor, color: Pusher | None = None) -> Tensor:
        """Return images brought some of the way into this style.

        Args:
            x: Images (B, C, S, S), pixels on the scale -1..1.
            way: Share of the way of each, 0..1, shape (B,).
            color: Takes the part of color, shade and texture.

        Returns:
            (B, C, S, S), not clipped.
        """
        other, channels = color or self, x.shape[1]
        matrix = torch.eye(2, 3, device=x.device) + way[:, None, None] * self.warp
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        way = way[:, None, None, None]
        kernel = (self.filter - self.filter.mean()).expand(channels, 1, _KERNEL, _KERNEL)
        x = x + way * F.conv2d(F.pad(x, (_KERNEL // 2,) * 4, mode="replicate"), kernel, groups=channels)
        noise = torch.randn(len(x), channels, _NOISE, _NOISE, device=x.device)
        noise = F.interpolate(noise, x.shape[2:], mode="bilinear", align_corners=False)
        change = torch.einsum("dc,bchw->bdhw", other.color, x) + other.shade[:, None, None]
        return x + way * (change + other.texture[:, None, None] * noise)


class Critic(nn.Module):
    """A small classifier of the source, in whose features distances are measured.

    Args:
        frame: Of the images.
    """

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        size = (frame.image_size + 3) // 4  # two convolutions of stride 2, each rounding up
        self.features = nn.Sequential(
            nn.Conv2d(frame.in_channels, 16, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(1),
            nn.Linear(32 * size**2, 64),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(64, frame.num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and features (B, 64) of normalized images."""
        features = self.features(x)
        return self.classifier(features), features


class Outwards(Companion):
    """Styles that push images of the source outwards, one a direction and distance; they learn first, then stand still.

    Each learns to bring images away from the source, as a small classifier of the source sees them, up to its distance,
    and to leave them recognizable: -min(MMD², distance) + weight · CE. Directions differ by what they start from.

    Args:
        frame: Of the images.
        device: Where to compute.
        directions: Styles of each distance.
        distances: Squared MMD beyond which a style gains nothing.
        lr: Learning rate of the styles (Adam).

    Attributes:
        steps: Batches learned from so far.
    """

    def __init__(
        self, frame: Frame, device: torch.device, *, directions: int, distances: tuple[float, ...], lr: float
    ) -> None:
        self.distances = tuple(distance for distance in distances for _ in range(directions))
        self.styles = nn.ModuleList(Pusher(frame.in_channels) for _ in self.distances).to(device)
        self.critic = Critic(frame).to(device)
        self.optimizers = [torch.optim.Adam(style.parameters(), lr=lr) for style in self.styles]
        self.optimizers.append(torch.optim.Adam(self.critic.parameters(), lr=_CRITIC_LR))
        self.steps = 0
        self._center = torch.tensor(frame.mean, device=device)[:, None, None]
        self._scale = torch.tensor(frame.std, device=device)[:, None, None]

    def learn(self, x: Tensor, y: Tensor, *, weight: float) -> None:
        """Train the next style, and the critic, on one batch.

        Args:
            x: Normalized images (B, C, H, W).
            y: Labels (B,).
            weight: Of the class term.
        """
        which = self.steps % len(self.styles)
        self.steps += 1
        style = list(self.styles[which].parameters())
        critic = list(self.critic.parameters())
        pushed = self._push(x, self.styles[which], torch.ones(len(x), device=x.device))
        logits, features = self.critic(torch.cat([x, pushed]))
        n = len(x)
        distance = mmd(features[:n].detach(), features[n:]).clamp_max(self.distances[which])
        losses = (weight * cross_entropy(logits[n:], y) - distance, cross_entropy(logits[:n], y))
        for loss, parameters in zip(losses, (style, critic), strict=True):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        self.optimizers[which].step()
        self.optimizers[-1].step()

    @torch.no_grad()
    def push(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the images of a batch (B, C, H, W) pushed outwards, in parts of a style each.

        A part is warped as by one style and colored as by another, both drawn; each image goes a share of the way that
        is drawn too, so that what lies between the source and the styles is covered, and their combinations.
        """
        parts = []
        for part in x.chunk(_PARTS):
            warp, color = torch.randint(len(self.styles), (2,)).tolist()
            way = _LEAST + (1 - _LEAST) * torch.rand(len(part), device=x.device)
            parts.append(self._push(part, self.styles[warp], way, self.styles[color]))
        return tuple(parts)

    def state_dict(self) -> dict[str, Tensor]:
        """Return styles, critic, optimizers and count."""
        slots = (
            (f"optimizers/{i}/{key}", value)
            for i, optimizer in enumerate(self.optimizers)
            for key, value in optimizer_tensors(optimizer).items()
        )
        nets = {"styles": self.styles, "critic": self.critic}
        weights = ((f"{name}/{key}", v) for name, net in nets.items() for key, v in net.state_dict().items())
        return {**dict(weights), **dict(slots), "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` returned."""
        self.styles.load_state_dict(under("styles/", state))
        self.critic.load_state_dict(under("critic/", state))
        for i, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, under(f"optimizers/{i}/", state))
        self.steps = int(state["steps"])

    def _push(self, x: Tensor, style: nn.Module, way: Tensor, color: nn.Module | None = None) -> Tensor:
        """Apply a style to normalized images, on the scale -1..1, and keep what pixels can be."""
        pixels = 2 * (x * self._scale + self._center) - 1
        pushed: Tensor = style(pixels, way, color).clamp(-1, 1)
        return ((pushed + 1) / 2 - self._center) / self._scale

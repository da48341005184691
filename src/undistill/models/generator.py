"""A generator of small images from noise, as thieves without data train it (Radford et al., 2016, arXiv:1511.06434)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Generator"]


class Generator(nn.Module):
    """A linear layer to a quarter of the image's size and BatchNorm, then twice: double size, convolution, BatchNorm.

    A last convolution makes the image; what maps it to the values of pixels is each thief's own.

    Args:
        latent: Entries of a noise vector.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels.
        channels: Channels of the first convolution; the second has half as many.
        last: What follows the last convolution.
        epsilon: What the BatchNorm layers after the two convolutions add to the variance.
    """

    def __init__(
        self,
        latent: int,
        in_channels: int,
        image_size: int,
        channels: int = 128,
        *,
        last: nn.Module,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.latent, self.channels = latent, channels
        self.image_size, self.start = image_size, -(-image_size // 4)
        half = max(1, channels // 2)
        self.linear = nn.Linear(latent, channels * self.start**2)
        self.bn0 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels, eps=epsilon)
        self.conv2 = nn.Conv2d(channels, half, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(half, eps=epsilon)
        self.conv3 = nn.Conv2d(half, in_channels, 3, padding=1)
        self.last = last

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, C, S, S) of noise (B, latent), as ``last`` leaves them."""
        x = self.bn0(self.linear(z).view(len(z), self.channels, self.start, self.start))
        # Where the size is no multiple of 4 the last doubling falls short of it.
        x = F.leaky_relu(self.bn1(self.conv1(F.interpolate(x, scale_factor=2))), 0.2)
        x = F.leaky_relu(self.bn2(self.conv2(F.interpolate(x, size=self.image_size))), 0.2)
        images: Tensor = self.last(self.conv3(x))
        return images

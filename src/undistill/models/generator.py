"""A generator of small images from noise, as thieves without data train it (Radford et al., 2016, arXiv:1511.06434)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Generator"]


class Generator(nn.Module):
    """A linear layer to a quarter of the image's size, then twice: double the size, 3x3 convolution, BatchNorm.

    The last layers are a convolution, tanh, and BatchNorm without parameters: images come out normalized, with mean 0
    and variance 1 in every channel.

    Args:
        latent: Entries of a noise vector.
        in_channels: Channels of an image.
        image_size: Height and width of an image, in pixels.
        channels: Channels of the first convolution; the second has half as many.
    """

    def __init__(self, latent: int, in_channels: int, image_size: int, channels: int = 128) -> None:
        super().__init__()
        self.image_size, self.start = image_size, -(-image_size // 4)
        half = max(1, channels // 2)
        self.channels = channels
        self.linear = nn.Linear(latent, channels * self.start**2)
        self.bn0 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, half, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, in_channels, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(in_channels, affine=False)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, C, S, S) of noise (B, latent)."""
        x = self.bn0(self.linear(z).view(len(z), self.channels, self.start, self.start))
        # Where the size is no multiple of 4 the last doubling falls short of it.
        x = F.leaky_relu(self.bn1(self.conv1(F.interpolate(x, scale_factor=2))), 0.2)
        x = F.leaky_relu(self.bn2(self.conv2(F.interpolate(x, size=self.image_size))), 0.2)
        images: Tensor = self.bn3(self.conv3(x).tanh())
        return images

"""Noise on the log-odds of an answer, which is the same whenever the same image is asked about."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill.defenses import Field, OutputDefense, Paper, register_output_defense

__all__ = ["GaussianNoise"]

_NEAREST = 1e-7  # to 0 and 1 that a probability comes before its log-odds are taken
_BITS = 24  # of a random number, as many as float32 holds


@register_output_defense("gaussian_noise")
class GaussianNoise(OutputDefense):
    """Give away y' ∝ σ(logit(y) + δ), where δ is normal noise, shortened to the length ε where it is longer.

    Of K classes the noise is about √K long before, so for ε below that it is a direction drawn at random. The label may
    change.

    Noise that was drawn anew would be averaged away by asking again. So it is no draw but a function of the image and
    of a ``key`` that the owner keeps: the bits of the pixels, each times a number of its place, are added up and mixed,
    modulo 2^64, and so is what comes out together with the number of each class. These are whole numbers: they are the
    same on every device and in every batch, and nothing waits for them. Of what is made of them the last bits may
    differ. Any other image, one shifted by a pixel or normalized otherwise, has other noise, and whoever averages over
    such has less of it. The key is part of the spec, and so of recipes and pages: a victim that others are to query
    wants a key of its own, in none that they can read; whoever knows it takes the noise off again.

    Paper vs ours: this is the random noise that the paper compares with, in the Gaussian form of the authors' code,
    which draws it anew at each query. Log-odds are those of probabilities from 1e-7 to 1 - 1e-7.
    """

    paper = Paper(
        "Prediction Poisoning: Towards Defenses Against DNN Model Stealing Attacks",
        "ICLR",
        2020,
        "https://arxiv.org/abs/1906.10908",
    )
    smoke: ClassVar[dict[str, Any]] = {"length": 2.0}

    length: float = Field(0.2, ge=0, description="ε, the most that the noise is long: 0.2 where D-DAE attacks it")
    key: int = Field(0, ge=0, le=2**63 - 1, strict=True, description="known to the owner only")

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return the probabilities (B, K) with the noise of their images."""
        noise = _normal(_mixed(_fingerprint(x) + self.key), probs.shape[1])
        shortened = noise * (self.length / noise.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        moved: Tensor = (probs.logit(_NEAREST) + shortened).sigmoid()
        return moved / moved.sum(dim=1, keepdim=True)


def _fingerprint(x: Tensor) -> Tensor:
    """Return a whole number of each image, int64 (B,), which two images have in common with a chance near 2^-40."""
    bits = (x.float() + 0.0).view(torch.int32).flatten(1).long()  # adding zero makes -0 the 0 that it equals
    places = torch.arange(1, bits.shape[1] + 1, device=x.device)
    return _mixed((bits * (_mixed(places) | 1)).sum(dim=1))


def _normal(seeds: Tensor, count: int) -> Tensor:
    """Return normal random numbers (B, count), float32, by the transform of Box and Muller."""
    counters = torch.arange(1, 2 * count + 1, device=seeds.device)
    drawn = _shifted(_mixed(seeds[:, None] + _mixed(counters)), 64 - _BITS)
    first, second = ((drawn.float() + 0.5) / (1 << _BITS)).chunk(2, dim=1)  # above 0
    return (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()


def _mixed(numbers: Tensor) -> Tensor:
    """Return whole numbers each bit of which depends on all bits of the given one (Steele et al., 2014, SplitMix64)."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _signed(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ _shifted(numbers, 27)) * _signed(0x94D049BB133111EB)
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, places: int) -> Tensor:
    """Return int64 numbers shifted to the right as if they had no sign."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    """Return the int64 with the bits of an unsigned number."""
    return number - 2**64

"""Data-free learning (Chen et al., 2019): a generator that pleases the victim makes the student's lessons."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from undistill import functional as F
from undistill.attacks import Access, Batch, DataFreeAttack, Field, Frame, Nets, Paper, StepOutput, register_attack
from undistill.attacks.generating import Generating, companion_of
from undistill.functional.synthesis import activation_loss, information_entropy_loss, one_hot_loss
from undistill.models.generator import Generator

__all__ = ["DAFL"]


@register_attack("dafl")
class DAFL(DataFreeAttack):
    """Train a generator on the victim's answers and the student on the generator's images, in one step.

    The generator minimises one_hot · CE(t(x), argmax t(x)) + entropy · Σ p̄ log₁₀ p̄ - activation · mean |f(x)|, where p̄
    is the mean answer over the batch and f the victim's features before its last layer; the student minimises
    KL(t(x) ‖ s(x)) on the same images. The generator ends in tanh and a BatchNorm without parameters: its images are
    normalized, with mean 0 and variance 1 in every channel.

    Defaults are those of the authors' command for CIFAR-10 (``DAFL-train.py --dataset cifar10 --lr_G 0.02
    --latent_dim 1000 --oh 0.05 --ie 5 --a 0.01``); for CIFAR-100 the weights are 0.5, 20 and 0.1. The student's
    protocol is the recipe's: the authors train it for 2000 epochs of 120 batches of 1024.

    Paper vs code: the paper averages over samples where the code averages over features too, and the code's logarithm
    is decimal; the weights fit the code. The code hands 0.8 to the BatchNorm layers after the generator's convolutions,
    where their ε goes; so it is here. The code's student keeps the epoch that is best on the test set
    (``selection=paper``).
    """

    access = Access.GRADIENTS
    paper = Paper("Data-Free Learning of Student Networks", "ICCV", 2019, "https://arxiv.org/abs/1904.01186")
    smoke: ClassVar[dict[str, Any]] = {"steps": 4, "latent": 8, "channels": 4}

    one_hot: float = Field(0.05, ge=0, description="weight of the one-hot term: the victim is to be sure")
    entropy: float = Field(5.0, ge=0, description="weight of the information entropy: all classes are to occur alike")
    activation: float = Field(0.01, ge=0, description="weight of the activation term: features are to be large")
    latent: int = Field(1000, ge=1, strict=True, description="entries of a noise vector")
    channels: int = Field(128, ge=1, strict=True, description="of the generator's first convolution")
    epsilon: float = Field(0.8, gt=0, description="ε of the generator's BatchNorm layers after convolutions")
    generator_lr: float = Field(0.02, gt=0, description="learning rate of the generator (Adam)")
    generator_decay: float = Field(
        1.0, gt=0, le=1, description="factor on generator_lr after every epoch; the authors have none"
    )

    def companion(self, nets: Nets, frame: Frame, device: torch.device) -> Generating:
        """Return the generator."""
        last = nn.Sequential(nn.Tanh(), nn.BatchNorm2d(frame.in_channels, affine=False))
        generator = Generator(
            self.latent, frame.in_channels, frame.image_size, self.channels, last=last, epsilon=self.epsilon
        )
        return Generating(generator, frame, device, lr=self.generator_lr)

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Train the generator, and return the student's loss; logs the terms of the generator."""
        victim, generating = self.victim(nets), companion_of(nets, Generating)
        x = generating.draw(len(batch.y))
        opened = victim.white_box(x)
        terms = {
            "one_hot": one_hot_loss(opened.logits),
            "entropy": information_entropy_loss(opened.logits),
            "activation": activation_loss(opened.features),
        }
        generating.optimizer.param_groups[0]["lr"] = self._generator_lr(generating.updates)
        generating.update(
            self.one_hot * terms["one_hot"] + self.entropy * terms["entropy"] + self.activation * terms["activation"]
        )
        x, answers = x.detach(), opened.logits.detach()
        labels = answers.argmax(dim=1)
        generating.show(x, labels)
        logits = nets.model(x)
        return StepOutput(F.kl_divergence(answers, logits), logits, terms, labels)

    def _generator_lr(self, updates: int) -> float:
        return self.generator_lr * self.generator_decay ** (updates // self.steps)

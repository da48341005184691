"""Fast data-free distillation (Fang et al., 2022): a generator that has learned how to be adapted in a few steps."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from undistill import functional as F
from undistill.attacks import (
    Access,
    Batch,
    Companion,
    DataFreeAttack,
    Field,
    Frame,
    Images,
    Nets,
    Paper,
    StepOutput,
    register_attack,
)
from undistill.attacks.generating import companion_of, to_pixels
from undistill.data.loader import normalize
from undistill.errors import RecipeError
from undistill.functional.synthesis import batch_norm_loss
from undistill.models.generator import Generator
from undistill.victim import Victim

__all__ = ["Bank", "FastDataFree"]


@register_attack("fast_datafree")
class FastDataFree(DataFreeAttack):
    """At the start of every epoch draw a batch of images in a few steps, then train the student on all drawn so far.

    A batch is drawn by a copy of the common generator, which is fine-tuned on it together with the noise it starts
    from; afterwards the common generator moves a part of the way to the copy (Reptile), so that the next batch starts
    where the last ones ended. The images minimise

        batch_norm · Σ_l (‖μ_l(x) - μ_l‖ + ‖σ²_l(x) - σ²_l‖) + one_hot · CE(t(x), y)
        - adversarial · mean_b 1[t and s agree on x_b] KL(t(x_b) ‖ s(x_b)),

    with random classes y, the victim t and the student s; of the steps the images of least loss are kept. The student
    minimises τ² KL(t(x)/τ ‖ s(x)/τ).

    Paper vs code: the first-order MAML that is the code's default is left for the paper's other choice, Reptile. Images
    are kept as uint8.
    """

    access = Access.GRADIENTS
    paper = Paper(
        "Up to 100x Faster Data-free Knowledge Distillation", "AAAI", 2022, "https://arxiv.org/abs/2112.06253"
    )
    smoke: ClassVar[dict[str, Any]] = {
        "steps": 4,
        "draw_steps": 2,
        "warm_up": 1,
        "batch_norm": 0.0,
        "latent": 8,
        "channels": 4,
        "memory": 64,
    }

    draw_steps: int = Field(10, ge=1, strict=True, description="steps of generator and noise on one batch")
    warm_up: int = Field(20, ge=1, strict=True, description="batches drawn before the student's first step")
    batch_norm: float = Field(10.0, ge=0, description="weight of the BatchNorm statistics; 0 for a victim without")
    one_hot: float = Field(0.5, ge=0, description="weight of the cross-entropy against the wanted classes")
    adversarial: float = Field(1.33, ge=0, description="weight of the student's disagreement")
    generator_lr: float = Field(5e-3, gt=0, description="learning rate of the generator (Adam)")
    latent_lr: float = Field(1.5e-2, gt=0, description="learning rate of the noise (Adam)")
    meta_rate: float = Field(0.2, gt=0, le=1, description="part of the way that the common generator moves")
    latent: int = Field(256, ge=1, strict=True, description="entries of a noise vector")
    channels: int = Field(128, ge=1, strict=True, description="of the generator's first convolution")
    memory: int = Field(50_000, ge=1, strict=True, description="images that are remembered")
    temperature: float = Field(20.0, gt=0, description="τ of the student's loss")

    def companion(self, nets: Nets, frame: Frame, device: torch.device) -> Bank:
        """Return the common generator and the images drawn so far."""
        return Bank(self, frame, device)

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Draw images when it is time, and return the student's loss."""
        victim, bank, size = self.victim(nets), companion_of(nets, Bank), len(batch.y)
        if self.batch_norm and not victim.has_statistics:
            raise RecipeError(
                "fast_datafree matches the statistics that BatchNorm layers keep, and this victim has none; choose "
                "dafl, or set method.batch_norm=0 and expect little"
            )
        if bank.rounds % self.steps == 0:
            for _ in range(self.warm_up if bank.rounds == 0 else 1):
                bank.add(*self._draw(victim, nets.model, bank, size))
        bank.rounds += 1
        x = bank.sample(size)
        answers = victim.white_box(x).logits.detach()
        logits = nets.model(x)
        loss = self.temperature**2 * F.kl_divergence(answers, logits, self.temperature)
        return StepOutput(loss, logits, labels=answers.argmax(dim=1))

    def _draw(self, victim: Victim, student: nn.Module, bank: Bank, size: int) -> tuple[Tensor, Tensor]:
        """Return a batch of images and their classes, and let the common generator learn from it."""
        z, labels = bank.noise(size)
        generator = deepcopy(bank.generator)
        groups: list[dict[str, Any]] = [
            {"params": list(generator.parameters()), "lr": self.generator_lr},
            {"params": [z], "lr": self.latent_lr},
        ]
        optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999))
        best, least = torch.empty(0), torch.tensor(torch.inf, device=z.device)
        training = student.training
        student.eval()  # its statistics are of what it learns from
        for _ in range(self.draw_steps):
            x = generator(z)
            loss = self._loss(x, labels, victim, student)
            better = loss.detach() < least
            best, least = (
                torch.where(better, x.detach(), best if len(best) else x.detach()),
                least.minimum(loss.detach()),
            )
            optimizer.zero_grad()
            loss.backward(inputs=[*generator.parameters(), z])  # type: ignore[no-untyped-call]
            optimizer.step()
        student.train(training)
        with torch.no_grad():
            for common, tuned in zip(bank.generator.parameters(), generator.parameters(), strict=True):
                common.lerp_(tuned, self.meta_rate)
        return best, labels

    def _loss(self, x: Tensor, labels: Tensor, victim: Victim, student: nn.Module) -> Tensor:
        opened = victim.white_box(x, statistics=self.batch_norm > 0)
        loss = self.one_hot * F.cross_entropy(opened.logits, labels)
        for layer in opened.statistics:
            distance = batch_norm_loss(layer.mean, layer.var, layer.running_mean, layer.running_var)
            loss = loss + self.batch_norm * distance
        if self.adversarial:
            log_t, log_s = opened.logits.log_softmax(dim=1), student(x).float().log_softmax(dim=1)
            apart = (log_t.exp() * (log_t - log_s)).sum(dim=1)
            agree = log_t.argmax(dim=1) == log_s.argmax(dim=1)
            loss = loss - self.adversarial * (apart * agree).mean()
        return loss


class Bank(Companion):
    """The common generator, and the images drawn so far.

    Attributes:
        generator: From which every batch starts.
        rounds: Steps of the student.
    """

    def __init__(self, attack: FastDataFree, frame: Frame, device: torch.device) -> None:
        self.generator = Generator(attack.latent, frame.in_channels, frame.image_size, attack.channels).to(device)
        self.rounds = 0
        self._frame, self._device, self._latent, self._most = frame, device, attack.latent, attack.memory
        shape = 0, frame.in_channels, frame.image_size, frame.image_size
        self._images = torch.empty(shape, dtype=torch.uint8, device=device)
        self._labels = torch.empty(0, dtype=torch.int64, device=device)

    def noise(self, count: int) -> tuple[Tensor, Tensor]:
        """Return noise that can be trained (B, latent), and as many random classes."""
        z = torch.randn(count, self._latent, device=self._device, requires_grad=True)
        return z, torch.randint(self._frame.num_classes, (count,), device=self._device)

    def add(self, x: Tensor, labels: Tensor) -> None:
        """Remember normalized images, and forget the oldest where there are too many."""
        self._images = torch.cat((self._images, to_pixels(x, self._frame)))[-self._most :]
        self._labels = torch.cat((self._labels, labels))[-self._most :]

    def sample(self, count: int) -> Tensor:
        """Return normalized images drawn at random."""
        rows = torch.randint(len(self._images), (count,), device=self._device)
        return normalize(self._images[rows], self._frame.mean, self._frame.std)

    def gallery(self) -> Images | None:
        """Return the images drawn last, with the classes that they were drawn for."""
        return Images(self._images[-256:], self._labels[-256:]) if len(self._labels) else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return generator, images and count."""
        return {
            **{f"generator/{key}": value for key, value in self.generator.state_dict().items()},
            "images": self._images,
            "labels": self._labels,
            "rounds": torch.tensor(self.rounds),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` returned."""
        prefix = "generator/"
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        self.generator.load_state_dict(own)
        self._images, self._labels = state["images"].to(self._device), state["labels"].to(self._device)
        self.rounds = int(state["rounds"])

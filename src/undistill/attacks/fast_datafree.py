"""Fast data-free distillation (Fang et al., 2022): a generator that has learned how to be adapted in a few steps."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from undistill import functional as F
from undistill.attacks import Access, Batch, DataFreeAttack, Field, Frame, Nets, Paper, StepOutput, register_attack
from undistill.attacks.generating import Generating, companion_of, pixel_scale, to_pixels
from undistill.data.loader import normalize
from undistill.errors import RecipeError
from undistill.functional.synthesis import batch_norm_loss
from undistill.models.generator import Generator
from undistill.victim import Victim, WhiteBox

__all__ = ["Bank", "FastDataFree", "moved"]

_BETAS = (0.5, 0.999)  # of every Adam here, as the authors have it


@register_attack("fast_datafree")
class FastDataFree(DataFreeAttack):
    """At the start of every epoch draw a batch of images in a few steps, then train the student on all drawn so far.

    A batch is drawn by a copy of the common generator, which is fine-tuned on it together with the noise it starts
    from. The gradients of the copy over all these steps, added up, are then the gradient of one step of the common
    generator (first-order MAML; Adam at ``draw_steps`` · ``generator_lr``), so that the next batch starts where few
    steps do much. The images minimise

        batch_norm · Σ_l (‖μ_l(x) - μ_l‖ + ‖σ²_l(x) - σ²_l‖) + one_hot · CE(t(x), y)
        - adversarial · mean_b 1[t and s agree on x_b] KL(t(x_b) ‖ s(x_b)),

    with random classes y, the victim t and the student s, and x shifted and mirrored anew in every step; of the steps
    the images of least loss are kept. μ_l(x) and σ²_l(x) are running means over the batches drawn before
    (``momentum``). The last term is there once the student is about to start. The student minimises
    τ² KL(t(x)/τ ‖ s(x)/τ) on kept images, shifted and mirrored.

    Defaults are those of the authors' command for ResNet-34 to ResNet-18 with ten steps, "Fast-10"
    (``scripts/fast_cifar.sh``: ``--g_steps 10 --lr_z 0.01 --lr_g 2e-3 --adv 1.33 --bn 10.0 --oh 0.5 --T 20
    --bn_mmt 0.9 --warmup 20 --is_maml 1 --reset_l0 1 --reset_bn 0``); with 2 and 5 steps they take rates of 5e-3 and
    0.015, 3e-3 and 0.01. The student's protocol is the recipe's: batches of 256, 200 epochs of 400, SGD from 0.2 to
    2e-4 along a cosine, momentum 0.9 and decay 1e-4.

    Paper vs code: Reptile, which the paper offers too (``--is_maml 0``), is left out. The code cuts pixels off where
    they are rounded here, and keeps the student that is best on the test set (``selection=paper``). Its generator has
    no bias before a BatchNorm, where one is without effect.
    """

    access = Access.GRADIENTS
    paper = Paper(
        "Up to 100x Faster Data-free Knowledge Distillation", "AAAI", 2022, "https://arxiv.org/abs/2112.06253"
    )
    smoke: ClassVar[dict[str, Any]] = {
        "steps": 4,
        "draw_steps": 2,
        "warm_up": 1,
        "reset_after": 1,
        "batch_norm": 0.0,
        "latent": 8,
        "channels": 4,
    }

    steps: int = Field(400, ge=1, strict=True, description="batches that make an epoch")
    draw_steps: int = Field(10, ge=1, strict=True, description="steps of generator and noise on one batch")
    warm_up: int = Field(20, ge=1, strict=True, description="batches drawn ahead, before that of the first epoch")
    batch_norm: float = Field(10.0, ge=0, description="weight of the BatchNorm statistics; 0 for a victim without")
    momentum: float = Field(0.9, ge=0, lt=1, description="part of earlier batches in the statistics of the images")
    one_hot: float = Field(0.5, ge=0, description="weight of the cross-entropy against the wanted classes")
    adversarial: float = Field(1.33, ge=0, description="weight of the student's disagreement")
    generator_lr: float = Field(2e-3, gt=0, description="learning rate of the generator (Adam)")
    latent_lr: float = Field(1e-2, gt=0, description="learning rate of the noise (Adam)")
    reset_after: int = Field(
        120,
        ge=0,
        strict=True,
        description="batches after warm-up when the generator's start is made anew; 0: never",
    )
    padding: int = Field(4, ge=0, strict=True, description="largest shift of an image in pixels; black comes in")
    flip: bool = Field(True, description="mirror images half of the time; not for digits")
    latent: int = Field(256, ge=1, strict=True, description="entries of a noise vector")
    channels: int = Field(128, ge=1, strict=True, description="of the generator's first convolution")
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
            for _ in range(self.warm_up + 1 if bank.rounds == 0 else 1):
                self._draw(victim, nets.model, bank, size)
        bank.rounds += 1
        x = bank.normalized(moved(bank.sample(size), self.padding, mirror=self.flip))
        answers = victim.white_box(x).logits.detach()
        logits = nets.model(x)
        loss = self.temperature**2 * F.kl_divergence(answers, logits, self.temperature)
        return StepOutput(loss, logits, labels=answers.argmax(dim=1))

    def _draw(self, victim: Victim, student: nn.Module, bank: Bank, size: int) -> None:
        """Add a batch of images to the bank, and let the common generator learn from it."""
        drawn = bank.updates + 1
        if self.reset_after and drawn == self.warm_up + self.reset_after:
            bank.reset()
        rival = student if self.adversarial and drawn >= self.warm_up else None
        z, labels = bank.noise(size)
        generator = deepcopy(bank.generator)
        groups: list[dict[str, Any]] = [
            {"params": list(generator.parameters()), "lr": self.generator_lr},
            {"params": [z], "lr": self.latent_lr},
        ]
        optimizer = torch.optim.Adam(groups, betas=_BETAS)
        best, least, flow = torch.empty(0), torch.tensor(torch.inf, device=z.device), bank.flow
        training = student.training
        student.eval()  # its statistics are of what it learns from
        for _ in range(self.draw_steps):
            x = generator(z)
            seen = bank.normalized(moved(x, self.padding, mirror=self.flip))
            opened = victim.white_box(seen, statistics=self.batch_norm > 0)
            statistics = self._followed(opened, bank.flow)
            loss = self._loss(opened, statistics, labels, None if rival is None else rival(seen))
            better = loss.detach() < least
            best = torch.where(better, x.detach(), best if len(best) else x.detach())
            least = least.minimum(loss.detach())
            optimizer.zero_grad()
            loss.backward(inputs=[*generator.parameters(), z])  # type: ignore[no-untyped-call]
            bank.collect(generator)
            optimizer.step()
            flow = [value.detach() for value in statistics]
        student.train(training)
        bank.learn()
        bank.flow = flow
        bank.add(best, labels)

    def _followed(self, opened: WhiteBox, flow: list[Tensor]) -> list[Tensor]:
        """Return mean and variance of every layer, one after the other, as running means that this batch ends."""
        own = [value for layer in opened.statistics for value in (layer.mean, layer.var)]
        return [old.lerp(new, 1 - self.momentum) for old, new in zip(flow, own, strict=True)] if flow else own

    def _loss(self, opened: WhiteBox, statistics: list[Tensor], labels: Tensor, rival: Tensor | None) -> Tensor:
        loss = self.one_hot * F.cross_entropy(opened.logits, labels)
        for layer, mean, var in zip(opened.statistics, statistics[::2], statistics[1::2], strict=True):
            loss = loss + self.batch_norm * batch_norm_loss(mean, var, layer.running_mean, layer.running_var)
        if rival is not None:
            log_t, log_s = opened.logits.log_softmax(dim=1), rival.float().log_softmax(dim=1)
            apart = (log_t.exp() * (log_t - log_s)).sum(dim=1)
            agree = log_t.argmax(dim=1) == log_s.argmax(dim=1)
            loss = loss - self.adversarial * (apart * agree).mean()
        return loss


class Bank(Generating):
    """The common generator with its optimizer, and the images drawn so far.

    Attributes:
        rounds: Steps of the student.
        flow: Running means of what flows into the victim's BatchNorm layers: mean and variance of each, in turn.
    """

    def __init__(self, attack: FastDataFree, frame: Frame, device: torch.device) -> None:
        generator = Generator(attack.latent, frame.in_channels, frame.image_size, attack.channels, last=nn.Sigmoid())
        super().__init__(generator, frame, device, lr=attack.draw_steps * attack.generator_lr, betas=_BETAS)
        self.rounds = 0
        self.flow: list[Tensor] = []
        shape = 0, frame.in_channels, frame.image_size, frame.image_size
        self._images = torch.empty(shape, dtype=torch.uint8, device=device)
        self._order = torch.empty(0, dtype=torch.int64, device=device)

    def noise(self, count: int) -> tuple[Tensor, Tensor]:
        """Return noise that can be trained (B, latent), and as many random classes."""
        z = torch.randn(count, self.generator.latent, device=self._device, requires_grad=True)
        return z, torch.randint(self._frame.num_classes, (count,), device=self._device)

    def reset(self) -> None:
        """Start the generator's first two layers anew, the linear one and its BatchNorm, as the authors' code does."""
        for layer in (self.generator.linear, self.generator.bn0):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            nn.init.zeros_(layer.bias)

    def collect(self, tuned: nn.Module) -> None:
        """Add the gradients of a tuned copy to those of the common generator."""
        for common, own in zip(self.generator.parameters(), tuned.parameters(), strict=True):
            if own.grad is not None:
                common.grad = own.grad.clone() if common.grad is None else common.grad + own.grad

    def learn(self) -> None:
        """Take a step of the common generator down the gradients collected, and forget these."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1

    def add(self, x: Tensor, labels: Tensor) -> None:
        """Remember images with pixels in 0..1, drawn for these classes, and shuffle all anew."""
        x = self.normalized(x)
        self.show(x, labels)
        self._images = torch.cat((self._images, to_pixels(x, self._frame)))
        self._order = self._order[:0]

    def sample(self, count: int) -> Tensor:
        """Return uint8 images; each comes once before any comes twice."""
        while len(self._order) < count:
            self._order = torch.cat((self._order, torch.randperm(len(self._images), device=self._device)))
        rows, self._order = self._order[:count], self._order[count:]
        return self._images[rows]

    def normalized(self, x: Tensor) -> Tensor:
        """Return images of uint8, or of pixels in 0..1, normalized."""
        if x.dtype == torch.uint8:
            return normalize(x, self._frame.mean, self._frame.std)
        mean, std = pixel_scale(self._frame, self._device)
        return (x - mean) / std

    def state_dict(self) -> dict[str, Tensor]:
        """Return generator, optimizer, images and counts."""
        return {
            **super().state_dict(),
            **{f"flow/{i:04}": value for i, value in enumerate(self.flow)},
            "images": self._images,
            "order": self._order.clone(),
            "rounds": torch.tensor(self.rounds),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.flow = [state[key].to(self._device) for key in sorted(state) if key.startswith("flow/")]
        self._images, self._order = state["images"].to(self._device), state["order"].to(self._device)
        self.rounds = int(state["rounds"])


def moved(x: Tensor, padding: int, *, mirror: bool) -> Tensor:
    """Return images each shifted by up to so many pixels, with zeros coming in, and perhaps mirrored; with a graph.

    As torchvision's ``RandomCrop`` of the image's own size with that padding, then ``RandomHorizontalFlip``.

    Args:
        x: Images (B, C, H, W) of any dtype, with 0 for black.
        padding: Largest shift.
        mirror: Whether each is mirrored with probability one half.
    """
    (count, channels, height, width), device = x.shape, x.device
    down, right = torch.randint(2 * padding + 1, (2, count, 1), device=device) if padding else 2 * (0,)
    rows = torch.arange(height, device=device).expand(count, -1) + down
    columns = torch.arange(width, device=device).expand(count, -1) + right
    if mirror:
        columns = torch.where(torch.rand(count, 1, device=device) < 0.5, columns.flip(1), columns)
    which, channel = torch.arange(count, device=device), torch.arange(channels, device=device)
    padded = nn.functional.pad(x, 4 * (padding,))
    return padded[which[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]

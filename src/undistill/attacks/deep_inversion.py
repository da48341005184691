"""DeepInversion (Yin et al., 2020): images drawn out of the victim's weights, and a student distilled from them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from undistill import functional as F
from undistill.attacks import Access, Attack, Batch, Field, Frame, Images, Nets, Paper, StepOutput, register_attack
from undistill.attacks.generating import to_pixels
from undistill.data.loader import normalize
from undistill.errors import RecipeError
from undistill.functional.synthesis import batch_norm_loss, image_norm, jensen_shannon, total_variation
from undistill.victim import Victim

__all__ = ["DeepInversion"]


@register_attack("deep_inversion")
class DeepInversion(Attack):
    """Draw a set of labeled images by gradient descent on their pixels, then distil from it.

    From noise, a batch minimises

        CE(t(x), y) + batch_norm · Σ_l (‖μ_l(x) - μ_l‖ + ‖σ²_l(x) - σ²_l‖) + smoothness · TV(x) + l2 · ‖x‖
        + adaptive · (1 - JS(t(x) ‖ s(x))),

    where μ_l and σ²_l are what the BatchNorm layer l of the victim t keeps, and all of x is shifted and mirrored anew
    in every iteration. Then the student is trained on the images with their labels by the usual distillation loss, with
    the recipe's augmentation.

    The last term (Adaptive DeepInversion) asks for images on which victim and student disagree. The student s is a copy
    that is distilled, before each batch but the first, on the images drawn so far.

    Defaults are those of the first of the authors' two commands for CIFAR-10, which they call the paper's parameters
    (``deepinversion_cifar10.py --bs=256 --r_feature_weight=10 --di_lr=0.05``): 2000 iterations, total variation 2.5e-5,
    shifts by up to 2 pixels, no mirroring. The second, for better pictures, has ``lr=0.1`` and ``smoothness=0.001``.
    Without these options the code would take 100 for BatchNorm and 0.1 for the rate.

    Paper vs code: norms are over the whole batch, as in the code. In the adaptive term the code clamps probabilities to
    0.01..0.99 and takes KL(m ‖ p), here it is the paper's eq. 9. The authors' code has no distillation from the set,
    and keeps no range of pixels; here pixels stay between black and white.
    """

    images = "synthetic"
    access = Access.GRADIENTS
    uses_labels = False
    paper = Paper(
        "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion",
        "CVPR",
        2020,
        "https://arxiv.org/abs/1912.08795",
    )
    smoke: ClassVar[dict[str, Any]] = {
        "count": 60,
        "batch": 20,
        "iterations": 2,
        "batch_norm": 0.0,
        "adaptive": 1.0,
        "rival_steps": 2,
    }

    count: int = Field(256, ge=2, strict=True, description="images of the set, of every class alike")
    batch: int = Field(256, ge=1, strict=True, description="images that are drawn together")
    iterations: int = Field(2000, ge=1, strict=True, description="steps of Adam on the pixels of a batch")
    lr: float = Field(0.05, gt=0, description="learning rate of the pixels")
    batch_norm: float = Field(10.0, ge=0, description="weight of the BatchNorm statistics; 0 for a victim without")
    smoothness: float = Field(2.5e-5, ge=0, description="weight of the total variation")
    l2: float = Field(0.0, ge=0, description="weight of the images' norm")
    adaptive: float = Field(0.0, ge=0, description="weight of the disagreement with the student")
    rival_steps: int = Field(100, ge=1, strict=True, description="steps of the student that is disagreed with, a batch")
    jitter: int = Field(2, ge=0, strict=True, description="largest shift in pixels")
    flip: bool = Field(False, description="mirror half of the time, as the authors do for ImageNet")
    temperature: float = Field(4.0, gt=0, description="τ of the distillation")
    alpha: float = Field(0.9, ge=0, le=1, description="α, the share of the softened answers in the loss")

    def synthesize(self, nets: Nets, frame: Frame, drawn: Images, device: torch.device) -> Images | None:
        """Return the next batch of the set.

        Raises:
            RecipeError: The victim has no BatchNorm layer.
        """
        victim = self.victim(nets)
        if self.batch_norm and not victim.has_statistics:
            raise RecipeError(
                "deep_inversion matches the statistics that BatchNorm layers keep, and this victim has none; choose "
                "dafl, or set method.batch_norm=0 and expect little"
            )
        size = min(self.batch, self.count - len(drawn))
        if size <= 0:
            return None
        labels = torch.arange(len(drawn), len(drawn) + size, device=device) % frame.num_classes
        rival = self._rival(nets.model, victim, frame, drawn, device) if self.adaptive and len(drawn) else None
        shape = size, frame.in_channels, frame.image_size, frame.image_size
        x = torch.randn(shape, device=device, requires_grad=True)
        black, white = (
            normalize(torch.full_like(x[:1], p, dtype=torch.uint8), frame.mean, frame.std) for p in (0, 255)
        )
        optimizer = torch.optim.Adam([x], lr=self.lr)
        for _ in range(self.iterations):
            loss = self._loss(x, self._moved(x), labels, victim, rival)
            (x.grad,) = torch.autograd.grad(loss, x)
            optimizer.step()
            with torch.no_grad():
                x.copy_(x.clamp(black, white))
        return Images(to_pixels(x, frame), labels)

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the distillation loss of one batch of the set."""
        answers = self.victim(nets).logits(batch.x)
        logits = nets.model(batch.x)
        loss = F.kd_loss(logits, answers, batch.y, temperature=self.temperature, alpha=self.alpha)
        return StepOutput(loss, logits)

    def _loss(self, x: Tensor, seen: Tensor, labels: Tensor, victim: Victim, rival: nn.Module | None) -> Tensor:
        opened = victim.white_box(seen, statistics=self.batch_norm > 0)
        loss = F.cross_entropy(opened.logits, labels)
        for layer in opened.statistics:
            distance = batch_norm_loss(layer.mean, layer.var, layer.running_mean, layer.running_var)
            loss = loss + self.batch_norm * distance
        loss = loss + self.smoothness * total_variation(seen) + self.l2 * image_norm(x)
        if rival is not None:
            disagreement = jensen_shannon(opened.logits, rival(seen), temperature=3.0)
            loss = loss + self.adaptive * (1 - disagreement.clamp(0, 1))
        return loss

    def _moved(self, x: Tensor) -> Tensor:
        """Return the images, all shifted alike (what leaves at one side enters at the other) and perhaps mirrored."""
        down, right = torch.randint(-self.jitter, self.jitter + 1, (2,)).tolist()
        x = x.roll((down, right), dims=(2, 3))
        mirrored = self.flip and float(torch.rand(())) < 0.5
        return x.flip(3) if mirrored else x

    def _rival(
        self, student: nn.Module, victim: Victim, frame: Frame, drawn: Images, device: torch.device
    ) -> nn.Module:
        """Return a copy of the student that has learned from the images drawn so far."""
        rival: nn.Module = deepcopy(student).train()
        x = normalize(drawn.x.to(device), frame.mean, frame.std)
        answers = victim.logits(x)
        optimizer = torch.optim.Adam(rival.parameters(), lr=1e-3)
        for _ in range(self.rival_steps):
            rows = torch.randint(len(x), (self.batch,)).to(device)
            optimizer.zero_grad()
            F.kl_divergence(answers[rows], rival(x[rows])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return rival.eval().requires_grad_(False)

"""Adversarial sparse teacher (Yilmaz and Keles, 2024): answers that lean to what an attacked image looks like."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill import functional as F
from undistill.defenses import Batch, Defense, Field, Frame, Nets, Paper, StepOutput, register_defense
from undistill.defenses.top_k import largest
from undistill.errors import RecipeError
from undistill.objective import Frozen

__all__ = ["AST", "adversarial_views", "exponential_divergence"]


@register_defense("ast")
class AST(Defense):
    """Learn the labels, and lean softened answers to the few classes that an adversarial view of the image looks like.

    loss = (1 - α) CE(f(x), y) + α τ² EPD, with EPD = mean_x Σ_j exp(a_j) (a_j - p_j). There p = softmax(f(x)/τ), and a
    is the same of the ``kept`` largest logits of f(x'), the others -∞, in eval mode and without a gradient. The view x'
    is made against a normally trained twin: ``steps`` of projected gradient ascent on its cross-entropy, at most ε from
    x in each pixel.

    The exponential predictive divergence is 0 where p = a, and no divergence: it is linear in p, and least, at most 0,
    where p names a's largest class alone. It lies between -e and e - 1, so that it cannot run away.

    Each step attacks a batch, which takes as long as ``steps`` forward and backward passes of the twin.

    Threat model:
        As of ``nasty``: the attacker sees logits or soft labels, and softens them.

    Paper vs code:
        The form of the divergence is that of the authors' code, which gives ``KLDivLoss`` probabilities where it takes
        logarithms. The code makes its views once, by 40 steps of 0.01, and cuts normalized pixels off at 0 and 1, which
        takes them out of the ball. It shuffles the images and not the views, so that each image learns from another
        one's view. ``paired=False`` does the latter two: views are cut off likewise, and handed on by one place in the
        batch. By default a view is of its own image as it was augmented, within the ball, not cut off at all.
    """

    needs_adversary = True
    paper = Paper(
        "Adversarial Sparse Teacher: Defense Against Distillation-Based Model Stealing Attacks Using Adversarial "
        "Examples",
        "arXiv",
        2024,
        "https://arxiv.org/abs/2403.05181",
    )
    smoke: ClassVar[dict[str, Any]] = {"steps": 2}

    temperature: float = Field(6.0, gt=0, description="τ: 6 for CIFAR-10, 30 for CIFAR-100")
    alpha: float = Field(0.05, ge=0, le=1, description="α: 0.05 for CIFAR-10, 0.03 to 0.035 for CIFAR-100")
    kept: int = Field(
        2, ge=1, strict=True, description="logits of a view that are kept: 2 for CIFAR-10, 7 for CIFAR-100"
    )
    epsilon: float = Field(0.3, ge=0, description="ε, how far a view may be, in normalized pixels; 0.3 in the code")
    steps: int = Field(10, ge=1, strict=True, description="of the attack; 40 in the code")
    step_size: float = Field(0.04, gt=0, description="of the attack, in normalized pixels; 0.01 in the code")
    paired: bool = Field(True, description="whether a view is of its own image; otherwise as in the code")

    def begin(self, nets: Nets, frame: Frame) -> None:
        """Check that there are enough classes.

        Raises:
            RecipeError: There are fewer than ``kept``.
        """
        if self.kept > frame.num_classes:
            raise RecipeError(
                f"ast: keeps kept={self.kept} logits, but there are only {frame.num_classes} classes; set kept to "
                f"{frame.num_classes} or less"
            )

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Return the loss of one batch; logs ``ce`` and ``epd`` (without its factors)."""
        views = adversarial_views(
            self.twin(nets),
            batch.x,
            batch.y,
            epsilon=self.epsilon,
            step_size=self.step_size,
            steps=self.steps,
            cut_off=not self.paired,
        )
        target = self._sparse(nets.model, views)
        if not self.paired:
            target = target.roll(1, dims=0)
        logits = nets.model(batch.x)
        ce = F.cross_entropy(logits, batch.y)
        epd = exponential_divergence((logits.float() / self.temperature).softmax(1), target)
        return StepOutput(
            (1 - self.alpha) * ce + self.alpha * self.temperature**2 * epd, logits, {"ce": ce, "epd": epd}
        )

    @torch.no_grad()
    def _sparse(self, model: torch.nn.Module, views: Tensor) -> Tensor:
        """Return the softened sparse answers (B, K) to the views; the net's mode is kept."""
        training = model.training
        logits: Tensor = model.eval()(views).float() / self.temperature
        model.train(training)
        return logits.where(largest(logits, self.kept), -torch.inf).softmax(1)


def exponential_divergence(probs: Tensor, target: Tensor) -> Tensor:
    """Return the exponential predictive divergence (1/B) Σ_b Σ_j exp(a_bj) (a_bj - p_bj), between -e and e - 1.

    Args:
        probs: p, probabilities (B, K).
        target: a, probabilities (B, K).
    """
    each: Tensor = (target.exp() * (target - probs)).sum(1)
    return each.mean()


def adversarial_views(
    net: Frozen, x: Tensor, y: Tensor, *, epsilon: float, step_size: float, steps: int, cut_off: bool = False
) -> Tensor:
    """Return images that a net takes for something else: projected gradient ascent on its cross-entropy.

    From x each step goes by ``step_size`` along the sign of the gradient, and then back to within ε of x, pixel by
    pixel (Madry et al., 2018, https://arxiv.org/abs/1706.06083, without a random start).

    Args:
        net: Whom the views are made against.
        x: Normalized images (B, C, H, W).
        y: Their classes (B,).
        epsilon: ε >= 0, in normalized pixels.
        step_size: In normalized pixels.
        steps: How many there are.
        cut_off: Whether normalized pixels are brought to 0..1 after each step.

    Returns:
        (B, C, H, W), without gradients.
    """
    views = x
    for _ in range(steps):
        views = views.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(net.net(views), y), views)
        views = x + (views.detach() + step_size * slope.sign() - x).clamp(-epsilon, epsilon)
        if cut_off:
            views = views.clamp(0, 1)
    return views

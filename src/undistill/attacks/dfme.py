"""Data-free model extraction (Truong et al., 2021): no image, no weights, nothing but probabilities by the query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from undistill.attacks import Access, Batch, DataFreeAttack, Field, Frame, Nets, Paper, StepOutput, register_attack
from undistill.attacks.generating import Generating, companion_of
from undistill.functional.synthesis import centered_log_probs
from undistill.models.generator import Generator
from undistill.victim import Victim

__all__ = ["DFME", "Extraction", "disagreement", "forward_difference"]


@register_attack("dfme")
class DFME(DataFreeAttack):
    """Train a generator of images on which victim and student disagree, and the student to agree, by queries only.

    The disagreement is the mean of |l_k - s_k| over classes and batch, where l are the victim's centered
    log-probabilities and s the student's logits. A step of the recipe is one of the student, on new images. Before
    every ``student_steps`` of them the generator takes one, up the gradient of the disagreement with respect to the
    pixels, which is estimated by forward differences in random directions, for the victim shows none.

    The budget is exact: a step that would exceed it asks about as many images as are left, and then the student goes on
    with the images that it remembers. With batches of B a round of ``student_steps`` costs
    B · (``student_steps`` + ``directions`` + 1) queries.

    The generator ends in a BatchNorm without parameters and tanh, so normalized images lie in -1..1; directions and
    gradients are of what goes into tanh. Its learning rate follows the schedule of the student's, as both have the same
    in the authors' code.

    Defaults are those of the authors' command for CIFAR-10 (``train.py --grad_m 1 --query_budget 20 --lr_G 1e-4
    --loss l1``, with batches of 256 and epochs of 50 rounds). The student's protocol is the recipe's: SGD at 0.1 with
    momentum 0.9 and decay 5e-4, both rates times 0.3 after 10, 30 and 50 % of the epochs.

    Paper vs code: the paper sums over classes where the code takes the mean, as here; the code divides the generator's
    gradient by the number of classes once more, which Adam does not see. The code's logarithms are of the victim's own
    softmax, here of the probabilities that it gives. The code keeps the student that is best on the test set
    (``selection=paper``). The memory is not the authors': they stop when the budget does not pay a whole round.
    """

    access = Access.PROBS
    paper = Paper("Data-Free Model Extraction", "CVPR", 2021, "https://arxiv.org/abs/2011.14779")
    smoke: ClassVar[dict[str, Any]] = {"steps": 4, "latent": 8, "channels": 4, "student_steps": 2, "memory": 30}

    steps: int = Field(250, ge=1, strict=True, description="batches that make an epoch")
    budget: int = Field(20_000_000, ge=1, strict=True, description="queries in all")
    student_steps: int = Field(5, ge=1, strict=True, description="steps of the student for one of the generator")
    directions: int = Field(1, ge=1, strict=True, description="random directions of one gradient estimate")
    epsilon: float = Field(1e-3, gt=0, description="length of a forward difference")
    generator_lr: float = Field(1e-4, gt=0, description="learning rate of the generator (Adam) at the recipe's lr")
    paced: bool = Field(True, description="the generator's learning rate follows the student's schedule")
    latent: int = Field(256, ge=1, strict=True, description="entries of a noise vector")
    channels: int = Field(128, ge=1, strict=True, description="of the generator's first convolution")
    memory: int = Field(1024, ge=1, strict=True, description="answered images that are remembered")

    def companion(self, nets: Nets, frame: Frame, device: torch.device) -> Extraction:
        """Return the generator, the memory and the count of queries."""
        return Extraction(self, frame, device)

    def step(self, batch: Batch, nets: Nets) -> StepOutput:
        """Train the generator when it is its turn, and return the student's loss; logs the images asked about."""
        victim, thief, size = self.victim(nets), companion_of(nets, Extraction), len(batch.y)
        if thief.rounds % self.student_steps == 0 and self.budget - thief.asked >= size * (self.directions + 1):
            self._train_generator(victim, nets.model, thief, size)
        thief.rounds += 1
        new = min(size, self.budget - thief.asked)
        if new:
            with torch.no_grad():
                x = thief.draw(max(new, 2))[:new].tanh()  # BatchNorm cannot be trained on one image
            thief.remember(x, thief.ask(victim, x))
        x, answers = thief.recall(new, size)
        labels = answers.argmax(dim=1)
        thief.show(x, labels)
        logits = nets.model(x)
        loss = disagreement(answers, logits).mean()
        asked = torch.tensor(float(new) / size, device=x.device)
        return StepOutput(loss, logits, {"new_images": asked}, labels)

    def _train_generator(self, victim: Victim, student: nn.Module, thief: Extraction, size: int) -> None:
        x = thief.draw(size)

        @torch.no_grad()
        def score(before: Tensor) -> Tensor:
            images = before.tanh()
            return disagreement(thief.ask(victim, images), student(images))

        training = student.training
        student.eval()  # its statistics are of what it learns from, not of what is tried out
        gradient = forward_difference(score, x.detach(), self.directions, self.epsilon)
        student.train(training)
        thief.update(-(x * gradient).sum() / size)


class Extraction(Generating):
    """The generator, the answered images that are remembered, and the number of queries.

    Attributes:
        asked: Images that the victim was asked about.
        rounds: Steps of the student.
    """

    def __init__(self, attack: DFME, frame: Frame, device: torch.device) -> None:
        last = nn.BatchNorm2d(frame.in_channels, affine=False)
        generator = Generator(attack.latent, frame.in_channels, frame.image_size, attack.channels, last=last)
        super().__init__(generator, frame, device, lr=attack.generator_lr)
        self._lr, self._paced = attack.generator_lr, attack.paced
        self.asked = self.rounds = 0
        self._most = attack.memory
        self._x = torch.empty(0, frame.in_channels, frame.image_size, frame.image_size, device=device)
        self._answers = torch.empty(0, frame.num_classes, device=device)

    def pace(self, share: float) -> None:
        """Have the generator's learning rate follow the student's."""
        if self._paced:
            self.optimizer.param_groups[0]["lr"] = self._lr * share

    def ask(self, victim: Victim, x: Tensor) -> Tensor:
        """Return the victim's centered log-probabilities (B, K)."""
        self.asked += len(x)
        return centered_log_probs(victim.probs(x))

    def remember(self, x: Tensor, answers: Tensor) -> None:
        """Put answered images in front, and forget the oldest."""
        keep = max(self._most, len(x))
        self._x, self._answers = torch.cat((x, self._x))[:keep], torch.cat((answers, self._answers))[:keep]

    def recall(self, new: int, count: int) -> tuple[Tensor, Tensor]:
        """Return ``count`` of the answered images: the ``new`` ones in front, and any others to make up the number."""
        others = torch.randint(len(self._x), (count - new,))
        rows = torch.cat((torch.arange(new), others)).to(self._x.device)
        return self._x[rows], self._answers[rows]

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything."""
        counts = torch.tensor([self.asked, self.rounds])
        return {**super().state_dict(), "memory/x": self._x, "memory/answers": self._answers, "counts": counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` returned."""
        super().load_state_dict(state)
        self._x, self._answers = (state[f"memory/{key}"].to(self._x.device) for key in ("x", "answers"))
        self.asked, self.rounds = state["counts"].tolist()


def disagreement(answers: Tensor, logits: Tensor) -> Tensor:
    """Return the mean over classes of |answers - logits|, both (B, K), of every sample: (B,)."""
    return (answers - logits.float()).abs().mean(dim=1)


def forward_difference(score: Callable[[Tensor], Tensor], x: Tensor, directions: int, epsilon: float) -> Tensor:
    """Estimate the gradient of a score with respect to images, from its values alone.

    (N/m) Σ_i (score(x + ε u_i) - score(x)) / ε · u_i over m directions u_i, uniform on the unit sphere of the N entries
    of an image. Right on average for a linear score (Truong et al., CVPR 2021, eq. 6).

    Args:
        score: Of images (B, C, H, W), one value each (B,); asked directions + 1 times.
        x: Images, or what becomes one.
        directions: m.
        epsilon: ε > 0.

    Returns:
        (B, C, H, W).
    """
    size = x[0].numel()
    start, gradient = score(x), torch.zeros_like(x)
    for _ in range(directions):
        u = torch.randn_like(x)
        u = u / u.flatten(1).norm(dim=1)[:, None, None, None]
        slope = (score(x + epsilon * u) - start) / epsilon
        gradient += slope[:, None, None, None] * u
    return gradient * (size / directions)

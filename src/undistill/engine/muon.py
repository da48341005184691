"""Muon with a fixed length of every matrix: an update turns weights, whatever the size of loss and gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "matrices_of", "orthogonalize"]

_COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of Jordan's quintic, which is steep at zero
_ADAM_BETAS, _ADAM_EPSILON = (0.9, 0.99), 1e-19  # below it a square is 0; above it, small gradients are as good as any
_ADAM_SHARE = 0.2  # of the learning rate


class Muon(torch.optim.Optimizer):
    """Turn matrices along the orthogonal part of their gradients' running mean; train all else by Adam.

    A matrix W, a convolution's weight as (outputs, inputs · height · width) or a hidden layer's, moves by the
    orthogonalized running mean U of its gradients, with Nesterov's look ahead, and gets its old length back:
    W' = W - lr ‖W‖ U/‖U‖, then W'' = W' ‖W‖/‖W'‖. The learning rate is how far a step turns it, as a share of its
    length. Neither this nor Adam depends on the scale of the loss, so the rates that suit cross-entropy suit τ² KL too.

    Args:
        model: Its matrices, but for the last one, which makes the logits, and those of grouped convolutions, are
            turned; its other parameters, and the last matrix, are Adam's.
        others: Further modules; all of their parameters are Adam's.
        lr: Of the matrices; Adam's is a fifth of it.
        momentum: Of the running mean, 0..1.

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
        https://kellerjordan.github.io/posts/muon; and the Muon version of his CIFAR-10 speedrun.

    Paper vs code:
        The speedrun gives every matrix the length √outputs after each step, and trains head and biases by SGD at rates
        of their own. Keeping the length that a matrix began with is the same to a net whose convolutions are
        normalized, and asks for no other initialization where they are not.
    """

    def __init__(self, model: nn.Module, others: Iterable[nn.Module] = (), *, lr: float, momentum: float) -> None:
        turned = {id(p) for p in matrices_of(model)}
        trained = [p for module in (model, *others) for p in module.parameters() if p.requires_grad]
        matrices = [p for p in trained if id(p) in turned]
        rest = [p for p in trained if id(p) not in turned]
        groups = [{"params": matrices, "turn": True}, {"params": rest, "turn": False}]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients that there are."""
        for group in self.param_groups:
            update = self._turn if group["turn"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, group)

    def _turn(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        mean = self._slot(weight, "momentum")
        mean.lerp_(gradient, 1 - group["momentum"])
        direction = orthogonalize(gradient.lerp(mean, group["momentum"]).flatten(1)).view_as(weight)
        length = weight.norm()
        weight.sub_(direction * (group["lr"] * length / direction.norm().clamp(min=1e-12)))
        weight.mul_(length / weight.norm().clamp(min=1e-12))

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        (first, second), state = _ADAM_BETAS, self.state[parameter]
        mean, square = self._slot(parameter, "mean"), self._slot(parameter, "square")
        steps = state.setdefault("steps", torch.zeros((), device=parameter.device)).add_(1)
        mean.lerp_(gradient, 1 - first)
        square.lerp_(gradient.square(), 1 - second)
        size = (square / (1 - second**steps)).sqrt_().add_(_ADAM_EPSILON)
        parameter.sub_(mean / size * (_ADAM_SHARE * group["lr"] / (1 - first**steps)))

    def _slot(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        slot: Tensor = state[name]
        return slot


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights of linear layers and of convolutions without groups, all but the last, in order."""
    return list(_matrices(model))[:-1]


def _matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        ungrouped = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
        if (ungrouped or isinstance(module, nn.Linear)) and module.weight.requires_grad:
            yield module.weight  # type: ignore[misc]


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return about the nearest matrix whose singular values are all equal: U Vᵀ of ``matrix`` = U Σ Vᵀ.

    Three Newton–Schulz steps, each a quintic in the singular values, bring most of them to 0.7..1.2, which is enough.

    Args:
        matrix: (R, C), float32.
        steps: Of the iteration.
    """
    a, b, c = _COEFFICIENTS
    x: Tensor = matrix / matrix.norm().clamp(min=1e-30)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x

"""Figure 1 of the paper: the softened answers of a normal and a nasty teacher to the same images.

References:
    Ma et al., "Undistillable: Making A Nasty Teacher That CANNOT Teach Students", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undistill import functional as F
from undistill.engine.evaluate import predict
from undistill.registry import Spec
from undistill.reporting.answers import choose_examples
from undistill.reporting.parts import Part
from undistill.reporting.parts.responses import Picture, Responses
from undistill.studies.changes import Changes, adapt
from undistill.studies.pair import PairStudy, Teachers
from undistill.studies.protocol import nasty, normal
from undistill.studies.study import STUDIES

__all__ = ["ResponseStudy", "figure1"]

_EXAMPLES = 8
_ROUND = 6  # decimals: float32 has no more


@dataclass(frozen=True)
class ResponseStudy(PairStudy):
    """Images with the probabilities that both teachers give, and the same over the whole test set in numbers.

    The slides do not say how the paper chose its images; ours are chosen by a rule, ``choose_examples``.
    """

    kind: ClassVar[type[Part]] = Responses

    @property
    def temperature(self) -> float:
        """τ of the softmax: the one that the nasty teacher was trained with."""
        return float(Spec.parse(self.nasty.method).kwargs["temperature"])

    @property
    def parameters(self) -> dict[str, Any]:
        """Temperature and number of examples."""
        return {"temperature": self.temperature, "examples": _EXAMPLES}

    def compute(self, teachers: Teachers) -> dict[str, Any]:
        """Return ``temperature``, ``classes``, ``examples`` and the ``summary`` of the test set.

        An example has its ``index`` in the test set, ``label``, ``image``, ``both_right``, and the probabilities of
        the ``normal`` and the ``nasty`` teacher. The summary has the number of ``images``, the mean ``entropy`` in
        nats and the mean number of ``peaks``, classes with a probability above 1/K, of each teacher, the mean ``kl``
        (nasty ‖ normal) in nats, all at the temperature, and the ``agreement``, a share of the images in 0..1.
        """
        data, test = teachers.data, teachers.data.test
        logits = {
            name: predict(
                run.load_model().to(teachers.device), test, mean=data.mean, std=data.std, device=teachers.device
            ).cpu()
            for name, run in teachers.runs.items()
        }
        soft = {name: (answers / self.temperature).softmax(dim=1) for name, answers in logits.items()}
        right = torch.stack([answers.argmax(dim=1) == test.y for answers in logits.values()]).all(dim=0)
        examples = [
            {
                "index": index,
                "label": int(test.y[index]),
                "image": Picture.of(test.x[index]).model_dump(),
                "both_right": bool(right[index]),
                **{name: [round(p, _ROUND) for p in rows[index].tolist()] for name, rows in soft.items()},
            }
            for index in choose_examples(test.y, right, _EXAMPLES)
        ]
        summary = {
            "images": len(test),
            "entropy": {name: round(F.mean_entropy(z, self.temperature), _ROUND) for name, z in logits.items()},
            "peaks": {name: round(_mean_peaks(p), _ROUND) for name, p in soft.items()},
            "kl": round(float(F.kl_divergence(logits["nasty"], logits["normal"], self.temperature)), _ROUND),
            "agreement": F.agreement(logits["normal"], logits["nasty"]),
        }
        return {
            "temperature": self.temperature,
            "classes": list(data.classes),
            "examples": examples,
            "summary": summary,
        }

    def remarks(self, picture: Mapping[str, Any]) -> Iterator[str]:
        """Yield how the images were chosen, and the summary."""
        yield (
            f"The first {len(picture['examples'])} classes, and of each the first test image that both teachers "
            "classify right: chosen by this rule, not by eye."
        )
        wrong = [picture["classes"][e["label"]] for e in picture["examples"] if not e["both_right"]]
        if wrong:
            yield f"No test image of {', '.join(wrong)} is classified right by both: the first one is shown."
        found, temperature, classes = picture["summary"], picture["temperature"], len(picture["classes"])
        yield (
            f"Over all {found['images']:,} test images at τ = {temperature:g}, normal and nasty: mean entropy "
            f"{found['entropy']['normal']:.3f} and {found['entropy']['nasty']:.3f} nats; "
            f"{found['peaks']['normal']:.2f} and {found['peaks']['nasty']:.2f} classes with a probability above "
            f"1/{classes}; mean KL(nasty ‖ normal) {found['kl']:.3f} nats; the same answer to "
            f"{100 * found['agreement']:.2f} %."
        )


@STUDIES.register("figure1")
def figure1(*, seeds: int, changes: Changes) -> ResponseStudy:
    """Return Figure 1: ResNet-18 on CIFAR-10."""
    return ResponseStudy(
        "figure1",
        f"Softened answers of a normal and a nasty ResNet-18 on {changes.titled('cifar10', 'CIFAR-10')}",
        seeds,
        changes,
        adapt(normal("cifar10", "resnet18", 0), changes),
        adapt(nasty("cifar10", "resnet18", 0), changes),
    )


def _mean_peaks(probabilities: Tensor) -> float:
    """Return the mean number of classes with a probability above 1/K."""
    return (probabilities > 1 / probabilities.shape[1]).sum(dim=1).double().mean().item()

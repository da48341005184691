"""The file that keeps what a victim said, so that a run that goes on asks nothing again."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from undistill.errors import CheckpointError
from undistill.storage import write_tensors

__all__ = ["read_answers", "write_answers"]

_META = "undistill"


def write_answers(path: Path, answers: Tensor, digest: str) -> None:
    """Write a victim's answers about a thief's images, atomically.

    Args:
        path: Of the file.
        answers: Classes (N,), or probabilities or logits (N, K).
        digest: Of the images and the victim.
    """
    write_tensors(path, {"answers": answers.cpu()}, {_META: digest})


def read_answers(path: Path, digest: str) -> Tensor | None:
    """Return what ``write_answers`` wrote, on the CPU; None if there is no file.

    Raises:
        CheckpointError: The file is damaged, or of other images or another victim.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            told, answers = (file.metadata() or {})[_META], file.get_tensor("answers")
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(
            f"cannot read {path}: {str(error).partition(chr(10))[0]}; delete it to ask anew"
        ) from error
    if told != digest:
        raise CheckpointError(f"{path} holds answers of another victim, or about other images; delete it to ask anew")
    return answers  # type: ignore[no-any-return]

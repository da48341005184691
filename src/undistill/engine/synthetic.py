"""Images that a thief made of nothing: a set drawn before training, and the file that keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from undistill.data.dataset import Frame, Images
from undistill.engine.job import Job
from undistill.errors import CheckpointError, InterruptedRunError
from undistill.storage import write_tensors

__all__ = ["draw_images", "read_images", "write_images"]

_FILE, _META = "images.safetensors", "undistill"


def draw_images(job: Job, frame: Frame, device: torch.device) -> Images:
    """Return the set of images that a job trains on, drawn batch by batch; a batch that is on disk is not drawn again.

    Args:
        job: Its objective has ``images = "synthetic"``.
        frame: Of the images.
        device: Where to compute.

    Returns:
        Images on the CPU.

    Raises:
        InterruptedRunError: Ctrl-C; what was drawn is kept and the same call goes on from there.
        CheckpointError: The file is damaged, or its images were drawn from another victim.
    """
    folder = job.state_path.parent if job.state_path is not None else None
    shape = 0, frame.in_channels, frame.image_size, frame.image_size
    images = Images(torch.empty(shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    victim = job.nets.victim
    if folder is not None and (folder / _FILE).is_file():
        images, told = _read(folder / _FILE)
        if told.get("origin") != job.inputs_digest:
            raise CheckpointError(
                f"{folder / _FILE} was drawn from another victim than is there now; restore it, or delete the file"
            )
        if victim is not None:
            victim.queries = told["queries"]
    try:
        while True:
            torch.manual_seed(_seed(job.config.seed, len(images)))  # of what is there already, so that a resume agrees
            more = job.objective.synthesize(job.nets, frame, images, device)
            if more is None:
                return images
            images = Images(torch.cat((images.x, more.x.cpu())), torch.cat((images.y, more.y.cpu())))
            if folder is not None:
                queries = victim.queries if victim is not None else 0
                write_images(folder, images, {"origin": job.inputs_digest, "queries": queries})
    except KeyboardInterrupt:
        kept = "run the same command again to go on" if folder is not None else "nothing was kept"
        raise InterruptedRunError(f"interrupted after {len(images)} synthetic images; {kept}") from None


def write_images(folder: Path, images: Images, told: dict[str, Any] | None = None) -> None:
    """Write images, their labels and what else is to be known of them into the folder of a run, atomically."""
    # One key: the file has several in an order of chance.
    write_tensors(folder / _FILE, {"images": images.x, "labels": images.y}, {_META: json.dumps(told or {})})


def read_images(folder: Path) -> Images | None:
    """Return the images in the folder of a run: uint8 (N, C, H, W) with labels; None if its method made none.

    Raises:
        CheckpointError: The file is damaged.
    """
    return _read(folder / _FILE)[0] if (folder / _FILE).is_file() else None


def _read(path: Path) -> tuple[Images, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            told = json.loads((file.metadata() or {})[_META])
            return Images(file.get_tensor("images"), file.get_tensor("labels")), told
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {str(error).partition(chr(10))[0]}; delete it") from error


def _seed(seed: int, done: int) -> int:
    return int(np.random.SeedSequence([seed, done]).generate_state(1, np.uint64)[0] >> np.uint64(1))

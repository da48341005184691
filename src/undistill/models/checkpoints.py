"""Checkpoints written by other programs, read without executing anything in them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from undistill.errors import CheckpointError
from undistill.storage import sha256_of

__all__ = ["checksum_of", "import_checkpoint", "load_weights"]

_SHOWN = 3


def checksum_of(path: Path) -> str:
    """Return the SHA-256 of a file of weights.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def import_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a file: ``.safetensors``, or a PyTorch file as the paper's code writes it.

    A PyTorch file holds a state dict, or a mapping that has one under ``state_dict``. If every key starts with
    ``module.`` (several GPUs in the paper's code), the prefix is dropped. Only tensors and plain values are read.

    Returns:
        Tensors on the CPU by name.

    Raises:
        CheckpointError: The file is missing, empty, damaged, not a checkpoint, or reading it would execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give the path of a .safetensors or PyTorch file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"the checkpoint {path} is empty; copy or download it again")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} holds no weights: expected tensors by name, or these under 'state_dict', got {_kind(state)}"
        )
    names = [str(name) for name in state]
    prefix = "module." if all(name.startswith("module.") for name in names) else ""
    return {name.removeprefix(prefix): value for name, value in zip(names, state.values(), strict=True)}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy ``state`` into ``model``; all of it, or nothing.

    Args:
        model: Network to fill.
        state: Tensors by name: every parameter and buffer of the model, and no other.
        source: Where the weights come from, for messages.

    Raises:
        CheckpointError: Names or shapes differ. The model is unchanged.
    """
    own: dict[str, Tensor] = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        differences = [_listed("missing", missing), _listed("unexpected", unexpected)]
        raise CheckpointError(
            f"the weights in {source} belong to another architecture: {'; '.join(filter(None, differences))}; "
            "choose the model that they were trained with"
        )
    if problems := _shape_problems(own, state):
        raise CheckpointError(f"the weights in {source} do not fit: {problems}; build the model with the same sizes")
    model.load_state_dict(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error}); copy it again") from error


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols of files that are refused just below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The reader's error types vary with how a file is damaged; torch's own advice in them, to load the file
        # anyway, must not reach a user.
        if isinstance(error, pickle.UnpicklingError) and _is_pickle_with_objects(path, error):
            raise CheckpointError(
                f"{path} is refused: reading it would execute code stored in it, as it holds Python objects besides "
                "tensors; ask its author for a plain state dict or a .safetensors file"
            ) from error
        raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint; copy or download it again") from error


def _is_pickle_with_objects(path: Path, error: pickle.UnpicklingError) -> bool:
    with path.open("rb") as file:
        # torch itself writes pickle protocol 2, so a later one is somebody else's pickle.
        return "GLOBAL" in str(error) or file.read(2) in (b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _shape_problems(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Describe in one line which shapes differ, in words where the classes or the images are the cause."""
    differing = [name for name in own if own[name].shape != state[name].shape]
    if not differing:
        return ""
    weights = [name for name, value in own.items() if value.ndim > 1]
    words: list[str] = []
    explained: set[str] = set()
    for name, axis, what in [(name, 0, "classes") for name in weights[-1:]] + [(name, 1, "") for name in weights[:1]]:
        theirs, ours = state[name].shape, own[name].shape
        if len(theirs) == len(ours) and theirs[axis] != ours[axis]:
            what = what or ("inputs" if len(ours) == 2 else "input channels")
            words.append(f"the checkpoint has {theirs[axis]} {what}, the model {ours[axis]}")
            explained |= {name, name.removesuffix("weight") + "bias"}
    rest = [
        f"{name} is {tuple(state[name].shape)} in the checkpoint and {tuple(own[name].shape)} in the model"
        for name in differing
        if name not in explained
    ]
    more = [f"and {len(rest) - _SHOWN} more"] if len(rest) > _SHOWN else []
    return "; ".join([*words, *rest[:_SHOWN], *more])


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, list(value)[:_SHOWN]))}" if value else "an empty mapping"
    return f"the type {type(value).__name__}"

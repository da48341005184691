"""Files that are written whole or not at all, folders that one process has at a time, and results kept by their key."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from undistill.errors import RunError, UndistillError

__all__ = [
    "append_text",
    "atomic_path",
    "digest_of",
    "locked",
    "remember",
    "sha256_of",
    "write_json",
    "write_tensors",
    "write_text",
]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends without an error.

    Raises:
        RunError: The disk is full or the folder is not writable; what stood at ``path`` is still there.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        os.chmod(name, 0o644)  # mkstemp keeps its files private
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Append to a text file.

    Raises:
        RunError: The disk is full or the file is not writable.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _explain(error, path) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    # A copy each: safetensors refuses tensors that share memory.
    copies = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(copies, metadata))  # save_file would report a full disk as an error of its own


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def remember(folder: Path, name: str, key: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was computed for a key before, else compute it and write that down.

    A file that is damaged, or of another key, counts for nothing and is replaced.

    Args:
        folder: Where results are kept.
        name: First part of the file's name.
        key: Plain values that decide the result.
        compute: Returns plain JSON values.

    Raises:
        RunError: The disk is full or the folder is not writable.
    """
    path = folder / f"{name}-{digest_of(key)[:12]}.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        value: dict[str, Any] = known["value"]
        if known["key"] == key and known["sha256"] == digest_of(value):
            return value
    except (OSError, ValueError, TypeError, KeyError):
        pass
    value = compute()
    write_json(path, {"key": key, "sha256": digest_of(value), "value": value})
    return value


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a plain value, as JSON with its keys in order."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, busy: UndistillError) -> Iterator[None]:
    """Keep other processes out of a folder, which is made where there is none.

    Args:
        folder: Gets a file ``.lock``.
        busy: Raised where another process has the folder.

    Raises:
        RunError: The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise busy from None
    except OSError as error:
        raise RunError(f"cannot write in {folder}: {error.strerror or error}; choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def _explain(error: OSError, path: Path) -> RunError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return RunError(f"cannot write {path}: the disk is full; free some space and run the same command again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return RunError(f"cannot write {path}: no permission; choose another folder")
    return RunError(f"cannot write {path}: {error.strerror or error}")

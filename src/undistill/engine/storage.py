"""Write files whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from undistill.errors import RunError

__all__ = ["atomic_path", "write_json", "write_text"]


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


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _explain(error: OSError, path: Path) -> RunError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return RunError(f"cannot write {path}: the disk is full; free some space and run the same command again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return RunError(f"cannot write {path}: no permission; choose another folder")
    return RunError(f"cannot write {path}: {error.strerror or error}")

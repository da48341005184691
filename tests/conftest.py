"""Shared by all tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the tests run in one process a core

import pytest
import torch
from hypothesis import settings

settings.register_profile("undistill", deadline=None)  # machines are noisy
settings.load_profile("undistill")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test out of the user's cache and runs."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("UNDISTILL_CACHE", str(folder / "cache"))
    monkeypatch.setenv("UNDISTILL_RUNS", str(folder / "runs"))

"""Make, attack and measure undistillable classifiers.

The verbs of the command line are functions here: ``train``, ``defend``, ``attack``, ``audit``, ``report``,
``reproduce``. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from undistill._version import __version__

if TYPE_CHECKING:
    from undistill.api import attack, audit, defend, reproduce, train
    from undistill.attacks import list_attacks
    from undistill.data import list_datasets, load_dataset
    from undistill.data.dataset import Dataset
    from undistill.defenses import list_defenses, list_output_defenses
    from undistill.identity import named
    from undistill.methods import list_references
    from undistill.models import build_model, list_models
    from undistill.recipe import list_recipes
    from undistill.reporting.report import report
    from undistill.run import Run
    from undistill.studies.study import list_studies
    from undistill.victim import Access, Victim

_HOMES = {
    "Access": "undistill.victim",
    "Dataset": "undistill.data.dataset",
    "Run": "undistill.run",
    "Victim": "undistill.victim",
    "attack": "undistill.api",
    "audit": "undistill.api",
    "build_model": "undistill.models",
    "defend": "undistill.api",
    "list_attacks": "undistill.attacks",
    "list_datasets": "undistill.data",
    "list_defenses": "undistill.defenses",
    "list_models": "undistill.models",
    "list_output_defenses": "undistill.defenses",
    "list_recipes": "undistill.recipe",
    "list_references": "undistill.methods",
    "list_studies": "undistill.studies.study",
    "load_dataset": "undistill.data",
    "named": "undistill.identity",
    "report": "undistill.reporting.report",
    "reproduce": "undistill.api",
    "train": "undistill.api",
}

__all__ = [
    "Access",
    "Dataset",
    "Run",
    "Victim",
    "__version__",
    "attack",
    "audit",
    "build_model",
    "defend",
    "list_attacks",
    "list_datasets",
    "list_defenses",
    "list_models",
    "list_output_defenses",
    "list_recipes",
    "list_references",
    "list_studies",
    "load_dataset",
    "named",
    "report",
    "reproduce",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'undistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

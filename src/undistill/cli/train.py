"""``undistill train``."""

from __future__ import annotations

from undistill.cli.options import AsJson, Device, DryRun, Quiet, RecipeArguments, Runs
from undistill.cli.training import carry_out

__all__ = ["EXAMPLES", "train"]

EXAMPLES = """\b
Examples:
  undistill train data=digits model=cnn epochs=30 lr=0.05
  undistill train data=cifar10 model=resnet18 method="label_smoothing(smoothing=0.1)"
"""


def train(
    arguments: RecipeArguments = None,
    runs: Runs = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a net on labels alone.

    It is a normal teacher, or a reference student. The method is ce unless another is given. The same recipe never
    trains twice, and an interrupted run goes on when the command is given again.
    """
    carry_out("reference", "ce", arguments or [], runs, device, dry_run=dry_run, as_json=as_json, quiet=quiet)

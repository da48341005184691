"""``undistill defend``."""

from __future__ import annotations

from undistill.cli.options import AsJson, Device, DryRun, Quiet, RecipeArguments, Runs
from undistill.cli.training import carry_out

__all__ = ["EXAMPLES", "defend"]

EXAMPLES = """\b
Examples:
  undistill defend data=digits model=cnn epochs=30
  undistill defend data=cifar10 model=resnet18 method="nasty(temperature=4, weight=0.04)"
"""


def defend(
    arguments: RecipeArguments = None,
    runs: Runs = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a defended teacher.

    The normally trained twin that it moves away from is trained first, or given as adversary=RUN. The method is nasty
    unless another is given. The same recipe never trains twice, and an interrupted run goes on when the command is
    given again.
    """
    carry_out("defense", "nasty", arguments or [], runs, device, dry_run=dry_run, as_json=as_json, quiet=quiet)

"""``undistill attack``."""

from __future__ import annotations

from undistill.cli.options import AsJson, Device, DryRun, Quiet, RecipeArguments, Runs
from undistill.cli.training import carry_out

__all__ = ["EXAMPLES", "attack"]

EXAMPLES = """\b
Examples:
  undistill attack victim=runs/nasty-cnn-0123456789ab model=mlp
  undistill attack victim=runs/nasty-cnn-0123456789ab model=mlp method="kd(temperature=1)" access=logits
"""


def attack(
    arguments: RecipeArguments = None,
    runs: Runs = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a student on a victim's answers.

    The victim is a run, a recipe, or checkpoint and model: victim.checkpoint=FILE victim.model=resnet18. The data set
    is the victim's and the method kd unless others are given. The same recipe never trains twice, and an interrupted
    run goes on when the command is given again.
    """
    carry_out("attack", "kd", arguments or [], runs, device, dry_run=dry_run, as_json=as_json, quiet=quiet)

"""The command line: one file a verb.

Nothing of ours but the errors is imported before a verb runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from undistill._version import __version__
from undistill.cli import attack, bench, data, defend, demo, doctor, listing, report, show, train
from undistill.errors import RecipeError, UndistillError

__all__ = ["app", "main"]

_UsageError = typer.BadParameter.__mro__[1]  # typer does not export it
_SETTINGS = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="undistill",
    no_args_is_help=True,
    rich_markup_mode=None,  # importing rich would double the time of --help
    context_settings=_SETTINGS,
    epilog="Start with: undistill demo",
)
app.command()(demo.demo)
app.command(epilog=train.EXAMPLES)(train.train)
app.command(epilog=defend.EXAMPLES)(defend.defend)
app.command(epilog=attack.EXAMPLES)(attack.attack)
app.command()(report.report)
app.command("list")(listing.list_)
app.command()(show.show)
app.add_typer(data.app, name="data")
app.command()(doctor.doctor)
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"undistill {__version__}")
        raise typer.Exit


@app.callback()
def undistill(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from; at any place.")] = False,
) -> None:
    """Make, attack and measure undistillable classifiers."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: What follows the command's name; default: ``sys.argv``.

    Returns:
        The exit code; an error has been told in one line a problem by then.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        code = _call([arg for arg in given if arg != "--debug"])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has had enough. Python flushes stdout once more at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in given:
            traceback.print_exc()
        lines, code = _explain(error)
        _complain(lines)
    return code


def _call(args: list[str]) -> int:
    code: Any = get_command(app)(args, prog_name="undistill", standalone_mode=False)
    if code == KeyboardInterruptCode:
        _complain(["interrupted"])
    return code if isinstance(code, int) else 0


def _explain(error: BaseException) -> tuple[Iterable[str], int]:
    """Return what to say about an error, and the exit code."""
    if isinstance(error, UndistillError):
        return error.problems if isinstance(error, RecipeError) else [str(error)], error.exit_code
    if isinstance(error, _UsageError):
        return [_usage(error)], 2
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return ["interrupted"], 130
    return [f"{type(error).__name__}: {error}", "run with --debug to see where"], 1

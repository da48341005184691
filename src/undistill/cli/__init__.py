"""The command line: one file a verb.

Nothing of ours but the errors is imported before a verb runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from undistill._version import __version__
from undistill.cli import (
    attack,
    audit,
    bench,
    data,
    defend,
    demo,
    doctor,
    leaderboard,
    listing,
    report,
    reproduce,
    show,
    train,
)
from undistill.errors import RecipeError, UndistillError

__all__ = ["app", "main"]

_INTERRUPTED = 130
_UsageError = typer.BadParameter.__mro__[1]  # typer has no public name for it

app = typer.Typer(
    name="undistill",
    invoke_without_command=True,
    rich_markup_mode=None,  # rich would double the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: undistill demo",
)
app.command()(demo.demo)
app.command(epilog=train.EXAMPLES)(train.train)
app.command(epilog=defend.EXAMPLES)(defend.defend)
app.command(epilog=attack.EXAMPLES)(attack.attack)
app.command(epilog=audit.EXAMPLES)(audit.audit)
app.command(cls=reproduce.Reproduce, epilog=reproduce.EXAMPLES)(reproduce.reproduce)
app.command()(report.report)
app.add_typer(leaderboard.app, name="leaderboard")
app.command("list")(listing.list_)
app.command()(show.show)
app.add_typer(data.app, name="data")
app.command()(doctor.doctor)
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"undistill {__version__}")
        raise typer.Exit


@app.callback()
def undistill(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from; also after a verb.")] = False,
) -> None:
    """Make, attack and measure undistillable classifiers."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: What follows the command's name; default: ``sys.argv``.

    Returns:
        The exit code. An error has been told by then, in one line a problem.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a code page without τ is no reason to fail
    given = list(sys.argv[1:] if args is None else args)
    if not {"--quiet", "-q"} & set(given):
        _show_log()
    command = get_command(app)
    try:
        found = command([arg for arg in given if arg != "--debug"], prog_name="undistill", standalone_mode=False)
        code = found if isinstance(found, int) else 0
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has had enough. Python flushes stdout once more at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        lines, code = _explain(error)
        _complain(*lines)
        return code
    if code == _INTERRUPTED:  # what typer makes of Ctrl-C
        _complain("interrupted")
    return code


class _Shown(logging.Handler):
    """Writes to what is standard error at that moment: a progress bar may have taken its place."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


def _show_log() -> None:
    """Show what the library finds worth saying, such as how the profile ``fast`` chose to compute."""
    logger = logging.getLogger("undistill")
    if not logger.handlers:
        logger.addHandler(_Shown())
        logger.setLevel(logging.INFO)


def _explain(error: Exception) -> tuple[Sequence[str], int]:
    """Return what to say about an error, and the exit code."""
    if isinstance(error, RecipeError):
        return error.problems, error.exit_code
    if isinstance(error, UndistillError):
        return [str(error)], error.exit_code
    if isinstance(error, _UsageError):
        return [_usage(error)], 2
    return [f"{type(error).__name__}: {error}; run with --debug to see where"], 1


def _usage(error: Any) -> str:
    """Return typer's complaint in one line, with where to look."""
    path = error.ctx.command_path if error.ctx else "undistill"
    fields = "fields of a recipe are given as key=value; " if path.split()[-1] in {"train", "defend", "attack"} else ""
    return f"{error.format_message().rstrip('.')}; {fields}see `{path} --help`"


def _complain(*lines: str) -> None:
    for line in lines:
        typer.secho("error: ", fg=typer.colors.RED, nl=False, err=True)
        typer.echo(" ".join(line.split()), err=True)

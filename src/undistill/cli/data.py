"""``undistill data``: the files that data sets are read from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undistill.cli.options import AsJson
from undistill.cli.output import print_json, print_table
from undistill.errors import DataError

if TYPE_CHECKING:
    from undistill.data import FileStatus

__all__ = ["app"]

app = typer.Typer(help="Fetch, verify and import the files of data sets.")

Name = Annotated[str, typer.Argument(help="Data set, such as cifar10.")]


@app.command()
def fetch(name: Name, as_json: AsJson = False) -> None:
    """Download a data set into the cache; what is there already is only verified."""
    from undistill.data import fetch as fetch_files

    _print_paths(fetch_files(name), as_json)


@app.command()
def verify(name: Name, as_json: AsJson = False) -> None:
    """Compare a data set's files in the cache with their published checksums."""
    from undistill.data import verify as verify_files

    files = verify_files(name)
    if as_json:
        print_json([asdict(file) for file in files])
    else:
        print_table(("state", "file"), [(file.state, file.path) for file in files])
    bad = [file for file in files if file.state != "ok"]
    if bad:
        raise DataError(f"{name}: {_told(bad)}; run `undistill data fetch {name}`")


@app.command("import")
def import_(
    name: Name,
    path: Annotated[Path, typer.Argument(help="The file as it was published; its own name does not matter.")],
    as_json: AsJson = False,
) -> None:
    """Copy a file that was downloaded by other means into the cache."""
    from undistill.data import import_file

    _print_paths([import_file(name, path)], as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the files in the cache, published ones and what was decoded from them, without verifying them."""
    from undistill.data import cache_dir, list_datasets
    from undistill.data.download import REMOTES

    list_datasets()  # sources declare their files when they are imported
    files = []
    for name, remotes in sorted(REMOTES.items()):
        folder = cache_dir() / name
        published = [folder / remote.filename for remote in remotes]
        files += [(name, path) for path in (*published, *sorted(set(folder.glob("*")) - set(published)))]
    rows = [(name, path.stat().st_size if path.is_file() else None, path) for name, path in files]
    if as_json:
        print_json([{"name": name, "bytes": size, "path": path} for name, size, path in rows])
    else:
        print_table(
            ("data set", "size", "file"), [(name, _megabytes(size), path) for name, size, path in rows], right=[1]
        )


def _print_paths(paths: Iterable[Path], as_json: bool) -> None:
    if as_json:
        print_json(list(paths))
    else:
        for path in paths:
            typer.echo(path)


def _told(files: Iterable[FileStatus]) -> str:
    return ", ".join(f"{file.path.name} is {file.state}" for file in files)


def _megabytes(size: int | None) -> str:
    return "not here" if size is None else f"{size / 1e6:,.1f} MB"

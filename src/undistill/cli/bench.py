"""``undistill bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from undistill.cli.options import AsJson
from undistill.cli.output import print_json, print_table

__all__ = ["app"]

app = typer.Typer(help="Measure speed beside what people use otherwise.")


@app.callback()
def _bench() -> None:
    pass  # with one command and no callback typer would drop the command's name


@app.command()
def augment(
    images: Annotated[int, typer.Option(min=1, help="Images in the data set.")] = 2048,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each loader; the median counts.")] = 5,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the JSON here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Batched augmentation against a PyTorch DataLoader over PIL."""
    from undistill.bench.augment import bench_augment
    from undistill.storage import write_json

    typer.echo("measuring, about half a minute …", err=True)
    found = bench_augment(images, repeats=repeats)
    if out is not None:
        write_json(out, found)
    if as_json:
        print_json(found)
        return
    results = found["results"]
    workers = list(results[0]["baseline"])
    print_table(
        ("augmentation", "size", *(f"PIL, {count} workers" for count in workers), "undistill", "ratio"),
        [
            (
                result["augment"],
                f"{result['image_size']}x{result['image_size']}",
                *(f"{result['baseline'][count]:,.0f}" for count in workers),
                f"{result['undistill']:,.0f}",
                f"{result['ratio']:.1f}x",
            )
            for result in results
        ],
        right=range(2, 4 + len(workers)),
    )
    typer.echo(
        f"\nimages a second, {found['images']:,} images in batches of {found['batch_size']}, "
        f"undistill in {found['threads']} thread; ratio to the faster baseline"
    )

"""``undistill bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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


_MODELS = ("cnn", "preresnet20", "preresnet32", "shufflenetv2", "mobilenetv2", "resnet18")
_PROFILES = ("exact", "fast")
_OBJECTIVES = ("normal", "nasty", "kd", "kd-group")
_EQUAL = "kd-stack"


@app.command()
def train(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="SPEC",
            help="A net; may be repeated. Several are the students of kd-group. Default: the paper's.",
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            help="normal, nasty, kd, kd-group (students of one victim together) or kd-stack (four equal students, also "
            "stacked). Default: all but kd-stack.",
        ),
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option("--profile", help="exact or fast; may be repeated. Default: both.")
    ] = None,
    victim: Annotated[str, typer.Option(metavar="SPEC", help="What kd and kd-group steal from.")] = "resnet18",
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:N.")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=2, help="Images a step.")] = 128,
    images: Annotated[int, typer.Option(min=20, help="Images in the data set.")] = 1024,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU, for every side alike.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Of the plain loop; default: 0, on CUDA 4.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side; the median counts.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Shortest turn of the plain loop.")] = 2.0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the JSON here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Whole training steps against a plain loop in the style of the paper's code."""
    from undistill.bench.train import bench_train
    from undistill.engine.device import pick_device
    from undistill.storage import write_json

    objectives = _known(objective or list(_OBJECTIVES), "objective", (*_OBJECTIVES, _EQUAL))
    profiles = _known(profile or list(_PROFILES), "profile", _PROFILES)
    where = str(pick_device(device))
    settings: dict[str, Any] = {
        "victim": victim,
        "device": where,
        "threads": threads,
        "batch_size": batch_size,
        "images": images,
    }
    settings["workers"] = (4 if where.startswith("cuda") else 0) if workers is None else workers
    found = []
    if model and len(model) > 1:
        settings["group"] = model
    measured = bench_train(model or _MODELS, objectives, profiles, rounds=rounds, seconds=seconds, **settings)
    typer.echo("measuring; the first steps of every side are not counted …", err=True)
    for result in measured:
        found.append(result)
        if out is not None:
            write_json(out, {"results": found})
        if not as_json:
            _print_work(result)
    if as_json:
        print_json({"results": found})


@app.command()
def scaling(
    model: Annotated[str, typer.Option(metavar="SPEC", help="The student.")] = "cnn(channels=16)",
    victim: Annotated[str, typer.Option(metavar="SPEC", help="What it steals from.")] = "preresnet20",
    profile: Annotated[str, typer.Option(help="exact or fast.")] = "exact",
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write scaling.json and scaling.png here.")] = None,
    as_json: AsJson = False,
) -> None:
    """How time and memory grow with images, classes, students and seeds; and ImageNet on paper."""
    from undistill.bench.scaling import bench_scaling, plot_scaling
    from undistill.engine.device import pick_device
    from undistill.storage import write_json

    _known([profile], "profile", _PROFILES)
    typer.echo("measuring, some minutes …", err=True)
    found = bench_scaling(model, victim, profile=profile, device=str(pick_device(device)), threads=threads)
    if out is not None:
        write_json(out / "scaling.json", found)
        plot_scaling(found, out)
    if as_json:
        print_json(found)
        return
    columns = ("axis", "value", "seconds", "images_per_s", "memory_mb")
    print_table(
        ("what grows", "to", "s an epoch", "images/s", "memory MB"),
        [[f"{row[key]:,}" if key != "axis" else row[key] for key in columns] for row in found["rows"]],
        right=range(1, 5),
    )
    estimate = found["imagenet"]
    typer.echo("\nImageNet on one H200, on paper:")
    for name, hours in estimate["hours"].items():
        typer.echo(f"  {name}: {hours:,} h")
    typer.echo("assuming: " + "; ".join(estimate["assumptions"]))


def _print_work(result: dict[str, Any]) -> None:
    work, machine = result["work"], result["machine"]
    typer.echo(
        f"\n{', '.join(work['models'])}: {work['objective']}, {result['steps']} steps of {work['batch_size']} images, "
        f"{machine['name']}, {machine['threads']} threads, {result['matmul_gflops']:,} GFLOP/s in matrix products"
    )
    print_table(
        ("side", "images/s", "ratio", "MFU", "memory MB", "weights", "KL", "how"),
        [
            (
                side,
                f"{found['images_per_s']:,.0f}",
                f"{found['ratio']:.2f}x",
                "not measured" if found["mfu"] is None else f"{100 * found['mfu']:.0f} %",
                f"{found['memory_mb']:,}",
                found.get("weights", ""),
                found.get("kl", ""),
                found["how"],
            )
            for side, found in result["sides"].items()
        ],
        right=range(1, 7),
    )


def _known(given: list[str], kind: str, known: tuple[str, ...]) -> list[str]:
    from undistill.errors import UnknownNameError

    for name in given:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    return given

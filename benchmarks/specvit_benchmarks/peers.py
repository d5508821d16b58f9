"""Ours beside what users have: speed and accuracy on the same spectra, in turns.

    OMP_NUM_THREADS=1 python -m specvit_benchmarks.peers -o peers.json

In every round each peer gets an HDF5 file of new spectra at each S/N (scenario `survey`), the slow ones the first of
those that the fast ones get. Times are processor time on one thread, from the file to log g, with everything loaded
that a long run loads once; a round before the first warms up. Accuracy is that of the very same calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from specvit_training.evaluate import one_thread as torch_on_one_thread

from specvit_benchmarks import peer_rvspecfit
from specvit_benchmarks.compare import same_machine
from specvit_benchmarks.intervals import interval
from specvit_benchmarks.peer_contestants import (
    Peer,
    research_of_bundle,
    research_of_study,
    template_fit,
    trees,
    whole_pipeline,
)
from specvit_benchmarks.peer_spectra import MAGNITUDES, recipes
from specvit_benchmarks.peer_turns import measure
from specvit_benchmarks.schema import load, new_report, save
from specvit_benchmarks.turns import one_thread
from specvit_deploy.atomic import check_outputs, whole_file
from specvit_deploy.bundle import DEFAULT, Bundle, load_bundle
from specvit_deploy.errors import SpecVitError

SCHEMA = "specvit-benchmark-peers/1"
PACKAGES = ("scipy", "lightgbm", "rvspecfit")
"""Beside those that every report names."""
SHARES = {"fast": 1, "loop": 4, "study": 32, "template": 32}
"""A peer takes one of so many spectra of a round; rvspecfit takes one spectrum of each S/N."""


def field_of(bundle: Bundle, rows: int, folder: Path, baseline: Path | None, study: Bundle | None) -> Iterator[Peer]:
    """Peers that run here, the default first."""
    share = {name: max(1, rows // part) for name, part in SHARES.items()}
    yield whole_pipeline(bundle, share["fast"])
    yield research_of_bundle(bundle, share["loop"])
    yield research_of_study(bundle.scenario, share["study"], study)
    yield trees(folder / "trees", share["fast"], baseline)
    yield template_fit(bundle.scenario, share["template"])
    if peer_rvspecfit.why_not() is None:
        templates = folder / "templates"
        templates.mkdir()
        for use in peer_rvspecfit.USES:
            yield peer_rvspecfit.rvspecfit(templates, 1, use)


def add_to(path: Path, result: dict[str, Any]) -> None:
    """Put peers into a report of `specvit-deploy benchmark`.

    Raises
    ------
    SpecVitError
        If it comes from another machine or is of another bundle.
    """
    report = load(path)
    same_machine(report, result)
    if report["bundle"]["sha256"] != result["bundle"]["sha256"]:
        raise SpecVitError(f"{path} is of another bundle; measure both with the same one")
    own = [note for note in report["notes"] if not note.startswith("peers: ")]
    save({**report, "peers": result["peers"], "notes": own + [f"peers: {note}" for note in result["notes"]]}, path)


def show(result: dict[str, Any], console: Console) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("method", "/s", f"{result['bundle']['name']} is", *(f"R2, S/N {snr}" for snr in MAGNITUDES), "n"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for peer in result["peers"]:
        cells = [interval(cell["r2"], ".2f") for cell in peer["accuracy"]]
        table.add_row(
            peer["name"],
            f"{peer['spectra_per_cpu_second'][0]:.3g}",
            f"{peer['ratio_default_over_peer'][0]:.3g} x",
            *(cells or [""] * len(MAGNITUDES)),
            str(peer["spectra"] // len(MAGNITUDES)),
        )
    console.print(table)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON to write.")
@click.option("--into", type=click.Path(path_type=Path), help="Report of 'specvit-deploy benchmark' to add them to.")
@click.option("--n", "rounds", default=64, show_default=True, type=click.IntRange(8),
              help="Rounds: spectra of each S/N for the slowest.")  # fmt: skip
@click.option("--rows", default=512, show_default=True, type=click.IntRange(1),
              help="Spectra of each S/N in a round for the fastest.")  # fmt: skip
@click.option("--bundle", "bundle_path", default=DEFAULT, show_default=True, help="Bundle of the scenario survey.")
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="Trained LightGBM; without it a small one is trained."
)
@click.option("--study", "study_path", help="Bundle of the published network; without it random weights tell its cost.")
def main(
    output: Path | None,
    into: Path | None,
    rounds: int,
    rows: int,
    bundle_path: str,
    baseline: Path | None,
    study_path: str | None,
) -> None:
    """Measure the default and its peers in turns."""
    one_thread()
    check_outputs([output])
    bundle = load_bundle(bundle_path)
    if bundle.scenario != "survey":
        raise SpecVitError(f"bundle {bundle.name} is of scenario {bundle.scenario}; give one of survey")
    study = None if study_path is None else load_bundle(study_path)
    if study is not None and study.scenario != bundle.scenario:
        raise SpecVitError(f"bundle {study.name} is of scenario {study.scenario}; give one of {bundle.scenario}")
    if into is not None:
        load(into)  # better refused now
    console = Console()
    with TemporaryDirectory() as folder, torch_on_one_thread():
        peers = []
        for peer in field_of(bundle, rows, Path(folder), baseline, study):
            console.print(f"ready: {peer.name}")
            peers.append(peer)
        found = measure(peers, bundle.scenario, rounds, lambda number: console.print(f"round {number}/{rounds}"))
    left_out = peer_rvspecfit.why_not()
    result = report_of(bundle, rounds, rows, found, [] if left_out is None else [f"left out: {left_out}"])
    show(result, console)
    if output is not None:
        with whole_file(output) as temporary:
            temporary.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    if into is not None:
        add_to(into, result)


def report_of(bundle: Bundle, rounds: int, rows: int, found: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    """What was measured, with what, on what and where."""
    begun = new_report(bundle, "standard")
    begun["machine"]["versions"] |= {name: is_at for name in PACKAGES if (is_at := _version(name)) is not None}
    drawn = recipes(bundle.scenario, rounds + 1, rows)
    return {
        "schema": SCHEMA,
        **{name: begun[name] for name in ("version", "date", "machine", "bundle")},
        "rounds": rounds,
        "threads": 1,
        "intervals": "68 % bootstrap: of rounds for rates and ratios, of spectra for scores",
        "format": "plain HDF5, contiguous, not compressed",
        "recipe": {name: {**recipe.describe(), "hash": recipe.hash} for name, recipe in drawn.items()},
        "peers": found,
        "notes": notes,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()

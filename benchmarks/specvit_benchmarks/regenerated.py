"""Freshly synthesised nodes against those of a node file.

    python -m specvit_benchmarks.regenerated NODES.h5 --work DIR -o benchmarks/results/regenerated.json

Needs gfortran. `ROWS` are a warm dwarf, a giant and a cool metal-rich star, nodes over the whole box, and the cool
carbon-rich corner, where the trimming of molecular lines matters most.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from specvit_training.regenerate import design_like, regenerate

from specvit_deploy import __version__
from specvit_deploy.atomic import whole_file
from specvit_deploy.labels import LABELS
from specvit_deploy.nodes import Nodes, read_nodes

ROWS = (
    "13,72,910,3,32,120,200,284,400,500,603,700,800,850,907,919,938,944,959,1000,1050,1150,1200,1250,1300,"
    "154,236,259,402,537"
)


def compare(fresh: Nodes, kept: Nodes) -> list[dict[str, Any]]:
    """Relative flux differences of nodes with the same id, both scaled to median 0.5."""
    place = {int(number): i for i, number in enumerate(kept.node_id)}
    out = []
    for number, labels, flux in zip(fresh.node_id, fresh.labels, fresh.flux, strict=True):
        difference = flux / kept.flux[place[int(number)]] - 1.0
        out.append(
            {"node_id": int(number), "labels": dict(zip(LABELS, labels.round(4).tolist(), strict=True)),
             "rms": float(np.sqrt((difference**2).mean())), "largest": float(np.abs(difference).max())}
        )  # fmt: skip
    return out


@click.command()
@click.argument("nodes", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder of tools and finished nodes.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON to write.")
def main(nodes: Path, work: Path, output: Path) -> None:
    """Compute, compare, write."""
    with TemporaryDirectory() as folder:
        fresh = Path(folder) / "fresh.h5"
        dropped = regenerate(design_like(nodes, ROWS), fresh, work, log=click.echo)
        found = compare(read_nodes(fresh), read_nodes(nodes))
    rms = np.array([cell["rms"] for cell in found])
    result = {
        "version": __version__,
        "nodes": found,
        "dropped": {str(number): reason for number, reason in dropped.items()},
        "rms_median": float(np.median(rms)),
        "share_below_0.1_percent": float((rms < 1e-3).mean()),
        "rms_largest": float(rms.max()),
    }
    with whole_file(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(f"{len(found)} nodes: median rms {100 * np.median(rms):.3f} %, largest {100 * rms.max():.2f} %")


if __name__ == "__main__":
    main()

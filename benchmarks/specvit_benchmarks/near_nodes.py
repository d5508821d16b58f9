"""The emulator's derivatives against those of the syntheses themselves: bounds from pairs of near nodes.

    python -m specvit_benchmarks.near_nodes --work DIR -o benchmarks/results/near-nodes.json

Needs gfortran: nodes a little to both sides of a star, along each label, are computed anew by
`specvit-deploy emulator regenerate`'s recipe and subtracted.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from specvit_training.regenerate import Design, regenerate

from specvit_deploy import __version__
from specvit_deploy.atomic import whole_file
from specvit_deploy.emulator import Array, default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.fisher import Information, information
from specvit_deploy.labels import LABELS
from specvit_deploy.nodes import read_nodes
from specvit_deploy.noise import default_noise_model, expected_error

STARS = np.array(
    [
        [4750.0, 1.8, -1.5, 0.2, 0.0],
        [5500.0, 4.4, -0.3, 0.05, 0.0],
        [4050.0, 4.6, -0.2, 0.05, -0.1],
        [4000.0, 1.6, -0.5, 0.15, -0.2],
    ]
)
STEP = np.array([50.0, 0.15, 0.1, 0.05, 0.05])
"""To each side, K and dex."""
MAG = 21.5


def pairs() -> Array:
    """Labels (stars, 5, 2, 5) below and above each star along each label."""
    offset = np.eye(5) * STEP
    return np.asarray(STARS[:, None, None] + np.stack([-offset, offset], 1))


def compare(flux: Array) -> list[dict[str, Any]]:
    """Bounds of log g from the syntheses (stars, 5, 2, n) and from the emulator, per star."""
    emulator = default_emulator()
    ivar = expected_error(default_noise_model(), emulator.flux(STARS), MAG) ** -2.0
    synthetic = (flux[:, :, 1] - flux[:, :, 0]) / (2.0 * STEP[:, None])
    emulated = emulator.jacobian(STARS)
    out = []
    for star, s, e, w in zip(STARS, synthetic, emulated, ivar, strict=True):
        both = information(np.stack([s, e]), np.stack([w, w]))
        found = Information(both, LABELS, np.full(5, np.inf))
        cell: dict[str, Any] = {"labels": dict(zip(LABELS, star.tolist(), strict=True)), "mag": MAG}
        for name, part in (("3d", found.about("T_eff", "log_g", "M_H")), ("5d", found)):
            synthesis, ours = part.sigma("log_g")
            cell[f"sigma_{name}_synthesis"], cell[f"sigma_{name}_emulator"] = float(synthesis), float(ours)
            cell[f"ratio_{name}"] = float(ours / synthesis)
        misfit = np.sqrt((w * (s - e) ** 2).sum(1) / (w * s**2).sum(1))
        cell["jacobian_misfit"] = dict(zip(LABELS, misfit.tolist(), strict=True))
        out.append(cell)
    return out


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder of tools and finished nodes.")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1), help="Nodes at a time.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON to write.")
def main(work: Path, processes: int, output: Path) -> None:
    """Compute the pairs, compare, write."""
    labels = pairs()
    design = Design(labels.reshape(-1, 5), np.arange(labels[..., 0].size, dtype=np.int64), "pairs of near nodes")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.h5"
        dropped = regenerate(design, file, work, processes, log=click.echo)
        if dropped:
            raise SpecVitError(f"nodes were dropped: {dropped}; move the star or take other steps")
        nodes = read_nodes(file)
    emulator = default_emulator()
    stars = compare(nodes.flux[:, emulator.inner].reshape(*labels.shape[:3], -1))
    result = {"version": __version__, "step": dict(zip(LABELS, STEP.tolist(), strict=True)), "stars": stars}
    with whole_file(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    for cell in stars:
        click.echo(f"{cell['labels']}: emulator / synthesis 3D {cell['ratio_3d']:.3f}, 5D {cell['ratio_5d']:.3f}")


if __name__ == "__main__":
    main()

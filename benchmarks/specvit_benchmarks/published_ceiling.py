"""Our Cramer-Rao bounds beside the published ones, and what makes the difference, switched on one thing at a time.

    python -m specvit_benchmarks.published_ceiling -o benchmarks/results/published-ceiling.json

The published table (five magnitudes of a BOSZ grid) took differences between the nodes of a regular grid, the noise
of the exposure-time calculator at nominal conditions, and 1.667 dex^2 for the variance of log g. The steps go from our
way to theirs; what is left after the last one is the grid of spectra itself, which cannot be switched here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from specvit_deploy import __version__
from specvit_deploy.atomic import whole_file
from specvit_deploy.emulator import Array, Emulator, default_emulator
from specvit_deploy.fisher import Information, information
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABEL_BOX, LABELS
from specvit_deploy.lattice import lattice, lattice_jacobian
from specvit_deploy.noise import NoiseModel, default_noise_model, expected_error

THREE = ("T_eff", "log_g", "M_H")
PUBLISHED: dict[float, dict[str, Any]] = {
    mag: {
        "snr": snr,
        "r2_3d": r2,
        "sigma_3d": sigma_3d,
        "sigma_5d": sigma_5d,
        "decay_3d": decay_3d,
        "decay_5d": decay_5d,
    }
    for mag, snr, r2, sigma_3d, sigma_5d, decay_3d, decay_5d in (
        (18.0, 87.4, (0.9946, 0.9994, 0.9999), 0.0328, 0.034, 0.664, 0.551),
        (20.0, 24.0, (0.919, 0.9906, 0.998), 0.125, 0.134, 0.684, 0.570),
        (21.5, 7.1, (0.048, 0.8914, 0.980), 0.426, 0.458, 0.691, 0.578),
        (22.0, 4.6, (0.0, 0.7396, 0.953), 0.659, 0.709, 0.692, 0.579),
        (22.5, 3.0, (0.0, 0.3658, 0.885), 1.03, 1.107, 0.692, 0.580),
        (23.0, 1.9, (0.0, 0.0, 0.718), 1.61, None, 0.692, 0.581),
    )
}
"""Median S/N, p10 / median / p90 of R2_max, median sigma of log g in dex, Schur decay (3D, 5D)."""
PUBLISHED_VARIANCE = 1.667
"""Variance of the nine log g nodes, dex^2; a uniform label from 1 to 5 has 1.333."""
PUBLISHED_FWHM = 1.6
"""Line spread of the published spectra, A; ours is 1.36 A before the pixel average, 1.38 A after."""
OUR_FWHM = 1.38
RANDOM = 1200
"""Random labels of the first step."""


def sigmas(jacobian: Array, error: Array) -> dict[str, Any]:
    """Percentiles of the bounds of log g, R2_max and Schur decay; derivatives (N, 5, n), errors (N, n)."""
    full = Information(information(jacobian, error**-2.0), LABELS, np.full(5, np.inf))
    out: dict[str, Any] = {}
    for name, part in (("3d", full.about(*THREE)), ("5d", full)):
        sigma = part.sigma("log_g")
        r2 = np.clip(1.0 - sigma**2 / PUBLISHED_VARIANCE, 0.0, 1.0)
        out[f"sigma_{name}"] = [float(v) for v in np.percentile(sigma, [10, 50, 90])]
        out[f"r2_max_{name}"] = [float(v) for v in np.percentile(r2, [10, 50, 90])]
        out[f"r2_max_{name}_of_uniform_labels"] = float(np.median(np.clip(1.0 - sigma**2 / LABEL_BOX.sd[1] ** 2, 0, 1)))
        out[f"decay_{name}"] = float(np.median(part.decay("log_g")))
    return out


def steps(emulator: Emulator, noise: NoiseModel, mag: float) -> list[dict[str, Any]]:
    """Each switch on top of those before it."""
    labels = np.random.default_rng(0).uniform(LABEL_BOX.low, LABEL_BOX.high, (RANDOM, 5))
    nodes = lattice(THREE)
    exact, differences = emulator.jacobian(labels), lattice_jacobian(emulator, nodes)
    ours, theirs = emulator.flux(labels), emulator.flux(nodes)
    error, node_error = expected_error(noise, ours, mag), expected_error(noise, theirs, mag)
    snr = float(np.median(np.median(theirs / node_error, axis=1)))
    published = PUBLISHED[mag]["snr"]
    return [
        {"step": "random labels, exact derivatives", "snr": float(np.median(np.median(ours / error, axis=1))),
         **sigmas(exact, error)},
        {"step": "lattice nodes at solar abundances", "snr": snr, **sigmas(emulator.jacobian(nodes), node_error)},
        {"step": "and differences between nodes", "snr": snr, **sigmas(differences, node_error)},
        {"step": "and the published S/N", "snr": published, **sigmas(differences, node_error * snr / published)},
        {"step": "and the published line width", "snr": published,
         **sigmas(broader(differences), node_error * snr / published)},
    ]  # fmt: skip


def broader(jacobian: Array) -> Array:
    """Broaden derivatives (N, R, n) from our line spread to the published one (Gaussians, edges by reflection)."""
    sigma = np.sqrt(PUBLISHED_FWHM**2 - OUR_FWHM**2) / np.sqrt(8.0 * np.log(2.0)) / PFS_MR.step
    half = int(np.ceil(5.0 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(jacobian, ((0, 0), (0, 0), (half, half)), mode="symmetric")
    out = np.zeros_like(jacobian)
    for k, weight in enumerate(kernel):
        out += weight * padded[..., k : k + jacobian.shape[-1]]
    return out


def table(emulator: Emulator, noise: NoiseModel, mags: tuple[float, ...] = tuple(PUBLISHED)) -> dict[str, Any]:
    """Published figures and our steps at each magnitude."""
    return {
        "version": __version__,
        "scenario": "study, nominal conditions, no nuisances",
        "published_variance": PUBLISHED_VARIANCE,
        "magnitudes": [{"mag": mag, "published": PUBLISHED[mag], "steps": steps(emulator, noise, mag)} for mag in mags],
    }


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON to write.")
def main(output: Path) -> None:
    """Measure and write the table."""
    result = table(default_emulator(), default_noise_model())
    with whole_file(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["magnitudes"]:
        published = row["published"]
        click.echo(f"mag {row['mag']:g}: published 3D {published['sigma_3d']}, 5D {published['sigma_5d']}")
        for step in row["steps"]:
            medians = f"3D {step['sigma_3d'][1]:.4f}  5D {step['sigma_5d'][1]:.4f}"
            click.echo(f"  {step['step']:36s} S/N {step['snr']:5.1f}  {medians}")


if __name__ == "__main__":
    main()

"""Spectra on which an engine must agree with torch: ordinary ones, and all that a catalogue may hold besides."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.recipe import Recipe
from specvit_deploy.scenario import get_scenario
from specvit_deploy.simulator import NumpyDraws, Simulator

DOMAIN_MAG = (18.0, 23.0)
"""Magnitudes of the training domain; brighter or fainter stars are flagged."""
Case = tuple[NDArray[np.float32], NDArray[np.float32]]


def parity_cases(scenario: str) -> dict[str, Case]:
    """Spectra by kind: flux and error (N, 4096); 386 of them together, so that last batches are short."""
    rng = np.random.default_rng(11)
    flux, error = draw(scenario, (20.5, 22.5), 128, 8_001)
    masked, masked_error = flux[:32].copy(), error[:32].copy()
    masked_error[rng.random(masked_error.shape) < np.linspace(0.05, 0.99, 32)[:, None]] = np.inf
    half, half_error = flux[:16].copy(), error[:16].copy()
    half[:8, :2048] = np.nan
    half_error[8:, 2048:] = 0.0
    return {
        "ordinary": (flux, error),
        "bright": draw(scenario, (15.0, 17.0), 32, 8_002),
        "faint": draw(scenario, (23.0, 25.0), 32, 8_003),
        "edge of the box": _corners(scenario),
        "masked": (masked, masked_error),
        "half missing": (half, half_error),
        "NaN": (np.where(rng.random((16, 4096)) < 0.01, np.float32(np.nan), flux[:16]), error[:16]),
        "flux x 1e6": (flux[:16] * np.float32(1e6), error[:16] * np.float32(1e6)),
        "flux x 1e20": (flux[:16] * np.float32(1e20), error[:16] * np.float32(1e20)),
        "flux x 1e-20": (flux[:16] * np.float32(1e-20), error[:16] * np.float32(1e-20)),
        "spikes": (np.where(rng.random((16, 4096)) < 0.001, np.float32(1e4), flux[:16]), error[:16]),
        "negative": (-flux[:9], error[:9]),
        "pure noise": (error[:16] * rng.standard_normal((16, 4096)).astype(np.float32), error[:16]),
        "no data": (np.full((4, 4096), np.nan, np.float32), error[:4]),
        "no error": (flux[:5], np.zeros((5, 4096), np.float32)),
    }


def proof_spectra(scenario: str) -> Case:
    """Flux and error (16, 4096) that a bundle keeps with their answers."""
    return draw(scenario, (18.0, 22.5), 16, 8_010)


def draw(scenario: str, mag: tuple[float, float], n: int, seed: int) -> Case:
    """Flux and error (n, 4096) of a simulated set."""
    blocks = list(Recipe(scenario, mag, n, seed).blocks())
    return np.concatenate([b[1] for b in blocks]), np.concatenate([b[2] for b in blocks])


def _corners(scenario: str) -> Case:
    """One star at each corner of the label box."""
    labels = np.array(list(itertools.product(*zip(LABEL_BOX.low, LABEL_BOX.high, strict=True))), np.float32)
    simulator = Simulator(get_scenario(scenario), mag=(18.0, 21.0))
    spectra = simulator.draw(len(labels), NumpyDraws(8_004), labels=labels)
    return spectra.flux, np.where(spectra.bad, np.float32(np.inf), spectra.error)

"""Catalogues of clean flux: noise that is added, and noise that was forgotten."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from specvit_deploy.formats import Block

NOISE_FREE = 0.3
"""Pixel-to-pixel scatter below this share of the errors means that the noise was never added."""


def add_noise(block: Block, level: float, seed: int, first: int) -> Block:
    """Add `level` times the error of Gaussian noise; row `first` + i draws from the seed (`seed`, `first` + i)."""
    flux = block.flux.copy()
    for i, row in enumerate(flux):
        noise = np.random.default_rng([seed, first + i]).standard_normal(row.size, dtype=np.float32)
        row += level * noise * np.where(np.isfinite(block.error[i]), block.error[i], 0.0)
    return replace(block, flux=flux)


def looks_noise_free(block: Block) -> bool:
    """Whether most rows scatter from pixel to pixel by less than `NOISE_FREE` of what their errors say.

    The second difference f[i-1] - 2 f[i] + f[i+1] of white noise has 6 times its variance; absorption lines only add.
    """
    error = np.where(np.isfinite(block.error) & (block.error > 0), block.error, np.nan)
    with np.errstate(all="ignore"):
        expected = np.sqrt(error[:, :-2] ** 2 + 4 * error[:, 1:-1] ** 2 + error[:, 2:] ** 2)
        ratio = np.abs(np.diff(block.flux, n=2, axis=1)) / expected
    usable = np.isfinite(ratio)
    rows = usable.sum(axis=1) > ratio.shape[1] // 2
    if not rows.any():
        return False
    medians = [np.median(r[u]) / 0.6745 for r, u in zip(ratio[rows], usable[rows], strict=True)]
    return bool(np.median(medians) < NOISE_FREE)


def warn_if_noise_free(block: Block, path: Path) -> None:
    """Warn that the first block of a catalogue looks noise-free."""
    if looks_noise_free(block):
        warnings.warn(
            f"the flux of {path} scatters far less than its errors say: it looks noise-free; "
            "add noise with --noise-level 1 --seed N, or the uncertainties will not describe it",
            stacklevel=2,
        )

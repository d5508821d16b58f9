"""Spectra that peers share: simulated at a few S/N, the same noise for everyone, one HDF5 file a turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.catalog_writer import BLOCK
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LOG_G
from specvit_deploy.quality import median_snr
from specvit_deploy.recipe import Recipe

MAGNITUDES = {"5": 21.92, "10": 21.15, "20": 20.28}
"""HSC i magnitude at which the median S/N of the scenario `survey` is near the name."""
SEED = 41_117
"""Of the peers' spectra: no training, test, validation or calibration set uses it."""

Spectra = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Stars:
    """What is known of R spectra, those of each S/N together, in the order of `MAGNITUDES`.

    Parameters
    ----------
    log_g : (R,) array
        Truth, dex.
    snr : (R,) array
        Median S/N of the spectrum.
    name : (R,) array of str
        S/N as `MAGNITUDES` names it.
    """

    log_g: NDArray[np.float64]
    snr: NDArray[np.float32]
    name: NDArray[np.str_]

    def first(self, rows: int) -> NDArray[np.int64]:
        """Places of the first `rows` spectra of each S/N."""
        return np.concatenate([np.flatnonzero(self.name == name)[:rows] for name in MAGNITUDES])


@dataclass(frozen=True)
class Round:
    """Spectra of one round: `stars`, `flux` and `error` (R, 4096); masked pixels have infinite error."""

    stars: Stars
    flux: NDArray[np.float32]
    error: NDArray[np.float32]

    def write(self, path: Path, rows: int) -> None:
        """Write the first `rows` spectra of each S/N as a catalogue: plain HDF5, contiguous, not compressed."""
        places = self.stars.first(rows)
        with h5py.File(path, "w") as file:
            file["wave"] = PFS_MR.wave
            file["flux"], file["error"] = self.flux[places], self.error[places]


def recipes(scenario: str, rounds: int, rows: int) -> dict[str, Recipe]:
    """Recipes of the spectra by the name of their S/N: whole blocks for each round, of which `rows` are taken."""
    n = rounds * _blocks(rows) * BLOCK
    return {name: Recipe(scenario, (mag, mag), n, SEED + i) for i, (name, mag) in enumerate(MAGNITUDES.items())}


def rounds_of_spectra(scenario: str, rounds: int, rows: int) -> Iterator[Round]:
    """Draw rounds of `rows` spectra at each S/N, no spectrum twice."""
    sources = [recipe.blocks() for recipe in recipes(scenario, rounds, rows).values()]
    names = np.repeat(list(MAGNITUDES), rows)
    for _ in range(rounds):
        parts = [_joined(islice(source, _blocks(rows)), rows) for source in sources]
        labels, flux, error = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        yield Round(Stars(labels[:, LOG_G].astype(np.float64), median_snr(flux, error), names), flux, error)


def _blocks(rows: int) -> int:
    return -(-rows // BLOCK)


def _joined(blocks: Iterable[Sequence[NDArray[Any]]], rows: int) -> list[NDArray[Any]]:
    """Labels, flux and error of the first `rows` spectra of some blocks."""
    return [np.concatenate(columns)[:rows] for columns in zip(*blocks, strict=True)]


def read_whole(path: Path) -> Spectra:
    """Flux and error (R, 4096) of a catalogue, all at once, as scripts do."""
    with h5py.File(path, "r") as file:
        return file["flux"][:], file["error"][:]

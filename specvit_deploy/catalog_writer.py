"""Simulated catalogues on disk, streamed in the simulator-dataset layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from specvit_deploy import __version__
from specvit_deploy.atomic import whole_file
from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.simulation import ERROR, FLUX, MASK, WAVE, ParamsTable
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABELS
from specvit_deploy.quality import median_snr
from specvit_deploy.scenario import get_scenario
from specvit_deploy.simulator import NumpyDraws, Simulator, Spectra

BLOCK = 128
"""Rows drawn from one seed; part of the recipe of a catalogue."""
OBSERVING = ("mag", "snr", "redshift", "seeing", "zenith", "field", "velocity", "slope")


def draw_block(simulator: Simulator, seed: int, block: int, rows: int = BLOCK) -> Spectra:
    """Draw block number `block` of the catalogue with `seed`: the recipe behind every simulated catalogue."""
    return simulator.draw(rows, NumpyDraws(np.random.SeedSequence([seed, block])))


def simulate(
    path: str | Path,
    n: int = 10_000,
    seed: int = 42,
    mag: tuple[float, float] = (20.5, 22.5),
    scenario: str = "study",
    advance: Callable[[int], None] = lambda rows: None,
) -> Path:
    """Write a catalogue of `n` simulated noisy spectra.

    Parameters
    ----------
    path : path
        HDF5 file to write, whole or not at all.
    n, seed : int
        Number of spectra; equal seeds give equal spectra, and the first rows do not depend on `n`.
    mag : (float, float)
        Range of the HSC i magnitude.
    scenario : str
        "study" or "survey".
    advance : callable
        Told the number of rows after each block.

    Returns
    -------
    Path
        `path`. The column `snr` is the median of flux over error (the published datasets keep a 95th percentile there).
    """
    if n < 1:
        raise SpecVitError(f"cannot simulate {n} spectra; give a number of at least 1")
    simulator = Simulator(get_scenario(scenario), mag=mag)
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(
            {
                "creator": f"specvit-deploy {__version__}",
                "scenario": scenario,
                "seed": seed,
                "mag": mag,
                "noisy": 1,
            }
        )
        file[WAVE] = PFS_MR.wave
        chunk = (min(64, n), PFS_MR.n)
        arrays = {
            key: file.create_dataset(key, (n, PFS_MR.n), dtype, chunks=chunk)
            for key, dtype in ((FLUX, "f4"), (ERROR, "f4"), (MASK, "u1"))
        }
        table = ParamsTable(file, (*LABELS, *OBSERVING), n)
        for start in range(0, n, BLOCK):
            spectra = draw_block(simulator, seed, start // BLOCK)
            rows = min(BLOCK, n - start)
            for key, array in ((FLUX, spectra.flux), (ERROR, spectra.error), (MASK, spectra.bad)):
                arrays[key][start : start + rows] = array[:rows]
            columns = {name: spectra.labels[:rows, i] for i, name in enumerate(LABELS)}
            columns |= {name: getattr(spectra, name)[:rows] for name in OBSERVING if name not in ("snr", "redshift")}
            columns["snr"] = median_snr(spectra.flux[:rows], np.where(spectra.bad[:rows], np.inf, spectra.error[:rows]))
            columns["redshift"] = np.zeros(rows)
            table.write(start, columns)
            advance(rows)
    return Path(path)

"""Catalogues of any size for measurements of scaling: simulated up to a size, beyond it those rows over and over."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np

from specvit_deploy.atomic import whole_file
from specvit_deploy.catalog_writer import BLOCK, draw_block
from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import PFS_MR
from specvit_deploy.scenario import get_scenario
from specvit_deploy.simulator import Simulator

DISTINCT = 20_000
"""Rows that are simulated; larger catalogues repeat them."""
SEED = 20_261_128
CHUNK = 64
"""Rows of a chunk."""
PER_SPECTRUM = 2 * 4 * PFS_MR.n
"""Bytes: flux and error in single precision, not compressed."""
SPARE = 1.1
"""Free space to have, in sizes of the file to write."""


def catalog_of(rows: int, scenario: str, folder: Path, distinct: int = DISTINCT) -> Path:
    """Catalogue of that many rows in `folder`, plain layout; made once, and the first rows are the same in any.

    Parameters
    ----------
    rows, distinct : int
        Spectra, and how many of them differ.
    scenario : str
        "study" or "survey".
    folder : Path
        Where catalogues are kept.

    Raises
    ------
    SpecVitError
        If the disk has too little room, or the folder cannot be written.
    """
    path = folder / f"{scenario}-{rows}.h5"
    if path.exists():
        return path
    need, free = rows * PER_SPECTRUM, shutil.disk_usage(folder).free
    if free < SPARE * need:
        raise SpecVitError(
            f"{rows} spectra take {need / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; give another folder "
            "with --work, or smaller --sizes"
        )
    base = catalog_of(distinct, scenario, folder, distinct) if rows > distinct else None
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        file["wave"] = PFS_MR.wave
        for name in ("flux", "error"):
            file.create_dataset(name, (rows, PFS_MR.n), "f4", chunks=(min(CHUNK, rows), PFS_MR.n))
        if base is None:
            _simulate(file, rows, scenario)
        else:
            _repeat(file, rows, base)
    return path


def _simulate(file: h5py.File, rows: int, scenario: str) -> None:
    simulator = Simulator(get_scenario(scenario))
    for start in range(0, rows, BLOCK):
        spectra, n = draw_block(simulator, SEED, start // BLOCK), min(BLOCK, rows - start)
        file["flux"][start : start + n] = spectra.flux[:n]
        file["error"][start : start + n] = np.where(spectra.bad, np.float32(np.inf), spectra.error)[:n]


def _repeat(file: h5py.File, rows: int, base: Path) -> None:
    with h5py.File(base, "r") as source:
        distinct = len(source["flux"])
        for first in range(0, rows, distinct):
            last = min(distinct, rows - first)
            for start in range(0, last, BLOCK):
                stop = min(start + BLOCK, last)
                for name in ("flux", "error"):
                    file[name][first + start : first + stop] = source[name][start:stop]

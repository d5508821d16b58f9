"""BOSZ 2024 (Meszaros et al. 2024, A&A 688, A197): MARCS and ATLAS9, wavelengths in one file per resolution.

    bosz2024_mp_t5000_g+5.0_m+0.00_a+0.00_c+0.00_v2_r10000_resam.txt.gz
    bosz2024_wave_r10000.txt

`mp` and `ms` are MARCS atmospheres, plane-parallel (dwarfs) and spherical (giants), 2800 to 8000 K; `ap` is ATLAS9,
7500 to 16000 K. Columns: Eddington flux H per A, its continuum. The wavelength file lists A, in air above 2000 A
(section 3 of the paper; the 2017 grid was in vacuum), 15 R of them from 500 A to 32 micron at constant ratio.
"""

from __future__ import annotations

import gzip
import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from specvit_deploy.emulator import Array
from specvit_deploy.errors import SpecVitError
from specvit_training.grids.spectrum import GridSpectrum, Sampled

MEDIUM: Literal["vacuum", "air"] = "air"
_DEX = r"[+-]\d\.\d\d"
NAME = re.compile(
    r"bosz2024_(?P<atmosphere>mp|ms|ap)_t(?P<T_eff>\d{4,5})_g(?P<log_g>[+-]\d\.\d)"
    rf"_m(?P<M_H>{_DEX})_a(?P<a_M>{_DEX})_c(?P<C_M>{_DEX})_v(?P<vmicro>\d+)_r(?P<resolution>\d+)_resam\.txt(?:\.gz)?"
)


def parse(path: Path) -> GridSpectrum | None:
    """Decode a file name; None if it is none of this generation."""
    found = NAME.fullmatch(path.name)
    if not found:
        return None
    labels = tuple(float(found[label]) + 0.0 for label in ("T_eff", "log_g", "M_H", "a_M", "C_M"))  # no -0.0
    return GridSpectrum(path, "bosz2024", labels, float(found["vmicro"]), int(found["resolution"]), found["atmosphere"])


def name(labels: tuple[float, ...], vmicro: float = 2.0, resolution: int = 10_000, atmosphere: str = "mp") -> str:
    """Encode labels (order of `LABELS`) into a file name; the inverse of `parse`."""
    t_eff, log_g, m_h, a_m, c_m = labels
    return (
        f"bosz2024_{atmosphere}_t{round(t_eff)}_g{log_g:+.1f}_m{m_h:+.2f}_a{a_m:+.2f}_c{c_m:+.2f}"
        f"_v{round(vmicro)}_r{resolution}_resam.txt.gz"
    )


def wavelength_name(resolution: int) -> str:
    """Name of the wavelength file of a resolution."""
    return f"bosz2024_wave_r{resolution}.txt"


@lru_cache(maxsize=2)
def read_wavelengths(path: Path) -> Array:
    """Read a wavelength file, (n,) A.

    Raises
    ------
    SpecVitError
        If it is no increasing list of numbers.
    """
    try:
        wave = np.loadtxt(path, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise SpecVitError(f"cannot read the wavelengths {path} ({error}); fetch the file again") from None
    if wave.ndim != 1 or not (np.diff(wave) > 0).all():
        raise SpecVitError(f"{path} is no increasing list of wavelengths; fetch the file again")
    return wave


def read(spectrum: GridSpectrum, low: float, high: float, wavelengths: Path | None = None) -> Sampled:
    """Read the samples from `low` to `high` (A) of the grid in the file `wavelengths`.

    Raises
    ------
    SpecVitError
        If the file has not one row of two columns for every wavelength.
    OSError, EOFError, ValueError
        If the file is truncated or no table of numbers.
    """
    if wavelengths is None:
        raise SpecVitError(f"needs {wavelength_name(spectrum.resolution)}")
    wave = read_wavelengths(wavelengths)
    with gzip.open(spectrum.path) if spectrum.path.suffix == ".gz" else spectrum.path.open("rb") as stream:
        lines = stream.read().splitlines()
    if len(lines) != len(wave):
        raise SpecVitError(f"has {len(lines)} rows but {wavelengths.name} has {len(wave)}")
    rows = slice(*np.searchsorted(wave, [low, high]))
    if rows.start == rows.stop:
        raise SpecVitError(f"{wavelengths.name} has nothing between {low:.1f} and {high:.1f} A")
    table = np.loadtxt(lines[rows], dtype=np.float64, ndmin=2, encoding="ascii")
    if table.shape[1] != 2:
        raise SpecVitError(f"has {table.shape[1]} columns, not flux and continuum")
    return Sampled(wave[rows], table[:, 0], table[:, 1])

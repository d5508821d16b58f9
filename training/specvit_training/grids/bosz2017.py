"""BOSZ 2017 (Bohlin et al. 2017, AJ 153, 234): ATLAS9, one file per spectrum with its wavelengths.

    amp00cp00op00t5000g10v20modrt0b50000rs.asc.bz2    also .asc and .fits
    a mp00 cp00 op00  t5000  g10    v20       rt0         b50000
      M_H  C_M  a_M   T_eff  log_g  km/s      rotation    resolution
                             tenths tenths

Abundances are p(lus) or m(inus) and two digits: tenths of a dex, rounded half up from multiples of 0.25, so that 03,
05, 08 and 13 mean 0.25, 0.50, 0.75 and 1.25 (appendix of the paper; the archive's page gives mm13 as [M/H] = -1.25).
Columns: wavelength (A, vacuum), flux per A (4 H), its continuum. There are two samples per resolution element,
every k-th of a logarithmic grid of R = 300000, and the wavelengths are rounded when written.
"""

from __future__ import annotations

import bz2
import re
from pathlib import Path
from typing import Literal

import numpy as np

from specvit_deploy.emulator import Array
from specvit_deploy.errors import SpecVitError, missing_extra
from specvit_training.grids.spectrum import GridSpectrum, Sampled

MEDIUM: Literal["vacuum", "air"] = "vacuum"
NAME = re.compile(
    r"a(?P<M_H>m[mp]\d\d)(?P<C_M>c[mp]\d\d)(?P<a_M>o[mp]\d\d)"
    r"t(?P<T_eff>\d{4,5})g(?P<log_g>\d\d)v(?P<vmicro>\d\d)modrt0b(?P<resolution>\d+)rs\.(?:asc|asc\.bz2|fits)"
)
STEP_DEX = 0.25
BLOCK = 1 << 20
"""Bytes of text read at a time."""


def parse(path: Path) -> GridSpectrum | None:
    """Decode a file name; None if it is none of this generation."""
    found = NAME.fullmatch(path.name)
    if not found:
        return None
    labels = (
        float(found["T_eff"]),
        int(found["log_g"]) / 10,
        _decode(found["M_H"]),
        _decode(found["a_M"]),
        _decode(found["C_M"]),
    )
    return GridSpectrum(path, "bosz2017", labels, int(found["vmicro"]) / 10, int(found["resolution"]), "ap")


def name(labels: tuple[float, ...], vmicro: float = 2.0, resolution: int = 50_000, suffix: str = "asc.bz2") -> str:
    """Encode labels (order of `LABELS`) into a file name; the inverse of `parse` on the grid's multiples of 0.25."""
    t_eff, log_g, m_h, a_m, c_m = labels
    return (
        f"am{_encode(m_h)}c{_encode(c_m)}o{_encode(a_m)}t{round(t_eff)}g{round(10 * log_g):02d}"
        f"v{round(10 * vmicro):02d}modrt0b{resolution}rs.{suffix}"
    )


def _decode(code: str) -> float:
    tenths = int(code[2:]) * (-1 if code[1] == "m" else 1)
    return round(tenths / 10 / STEP_DEX) * STEP_DEX


def _encode(value: float) -> str:
    return f"{'m' if value < 0 else 'p'}{int(abs(value) * 10 + 0.5):02d}"


def read(spectrum: GridSpectrum, low: float, high: float, wavelengths: Path | None = None) -> Sampled:
    """Read the samples from `low` to `high` (A), on the exact logarithmic grid; `wavelengths` is not needed.

    Raises
    ------
    SpecVitError
        If the columns are others or the wavelengths follow no logarithmic grid.
    OSError, EOFError, ValueError
        If the file is truncated or no table of numbers.
    """
    table = _fits(spectrum.path) if spectrum.path.suffix == ".fits" else _text(spectrum.path, low, high)
    table = table[:, (table[0] >= low) & (table[0] <= high)]
    if len(table) < 2 or table.shape[1] < 3:
        raise SpecVitError(f"has {table.shape[1]} samples between {low:.1f} and {high:.1f} A in {len(table)} columns")
    return Sampled(log_grid(table[0]), table[1], table[2] if len(table) > 2 else None)


def log_grid(rounded: Array) -> Array:
    """Rebuild the wavelengths (n,) of constant ratio from their rounded values, by least squares in the logarithm.

    Raises
    ------
    SpecVitError
        If a value is more than a tenth of a step away from that grid: no round-off.
    """
    index = np.arange(len(rounded)) - (len(rounded) - 1) / 2
    log = np.log(rounded)
    ratio = index @ log / (index @ index)
    exact: Array = np.exp(log.mean() + ratio * index)
    off = np.abs(rounded / exact - 1.0).max() / abs(ratio)
    if not off <= 0.1:
        raise SpecVitError(f"wavelengths stray by {off:.1f} steps from a logarithmic grid: a row is missing or wrong")
    return exact


def _text(path: Path, low: float, high: float) -> Array:
    """Columns of a text table, (columns, n), in blocks so that nothing far beyond `high` is even decompressed."""
    rows: list[bytes] = []
    with bz2.open(path) if path.suffix == ".bz2" else path.open("rb") as stream:
        while block := stream.readlines(BLOCK):
            last = float((block[-1].split(None, 1) or [b"nan"])[0])
            if not last < low:
                rows += block
            if last > high:
                break
    return np.loadtxt(rows, dtype=np.float64, ndmin=2, encoding="ascii").T if rows else np.empty((3, 0))


def _fits(path: Path) -> Array:
    try:
        from astropy.io import fits
    except ModuleNotFoundError:
        raise missing_extra("Reading FITS spectra", "train") from None
    with fits.open(path, memmap=False) as file:
        data, columns = file[1].data, {column.name.lower(): column for column in file[1].columns}
        flux = columns.get("flux", columns.get("specificintensity"))
        if "wavelength" not in columns or flux is None:
            raise SpecVitError(f"has columns {', '.join(columns) or 'none'}, not wavelength and flux")
        if "hz" in str(flux.unit).lower():
            raise SpecVitError(f"flux is in {flux.unit}, not per A")
        wanted = [columns["wavelength"], flux, *([columns["continuum"]] if "continuum" in columns else [])]
        return np.array([np.asarray(data[column.name], np.float64) for column in wanted])

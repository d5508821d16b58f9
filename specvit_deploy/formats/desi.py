"""DESI: coadd-*.fits and spectra-*.fits as desispec writes them, and files of one combined band (BRZ).

Wavelengths are in vacuum, barycentric; the velocity of a star is unknown unless a column is named. Only bands that
reach into the instrument's range are read. Bands share one grid of 0.8 A; where R and Z overlap (7520 to 7620 A) their
fluxes are averaged by inverse variance, as desispec's coaddition of cameras does, so that the overlap counts once.
Every nonzero MASK is bad, and a pixel of inverse variance zero says nothing, whatever its MASK.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.columns import floating, inverse_sqrt
from specvit_deploy.formats.fits import FitsFile, RowColumns, is_fits, overlaps_instrument
from specvit_deploy.formats.rows import Rows
from specvit_deploy.quality import Quality

TABLES = ("FIBERMAP", "SCORES", "EXTRA_CATALOG", "REDSHIFTS", "RVTAB")
"""Tables whose columns can be carried along, if they have a row for every spectrum."""
STATUS = ("COADD_FIBERSTATUS", "FIBERSTATUS")
"""The first that is there counts; nonzero is UPSTREAM_FLAG."""
ALIGNED = 1e-3
"""Pixels by which the grids of two bands may differ."""


@dataclass(frozen=True)
class Band:
    """A band of a file: its HDUs, and its first pixel on the common grid."""

    name: str
    wave: NDArray[np.float64]
    first: int


class DesiReader:
    """Many targets, in bands."""

    name = "desi"

    def detect(self, path: Path) -> bool:
        """A FIBERMAP, and wavelengths, fluxes and inverse variances of some band."""
        if not is_fits(path):
            return False
        with FitsFile(path) as file:
            return file.table("FIBERMAP") is not None and bool(_bands(file))

    def open(self, path: Path, keep: Sequence[str] = ()) -> DesiSpectra:
        """Open a file of targets."""
        return DesiSpectra(path, keep)


class DesiSpectra:
    """An open file of targets.

    Parameters
    ----------
    path : Path
        A coadd or spectra file.
    keep : sequence of str
        Columns of FIBERMAP, or of another table with a row a spectrum, to carry along.

    Raises
    ------
    SpecVitError
        If no band reaches into the instrument's range, or bands have different grids.
    """

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.file = file = FitsFile(path)
        with file.closed_on_error():
            self.rows = int(file.table("FIBERMAP").header["NAXIS2"])
            self.table = RowColumns(file, (file.table(name) for name in TABLES), self.rows)
            self.columns = self.table.names
            self.keep = tuple(keep)
            waves = {band: file.rising(file.block(file.image(f"{band}_WAVELENGTH"), 0, None).astype(np.float64))
                     for band in _bands(file)}  # fmt: skip
            waves = {band: wave for band, wave in waves.items() if overlaps_instrument(wave)}
            if not waves:
                raise SpecVitError(f"{path} has no band in the instrument's range; give a file with R and Z")
            for band, wave in waves.items():
                for what in ("FLUX", "IVAR"):
                    if file.shape(f"{band}_{what}") != (self.rows, len(wave)):
                        raise file.damaged(f"{band}_{what} does not fit FIBERMAP and {band}_WAVELENGTH")
            self.wave, self.bands = _join(path, waves)

    def unit(self, name: str) -> object:
        """Unit of a column of `columns`, if the file says it."""
        return self.table.where[name].columns[name].unit

    def read(self, start: int, stop: int) -> Rows:
        """Targets [start, stop); the identifier is TARGETID."""
        flux = np.full((stop - start, len(self.wave)), np.nan, np.float32)
        ivar = np.zeros_like(flux)
        for band in self.bands:
            pixels = slice(band.first, band.first + len(band.wave))
            flux[:, pixels], ivar[:, pixels] = _averaged(
                flux[:, pixels], ivar[:, pixels], *self._band(band, start, stop)
            )
        identifier = self.table.read("TARGETID", start, stop)
        status = next((self.table.read(name, start, stop) for name in STATUS if self.table.spelled(name)), None)
        bad = np.zeros(stop - start, bool) if status is None else status != 0
        return Rows(
            self.wave, flux, inverse_sqrt(ivar), np.arange(start, stop) if identifier is None else identifier,
            "vacuum", np.full(stop - start, np.nan), None,
            np.where(bad, np.int32(Quality.UPSTREAM_FLAG), np.int32(0)),
            {name: self.file.column(self.table.where[name], name, start, stop) for name in self.keep},
        )  # fmt: skip

    def _band(self, band: Band, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Flux (NaN where bad) and inverse variance (zero where bad) of a band."""
        file = self.file
        flux, ivar = (floating(file.block(file.image(f"{band.name}_{what}"), start, stop)) for what in ("FLUX", "IVAR"))
        good = np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
        mask = file.image(f"{band.name}_MASK")
        if mask is not None:
            good &= file.block(mask, start, stop) == 0
        return np.where(good, flux, np.nan), np.where(good, ivar, 0.0)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _bands(file: FitsFile) -> list[str]:
    """Names of bands, as in B_WAVELENGTH."""
    names = [name.removesuffix("_WAVELENGTH") for name in file.names if name.endswith("_WAVELENGTH")]
    return [name for name in names if len(file.shape(f"{name}_FLUX")) == 2 and len(file.shape(f"{name}_IVAR")) == 2]


def _join(path: Path, waves: dict[str, NDArray[np.float64]]) -> tuple[NDArray[np.float64], tuple[Band, ...]]:
    """The common grid of several bands, and where each lies on it; pixels that no band has stay empty."""
    order = sorted(waves, key=lambda band: waves[band][0])
    if len(order) == 1:
        return waves[order[0]], (Band(order[0], waves[order[0]], 0),)
    origin = waves[order[0]][0]
    step = waves[order[0]][1] - origin
    bands = []
    for name in order:
        position = (waves[name] - origin) / step
        first = round(float(position[0]))
        if np.abs(position - first - np.arange(len(position))).max() > ALIGNED:
            raise SpecVitError(f"{path}: bands {', '.join(order)} are not on one grid; combine them by desispec")
        bands.append(Band(name, waves[name], first))
    wave = origin + step * np.arange(max(band.first + len(band.wave) for band in bands))
    for band in bands:
        wave[band.first : band.first + len(band.wave)] = band.wave
    return wave, tuple(bands)


def _averaged(
    flux: NDArray[Any], ivar: NDArray[Any], other: NDArray[Any], other_ivar: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Average by inverse variance where both have some, either one where the other has none."""
    total = ivar + other_ivar
    both = (ivar > 0) & (other_ivar > 0)
    share = np.divide(other_ivar, total, out=np.zeros_like(total), where=both)
    return np.where(both, flux + share * (other - flux), np.where(other_ivar > 0, other, flux)), total


READERS = (DesiReader(),)

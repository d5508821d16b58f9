"""Fibres of a pfsArm or pfsMerged file: one visit, electrons or electrons/nm, not flux calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.formats.fits import ALL, FitsFile, RowColumns, mask_planes, plane_bits, useful
from specvit_deploy.formats.pfs_spectra import BAD_PLANES, NM, WAVE, spectra
from specvit_deploy.formats.rows import Rows
from specvit_deploy.quality import Quality

GOOD_FIBER = 1
"""FiberStatus.GOOD of the datamodel; broken, blocked, behind a black spot and unilluminated are 2 to 5."""


class Fibers:
    """An open file of fibres; fluxes are divided by NORM where there is one, as the datamodel extracts a fibre.

    Parameters
    ----------
    path : Path
        A pfsArm or pfsMerged file, of any version.
    keep : sequence of str
        Columns of NOTES and CONFIG to carry along.
    """

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.file = file = FitsFile(path)
        with file.closed_on_error():
            self.rows = int(file.image("FLUX").shape[0])
            fiber = file.image("FIBERID")
            self.id = np.arange(self.rows) if fiber is None else file.block(fiber, 0, self.rows)
            self.notes, self.visit = RowColumns(file, (file.table("NOTES"),), self.rows), _one_row(file)
            self.columns = tuple(dict.fromkeys(("fiberId", *self.notes.names, *self.visit)))
            self.keep = tuple(keep)
            planes = mask_planes(*(hdu.header for hdu in (file.hdus[0], file.find("FLUX"), file.find("MASK"))))
            self.bits = plane_bits(planes, BAD_PLANES)
            self.flags = _flags(file, self.id)
            self.wave = self._common_wave()
            self.window = ALL if self.wave is None else useful(self.wave)
            self.wave = None if self.wave is None else self.wave[self.window]

    def read(self, start: int, stop: int) -> Rows:
        """Fibres [start, stop); the identifier is FIBERID, or the row number in files without."""
        flux, mask, covar = (self._pixels(name, start, stop) for name in ("FLUX", "MASK", "COVAR"))
        wave = self._wave(start, stop) if self.wave is None else self.wave
        scale = np.ones(flux.shape)
        if self.file.image("NORM") is not None:
            values = self._pixels("NORM", start, stop).astype(np.float64)
            scale = np.divide(1.0, values, out=np.full(values.shape, np.nan), where=np.isfinite(values) & (values > 0))
        extras = {name: self._extra(name, start, stop) for name in self.keep}
        return spectra(
            wave, flux, covar, (mask.astype(np.int64) & self.bits) != 0, scale, self.id[start:stop],
            self.flags[start:stop], np.full(stop - start, np.nan), extras,
        )  # fmt: skip

    def _pixels(self, name: str, start: int, stop: int) -> NDArray[Any]:
        return self.file.block(self.file.image(name), start, stop, self.window)

    def _wave(self, start: int, stop: int) -> NDArray[np.float64]:
        return NM * self.file.block(self.file.image(*WAVE), start, stop).astype(np.float64)

    def _common_wave(self) -> NDArray[np.float64] | None:
        """Wavelengths that every fibre has, as in pfsMerged, or None."""
        first = self._wave(0, 1)[0]
        if not (np.diff(first) > 0).all():
            return None
        starts = range(0, self.rows, 64)
        common = all((self._wave(start, min(start + 64, self.rows)) == first).all() for start in starts)
        return first if common else None

    def _extra(self, name: str, start: int, stop: int) -> NDArray[Any]:
        if name == "fiberId":
            return self.id[start:stop]
        values = self.notes.read(name, start, stop)
        return np.repeat(self.visit[name], stop - start) if values is None else values

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _one_row(file: FitsFile) -> dict[str, NDArray[Any]]:
    """Columns of the table CONFIG that hold for the whole visit, each an array of one."""
    table = file.table("CONFIG")
    columns = RowColumns(file, (table,), 1)
    return {name: file.column(table, name, 0, 1) for name in columns.names}


def _flags(file: FitsFile, fiber: NDArray[Any]) -> NDArray[np.int32]:
    """Flags of all fibres; the status comes from a table of the design, where the file carries one."""
    flags = np.full(len(fiber), Quality.NOT_FLUX_CALIBRATED, np.int32)
    for table in (file.table("CONFIG"), file.table("DESIGN")):
        if table is not None and {"fiberId", "fiberStatus"} <= set(table.columns.names):
            count = table.header["NAXIS2"]
            known, status = (file.column(table, name, 0, count) for name in ("fiberId", "fiberStatus"))
            flags[np.isin(fiber, known[status != GOOD_FIBER])] |= Quality.UPSTREAM_FLAG
    return flags

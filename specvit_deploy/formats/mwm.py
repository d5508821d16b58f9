"""SDSS-V: mwmStar and mwmVisit as astra writes them, the spectra of one star, an instrument and observatory a table.

Wavelengths are in vacuum, on a logarithmic grid that a table's header states (its column of wavelengths, if any, is in
single precision). mwmStar is at rest; of mwmVisit those visits are that went into the stack, the velocity of the others
is unknown. Only tables that reach into the instrument's range are read: BOSS, not APOGEE. `pixel_flags` is the OR of
the flags of all exposures, stored as floats: of them only faults count that the inverse variance does not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.columns import inverse_sqrt
from specvit_deploy.formats.fits import FitsFile, RowColumns, is_fits, overlaps_instrument
from specvit_deploy.formats.rows import Rows
from specvit_deploy.formats.sdss_pixels import BAD_ZWARNING, NOT_IN_IVAR, clean, has_columns, on_grid, set_bits
from specvit_deploy.quality import Quality

NAMES = ("BOSS/", "APOGEE/")
"""Beginnings of the names of tables, before the observatory."""


class MwmReader:
    """Spectra of one star, an instrument and observatory an HDU."""

    name = "sdss-mwm"

    def detect(self, path: Path) -> bool:
        """Tables of flux and ivar, a spectrum a row, with a logarithmic grid in their headers or a column."""
        if not is_fits(path):
            return False
        with FitsFile(path) as file:
            return bool(_tables(file))

    def open(self, path: Path, keep: Sequence[str] = ()) -> MwmSpectra:
        """Open the spectra of a star."""
        return MwmSpectra(path, keep)


class MwmSpectra:
    """An open mwmStar or mwmVisit file; rows of its tables follow one another.

    Parameters
    ----------
    path : Path
        The file of one star.
    keep : sequence of str
        Columns that every table has, to carry along.

    Raises
    ------
    SpecVitError
        If it has no spectra in the instrument's range (APOGEE alone).
    """

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.file = file = FitsFile(path)
        with file.closed_on_error():
            waves = [(table, _wave(file, table)) for table in _tables(file) if table.header["NAXIS2"] > 0]
            waves = [(table, wave) for table, wave in waves if overlaps_instrument(wave)]
            if not waves:
                raise SpecVitError(f"{path} has no spectrum in the instrument's range; give a star that BOSS observed")
            if any(not np.array_equal(wave, waves[0][1]) for _, wave in waves):
                raise SpecVitError(f"{path}: its tables have different wavelengths; give files of one table each")
            self.wave = file.rising(waves[0][1])
            self.tables = [(table, RowColumns(file, (table,), table.header["NAXIS2"])) for table, _ in waves]
            self.rows = sum(table.header["NAXIS2"] for table, _ in self.tables)
            names = [columns.names for _, columns in self.tables]
            self.columns = tuple(name for name in names[0] if all(name in others for others in names))
            self.keep = tuple(keep)
            visits = [columns.spelled("in_stack") for _, columns in self.tables]
            self.at_rest = not any(visits)

    def read(self, start: int, stop: int) -> Rows:
        """Spectra [start, stop); the identifier is sdss_id."""
        parts, before = [], 0
        for table, columns in self.tables:
            count = table.header["NAXIS2"]
            low, high = max(start - before, 0), min(stop - before, count)
            if low < high:
                parts.append(self._part(table, columns, low, high, before))
            before += count
        if len(parts) == 1:
            return parts[0]
        return Rows(
            wave=self.wave,
            flux=np.concatenate([part.flux for part in parts]),
            error=np.concatenate([part.error for part in parts]),
            id=np.concatenate([part.id for part in parts]),
            velocity=None if self.at_rest else np.concatenate([_array(part.velocity) for part in parts]),
            flags=np.concatenate([_array(part.flags) for part in parts]),
            extras={name: np.concatenate([part.extras[name] for part in parts]) for name in self.keep},
        )

    def _part(self, table: Any, columns: RowColumns, low: int, high: int, before: int) -> Rows:
        names = {name.lower(): name for name in table.columns.names}
        data = {key: self.file.column(table, names[key], low, high)
                for key in ("flux", "ivar", "pixel_flags", "or_mask") if key in names}  # fmt: skip
        mask = data.get("pixel_flags", data.get("or_mask", np.zeros(data["flux"].shape, np.int64)))
        flux, ivar = clean(data["flux"], data["ivar"], mask, NOT_IN_IVAR)
        identifier, stacked = columns.read("sdss_id", low, high), columns.read("in_stack", low, high)
        velocity = np.zeros(high - low) if stacked is None else np.where(stacked, 0.0, np.nan)
        warning = columns.read("zwarning_flags", low, high)
        bad = np.zeros(high - low, bool) if warning is None else (np.maximum(warning, 0) & set_bits(BAD_ZWARNING)) != 0
        return Rows(
            self.wave, flux, inverse_sqrt(ivar), np.arange(low, high) + before if identifier is None else identifier,
            "vacuum", None if self.at_rest else velocity, None,
            np.where(bad, np.int32(Quality.UPSTREAM_FLAG), np.int32(0)),
            {name: self.file.column(table, name, low, high) for name in self.keep},
        )  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _array(values: NDArray[Any] | None) -> NDArray[Any]:
    assert values is not None
    return values


def _tables(file: FitsFile) -> list[Any]:
    """Tables of flux and ivar, a spectrum a row, that say where their pixels are."""
    return [
        hdu for hdu in file.hdus[1:]
        if has_columns(hdu, "flux", "ivar") and _pixels(hdu) > 1
        and ({"CRVAL", "CDELT"} <= set(hdu.header) or (hdu.name.startswith(NAMES) and has_columns(hdu, "wavelength")))
    ]  # fmt: skip


def _pixels(table: Any) -> int:
    """Pixels of a spectrum; 0 if the column of fluxes is not one of vectors."""
    (name,) = (name for name in table.columns.names if name.lower() == "flux")
    return int(np.prod(table.columns.dtype[name].shape)) if table.columns.dtype[name].shape else 0


def _wave(file: FitsFile, table: Any) -> NDArray[np.float64]:
    """Wavelengths of a table that is not empty, in Angstrom."""
    header, names = table.header, {name.lower(): name for name in table.columns.names}
    if {"CRVAL", "CDELT"} <= set(header):
        pixel = 1.0 + np.arange(_pixels(table)) - header.get("CRPIX", 1)
        return np.asarray(10.0 ** (header["CRVAL"] + header["CDELT"] * pixel))
    return np.asarray(10.0 ** on_grid(np.log10(file.column(table, names["wavelength"], 0, 1)[0].astype(np.float64))))

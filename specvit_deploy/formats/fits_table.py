"""FITS binary tables with a spectrum a row: vector columns of flux, its errors and, here or elsewhere, wavelengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.columns import (
    ALIASES,
    angstrom,
    calibrated,
    check_keep,
    find,
    floating,
    inverse_sqrt,
    km_s,
    medium_of,
    mended,
    padded,
    plain_column,
    speeds,
)
from specvit_deploy.formats.fits import FitsFile, is_fits
from specvit_deploy.formats.rows import Medium, Rows
from specvit_deploy.grid import C_KM_S


class FitsTableReader:
    """Tables as astropy writes them; columns by their names in any case (`specvit_deploy.formats.columns.ALIASES`).

    FLUX and ERROR or IVAR are vectors, of one length or of varying lengths; MASK (nonzero is bad) may be. Wavelengths
    (WAVE, WAVELENGTH, or LOGLAM for their logarithm) are a vector a row, or shared: an image, a column, or a
    single row in another HDU of such a name. TUNIT and BUNIT are heeded; without a unit it is Angstrom. Header cards
    MEDIUM or AIRORVAC (air or vacuum) and VACUUM (T or F) are too. Columns of one value a row can be kept, one of them
    may be `velocity` (km/s) or `redshift`. Blocks are read through a memory map.
    """

    name = "fits-table"

    def detect(self, path: Path) -> bool:
        """A binary table with a vector column of flux."""
        if not is_fits(path):
            return False
        file = FitsFile(path)
        try:
            return spectra_of(file) is not None
        finally:
            file.close()

    def open(self, path: Path, keep: Sequence[str] = ()) -> FitsTableSource:
        """Open the file."""
        return FitsTableSource(path, keep)


class FitsTableSource:
    """An open table of spectra."""

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.path, self.keep = path, keep
        self.file = FitsFile(path)
        try:
            self._locate()
        except BaseException:
            self.close()
            raise

    def _locate(self) -> None:
        self.table = table = spectra_of(self.file)
        names = vectors(table)
        self.rows = int(table.header["NAXIS2"])
        self.name = {role: find(names, role) for role in ("flux", "error", "ivar", "mask", "wave", "log_wave")}
        if self.name["error"] is None and self.name["ivar"] is None:
            raise SpecVitError(f"{self.path} has no errors; add a vector column ERROR (1 sigma) or IVAR beside FLUX")
        lengths = {column: length(table, column) for column in self.name.values() if column is not None}
        pixels = lengths[str(self.name["flux"])]
        for column, own in lengths.items():
            if own is not None and pixels is not None and own != pixels:
                raise SpecVitError(f"{self.path}: {column} has {own} pixels, FLUX {pixels}; make them equal")
        own_wave = self.name["wave"] or self.name["log_wave"]
        self.wave_unit = table.columns[own_wave].unit if self.name["wave"] else None
        self.shared = None if own_wave else self._shared(pixels)
        self.flux_unit = table.columns[self.name["flux"]].unit
        self.medium = self._medium()
        self.columns = tuple(name for name in table.columns.names if length(table, name) == 1)
        self.id, self.velocity = find(self.columns, "id"), find(self.columns, "velocity")
        self.redshift = None if self.velocity else find(self.columns, "redshift")
        self.says_velocity = bool(self.velocity or self.redshift)
        check_keep(self.path, self.keep, self.columns)

    def _medium(self) -> Medium:
        for header in (self.table.header, self.file.hdus[0].header):
            for card in ("MEDIUM", "AIRORVAC", "VACUUM"):
                value = header.get(card)
                value = {True: "vacuum", False: "air"}[value] if isinstance(value, bool) else value
                medium = medium_of(value, f"{self.path}, {card}")
                if medium is not None:
                    return medium
        return "vacuum"

    def _shared(self, pixels: int | None) -> NDArray[np.float64]:
        """Wavelengths in another HDU, (n,) in Angstrom."""
        for hdu in self.file.hdus:
            role = next((role for role in ("wave", "log_wave") if hdu.name.lower() in ALIASES[role]), None)
            if hdu.is_image and role and len(hdu.shape) == 1:
                return self._in_angstrom(self.file.block(hdu, 0, None), role, hdu.header.get("BUNIT"), pixels)
            if hdu is self.table or hdu.is_image:
                continue
            for role in ("wave", "log_wave"):
                name = find(hdu.columns.names, role)
                if name is not None:
                    rows = int(hdu.header["NAXIS2"])
                    values = self.file.column(hdu, name, 0, rows)
                    values = np.ravel(values[0]) if rows == 1 else values
                    return self._in_angstrom(values, role, hdu.columns[name].unit, pixels)
        raise SpecVitError(f"{self.path} has no wavelengths; add a vector column WAVE, or an HDU of that name")

    def _in_angstrom(self, values: NDArray[Any], role: str, unit: object, pixels: int | None) -> NDArray[np.float64]:
        values = np.asarray(values, np.float64)
        if values.ndim != 1 or (pixels is not None and len(values) != pixels):
            raise SpecVitError(f"{self.path}: FLUX has {pixels} pixels, wavelengths {values.shape}; make them equal")
        return 10.0**values if role == "log_wave" else angstrom(unit, f"{self.path}") * values

    def _read(self, role: str, start: int, stop: int) -> NDArray[Any] | None:
        name = self.name[role]
        return None if name is None else self.file.column(self.table, name, start, stop)

    def unit(self, name: str) -> object:
        """Unit of a column of `columns`, if the file says it."""
        return self.table.columns[name].unit

    def read(self, start: int, stop: int) -> Rows:
        """Rows [start, stop)."""
        parts = {role: self._read(role, start, stop) for role in self.name}
        flux = parts["flux"]
        assert flux is not None
        if flux.dtype == object:
            n = max(map(len, flux), default=0) if self.shared is None else len(self.shared)
        else:
            n = flux.shape[1]
        parts = {
            role: padded(list(part), n, self.shared is not None) if part is not None and part.dtype == object else part
            for role, part in parts.items()
        }
        flux = floating(np.asarray(parts["flux"]))
        error = parts["error"]
        error = inverse_sqrt(np.asarray(parts["ivar"])) if error is None else floating(error)
        if parts["mask"] is not None:
            flux[np.nan_to_num(parts["mask"]) != 0] = np.nan
        wave = self.shared
        if wave is None:
            own = parts["wave"]
            if own is not None:
                wave = angstrom(self.wave_unit, f"{self.path}") * np.asarray(own, np.float64)
            else:
                wave = 10.0 ** np.asarray(parts["log_wave"], np.float64)
            wave, flux, error = mended(wave, flux, error)
        flux, error, flags = calibrated(self.flux_unit, wave, flux, error)
        return Rows(
            wave=wave,
            flux=flux,
            error=error,
            id=np.arange(start, stop) if self.id is None else self._scalar(self.id, start, stop),
            medium=self.medium,
            velocity=self._velocity(start, stop),
            flags=flags,
            extras={name: self._scalar(name, start, stop) for name in self.keep},
        )

    def _scalar(self, name: str, start: int, stop: int) -> NDArray[Any]:
        return plain_column(self.file.column(self.table, name, start, stop))

    def _velocity(self, start: int, stop: int) -> NDArray[np.float64] | None:
        if self.velocity is not None:
            scale = km_s(self.table.columns[self.velocity].unit, f"{self.path}")
            return scale * self._speeds(self.velocity, start, stop)
        if self.redshift is not None:
            return C_KM_S * self._speeds(self.redshift, start, stop)
        return None

    def _speeds(self, name: str, start: int, stop: int) -> NDArray[np.float64]:
        return speeds(self._scalar(name, start, stop), f"{self.path}: {name}")

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def spectra_of(file: FitsFile) -> Any:
    """The first table with a vector column of flux, or None."""
    for hdu in file.hdus:
        if hasattr(hdu, "columns") and not hdu.is_image and find(vectors(hdu), "flux") is not None:
            return hdu
    return None


def vectors(table: Any) -> list[str]:
    """Columns that hold numbers, more than one a row or of varying length."""
    return [name for name in table.columns.names if length(table, name) != 1 and "A" not in table.columns[name].format]


def length(table: Any, name: str) -> int | None:
    """Values a row of a column; None where it varies from row to row."""
    if "P" in table.columns[name].format or "Q" in table.columns[name].format:
        return None
    return int(np.prod(table.columns.dtype[name].shape, dtype=int))


READERS = (FitsTableReader(),)

"""SDSS: spec-PLATE-MJD-FIBER.fits, from SDSS-I to SDSS-V; mwmStar and mwmVisit are in `mwm`.

Wavelengths are in vacuum, on a logarithmic grid, heliocentric (barycentric in SDSS-V): the velocity of an object of
class STAR is Z c, that of others is left unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specvit_deploy.formats.columns import inverse_sqrt, text
from specvit_deploy.formats.fits import FitsFile, RowColumns, is_fits
from specvit_deploy.formats.mwm import MwmReader
from specvit_deploy.formats.rows import Rows
from specvit_deploy.formats.sdss_pixels import BAD_BITS, BAD_ZWARNING, clean, has_columns, on_grid, set_bits
from specvit_deploy.grid import C_KM_S
from specvit_deploy.quality import Quality


class SdssSpecReader:
    """One coadded spectrum a file."""

    name = "sdss-spec"

    def detect(self, path: Path) -> bool:
        """A table of flux, ivar and loglam, a pixel a row."""
        if not is_fits(path):
            return False
        with FitsFile(path) as file:
            return _coadd(file) is not None

    def open(self, path: Path, keep: Sequence[str] = ()) -> SdssSpec:
        """Open the spectrum of a file."""
        return SdssSpec(path, keep)


class SdssSpec:
    """An open spec file; the identifier is PLATE-MJD-FIBERID, FIELD-MJD-CATALOGID in SDSS-V.

    Parameters
    ----------
    path : Path
        A spec file, full or lite.
    keep : sequence of str
        Columns of the table SPALL or SPECOBJ to carry along.

    Raises
    ------
    SpecVitError
        If wavelengths do not rise.
    """

    rows = 1

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.file = file = FitsFile(path)
        with file.closed_on_error():
            table = _coadd(file)
            self.table = RowColumns(file, (hdu for hdu in file.hdus[1:] if has_columns(hdu, "z", "class")), 1)
            self.columns = self.table.names
            self.keep = tuple(keep)
            count = table.header["NAXIS2"]
            names = {name.lower(): name for name in table.columns.names}
            data = {key: file.column(table, names[key], 0, count)
                    for key in ("loglam", "flux", "ivar", "and_mask") if key in names}  # fmt: skip
            self.wave = file.rising(10.0 ** on_grid(data["loglam"]))
            mask = data.get("and_mask", np.zeros(count, np.int64))
            self.flux, self.ivar = clean(data["flux"], data["ivar"], mask, BAD_BITS)

    def unit(self, name: str) -> object:
        """Unit of a column of `columns`, if the file says it."""
        return self.table.where[name].columns[name].unit

    def read(self, start: int, stop: int) -> Rows:
        """Rows [start, stop) of the only one."""
        rows = slice(start, stop)
        kind, z, warning = (self._value(name) for name in ("CLASS", "Z", "ZWARNING"))
        star = text(kind) == "STAR" and z is not None and np.isfinite(z)
        velocity = float(z) * C_KM_S if star else np.nan
        bad = warning is not None and int(warning) & set_bits(BAD_ZWARNING) != 0
        return Rows(
            self.wave, self.flux[None][rows], inverse_sqrt(self.ivar)[None][rows],
            np.array([self._identifier()], object)[rows], "vacuum", np.array([velocity])[rows], None,
            np.array([Quality.UPSTREAM_FLAG if bad else 0], np.int32)[rows],
            {name: self.file.column(self.table.where[name], name, 0, 1)[rows] for name in self.keep},
        )  # fmt: skip

    def _value(self, name: str) -> Any:
        values = self.table.read(name, 0, 1)
        return None if values is None else values[0]

    def _identifier(self) -> str:
        header = self.file.hdus[0].header
        parts = {"PLATE": "PLATEID", "FIELD": "FIELDID", "MJD": "MJD", "FIBERID": "FIBERID", "CATALOGID": "CATALOGID"}
        known = {name: self._value(name) for name in parts}
        known = {name: header.get(parts[name]) if value is None else value for name, value in known.items()}
        for names in (("PLATE", "MJD", "FIBERID"), ("FIELD", "MJD", "CATALOGID")):
            if all(known[name] is not None for name in names):
                return "-".join(text(known[name]) for name in names)
        return self.file.path.stem

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _coadd(file: FitsFile) -> Any:
    """The table of pixels of a spec file: the first one, in full files exposures follow."""
    for hdu in file.hdus[1:]:
        if has_columns(hdu, "flux", "ivar", "loglam"):
            shapes = {hdu.columns.dtype[n].shape for n in hdu.columns.names if n.lower() in ("flux", "ivar", "loglam")}
            return hdu if shapes == {()} and hdu.header["NAXIS2"] > 1 else None
    return None


READERS = (SdssSpecReader(), MwmReader())

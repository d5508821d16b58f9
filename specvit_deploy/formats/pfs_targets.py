"""Many objects of PFS in one file: pfsCoadd and pfsCalibrated; fluxes in nJy become F_lambda.

Arrays are images if all spectra have one length (the mask is a compressed image), else tables with a row of varying
length a spectrum. COVAR is a table in either case, with columns row_0 to row_2. Of wavelengths that all targets share
only those are read that the instrument can need.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.columns import padded
from specvit_deploy.formats.fits import ALL, FitsFile, RowColumns, letters, mask_planes, plane_bits, useful
from specvit_deploy.formats.pfs_spectra import BAD_PLANES, NANOJANSKY, NM, WAVE, spectra
from specvit_deploy.formats.rows import Rows


class Targets:
    """An open file of targets.

    Parameters
    ----------
    path : Path
        A pfsCoadd or pfsCalibrated file.
    keep : sequence of str
        Columns of TARGET and NOTES to carry along.

    Raises
    ------
    SpecVitError
        If the file has no targets.
    """

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.file = file = FitsFile(path)
        with file.closed_on_error():
            target, wave = file.table("TARGET"), file.find(*WAVE)
            self.rows = int(target.header["NAXIS2"])
            if self.rows == 0:
                raise SpecVitError(f"{path} has no targets; give a file with spectra")
            if wave is None or file.find("COVAR") is None or file.find("MASK") is None:
                raise SpecVitError(f"{path} has no wavelengths, covariances or masks; give a whole pfsCoadd file")
            self.table = RowColumns(file, (target, file.table("NOTES")), self.rows)
            self.columns = self.table.names
            self.keep = tuple(keep)
            self.planes = mask_planes(*(hdu.header for hdu in (file.hdus[0], file.find("FLUX"), file.find("MASK"))))
            shared = wave.is_image and len(wave.shape) == 1
            self.wave = file.rising(NM * file.block(wave, 0, None).astype(np.float64)) if shared else None
            self.window = ALL if self.wave is None else useful(self.wave)
            self.wave = None if self.wave is None else self.wave[self.window]
            self.pixels = _longest(file.find("FLUX")) if self.wave is None else len(self.wave)

    def unit(self, name: str) -> object:
        """Unit of a column of `columns`, if the file says it."""
        return self.table.where[name].columns[name].unit

    def read(self, start: int, stop: int) -> Rows:
        """Targets [start, stop); the identifier is objId."""
        wave = self.wave if self.wave is not None else NM * self._array(WAVE, start, stop).astype(np.float64)
        bits = self._bits(start, stop)
        mask = np.nan_to_num(self._array(("MASK",), start, stop)).astype(np.int64)
        identifier = self.table.read("objId", start, stop)
        return spectra(
            wave, self._array(("FLUX",), start, stop), self._covar(start, stop), (mask & bits[:, None]) != 0,
            NANOJANSKY / wave**2, np.arange(start, stop) if identifier is None else identifier,
            np.zeros(stop - start, np.int32), np.full(stop - start, np.nan),
            {name: self.file.column(self.table.where[name], name, start, stop) for name in self.keep},
        )  # fmt: skip

    def _array(self, names: tuple[str, ...], start: int, stop: int) -> NDArray[Any]:
        """An (N, n) array, from an image or from a table with one spectrum a row, filled up with NaN."""
        hdu = self.file.find(*names)
        if hdu.is_image:
            return self.file.block(hdu, start, stop, self.window)
        return self._filled(hdu, hdu.columns.names[0], start, stop)

    def _covar(self, start: int, stop: int) -> NDArray[Any]:
        hdu = self.file.find("COVAR")
        if hdu.is_image:
            return self.file.block(hdu, start, stop, self.window)
        return np.stack([self._filled(hdu, f"row_{lag}", start, stop) for lag in range(3)], axis=1)

    def _filled(self, hdu: Any, name: str, start: int, stop: int) -> NDArray[Any]:
        values = self.file.column(hdu, name, start, stop)
        if values.dtype.kind != "O":
            return values[:, self.window]
        dtype = np.float32 if values[0].dtype.newbyteorder("=") == np.float32 else np.float64
        return padded([cell[self.window] for cell in values], self.pixels, dtype=dtype)

    def _bits(self, start: int, stop: int) -> NDArray[np.int64]:
        """Bad bits of each target: the mask dictionary is in its METADATA, a YAML text, or in a header."""
        table = self.file.table("METADATA")
        if table is None or "metadata" not in table.columns.names:
            return np.full(stop - start, plane_bits(self.planes, BAD_PLANES), np.int64)
        bits = np.empty(stop - start, np.int64)
        for row, cell in enumerate(self.file.column(table, "metadata", start, stop)):
            own = re.findall(r"^['\"]?(?:HIERARCH )?MP_(\w+)['\"]?: *(\d+) *$", letters(cell), re.MULTILINE)
            bits[row] = plane_bits({name: int(bit) for name, bit in own} or self.planes, BAD_PLANES)
        return bits

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _longest(hdu: Any) -> int:
    """Pixels of the longest spectrum; of a table, only lengths are read."""
    if hdu.is_image:
        return int(hdu.shape[1])
    name = hdu.columns.names[0]
    if hdu.columns[name].format[0] not in "PQ":
        return int(np.prod(hdu.columns.dtype[name].shape))
    return int(np.asarray(hdu.data)[name][:, 0].max())

"""One object of PFS: pfsSingle, pfsObject, pfsGAObject; fluxes in nJy become F_lambda."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.fits import FitsFile, mask_planes, native, plane_bits
from specvit_deploy.formats.pfs_spectra import BAD_PLANES, NANOJANSKY, NM, WAVE, header_wave, spectra, v_los
from specvit_deploy.formats.rows import Rows

FLUX_TABLE = ("FLUXTABLE", "FLUX_TABLE", "FLUXTBL")
CARDS = ("catId", "tract", "patch", "objId", "ra", "dec", "targetType")


class SingleObject:
    """An open file of one object. The velocity is v_los, where the file has one that is not flagged.

    Parameters
    ----------
    path : Path
        A pfsSingle, pfsObject or pfsGAObject file, of any version.
    keep : sequence of str
        Cards of the target to carry along.

    Raises
    ------
    SpecVitError
        If it has no wavelengths, or they do not rise.
    """

    rows = 1

    def __init__(self, path: Path, keep: Sequence[str]) -> None:
        self.file = file = FitsFile(path)
        with file.closed_on_error():
            headers = [hdu.header for hdu in (file.hdus[0], file.find("TARGET")) if hdu is not None]
            self.cards: dict[str, Any] = {name: h[name] for h in headers for name in CARDS if name in h}
            self.velocity = v_los(file)
            if self.velocity is not None:
                self.cards["v_los"] = self.velocity
            self.columns = tuple(self.cards)
            self.keep = tuple(keep)
            flux, table = file.image("FLUX"), file.table(*FLUX_TABLE)
            wave, self.flux, self.covar, mask = self._images() if flux is not None else self._table(table)
            self.wave = file.rising(wave)
            planes = mask_planes(*(hdu.header for hdu in (file.hdus[0], flux, file.find("MASK"), table) if hdu))
            self.bad = (mask.astype(np.int64) & plane_bits(planes, BAD_PLANES)) != 0

    def read(self, start: int, stop: int) -> Rows:
        """Rows [start, stop) of the only one; the identifier is objId."""
        rows = slice(start, stop)
        velocity = np.nan if self.velocity is None else self.velocity
        return spectra(
            self.wave, self.flux[None][rows], self.covar[None][rows], self.bad[None][rows], NANOJANSKY / self.wave**2,
            np.array([self.cards.get("objId", 0)])[rows], np.zeros(1, np.int32)[rows], np.array([velocity])[rows],
            {name: np.array([self.cards[name]])[rows] for name in self.keep},
        )  # fmt: skip

    def _images(self) -> tuple[NDArray[Any], ...]:
        file = self.file
        flux, covar, mask = (file.block(file.image(name), 0, None) for name in ("FLUX", "COVAR", "MASK"))
        wave = file.image(*WAVE)
        if wave is None:
            return header_wave(file, len(flux)), flux, covar, mask
        return NM * file.block(wave, 0, None).astype(np.float64), flux, covar, mask

    def _table(self, table: Any) -> tuple[NDArray[Any], ...]:
        """Fluxes before resampling, for files that have nothing else; where arms overlap, the first one counts."""
        names = {name.lower(): name for name in table.columns.names}

        def column(*aliases: str) -> NDArray[Any]:
            found = next((names[alias] for alias in aliases if alias in names), None)
            if found is None:
                raise SpecVitError(f"{self.file.path}: its table of fluxes has no '{aliases[0]}'; give a pfsObject")
            return native(table.data[found])

        wave, variance = column("wavelength", "lambda"), column("fluxvariance", "error")
        if "fluxvariance" not in names:
            variance = variance**2
        wave, first = np.unique(wave.astype(np.float64), return_index=True)
        covar = np.zeros((3, len(first)), variance.dtype)
        covar[0] = variance[first]
        return NM * wave, column("flux")[first], covar, column("mask")[first]

    def close(self) -> None:
        """Close the file."""
        self.file.close()

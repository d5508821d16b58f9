"""What spectra of PFS products share: units, covariances, mask planes, wavelengths in headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.columns import angstrom, floating, mended, text
from specvit_deploy.formats.fits import FitsFile
from specvit_deploy.formats.rows import Rows
from specvit_deploy.quality import Quality

BAD_PLANES = ("BAD", "CR", "SAT", "UNMASKEDNAN", "NO_DATA")
"""Mask planes whose pixels carry no information; in a file that does not name its planes, any bit does that."""
NM = 10.0
"""One nm in Angstrom, the unit of wavelength of PFS."""
NANOJANSKY = 2.99792458e3
"""1 nJy at a wavelength of 1 A in 1e-17 erg/s/cm2/A: F_lambda = F_nu c / lambda^2."""
WAVE = ("WAVELENGTH", "LAMBDA")
STELLAR = ("STELLARPARAM", "STPARAM")


def spectra(
    wave: NDArray[np.float64],
    flux: NDArray[Any],
    covar: NDArray[Any],
    bad: NDArray[np.bool_],
    scale: NDArray[np.float64],
    identifier: NDArray[Any],
    flags: NDArray[np.int32],
    velocity: NDArray[np.float64],
    extras: Mapping[str, NDArray[Any]],
) -> Rows:
    """Build rows from what PFS stores; rows without any good pixel get UPSTREAM_FLAG.

    Parameters
    ----------
    wave : (n,) or (N, n) array
        Angstrom.
    flux, bad : (N, n) array
        In the file's unit; pixels to leave out.
    covar : (N, 3, n) array
        Variance, and covariance of a pixel with the next and the next but one.
    scale : (n,) or (N, n) array
        What the flux is multiplied by; a pixel where it is NaN is left out.
    identifier, flags, velocity, extras
        As in `Rows`.
    """
    flux, covar = floating(flux), floating(covar)
    scale = scale.astype(flux.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        flux = np.where(bad, np.nan, flux) * scale
        error = np.sqrt(covar[:, 0]) * scale
        covariance = np.zeros((len(flux), 2, flux.shape[1]), covar.dtype)
        for lag in (1, 2):
            covariance[:, lag - 1, :-lag] = covar[:, lag, :-lag] * scale[..., :-lag] * scale[..., lag:]
    covariance[~np.isfinite(covariance)] = 0.0
    if wave.ndim == 2:
        sound = wave
        wave, flux, error = mended(wave, flux, error)
        moved = (wave != sound) & np.isfinite(sound)  # not where a row was only filled up
        covariance[moved.any(axis=1)] = 0.0
    empty = ~(np.isfinite(flux) & np.isfinite(error) & (error > 0)).any(axis=1)
    flags = flags | np.where(empty, np.int32(Quality.UPSTREAM_FLAG), np.int32(0))
    return Rows(wave, flux, error, identifier, "vacuum", velocity, covariance, flags, extras)


def header_wave(file: FitsFile, n: int) -> NDArray[np.float64]:
    """Wavelengths (n,) in Angstrom of a spectrum that states them in the header of FLUX.

    The datamodel writes CRPIX1 one pixel further than FITS counts, and reads it back so; its first version writes the
    first wavelength with CRPIX1 = 0. Both are told by their CRPIX1 and undone; any other header means what FITS says.
    """
    header = file.find("FLUX").header
    step = header.get("CDELT1", header.get("CD1_1"))
    if step is None or "CRVAL1" not in header:
        raise SpecVitError(f"{file.path} has no wavelengths; add an image WAVELENGTH in nm")
    reference = float(header.get("CRPIX1", 0.0))
    first = 1.0 - reference
    if reference == 0.0:
        first = 0.0
    elif abs(reference - (0.5 * n + 1.5)) < 1e-6:
        first = -0.5 * (n - 1)
    unit = angstrom(header.get("CUNIT1", "nm"), str(file.path))
    return np.asarray(unit * (header["CRVAL1"] + step * (first + np.arange(n))), np.float64)


def v_los(file: FitsFile) -> float | None:
    """Line-of-sight velocity in km/s of a pfsGAObject, None where it has none that is not flagged."""
    table = file.table(*STELLAR)
    if table is None or not {"param", "value"} <= set(table.columns.names):
        return None
    count = table.header["NAXIS2"]
    flag = file.column(table, "flag", 0, count) if "flag" in table.columns.names else np.zeros(count, bool)
    for name, value, bad in zip(
        file.column(table, "param", 0, count), file.column(table, "value", 0, count), flag, strict=True
    ):
        if text(name) == "v_los" and not bad and np.isfinite(value):
            return float(value)
    return None

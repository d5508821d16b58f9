"""Pixels of SDSS spectra: which bits make them bad, and the grid of their wavelengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.formats.columns import floating

NOT_IN_IVAR = {"NOPLUG": 0, "BADTRACE": 1, "BADFLAT": 2, "BADARC": 3, "NOSKY": 22, "BADFLUXFACTOR": 26, "BADSKYCHI": 27,
               "REDMONSTER": 28}  # fmt: skip
"""Bits of SPPIXMASK for faults that the inverse variance does not tell; all that counts of an OR mask (mwm files)."""
BAD_BITS = NOT_IN_IVAR | {
    "MANYBADCOLUMNS": 4, "MANYREJECTED": 5, "LOWFLAT": 17, "FULLREJECT": 18, "BRIGHTSKY": 23, "NODATA": 24,
    "COMBINEREJ": 25,
}  # fmt: skip
"""Bits of SPPIXMASK that make a pixel bad if all exposures have them (the AND mask). Near-by bad pixels, partial
rejection, scattered light, cross-talk, whopping neighbours and smears are left to the inverse variance."""
BAD_ZWARNING = {"SKY": 0, "LITTLE_COVERAGE": 1, "UNPLUGGED": 7, "BAD_TARGET": 8, "NODATA": 9}
"""Bits of ZWARNING that speak of the spectrum and not of the fit of a redshift: UPSTREAM_FLAG."""
GRID = 1e-4
"""Step of log10 wavelength; SDSS stores it in single precision, and it is a multiple of this."""


def set_bits(names: dict[str, int]) -> int:
    """Bits by number as one integer."""
    return sum(1 << bit for bit in names.values())


def has_columns(hdu: Any, *names: str) -> bool:
    """Say whether an HDU is a table with columns of these names, in any case."""
    return hasattr(hdu, "columns") and set(names) <= {name.lower() for name in hdu.columns.names}


def on_grid(loglam: NDArray[Any]) -> NDArray[np.float64]:
    """Undo the rounding of log10 wavelength to single precision, where it lies on the grid of SDSS."""
    exact = np.round(loglam.astype(np.float64) / GRID) * GRID
    return exact if np.abs(exact - loglam).max() < 5e-7 else loglam.astype(np.float64)


def clean(
    flux: NDArray[Any], ivar: NDArray[Any], mask: NDArray[Any], bad: dict[str, int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Flux (NaN where bad) and inverse variance (zero where bad); masks may be stored as floats, as astra does."""
    bits = np.nan_to_num(mask).astype(np.int64) & set_bits(bad)
    good = (bits == 0) & np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0)
    return np.where(good, floating(flux), np.nan), np.where(good, floating(ivar), 0.0)

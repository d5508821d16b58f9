"""Frames of wavelengths: air or vacuum, at rest or shifted.

    n(lambda) = 1 + 0.05792105 / (238.0185 - s^2) + 0.00167917 / (57.362 - s^2),    s = 10^4 A / lambda_vacuum

is the refractive index of standard air (15 C, 1013.25 hPa, dry, 450 ppm CO2) of Ciddor 1996 (Applied Optics 35,
1566, eqs. 1 and 2), the standard of SDSS, DESI and VALD's successor tables; Morton 2000 (ApJS 130, 403) agrees with
it to 1e-9 here. lambda_air = lambda_vacuum / n. Doppler shifts are those of the emulator: lambda_rest = lambda /
(1 + v / c), so that v = c z.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specvit_deploy.grid import C_KM_S

Array = NDArray[np.float64]

ITERATIONS = 4
"""Fixed-point steps from air to vacuum: each gains five digits."""


def refractive_index(vacuum: ArrayLike) -> Array:
    """Refractive index of standard air at vacuum wavelengths in Angstrom (above 2000 A), any shape."""
    s2 = (1e4 / np.asarray(vacuum, np.float64)) ** 2
    return np.asarray(1.0 + 0.05792105 / (238.0185 - s2) + 0.00167917 / (57.362 - s2))


def vacuum_to_air(vacuum: ArrayLike) -> Array:
    """Wavelengths in air of vacuum wavelengths, Angstrom, any shape."""
    return np.asarray(np.asarray(vacuum, np.float64) / refractive_index(vacuum))


def air_to_vacuum(air: ArrayLike) -> Array:
    """Vacuum wavelengths of wavelengths in air, Angstrom, any shape: the inverse of `vacuum_to_air` to 1e-10 A."""
    air = np.asarray(air, np.float64)
    vacuum = air
    for _ in range(ITERATIONS):
        vacuum = np.asarray(air * refractive_index(vacuum))
    return vacuum


def rest_factor(velocity: ArrayLike) -> Array:
    """Factor 1 / (1 + v / c) from observed to rest wavelengths for velocities in km/s; NaN for v <= -c."""
    stretch = 1.0 + np.asarray(velocity, np.float64) / C_KM_S
    return np.asarray(1.0 / np.where(stretch > 0, stretch, np.nan))

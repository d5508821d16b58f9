"""What the instrument makes of a synthetic spectrum: vacuum wavelengths, its line spread, its pixels.

A sample f_j at wavelength l_j with quadrature weight w_j (half the distance of its neighbours) is light w_j f_j that
a Gaussian of sigma_j spreads over the pixels. The mean over pixel p, from a_p to a_p + d, is

    F_p = sum_j w_j f_j [Phi((a_p + d - l_j) / sigma_j) - Phi((a_p - l_j) / sigma_j)] / d
    sigma_j^2 = (fwhm / 2.3548)^2 - (l_j / R / 2.3548)^2

with Phi the normal distribution function: pixels are averaged exactly, light is conserved, and what the input is
already broadened by is taken out in quadrature. Quadrature of a function sampled twice per resolution element is far
more exact than interpolating it: what it leaves out is the content at the sampling frequency, < 1e-4 of a line when
sigma_j >= 0.9 steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.special import ndtr

from specvit_deploy.emulator import Array
from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import WavelengthGrid

FWHM_SIGMA = float(np.sqrt(8.0 * np.log(2.0)))
"""FWHM of a Gaussian of unit sigma."""
REACH = 6.0
"""Sigmas after which a Gaussian is cut: 2e-9 of the light."""
MIN_STEPS = 0.9
"""Least sigma of the kernel in steps of the input."""
CA_II_AIR = np.array([8498.02, 8542.09, 8662.14])
"""Cores of the Ca II triplet in standard air, A."""


def refraction(vacuum: ArrayLike) -> Array:
    """Index of refraction at `vacuum` wavelengths (A) of standard air (15 C, 101325 Pa, 450 ppm CO2).

    Ciddor 1996, Applied Optics 35, 1566, eq. 1, with s = 1e4 / wavelength in 1/micron:
    n - 1 = 0.05792105 / (238.0185 - s^2) + 0.00167917 / (57.362 - s^2).
    """
    s2 = (1e4 / np.asarray(vacuum, dtype=np.float64)) ** 2
    return np.asarray(1.0 + 0.05792105 / (238.0185 - s2) + 0.00167917 / (57.362 - s2))


def vacuum_to_air(vacuum: ArrayLike) -> Array:
    """Wavelengths in standard air (A) of `vacuum` wavelengths (A), by `refraction`."""
    vacuum = np.asarray(vacuum, dtype=np.float64)
    return np.asarray(vacuum / refraction(vacuum))


def air_to_vacuum(air: ArrayLike) -> Array:
    """Wavelengths in vacuum (A) of wavelengths in standard `air` (A): `vacuum_to_air` inverted to 1e-9 A."""
    air = np.asarray(air, dtype=np.float64)
    vacuum = air
    for _ in range(4):  # each turn gains five digits
        vacuum = air * refraction(vacuum)
    return vacuum


def triplet_offset(flux: Array, grid: WavelengthGrid) -> int:
    """Where the Ca II triplet of a star below 6500 K lies in `flux` (grid.n,) against its vacuum wavelengths.

    Returns
    -------
    int
        0 where it should be; -1 or 1 if the spectrum is darker 2.3 A to the blue or red, the difference of air and
        vacuum.
    """
    vacuum = air_to_vacuum(CA_II_AIR)
    depth = {k: np.log(np.interp(vacuum + k * (vacuum - CA_II_AIR), grid.wave, flux)).sum() for k in (-1, 0, 1)}
    return min(depth, key=lambda k: float(depth[k]))


def limits(grid: WavelengthGrid, fwhm: float) -> tuple[float, float]:
    """First and last wavelength (A, vacuum) from which light reaches the pixels of `grid`."""
    reach = REACH * fwhm / FWHM_SIGMA + grid.step / 2
    return grid.wave[0] - reach, grid.wave[-1] + reach


def response(wave: Array, grid: WavelengthGrid, fwhm: float, resolution: float) -> Any:
    """Matrix from flux at `wave` to its mean over the pixels of `grid`, sparse (grid.n, len(wave)).

    Parameters
    ----------
    wave : (n,) array
        Increasing wavelengths of the samples, A, vacuum; should reach beyond `limits(grid, fwhm)`.
    grid : WavelengthGrid
        Pixels.
    fwhm : float
        Line spread wanted before pixel averaging, A, constant.
    resolution : float
        Resolving power lambda / FWHM that the samples have already; infinite if none.

    Raises
    ------
    SpecVitError
        If the samples are broader than `fwhm` or too far apart.
    """
    variance = fwhm**2 - (wave / resolution) ** 2
    if variance.min() <= 0:
        raise SpecVitError(
            f"spectra of R = {resolution:.0f} are {wave[-1] / resolution:.2f} A wide, more than the {fwhm} A wanted; "
            "take a higher resolution of the grid"
        )
    sigma, weight = np.sqrt(variance) / FWHM_SIGMA, np.gradient(wave)
    if (sigma < MIN_STEPS * weight).any():
        raise SpecVitError(
            f"samples {weight.max():.2f} A apart are too coarse for a line spread of {fwhm} A from R = "
            f"{resolution:.0f}; take a higher resolution of the grid"
        )
    first_edge = grid.start - grid.step / 2
    reach = REACH * sigma.max()
    first = np.floor((wave - reach - first_edge) / grid.step).astype(np.int64)
    pixel = first[:, None] + np.arange(int(np.ceil(2 * reach / grid.step)) + 1)
    edges = first_edge + grid.step * np.arange(pixel.shape[1] + 1) + grid.step * first[:, None]
    light = np.diff(ndtr((edges - wave[:, None]) / sigma[:, None]), axis=1) * weight[:, None] / grid.step
    inside = (pixel >= 0) & (pixel < grid.n)
    sample = np.broadcast_to(np.arange(len(wave))[:, None], pixel.shape)
    return csr_array((light[inside], (pixel[inside], sample[inside])), shape=(grid.n, len(wave)))

"""What tells rows that are unlike the instrument's stars: chi2 for its number of pixels, and sky lines in the errors.

Counts n with background b and calibration c give flux c n and variance c^2 (n + b). Between the airglow lines the
background is known, so flux and variance there tell c, and c tells the variance that the lines must have. Errors that
miss it are not of this instrument, or their sky lines are at other pixels: the network, which learned where light is
lost in them, then answers far worse than with its own, and neither chi2 nor its features show it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.noise import default_noise_model

Array = NDArray[np.float64]

LINE_PIXELS, DARK_PIXELS = 96, 256
"""Pixels in the brightest sky lines, and between lines, that are looked at."""
FEWEST = 8
"""Good pixels of either kind below which nothing is said."""
FAMILIAR = (-1.2, 2.0)
"""Line excess of familiar noise: sky lines from 0.3 to 7.4 times the nominal variance. Simulated lines scatter by 0.25
(1 sigma); smoothing a bright star's spectrum adds to the upper side, the lower one is where answers suffer."""


def excess_chi2(chi2_reduced: NDArray[Any], n_good: NDArray[Any], pixels: int) -> NDArray[Any]:
    """Excess (N,) of reduced chi2 over 1, scaled to rows of `pixels`: it scatters with 1 / sqrt(good pixels)."""
    return np.asarray((chi2_reduced - 1.0) * np.sqrt(n_good / pixels))


def unfamiliar_noise(flux: NDArray[np.floating], error: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether the sky lines in the errors of (N, n) spectra are out of the `FAMILIAR` range, shape (N,)."""
    excess = line_excess(flux, error)
    return (excess < FAMILIAR[0]) | (excess > FAMILIAR[1])


def line_excess(flux: NDArray[np.floating], error: NDArray[np.floating]) -> Array:
    """How much stronger than nominal the sky lines are in the errors.

    Parameters
    ----------
    flux, error : (N, n) arrays
        On the instrument grid, any unit; pixels not finite, or without positive error, are left out.

    Returns
    -------
    (N,) array
        Natural logarithm of the variance in sky lines over that expected from the pixels between them; NaN where too
        few pixels are good, and on another grid.
    """
    lines, dark, response, background = _pixels()
    if flux.shape[1] != len(response):
        return np.full(len(flux), np.nan)
    light, noise = (_median(x) for x in _photons(flux, error, dark, response))
    between = np.median(background[dark])
    unit = np.sqrt(noise / between)  # the calibration if there were no star; any unit of flux becomes electrons
    with np.errstate(invalid="ignore", divide="ignore"):
        star = np.maximum(light / unit, 0.0)
        c = (np.sqrt(star**2 + 4.0 * between**2) - star) / (2.0 * between)  # between = c star + c^2 between
        _, inside = _photons(flux, error, lines, response)
        expected = (c**2)[:, None] * background[lines] + (c * star)[:, None]
        return _median(np.log(inside / (unit**2)[:, None] / expected))


@cache
def _pixels() -> tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]:
    """Pixels in lines and between them, response (n,) and nominal background (n,) in electrons^2."""
    noise = default_noise_model()
    lines = np.sort(np.argsort(noise.lines)[-LINE_PIXELS:])
    dark = np.flatnonzero(noise.lines < 0.05 * noise.continuum)
    dark = dark[np.linspace(0, len(dark) - 1, DARK_PIXELS).astype(np.int64)]
    return lines, dark, np.asarray(noise.response), np.asarray(noise.background(1.0, 1.0))


def _photons(
    flux: NDArray[np.floating], error: NDArray[np.floating], pixels: NDArray[np.int64], response: Array
) -> tuple[Array, Array]:
    """Flux and variance (N, P) at some pixels as the detector saw them, up to a factor; NaN where bad."""
    value, sigma = (x.take(pixels, axis=1).astype(np.float64) for x in (flux, error))
    bad = ~(np.isfinite(value) & np.isfinite(sigma) & (sigma > 0))
    value[bad] = sigma[bad] = np.nan
    return value * response[pixels], (sigma * response[pixels]) ** 2


def _median(x: Array) -> Array:
    """Median of the finite values of each row of x (N, P), which is sorted on the way; NaN for fewer than `FEWEST`."""
    x.sort(axis=1)  # NaN comes last
    count = np.isfinite(x).sum(axis=1)
    rows, middle = np.arange(len(x)), np.maximum(count, 1)
    value = 0.5 * (x[rows, (middle - 1) // 2] + x[rows, middle // 2])
    return np.where(count < FEWEST, np.nan, value)

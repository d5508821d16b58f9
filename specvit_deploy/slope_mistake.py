"""Is the flux per unit wavelength, and calibrated? The slope of a catalogue's brightest stars tells.

Flux per unit frequency (nJy), a continuum that was divided out, or dust change the slope from blue to red by far more
than the few per cent that the model knows, and log g with it; neither chi2 nor the network's features show it in every
row. Each row is fitted with emulated spectra whose amplitude and slope are free, so that its lines tell the temperature
and thereby the slope that it should have.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.emulator import default_emulator
from specvit_deploy.quality import median_snr

TEMPERATURES = (3800.0, 4200.0, 4600.0, 5000.0, 5400.0, 5800.0)
OTHERS = ((1.5, -1.5, 0.3), (2.5, 0.0, 0.0), (4.5, -1.5, 0.3), (4.5, 0.0, 0.0))
"""log_g, M_H, a_M of the emulated spectra at each temperature."""
BRIGHTEST, FEWEST, FAINTEST = 50, 8, 2.0
"""Rows that are used, the fewest that say anything, and the median S/N that they need."""
LARGEST = 0.12
"""Slope that is warned of: medians of simulated stars of any kind stay below 0.05, flux per unit frequency has 0.2."""


def slope_warning(flux: NDArray[Any], error: NDArray[Any], source: str) -> str | None:
    """Sentence for the user of `source`, or None when there is nothing to say; parameters as in `excess_slope`."""
    slope = excess_slope(flux, error)
    if not abs(slope) > LARGEST:
        return None
    change, factor = "rises" if slope > 0 else "falls", (1 + abs(slope)) / (1 - abs(slope))
    return (
        f"from blue to red the flux of {source} {change} {factor:.1f} times more than that of stars, which spoils "
        "log g: is it per unit frequency (nJy), divided by its continuum, reddened, or of no stars? give calibrated "
        "flux per unit wavelength, or write its unit into the file"
    )


def excess_slope(flux: NDArray[Any], error: NDArray[Any]) -> float:
    """Slope s by which flux differs from that of stars, as a factor 1 + s x with x from -1 to 1 over the arm.

    Parameters
    ----------
    flux, error : (N, n) arrays
        On the instrument grid, about at rest. Not finite, or error not positive: bad pixel.

    Returns
    -------
    float
        Median of the brightest rows, between -0.9 and 0.9; NaN with fewer than `FEWEST` rows that say something.
    """
    snr = np.nan_to_num(median_snr(flux, error), nan=0.0)
    chosen = np.argsort(-snr, kind="stable")[:BRIGHTEST]
    chosen = chosen[snr[chosen] > FAINTEST]
    if len(chosen) < FEWEST:
        return float("nan")
    value, sigma = flux[chosen].astype(np.float64), error[chosen].astype(np.float64)
    good = np.isfinite(value) & np.isfinite(sigma) & (sigma > 0)
    level = np.array([np.median(row[use]) for row, use in zip(value, good, strict=True)])[:, None]
    ivar = np.where(good, level / np.where(good, sigma, 1.0), 0.0) ** 2
    weighted = ivar * np.where(good, value / level, 0.0)
    template, tilted, squares = _templates()
    aa, ab, bb = (ivar @ square.T for square in squares)
    ya, yb = weighted @ template.T, weighted @ tilted.T
    determinant = np.maximum(aa * bb - ab**2, 1e-300)
    amplitude, tilt = (bb * ya - ab * yb) / determinant, (aa * yb - ab * ya) / determinant
    best = np.argmax(amplitude * ya + tilt * yb, axis=1)  # most chi2 gained
    rows = np.arange(len(best))
    return float(np.median(tilt[rows, best] / amplitude[rows, best]).clip(-0.9, 0.9))


@cache
def _templates() -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[NDArray[np.float64], ...]]:
    """Emulated spectra (T, n), the same times x, and the three products of the two."""
    labels = [(temperature, *others, 0.0) for temperature, others in product(TEMPERATURES, OTHERS)]
    template = default_emulator().flux(labels)
    tilted = template * np.linspace(-1.0, 1.0, template.shape[1])
    return template, tilted, (template * template, template * tilted, tilted * tilted)

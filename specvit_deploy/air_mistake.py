"""Were wavelengths in air taken as vacuum? The calcium triplet of a catalogue's brightest stars tells.

Wavelengths in air are shorter by 2.3 A here: all lines then stand 82 km/s to the blue. The brightest rows are averaged
in groups; each group's shift is where emulated spectra fit it best around Ca II 8500.35, 8544.44 and 8664.52 A
(vacuum), amplitude and slope free. The scatter between groups gives the error, and holds the stars' own velocities.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.emulator import Emulator, default_emulator
from specvit_deploy.grid import C_KM_S
from specvit_deploy.quality import median_snr
from specvit_deploy.wavelength_frame import Array, refractive_index

WINDOW = (8465.0, 8700.0)
"""Angstrom, around the triplet."""
AIR_SHIFT = -float(refractive_index(8569.8) - 1.0) * C_KM_S
"""What taking air for vacuum does to velocities there, km/s."""
VELOCITIES = np.arange(-180.0, 181.0, 6.0)
"""Shifts that are tried, km/s."""
TEMPLATES = (
    (4100.0, 1.5, -0.5, 0.2, 0.0), (4800.0, 2.5, -1.5, 0.3, 0.0), (4800.0, 2.5, 0.0, 0.0, 0.0),
    (4300.0, 4.6, -0.2, 0.0, 0.0), (5500.0, 4.3, -0.3, 0.1, 0.0), (5900.0, 4.0, -1.5, 0.3, 0.0),
)  # fmt: skip
"""Labels of the emulated spectra."""
BRIGHTEST, GROUPS, FEWEST = 50, 10, 4
"""Rows that are used, groups they are averaged in, and the fewest rows that say anything."""
FAINTEST = 0.5
"""Median S/N below which a row says nothing: errors that are none would weight sky residuals."""
SIGNIFICANT = 5.0
"""Standard errors by which the shift must differ from zero; and it must agree with air within three."""
TOLERANCE = 12.0
"""Largest disagreement with the shift of air, km/s, whatever the errors."""


@dataclass(frozen=True)
class AirVerdict:
    """What the triplet says.

    Parameters
    ----------
    shift, error : float
        Median shift of the groups and its standard error, km/s; NaN if undecided.
    significance : float
        |shift| / error.
    verdict : "air", "vacuum" or "undecided"
        "air" if the shift differs from zero significantly and agrees with that of air.
    """

    shift: float
    error: float
    significance: float
    verdict: Literal["air", "vacuum", "undecided"]

    def warning(self, source: str) -> str | None:
        """Sentence for the user of `source`, or None when there is nothing to say."""
        if self.verdict != "air":
            return None
        return (
            f"the calcium lines of {source} stand {self.shift:.0f} +- {self.error:.0f} km/s from rest, as if "
            f"wavelengths in air were taken as vacuum ({AIR_SHIFT:.0f} km/s); if they are in air, run again "
            "with --medium air"
        )


def look_for_air(flux: NDArray[Any], error: NDArray[Any], emulator: Emulator | None = None) -> AirVerdict:
    """Judge spectra whose wavelengths were taken as vacuum.

    Parameters
    ----------
    flux, error : (N, n) arrays
        On the emulator's grid, at rest as far as is known. Not finite, or error not positive: bad pixel.
    emulator : Emulator, optional
        Default: the one that ships with the package.

    Returns
    -------
    AirVerdict
        "undecided" with fewer than `FEWEST` rows that hold the triplet.
    """
    window = _window(emulator or default_emulator())
    flux, error = np.asarray(flux, np.float64)[:, window], np.asarray(error, np.float64)[:, window]
    snr = np.nan_to_num(median_snr(flux.astype(np.float32), error.astype(np.float32)), nan=-np.inf)
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    usable = (good.mean(axis=1) > 0.5) & (snr > FAINTEST)
    chosen = np.argsort(-np.where(usable, snr, -np.inf), kind="stable")[: min(BRIGHTEST, int(usable.sum()))]
    if len(chosen) < FEWEST:
        return AirVerdict(np.nan, np.nan, 0.0, "undecided")
    stacks = [_average(flux[part], error[part], good[part]) for part in _groups(chosen)]
    models = _default_models() if emulator is None else _models(emulator)
    shifts = np.array([_shift(value, ivar, models) for value, ivar in stacks])
    shift = float(np.median(shifts))
    spread = 1.4826 * float(np.median(np.abs(shifts - shift)))
    scatter = max(spread, float(np.std(shifts, ddof=1)) / 2, float(VELOCITIES[1] - VELOCITIES[0]) / 4)
    sigma = 1.2533 * scatter / np.sqrt(len(shifts))  # of a median
    significance = abs(shift) / sigma
    air = significance > SIGNIFICANT and abs(shift - AIR_SHIFT) < min(TOLERANCE, max(3.0 * sigma, 5.0))
    return AirVerdict(shift, sigma, significance, "air" if air else "vacuum")


def _window(emulator: Emulator) -> NDArray[np.bool_]:
    """Pixels around the triplet, (n,)."""
    return (emulator.grid.wave > WINDOW[0]) & (emulator.grid.wave < WINDOW[1])


def _models(emulator: Emulator) -> Array:
    """Emulated spectra around the triplet at all velocities, (T, V, m)."""
    labels = [np.tile(one, (len(VELOCITIES), 1)) for one in TEMPLATES]
    return np.stack([emulator.flux(one, VELOCITIES)[:, _window(emulator)] for one in labels])


@cache
def _default_models() -> Array:
    return _models(default_emulator())


def _groups(chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows dealt out in turn, so that all groups are equally bright."""
    count = min(GROUPS, len(chosen))
    return [chosen[k::count] for k in range(count)]


def _average(flux: Array, error: Array, good: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Mean spectrum of rows over their own level, and its inverse variance."""
    level = np.array([np.median(f[g]) for f, g in zip(flux, good, strict=True)])[:, None]
    ivar = np.where(good, (level / np.where(good, error, 1.0)) ** 2, 0.0)
    total = ivar.sum(axis=0)
    value = (ivar * np.where(good, flux, 0.0) / level).sum(axis=0)
    return value / np.where(total > 0, total, 1.0), total


def _shift(value: Array, ivar: Array, models: Array) -> float:
    """Velocity of the best of `models` (T, V, n) with free amplitude and slope, the minimum of chi2 interpolated."""
    x = np.linspace(-1.0, 1.0, len(value))
    m0, m1 = models, models * x
    a, b, c = (m0 * m0) @ ivar, (m0 * m1) @ ivar, (m1 * m1) @ ivar
    p, q = m0 @ (ivar * value), m1 @ (ivar * value)
    gain = (c * p**2 - 2 * b * p * q + a * q**2) / np.maximum(a * c - b**2, 1e-300)
    best = gain[np.argmax(gain.max(axis=1))]
    k = int(np.argmax(best).clip(1, len(best) - 2))
    before, here, after = best[k - 1 : k + 2]
    bend = before - 2 * here + after
    return float(VELOCITIES[k] + (VELOCITIES[1] - VELOCITIES[0]) * (0.5 * (before - after) / bend if bend < 0 else 0.0))

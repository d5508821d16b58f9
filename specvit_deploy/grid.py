"""The wavelength grid of the instrument."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

C_KM_S = 299792.458
"""Speed of light, km/s."""


@dataclass(frozen=True)
class WavelengthGrid:
    """A linear grid of pixel centres in Angstrom, vacuum.

    Parameters
    ----------
    start : float
        First centre.
    step : float
        Distance of neighbouring centres.
    n : int
        Number of pixels.
    """

    start: float
    step: float
    n: int

    @property
    def wave(self) -> NDArray[np.float64]:
        """Pixel centres, shape (n,), Angstrom, vacuum."""
        return self.start + self.step * np.arange(self.n, dtype=np.float64)

    def extended(self, margin: int) -> WavelengthGrid:
        """Return the same grid with `margin` more pixels on each side."""
        return WavelengthGrid(self.start - margin * self.step, self.step, self.n + 2 * margin)

    def matches(self, wave: ArrayLike, tolerance: float = 0.05) -> bool:
        """Say whether `wave` (Angstrom) is this grid to within `tolerance` pixels everywhere."""
        wave = np.asarray(wave, dtype=np.float64)
        return wave.shape == (self.n,) and bool(
            np.all(np.abs(wave - self.wave) <= tolerance * self.step)  # NaN compares false
        )

    def describe(self) -> str:
        """One line for messages."""
        return f"{self.n} pixels from {self.start:.4f} to {self.wave[-1]:.4f} A in steps of {self.step:.6f} A (vacuum)"


PFS_MR = WavelengthGrid(start=7100.0 + 1750.0 / 4096 / 2, step=1750.0 / 4096, n=4096)
"""Medium-resolution arm of the Subaru Prime Focus Spectrograph: 4096 bins of [7100, 8850] A."""

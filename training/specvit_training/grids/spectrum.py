"""One synthetic spectrum of a grid that a user brings: what its name says, and checks of what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from specvit_deploy.emulator import Array
from specvit_deploy.errors import SpecVitError

TWO_PI_H_C2 = 2.0 * np.pi * 6.62607015e-27 * 2.99792458e10**2
"""2 pi h c^2, erg cm2/s: numerator of pi B_lambda."""
HC_K = 6.62607015e-27 * 2.99792458e10 / 1.380649e-16
"""h c / k, cm K."""
UNIT_SLACK = 50.0
"""4 pi flux and the blackbody of T_eff agree to this factor (2024 holds H, 2017 4 H); one of lambda, 8000, does not."""


@dataclass(frozen=True)
class GridSpectrum:
    """A spectrum file and what its name says.

    Parameters
    ----------
    path : Path
        The file.
    generation : str
        `bosz2017` or `bosz2024`.
    labels : tuple of 5 floats
        In the order of `specvit_deploy.labels.LABELS` (K, then dex).
    vmicro : float
        Microturbulence, km/s.
    resolution : int
        Resolving power lambda / FWHM to which the file is broadened.
    atmosphere : str
        Kind of model atmosphere: `ap` (ATLAS9, plane), `mp`, `ms` (MARCS, plane or spherical).
    """

    path: Path
    generation: str
    labels: tuple[float, ...]
    vmicro: float
    resolution: int
    atmosphere: str

    @property
    def node_id(self) -> int:
        """A number made of the labels alone, so that more files or another folder never change it.

        Digits from the left: T_eff (K), log_g + 1 (tenths, two), then M_H, a_M, C_M each + 5 (hundredths, three).
        """
        t_eff, log_g, *abundances = self.labels
        number = round(t_eff) * 100 + round(10 * log_g) + 10
        for value in abundances:
            number = number * 1000 + round(100 * value) + 500
        return number


class Sampled(NamedTuple):
    """Samples of a spectrum: `wave` (n,) A in the file's medium, `flux` (n,), `continuum` (n,) or None."""

    wave: Array
    flux: Array
    continuum: Array | None

    def checked(self, t_eff: float, low: float, high: float) -> Sampled:
        """Return itself if it covers `low` to `high` (A) with finite, positive flux per A of a star of `t_eff` (K).

        Raises
        ------
        SpecVitError
            With the reason.
        """
        if len(self.wave) < 2 or self.wave[0] > low or self.wave[-1] < high:
            ends = f"{self.wave[0]:.1f} to {self.wave[-1]:.1f} A" if len(self.wave) else "nothing"
            raise SpecVitError(f"covers {ends} of the {low:.1f} to {high:.1f} A needed")
        for name, values in (("flux", self.flux), ("continuum", self.continuum)):
            if values is None:
                continue
            if not np.isfinite(values).all():
                raise SpecVitError(f"{name} is not finite everywhere")
            if values.min() <= 0:
                raise SpecVitError(f"{name} is not positive everywhere")
        cm = self.wave * 1e-8
        blackbody = TWO_PI_H_C2 / cm**5 / np.expm1(HC_K / (cm * t_eff)) * 1e-8  # pi B_lambda, erg/s/cm2/A
        ratio = float(np.median(4.0 * np.pi * self.flux / blackbody))
        if not 1.0 / UNIT_SLACK < ratio < UNIT_SLACK:
            raise SpecVitError(f"flux is {ratio:.1e} times that of a {t_eff:.0f} K star: not flux in erg/s/cm2/A")
        return self

"""The line-spread function of the input against the instrument's, both Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.wavelength_frame import Array

INSTRUMENT_FWHM = 1.6
"""Of the medium-resolution arm, Angstrom, nearly constant."""
SIGMA_PER_FWHM = 1.0 / np.sqrt(8.0 * np.log(2.0))
SAME = 0.05
"""A width within this share of the instrument's is the instrument's."""


@dataclass(frozen=True)
class LineSpread:
    """Width of the input's line-spread function: one of the two.

    Parameters
    ----------
    fwhm : float, optional
        Full width at half maximum, Angstrom, constant.
    resolving_power : float, optional
        Wavelength over full width at half maximum, constant.
    """

    fwhm: float | None = None
    resolving_power: float | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.fwhm, self.resolving_power) if x is not None]
        if len(given) != 1 or not (np.isfinite(given[0]) and given[0] > 0):
            raise SpecVitError("a line-spread function needs one positive width; give its FWHM in A or its R")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "1.2A" (FWHM) or "R5000" (resolving power).

        Raises
        ------
        SpecVitError
            For anything else.
        """
        word = text.strip().upper()
        number = word.removeprefix("R").removeprefix("=") if word.startswith("R") else word.removesuffix("A")
        try:
            value = float(number)
        except ValueError:
            value = np.nan
        if not (np.isfinite(value) and value > 0) or not (word.startswith("R") or word.endswith("A")):
            raise SpecVitError(f"line-spread function '{text}' is unclear; give its FWHM as 1.2A or its R as R5000")
        return cls(resolving_power=value) if word.startswith("R") else cls(fwhm=value)

    def __str__(self) -> str:
        number = str(self.resolving_power or self.fwhm).removesuffix(".0")
        return f"R{number}" if self.resolving_power else f"{number}A"

    def width(self, wave: Array) -> Array:
        """FWHM (n,) in Angstrom at wavelengths (n,)."""
        if self.resolving_power is not None:
            return np.asarray(wave / self.resolving_power)
        return np.full(len(wave), self.fwhm, np.float64)

    def sharper(self, wave: Array) -> NDArray[np.bool_]:
        """Where (n,) it is sharper than the instrument's."""
        return np.asarray(self.width(wave) < (1.0 - SAME) * INSTRUMENT_FWHM)

    def missing(self, wave: Array, size: Array) -> Array:
        """Standard deviation of the Gaussian that the input is to be convolved with before it is rebinned.

        Parameters
        ----------
        wave, size : (n,) arrays
            Centres and widths of the input's bins, Angstrom. Bins broaden lines twice, by size^2 / 12 of variance each
            time: when they were filled, and when they are cut up.

        Returns
        -------
        (n,) array
            Angstrom, 0 where nothing is missing.
        """
        variance = SIGMA_PER_FWHM**2 * (INSTRUMENT_FWHM**2 - self.width(wave) ** 2) - size**2 / 6.0
        return np.where(self.sharper(wave), np.sqrt(np.maximum(variance, 0.0)), 0.0)

    def broader(self, wave: Array) -> bool:
        """Whether it is broader than the instrument's at half of `wave` (n,) or more."""
        return bool(np.median(self.width(wave)) > (1.0 + SAME) * INSTRUMENT_FWHM)

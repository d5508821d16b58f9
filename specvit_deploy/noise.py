"""Noise of the medium-resolution arm: electrons of star and background, and how observing conditions scatter them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import PFS_MR

SIGNAL_ELECTRONS = 380.5
"""Median electrons per pixel of a star of magnitude 21.5 in 12 x 900 s."""
BACKGROUND_ELECTRONS = 2450.0
"""Median background variance per pixel, electrons^2, in 12 x 900 s."""
SIGNAL_SCALE, BACKGROUND_SCALE = 1.02, 0.80
"""Correction of both when every pixel has its own sky: the median of the S/N is not the S/N of the medians."""
REFERENCE_MAG = 21.5
SEEING = (0.5, 1.5)
"""Range of the seeing, arcsec."""
ZENITH = (0.0, 45.0)
"""Range of the zenith distance, degrees."""
FIELD = (0.0, 0.65)
"""Range of the distance from the field centre, degrees."""


@dataclass(frozen=True)
class NoiseModel:
    """Shape and law of the noise (arrays of numpy or torch alike).

    Parameters
    ----------
    response : (n,) array
        Electrons per unit F_lambda, relative: throughput times wavelength squared.
    fixed : (n,) array
        Background variance that does not come from the sky (read noise, dark), electrons^2.
    continuum, lines : (n,) arrays
        Background variance of the sky between and in the airglow lines, electrons^2.
    """

    response: Any
    fixed: Any
    continuum: Any
    lines: Any

    def background(self, continuum_factor: Any, line_factor: Any) -> Any:
        """Background variance (N, n) in electrons^2 for factors (N, 1) on sky continuum and sky lines."""
        return self.fixed + continuum_factor * self.continuum + line_factor * self.lines


def snr_law(mag: float | NDArray[np.float64]) -> Any:
    """Median S/N per pixel of a star of HSC i magnitude `mag` in 12 x 900 s under nominal conditions."""
    signal = SIGNAL_ELECTRONS * 10 ** (-0.4 * (np.asarray(mag) - REFERENCE_MAG))
    return signal / np.sqrt(signal + BACKGROUND_ELECTRONS)


def expected_error(noise: NoiseModel, flux: NDArray[np.float64], mag: float) -> NDArray[np.float64]:
    """Error (N, n) that clean flux (N, n) of a star of `mag` is expected to have under nominal conditions."""
    per_flux = SIGNAL_SCALE * SIGNAL_ELECTRONS * 10 ** (-0.4 * (mag - REFERENCE_MAG)) * noise.response
    per_flux = per_flux / np.median(flux * noise.response, axis=1, keepdims=True)
    return np.asarray(np.sqrt(flux * per_flux + noise.background(1.0, 1.0)) / per_flux)


def transmission(seeing: Any, zenith: Any, field: Any, xp: Any = np) -> Any:
    """Light that reaches the detector, relative to seeing 1.0 arcsec, zenith distance 22.5 deg, field 0.325 deg.

    Fibre loss falls by 35 % per arcsec of seeing, extinction is 0.08 mag per airmass, vignetting 10 % at the edge
    of the field: sizes that give the published test set its S/N percentiles (tests hold them).
    """
    airmass = 1.0 / xp.cos(zenith * (np.pi / 180))
    vignetting = (1.0 - 0.1 * (field / FIELD[1]) ** 2) / 0.975
    return xp.exp(-0.35 * (seeing - 1.0) - 0.4 * math.log(10) * 0.08 * (airmass - 1.0824)) * vignetting


def build_noise_model(path: str | Path) -> NoiseModel:
    """Derive the noise model from an exposure-time calculation.

    Parameters
    ----------
    path : path
        HDF5 with groups `mag_*` holding `signal` (electrons of a flat AB spectrum), `sky` and
        `background_variance` (electrons^2), per 900 s exposure, on the instrument grid.

    Raises
    ------
    SpecVitError
        If the file is on another grid.
    """
    with h5py.File(path, "r") as file:
        group = file[f"mag_{REFERENCE_MAG}"]
        signal, sky, variance = (group[k][:].astype(np.float64) for k in ("signal", "sky", "background_variance"))
        if not PFS_MR.matches(file["wave"][:]):
            raise SpecVitError(f"{path} is on another grid; compute it on {PFS_MR.describe()}")
    scale = BACKGROUND_SCALE * BACKGROUND_ELECTRONS / np.median(variance)
    variance, sky = scale * variance, scale * sky
    fixed = np.full_like(variance, 0.9 * (variance - sky).min())
    continuum = np.minimum(variance - fixed, np.median(variance - fixed))
    response = signal * PFS_MR.wave**2
    return NoiseModel(response / np.median(response), fixed, continuum, variance - fixed - continuum)


@cache
def default_noise_model() -> NoiseModel:
    """Load the noise model that ships with the package."""
    with (
        as_file(files("specvit_deploy") / "data" / "mr_noise.npz") as path,
        np.load(path, allow_pickle=False) as a,
    ):
        return NoiseModel(*(a[k].astype(np.float64) for k in ("response", "fixed", "continuum", "lines")))

"""Rows of a catalogue as its file holds them: any sampling, any frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Medium = Literal["vacuum", "air"]


@dataclass(frozen=True)
class Rows:
    """N spectra of a file, before they are brought to the instrument grid.

    Parameters
    ----------
    wave : (n,) or (N, n) array
        Wavelengths of the bin centres in Angstrom, rising; shared by all rows, or one set a row.
    flux : (N, n) array
        Per unit wavelength, any unit; NaN at pixels that the file marks as bad.
    error : (N, n) array
        1 sigma in the unit of the flux; not finite, or not positive, where a pixel carries no information.
    id : (N,) array
        Identifier of each row.
    medium : "vacuum" or "air"
        What the wavelengths are measured in.
    velocity : (N,) array or None
        Radial velocity to take out, km/s, positive away from us, in the frame of the wavelengths; NaN where the file
        does not say. None: the spectra are at rest.
    covariance : (N, 2, n) array or None
        Covariance of a pixel with the next and the next but one, where the file has it.
    flags : (N,) int32 array or None
        `Quality` bits that the file itself gives reason for (UPSTREAM_FLAG, NOT_FLUX_CALIBRATED).
    extras : mapping of str to (N,) array
        Columns of the file that were asked to be carried along.
    """

    wave: NDArray[np.float64]
    flux: NDArray[Any]
    error: NDArray[Any]
    id: NDArray[Any]
    medium: Medium = "vacuum"
    velocity: NDArray[np.float64] | None = None
    covariance: NDArray[Any] | None = None
    flags: NDArray[np.int32] | None = None
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)

"""Spectra of any sampling and frame, brought to the instrument grid: vacuum, rest frame, instrument resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats import Block
from specvit_deploy.formats.rows import Rows
from specvit_deploy.grid import WavelengthGrid
from specvit_deploy.line_spread import LineSpread
from specvit_deploy.quality import Quality
from specvit_deploy.resample import Bins, Rebinned, Rebinning
from specvit_deploy.wavelength_frame import Array, air_to_vacuum, rest_factor
from specvit_deploy.whitening import BAND, whitened


@dataclass(frozen=True)
class OnGrid:
    """N spectra on the instrument grid, with what rebinning did to their noise.

    Parameters
    ----------
    flux, error : (N, n) arrays
        What the estimator should see: flux, NaN where missing; the error of white noise with the same power in
        features wider than a few pixels, infinite where missing.
    variance : (N, n) float64 array or None
        Diagonal of the covariance before noise was filled in: `error` squared, or less where neighbours share noise.
    covariance : (N, 2, n) float64 array or None
        Covariance with the next pixel and the next but one, before noise was filled in.
    unit : (N,) float64 array
        What flux and error were divided by: a power of two, 1 for single precision.
    flags : (N,) int32 array
        `Quality` bits.
    """

    flux: NDArray[Any]
    error: NDArray[Any]
    variance: Array | None
    covariance: Array | None
    unit: Array
    flags: NDArray[np.int32]


def to_grid(
    rows: Rows,
    grid: WavelengthGrid,
    velocity: ArrayLike | None = None,
    lsf: LineSpread | None = None,
    any_unit: bool = True,
) -> Block:
    """Bring rows to the instrument grid.

    Parameters
    ----------
    rows : Rows
        In any sampling, medium and frame.
    grid : WavelengthGrid
        Vacuum, rest frame.
    velocity, lsf
        As in `on_grid`.
    any_unit : bool
        Bring double-precision flux to the range of float32 by a power of two for each row.

    Returns
    -------
    Block
        float32. A row that does not reach the grid has no good pixel.

    Raises
    ------
    SpecVitError
        If the rows share wavelengths that cannot be used, or that miss the grid shifted and unshifted.
    """
    found = on_grid(rows, grid, velocity, lsf)
    flux, error = found.flux, found.error
    if not (any_unit or (found.unit == 1.0).all()):
        flux, error = flux * found.unit[:, None], error * found.unit[:, None]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return Block(
            flux.astype(np.float32, copy=False), error.astype(np.float32, copy=False), rows.id, found.flags, rows.extras
        )


def on_grid(
    rows: Rows,
    grid: WavelengthGrid,
    velocity: ArrayLike | None = None,
    lsf: LineSpread | None = None,
    band: bool = False,
    whiten: bool = True,
) -> OnGrid:
    """Bring rows to the instrument grid, with the covariance if asked for; each row's result depends on it alone.

    Parameters
    ----------
    rows : Rows
        In any sampling, medium and frame.
    grid : WavelengthGrid
        Vacuum, rest frame.
    velocity : float or (N,) array, optional
        Radial velocity to take out, km/s, in place of the rows' own. Not finite: unknown.
    lsf : LineSpread, optional
        Of the input. Where it is sharper than the instrument's it is degraded; where it is broader for half of the
        pixels or more the rows get the bit BROAD_LSF. None: the instrument's own.
    band : bool
        Whether to give variance and covariance.
    whiten : bool
        Fill in the noise that rebinning, now or before, took out of narrow features, as the modules `resample` and
        `whitening` say; the numbers depend on the row's flux alone.

    Returns
    -------
    OnGrid
        With the bits RESAMPLED, and VELOCITY_UNKNOWN for rows taken as being at rest for want of a velocity.

    Raises
    ------
    SpecVitError
        If the rows share wavelengths that cannot be used, or that miss the grid shifted and unshifted.
    """
    n = len(rows.flux)
    moving, unknown = _velocities(rows, velocity)
    factor = rest_factor(moving)
    flags = np.zeros(n, np.int32) if rows.flags is None else np.array(rows.flags, np.int32)
    flags[unknown] |= np.int32(Quality.VELOCITY_UNKNOWN)
    if lsf is not None and lsf.broader(grid.wave):
        flags |= np.int32(Quality.BROAD_LSF)
    shared = _vacuum(rows, rows.wave) if rows.wave.ndim == 1 else None
    if shared is not None:
        _check_shared(shared, factor, grid)
    unit = _unit(np.asarray(rows.error))
    flux, error = (_divided(np.asarray(x), unit) for x in (rows.flux, rows.error))
    kind = np.result_type(flux, error, np.float32)
    out = OnGrid(
        np.full((n, grid.n), np.nan, kind), np.full((n, grid.n), np.inf, kind),
        np.full((n, grid.n), np.inf) if band else None, np.zeros((n, BAND, grid.n)) if band else None, unit, flags,
    )  # fmt: skip
    target = Bins.around(grid.wave)
    source = None if shared is None else Bins.around(shared)
    for index in np.arange(n)[:, None] if shared is None else _alike(factor):
        rest = factor[index[0]]
        wave = (_vacuum(rows, rows.wave[index[0]]) if shared is None else shared) * rest
        sharp = lsf is not None and bool(lsf.sharper(wave).any())
        given = None if rows.covariance is None else rows.covariance[index] / unit[index, None, None] ** 2
        seeds = np.array([crc32(rows.flux[i].tobytes()) for i in index]) if whiten else None
        near = len(wave) == grid.n and abs(wave[0] - grid.start) < grid.step
        if near and grid.matches(wave) and not sharp:
            own = flux[index], error[index]
            new = Rebinned(*(own if given is None else whitened(*own, given, seeds)), error[index] ** 2.0, given)
        else:
            flags[index] |= np.int32(Quality.RESAMPLED)
            if not _overlaps(wave, grid) or (shared is None and not _rises(wave)):
                continue
            bins = Bins.around(wave) if source is None else source.scaled(rest)
            smear = lsf.missing(wave, bins.high - bins.low) if lsf is not None and sharp else 0.0
            operator = Rebinning.between(bins, target, smear)
            new = operator(flux[index], error[index], given, band, seeds)
        out.flux[index], out.error[index] = new.flux, new.error
        if out.variance is not None and new.variance is not None:
            out.variance[index] = new.variance
        if out.covariance is not None and new.covariance is not None:
            out.covariance[index] = new.covariance
    return out


def _velocities(rows: Rows, given: ArrayLike | None) -> tuple[Array, NDArray[np.bool_]]:
    """Velocities (N,) to take out, 0 where unknown, and which are unknown."""
    n = len(rows.flux)
    found = rows.velocity if given is None else given
    if found is None:
        return np.zeros(n), np.zeros(n, np.bool_)
    found = np.asarray(found, np.float64)
    if found.shape not in ((), (n,)):
        raise SpecVitError(f"velocity has shape {found.shape} for {n} spectra; give one number, or one a row in km/s")
    found = np.broadcast_to(found, (n,))
    unknown = ~(np.isfinite(found) & np.isfinite(rest_factor(found)))
    return np.where(unknown, 0.0, found), unknown


def _vacuum(rows: Rows, wave: NDArray[Any]) -> Array:
    wave = np.asarray(wave, np.float64)
    return air_to_vacuum(wave) if rows.medium == "air" else wave


def _check_shared(wave: Array, factor: Array, grid: WavelengthGrid) -> None:
    if not _rises(wave):
        raise SpecVitError("the wavelengths must be finite, positive and rise; sort the pixels by wavelength")
    # 1: as they are, because rows of an absurd velocity may be all that there are; they have no data
    if len(factor) and not any(_overlaps(wave[[0, -1]] * f, grid) for f in (1.0, *np.unique(factor))):
        raise SpecVitError(
            f"the wavelengths, {wave[0]:.2f} to {wave[-1]:.2f} A (vacuum), miss the model's {grid.describe()}; check "
            "their unit and the velocity, or give spectra of that range"
        )


def _rises(wave: Array) -> bool:
    """Whether wavelengths (m,) can be used."""
    return len(wave) > 1 and bool(wave[0] > 0 and np.isfinite(wave[-1]) and (np.diff(wave) > 0).all())


def _overlaps(wave: Array, grid: WavelengthGrid) -> bool:
    """Whether rising wavelengths (m,) share some range with the grid."""
    return bool(len(wave) and wave[-1] > grid.start and wave[0] < grid.start + grid.step * (grid.n - 1))


def _alike(factor: Array) -> list[NDArray[np.intp]]:
    """Row numbers in groups of equal factor."""
    order = np.argsort(factor, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(factor[order])) + 1) if len(order) else []


def _unit(error: NDArray[Any]) -> Array:
    """A power of two (N,) near each row's typical error, so that no square leaves the range; 1 in single precision."""
    if error.dtype != np.float64:
        return np.ones(len(error))
    usable = np.isfinite(error) & (error > 0)
    typical = np.array([np.median(e[u]) if u.any() else 1.0 for e, u in zip(error, usable, strict=True)])
    return np.asarray(np.ldexp(1.0, np.frexp(typical)[1].clip(-1000, 1000)), np.float64)


def _divided(x: NDArray[Any], unit: Array) -> NDArray[Any]:
    if (unit == 1.0).all():
        return x
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(x / unit[:, None])

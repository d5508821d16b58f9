"""Flux-conserving rebinning, and what it does to the noise.

    flux_i = sum_j o_ij flux_j / g_i,     g_i = sum_j o_ij over good j      o_ij = overlap of input bin j, output bin i
    C_out  = A C A^T,                     A_ij = o_ij / g_i

Nothing is summed over more than the bins that an output bin touches: neither a masked nor an absurd value reaches
further. Where the input is sharper than the instrument, the overlap is that of the output bin with the input bin
smeared by a Gaussian: with H(x) = x Phi(x / s) + s phi(x / s), which is max(x, 0) for s = 0,

    o_ij = H(B_i - a_j) - H(B_i - b_j) - H(A_i - a_j) + H(A_i - b_j)        input bin [a_j, b_j], output bin [A_i, B_i]

Rebinned pixels share noise. The square of `Rebinned.error` is the variance of white noise with the same power at low
frequencies: v_i = sum_j o_ij w_j s_j / g_i^2, w_j = width of an input bin, s_j = its variance and its positive
covariances with its neighbours (without negative ones, for complete pixels, the row sum of C_out). It keeps the
information in features wider than a few pixels; the variance alone would count it twice after a shift by half a pixel.

A model that was trained on white noise misjudges what is smoother. So noise can be filled in where rebinning took it
away, between the pixels that share an input bin: with z_ij = sqrt(s_j w_j o_ij) N(0, 1),

    flux_i += sum_j (z_ij - o_ij / w_j sum_k z_kj) / g_i

is zero when summed over the pixels of an input bin, so that wide features keep what is known of them, and the
covariance of the result is diag(v) exactly for white input: C_out plus the covariance of a multinomial split. Input
whose neighbours share noise is made white first (`specvit_deploy.whitening`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specvit_deploy.whitening import BAND, Array, Single, complement, numbers, shared, usable

COVERED = 0.5
"""An output pixel with less than this share of its width covered is missing."""
REACH = 5.0
"""Standard deviations at which the smearing Gaussian is cut."""
GAP = 1.5
"""A distance to the next centre this many times the one before is a gap, not a wide bin."""
ROWS = 8
"""Rows worked on at a time: they stay in the cache."""


@dataclass(frozen=True)
class Bins:
    """Wavelength bins: lower and upper edges (n,), rising, Angstrom."""

    low: Array
    high: Array

    @classmethod
    def around(cls, wave: ArrayLike) -> Bins:
        """Bins around rising centres (n,), n > 1: they meet halfway, except across a gap of the sampling."""
        wave = np.asarray(wave, np.float64)
        step = np.diff(wave)
        before, after = np.concatenate([step[:1], step]), np.concatenate([step, step[-1:]])
        return cls(wave - np.minimum(before, GAP * after) / 2, wave + np.minimum(after, GAP * before) / 2)

    def scaled(self, factor: float) -> Bins:
        """All wavelengths times `factor`."""
        return Bins(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Rebinned:
    """N spectra on n output pixels.

    Parameters
    ----------
    flux : (N, n) array
        Overlap-weighted mean of the flux; NaN where a pixel is missing. Single precision if the input is.
    error : (N, n) array
        1 sigma of white noise with the same power at low frequencies, never below the square root of `variance`;
        infinite where a pixel is missing.
    variance : (N, n) float64 array or None
        Diagonal of the covariance, infinite where a pixel is missing.
    covariance : (N, 2, n) float64 array or None
        With the next pixel and the next but one; 0 where either is missing or does not exist.
    """

    flux: NDArray[Any]
    error: NDArray[Any]
    variance: Array | None
    covariance: Array | None


@dataclass(frozen=True)
class Rebinning:
    """The sparse operator from input to output bins; built once, applied to any number of spectra.

    Parameters
    ----------
    index : (K, n) int array
        Input bins that an output bin may touch, one after another.
    overlap : (K, n) array
        Their overlap, Angstrom.
    size : (m,) array
        Widths of the input bins, Angstrom.
    width : (n,) array
        Widths of the output bins, Angstrom.
    """

    index: NDArray[np.intp]
    overlap: Array
    size: Array
    width: Array

    @classmethod
    def between(cls, source: Bins, target: Bins, smear: ArrayLike = 0.0) -> Self:
        """Find the overlaps.

        Parameters
        ----------
        source, target : Bins
            m input and n output bins; the output bins meet each other.
        smear : float or (m,) array
            Standard deviation, Angstrom, of the Gaussian that the input is convolved with; 0 for none.
        """
        smear = np.asarray(smear, np.float64)
        reach = REACH * float(smear.max(initial=0.0))
        if reach:
            first = np.searchsorted(source.high, target.low - reach, side="right")
            last = np.searchsorted(source.low, target.high + reach)
        else:
            edges = np.searchsorted(source.high, np.append(target.low, target.high[-1]), side="right")
            first, last = edges[:-1], edges[1:] + 1
        m = len(source.low)
        taps = min(max(int((last - first).max(initial=1)), 1), m)
        index = np.minimum(first, m - taps) + np.arange(taps)[:, None]
        low, high = source.low[index], source.high[index]
        if reach == 0.0:
            overlap = np.minimum(high, target.high) - np.maximum(low, target.low)
            np.maximum(overlap, 0.0, out=overlap)
        else:
            s = np.broadcast_to(smear, (m,))[index]
            overlap = _ramp(target.high - low, s) - _ramp(target.high - high, s)
            overlap -= _ramp(target.low - low, s) - _ramp(target.low - high, s)
            overlap = overlap.clip(min=0.0)
        return cls(index, overlap, source.high - source.low, target.high - target.low)

    def __call__(
        self,
        flux: NDArray[Any],
        error: NDArray[Any],
        covariance: NDArray[Any] | None = None,
        band: bool = False,
        seeds: NDArray[np.int64] | None = None,
    ) -> Rebinned:
        """Rebin N spectra.

        Parameters
        ----------
        flux, error : (N, m) arrays
            Error as 1 sigma. A pixel whose flux or error is not finite, or whose error is not positive, carries no
            information.
        covariance : (N, 2, m) array, optional
            With the next pixel and the next but one.
        band : bool
            Whether to give variance and covariance of the result, before noise is filled in.
        seeds : (N,) int array, optional
            Fill in noise, until it is as white as that of the input; equal seeds give equal noise.
        """
        shape = (len(flux), len(self.width))
        kind = np.result_type(flux, error, np.float32)
        value, sigma = np.empty(shape, kind), np.empty(shape, kind)
        diagonal = np.empty(shape) if band else None
        off = np.zeros((len(flux), BAND, len(self.width))) if band else None
        for start in range(0, len(flux), ROWS):
            part = slice(start, start + ROWS)
            given = None if covariance is None else covariance[part]
            drawn = None if seeds is None else seeds[part]
            value[part], sigma[part], own, beside = self._rows(flux[part], error[part], given, band, drawn)
            if diagonal is not None and off is not None:
                diagonal[part], off[part] = own, beside
        return Rebinned(value, sigma, diagonal, off)

    def _rows(
        self,
        flux: NDArray[Any],
        error: NDArray[Any],
        given: NDArray[Any] | None,
        band: bool,
        seeds: NDArray[np.int64] | None,
    ) -> tuple[Array, Array, Array | None, Array | None]:
        """Flux, error, variance and covariance of a few rows."""
        good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
        whole = bool(good.all())
        flux, error = (x if whole else np.where(good, x, x.dtype.type(0)) for x in (flux, error))
        variance = np.square(error, dtype=np.float64)
        neighbours = None if given is None else usable(given, good)
        noise = variance if neighbours is None else variance + shared(neighbours)
        if neighbours is not None and seeds is not None:
            flux = flux + complement(neighbours, seeds)
        covered = self._sum(self.overlap, np.ones((1, flux.shape[1])) if whole else good)
        missing = np.broadcast_to(covered < COVERED * self.width, (len(flux), len(self.width)))
        inverse = 1.0 / np.where(missing, np.inf, covered)
        value = self._sum(self.overlap, flux)
        if seeds is not None:
            value += self._noise(noise, seeds)
        value *= inverse
        power = self._sum(self.overlap, noise * self.size)
        diagonal = self._covariance(0, variance, neighbours) if band or neighbours is not None else None
        if diagonal is not None:
            np.maximum(power, diagonal, out=power)
        np.sqrt(power, out=power)
        power *= inverse
        if missing.any():
            np.copyto(value, np.nan, where=missing)
            np.copyto(power, np.inf, where=missing)
        if not band or diagonal is None:
            return value, power, None, None
        off = np.zeros((len(flux), BAND, len(self.width)))
        for lag in range(1, BAND + 1):
            raw = self._covariance(lag, variance, neighbours)
            off[:, lag - 1, :-lag] = (raw * inverse)[:, :-lag] * inverse[..., lag:]
        return value, power, np.where(missing, np.inf, diagonal * inverse**2), off

    def _sum(self, table: Array, x: NDArray[Any]) -> Array:
        """Sum over the taps of `table` (K, n) times `x` (N, m) there, (N, n)."""
        out = table[0] * x.take(self.index[0], axis=1)
        for k in range(1, len(self.index)):
            out += table[k] * x.take(self.index[k], axis=1)
        return np.asarray(out, np.float64)

    def _noise(self, noise: Array, seeds: NDArray[np.int64]) -> Array:
        """Noise (N, n) to fill in before division by what is covered, for variances `noise` (N, m)."""
        count, m = self.index.size, len(self.size)
        bins, root, share, outside = self._pieces
        sigma = np.sqrt(np.maximum(noise * self.size, 0.0)).astype(np.float32)
        fill = np.empty((len(noise), len(self.width)))
        for row, seed in enumerate(seeds):
            drawn = numbers(seed, count + m)
            z = sigma[row].take(bins)
            z *= root
            z *= drawn[:count]
            total = np.bincount(bins, z, m)
            total += outside * sigma[row] * drawn[count:]
            z -= share * total.astype(np.float32).take(bins)
            z.reshape(self.index.shape).sum(axis=0, out=fill[row])
        return fill

    @cached_property
    def _pieces(self) -> tuple[NDArray[np.intp], Single, Single, Single]:
        """Of all taps in one row: input bin, root of the overlap, its share of the bin; and what of a bin is outside.

        The last, (m,), is the root of the part of each input bin that no output bin covers.
        """
        bins, overlap = self.index.ravel(), self.overlap.ravel()
        outside = self.size - np.bincount(bins, overlap, len(self.size))
        share = overlap / self.size.take(bins)
        root, left = np.sqrt(overlap), np.sqrt(np.maximum(outside, 0.0))
        return bins, root.astype(np.float32), share.astype(np.float32), left.astype(np.float32)

    def _covariance(self, lag: int, variance: Array, neighbours: Array | None) -> Array:
        """Covariance (N, n) of output pixels i and i + `lag`, before division by what is covered."""
        out = self._sum(self.overlap * self._later(lag, 0), variance)
        if neighbours is not None:
            for k in range(1, BAND + 1):  # pairs (j, j + k) and (j, j - k) of the input
                pair = neighbours[:, k - 1]
                out += self._sum(self.overlap * self._later(lag, k), pair)
                out += self._sum(self.overlap * self._later(lag, -k), np.roll(pair, k, axis=1))
        return out

    def _later(self, lag: int, shift: int) -> Array:
        """Overlap (K, n) of output bin i + `lag` with the input bin `shift` after each tap of output bin i."""
        taps, n = self.index.shape
        later = np.minimum(np.arange(n) + lag, n - 1)
        tap = self.index + shift - self.index[0, later]
        inside = (tap >= 0) & (tap < taps) & (np.arange(n) + lag < n)
        return np.where(inside, self.overlap[tap.clip(0, taps - 1), later], 0.0)


@cache
def _unit_ramp() -> tuple[Array, Array]:
    """Table of x Phi(x) + phi(x) - max(x, 0), even in x, from 0 to beyond where it vanishes."""
    x = np.linspace(0.0, 8.0, 8001)
    tail = np.array([0.5 * math.erfc(v / math.sqrt(2.0)) for v in x])
    return x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) - x * tail


def _ramp(x: Array, s: Array) -> Array:
    """H(x) of the module's docstring."""
    grid, table = _unit_ramp()
    unit = np.abs(x) / np.where(s > 0, s, 1.0)
    return np.asarray(np.maximum(x, 0.0) + s * np.interp(unit, grid, table), np.float64)

"""The emulator: five labels to the flux that the instrument would see, with exact derivatives.

    x = [-1, 1] coordinates of 5040 K / T_eff, log_g, M_H, a_M, C_M and tanh(log10(C/O) / 0.2)   (N, 6)
    c = W3 silu(W2 silu(W1 x + b1) + b2) + b3                              (N, K)
    flux = mean + c basis                                                  (N, n + 2 margin)

Flux is relative: every spectrum is scaled so that its median over the instrument's pixels is 0.5. The grid has
a margin on each side so that a spectrum can be Doppler-shifted without running out of pixels. Molecular bands
follow Boltzmann factors, hence the inverse temperature; where carbon outnumbers oxygen the molecules change over
from TiO to C2 and CN within a few tenths of a dex, hence the sixth input (log10 C/O = C_M - a_M - 0.26, the solar
8.43 - 8.69 of Asplund et al. 2009, oxygen following alpha).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import C_KM_S, PFS_MR, WavelengthGrid

Array = NDArray[np.float64]

FORMAT = 1
THETA_K = 5040.0
"""Numerator of the inverse-temperature variable, K."""
LOG_C_O_SUN = -0.26
"""log10 of the solar carbon-to-oxygen ratio."""
C_O_WIDTH = 0.2
"""Width of the changeover at C/O = 1, dex."""
TAPS = np.arange(-2, 4)
"""Pixels, relative to the one left of a position, that the interpolation uses."""
_ARRAYS = ("x_low", "x_high", "mean", "basis", "w1", "b1", "w2", "b2", "w3", "b3", "holdout")


@dataclass(frozen=True)
class Emulator:
    """PCA of flux with a small smooth network from labels to coefficients.

    Parameters
    ----------
    grid : WavelengthGrid
        The instrument's pixels, without margin.
    margin : int
        Pixels on each side beyond `grid`.
    x_low, x_high : (6,) arrays
        Range of the network's inputs that maps to [-1, 1].
    mean : (n + 2 margin,) array
        Mean flux.
    basis : (K, n + 2 margin) array
        Components.
    w1, b1, w2, b2, w3, b3 : arrays
        Layers of the network, shapes (6, H), (H,), (H, H), (H,), (H, K), (K,).
    holdout : (M,) int array
        `node_id` of the nodes that training never saw.
    meta : dict
        Where the nodes came from and how the fit was made.
    """

    grid: WavelengthGrid
    margin: int
    x_low: Array
    x_high: Array
    mean: Array
    basis: Array
    w1: Array
    b1: Array
    w2: Array
    b2: Array
    w3: Array
    b3: Array
    holdout: NDArray[np.int64]
    meta: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Emulator:
        """Read an emulator written by `save`.

        Raises
        ------
        SpecVitError
            If the file is not an emulator of this format.
        """
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                header = json.loads(str(archive["header"]))
                arrays = {name: archive[name] for name in _ARRAYS}
            version, grid = header["format"], WavelengthGrid(**header["grid"])
            margin, meta = int(header["margin"]), header["meta"]
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise SpecVitError(
                f"{path} is not an emulator ({error}); fit one with 'specvit-deploy emulator fit NODES.h5'"
            ) from None
        if version != FORMAT:
            raise SpecVitError(f"{path} has emulator format {version}, this version reads {FORMAT}; refit it")
        holdout = arrays.pop("holdout").astype(np.int64)
        doubles = {name: array.astype(np.float64) for name, array in arrays.items()}
        return cls(grid=grid, margin=margin, holdout=holdout, meta=meta, **doubles)

    def save(self, path: str | Path) -> None:
        """Write to `path` (.npz, arrays in float32, no pickle), whole or not at all."""
        header = {
            "format": FORMAT,
            "grid": {"start": self.grid.start, "step": self.grid.step, "n": self.grid.n},
            "margin": self.margin,
            "meta": self.meta,
        }
        arrays: dict[str, Any] = {
            name: np.asarray(getattr(self, name), np.float32) for name in _ARRAYS if name != "holdout"
        }
        from specvit_deploy.atomic import whole_file

        with whole_file(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, header=np.array(json.dumps(header)), holdout=self.holdout, **arrays)

    @property
    def inner(self) -> slice:
        """The instrument's pixels within the grid with margin."""
        return slice(self.margin, self.margin + self.grid.n)

    def transform(self, labels: ArrayLike) -> Array:
        """Map labels (N, 5) to network inputs (N, 6)."""
        out: Array = 2.0 * (raw_inputs(labels) - self.x_low) / (self.x_high - self.x_low) - 1.0
        return out

    def transform_jacobian(self, labels: Array) -> Array:
        """Derivative of the network inputs by the labels, shape (N, 5, 6)."""
        t = np.tanh((labels[:, 4] - labels[:, 3] + LOG_C_O_SUN) / C_O_WIDTH)
        dx = np.zeros((len(labels), 5, 6))
        dx[:, range(5), range(5)] = 1.0
        dx[:, 0, 0] = -THETA_K / labels[:, 0] ** 2
        dx[:, 4, 5] = (1 - t**2) / C_O_WIDTH
        dx[:, 3, 5] = -dx[:, 4, 5]
        dx *= 2.0 / (self.x_high - self.x_low)
        return dx

    def coefficients(self, labels: ArrayLike) -> Array:
        """PCA coefficients (N, K) at `labels` (N, 5)."""
        h1 = self.transform(labels) @ self.w1 + self.b1
        h2 = h1 * _sigmoid(h1) @ self.w2 + self.b2
        out: Array = h2 * _sigmoid(h2) @ self.w3 + self.b3
        return out

    def coefficients_jacobian(self, labels: ArrayLike) -> tuple[Array, Array]:
        """Coefficients (N, K) and their derivative by each label, (N, 5, K), per K and per dex."""
        labels = np.asarray(labels, dtype=np.float64)
        h1 = self.transform(labels) @ self.w1 + self.b1
        s1 = _sigmoid(h1)
        h2 = (h1 * s1) @ self.w2 + self.b2
        s2 = _sigmoid(h2)
        d1 = (self.transform_jacobian(labels) @ self.w1) * (s1 * (1 + h1 * (1 - s1)))[:, None, :]
        d2 = (d1 @ self.w2) * (s2 * (1 + h2 * (1 - s2)))[:, None, :]
        return (h2 * s2) @ self.w3 + self.b3, d2 @ self.w3

    def flux(self, labels: ArrayLike, velocity: ArrayLike | None = None) -> Array:
        """Flux on the instrument grid.

        Parameters
        ----------
        labels : (N, 5) array
            K, dex.
        velocity : (N,) array, optional
            Radial velocity in km/s, positive away from us; at most what the margin allows (200 km/s either way).

        Returns
        -------
        (N, n) array
            Relative flux, median 0.5 at rest.
        """
        full = self.mean + self.coefficients(np.atleast_2d(labels)) @ self.basis
        return full[:, self.inner] if velocity is None else self.doppler(full, np.atleast_1d(np.asarray(velocity)))

    def jacobian(self, labels: ArrayLike) -> Array:
        """Derivative of the flux at rest by each label, shape (N, 5, n), per K and per dex."""
        _, dc = self.coefficients_jacobian(np.atleast_2d(labels))
        out: Array = dc @ self.basis[:, self.inner]
        return out

    def dflux_dv(self, labels: ArrayLike) -> Array:
        """Derivative of the flux by radial velocity at rest, shape (N, n), per km/s."""
        mean, basis = self.velocity_basis()
        out: Array = mean + self.coefficients(np.atleast_2d(labels)) @ basis
        return out

    def velocity_basis(self) -> tuple[Array, Array]:
        """Mean and basis of dflux/dv at v = 0: shapes (n,) and (K, n), per km/s.

        F_obs(lambda) = F_rest(lambda / (1 + v/c)), hence dF/dv = -(lambda / c) dF/dlambda, the derivative
        taken with the sixth-order central difference.
        """
        full = np.vstack([self.mean, self.basis])
        i = np.arange(self.margin, self.margin + self.grid.n)
        slope = sum(k * (full[:, i + d] - full[:, i - d]) for d, k in ((1, 45), (2, -9), (3, 1))) / (
            60 * self.grid.step
        )
        derivative = -self.grid.wave / C_KM_S * slope
        return derivative[0], derivative[1:]

    def doppler(self, full: Array, velocity: Array) -> Array:
        """Shift flux with margin (N, n + 2 margin) by `velocity` (N,) km/s onto the instrument grid (N, n).

        Six-point Lagrange interpolation: the line-spread function covers three pixels, so the flux is well sampled.

        Raises
        ------
        SpecVitError
            If a velocity is not finite or needs pixels beyond the margin.
        """
        if not np.isfinite(velocity).all():
            raise SpecVitError("a velocity is not finite; give km/s, 0 for a spectrum at rest")
        rest = self.grid.wave / (1.0 + velocity[:, None] / C_KM_S)
        position = (rest - self.grid.start) / self.grid.step + self.margin
        left = np.floor(position).astype(np.int64)
        if left.min() + TAPS[0] < 0 or left.max() + TAPS[-1] >= full.shape[1]:
            raise SpecVitError(
                f"velocity {np.abs(velocity).max():.0f} km/s exceeds the emulator's margin; use |v| < 200 km/s"
            )
        t = position - left
        out = np.zeros_like(position)
        rows = np.arange(len(full))[:, None]
        for tap in TAPS:
            weight = np.ones_like(t)
            for other in TAPS[tap != TAPS]:
                weight *= (t - other) / (tap - other)
            out += weight * full[rows, left + tap]
        return out


def raw_inputs(labels: ArrayLike) -> Array:
    """Physical inputs of the network (N, 6) from labels (N, 5), before scaling to [-1, 1]."""
    labels = np.asarray(labels, dtype=np.float64)
    t_eff, log_g, m_h, a_m, c_m = np.moveaxis(labels, -1, 0)
    return np.stack([THETA_K / t_eff, log_g, m_h, a_m, c_m, np.tanh((c_m - a_m + LOG_C_O_SUN) / C_O_WIDTH)], axis=-1)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


@cache
def default_emulator() -> Emulator:
    """Load the emulator that ships with the package (instrument grid `PFS_MR`)."""
    with as_file(files("specvit_deploy") / "data" / "emulator.npz") as path:
        emulator = Emulator.load(path)
    assert emulator.grid == PFS_MR
    return emulator

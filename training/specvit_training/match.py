"""Fit the emulator to clean spectra from elsewhere: how well does it describe them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import percentile_filter
from scipy.optimize import least_squares

from specvit_deploy.emulator import Emulator
from specvit_deploy.labels import LABELS

STARTS = ((4000.0, 1.5), (4000.0, 4.5), (4800.0, 2.5), (4800.0, 4.5), (5600.0, 3.5))
"""T_eff and log g that the fit starts from; the best end wins."""
RANGE_LOW = np.array([3700.0, 0.8, -2.6, -0.2, -0.55])
RANGE_HIGH = np.array([6100.0, 5.2, 0.85, 0.55, 0.55])
"""Range of the nodes behind the embedded emulator."""
CONTINUUM_PIXELS = 401


@dataclass(frozen=True)
class Match:
    """Best fit of one spectrum: labels (5,), amplitude, slope, velocity (km/s), model and residual (n,).

    `residual` is (flux - model) over the pseudo-continuum of the model (running 95th percentile).
    """

    labels: NDArray[np.float64]
    amplitude: float
    slope: float
    velocity: float
    model: NDArray[np.float64]
    residual: NDArray[np.float64]

    @property
    def rms(self) -> float:
        """Residual rms as a share of the continuum."""
        return float(np.sqrt((self.residual**2).mean()))

    def describe(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            **dict(zip(LABELS, np.round(self.labels, 3).tolist(), strict=True)),
            "velocity": round(self.velocity, 2),
            "slope": round(self.slope, 4),
            "residual_rms_of_continuum": round(self.rms, 5),
        }


def match(emulator: Emulator, flux: NDArray[np.float64]) -> Match:
    """Least-squares fit of labels, amplitude, slope and velocity to one clean spectrum (n,), from several starts."""
    x = np.linspace(-1, 1, emulator.grid.n)
    scale = RANGE_HIGH - RANGE_LOW

    def model(p: NDArray[np.float64]) -> NDArray[np.float64]:
        labels = (RANGE_LOW + scale * p[:5])[None]
        out: NDArray[np.float64] = p[5] * (1 + p[6] * x) * emulator.flux(labels, np.array([100 * p[7]]))[0]
        return out

    size = np.median(flux)
    best = None
    for t_eff, log_g in STARTS:
        start = (np.array([t_eff, log_g, -0.5, 0.1, 0.0]) - RANGE_LOW) / scale
        fit = least_squares(
            lambda p: (model(p) - flux) / size,
            np.concatenate([start, [2 * size, 0.0, 0.0]]),
            bounds=(np.r_[np.zeros(5), 0.0, -0.5, -1.5], np.r_[np.ones(5), np.inf, 0.5, 1.5]),
            x_scale=np.r_[np.full(5, 0.1), size, 0.1, 0.1],
        )
        if best is None or fit.cost < best.cost:
            best = fit
    assert best is not None
    fitted = model(best.x)
    continuum = percentile_filter(fitted, 95, size=CONTINUUM_PIXELS, mode="nearest")
    return Match(
        RANGE_LOW + scale * best.x[:5],
        float(best.x[5]),
        float(best.x[6]),
        float(100 * best.x[7]),
        fitted,
        (flux - fitted) / continuum,
    )


def plot_matches(path: Path, emulator: Emulator, flux: NDArray[np.float64], matches: list[Match]) -> None:
    """Draw spectra, fits and residuals to an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4 * len(matches)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * len(matches), 1, sharex=True, height_ratios=[3, 1] * len(matches), squeeze=False)[:, 0]
    wave = emulator.grid.wave
    for i, m in enumerate(matches):
        top, bottom = axes[2 * i], axes[2 * i + 1]
        top.plot(wave, flux[i], lw=0.8, color="black", label="spectrum")
        top.plot(wave, m.model, lw=0.8, color="tab:red", label="emulator")
        labels = ", ".join(f"{name} {value:.2f}" for name, value in zip(LABELS, m.labels, strict=True))
        top.set_title(f"{labels}; residual rms {100 * m.rms:.2f} % of the continuum", fontsize=9)
        top.set_ylabel("flux")
        bottom.plot(wave, 100 * m.residual, lw=0.6, color="tab:blue")
        bottom.set_ylabel("residual [%]")
        bottom.axhline(0, color="grey", lw=0.5)
    axes[0].legend(fontsize=8)
    axes[-1].set_xlabel("wavelength [A, vacuum]")
    figure.savefig(path, dpi=90, format="png")

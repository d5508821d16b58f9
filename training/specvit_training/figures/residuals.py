"""Residuals of log g over what the Fisher information of every star says about them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.metrics import scores
from specvit_training.figures.paper import legend_below, sheet
from specvit_training.figures.predictions import Predictions
from specvit_training.figures.reports import title_of

Array = NDArray[np.float64]
AGAINST = {"snr": "median S/N per pixel", "log_g": "true log g (dex)"}
REACH = 2.5
"""Residuals are drawn to this many dex."""
BINS = 12
"""Of equal numbers of stars, along the axis of the middle."""
CELLS = 40
"""Of the densities, each way."""
LIMITS: dict[str, dict[str, Any]] = {
    "crlb": {"color": "#D55E00", "ls": "--", "label": "CRLB (unbiased estimators)"},
    "crlb_prior": {"color": "#0072B2", "ls": "-", "label": "CRLB with the label box as prior (a scale, no bound)"},
}


def mixture(sigma: Array, x: Array) -> Array:
    """Density (M,) at `x` (M,) of residuals if each star had its own N(0, sigma^2); infinite sigmas add none."""
    s = sigma[np.isfinite(sigma)]
    density = np.zeros(len(x))
    for part in np.array_split(s, max(1, len(s) // 1000)):
        density += (np.exp(-0.5 * (x[:, None] / part) ** 2) / (part * np.sqrt(2 * np.pi))).sum(axis=1)
    return density / len(sigma)


def envelope(values: Array, edges: Array, sigma: Array) -> tuple[Array, Array]:
    """Middle of each bin of `values` and the median of `sigma` there; bins without stars are left out."""
    parts = [(values >= low) & (values < high) for low, high in pairwise(edges)]
    parts = [rows for rows in parts if rows.any()]
    return np.array([np.median(values[r]) for r in parts]), np.array([np.median(sigma[r]) for r in parts])


def draw_residuals(found: Predictions, against: str = "snr") -> Figure:
    """Draw truth and estimate, residuals with two envelopes, and their histogram with two expectations.

    Left: every star. Middle: residuals against S/N or true log g, with their own 16th and 84th percentile and plus or
    minus the median by bin of the Cramer-Rao bound (for unbiased estimators) and of the same with the label box as
    prior. Right: the histogram, with the mixtures over all stars of N(0, sigma^2), sigma either of the two.

    Parameters
    ----------
    found : Predictions
        Of one model.
    against : str
        Axis of the middle: "snr" or "log_g".

    Raises
    ------
    SpecVitError
        If no star has an estimate.
    """
    good = np.isfinite(found.estimate)
    if not good.any():
        raise SpecVitError(f"{found.model} has no finite estimate; choose another model with --model")
    truth, estimate, snr = found.truth[good], found.estimate[good], found.snr[good]
    sigmas = {"crlb": found.crlb[good], "crlb_prior": found.crlb_prior[good]}
    residual = estimate - truth
    figure = sheet((8.0, 4.2))
    left, middle, right = figure.subplots(1, 3)
    _draw_parity(left, truth, estimate)
    _draw_envelopes(middle, {"snr": snr, "log_g": truth}[against], residual, sigmas, against)
    _draw_histogram(right, residual, sigmas)
    r2 = scores(truth, estimate)["r2"]
    lost = "" if good.all() else f", {(~good).sum()} without an estimate left out"
    figure.suptitle(f"{found.model}, R² {r2:.3f}; {title_of(found.test_set)}{lost}", fontsize=9)
    legend_below(figure, middle, 2)
    return figure


def _draw_density(axes: Axes, x: Array, y: Array, across: Array, up: Array) -> None:
    """Stars a cell, in greys on a logarithmic scale."""
    counts, _, _ = np.histogram2d(x, y, (across, up))
    axes.pcolormesh(across, up, np.where(counts > 0, counts, np.nan).T, norm="log", cmap="Greys", rasterized=True)


def _draw_parity(axes: Axes, truth: Array, estimate: Array) -> None:
    low, high = LABEL_BOX.low[LOG_G], LABEL_BOX.high[LOG_G]
    edges = np.linspace(low, high, CELLS + 1)
    _draw_density(axes, truth, estimate, edges, edges)
    axes.plot([low, high], [low, high], color="#D55E00", lw=1.0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("true log g (dex)")
    axes.set_ylabel("estimated log g (dex)")


def _draw_envelopes(axes: Axes, x: Array, residual: Array, sigmas: dict[str, Array], against: str) -> None:
    logarithmic = against == "snr"
    edges = np.quantile(x, np.linspace(0, 1, BINS + 1)) * np.array([1.0] * BINS + [1 + 1e-9])
    low, high = float(edges[0]), float(edges[-1])
    across = np.geomspace(low, high, CELLS + 1) if logarithmic else np.linspace(low, high, CELLS + 1)
    _draw_density(axes, x, residual, across, np.linspace(-REACH, REACH, CELLS + 1))
    parts = [residual[(x >= a) & (x < b)] for a, b in pairwise(edges)]
    middle = [float(np.median(x[(x >= a) & (x < b)])) for a, b in pairwise(edges)]
    ends = np.array([np.percentile(part, [16, 84]) for part in parts])
    axes.plot(middle, ends[:, 0], "k.-", ms=4, lw=1.0, label="16th and 84th percentile of the residuals")
    axes.plot(middle, ends[:, 1], "k.-", ms=4, lw=1.0)
    for name, sigma in sigmas.items():
        centre, half = envelope(x, edges, sigma)
        style = LIMITS[name]
        axes.plot(centre, half, lw=1.6, **style)
        axes.plot(centre, -half, lw=1.6, color=style["color"], ls=style["ls"])
    axes.set_xlim(low, high)
    axes.set_ylim(-REACH, REACH)
    if logarithmic:
        axes.set_xscale("log")
        ticks = [t for t in (2, 3, 5, 7, 10, 20, 50, 100) if low <= t <= high]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
    axes.set_xlabel(AGAINST[against])
    axes.set_ylabel("estimate - truth (dex)", labelpad=0)


def _draw_histogram(axes: Axes, residual: Array, sigmas: dict[str, Array]) -> None:
    edges = np.linspace(-REACH, REACH, 51)
    counts, _ = np.histogram(residual, edges)
    axes.stairs(counts / (len(residual) * np.diff(edges)), edges, fill=True, color="0.75")
    x = np.linspace(-REACH, REACH, 201)
    for name, sigma in sigmas.items():
        style = LIMITS[name]
        axes.plot(x, mixture(sigma, x), lw=1.6, color=style["color"], ls=style["ls"])
    _say(axes, [f"{100 * np.mean(np.abs(residual) > REACH):.1f} % beyond"], sigmas["crlb"])
    axes.set_xlim(-REACH, REACH)
    axes.set_xlabel("estimate - truth (dex)")
    axes.set_ylabel("density (1/dex)")


def _say(axes: Axes, lines: Sequence[str], crlb: Array) -> None:
    if (share := 1 - np.isfinite(crlb).mean()) > 0:
        lines = [*lines, f"CRLB infinite:\n{100 * share:.1f} %, not drawn"]
    axes.text(0.97, 0.97, "\n".join(lines), transform=axes.transAxes, ha="right", va="top", fontsize=7)

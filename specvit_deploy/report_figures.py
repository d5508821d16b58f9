"""The figures of a report: distributions, the error against its limit by S/N, efficiency, the sky."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.report_drawing import Plot, Scale, figure, key, plot, svg, text
from specvit_deploy.report_sky import SkyMap
from specvit_deploy.report_statistics import (
    LOG_G_EDGES,
    SNR_EDGES,
    VALUE_EDGES,
    QuantilesBySnr,
    Statistics,
    middle,
)

HALF = (490, 350)
"""Widths of a figure that shares a row with another: wide and narrow screens."""
KINDS = ((1.0, 2.5, "giants"), (2.5, 3.5, "subgiants"), (3.5, 5.0, "dwarfs"))
SHADES = 5
GROUP = 20
"""Fine bins of errors in one bin of their histogram: 0.1 dex."""


def log_g_figure(statistics: Statistics) -> str:
    """Distribution of log g."""

    def draw(width: float, kind: str) -> str:
        frame = plot(width, 280, (1.0, 5.0), (0.0, 1.02 * max(int(statistics.log_g.max()), 4)))
        low, high = frame.x([2.5, 3.5])
        parts = [f'<path class="kind-band" d="M{low:.1f} 8H{high:.1f}V{frame.y.start:.1f}H{low:.1f}Z"/>']
        for start, stop, name in KINDS:
            parts.append(text(float(frame.x((start + stop) / 2)), 22, name, anchor="middle"))
        parts += [frame.axes("log g (cm s⁻²)", "spectra", _short), frame.steps(LOG_G_EDGES, statistics.log_g)]
        return svg(width, 280, "".join(parts), kind, "Histogram of log g")

    return figure("Surface gravities", draw, sizes=HALF)


def error_figure(statistics: Statistics) -> str:
    """Distribution of the error and of its limit."""
    error, bound = (_coarse(statistics.by_snr[name]) for name in ("log_g_err", "log_g_crlb"))
    edges = VALUE_EDGES[::GROUP]
    used = np.flatnonzero((error > 0) | (bound > 0))
    first, last = (max(used[0] - 1, 0), min(used[-1] + 2, len(edges) - 1)) if len(used) else (0, len(edges) - 1)
    edges, error, bound = edges[first : last + 1], error[first:last], bound[first:last]

    def draw(width: float, kind: str) -> str:
        top = 1.08 * max(int(error.max()), int(bound.max()), 4)
        frame = plot(width, 280, (edges[0], edges[-1]), (0.0, top), log_x=True)
        outline = np.repeat(edges, 2)[1:-1]
        parts = [
            frame.axes("1 σ of log g (dex)", "spectra", _short),
            frame.steps(edges, error),
            frame.line(outline, np.repeat(bound, 2), "bound"),
        ]
        return svg(width, 280, "".join(parts), kind, "Histogram of the errors of log g and of their limits")

    return figure("Errors", draw, (key("flux", "stated error"), key("bound", "Cramér–Rao bound")), HALF)


def limit_figure(statistics: Statistics) -> str:
    """Error and limits by S/N: medians, and the middle 68 % of the errors."""
    error, bound, prior = (statistics.by_snr[name] for name in ("log_g_err", "log_g_crlb", "log_g_crlb_prior"))
    low, centre, high = (error.quantile(share) for share in (0.16, 0.5, 0.84))
    lines = [("bound", bound.quantile(0.5)), ("bound-prior", prior.quantile(0.5)), ("line", centre)]
    y = _range([low, high, *(values for _, values in lines)], 0.05, 2.0)

    def draw(width: float, kind: str) -> str:
        height = 400 if kind == "wide" else 330
        frame = plot(width, height, _snr_range(centre), y, log_x=True, log_y=True)
        parts = [
            frame.axes("median S/N per pixel", "1 σ of log g (dex)"),
            frame.band(middle(SNR_EDGES), low, high, "error-band"),
            *(frame.line(middle(SNR_EDGES), values, name) for name, values in lines),
            frame.dots(middle(SNR_EDGES), centre, "dot"),
        ]
        return svg(width, height, "".join(parts), kind, "Error of log g and its limits by S/N")

    keys = [
        key("flux", "stated error, median"),
        key("band", "16 to 84 % of the errors"),
        key("bound", "Cramér–Rao bound, median"),
        key("bound-prior", "with the label range as prior"),
    ]
    return figure("Error against the limit", draw, keys)


def efficiency_figure(statistics: Statistics) -> str:
    """Limit with prior over error, by S/N."""
    quantiles = statistics.by_snr["log_g_efficiency"]
    low, centre, high = (quantiles.quantile(share) for share in (0.16, 0.5, 0.84))
    seen = np.concatenate([low, high])[np.isfinite(np.concatenate([low, high]))]
    y = (min(0.5, float(seen.min()) - 0.05), max(1.2, float(seen.max()) + 0.05)) if len(seen) else (0.5, 1.2)

    def draw(width: float, kind: str) -> str:
        frame = plot(width, 280, _snr_range(centre), y, log_x=True)
        one = float(frame.y(1.0))
        parts = [
            frame.axes("median S/N per pixel", "limit with prior / error"),
            f'<path class="estimate-line" d="M{frame.x.start:.1f} {one:.1f}H{frame.x.end:.1f}"/>',
            frame.band(middle(SNR_EDGES), low, high, "error-band"),
            frame.line(middle(SNR_EDGES), centre, "line"),
            frame.dots(middle(SNR_EDGES), centre, "dot"),
        ]
        return svg(width, 280, "".join(parts), kind, "Efficiency by S/N")

    return figure("Efficiency", draw, (key("flux", "median"), key("band", "16 to 84 %")), HALF)


def snr_figure(statistics: Statistics) -> str:
    """Distribution of S/N."""
    used = np.flatnonzero(statistics.snr)
    first, last = (max(used[0] - 1, 0), min(used[-1] + 2, len(SNR_EDGES) - 1)) if len(used) else (8, 20)
    edges, counts = SNR_EDGES[first : last + 1], statistics.snr[first:last]

    def draw(width: float, kind: str) -> str:
        frame = plot(width, 280, (edges[0], edges[-1]), (0.0, 1.08 * max(int(counts.max()), 4)), log_x=True)
        parts = [frame.axes("median S/N per pixel", "spectra", _short), frame.steps(edges, counts)]
        return svg(width, 280, "".join(parts), kind, "Histogram of S/N")

    return figure("Signal to noise", draw, sizes=HALF)


def sky_figure(sky: SkyMap) -> str:
    """Spectra per cell of the sky, east to the left."""

    def draw(width: float, kind: str) -> str:
        left, bottom = (8.0, 20.0) if sky.whole else (46.0, 46.0)
        room, tallest = width - left - 8, 420 if kind == "wide" else 320
        scale = min(room / sky.width, tallest / sky.height)
        height, half = 30 + scale * sky.height + bottom, room / scale / 2
        x = Scale(-half, half, left, width - 8)
        frame = Plot(width, height, x, Scale(-sky.height / 2, sky.height / 2, height - bottom, 30))
        parts = [_cells(frame, sky), _whole_sky(frame, sky)] if sky.whole else [_plane(frame, sky), _cells(frame, sky)]
        return svg(width, height, "".join(parts), kind, f"Map of the sky with {sky.rows} spectra")

    top = int(sky.counts.max())
    keys = [key(f"cell-{i}", words) for i, words in _shade_words(top)]
    return figure("Where in the sky", draw, keys)


def _cells(frame: Plot, sky: SkyMap) -> str:
    ny, nx = sky.counts.shape
    shade = _shade(sky.counts)
    left, right = float(frame.x(-sky.width / 2)), float(frame.x(sky.width / 2))
    x = np.linspace(left, right, nx + 1).round(1)  # neighbours share their edge
    y = np.linspace(frame.y.start, frame.y.end, ny + 1).round(1)
    out = []
    for level in range(1, SHADES + 1):
        i, j = np.nonzero(shade == level)
        squares = "".join(f"M{x[b]:g} {y[a]:g}V{y[a + 1]:g}H{x[b + 1]:g}V{y[a]:g}z" for a, b in zip(i, j, strict=True))
        if squares:
            out.append(f'<path class="cell-{level}" d="{squares}"/>')
    return "".join(out)


def _shade(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shade 1 to `SHADES` of cells that hold something, by the logarithm of their number."""
    top = max(int(counts.max()), 2)
    level = np.ceil(SHADES * np.log1p(counts) / np.log1p(top) - 1e-9)
    return np.asarray(np.clip(level, 0, SHADES) * (counts > 0), np.int64)


def _shade_words(top: int) -> list[tuple[int, str]]:
    """Shades that occur, with the numbers that they stand for."""
    numbers = np.arange(1, top + 1) if top < 10_000 else np.unique(np.geomspace(1, top, 10_000).astype(np.int64))
    shades = _shade(numbers)
    out: list[tuple[int, str]] = []
    for level in np.unique(shades):
        first, last = numbers[shades == level][[0, -1]]
        words = f"{first}" if first == last else f"{first} to {last}"
        out.append((int(level), ("spectra a cell: " if not out else "") + words))
    return out


def _plane(frame: Plot, sky: SkyMap) -> str:
    """Axes of right ascension, rising to the left, and declination."""
    stretch = np.cos(np.radians(sky.dec))
    half = frame.x.high / stretch
    ra = Scale(sky.ra - half, sky.ra + half, frame.x.end, frame.x.start)
    dec = Scale(sky.dec - sky.height / 2, sky.dec + sky.height / 2, frame.y.start, frame.y.end)
    bottom, left, right = frame.y.start, frame.x.start, frame.x.end
    out = [f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>']
    for value in ra.ticks(int(np.clip((right - left) / 85, 2, 7))):
        at = float(ra(value))
        out.append(f'<path class="axis" d="M{at:.1f} {bottom:.1f}v5"/>')
        out.append(text(at, bottom + 19, f"{round(value % 360, 6):g}°", anchor="middle"))
    for value in dec.ticks(int(np.clip((bottom - frame.y.end) / 60, 2, 6))):
        at = float(dec(value))
        out.append(f'<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
        out.append(text(left - 8, at + 4, f"{round(value, 6):g}°", anchor="end"))
    out.append(text(right, bottom + 38, "right ascension", anchor="end"))
    out.append(text(0, 13, "declination"))
    return "".join(out)


def _whole_sky(frame: Plot, sky: SkyMap) -> str:
    """Outline, meridians and parallels."""
    out = []
    for ra in range(0, 361, 60):
        dec = np.linspace(-90, 90, 61)
        edge = {0: 1e-6, 360: 360 - 1e-6}.get(ra, float(ra))
        out.append(frame.line(*sky.project(np.full(61, edge), dec), "axis" if ra in (0, 360) else "grid"))
    around = np.linspace(1e-6, 360 - 1e-6, 121)
    parallels = [sky.project(around, np.full(121, float(dec))) for dec in (-60, -30, 0, 30, 60)]
    out += [frame.line(*points, "grid") for points in parallels]
    for hour in (60, 120, 180, 240, 300):
        x, y = sky.project(np.array([float(hour)]), np.array([0.0]))
        out.append(text(float(frame.x(x[0])), float(frame.y(y[0])) + 15, f"{hour}°", "over", "middle"))
    return "".join(out)


def _coarse(quantiles: QuantilesBySnr) -> NDArray[np.int64]:
    """Rows in groups of `GROUP` fine bins."""
    inner = quantiles.counts.sum(axis=0)[1:-1]
    return np.asarray(inner.reshape(-1, GROUP).sum(axis=1))


def _snr_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """S/N where there is something to show."""
    used = np.flatnonzero(np.isfinite(values))
    if not len(used):
        return 2.0, 50.0
    return float(SNR_EDGES[used[0]]), float(SNR_EDGES[used[-1] + 1])


def _range(values: list[NDArray[np.float64]], low: float, high: float) -> tuple[float, float]:
    """Positive range of all finite values with a margin; `low` to `high` without any."""
    seen = np.concatenate(values)
    seen = seen[np.isfinite(seen) & (seen > 0)]
    return (float(seen.min()) / 1.25, float(seen.max()) * 1.25) if len(seen) else (low, high)


def _short(value: float) -> str:
    """A count on an axis."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= 10 * unit or (value >= unit and value % unit == 0):
            return f"{value / unit:g}{name}"
    return f"{value:g}"

"""Small drawings in SVG: scales, ticks, axes, lines, bands and steps as text; colours are the page's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """Maps values to positions, linearly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: ArrayLike) -> Array:
        """Positions of values."""
        position, low, high = np.asarray(value, np.float64), self.low, self.high
        if self.log:
            position, low, high = np.log(position), float(np.log(low)), float(np.log(high))
        return np.asarray(self.start + (position - low) / (high - low) * (self.end - self.start))

    def ticks(self, wanted: int) -> list[float]:
        """Round values inside, about as many as wanted."""
        if self.log:
            decades = range(int(np.floor(np.log10(self.low))), int(np.ceil(np.log10(self.high))) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [s * 10.0**k for k in decades for s in steps if self.low <= s * 10.0**k <= self.high]
                if len(found) <= wanted:
                    break
            return found
        rough = (self.high - self.low) / max(wanted, 1)
        power = 10.0 ** np.floor(np.log10(rough))
        step = next(power * s for s in (1, 2, 5, 10) if power * s >= 0.75 * rough)
        first = np.ceil(self.low / step - 1e-9)
        return [float(k * step) + 0.0 for k in np.arange(first, np.floor(self.high / step + 1e-9) + 1)]  # never -0


@dataclass(frozen=True)
class Plot:
    """A frame with two axes; positions in pixels of the drawing."""

    width: float
    height: float
    x: Scale
    y: Scale

    def axes(
        self, x_name: str, y_name: str, y_format: Callable[[float], str] | None = None,
        x_format: Callable[[float], str] | None = None,
    ) -> str:  # fmt: skip
        """Horizontal axis, faint horizontal lines, ticks and names."""
        bottom, left, right = self.y.start, self.x.start, self.x.end
        out = [f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>']
        for value in self.x.ticks(int(np.clip((right - left) / 65, 2, 9))):
            at = float(self.x(value))
            out.append(f'<path class="axis" d="M{at:.1f} {bottom:.1f}v5"/>')
            out.append(text(at, bottom + 19, (x_format or "{:g}".format)(value), anchor="middle"))
        for value in self.y.ticks(int(np.clip((bottom - self.y.end) / 45, 2, 6))):
            at = float(self.y(value))
            out.append(f'<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
            out.append(text(left - 8, at + 4, (y_format or "{:g}".format)(value), anchor="end"))
        out.append(text(right, bottom + 38, x_name, anchor="end"))
        out.append(text(0, 13, y_name))
        return "".join(out)

    def line(self, x: ArrayLike, y: ArrayLike, name: str) -> str:
        """A line of class `name`, broken where a value is not finite."""
        return "".join(f'<path class="{name}" d="M{_points(px, py)}"/>' for px, py in self._runs(x, y))

    def dots(self, x: ArrayLike, y: ArrayLike, name: str, radius: float = 2.6) -> str:
        """A dot at every finite point."""
        px, py = self.x(x), self.y(y)
        good = np.isfinite(px) & np.isfinite(py)
        dots = zip(px[good], py[good], strict=True)
        return "".join(f'<circle class="{name}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>' for a, b in dots)

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, name: str) -> str:
        """The area between two lines."""
        lows = np.where(np.isfinite(np.asarray(high, np.float64)), low, np.nan)
        out = []
        for (px, below), (qx, above) in zip(
            self._runs(x, lows), self._runs(x, np.where(np.isfinite(lows), high, np.nan)), strict=True
        ):
            out.append(f'<path class="{name}" d="M{_points(px, below)}L{_points(qx[::-1], above[::-1])}Z"/>')
        return "".join(out)

    def steps(self, edges: ArrayLike, counts: ArrayLike) -> str:
        """A histogram: the area under its steps, and their line."""
        x, y = np.repeat(self.x(edges), 2), np.repeat(self.y(counts), 2)
        bottom = self.y.start
        path = "M" + _points(x, np.concatenate([[bottom], y, [bottom]]))
        return f'<path class="area" d="{path}Z"/><path class="steps" d="{path}"/>'

    def _runs(self, x: ArrayLike, y: ArrayLike) -> list[tuple[Array, Array]]:
        """Unbroken pieces in pixels."""
        with np.errstate(divide="ignore", invalid="ignore"):
            px, py = self.x(x), self.y(y)
        good = np.isfinite(px) & np.isfinite(py)
        cuts = np.flatnonzero(np.diff(good)) + 1
        pieces = zip(np.split(px, cuts), np.split(py, cuts), np.split(good, cuts), strict=True)
        return [(a, b) for a, b, ok in pieces if len(ok) and ok[0]]


def plot(
    width: float, height: float, x: tuple[float, float], y: tuple[float, float], log_x: bool = False,
    log_y: bool = False, left: float = 46,
) -> Plot:  # fmt: skip
    """A frame with room for its axes."""
    bottom = height - 46
    return Plot(width, height, Scale(*x, left, width - 8, log_x), Scale(*y, bottom, 30, log_y))


def svg(width: float, height: float, content: str, kind: str, label: str) -> str:
    """A drawing of class `kind`, described by `label` for those who do not see it."""
    view = f"0 0 {width:g} {height:g}"
    return f'<svg class="{kind}" role="img" aria-label="{escape(label)}" viewBox="{view}">{content}</svg>'


def text(x: float, y: float, words: str, name: str = "", anchor: str = "start") -> str:
    """Words at a place, a hyphen before a number as a minus sign."""
    kind = f' class="{name}"' if name else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words.replace("-", "−"))}</text>'


def key(name: str, words: str) -> str:
    """An entry of a legend."""
    return f'<span><i class="key {name}-key"></i>{escape(words)}</span>'


def figure(
    title: str, draw: Callable[[float, str], str], keys: Sequence[str] = (), sizes: tuple[int, int] = (1000, 350)
) -> str:
    """A card with a drawing in two widths; the page shows the one that suits the screen."""
    drawings = draw(sizes[0], "wide") + draw(sizes[1], "narrow")
    legend = f"<figcaption>{''.join(keys)}</figcaption>" if keys else ""
    return f'<figure class="card"><h2>{escape(title)}</h2>{drawings}{legend}</figure>'


def _points(x: Array, y: Array) -> str:
    return "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))

"""The sheet every figure is drawn on: size, colours and markers that survive print, grey and colour-blind eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SIZE = (8.0, 5.5)
"""Inches."""
DPI = 120
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito (2008), without black (the ceiling's) and yellow (too pale on white)."""
MARKERS = "osD^vPX*<>"
CEILING: dict[str, Any] = {"color": "black", "lw": 1.4}
"""Look of what no estimator can beat."""


def sheet(size: tuple[float, float] = SIZE) -> Figure:
    """Give an empty figure that needs no display."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def look(number: int) -> dict[str, Any]:
    """Colour and marker of the model of this number; 30 differ."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def legend_below(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """Put the legend of `axes` below everything, where it hides no data."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; equal figures give equal bytes."""
    figure.savefig(path, dpi=DPI, format="png", metadata={"Software": None})

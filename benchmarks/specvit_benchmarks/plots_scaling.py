"""Figures of what a run costs by size of the catalogue and by number of workers."""

from __future__ import annotations

from typing import Any

from specvit_benchmarks.plots import HALF, Marked, short
from specvit_deploy.report_drawing import Plot, Scale, figure, key, plot, svg, text


def scaling_figures(report: dict[str, Any]) -> list[str]:
    """Cost by number of spectra, and throughput by number of workers; what was not measured is not drawn."""
    scaling = report["scaling"]
    if scaling is None:
        return []
    rows, workers = sorted(scaling["rows"], key=lambda row: row["n"]), scaling["workers"]
    return [
        *([_rows_figure(rows)] if len(rows) > 1 else []),
        *([_workers_figure(workers)] if len(workers) > 1 else []),
    ]


def _rows_figure(rows: list[dict[str, Any]]) -> str:
    n = [row["n"] for row in rows]
    each = [1e3 * row["cpu_s"] / row["n"] for row in rows]

    def draw(width: float, kind: str) -> str:
        frame = plot(width, 280, (0.8 * n[0], 1.25 * n[-1]), (0, 1.15 * max(each)), log_x=True)
        parts = [
            frame.axes("spectra in the catalogue", "CPU ms per spectrum", x_format=short),
            frame.line(n, each, "line"), frame.dots(n, each, "dot"),
        ]  # fmt: skip
        return svg(width, 280, "".join(parts), kind, "Processor time per spectrum by size of the catalogue")

    first, last = rows[0], rows[-1]
    said = (
        f"start-up included; peak memory {first['peak_rss_mb']:,.0f} MB for {short(first['n'])}, "
        f"{last['peak_rss_mb']:,.0f} MB for {short(last['n'])} spectra"
    )
    return figure("By size of the catalogue", draw, [key("flux", said)], HALF)


def _workers_figure(workers: list[dict[str, Any]]) -> str:
    count = [found["workers"] for found in workers]
    rates = [found["spectra_per_second"] for found in workers]
    single = rates[0] / workers[0]["efficiency"] / count[0]

    def draw(width: float, kind: str) -> str:
        top = 1.1 * max(*rates, single * count[-1])
        x = Marked(count[0] - 0.4, count[-1] + 0.4, 46, width - 8, marks=tuple(map(float, count)))
        frame = Plot(width, 280, x, Scale(0, top, 234, 30))
        parts = [
            frame.axes("workers", "spectra per second", short),
            frame.line(count, [single * n for n in count], "bound-prior"),
            frame.line(count, rates, "line"), frame.dots(count, rates, "dot"),
        ]  # fmt: skip
        for found in workers[1:]:
            at, y = float(frame.x(found["workers"])), float(frame.y(found["spectra_per_second"]))
            parts.append(text(at, y + 20, f"{100 * found['efficiency']:.0f} %", "over", "middle"))
        return svg(width, 280, "".join(parts), kind, "Spectra per second by number of workers")

    return figure("By workers", draw, [key("flux", "wall time, from file to file"), key("bound-prior", "ideal")], HALF)

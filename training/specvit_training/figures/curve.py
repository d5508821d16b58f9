"""Training curves: loss and validation R2 against spectra seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from specvit_deploy.errors import SpecVitError
from specvit_training.figures.log import column
from specvit_training.figures.paper import COLOURS, legend_below, sheet

SCENARIO_STYLES = {"study": "-", "survey": "--"}


def draw_curve(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw loss and validation R2 of runs.

    Parameters
    ----------
    logs : mapping
        Records of each run, by name (`log.read_logs`).

    Raises
    ------
    SpecVitError
        If no record has a loss or R2.
    """
    figure = sheet()
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    drawn = 0
    for number, (name, records) in enumerate(logs.items()):
        colour = COLOURS[number % len(COLOURS)]
        above.plot(*column(records, "loss"), color=colour, lw=1.2)
        for scenario, style in SCENARIO_STYLES.items():
            points = column(records, f"r2_{scenario}")
            drawn += len(points[0])
            if points[0]:
                below.plot(*points, style, color=colour, lw=1.4, label=f"{name}, {scenario}")
    if not drawn:
        raise SpecVitError("these logs hold no R2; give log.jsonl of 'specvit-deploy train'")
    above.set_ylabel("loss")
    below.set_ylabel("R² of log g")
    below.set_xlabel("spectra seen")
    below.set_xscale("log")
    low = min(min(column(records, key)[1][-1:], default=1.0) for records in logs.values() for key in _keys(records))
    below.set_ylim(min(0.2, low - 0.1), 1.0)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    above.set_title(
        "training, scored on validation spectra of scenario "
        + " and of scenario ".join(
            s for s in SCENARIO_STYLES if any(f"r2_{s}" in r for log in logs.values() for r in log)
        ),
        fontsize=9,
    )
    legend_below(figure, below)
    return figure


def _keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key for key in records[-1] if key.startswith("r2_")]

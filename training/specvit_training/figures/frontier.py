"""Accuracy against cost, with the models that no cheaper one beats."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from specvit_deploy.errors import SpecVitError
from specvit_training.figures.paper import CEILING, look, sheet
from specvit_training.figures.reports import Report, ceiling_of, choose, title_of, with_bars

COSTS = {
    "gflop": "GFLOP a spectrum (2 x multiply-accumulate, forward)",
    "ms_per_spectrum": "ms a spectrum (processor time, one thread)",
}


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (cost, value) that no other point beats in one without losing in the other, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def draw_frontier(accuracy: Report, sets: Sequence[Report] = (), models: Sequence[str] = ()) -> Figure:
    """Draw R2 of log g against the cost of an estimate: operations, and time where it was measured.

    Parameters
    ----------
    accuracy : dict
        Report of `specvit-deploy evaluate` whose models say what they cost.
    sets : sequence of dict
        Reports of `specvit-deploy ceiling` on the same test set, for the MMSE.
    models : sequence of str
        Names of the models to draw.  [default: all]

    Raises
    ------
    SpecVitError
        If no model knows its cost.
    """
    chosen = choose(accuracy["models"], models)
    known = [key for key in COSTS if any(model.get(key) for model in chosen)]
    if not known:
        raise SpecVitError("no model says what it costs (gflop, ms_per_spectrum); evaluate them anew")
    figure = sheet()
    panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    ceiling = ceiling_of(sets, accuracy) if sets else None
    shown: dict[str, int] = {}
    for axes, key in zip(panels, known, strict=True):
        if ceiling:
            axes.axhspan(ceiling[1], ceiling[2], color="black", alpha=0.15, lw=0)
            axes.axhline(ceiling[0], label="posterior mean (MMSE): no estimator above", **CEILING)
        _draw_panel(axes, key, [model for model in chosen if model.get(key)], shown)
    panels[0].set_ylabel("R² of log g")
    figure.suptitle(title_of(accuracy["test_set"]), fontsize=9)
    handles = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _draw_panel(axes: Axes, key: str, models: Sequence[Report], shown: dict[str, int]) -> None:
    for model in models:
        number = shown.setdefault(model["name"], len(shown))
        value, bars = with_bars([model["overall"]["r2"]])
        axes.errorbar([model[key]], value, bars, ls="none", ms=6, capsize=2, label=model["name"], **look(number))
    front = pareto([(model[key], model["overall"]["r2"][0]) for model in models])
    reach = [*front, (max(model[key] for model in models), front[-1][1])]
    axes.step(*zip(*reach, strict=True), where="post", color="0.5", lw=1.0, zorder=1, label="best for its cost")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(COSTS[key], fontsize=9)
    axes.grid(alpha=0.3)

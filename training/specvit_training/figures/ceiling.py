"""R2 against S/N, with what no estimator can beat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from specvit_deploy.errors import SpecVitError
from specvit_training.figures.paper import CEILING, legend_below, look, save, sheet
from specvit_training.figures.reports import Report, choose, join_accuracy, title_of, with_bars


def plot_ceiling(
    path: Path, sets: Sequence[Report], accuracy: Sequence[Report] = (), models: Sequence[str] = ()
) -> None:
    """Draw R2 against S/N with its ceilings to a PNG; see `draw_ceiling`."""
    save(draw_ceiling(sets, accuracy, models), path)


def draw_ceiling(sets: Sequence[Report], accuracy: Sequence[Report] = (), models: Sequence[str] = ()) -> Figure:
    """Draw R2 against S/N with its ceilings.

    Parameters
    ----------
    sets : sequence of dict
        Reports of `specvit-deploy ceiling`: one test set, drawn by S/N bin, or several magnitudes.
    accuracy : sequence of dict
        Reports of `specvit-deploy evaluate` on the same test set; their models are drawn beside the ceilings.
    models : sequence of str
        Names of the models to draw, in this order.  [default: all]

    Raises
    ------
    SpecVitError
        If there is nothing to draw, a report is of another test set, or a model is not in the reports.
    """
    figure = sheet()
    axes = figure.subplots()
    cells = sets[0]["ceilings"]["by_snr"] if len(sets) == 1 else []
    cells = cells or [report["ceilings"]["overall"] for report in sets]
    cells = sorted((cell for cell in cells if cell["snr_median"]), key=lambda cell: float(cell["snr_median"]))
    if not cells:
        raise SpecVitError("there is no star with data to draw; measure another set")
    snr = [cell["snr_median"] for cell in cells]
    bounds = [cell["crlb"]["scenario"] for cell in cells]
    axes.fill_between(
        snr,
        [b["r2_max_p10"] for b in bounds],
        [b["r2_max_p90"] for b in bounds],
        color="tab:grey",
        alpha=0.2,
        lw=0,
        label="1 - CRLB²/Var, 10 % to 90 % of the stars",
    )
    axes.plot(snr, [b["r2_max_median"] for b in bounds], "--", color="tab:grey", label="its median (no bound on R²)")
    bound = _van_trees(sets)
    if bound:
        axes.plot(*zip(*bound, strict=True), "-.", color="0.35", label="van Trees: no estimator above")
    if all(cell.get("posterior", {}).get("n") for cell in cells):
        found = [cell["posterior"] for cell in cells]
        if all("r2" in p for p in found):
            values, bars = with_bars([p["r2"] for p in found])
            axes.errorbar(snr, values, bars, fmt="o-", ms=4, label="posterior mean (MMSE)", **CEILING)
        axes.plot(
            snr,
            [p["r2_from_variance"][0] for p in found],
            ":",
            label="MMSE from the mean posterior variance",
            **CEILING,
        )
    if accuracy:
        _draw_models(axes, cells, sets[0]["recipe"] or {}, accuracy, models)
    axes.set_xscale("log")
    axes.set_xticks([3, 5, 7, 10, 20, 50, 100], ["3", "5", "7", "10", "20", "50", "100"])
    axes.minorticks_off()
    axes.set_xlim(0.9 * min(snr), 1.1 * max(snr))
    axes.set_ylim(min(0.2, *(b["r2_max_median"] for b in bounds)), 1.0)
    axes.set_xlabel("median S/N per pixel")
    axes.set_ylabel("R² of log g")
    axes.set_title(_title(sets), fontsize=9)
    axes.grid(alpha=0.3)
    legend_below(figure, axes, 2 if len(axes.get_lines()) < 8 else 3)
    return figure


def _draw_models(
    axes: Any, cells: Sequence[Report], recipe: Report, accuracy: Sequence[Report], names: Sequence[str]
) -> None:
    for report in accuracy:
        if report["test_set"].get("hash") != recipe.get("hash"):
            raise SpecVitError(
                f"a report of 'evaluate' is of test set {report['test_set'].get('hash')}, the ceilings are of "
                f"{recipe.get('hash', 'a catalogue')}; draw both of one set (ceiling --test-set)"
            )
    middle = {tuple(cell["range"]): cell["snr_median"] for cell in cells if "range" in cell}
    joined = join_accuracy({f"report {k}": report for k, report in enumerate(accuracy, 1)})
    for number, model in enumerate(choose(joined["models"], names)):
        points = [
            (middle[tuple(cell["range"])], cell["r2"]) for cell in model["by_snr"] if tuple(cell["range"]) in middle
        ]
        axes.plot(*zip(*points, strict=True), "-", ms=4, lw=1.2, label=label(model), **look(number))


def label(model: Report) -> str:
    """Name of a model and the scenario it was told."""
    return f"{model['name']} (told {model['told']})"


def _title(sets: Sequence[Report]) -> str:
    head = sets[0]
    if len(sets) == 1:
        recipe = head["recipe"]
        what = title_of(recipe) if recipe else f"scenario {head['scenario']}, {head['set']}"
    else:
        what = f"scenario {head['scenario']}, {len(sets)} sets from {head['set']} to {sets[-1]['set']}"
    return f"{what}\nprior {head['prior']}; nuisances: {head['nuisances']}"


def _van_trees(sets: Sequence[Report]) -> list[tuple[float, float]]:
    if len(sets) == 1:
        return [(part["snr_median"], part["r2"]) for part in sets[0].get("van_trees", {}).get("by_brightness", [])]
    found = [
        (report["ceilings"]["overall"]["snr_median"], report["van_trees"]["r2"])
        for report in sets
        if "van_trees" in report
    ]
    return sorted(found)

"""Tables of the README from `benchmarks/results`: `python -m specvit_benchmarks.tables README.md` writes them anew.

A table stands between `<!-- NAME -->` and `<!-- end -->`; what stands there is replaced, everything else is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from specvit_benchmarks.intervals import interval
from specvit_benchmarks.markdown import table
from specvit_benchmarks.performance import end_to_end, performance, scaling
from specvit_benchmarks.planning import plan
from specvit_benchmarks.planning import table as planning
from specvit_benchmarks.schema import load
from specvit_deploy.atomic import whole_file
from specvit_deploy.errors import SpecVitError

RESULTS = Path(__file__).parents[1] / "results"


def report(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Read a result.

    Raises
    ------
    SpecVitError
        If there is none of that name.
    """
    try:
        loaded: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError) as error:
        raise SpecVitError(f"no result {name} ({error}); the README says which command makes it") from None
    return loaded


def accuracy(scenario: str) -> str:
    """All methods on one test set: accuracy in dex and what it costs."""
    found = report(f"accuracy-{scenario}")
    rows = []
    for model in found["models"]:
        scores = model["overall"]
        types = [f"{cell['mae']:.3f}" for cell in model["by_type"]]
        covered = model.get("coverage_1_sigma")
        rows.append(
            [
                scenario,
                f"{model['name']}, told {model['told']}",
                interval(scores["r2"]),
                "" if model is found["models"][0] else interval(model["r2_minus_first"], "+.4f"),
                f"{scores['slope'][0]:z.3f}",
                f"{scores['mae'][0]:.3f}",
                f"{scores['rmse'][0]:.3f}",
                " / ".join(types),
                "" if covered is None else f"{100 * covered:.1f} %",
                *(_number(model[key], form) for key, form in COSTS),
            ]
        )
    head = [
        "test set",
        "model",
        "R2",
        f"R2 minus {found['models'][0]['name']}, paired",
        "slope",
        "MAE",
        "RMSE",
        "MAE giants / subgiants / dwarfs",
        "1 sigma covers",
        "parameters",
        "GFLOP",
        "ms",
        "spectra seen",
        "minutes of training",
    ]
    return table(head, rows)


COSTS = (
    ("parameters", ",d"),
    ("gflop", ".3g"),
    ("ms_per_spectrum", ".2f"),
    ("spectra_seen", ",d"),
    ("training_minutes", ".0f"),
)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def by_snr(scenario: str) -> str:
    """R2 by S/N bin, all methods."""
    models = report(f"accuracy-{scenario}")["models"]
    cells = models[0]["by_snr"]
    head = ["median S/N", *(f"{low:g}-{high:g}" if high else f"> {low:g}" for low, high in (c["range"] for c in cells))]
    rows = [[model["name"], *(f"{cell['r2']:z.3f}" for cell in model["by_snr"])] for model in models]
    return table(head, [["spectra", *(str(cell["n"]) for cell in cells)], *rows])


def ablation() -> str:
    """One change each from the base of the ablation, equal budget."""
    models = report("ablation")["models"]
    base = models[0]
    rest = sorted(models[1:], key=lambda model: -float(model["overall"]["r2"][0]))
    rows = [
        [
            model["name"],
            f"`training/configs/ablation/{model['name']}.toml`",
            interval(model["overall"]["r2"]),
            "" if model is base else interval(model["r2_minus_first"], "+.4f"),
            *(_number(model[key], form) for key, form in COSTS[:2]),
            f"{model['spectra_seen']:,d}",
            f"{model['training_minutes']:.1f}",
        ]
        for model in (base, *rest)
    ]
    head = ["row", "configuration", "R2", "minus base, paired", "parameters", "GFLOP", "spectra seen", "CPU minutes"]
    return table(head, rows)


def teacher() -> str:
    """Labels or posterior as targets, by number of distinct spectra."""
    models = {model["name"]: model for model in report("scaling")["models"]}
    rows = []
    for name, label in models.items():
        if not name.startswith("label-"):
            continue
        taught = models[name.replace("label", "taught")]
        others = [models.get(name.replace("label", kind)) for kind in ("lightgbm", "ridge")]
        rows.append(
            [
                f"{label['distinct_spectra']:,d}",
                interval(label["overall"]["r2"]),
                interval(taught["overall"]["r2"]),
                *("" if other is None else interval(other["overall"]["r2"]) for other in others),
            ]
        )
    return table(["distinct spectra", "true labels", "posterior", "LightGBM", "ridge"], rows)


def coverage(bundle: str) -> str:
    """Coverage under each condition."""
    rows = []
    for found in report(f"coverage-{bundle}")["conditions"]:
        overall = found["groups"][0]
        misses = [miss["excess"] for miss in found["failing"]]
        judged = [
            ("snr" in group and "log_g" in group, group[of]["holds"])
            for group in found["groups"]
            for of in ("log_g_err", "interval")
            if group[of]["holds"] is not None
        ]
        lines, cells = ([holds for is_cell, holds in judged if is_cell == asked] for asked in (False, True))
        rows.append(
            [
                found["name"],
                f"{found['r2']:z.3f}",
                f"{100 * overall['log_g_err']['coverage']:.1f} %",
                f"{100 * overall['interval']['coverage']:.1f} %",
                f"{sum(lines)} of {len(lines)}",
                f"{sum(cells)} of {len(cells)}",
                f"{100 * max(misses, key=abs):+z.1f} points" if misses else "",
                f"{100 * found['flagged_share']:.1f} %",
            ]
        )
    head = ["condition", "R2", "1 sigma covers", "interval covers", "rows and columns that hold",
            "cells that hold", "worst miss", "flagged"]  # fmt: skip
    return table(head, rows)


def engines() -> str:
    """Speed and agreement of every engine, model by model; medians and quartiles."""
    rows = [
        [
            model["name"],
            found["name"] + (" (auto)" if found["name"] == model["auto"] else ""),
            found["form"],
            str(found["batch"]),
            interval(found["spectra_per_cpu_second"], ".1f"),
            f"{found['over_torch_eager'][0]:.2f}",
            *(_small(found[key]) for key in ("rms_dex", "p999_dex", "rms_sigma", "p999_sigma")),
            "" if found["ceiling_share"] is None else f"{100 * found['ceiling_share']:.0f} %",
        ]
        for model in report("engines")["models"]
        for found in model["engines"]
    ]
    head = ["model", "engine", "graph", "batch", "spectra per CPU second", "times torch eager", "rms, dex",
            "p99.9, dex", "rms, sigma", "p99.9, sigma", "of the core's ceiling"]  # fmt: skip
    return table(head, rows)


def outside_network() -> str:
    """Time of the whole graph, of its network alone, and the share of everything else."""
    rows = [
        [
            model["name"],
            str(found["batch"]),
            f"{found['whole_ms']:.3f}",
            f"{found['network_ms']:.3f}",
            f"{found['vit_ms']:.3f}",
            interval([100 * share for share in found["outside_share"]], ".1f") + " %",
        ]
        for model in report("engines")["models"]
        for found in model["network_share"]
    ]
    head = ["model", "batch", "whole graph, ms", "network with second look, ms", "ViT alone, ms", "all the rest"]
    return table(head, rows)


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


TABLES: dict[str, Callable[[], str]] = {
    "accuracy study": lambda: accuracy("study"),
    "accuracy survey": lambda: accuracy("survey"),
    "snr study": lambda: by_snr("study"),
    "snr survey": lambda: by_snr("survey"),
    "ablation": ablation,
    "teacher": teacher,
    "coverage pfs-mr": lambda: coverage("pfs-mr"),
    "engines": engines,
    "outside network": outside_network,
    "performance": lambda: performance(load(RESULTS / "benchmark.json")),
    "scaling": lambda: scaling(load(RESULTS / "benchmark.json")),
    "planning": lambda: planning(plan(load(RESULTS / "benchmark.json"))),
    "performance p16": lambda: end_to_end(load(RESULTS / "benchmark-p16.json")),
}


def fill(text: str) -> str:
    """Text with every table made anew.

    Raises
    ------
    SpecVitError
        For a table that nobody makes.
    """

    def replace(found: re.Match[str]) -> str:
        if found[1] not in TABLES:
            raise SpecVitError(f"no table '{found[1]}'; there are {', '.join(TABLES)}")
        return f"<!-- {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- ([a-z][\w -]*) -->\n((?!<!--).)*?<!-- end -->", replace, text, flags=re.DOTALL)


@click.command()
@click.argument("document", type=click.Path(path_type=Path))
def main(document: Path) -> None:
    """Write the tables of DOCUMENT anew."""
    text = fill(document.read_text(encoding="utf-8"))
    with whole_file(document) as temporary:
        temporary.write_text(text, encoding="utf-8")
    click.echo(f"wrote {document}")


if __name__ == "__main__":
    main()

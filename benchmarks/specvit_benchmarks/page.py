"""A report of benchmarks as one self-contained HTML page: drawn as SVG, no script and no network."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from specvit_benchmarks import page_tables as tables
from specvit_benchmarks import page_words as words
from specvit_benchmarks.planning import plan
from specvit_benchmarks.plots import frontier_figure, throughput_figure
from specvit_benchmarks.plots_bars import memory_figure, precision_figure, roofline_figure, stages_card
from specvit_benchmarks.plots_scaling import scaling_figures
from specvit_benchmarks.schema import validate
from specvit_deploy.atomic import whole_file


def write_page(report: dict[str, Any], path: str | Path) -> Path:
    """Write the page.

    Parameters
    ----------
    report : dict
        As `specvit_benchmarks.schema` describes it, with one case at least that ran.
    path : path
        The page.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    SpecVitError
        If the report is none, or the page cannot be written.
    """
    validate(report)
    body = [
        words.summary(report),
        tables.engines_card(report),
        throughput_figure(report),
        precision_figure(report),
        frontier_figure(report),
        tables.peers_card(report),
        stages_card(report),
        _pair(roofline_figure(report), memory_figure(report)),
        _pair(*scaling_figures(report)),
        tables.planning_card(plan(report)) if report["stages"] and report["bundle"]["gflop"] else "",
        words.provenance_card(report),
    ]
    ours = files("specvit_benchmarks") / "page"
    style = files("specvit_deploy") / "report_page" / "style.css"
    page = Template((ours / "page.html").read_text("utf-8")).substitute(
        style=style.read_text("utf-8") + (ours / "style.css").read_text("utf-8"),
        title=escape(words.title(report)),
        lead=escape(words.lead(report)),
        body="\n".join(part for part in body if part),
    )
    path = Path(path)
    with whole_file(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def _pair(*cards: str) -> str:
    shown = "".join(cards)
    return f'<div class="pair">{shown}</div>' if shown else ""

"""A result file as one self-contained HTML page: counted in blocks, drawn as SVG, no script and no network."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from specvit_deploy import report_figures as figures
from specvit_deploy import report_words as words
from specvit_deploy.atomic import check_outputs, whole_file
from specvit_deploy.report_sky import map_sky
from specvit_deploy.report_spectra import read_fits, spectrum_card
from specvit_deploy.report_statistics import count, sky_columns
from specvit_deploy.result_formats import BLOCK, Result

DRAWN = 4
"""Worst fits that are drawn."""


def write_report(
    results: str | Path, output: str | Path | None = None, catalog: str | Path | None = None, size: int = BLOCK
) -> Path:
    """Write the page.

    Parameters
    ----------
    results : path
        A result file of any format.
    output : path, optional
        The page; by default `results` with the ending .html.
    catalog : path, optional
        The catalogue that the results come from, to draw the spectra that the model fits worst.
    size : int
        Rows that are read at a time.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    SpecVitError
        If the results or the catalogue cannot be read, do not belong together, or the page cannot be written.
    """
    results = Path(results)
    output = results.with_suffix(".html") if output is None else Path(output)
    catalog = None if catalog is None else Path(catalog)
    check_outputs([output], [results, catalog])
    with Result(results) as result:
        statistics = count(result, size)
        position = sky_columns(result.names)
        sky = map_sky(result, position, size) if position else None
        attributes = result.attributes
    worst = statistics.worst[:DRAWN] if catalog is not None else []
    fits = read_fits(catalog, worst, attributes, statistics.rows) if catalog is not None else []
    body = [
        words.summary(statistics, attributes),
        words.remarks(statistics),
    ]
    if statistics.valid:
        body += [
            _pair(figures.log_g_figure(statistics), figures.error_figure(statistics)),
        ]
        if np.isfinite(statistics.by_snr["log_g_err"].quantile(0.5)).any():
            body += [
                figures.limit_figure(statistics),
                _pair(figures.efficiency_figure(statistics), figures.snr_figure(statistics)),
            ]
    body += [figures.sky_figure(sky)] if sky is not None else []
    body += [words.worst_table(statistics.worst, len(fits))]
    body += [spectrum_card(row, fit) for row, fit in zip(worst, fits, strict=True)]
    body += [words.provenance_card(attributes, results.name)]
    folder = files("specvit_deploy") / "report_page"
    page = Template((folder / "page.html").read_text("utf-8")).substitute(
        style=(folder / "style.css").read_text("utf-8"),
        title=escape(words.title(attributes)),
        lead=escape(words.lead(statistics, attributes)),
        body="\n".join(body),
    )
    with whole_file(output) as temporary:
        temporary.write_text(page, "utf-8")
    return output


def _pair(first: str, second: str) -> str:
    return f'<div class="pair">{first}{second}</div>'

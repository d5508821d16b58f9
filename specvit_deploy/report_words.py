"""The words of a report: its header, the summary, the remarks, the worst fits and the provenance, as HTML."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html import escape
from typing import Any

from specvit_deploy.quality import FATAL, Quality
from specvit_deploy.report_statistics import LOG_G_EDGES, SNR_EDGES, Statistics, quantile_of_bins

MEANINGS = {
    "NO_DATA": "fewer than 256 good pixels: no result",
    "BAD_ERROR": "flux is there, its errors are unusable: no result",
    "PARTIAL_COVERAGE": "fewer than half of the pixels are good",
    "LOW_SNR": "S/N below that of training",
    "HIGH_SNR": "S/N above that of training",
    "LABEL_EDGE": "a label at the edge of its range: the truth may be outside",
    "POOR_FIT": "χ² beyond what training spectra show at this S/N",
    "OUT_OF_DISTRIBUTION": "unlike the spectra of training",
    "NOT_FLUX_CALIBRATED": "flux in counts",
    "RESAMPLED": "brought to the instrument's pixels",
    "VELOCITY_UNKNOWN": "no radial velocity was given",
    "UPSTREAM_FLAG": "the survey itself marks the spectrum as bad",
    "NEGATIVE_FLUX": "the median flux is not positive",
    "ENGINE_FALLBACK": "not computed by the engine that was asked for",
    "BROAD_LSF": "lines broader than the instrument's",
}
"""Quality bit -> what it says, in the words of a reader."""
NAMES = {
    "bundle_sha256": "SHA-256 of the bundle", "catalog": "catalogue", "catalog_identity": "state of the catalogue",
    "noise_level": "noise added, in errors", "noise_seed": "seed of that noise", "engine_description": "engine in full",
    "rows_per_second": "spectra a second", "creator": "written by", "velocity": "velocity taken out",
}  # fmt: skip
"""Attributes that go by other words here."""
FIRST = (
    "catalog", "catalog_identity", "layout", "rows", "command", "date", "bundle", "bundle_sha256", "scenario", "engine",
    "precision", "engine_description",
)  # fmt: skip
"""Attributes that come first, in this order."""


def title(attributes: dict[str, Any]) -> str:
    """Title of the page."""
    return f"Surface gravities of {attributes.get('catalog', 'a catalogue')}"


def lead(statistics: Statistics, attributes: dict[str, Any]) -> str:
    """The sentence under it."""
    model = f"{attributes.get('bundle', '')}, told {attributes.get('scenario', '')}"
    date = str(attributes.get("date", ""))[:10]
    spectra = "spectrum" if statistics.rows == 1 else "spectra"
    return f"{statistics.rows:,} {spectra}, {statistics.valid:,} with log g, by the model {model}, on {date}."


def summary(statistics: Statistics, attributes: dict[str, Any]) -> str:
    """The card with the median error and what it stands beside."""
    low, centre, high = (statistics.by_snr["log_g_err"].overall(share) for share in (0.16, 0.5, 0.84))
    ratio = statistics.by_snr["ratio"].overall(0.5)
    efficiency = statistics.by_snr["log_g_efficiency"].overall(0.5)
    if statistics.valid:
        number = (
            f'<p class="estimate"><span class="error">±</span>{centre:.2f}<span class="error">dex</span></p>'
            f'<p class="interval">16 to 84 %: {low:.2f} to {high:.2f} dex</p>'
            f'<p class="words">{_ratio_words(ratio)} Half of the spectra have an efficiency (limit with prior over '
            f"error) above {efficiency:.2f}.</p>"
        )
    else:
        number = '<p class="estimate">none</p><p class="words">No spectrum has a result; see the remarks.</p>'
    gravity = [quantile_of_bins(statistics.log_g, LOG_G_EDGES, share) for share in (0.16, 0.5, 0.84)]
    noise = [quantile_of_bins(statistics.snr, SNR_EDGES, share) for share in (0.16, 0.5, 0.84)]
    facts = [
        ("spectra", f"{statistics.rows:,}"),
        ("with log g", _share(statistics.valid, statistics.rows)),
        ("without a remark", _share(statistics.clean, statistics.rows)),
    ]
    if statistics.valid:
        facts += [
            ("log g, median", f"{gravity[1]:.2f} ({gravity[0]:.2f} to {gravity[2]:.2f})"),
            ("S/N per pixel, median", f"{noise[1]:.1f} ({noise[0]:.1f} to {noise[2]:.1f})"),
        ]
    if beyond := statistics.by_snr["log_g_crlb"].beyond:
        facts.append(("labels not identifiable: no bound", _share(beyond, statistics.rows)))
    if "rows_per_second" in attributes:
        facts.append(("spectra a second", f"{float(attributes['rows_per_second']):,.0f}"))
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return (
        '<section class="card answer" aria-label="Summary"><div>'
        f'<p class="quantity">median error <span>of log g</span></p>{number}</div><dl>{listed}</dl></section>'
    )


def remarks(statistics: Statistics) -> str:
    """The card that counts quality bits."""
    lines = [_remark("clean", "no remark", "quality 0", statistics.clean, statistics.rows)]
    for bit, count in statistics.bits.items():
        if count:
            grave = "grave" if bit & FATAL else "remark"
            lines.append(
                _remark(grave, str(bit.name), f"{MEANINGS[str(bit.name)]} (bit {bit.value})", count, statistics.rows)
            )
    absent = [str(bit.name) for bit, count in statistics.bits.items() if not count]
    note = f'<p class="small">On no spectrum: {escape(", ".join(absent))}.</p>' if absent else ""
    names = "".join(f'<th scope="col">{name}</th>' for name in ("remark", "spectra", "share"))
    head = f'<thead class="visually-hidden"><tr>{names}</tr></thead>'
    table = f'<table class="remarks">{head}<tbody>{"".join(lines)}</tbody></table>'
    return f'<section class="card"><h2>Remarks</h2>{table}{note}</section>'


def worst_table(worst: list[dict[str, Any]], drawn: int) -> str:
    """The card that lists the worst fits."""
    if not worst:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("spectrum", "χ²", "S/N", "log g", "remarks"))
    lines = []
    for row in worst:
        names = ", ".join(str(bit.name) for bit in Quality if int(row["quality"]) & int(bit)) or "none"
        cells = (
            str(row["id"]), f"{row['chi2_reduced']:.2f}", f"{row['snr_median']:.1f}",
            f"{row['log_g']:.2f} ± {row['log_g_err']:.2f}", names,
        )  # fmt: skip
        kinds = ["", "", "", "", ' class="none"' if names == "none" else ""]
        line = "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, cells, strict=True))
        lines.append(f"<tr>{line}</tr>")
    note = (
        f"The first {drawn} are drawn below."
        if drawn
        else "With --catalog the report draws the first of them with their fits."
    )
    return (
        '<section class="card"><h2>Worst fits</h2><div class="scroll"><table class="worst">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="small">{escape(note)}</p></section>'
    )


def provenance_card(attributes: dict[str, Any], file: str) -> str:
    """The card with all attributes of the file."""
    facts = {"file": file, **{name: attributes[name] for name in FIRST if name in attributes}, **attributes}
    facts.pop("run", None)  # says the rest once more, for machines
    if "catalog_identity" in facts:
        facts["catalog_identity"] = re.sub(r"\bat (\d{15,19})(?=,|$)", _as_date, str(facts["catalog_identity"]))
    lines = "".join(
        f'<tr><th scope="row">{escape(NAMES.get(name, name.replace("_", " ")))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f'<section class="card"><h2>Provenance</h2><table class="facts"><tbody>{lines}</tbody></table></section>'


def _as_date(found: re.Match[str]) -> str:
    """Nanoseconds since 1970 as a date."""
    return f"of {datetime.fromtimestamp(int(found[1]) / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _ratio_words(ratio: float) -> str:
    if ratio == float("inf") or ratio != ratio:
        return ""
    return f"The median spectrum's error is {ratio:.2f} times its Cramér–Rao bound."


def _remark(kind: str, name: str, meaning: str, count: int, rows: int) -> str:
    share = count / max(rows, 1)
    return (
        f'<tr class="{kind}"><th scope="row"><b>{escape(name)}</b><span>{escape(meaning)}</span></th>'
        f"<td>{count:,}</td><td>{_percent(share)}"
        f'<svg class="bar" aria-hidden="true" viewBox="0 0 100 6" preserveAspectRatio="none">'
        f'<rect class="track" width="100" height="6"/><rect class="full" width="{100 * share:.2f}" height="6"/></svg>'
        "</td></tr>"
    )


def _share(count: int, rows: int) -> str:
    return f"{count:,} ({_percent(count / max(rows, 1))})"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent in (0, 100) else "< 0.1 %" if percent < 0.1 else f"{min(percent, 99.9):.1f} %"

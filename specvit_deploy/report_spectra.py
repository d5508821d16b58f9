"""Spectra that the model fits worst, drawn with the emulator at their estimated labels."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.added_noise import add_noise
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats import Catalog
from specvit_deploy.labels import LABELS
from specvit_deploy.line_spread import LineSpread
from specvit_deploy.quality import Quality
from specvit_deploy.report_drawing import Plot, Scale, key, plot, svg, text

Array = NDArray[np.float64]

CA_II = (8500.35, 8544.44, 8664.52)
"""Vacuum wavelengths, Angstrom."""
STRIP = 64
"""Height of the strip of residuals."""


@dataclass(frozen=True)
class Fit:
    """A spectrum and its model on the instrument grid.

    Parameters
    ----------
    wave, flux, error, model : (n,) arrays
        Flux and error are NaN at pixels that carry no information; `model` is the emulator at the estimated labels
        with the amplitude and, in the survey scenario, the slope and velocity that fit best.
    """

    wave: Array
    flux: Array
    error: Array
    model: Array


def read_fits(catalog: Path, worst: list[dict[str, Any]], attributes: dict[str, Any], rows: int) -> list[Fit]:
    """Read rows of the catalogue that a result came from, and fit the emulator to them.

    Raises
    ------
    SpecVitError
        If the catalogue cannot be read, or is another one: other rows, other identifiers.
    """
    emulator = default_emulator()
    velocity, medium, lsf = (attributes.get(name) for name in ("velocity", "medium", "lsf"))
    spread = None if lsf is None else LineSpread.parse(lsf)
    fits = []
    with Catalog(catalog, emulator.grid, (), velocity, medium, spread) as source:
        if len(source) != rows:
            raise SpecVitError(
                f"{catalog} has {len(source)} spectra, the results {rows}; give the catalogue that they come from"
            )
        for row in worst:
            block = source.read(row["row"], row["row"] + 1)
            if _text(block.id[0]) != _text(row["id"]):
                raise SpecVitError(
                    f"row {row['row']} of {catalog} is {_text(block.id[0])}, in the results {_text(row['id'])}; "
                    "give the catalogue that they come from"
                )
            if float(attributes.get("noise_level", 0)) > 0:
                block = add_noise(block, float(attributes["noise_level"]), int(attributes["noise_seed"]), row["row"])
            flux, error = block.flux[0].astype(np.float64), block.error[0].astype(np.float64)
            bad = ~(np.isfinite(flux) & np.isfinite(error) & (error > 0))
            flux[bad] = error[bad] = np.nan
            labels = np.array([[float(row[name]) for name in LABELS]])
            template, shifted = emulator.flux(labels)[0], emulator.dflux_dv(labels)[0]
            terms = [template]
            if attributes.get("scenario") != "study":
                slope = np.linspace(-1.0, 1.0, len(template))
                terms += [slope * template, shifted]
            fits.append(Fit(emulator.grid.wave, flux, error, best_fit(flux, error, np.array(terms))))
    return fits


def best_fit(flux: Array, error: Array, terms: Array) -> Array:
    """The combination of `terms` (k, n) that fits flux best, weighted by 1 / error^2, shape (n,)."""
    good = np.isfinite(flux)
    weighted = terms[:, good] / error[good]
    solution, *_ = np.linalg.lstsq(weighted.T, flux[good] / error[good], rcond=None)
    return np.asarray(solution @ terms)


def spectrum_card(row: dict[str, Any], fit: Fit) -> str:
    """A card with one spectrum, its fit and the residuals."""
    drawings = _draw(fit, 1000, "wide") + _draw(fit, 350, "narrow")
    keys = [key("flux", "flux, averaged"), key("model", "emulator at the estimate")]
    about = (
        f"χ² {row['chi2_reduced']:.2f} · S/N {row['snr_median']:.1f} · log g {row['log_g']:.2f} ± "
        f"{row['log_g_err']:.2f} · T_eff {row['T_eff']:.0f} K · [M/H] {row['M_H']:.2f}"
    )
    return (
        f'<figure class="card"><h3>{escape(_text(row["id"]))}</h3>'
        f'<p class="small">{escape(about.replace("-", "−"))}{escape(_remarks(row))}</p>{drawings}'
        f"<figcaption>{''.join(keys)}</figcaption></figure>"
    )


def _draw(fit: Fit, width: float, kind: str) -> str:
    height = 380 if kind == "wide" else 340
    size = max(1, round(1.8 * len(fit.wave) / (width - 54)))
    wave, flux, error, model = (_binned(fit, size, values) for values in (fit.wave, fit.flux, None, fit.model))
    residual = (flux - model) / error
    factor, name = _unit(np.nanmedian(np.abs(flux)))
    flux, model = flux / factor, model / factor
    seen = np.concatenate([flux, model])
    low, high = np.nanquantile(seen, [0.002, 0.998])
    low, high = min(low, np.nanmin(model)), max(high, np.nanmax(model))
    margin = 0.06 * (high - low) or 1.0
    strip = height - 46 - STRIP
    span = (float(fit.wave[0]), float(fit.wave[-1]))
    frame = plot(width, height, span, (low - margin, high + margin))
    upper = Plot(width, strip, frame.x, Scale(low - margin, high + margin, strip - 18, 30))
    limit = float(np.clip(np.nanquantile(np.abs(residual), 0.99) * 1.15, 4.0, 1e3))
    lower = Plot(width, height, frame.x, Scale(-limit, limit, height - 46, strip))
    parts = [_axes(upper, lower, name), upper.line(wave, np.clip(flux, low - margin, high + margin), "flux")]
    parts += [upper.line(wave, model, "model"), lower.line(wave, np.clip(residual, -limit, limit), "strip")]
    lines = frame.x(CA_II)
    parts.append(
        f'<path class="triplet" d="M{lines[0]:.1f} 20H{lines[2]:.1f}{"".join(f"M{x:.1f} 20v8" for x in lines)}"/>'
    )
    parts.append(text(float(lines[0] + lines[2]) / 2, 13, "Ca II", "triplet-name", "middle"))
    return svg(width, height, "".join(parts), kind, "Spectrum with the emulator's fit and the residuals")


def _axes(upper: Plot, lower: Plot, name: str) -> str:
    left, right, bottom = lower.x.start, lower.x.end, lower.y.start
    out = [f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>']
    for value in lower.x.ticks(int(np.clip((right - left) / 90, 2, 9))):
        at = float(lower.x(value))
        out.append(
            f'<path class="axis" d="M{at:.1f} {bottom:.1f}v5"/>' + text(at, bottom + 19, f"{value:g}", anchor="middle")
        )
    out.append(text(left, lower.y.end - 2, "residual in its σ"))
    for value in upper.y.ticks(4):
        at = float(upper.y(value))
        out.append(f'<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
        out.append(text(left - 8, at + 4, f"{value:g}", anchor="end"))
    most = lower.y.high
    mark = max(s * 10.0**k for k in range(4) for s in (1, 2, 5) if s * 10.0**k <= 0.9 * most)
    for value in (-mark, 0.0, mark):
        at = float(lower.y(value))
        out.append(f'<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
        out.append(text(left - 8, at + 4, f"{value:g}σ" if value else "0", anchor="end"))
    out.append(text(right, bottom + 38, "vacuum wavelength (Å)", anchor="end") + text(0, 13, name))
    return "".join(out)


def _binned(fit: Fit, size: int, values: Array | None) -> Array:
    """Means of `size` pixels weighted by 1 / error^2, shape (n / size,); the errors of those means for None."""
    n = len(fit.wave) // size * size
    weight = np.nan_to_num(fit.error[:n] ** -2).reshape(-1, size)
    total = weight.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if values is None:
            return np.asarray(np.where(total > 0, total**-0.5, np.nan))
        if values is fit.wave:
            return np.asarray(values[:n].reshape(-1, size).mean(axis=1))
        mean = (weight * np.nan_to_num(values[:n]).reshape(-1, size)).sum(axis=1) / total
    return np.asarray(np.where(total > 0, mean, np.nan))


def _unit(size: float) -> tuple[float, str]:
    """Power of ten to take out of the flux, and the name of its axis."""
    power = int(np.floor(np.log10(size))) if size > 0 else 0
    if -2 <= power <= 3:
        return 1.0, "flux"
    digits = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(c)] if c.isdigit() else "⁻" for c in str(power))
    return 10.0**power, f"flux (10{digits})"


def _remarks(row: dict[str, Any]) -> str:
    names = [str(bit.name) for bit in Quality if int(row["quality"]) & int(bit)]
    return f" · {', '.join(names)}" if names else ""


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

"""Ceilings over a set of spectra: medians, pooled values and calibration, by S/N, metallicity and type."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy import __version__
from specvit_deploy.atomic import whole_file
from specvit_deploy.ceiling import Columns, Job
from specvit_deploy.emulator import Array
from specvit_deploy.fisher import Nuisances
from specvit_deploy.labels import LABEL_BOX, LABELS, LOG_G
from specvit_deploy.metrics import M_H_EDGES, SNR_EDGES, TYPES, with_intervals
from specvit_deploy.scenario import SURVEY, get_scenario

LABEL_VARIANCE = float(LABEL_BOX.sd[LOG_G] ** 2)
"""Variance of log g over the label box, dex^2."""
SMALLEST = 50
"""Groups of fewer stars are left out."""


def summarise(columns: Columns, variance: float = LABEL_VARIANCE) -> dict[str, Any]:
    """Ceilings of a set, overall, by S/N, by [M/H] and by type; groups of fewer than 50 stars are left out.

    Parameters
    ----------
    columns : dict
        Of `ceiling.measure`.
    variance : float
        Of log g under the prior, dex^2.
    """
    truth, snr = columns["truth"], columns["snr_median"]
    m_h = truth[:, LABELS.index("M_H")]
    log_g = truth[:, LOG_G]
    everything = np.ones(len(truth), bool)
    kinds = [(low, high) for _, low, high in TYPES]
    return {
        "overall": _group(columns, everything, variance),
        "by_snr": _groups(columns, variance, snr, list(pairwise(SNR_EDGES))),
        "by_M_H": _groups(columns, variance, m_h, list(pairwise(M_H_EDGES))),
        "by_type": _groups(columns, variance, log_g, kinds, [name for name, *_ in TYPES]),
    }


def _groups(
    columns: Columns,
    variance: float,
    values: Array,
    ranges: Sequence[tuple[float, float]],
    names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    out = []
    for number, (low, high) in enumerate(ranges):
        rows = (values >= low) & (values < high)
        if rows.sum() >= SMALLEST:
            name = {"name": names[number]} if names else {}
            edges = [v if np.isfinite(v) else None for v in (low, high)]
            out.append({**name, "range": edges, **_group(columns, rows, variance)})
    return out


def _group(columns: Columns, rows: NDArray[np.bool_], variance: float) -> dict[str, Any]:
    sigma = {
        name.removeprefix("crlb_") if name != "crlb" else "scenario": _sigma(column[rows], variance)
        for name, column in columns.items()
        if name.startswith("crlb") and name != "crlb_prior"
    }
    snr = columns["snr_median"][rows]
    out: dict[str, Any] = {
        "n": int(rows.sum()),
        "snr_median": float(np.nanmedian(snr)) if np.isfinite(snr).any() else None,
        "crlb": sigma,
        "crlb_prior": {"median": float(np.median(columns["crlb_prior"][rows])),
                       "rms": float(np.sqrt((columns["crlb_prior"][rows] ** 2).mean()))},
        "schur_decay": {name: float(np.median(columns[f"decay_{name}"][rows])) for name in ("3d", "5d")
                        if f"decay_{name}" in columns},
    }  # fmt: skip
    if "mean" in columns:
        out["posterior"] = _posterior({name: column[rows] for name, column in columns.items()}, variance)
    return out


def _sigma(sigma: Array, variance: float) -> dict[str, Any]:
    """Population of Cramer-Rao bounds: sigma in dex, and the R2 that it would allow an unbiased estimator."""
    finite = np.isfinite(sigma)
    r2 = np.clip(1.0 - np.where(finite, sigma, np.inf) ** 2 / variance, 0.0, 1.0)
    with np.errstate(invalid="ignore"):
        p10, median, p90 = np.percentile(sigma, [10, 50, 90], method="lower")
    return {
        "sigma_p10": _plain(p10), "sigma_median": _plain(median), "sigma_p90": _plain(p90),
        "sigma_rms_of_finite": _plain(np.sqrt((sigma[finite] ** 2).mean())) if finite.any() else None,
        "infinite_share": float(1.0 - finite.mean()),
        "r2_max_p10": float(np.percentile(r2, 10)), "r2_max_median": float(np.median(r2)),
        "r2_max_p90": float(np.percentile(r2, 90)), "r2_max_mean": float(r2.mean()),
        "r2_pooled_of_finite": _plain(1.0 - (sigma[finite] ** 2).mean() / variance) if finite.any() else None,
    }  # fmt: skip


def _posterior(columns: Columns, prior_variance: float) -> dict[str, Any]:
    """MMSE and calibration of the posterior of log g."""
    mean, sd, quantiles = columns["mean"][:, LOG_G], columns["sd"][:, LOG_G], columns["quantiles"][:, LOG_G]
    truth = columns["truth"][:, LOG_G]
    good = ~np.isnan(mean)
    if not good.any():
        return {"n": 0}
    mean, sd, quantiles, truth = mean[good], sd[good], quantiles[good], truth[good]
    known = not np.isnan(truth).any()
    variance = truth.var() if known and len(truth) > 1 else prior_variance
    rng = np.random.default_rng(0)
    means = [(sd**2)[rng.integers(0, len(sd), len(sd))].mean() for _ in range(500)]
    out: dict[str, Any] = {
        "n": len(mean),
        "r2_from_variance": [float(1 - (sd**2).mean() / variance),
                             *(float(1 - q / variance) for q in np.percentile(means, [84, 16]))],
        "rmse_from_variance": float(np.sqrt((sd**2).mean())),
        "sd_median": float(np.median(sd)),
        "ess_p1": float(np.percentile(columns["ess"][good], 1)),
        "ess_below_200_share": float((columns["ess"][good] < 200).mean()),
    }  # fmt: skip
    if known and len(truth) > 1:
        inside = [(truth >= quantiles[:, a]) & (truth <= quantiles[:, b]) for a, b in ((1, 3), (0, 4))]
        pit = np.sort(columns["pit"][good, LOG_G])
        place = (np.arange(len(pit)) + 0.5) / len(pit)
        out |= {
            **with_intervals(truth, mean),
            "coverage_68": float(inside[0].mean()),
            "coverage_95": float(inside[1].mean()),
            "pit_mean": float(pit.mean()),
            "pit_largest_deviation": float(np.abs(pit - place).max()),
            "mse_over_variance": float(((mean - truth) ** 2).mean() / (sd**2).mean()),
            "by_true_log_g": _by_truth(truth, mean, sd),
        }
    return out


def _by_truth(truth: Array, mean: Array, sd: Array) -> list[dict[str, float]]:
    """Bias and spread of the posterior mean at given truth: not zero, and rightly so."""
    out = []
    for low, high in pairwise(np.arange(1.0, 5.01, 0.5)):
        rows = (truth >= low) & (truth < high)
        if rows.sum() >= SMALLEST:
            error = (mean - truth)[rows]
            out.append(
                {"low": float(low), "high": float(high), "n": int(rows.sum()), "bias": float(error.mean()),
                 "bias_error": float(error.std() / np.sqrt(rows.sum())), "rmse": float(np.sqrt((error**2).mean())),
                 "sd_rms": float(np.sqrt((sd[rows] ** 2).mean()))}
            )  # fmt: skip
    return out


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def describe(job: Job, name: str) -> dict[str, Any]:
    """Head of a set's report: what was measured, and under which assumptions."""
    scenario = get_scenario(job.scenario)
    return {
        "set": name,
        "recipe": {**job.recipe.describe(), "hash": job.recipe.hash} if job.recipe else None,
        "scenario": scenario.name,
        "nuisances": Nuisances.of(scenario).describe(),
        "nuisances_of_5d_all": Nuisances.of(SURVEY).describe(),
        "prior": "uniform in the label box"
        if job.box == LABEL_BOX
        else f"uniform in the part of the label box that the emulator covers, {job.box.low} to {job.box.high}",
        "labels": "lattice nodes" if job.labels is not None else "true, or the posterior mean where unknown",
        "derivatives": "differences between lattice nodes" if job.grid else "exact, of the emulator",
        "label_variance": float(job.box.sd[LOG_G] ** 2),
        "snr_convention": "median over good pixels of flux/error",
        "version": __version__,
    }


def write_csv(path: Path, reports: Sequence[dict[str, Any]]) -> None:
    """One line per set and group, nested figures as `a.b` columns; whole or not at all."""
    lines = [
        {"set": report["set"], "scenario": report["scenario"], "group": group, **_flat(cell)}
        for report in reports
        for group, cells in report["ceilings"].items()
        for cell in (cells if isinstance(cells, list) else [cells])
    ]
    names = list(dict.fromkeys(name for line in lines for name in line))
    with whole_file(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(lines)


def _flat(cell: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in cell.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and not isinstance(value[0], dict):
            out |= {f"{prefix}{name}.{k}": v for k, v in enumerate(value)}
        elif not isinstance(value, list):
            out[prefix + name] = value
    return out


def write_stars(path: Path, columns: Columns, attributes: dict[str, Any]) -> None:
    """Columns of every star to HDF5, whole or not at all: bounds, posterior and, for simulated sets, the truth."""
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["label_names"] = list(LABELS)
        file.attrs.update({k: v for k, v in attributes.items() if isinstance(v, str | int | float)})
        file.attrs["recipe"] = json.dumps(attributes["recipe"])
        for name, column in columns.items():
            file.create_dataset(name, data=column.astype(np.float32) if column.dtype == np.float64 else column)


def is_stars(path: Path) -> bool:
    """Whether a file was written by `write_stars`."""
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return "label_names" in file.attrs and "set" in file.attrs

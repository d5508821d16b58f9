"""What a report counts of a result file: histograms and quantiles that grow block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.labels import LABELS
from specvit_deploy.quality import FATAL, Quality
from specvit_deploy.result_formats import Result

Array = NDArray[np.float64]

SNR_EDGES: Array = 10.0 ** np.arange(-0.5, 3.001, 0.125)
"""Bins of median S/N per pixel."""
VALUE_EDGES: Array = 10.0 ** np.arange(-3.0, 1.5001, 0.005)
"""Bins of errors (dex), of limits and of their ratios: quantiles are good to half of 1.2 %."""
LOG_G_EDGES: Array = np.linspace(1.0, 5.0, 41)
"""Bins of log g; the model's estimates lie inside."""
WORST = 10
"""Worst fits that are kept."""
LEAST_ROWS = 5
"""A bin of S/N with fewer rows has no quantiles."""
QUANTITIES = ("log_g_err", "log_g_crlb", "log_g_crlb_prior", "log_g_efficiency", "ratio")
COLUMNS = (
    "id", *LABELS, "log_g_err", "log_g_crlb", "log_g_crlb_prior", "log_g_efficiency", "snr_median", "chi2_reduced",
    "quality",
)  # fmt: skip


class QuantilesBySnr:
    """Counts of a positive quantity in bins of S/N, fine enough to give quantiles.

    Values beyond the last edge, infinite ones among them, count as larger than all others.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((len(SNR_EDGES) + 1, len(VALUE_EDGES) + 1), np.int64)  # outer ones: outside of all bins

    def add(self, snr: NDArray[Any], value: NDArray[Any]) -> None:
        """Count rows (N,); those with NaN are left out, those beyond the bins of S/N count in none of them."""
        good = ~(np.isnan(snr) | np.isnan(value))
        i = np.searchsorted(SNR_EDGES, snr[good], "right")
        j = np.searchsorted(VALUE_EDGES, value[good], "right")
        flat = np.bincount(i * self.counts.shape[1] + j, minlength=self.counts.size)
        self.counts += flat.reshape(self.counts.shape)

    def quantile(self, share: float) -> Array:
        """Quantile in each bin of S/N, NaN where it has fewer than `LEAST_ROWS` rows or the quantile is infinite."""
        return np.array([_quantile(row, share, LEAST_ROWS) for row in self.counts[1:-1]])

    def overall(self, share: float) -> float:
        """Quantile over all rows, NaN without any; infinite where it lies beyond the last edge."""
        counts = self.counts.sum(axis=0)
        found = _quantile(counts, share, 1)
        return float("inf") if np.isnan(found) and counts.sum() else found

    @property
    def beyond(self) -> int:
        """Rows beyond the last edge."""
        return int(self.counts[:, -1].sum())


def _quantile(counts: NDArray[np.int64], share: float, least: int) -> float:
    total = counts.sum()
    if total < least:
        return float("nan")
    below = np.cumsum(counts)
    bin = int(np.searchsorted(below, max(share * total, 0.5)))
    if bin >= len(VALUE_EDGES):
        return float("nan")
    if bin == 0:
        return float(VALUE_EDGES[0])
    inside = (share * total - (below[bin] - counts[bin])) / counts[bin]
    low, high = np.log(VALUE_EDGES[bin - 1 : bin + 1])
    return float(np.exp(low + np.clip(inside, 0, 1) * (high - low)))


@dataclass
class Statistics:
    """What was counted.

    Parameters
    ----------
    rows, valid, clean : int
        All rows, those with log g, those without a remark.
    bits : dict
        Rows with each quality bit.
    log_g, snr : array of int
        Rows in bins of `LOG_G_EDGES` and `SNR_EDGES`, of the valid ones.
    by_snr : dict
        `QuantilesBySnr` of each of `QUANTITIES`; "ratio" is log_g_err / log_g_crlb.
    worst : list of dict
        The rows with the largest reduced chi2, largest first, with their number `row`.
    """

    rows: int = 0
    valid: int = 0
    clean: int = 0
    bits: dict[Quality, int] = field(default_factory=lambda: dict.fromkeys(Quality, 0))
    log_g: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(LOG_G_EDGES) - 1, np.int64))
    snr: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SNR_EDGES) - 1, np.int64))
    by_snr: dict[str, QuantilesBySnr] = field(default_factory=lambda: {name: QuantilesBySnr() for name in QUANTITIES})
    worst: list[dict[str, Any]] = field(default_factory=list)

    def add(self, block: dict[str, NDArray[Any]]) -> None:
        """Count a block of rows with `COLUMNS`."""
        quality, snr = block["quality"], block["snr_median"]
        valid = (quality & int(FATAL)) == 0
        first, self.rows = self.rows, self.rows + len(quality)
        self.valid += int(valid.sum())
        self.clean += int((quality == 0).sum())
        for bit in Quality:
            self.bits[bit] += int(((quality & int(bit)) != 0).sum())
        self.log_g += np.histogram(block["log_g"][valid], LOG_G_EDGES)[0]
        self.snr += np.histogram(snr[valid], SNR_EDGES)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = block["log_g_err"] / block["log_g_crlb"]
        for name in QUANTITIES:
            value = ratio if name == "ratio" else block[name]
            self.by_snr[name].add(snr[valid], value[valid])
        chi2 = np.where(valid & np.isfinite(block["chi2_reduced"]), block["chi2_reduced"], -np.inf)
        for i in np.argsort(-chi2, kind="stable")[:WORST]:
            if chi2[i] > -np.inf:
                self.worst.append({"row": first + int(i), **{name: block[name][i] for name in COLUMNS}})
        self.worst = sorted(self.worst, key=lambda row: (-row["chi2_reduced"], row["row"]))[:WORST]


def count(result: Result, size: int) -> Statistics:
    """Statistics of a result file, read in blocks of `size` rows."""
    statistics = Statistics()
    for block in result.blocks(COLUMNS, size):
        statistics.add(block)
    return statistics


def middle(edges: Array) -> Array:
    """Geometric centres of bins."""
    return np.asarray(np.sqrt(edges[1:] * edges[:-1]))


def quantile_of_bins(counts: NDArray[np.int64], edges: Array, share: float) -> float:
    """Quantile of a histogram, linear inside its bins; NaN of an empty one."""
    if not counts.sum():
        return float("nan")
    return float(np.interp(share, np.concatenate([[0.0], np.cumsum(counts) / counts.sum()]), edges))


def sky_columns(names: Sequence[str]) -> tuple[str, str] | None:
    """Names of right ascension and declination among columns, or None."""
    lower = {name.lower(): name for name in names}
    for ra in ("ra", "target_ra", "raj2000", "ra_deg"):
        dec = {"raj2000": "dej2000", "target_ra": "target_dec"}.get(ra, ra.replace("ra", "dec"))
        if ra in lower and dec in lower:
            return lower[ra], lower[dec]
    return None

"""Rates, ratios and scores of peers, with bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_benchmarks.peer_contestants import Columns
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.metrics import paired_r2_difference, resamplings, with_intervals

Array = NDArray[np.float64]


def rates(rows: int, seconds: Array, default_rows: int, default_seconds: Array) -> dict[str, list[float]]:
    """Spectra per CPU second, and how many times that the default does, over all rounds.

    Parameters
    ----------
    rows, default_rows : int
        Spectra of one round.
    seconds, default_seconds : (K,) arrays
        Processor time in the same rounds: a resampling takes both of a round.

    Returns
    -------
    dict
        [value, 16th, 84th percentile over resampled rounds] each.
    """
    whole = np.arange(len(seconds))
    sums = np.array([(seconds[k].sum(), default_seconds[k].sum()) for k in (whole, *resamplings(len(seconds), 0))])
    rate = rows * len(seconds) / sums[:, 0]
    ratio = default_rows * len(seconds) / sums[:, 1] / rate
    return {
        name: [float(values[0]), *(float(q) for q in np.percentile(values[1:], [16, 84]))]
        for name, values in (("spectra_per_cpu_second", rate), ("ratio_default_over_peer", ratio))
    }


def accuracy(truth: Array, found: Columns, default: Array) -> dict[str, Any]:
    """Scores of one peer on some spectra.

    Parameters
    ----------
    truth, default : (N,) arrays
        True log g, and the default's on the same spectra.
    found : dict
        The peer's columns (N,). Where it gave none, the middle of the label box is scored, and not covered.
    """
    failed = np.isnan(found["log_g"])
    guess = np.where(failed, LABEL_BOX.center[LOG_G], found["log_g"])
    scores = with_intervals(truth, guess)
    covered = None
    if "log_g_lo" in found:
        covered = float(((truth >= found["log_g_lo"]) & (truth <= found["log_g_hi"])).mean())
    return {
        "n": len(truth),
        "r2": scores["r2"],
        "rmse": scores["rmse"][0],
        "rmse_interval": scores["rmse"][1:],
        "bias": scores["bias"],
        "coverage_68": covered,
        "failed": int(failed.sum()),
        "r2_minus_default": paired_r2_difference(truth, guess, default),
    }

"""How near the log g of two engines is, and how near to the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G
from specvit_deploy.metrics import with_intervals

Outputs = Mapping[str, NDArray[Any]]


def difference(found: Outputs, reference: Outputs) -> dict[str, float]:
    """Difference of log g to a reference, in dex and in its stated error, over rows that have a log g.

    Raises
    ------
    SpecVitError
        If one has a log g where the other has none.
    """
    ours, theirs = (outputs["labels"][:, LOG_G].astype(np.float64) for outputs in (found, reference))
    if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        raise SpecVitError("an engine gives no log g where another does; export the bundle again")
    good = ~np.isnan(theirs)
    dex = np.abs(ours - theirs)[good]
    sigma = dex / reference["log_g_err"][good]
    return {
        f"{figure}_{unit}": float(value)
        for unit, values in (("dex", dex), ("sigma", sigma))
        for figure, value in (("rms", np.sqrt((values**2).mean())), ("p999", np.percentile(values, 99.9)))
    }


def accuracy(found: Outputs, truth: NDArray[np.float64]) -> dict[str, Any]:
    """R2 with its bootstrap interval and share of truths (N,) inside the 68 % interval, over rows that have a log g."""
    log_g = found["labels"][:, LOG_G].astype(np.float64)
    good = ~np.isnan(log_g)
    inside = (found["log_g_lo"] <= truth) & (truth <= found["log_g_hi"])
    return {"r2": with_intervals(truth[good], log_g[good])["r2"], "coverage_68": float(inside[good].mean())}

"""Ridge and trees behind the inputs and outputs of the estimator; what they do not know is NaN."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from specvit_training.baselines import preparation
from specvit_training.estimator import Calibration, Estimate
from torch import Tensor, nn

from specvit_deploy.calibration import Calibration as Fitted
from specvit_deploy.calibration import fit_calibration
from specvit_deploy.labels import LABEL_BOX, LABELS, LOG_G
from specvit_deploy.quality import Domain, median_snr
from specvit_deploy.recipe import Recipe
from specvit_deploy.scenario import Scenario, get_scenario
from specvit_export.lightgbm_graph import Trees

_LOW, _HIGH = LABEL_BOX.low[LOG_G], LABEL_BOX.high[LOG_G]
RANGE = (2 * _LOW - _HIGH, 2 * _HIGH - _LOW)
"""Log g from one width of the label box below it to one above: a linear regression knows no box, and a spectrum full of
spikes no bounds. What leaves the box is LABEL_EDGE."""
NO_LIMIT = float(np.finfo(np.float32).max)
"""Limit of the domain for what the model does not compute."""


class Ridge(nn.Module):
    """Linear regression (B, n) -> (B,)."""

    weight: Tensor
    center: Tensor
    intercept: Tensor

    def __init__(self, weight: Tensor, center: Tensor, intercept: Tensor) -> None:
        super().__init__()
        for name, value in {"weight": weight, "center": center, "intercept": intercept}.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Log g from features."""
        out: Tensor = ((x - self.center) @ self.weight[:, None] + self.intercept)[:, 0]
        return out


class Regressed(NamedTuple):
    """Log g inside `RANGE`, log10 S/N and number of good pixels, each (B,)."""

    log_g: Tensor
    log_snr: Tensor
    n_good: Tensor


class NoLimits(nn.Module):
    """Stands where an estimator has its limits: NaN for each."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__()
        self.scenario = scenario

    def forward(self, labels: Tensor, flux: Tensor, inverse_variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CRLB, CRLB with label prior and chi2 (B,), none of them known."""
        nothing = torch.full_like(labels[:, 0], torch.nan)
        return nothing, nothing, nothing


class BaselineEstimator(nn.Module):
    """Preparation, regression, calibration: flux and error (B, 4096) to `Estimate`.

    For trees the preparation runs in double precision and is rounded once: a tree is a step, and a feature that two
    engines round differently next to a threshold would move a star by a whole leaf.

    Parameters
    ----------
    regression : Ridge or Trees
        Takes flux over amplitude minus the mean template, single precision.
    scenario : str
        That of the calibration.
    """

    sigma: Tensor

    def __init__(self, regression: Ridge | Trees, scenario: str) -> None:
        super().__init__()
        self.preparation = preparation(scenario)
        if isinstance(regression, Trees):
            self.preparation.double()
        self.regression = regression
        self.limits = NoLimits(get_scenario(scenario))
        self.calibration = Calibration()
        self.register_buffer("sigma", torch.ones(()))

    def forward(self, flux: Tensor, error: Tensor) -> Estimate:
        """Estimate log g with its error; a row without good pixels gives NaN."""
        log_g, log_snr, n_good = self.regress(flux, error)
        half = self.sigma * self.calibration(log_snr, log_g)
        empty, nothing = n_good < 1, torch.full_like(log_g, torch.nan)

        def known(x: Tensor) -> Tensor:
            return torch.where(empty, nothing, x)

        def alone(x: Tensor) -> Tensor:
            return torch.stack([x if i == LOG_G else nothing for i in range(len(LABELS))], 1)

        return Estimate(
            labels=alone(known(log_g)),
            label_sigma=alone(known(self.sigma.expand_as(log_g))),
            log_g_err=known(half[:, 0]),
            log_g_lo=known(log_g - half[:, 1]),
            log_g_hi=known(log_g + half[:, 2]),
            log_g_crlb=nothing,
            log_g_crlb_prior=nothing,
            chi2_reduced=nothing,
            latent_distance=nothing,
            n_good=n_good.to(torch.int32),
        )

    def regress(self, flux: Tensor, error: Tensor) -> Regressed:
        """Log g and what its calibration needs."""
        dtype = self.preparation.mean.dtype
        prepared = self.preparation(flux.to(dtype), error.to(dtype))
        x = prepared.network.residual.to(torch.float32)
        log_g = self.regression(x).clamp(*RANGE)
        return Regressed(log_g, prepared.network.log_snr[:, 0].to(x.dtype), prepared.n_good[:, 0].to(x.dtype))


@torch.no_grad()
def calibrate_baseline(estimator: BaselineEstimator, recipe: Recipe) -> tuple[Domain, Fitted]:
    """Fill the estimator's constant spread, the rms of its residuals, and its calibration, as for every bundle.

    Returns
    -------
    Domain, Calibration
        What the manifest says of them; chi2 and latent distance have no limit.
    """
    columns, snr = [], []
    for labels, flux, error in recipe.blocks():
        found = estimator.regress(torch.from_numpy(flux), torch.from_numpy(error))
        columns.append((found.log_g, found.log_snr, torch.from_numpy(labels[:, LOG_G])))
        snr.append(median_snr(flux, error))
    log_g, log_snr, truth = (torch.cat(column).numpy() for column in zip(*columns, strict=True))
    residual = truth.astype(np.float64) - log_g
    estimator.sigma.fill_(float(np.sqrt((residual**2).mean())))
    calibration = fit_calibration(log_snr, log_g, residual / float(estimator.sigma))
    estimator.calibration.take(calibration)
    low, high = np.percentile(np.concatenate(snr), [0.1, 99.9])
    return Domain((float(low), float(high)), (1.0,), (NO_LIMIT,), NO_LIMIT), calibration

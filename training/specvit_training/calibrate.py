"""Calibration and training domain of an estimator, fitted on simulated spectra that training never saw."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specvit_deploy.labels import LOG_G
from specvit_deploy.quality import Domain, median_snr
from specvit_deploy.recipe import Recipe
from specvit_training.estimator import LATENT, LOG_G_NODES, SNR_NODES, Estimator, hat_weights

QUANTILES = (0.15865525, 0.84134475)
PSEUDO_COUNT = 100.0
"""Weight of the S/N row's own factors in a cell, in spectra: sparse cells fall back on them."""


def calibration_recipe(scenario: str, n: int = 60_000) -> Recipe:
    """Spectra behind a bundle's calibration: magnitude 18 to 23, apart from every training and test seed."""
    return Recipe(scenario, (18.0, 23.0), n, seed=7_001)


@torch.no_grad()
def calibrate(estimator: Estimator, recipe: Recipe) -> Domain:
    """Fill the estimator's calibration table and latent whitening; return its training domain.

    For every node of (S/N, predicted log g) the factors are weighted quantiles, over spectra near the node, of
    z = (truth - prediction) / spread: 68.27 % of |z| for `log_g_err`, 15.87 % and 84.13 % of z for the interval.
    """
    estimator.eval()
    columns: list[tuple[Tensor, ...]] = []
    snr = []
    for labels, flux, error in recipe.blocks():
        prepared = estimator.preparation(torch.from_numpy(flux), torch.from_numpy(error))
        features = estimator.vit.features(prepared.network)
        out = estimator.conclude(prepared, features)
        truth = torch.from_numpy(labels[:, LOG_G])
        z = (truth - out.labels[:, LOG_G]) / out.label_sigma[:, LOG_G]
        columns.append((prepared.network.log_snr[:, 0], out.labels[:, LOG_G], z, out.chi2_reduced, features))
        snr.append(median_snr(flux, error))
    log_snr, log_g, z, chi2, features = (torch.cat(column) for column in zip(*columns, strict=True))
    estimator.calibration.table.copy_(calibration_table(log_snr, log_g, z))
    center = features.double().mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((features.double() - center).T))
    estimator.latent_mean.copy_(center)
    estimator.latent_whitening.copy_(vectors[:, -LATENT:] / values[-LATENT:].sqrt())
    distance = ((features - estimator.latent_mean) @ estimator.latent_whitening).square().mean(1).sqrt()
    all_snr = np.concatenate(snr)
    low, high = np.percentile(all_snr, [0.1, 99.9])
    octiles = np.quantile(all_snr, np.linspace(0, 1, 9))
    cells = [(all_snr >= a) & (all_snr <= b) for a, b in itertools.pairwise(octiles)]
    return Domain(
        snr=(float(low), float(high)),
        chi2_snr=tuple(float(np.median(all_snr[cell])) for cell in cells),
        chi2_reduced=tuple(float(np.quantile(chi2.numpy()[cell], 0.999)) for cell in cells),
        latent_distance=float(np.quantile(distance.numpy(), 0.999)),
    )


def calibration_table(log_snr: Tensor, log_g: Tensor, z: Tensor) -> Tensor:
    """Factors (3, S, G) for err, lower and upper half-width; inputs (N,)."""
    a = hat_weights(log_snr, torch.tensor(SNR_NODES)).double().numpy()
    b = hat_weights(log_g, torch.tensor(LOG_G_NODES)).double().numpy()
    values = z.double().numpy()
    table = np.ones((3, len(SNR_NODES), len(LOG_G_NODES)))
    for i in range(len(SNR_NODES)):
        row = a[:, i] if a[:, i].sum() > PSEUDO_COUNT else np.ones(len(values))
        share = min(1.0, PSEUDO_COUNT / row.sum())
        for j in range(len(LOG_G_NODES)):
            weight = a[:, i] * b[:, j] + share * row
            table[0, i, j] = weighted_quantile(np.abs(values), weight, QUANTILES[1] - QUANTILES[0])
            table[1, i, j] = -weighted_quantile(values, weight, QUANTILES[0])
            table[2, i, j] = weighted_quantile(values, weight, QUANTILES[1])
    return torch.as_tensor(table.clip(0.05, 20.0), dtype=torch.float32)


def weighted_quantile(values: NDArray[np.float64], weight: NDArray[np.float64], q: float) -> float:
    """Smallest value whose cumulative weight reaches `q` of the total."""
    order = np.argsort(values)
    cumulative = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(cumulative, q * cumulative[-1])])

"""Calibration and training domain of an estimator, fitted on simulated spectra that training never saw."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from specvit_deploy.calibration import SPECTRA, Calibration, fit_calibration
from specvit_deploy.labels import LOG_G
from specvit_deploy.quality import Domain, median_snr
from specvit_deploy.recipe import Recipe
from specvit_training.estimator import LATENT, Estimator
from specvit_training.outlier_calibration import fit_limits


def calibration_recipe(scenario: str, n: int = SPECTRA) -> Recipe:
    """Spectra behind a bundle's calibration: magnitude 18 to 23, apart from every training and test seed."""
    return Recipe(scenario, (18.0, 23.0), n, seed=7_001)


@torch.no_grad()
def calibrate(estimator: Estimator, recipe: Recipe) -> tuple[Domain, Calibration]:
    """Fill the estimator's calibration and latent whitening; return its training domain and the fitted calibration.

    z = (truth - prediction) / spread of log g is calibrated over (S/N, predicted log g) and made conformal by class of
    S/N: `specvit_deploy.calibration.fit_calibration`. One star in a hundred is beyond the limits of chi2 or latent
    distance: `specvit_training.outlier_calibration.fit_limits`.
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
        columns.append(
            (prepared.network.log_snr[:, 0], out.labels[:, LOG_G], z, out.chi2_reduced, out.n_good, features)
        )
        snr.append(median_snr(flux, error))
    log_snr, log_g, z, chi2, n_good, features = (torch.cat(column) for column in zip(*columns, strict=True))
    calibration = fit_calibration(log_snr.numpy(), log_g.numpy(), z.numpy())
    estimator.calibration.take(calibration)
    center = features.double().mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((features.double() - center).T))
    estimator.latent_mean.copy_(center)
    estimator.latent_whitening.copy_(vectors[:, -LATENT:] / values[-LATENT:].sqrt())
    distance = ((features - estimator.latent_mean) @ estimator.latent_whitening).square().mean(1).sqrt()
    all_snr = np.concatenate(snr)
    low, high = np.percentile(all_snr, [0.1, 99.9])
    nodes, chi2_limit, farthest = fit_limits(
        all_snr, chi2.numpy(), n_good.numpy(), distance.numpy(), len(estimator.preparation.mean)
    )
    domain = Domain(
        snr=(float(low), float(high)),
        chi2_snr=tuple(nodes.tolist()),
        chi2_reduced=tuple(chi2_limit.tolist()),
        latent_distance=tuple(farthest.tolist()),
    )
    return domain, calibration

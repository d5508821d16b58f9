"""The whole estimator as one torch module: what is trained, tested and exported.

    flux, error (B, 4096) -> mask -> scale -> amplitude -> ViT -> first estimate
                          -> emulator there -> score and Fisher -> second look -> labels and spread
                          -> emulator at the estimate -> Fisher -> CRLB, chi2
                          -> calibration table, latent distance

The exported ONNX graph holds all of it (outputs: `OUTPUTS`), so that serving cannot differ from training.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from specvit_deploy.calibration import CLASS_EDGES, LOG_G_NODES, SNR_NODES
from specvit_deploy.calibration import Calibration as Fitted
from specvit_deploy.emulator import Array, Emulator
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.noise import REFERENCE_MAG, NoiseModel, expected_error
from specvit_deploy.scenario import Scenario
from specvit_training.limits import Limits, TorchEmulator
from specvit_training.second_look import SecondLook
from specvit_training.vit import LOG_SPREAD, SCENARIO_NAMES, Normalised, ViT, ViTConfig

LATENT = 16
"""Principal directions of the pooled features in which the latent distance is taken."""

SET = 16
"""Pixels of whose errors one counts for the scale of a row."""
NO_ERROR = 3e38
"""Stands for the error of a bad pixel where the least is sought."""


class Estimate(NamedTuple):
    """Outputs of the graph, in its order; rows are spectra.

    labels : (B, 5) T_eff [K], log_g, M_H, a_M, C_M [dex], inside the label box.
    label_sigma : (B, 5) the network's spread of each label, K and dex, not calibrated.
    log_g_err, log_g_lo, log_g_hi : (B,) calibrated 1 sigma and 68 % interval, dex.
    log_g_crlb : (B,) marginal Cramer-Rao bound (sigma) with the scenario's nuisances; inf if not identifiable.
    log_g_crlb_prior : (B,) the same with the label box as prior covariance: always finite.
    chi2_reduced : (B,) of the best linear fit around the estimate.
    latent_distance : (B,) rms of the whitened features, about 1 on training spectra.
    n_good : (B,) int32, pixels that carry information.
    """

    labels: Tensor
    label_sigma: Tensor
    log_g_err: Tensor
    log_g_lo: Tensor
    log_g_hi: Tensor
    log_g_crlb: Tensor
    log_g_crlb_prior: Tensor
    chi2_reduced: Tensor
    latent_distance: Tensor
    n_good: Tensor


OUTPUTS = Estimate._fields


class Prepared(NamedTuple):
    """A batch in units of its own amplitude; rows are spectra.

    flux : (B, n), 0 at bad pixels.
    inverse_variance : (B, n), 0 at bad pixels.
    network : what the ViT sees.
    n_good : (B, 1) float.
    """

    flux: Tensor
    inverse_variance: Tensor
    network: Normalised
    n_good: Tensor


class Preparation(nn.Module):
    """Mask, scale and normalise.

    A pixel carries information if its flux and error are finite and its error is positive. Every row is divided by
    a typical error before anything is squared (1e-21 is a legal flux unit), then by the inverse-variance-weighted
    amplitude against the mean template.
    """

    mean: Tensor
    reference_information: Tensor

    def __init__(self, mean: Tensor, reference_error: Tensor, scenario: Scenario) -> None:
        super().__init__()
        self.scenario_index = SCENARIO_NAMES.index(scenario.name)
        self.register_buffer("mean", mean)
        self.register_buffer("reference_information", reference_error.square())

    def forward(self, flux: Tensor, error: Tensor) -> Prepared:
        """Prepare raw flux and error (B, n)."""
        good = torch.isfinite(flux) & torch.isfinite(error) & (error > 0)
        n_good = good.to(flux.dtype).sum(1, keepdim=True)
        scale = typical_error(error, good)
        error = torch.where(good, error, scale)
        flux = (torch.where(good, flux, 0.0) / scale).clamp(-1e6, 1e6)
        error = (error / scale).clamp(1e-4, 1e8)
        w = torch.where(good, 1.0 / error.square(), 0.0)
        power = (w * self.mean.square()).sum(1, keepdim=True).clamp(min=1e-30)
        amplitude = (w * flux * self.mean).sum(1, keepdim=True) / power
        amplitude = torch.maximum(amplitude, power.rsqrt())  # never below its own 1 sigma, never negative
        flux, w = flux / amplitude, w * amplitude.square()
        snr = (power * amplitude.square() / n_good.clamp(min=1.0)).sqrt()
        network = Normalised(
            residual=torch.where(good, flux - self.mean, 0.0),
            information=w * self.reference_information,
            log_snr=torch.log10(snr.clamp(1e-2, 1e3)),
            scenario=torch.full_like(snr[:, 0], self.scenario_index, dtype=torch.int64),
        )
        return Prepared(flux, w, network, n_good)


def typical_error(error: Tensor, good: Tensor) -> Tensor:
    """Geometric mean (B, 1), over sets of `SET` far pixels, of the least good error in each; inputs (B, n).

    A scale need not be exact, and logarithms of all errors are 4 % of the default's graph. 1 for a row without a good
    pixel.
    """
    least = torch.where(good, error, NO_ERROR).reshape(-1, SET, error.shape[1] // SET).amin(1)
    known = (least < NO_ERROR).to(error.dtype)
    return ((least.log() * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1.0)).exp()


class Calibration(nn.Module):
    """Factors on the network's spread: bilinear over (S/N, predicted log g), times one factor per class of S/N."""

    table: Tensor
    snr_nodes: Tensor
    log_g_nodes: Tensor
    class_edges: Tensor
    class_factors: Tensor

    def __init__(self) -> None:
        super().__init__()
        table = torch.ones(3, len(SNR_NODES), len(LOG_G_NODES))  # err, below, above
        self.register_buffer("table", table)
        self.register_buffer("snr_nodes", torch.tensor(SNR_NODES))
        self.register_buffer("log_g_nodes", torch.tensor(LOG_G_NODES))
        self.register_buffer("class_edges", torch.tensor(CLASS_EDGES))
        self.register_buffer("class_factors", torch.ones(3, len(CLASS_EDGES) + 1))

    def take(self, fitted: Fitted) -> None:
        """Take over what `specvit_deploy.calibration` fitted."""
        for name, buffer in self.named_buffers():
            buffer.copy_(torch.from_numpy(getattr(fitted, name)))

    def forward(self, log_snr: Tensor, log_g: Tensor) -> Tensor:
        """Factors (B, 3) for err, lower and upper half-width; inputs (B,)."""
        a, b = hat_weights(log_snr, self.snr_nodes), hat_weights(log_g, self.log_g_nodes)
        rows = (a @ self.table.transpose(0, 1).flatten(1)).reshape(-1, 3, len(LOG_G_NODES))
        above = (log_snr[:, None] >= self.class_edges).to(log_snr.dtype)
        lower, upper = torch.ones_like(above[:, :1]), torch.zeros_like(above[:, :1])
        members = torch.cat([lower, above], 1) - torch.cat([above, upper], 1)  # (B, C): 1 in the row's own class
        factors: Tensor = (rows * b[:, None]).sum(2) * (members @ self.class_factors.T)
        return factors


def hat_weights(x: Tensor, nodes: Tensor) -> Tensor:
    """Weights (B, M) of linear interpolation of `x` (B,) between sorted `nodes` (M,), constant beyond the ends."""
    x = torch.minimum(torch.maximum(x, nodes[0]), nodes[-1])[:, None]
    left = torch.cat([nodes[:1] - 1.0, nodes[:-1]])
    right = torch.cat([nodes[1:], nodes[-1:] + 1.0])
    return torch.minimum((x - left) / (nodes - left), (right - x) / (right - nodes)).clamp(0.0, 1.0)


class Estimator(nn.Module):
    """Preparation, ViT, limits, calibration: flux and error (B, 4096) to `Estimate`.

    Parameters
    ----------
    config : ViTConfig or module
        Shape of the ViT, with all ten outputs; or a network with `features` and `head` in its place.
    emulator, noise : Emulator, NoiseModel
        The simulator's parts: template and limits, reference error.
    scenario : Scenario
        Whose nuisances the limits carry.
    """

    center: Tensor
    sd: Tensor
    low: Tensor
    high: Tensor
    latent_mean: Tensor
    latent_whitening: Tensor

    def __init__(
        self, config: ViTConfig | ViT | SecondLook, emulator: Emulator, noise: NoiseModel, scenario: Scenario
    ) -> None:
        super().__init__()
        for name, value in {
            "center": LABEL_BOX.center,
            "sd": LABEL_BOX.sd,
            "low": np.asarray(LABEL_BOX.low),
            "high": np.asarray(LABEL_BOX.high),
        }.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))
        mean, reference_error, projection = sufficient_statistic(emulator, noise)
        self.preparation = Preparation(_f32(mean), _f32(reference_error), scenario)
        self.vit: ViT | SecondLook
        if isinstance(config, ViTConfig):
            vit = ViT(config, _f32(reference_error), _f32(projection))
            self.vit = SecondLook(vit, emulator, _f32(mean), _f32(reference_error)) if config.look else vit
        else:
            self.vit = config
        shared = self.vit.emulator if isinstance(self.vit, SecondLook) else TorchEmulator(emulator)
        self.limits = Limits(shared, scenario)
        self.calibration = Calibration()
        features = self.vit.head.in_features
        self.register_buffer("latent_mean", torch.zeros(features))
        self.register_buffer("latent_whitening", torch.zeros(features, LATENT))

    def forward(self, flux: Tensor, error: Tensor) -> Estimate:
        """Estimate labels with their limits; a row without good pixels gives NaN labels."""
        prepared = self.preparation(flux, error)
        return self.conclude(prepared, self.vit.features(prepared.network))

    def conclude(self, prepared: Prepared, features: Tensor) -> Estimate:
        """From pooled features to the estimate."""
        out = self.vit.head(features)
        if isinstance(self.vit, SecondLook):
            out = self.vit.refine(out, prepared.network)
        labels = torch.minimum(torch.maximum(self.center + self.sd * out[:, :5], self.low), self.high)
        label_sigma = self.sd * torch.exp(out[:, 5:].clamp(*LOG_SPREAD))
        crlb, crlb_prior, chi2 = self.limits(labels, prepared.flux, prepared.inverse_variance)
        log_g, n_good = labels[:, LOG_G], prepared.n_good[:, 0]
        half = label_sigma[:, LOG_G, None] * self.calibration(prepared.network.log_snr[:, 0], log_g)
        distance = ((features - self.latent_mean) @ self.latent_whitening).square().mean(1).sqrt()
        empty = n_good < 1

        def blank(x: Tensor) -> Tensor:
            return torch.where(empty.reshape(-1, *[1] * (x.dim() - 1)), torch.nan, x)

        return Estimate(
            labels=blank(labels),
            label_sigma=blank(label_sigma),
            log_g_err=blank(half[:, 0]),
            log_g_lo=blank(log_g - half[:, 1]),
            log_g_hi=blank(log_g + half[:, 2]),
            log_g_crlb=torch.where(empty, torch.inf, crlb),
            log_g_crlb_prior=crlb_prior,
            chi2_reduced=blank(chi2 / (n_good - design_rank(self.limits.scenario)).clamp(min=1.0)),
            latent_distance=blank(distance),
            n_good=n_good.to(torch.int32),
        )


def design_rank(scenario: Scenario) -> int:
    """Free parameters of the fit whose chi2 is reported: labels, amplitude, and what else the scenario leaves open."""
    return 6 + (scenario.slope_sd > 0) + (scenario.velocity_sd > 0)


def sufficient_statistic(emulator: Emulator, noise: NoiseModel) -> tuple[Array, Array, Array]:
    """Mean template (n,), reference error (n,) and the start of the information tokens (K, n).

    The error is that of the mean template at magnitude 21.5. Rows of the projection are L^-1 B W0 times the
    reference error, L the Cholesky factor of B W0 B^T + C^-1, C the coefficients' covariance over the label box;
    each is divided by (1 + its signal variance)^(1/4), half-way between unit noise and unit signal.
    """
    rng = np.random.default_rng(0)
    c = emulator.coefficients(rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (4000, 5)))
    basis = emulator.basis[:, emulator.inner]
    mean = emulator.mean[emulator.inner] + c.mean(axis=0) @ basis
    error = expected_error(noise, mean[None], REFERENCE_MAG)[0]
    covariance = np.cov(c.T)
    fisher = (basis / error**2) @ basis.T
    rows = np.linalg.solve(np.linalg.cholesky(fisher + np.linalg.inv(covariance)), basis / error)
    projected = rows @ (basis / error).T
    signal = projected @ covariance @ projected.T
    return mean, error, rows / (1.0 + np.diag(signal))[:, None] ** 0.25


def _f32(array: Array) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)

"""The cheap rival: generalised least squares on the emulator's basis, then a small network.

    c = (B W B^T + C^-1)^-1 B W (f - m),   labels = MLP(c / sd(c), log S/N, scenario)

With the amplitude as one more row of B. c is the linear sufficient statistic with a Gaussian prior; the network
does the rest.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from specvit_deploy.emulator import Emulator
from specvit_deploy.labels import LABEL_BOX
from specvit_training.vit import SCENARIO_NAMES, Normalised

HIDDEN = 256


class GlsMlp(nn.Module):
    """Weighted projection and a two-layer perceptron, the same inputs and outputs as the ViT.

    Parameters
    ----------
    emulator : Emulator
        Its components are the basis.
    mean, reference_error : (n,) tensors
        Of the preparation, to turn relative information back into inverse variance.
    """

    basis: Tensor
    prior: Tensor
    center: Tensor
    inverse_sd: Tensor
    inverse_error_squared: Tensor

    def __init__(self, emulator: Emulator, mean: Tensor, reference_error: Tensor) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        c = emulator.coefficients(rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (4000, 5)))
        basis = np.vstack([mean.numpy(), emulator.basis[:, emulator.inner]])  # amplitude first
        prior = np.zeros((len(basis), len(basis)))
        prior[1:, 1:] = np.linalg.inv(np.cov(c.T))
        prior[0, 0] = 1.0 / 0.05**2  # the preparation has set the amplitude to a few per cent
        sd = np.concatenate([[0.05], c.std(axis=0)])
        for name, value in {"basis": basis, "prior": prior, "inverse_sd": 1.0 / sd}.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.register_buffer("inverse_error_squared", reference_error.pow(-2))
        self.scenario = nn.Embedding(len(SCENARIO_NAMES), 8)
        self.mlp = nn.Sequential(
            nn.Linear(len(basis) + 1 + 8, HIDDEN), nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.SiLU(),
            nn.Linear(HIDDEN, 10),
        )  # fmt: skip

    def forward(self, x: Normalised) -> Tensor:
        """Head outputs (B, 10)."""
        with torch.no_grad():
            w = x.information * self.inverse_error_squared
            scaled = self.basis / self.inverse_sd[:, None]  # unit prior: well-conditioned in float32
            normal = (scaled * w[:, None]) @ scaled.T
            right = (w * x.residual) @ scaled.T
            prior = self.prior / self.inverse_sd[:, None] / self.inverse_sd
            c = torch.linalg.solve(normal + prior, right)
        out: Tensor = self.mlp(torch.cat([c, x.log_snr, self.scenario(x.scenario)], 1))
        return out

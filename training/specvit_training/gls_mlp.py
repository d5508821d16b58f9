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
AMPLITUDE_SD = 0.05
"""Prior of the amplitude that the preparation leaves, relative."""


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
    products: Tensor
    prior: Tensor
    inverse_error_squared: Tensor
    entry: Tensor

    def __init__(self, emulator: Emulator, mean: Tensor, reference_error: Tensor) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        c = emulator.coefficients(rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (4000, 5)))
        sd = np.concatenate([[AMPLITUDE_SD], c.std(axis=0)])
        basis = sd[:, None] * np.vstack([mean.numpy(), emulator.basis[:, emulator.inner]])  # amplitude first
        prior = np.diag(np.ones(len(sd)))
        prior[1:, 1:] = np.linalg.inv(np.corrcoef(c.T))
        upper = np.triu_indices(len(basis))
        entry = np.zeros((len(basis), len(basis)), np.int64)
        entry[upper] = entry.T[upper] = np.arange(len(upper[0]))
        constants = {"basis": basis, "prior": prior, "products": basis[upper[0]] * basis[upper[1]]}
        for name, value in constants.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32), persistent=False)
        self.register_buffer("entry", torch.as_tensor(entry), persistent=False)
        self.register_buffer("inverse_error_squared", reference_error.pow(-2), persistent=False)
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
            normal = (w @ self.products.T)[:, self.entry]  # B W B^T of every row in one product
            c = torch.linalg.solve(normal + self.prior, (w * x.residual) @ self.basis.T)
        out: Tensor = self.mlp(torch.cat([c, x.log_snr, self.scenario(x.scenario)], 1))
        return out

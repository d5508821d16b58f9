"""The cheap rival: generalised least squares on the emulator's basis, then a small network.

    c = (B W B^T + C^-1)^-1 B W (f - m),   labels = MLP(c / sd(c), log S/N, scenario)

With the amplitude as one more row of B. c is the linear sufficient statistic with a Gaussian prior; the network
does the rest. The equations are solved in the basis V that makes the prior the identity and the information of a
typical star diagonal, V^T C^-1 V = 1 and V^T B W0 B^T V diagonal: little is left to eliminate, float32 is enough.
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
SOLVE = "specvit::Solve"
"""What stands for the solution in a graph until its nodes are put there: ONNX has no such operator."""


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
    turn: Tensor
    unit: Tensor
    first: Tensor
    second: Tensor
    entry: Tensor
    products: Tensor
    inverse_error_squared: Tensor

    def __init__(self, emulator: Emulator, mean: Tensor, reference_error: Tensor) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        c = emulator.coefficients(rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (4000, 5)))
        sd = np.concatenate([[AMPLITUDE_SD], c.std(axis=0)])
        basis = sd[:, None] * np.vstack([mean.numpy(), emulator.basis[:, emulator.inner]])  # amplitude first
        prior = np.diag(np.ones(len(sd)))
        prior[1:, 1:] = np.linalg.inv(np.corrcoef(c.T))
        inverse = np.linalg.inv(np.linalg.cholesky(prior))
        fisher = (basis / reference_error.double().numpy() ** 2) @ basis.T
        turn = inverse.T @ np.linalg.eigh(inverse @ fisher @ inverse.T)[1]
        constants = {
            "basis": turn.T @ basis,
            "turn": turn.T,
            "unit": np.eye(len(sd)),
        }
        for name, value in constants.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32), persistent=False)
        first, second = np.triu_indices(len(basis))
        entry = np.zeros((len(basis), len(basis)), np.int64)
        entry[first, second] = entry[second, first] = np.arange(len(first))
        for name, value in {"first": first, "second": second, "entry": entry}.items():
            self.register_buffer(name, torch.as_tensor(value), persistent=False)
        self.register_buffer("products", self.pairs(), persistent=False)
        self.register_buffer("inverse_error_squared", reference_error.pow(-2), persistent=False)
        self.scenario = nn.Embedding(len(SCENARIO_NAMES), 8)
        self.mlp = nn.Sequential(
            nn.Linear(len(basis) + 1 + 8, HIDDEN), nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.SiLU(),
            nn.Linear(HIDDEN, 10),
        )  # fmt: skip

    @property
    def head(self) -> nn.Linear:
        """Last layer of the perceptron."""
        head = self.mlp[-1]
        assert isinstance(head, nn.Linear)
        return head

    def features(self, x: Normalised) -> Tensor:
        """Last hidden layer (B, HIDDEN)."""
        hidden = self.seen(x)
        for layer in list(self.mlp)[:-1]:
            hidden = layer(hidden)
        return hidden

    def forward(self, x: Normalised) -> Tensor:
        """Head outputs (B, 10): labels in box units, then log spreads in box units."""
        out: Tensor = self.mlp(self.seen(x))
        return out

    def seen(self, x: Normalised) -> Tensor:
        """What the perceptron sees: c / sd(c), log S/N, scenario."""
        return torch.cat([self.statistic(x), x.log_snr, self.scenario(x.scenario)], 1)

    def statistic(self, x: Normalised) -> Tensor:
        """Coefficients c / sd(c), amplitude first, (B, K)."""
        w = x.information * self.inverse_error_squared
        right = ((w * x.residual) @ self.basis.T)[:, :, None]
        # a graph makes the products when it is loaded: 1 MB in the file instead of 31
        products = self.pairs() if torch.compiler.is_exporting() else self.products
        normal = (w @ products.T)[:, self.entry] + self.unit  # B W B^T of every spectrum in one product
        return solve(normal, right)[:, :, 0] @ self.turn

    def pairs(self) -> Tensor:
        """Products of every two rows of the basis, (K (K + 1) / 2, n)."""
        return self.basis[self.first] * self.basis[self.second]


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve positive definite equations (B, K, K) with right sides (B, K, 1)."""
    if torch.compiler.is_exporting():
        system, size = torch.cat([matrix, right], 2), matrix.shape[1]
        shape = (system.shape[0], size, 1)
        out: Tensor = torch.onnx.ops.symbolic(
            SOLVE, (system,), {"size": size}, dtype=right.dtype, shape=shape, version=1
        )
        return out
    scale = torch.diagonal(matrix, dim1=1, dim2=2).rsqrt()[:, :, None]  # pivots are chosen among equals
    solution: Tensor = torch.linalg.solve(matrix * scale * scale.transpose(1, 2), right * scale)
    return solution * scale

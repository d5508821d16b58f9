"""A second look: the likelihood around the network's estimate corrects the estimate.

The ViT proposes labels z (box units). There the emulator gives flux, Jacobian and residual, so score and Fisher
information of this very spectrum are at hand, the latter for the bound anyway. With a unit normal prior on the labels,

    F = D W D^T + I,   g = D W r - z,   F = L P L^T,

amplitude, slope and velocity eliminated first and log g last, so that 1 / P_last is the local posterior variance of
log g and its component of F^-1 g the Gauss-Newton step. A small perceptron turns step, pivots P, L and the network's
own spreads into the final labels and spreads: what the local quadratic cannot know (edges of the box, second modes,
curvature) it learns from simulated spectra. It is fitted when the ViT is done: what it sees is a few numbers a
spectrum, computed once (`fit_second_look`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from specvit_deploy.emulator import Emulator
from specvit_deploy.labels import LABEL_BOX, LABELS, LOG_G
from specvit_deploy.scenario import get_scenario
from specvit_training.limits import TorchEmulator, linearise, products
from specvit_training.vit import LOG_SPREAD, SCENARIO_NAMES, Normalised, ViT, ViTConfig

HIDDEN = 256
SEEN = 10 + 5 + 5 + 5 + 10 + 2
"""First estimate; Gauss-Newton step, log pivots, whitened score, lower factor of the labels; S/N, chi2."""
CLIP = 10.0
"""Residuals beyond this many errors count as this many."""
ORDER = [*(i for i in range(len(LABELS)) if i != LOG_G), LOG_G]
"""Order of elimination of the labels, log g last."""


class SecondLook(nn.Module):
    """A network and the correction of its estimate; the same inputs and outputs as the network alone.

    Parameters
    ----------
    network : module
        Gives the estimate around which the likelihood is taken: a ViT, or a rival to compare it with.
    emulator : Emulator
        The model of a spectrum.
    mean, reference_error : (n,) tensors
        Of the preparation, to turn the network's inputs back into flux and inverse variance.
    """

    def __init__(self, network: nn.Module, emulator: Emulator, mean: Tensor, reference_error: Tensor) -> None:
        super().__init__()
        self.network = network
        self.emulator = TorchEmulator(emulator)
        scenarios = [get_scenario(name) for name in SCENARIO_NAMES]
        constants = {
            "mean": mean,
            "reference_information": reference_error.square(),
            "tilt": torch.linspace(-1.0, 1.0, len(mean)),
            "nuisance_sd": torch.tensor([[s.slope_sd, s.velocity_sd] for s in scenarios]),
            "center": torch.as_tensor(LABEL_BOX.center, dtype=torch.float32),
            "sd": torch.as_tensor(LABEL_BOX.sd, dtype=torch.float32),
            "low": torch.as_tensor(np.asarray(LABEL_BOX.low), dtype=torch.float32),
            "high": torch.as_tensor(np.asarray(LABEL_BOX.high), dtype=torch.float32),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.scenario = nn.Embedding(len(SCENARIO_NAMES), 8)
        for name, start in (("seen_mean", torch.zeros(SEEN)), ("seen_sd", torch.ones(SEEN))):
            self.register_buffer(name, start)
        last = nn.Linear(HIDDEN, 10)
        self.look = nn.Sequential(
            nn.Linear(SEEN + 8, HIDDEN), nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.SiLU(),
            last,
        )  # fmt: skip
        nn.init.zeros_(last.weight)  # starts as no correction
        nn.init.zeros_(last.bias)

    seen_mean: Tensor
    seen_sd: Tensor
    mean: Tensor
    reference_information: Tensor
    tilt: Tensor
    nuisance_sd: Tensor
    center: Tensor
    sd: Tensor
    low: Tensor
    high: Tensor

    @property
    def vit(self) -> ViT:
        """The network, where it is a ViT."""
        assert isinstance(self.network, ViT)
        return self.network

    @property
    def config(self) -> ViTConfig:
        """Shape of the ViT."""
        return self.vit.config

    @property
    def head(self) -> nn.Linear:
        """Head of the ViT."""
        return self.vit.head

    def features(self, x: Normalised) -> Tensor:
        """Pooled features of the ViT."""
        return self.vit.features(x)

    def forward(self, x: Normalised) -> Tensor:
        """Second estimate (B, 10): labels in box units, then log spreads in box units."""
        return self.refine(self.network(x), x)

    def refine(self, first: Tensor, x: Normalised) -> Tensor:
        """Second estimate (B, 10) from the first and the spectra."""
        return self.conclude(first, self.seen(first, x), x.scenario)

    def conclude(self, first: Tensor, seen: Tensor, scenario: Tensor) -> Tensor:
        """Second estimate (B, 10) from the first and what was seen around it."""
        seen = (seen - self.seen_mean) / self.seen_sd
        out: Tensor = first + self.look(torch.cat([seen, self.scenario(scenario)], 1))
        return out

    def seen(self, first: Tensor, x: Normalised) -> Tensor:
        """What the perceptron sees of the likelihood around the first estimate, (B, SEEN)."""
        labels = torch.minimum(torch.maximum(self.center + self.sd * first[:, :5], self.low), self.high)
        z = ((labels - self.center) / self.sd)[:, ORDER]
        around = linearise(self.emulator, labels, x.residual + self.mean, x.information / self.reference_information)
        nuisance_sd = self.nuisance_sd[x.scenario]
        rows = [nuisance_sd[:, :1] * self.tilt * around.model, nuisance_sd[:, 1:] * around.velocity]
        rows += [around.jacobian[:, i] * self.sd[i] for i in ORDER]
        limit = CLIP * around.inverse_variance.clamp(min=1e-30).rsqrt()  # a cosmic ray is no score
        residual = torch.minimum(torch.maximum(around.residual, -limit), limit)
        gram = products([*rows, residual], around, amplitude_free=True)  # (B, 8, 8): nuisances, labels, residual
        chi2 = gram[:, -1:, -1] / (x.information > 0).sum(1, keepdim=True).clamp(min=1)
        score, pivots, lower = [], [], []
        for k in range(7):
            pivot = gram[:, 0, 0].clamp(min=0.0) + 1.0  # the prior
            column = gram[:, 1:, 0]
            if k > 1:
                prior = torch.zeros_like(column)
                prior[:, -1] = z[:, k - 2]
                column = column - prior
                pivots.append(pivot)
                lower.append(column[:, :-1] / pivot[:, None])
                score.append(column[:, -1] / pivot)
            gram = gram[:, 1:, 1:] - column[:, :, None] * (column / pivot[:, None])[:, None, :]
        step: list[Tensor] = []
        for k in reversed(range(5)):  # L^T step = P^-1 (L^-1 g)
            known = sum((lower[k][:, j] * step[j] for j in range(len(step))), torch.zeros_like(score[k]))
            step.insert(0, score[k] - known)
        pivot = torch.stack(pivots, 1)
        return torch.cat(
            [
                first[:, :5].clamp(-3.0, 3.0),
                first[:, 5:].clamp(*LOG_SPREAD),
                torch.stack(step, 1).clamp(-4.0, 4.0),
                pivot.log(),
                (torch.stack(score, 1) * pivot.sqrt()).clamp(-8.0, 8.0),
                torch.cat(lower, 1).clamp(-4.0, 4.0),
                x.log_snr,
                chi2.clamp(min=0.5, max=2.0).log(),
            ],
            1,
        )

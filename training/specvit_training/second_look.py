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
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.scenario import get_scenario
from specvit_training.gls_mlp import GlsMlp
from specvit_training.limits import LOG_G_LAST, TorchEmulator, linearise, products
from specvit_training.vit import LOG_SPREAD, SCENARIO_NAMES, Normalised, ViT, ViTConfig

HIDDEN = 256
SEEN = 10 + 5 + 5 + 5 + 10 + 2
"""First estimate; Gauss-Newton step, log pivots, whitened score, lower factor of the labels; S/N, chi2."""
CLIP = 10.0
"""Residuals beyond this many errors count as this many."""


class SecondLook(nn.Module):
    """A network and the correction of its estimate; the same inputs and outputs as the network alone.

    Parameters
    ----------
    network : ViT or GlsMlp
        Gives the estimate around which the likelihood is taken: a ViT, or a rival to compare it with.
    emulator : Emulator
        The model of a spectrum.
    mean, reference_error : (n,) tensors
        Of the preparation, to turn the network's inputs back into flux and inverse variance.
    """

    def __init__(self, network: ViT | GlsMlp, emulator: Emulator, mean: Tensor, reference_error: Tensor) -> None:
        super().__init__()
        self.network = network
        self.emulator = TorchEmulator(emulator)
        scenarios = [get_scenario(name) for name in SCENARIO_NAMES]
        constants = {
            "mean": mean,
            "reference_information": reference_error.square(),
            "tilt": torch.linspace(-1.0, 1.0, len(mean)),
            "rows": torch.tensor([0, 1, *(2 + i for i in LOG_G_LAST), 7]),
            "prior": torch.diag(torch.tensor([1.0] * 7 + [0.0])),
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
    rows: Tensor
    prior: Tensor
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
        """Head of the network."""
        return self.network.head

    def features(self, x: Normalised) -> Tensor:
        """What the network's head sees."""
        return self.network.features(x)

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
        z = (labels - self.center) / self.sd
        flux, w = x.residual + self.mean, x.information / self.reference_information
        around = linearise(self.emulator, labels, flux, w, projected=True)
        limit = CLIP / around.root.clamp(min=1e-15)  # a cosmic ray is no score
        residual = torch.minimum(torch.maximum(around.residual, -limit), limit)
        nothing = torch.zeros_like(z[:, :1])
        scale = torch.cat([self.nuisance_sd[x.scenario], nothing + self.sd, nothing + 1.0], 1)
        gram = products(around._replace(residual=residual), self.tilt, scale, amplitude_free=True)
        chi2 = gram[:, -1, -1:] / (x.information > 0).to(z.dtype).sum(1, keepdim=True).clamp(min=1)
        last = gram[:, -1:] - torch.cat([nothing, nothing, z, nothing], 1)[:, None]  # the prior pulls to the centre
        gram = torch.cat([gram[:, :-1], last], 1)[:, self.rows][:, :, self.rows] + self.prior
        score, pivots, lower = [], [], []
        for k in range(7):
            column = gram[:, :, k]
            pivot = column[:, k : k + 1].clamp(min=1.0)
            row = column / pivot
            if k > 1:
                pivots.append(pivot)
                lower.append(row[:, k + 1 : 7])
                score.append(row[:, 7:])
            gram = gram - column[:, :, None] * row[:, None]
        step: list[Tensor] = []
        for k in reversed(range(5)):  # L^T step = P^-1 (L^-1 g)
            known = [lower[k][:, j : j + 1] * solved for j, solved in enumerate(step)]
            step.insert(0, score[k] - sum(known) if known else score[k])
        pivot = torch.cat(pivots, 1)
        return torch.cat(
            [
                first[:, :5].clamp(-3.0, 3.0),
                first[:, 5:].clamp(*LOG_SPREAD),
                torch.cat(step, 1).clamp(-4.0, 4.0),
                pivot.log(),
                (torch.cat(score, 1) * pivot.sqrt()).clamp(-8.0, 8.0),
                torch.cat(lower, 1).clamp(-4.0, 4.0),
                x.log_snr,
                chi2.clamp(min=0.5, max=2.0).log(),
            ],
            1,
        )

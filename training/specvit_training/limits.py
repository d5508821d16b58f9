"""The likelihood around an estimate: emulator, Jacobian, Fisher information, residual."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from specvit_deploy.emulator import C_O_WIDTH, LOG_C_O_SUN, THETA_K, Emulator
from specvit_deploy.labels import LABEL_BOX, LABELS, LOG_G
from specvit_deploy.scenario import Scenario

PIVOT_GUARD = 1e-4
"""A label whose information given all others falls below this share of its own is not identifiable in float32."""
CHUNKS = 16
"""Parts of the pixels that are summed apart: engines that add 4096 products one by one lose a digit."""
LOG_G_LAST = [*(i for i in range(len(LABELS)) if i != LOG_G), LOG_G]
"""Order of elimination of the labels."""
HOPELESS = 50.0
"""A bound beyond this many standard deviations of the label box is rounding, not information: infinite."""


class TorchEmulator(nn.Module):
    """The emulator with its derivatives as matrix products; labels (B, 5) in K and dex, float32.

    Spectra come in parts, (CHUNKS, B, 1, pixels), see `in_parts`.
    """

    def __init__(self, emulator: Emulator) -> None:
        super().__init__()
        mean_v, basis_v = emulator.velocity_basis()
        mean, basis = emulator.mean[emulator.inner], emulator.basis[:, emulator.inner]
        rows = np.vstack([basis, mean])
        for name, value in {
            "scale": 2.0 / (emulator.x_high - emulator.x_low),
            "shift": -1.0 - 2.0 * emulator.x_low / (emulator.x_high - emulator.x_low),
            **{k: getattr(emulator, k) for k in ("w1", "b1", "w2", "b2", "w3", "b3")},
            "rows": rows.reshape(len(rows), CHUNKS, -1).swapaxes(0, 1),  # (CHUNKS, K + 1, pixels), the mean last
            "rows_v": np.vstack([basis_v, mean_v]).reshape(len(rows), CHUNKS, -1).swapaxes(0, 1),
            "overlap": basis @ mean / (mean @ mean),
        }.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32), persistent=False)

    scale: Tensor
    shift: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor
    rows: Tensor
    rows_v: Tensor
    overlap: Tensor

    def forward(self, labels: Tensor, projected: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Flux (C, B, 1, p), Jacobian by label (C, B, 5, p) and derivative by velocity (C, B, 1, p), in parts.

        `projected` takes most of the model's own shape out of the Jacobian, which is cheap on coefficients: what a
        free amplitude absorbs anyway, and what would cancel later in float32.
        """
        c, dc = self.coefficients(labels)
        c = torch.cat([c, torch.ones_like(c[:, :1])], 1)
        last = torch.zeros_like(dc[:, :, :1])
        dc = torch.cat([dc, last], 2)
        if projected:
            dc = dc - (dc[:, :, :-1] @ self.overlap)[:, :, None] * c[:, None]
        parts, k = self.rows.shape[:2]
        jacobian = (dc.reshape(-1, k) @ self.rows).reshape(parts, -1, 5, self.rows.shape[2])
        return (c @ self.rows)[:, :, None], jacobian, (c @ self.rows_v)[:, :, None]

    def coefficients(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (B, K) and their derivative by each label (B, 5, K)."""
        t_eff, log_g, m_h, a_m, c_m = labels.unbind(1)
        one, zero = torch.ones_like(t_eff), torch.zeros_like(t_eff)
        ratio = torch.tanh((c_m - a_m + LOG_C_O_SUN) / C_O_WIDTH)
        d_ratio = (1.0 - ratio * ratio) / C_O_WIDTH
        x = torch.stack([THETA_K / t_eff, log_g, m_h, a_m, c_m, ratio], 1)
        dx = torch.stack(
            [
                torch.stack([-THETA_K / (t_eff * t_eff), zero, zero, zero, zero, zero], 1),
                torch.stack([zero, one, zero, zero, zero, zero], 1),
                torch.stack([zero, zero, one, zero, zero, zero], 1),
                torch.stack([zero, zero, zero, one, zero, -d_ratio], 1),
                torch.stack([zero, zero, zero, zero, one, d_ratio], 1),
            ],
            1,
        )  # (B, 5, 6)
        h1 = (x * self.scale + self.shift) @ self.w1 + self.b1
        s1 = torch.sigmoid(h1)
        h2 = (h1 * s1) @ self.w2 + self.b2
        s2 = torch.sigmoid(h2)
        d1 = ((dx * self.scale) @ self.w1) * (s1 * (1 + h1 * (1 - s1)))[:, None]
        d2 = (d1 @ self.w2) * (s2 * (1 + h2 * (1 - s2)))[:, None]
        return (h2 * s2) @ self.w3 + self.b3, d2 @ self.w3


def in_parts(x: Tensor) -> Tensor:
    """(B, n) as (CHUNKS, B, 1, n / CHUNKS)."""
    return x.reshape(-1, CHUNKS, x.shape[1] // CHUNKS).transpose(0, 1)[:, :, None]


class Linearised(NamedTuple):
    """The model of a batch of spectra around given labels, in parts.

    model, residual, velocity : (C, B, 1, p) flux, spectrum minus flux, derivative by velocity [per km/s].
    jacobian : (C, B, 5, p) derivative of the flux by the labels, per K and dex.
    root : (C, B, 1, p) one over the error in units of the model, 0 at bad pixels.
    """

    model: Tensor
    residual: Tensor
    velocity: Tensor
    jacobian: Tensor
    root: Tensor


def linearise(
    emulator: TorchEmulator, labels: Tensor, flux: Tensor, inverse_variance: Tensor, projected: bool = False
) -> Linearised:
    """Evaluate the emulator at `labels` (B, 5) and scale flux and inverse variance (B, n) to its amplitude."""
    model, jacobian, velocity = emulator(labels, projected)
    flux, w = in_parts(flux), in_parts(inverse_variance)
    # the amplitude so far is that against the mean template; here the model of this very star is at hand
    weighted = w * model
    amplitude = total(weighted * flux) / total(weighted * model).clamp(min=1e-30)
    amplitude = amplitude.clamp(0.2, 5.0)
    return Linearised(model, flux / amplitude - model, velocity, jacobian, w.sqrt() * amplitude)


def total(x: Tensor) -> Tensor:
    """Sum over the pixels of (C, B, 1, p): (B, 1, 1)."""
    return x.sum(3, keepdim=True).sum(0)


def products(around: Linearised, tilt: Tensor, scale: Tensor, amplitude_free: bool) -> Tensor:
    """D W D^T (B or 1, 8, 8): slope, velocity, labels (z-scored by `scale`), residual.

    Parameters
    ----------
    around : Linearised
        Its rows are those of D.
    tilt : (n,) tensor
        Shape of a slope.
    scale : (B or 1, 8) tensor
        Factor of each row.
    amplitude_free : bool
        Project the model itself out of every row (an amplitude with a flat prior).
    """
    rows = [around.model, in_parts(tilt[None]) * around.model, around.velocity, around.jacobian, around.residual]
    design = torch.cat(rows, 2) * around.root
    gram = (design @ design.transpose(2, 3)).sum(0)
    own, others = gram[:, :1, 1:], gram[:, 1:, 1:]
    if amplitude_free:
        others = others - own.transpose(1, 2) * (own / gram[:, :1, :1].clamp(min=1e-30))
    return others * (scale[:, :, None] * scale[:, None])


class Limits(nn.Module):
    """Fisher information at given labels: CRLB of log g and chi2.

    The flux is first scaled to the model's amplitude. F = D W D^T with the rows of D scaled to prior standard
    deviations. Amplitude, where the scenario frees it, is projected out of every row first (flat prior, and the one
    large cancellation); slope and velocity follow where the scenario has them, then the labels, log g last.
    Elimination in this order leaves the Schur complement of log g, 1 / CRLB^2, as the last pivot; appending the
    residual as one more row leaves the chi2 of the best linear fit behind it. float32 throughout.
    """

    tilt: Tensor
    scale: Tensor
    order: Tensor
    known: Tensor

    def __init__(self, emulator: TorchEmulator, scenario: Scenario) -> None:
        super().__init__()
        self.emulator = emulator
        self.scenario = scenario
        sd = torch.as_tensor(LABEL_BOX.sd, dtype=torch.float32)
        nuisances = torch.tensor([scenario.slope_sd, scenario.velocity_sd])
        # slope and velocity first, where the scenario has them, then the labels, log g last, and the residual
        order = [row for row in (0, 1) if nuisances[row] > 0] + [2 + i for i in LOG_G_LAST] + [7]
        without = torch.tensor([1.0 if row < 2 else 0.0 for row in order])
        with_prior = torch.tensor([0.0 if row == 7 else 1.0 for row in order])
        for name, value in {
            "tilt": torch.linspace(-1.0, 1.0, emulator.rows.shape[0] * emulator.rows.shape[2]),
            "scale": torch.cat([nuisances, sd, torch.ones(1)])[None],
            "order": torch.tensor(order),
            "known": torch.stack([torch.diag(without), torch.diag(with_prior)]),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, labels: Tensor, flux: Tensor, inverse_variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CRLB, CRLB with label prior (dex) and residual chi2, each (B,); inputs (B, 5), (B, n), (B, n)."""
        free = self.scenario.amplitude_free
        around = linearise(self.emulator, labels, flux, inverse_variance, projected=free)
        gram = products(around, self.tilt, self.scale, free)[:, self.order][:, :, self.order]
        twice = (gram[:, None] + self.known).flatten(0, 1)  # each row with the labels free, then with their prior
        pivot, left, identifiable = (x.reshape(-1, 2) for x in eliminate(twice))
        sigma = self.scale[0, 2 + LOG_G] * pivot.rsqrt()
        identifiable = identifiable & (pivot > 1.0 / HOPELESS**2)
        return torch.where(identifiable, sigma, torch.inf)[:, 0], sigma[:, 1], left[:, 1]


def eliminate(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eliminate all rows but the last of (B, R, R): pivot of row R - 2, what is left of the last, identifiability."""
    size = gram.shape[1]
    own = gram.flatten(1)[:, :: size + 1][:, :-1]
    floors = (1e-7 * own).clamp(min=1e-30).chunk(size - 1, 1)
    pivots = []
    for k, floor in enumerate(floors):
        column = gram[:, :, k]
        pivots.append(column[:, k : k + 1])
        gram = gram - column[:, :, None] * (column / torch.maximum(pivots[k], floor))[:, None]
    identifiable = (torch.cat(pivots, 1) > PIVOT_GUARD * own).all(1)
    return torch.maximum(pivots[-1], floors[-1])[:, 0], gram[:, -1, -1], identifiable

"""The likelihood around an estimate: emulator, Jacobian, Fisher information, residual."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from specvit_deploy.emulator import C_O_WIDTH, LOG_C_O_SUN, THETA_K, Emulator
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.scenario import Scenario

PIVOT_GUARD = 1e-4
"""A label whose information given all others falls below this share of its own is not identifiable in float32."""
CHUNKS = 16
"""Parts of the pixels that are summed apart."""
HOPELESS = 50.0
"""A bound beyond this many standard deviations of the label box is rounding, not information: infinite."""


class TorchEmulator(nn.Module):
    """The emulator with its derivatives as matrix products; labels (B, 5) in K and dex, float32."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__()
        mean_v, basis_v = emulator.velocity_basis()
        for name, value in {
            "scale": 2.0 / (emulator.x_high - emulator.x_low),
            "shift": -1.0 - 2.0 * emulator.x_low / (emulator.x_high - emulator.x_low),
            **{k: getattr(emulator, k) for k in ("w1", "b1", "w2", "b2", "w3", "b3")},
            "mean": emulator.mean[emulator.inner],
            "basis": emulator.basis[:, emulator.inner],
            "mean_v": mean_v,
            "basis_v": basis_v,
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
    mean: Tensor
    basis: Tensor
    mean_v: Tensor
    basis_v: Tensor

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Flux (B, n), Jacobian by label (B, 5, n), derivative by velocity (B, n)."""
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
        c = (h2 * s2) @ self.w3 + self.b3
        return self.mean + c @ self.basis, (d2 @ self.w3) @ self.basis, self.mean_v + c @ self.basis_v


class Linearised(NamedTuple):
    """The model of a batch of spectra around given labels; rows are spectra.

    model, residual, velocity : (B, n) flux, spectrum minus flux, derivative by velocity [per km/s].
    jacobian : (B, 5, n) derivative of the flux by the labels, per K and dex.
    inverse_variance : (B, n) in units of the model's amplitude.
    """

    model: Tensor
    residual: Tensor
    velocity: Tensor
    jacobian: Tensor
    inverse_variance: Tensor


def linearise(emulator: TorchEmulator, labels: Tensor, flux: Tensor, inverse_variance: Tensor) -> Linearised:
    """Evaluate the emulator at `labels` (B, 5) and scale flux and inverse variance (B, n) to its amplitude."""
    model, jacobian, velocity = emulator(labels)
    # the amplitude so far is that against the mean template; here the model of this very star is at hand
    weighted = inverse_variance * model
    amplitude = (weighted * flux).sum(1, keepdim=True) / (weighted * model).sum(1, keepdim=True).clamp(min=1e-30)
    amplitude = amplitude.clamp(0.2, 5.0)
    return Linearised(model, flux / amplitude - model, velocity, jacobian, inverse_variance * amplitude.square())


def products(rows: list[Tensor], around: Linearised, amplitude_free: bool) -> Tensor:
    """D W D^T (B, R, R) of the rows (B, n) of D; a free amplitude (flat prior) is projected out of every row first.

    Pixels are summed in `CHUNKS` parts: engines that add 4096 products one by one lose a digit.
    """

    def parts(x: Tensor) -> Tensor:
        return x.reshape(-1, CHUNKS, 1, x.shape[1] // CHUNKS)

    design = torch.cat([parts(row) for row in rows], 2)  # (B, chunks, R, pixels)
    if amplitude_free:
        weighted = around.inverse_variance * around.model
        power = parts(weighted * around.model).sum(3, keepdim=True).sum(1, keepdim=True).clamp(min=1e-30)
        overlap = (design * parts(weighted)).sum(3, keepdim=True).sum(1, keepdim=True) / power
        design = design - overlap * parts(around.model)
    design = design * parts(around.inverse_variance.sqrt())
    return (design @ design.transpose(2, 3)).sum(1)


class Limits(nn.Module):
    """Fisher information at given labels: CRLB of log g and chi2.

    The flux is first scaled to the model's amplitude. F = D W D^T with the rows of D scaled to prior standard
    deviations. Amplitude, where the scenario frees it, is projected out of every row first (flat prior, and the one
    large cancellation); slope and velocity follow where the scenario has them, then the labels, log g last.
    Elimination in this order leaves the Schur complement of log g, 1 / CRLB^2, as the last pivot; appending the
    residual as one more row leaves the chi2 of the best linear fit behind it. float32 throughout.
    """

    tilt: Tensor
    label_sd: Tensor

    def __init__(self, emulator: TorchEmulator, scenario: Scenario) -> None:
        super().__init__()
        self.emulator = emulator
        self.scenario = scenario
        self.register_buffer("tilt", torch.linspace(-1.0, 1.0, len(emulator.mean)))
        self.register_buffer("label_sd", torch.tensor(LABEL_BOX.sd, dtype=torch.float32))

    def forward(self, labels: Tensor, flux: Tensor, inverse_variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """CRLB, CRLB with label prior (dex) and residual chi2, each (B,); inputs (B, 5), (B, n), (B, n)."""
        around = linearise(self.emulator, labels, flux, inverse_variance)
        jacobian = around.jacobian * self.label_sd[:, None]
        rows = []
        if self.scenario.slope_sd > 0:
            rows.append(self.scenario.slope_sd * self.tilt * around.model)
        if self.scenario.velocity_sd > 0:
            rows.append(self.scenario.velocity_sd * around.velocity)
        nuisances = len(rows)
        rows += [jacobian[:, i] for i in range(5) if i != LOG_G] + [jacobian[:, LOG_G], around.residual]
        gram = products(rows, around, self.scenario.amplitude_free)  # (B, R, R), the residual last
        known = torch.tensor([1.0] * nuisances + [0.0] * 6, device=gram.device)
        sd = self.label_sd[LOG_G]
        pivot, _, identifiable = eliminate(gram + torch.diag(known))
        identifiable = identifiable & (pivot > 1.0 / HOPELESS**2)
        crlb = torch.where(identifiable, sd * pivot.rsqrt(), torch.inf)
        known = torch.tensor([1.0] * (nuisances + 5) + [0.0], device=gram.device)
        pivot, chi2, _ = eliminate(gram + torch.diag(known))
        return crlb, sd * pivot.rsqrt(), chi2


def eliminate(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eliminate all rows but the last of (B, R, R): pivot of row R - 2, what is left of the last, identifiability."""
    own = torch.diagonal(gram, dim1=1, dim2=2)
    identifiable = torch.ones_like(own[:, 0], dtype=torch.bool)
    pivot = own[:, 0]
    for k in range(gram.shape[1] - 1):
        pivot = gram[:, 0, 0]
        identifiable = identifiable & (pivot > PIVOT_GUARD * own[:, k])
        pivot = torch.maximum(pivot, 1e-7 * own[:, k]).clamp(min=1e-30)
        column = gram[:, 1:, 0]
        gram = gram[:, 1:, 1:] - column[:, :, None] * (column / pivot[:, None])[:, None, :]
    return pivot, gram[:, 0, 0], identifiable

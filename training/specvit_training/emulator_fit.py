"""Fit the emulator to nodes of a spectral grid and judge it on nodes it never saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import block_diag
from torch import nn

from specvit_deploy.emulator import Array, Emulator, raw_inputs
from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.nodes import MARGIN, Nodes

COOL_K = 4250.0
"""Below this T_eff molecules make spectra hard; figures are split here."""
JUDGE_SNR = 25.0
"""The emulator is judged against one fifth of the noise at this S/N per pixel."""


@dataclass(frozen=True)
class FitConfig:
    """How the emulator is fitted.

    Parameters
    ----------
    components : int
        Principal components K.
    hidden : int
        Width of both hidden layers of each member.
    members : int
        Networks that are averaged; stored as one network with block-diagonal middle layer.
    steps : int
        Full-batch AdamW steps, learning rate 3e-3 to 0 on a cosine.
    weight_decay : float
        Decoupled weight decay; the smoothness that 1,200 nodes call for.
    holdout : int
        Nodes set aside.
    seed : int
        Of the split and the start.
    limit : int, optional
        Train on at most this many of the nodes that the hold-out leaves.
    """

    components: int = 60
    hidden: int = 128
    members: int = 2
    steps: int = 10_000
    weight_decay: float = 0.3
    holdout: int = 144
    seed: int = 7
    limit: int | None = None


def fit_emulator(nodes: Nodes, config: FitConfig) -> Emulator:
    """Fit PCA and network on the nodes outside the hold-out.

    The components are those of relative flux, flux / mean - 1. The loss weighs coefficient k by variance_k^0.7:
    pure flux error (exponent 1) leaves the small components, which carry the faint lines, untrained.
    """
    order = np.random.default_rng(config.seed).permutation(len(nodes.labels))
    held, train = order[: config.holdout], order[config.holdout :][: config.limit]
    if len(train) <= config.components:
        raise SpecVitError(
            f"{len(train)} nodes are left to train {config.components} components on after {config.holdout} are held "
            "out; give more nodes"
        )
    mean = nodes.flux[train].mean(axis=0)
    relative = nodes.flux[train] / mean - 1.0
    _, _, vt = np.linalg.svd(relative, full_matrices=False)  # the mean of `relative` is zero by construction
    basis = vt[: config.components]
    target = relative @ basis.T
    scale = target.std(axis=0)
    raw = raw_inputs(nodes.labels)
    x_low, x_high = raw.min(axis=0), raw.max(axis=0)
    x = torch.tensor(2 * (raw[train] - x_low) / (x_high - x_low) - 1, dtype=torch.float32)
    y = torch.tensor(target / scale, dtype=torch.float32)
    weight = torch.tensor((scale / scale[0]) ** 1.4, dtype=torch.float32)
    members = [_fit_member(x, y, weight / weight.mean(), config, member) for member in range(config.members)]
    layers = [[layer for layer in member if isinstance(layer, nn.Linear)] for member in members]

    def stack(i: int, what: str) -> list[Array]:
        return [getattr(member[i], what).detach().double().numpy().T for member in layers]

    share = scale / config.members
    return Emulator(
        grid=PFS_MR,
        margin=MARGIN,
        x_low=x_low,
        x_high=x_high,
        mean=mean,
        basis=basis * mean,
        w1=np.concatenate(stack(0, "weight"), axis=1),
        b1=np.concatenate(stack(0, "bias")),
        w2=block_diag(*stack(1, "weight")),
        b2=np.concatenate(stack(1, "bias")),
        w3=np.concatenate(stack(2, "weight")) * share,
        b3=np.sum(stack(2, "bias"), axis=0) * share,
        holdout=np.sort(nodes.node_id[held]),
        meta={"nodes": nodes.meta, "fit": vars(config), "training_nodes": len(train)},
    )


def _fit_member(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, config: FitConfig, member: int
) -> nn.Sequential:
    torch.manual_seed(config.seed + 1000 * member)
    net = nn.Sequential(
        nn.Linear(x.shape[1], config.hidden),
        nn.SiLU(),
        nn.Linear(config.hidden, config.hidden),
        nn.SiLU(),
        nn.Linear(config.hidden, config.components),
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in range(config.steps):
        loss = ((net(x) - y).square() * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def evaluate_emulator(emulator: Emulator, nodes: Nodes) -> dict[str, dict[str, float]]:
    """Judge the emulator on its held-out nodes.

    Returns
    -------
    dict
        By region (`warm`, `cool`: inside the label box, split at 4250 K; `outside` the box): number of spectra;
        median and 95th percentile over spectra of each spectrum's median |dF|/F; share of all pixels with |dF|
        below one fifth of the noise at S/N 25 per pixel, flux / 25.
    """
    held = np.isin(nodes.node_id, emulator.holdout)
    if not held.any():
        raise SpecVitError(
            "none of the emulator's held-out nodes is in this file; evaluate with the file it was fitted on"
        )
    labels, flux = nodes.labels[held], nodes.flux[held][:, emulator.inner]
    error = np.abs(emulator.flux(labels) / flux - 1.0)
    inside, cool = LABEL_BOX.contains(labels), labels[:, 0] < COOL_K
    regions = {"warm": inside & ~cool, "cool": inside & cool, "outside": ~inside}
    return {
        name: {
            "spectra": int(rows.sum()),
            "median": float(np.median(np.median(error[rows], axis=1))),
            "p95": float(np.percentile(np.median(error[rows], axis=1), 95)),
            "pixels_below_fifth_of_noise": float((error[rows] < 0.2 / JUDGE_SNR).mean()),
        }
        for name, rows in regions.items()
        if rows.any()
    }

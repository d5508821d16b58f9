"""What the emulator's own errors do to log g, on nodes that its fit never saw.

The simulator, its limits and its test sets all rest on the emulator, so none of them can see its errors. Held-out
nodes can: fitted with the emulator, their exact spectra give labels that are off by

    shift = (J W J^T)^-1 J W (f_node - f_emulator)        J, W at the expected noise of a magnitude

to first order, to be compared with the bound at the same noise; and noisy copies of them, estimated by a bundle, show
whether the quality bits catch what is off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.bundle import load_bundle
from specvit_deploy.emulator import Array, Emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.estimator import Estimator
from specvit_deploy.fisher import information, marginal_sigma
from specvit_deploy.labels import LABEL_BOX, LOG_G
from specvit_deploy.nodes import Nodes
from specvit_deploy.noise import default_noise_model, expected_error
from specvit_deploy.quality import Quality
from specvit_training.emulator_fit import COOL_K, JUDGE_SNR, FitConfig, evaluate_emulator, fit_emulator

SHIFT_MAG = 21.5
FLAG_MAG = 20.0
"""Median S/N 25 per pixel."""
COPIES = 8
"""Noisy copies of each node."""
CURVE = (150, 300, 600)
"""Numbers of training nodes of the learning curve, besides all."""


def held_out(emulator: Emulator, nodes: Nodes) -> tuple[Array, Array, dict[str, NDArray[np.bool_]]]:
    """Labels (M, 5) and flux (M, n) of held-out nodes; which are warm or cool in the label box, or outside of it."""
    held = np.isin(nodes.node_id, emulator.holdout)
    if not held.any():
        raise SpecVitError("none of the emulator's held-out nodes is in this file; use the file it was fitted on")
    labels, flux = nodes.labels[held], nodes.flux[held][:, emulator.inner]
    inside, cool = LABEL_BOX.contains(labels), np.less(labels[:, 0], COOL_K)
    return labels, flux, {"warm": inside & ~cool, "cool": inside & cool, "outside": ~inside}


def log_g_shift(emulator: Emulator, labels: Array, flux: Array, mag: float) -> tuple[Array, Array]:
    """Shift of log g that the emulator's error causes, and its bound, each (M,) in dex; five labels free."""
    model, jacobian = emulator.flux(labels), emulator.jacobian(labels)
    ivar = expected_error(default_noise_model(), model, mag) ** -2.0
    fisher = information(jacobian, ivar)
    pull = (jacobian * (ivar * (flux - model))[:, None]).sum(2)
    shift = np.linalg.solve(fisher, pull[..., None])[:, LOG_G, 0]
    return shift, marginal_sigma(fisher)[:, LOG_G]


def shifts(emulator: Emulator, nodes: Nodes) -> dict[str, Any]:
    """Median and 95th percentile of |shift| / CRLB of log g at magnitude 21.5, by region."""
    labels, flux, regions = held_out(emulator, nodes)
    shift, sigma = log_g_shift(emulator, labels, flux, SHIFT_MAG)
    ratio = np.abs(shift) / sigma
    return {
        name: {
            "spectra": int(rows.sum()),
            "mag": SHIFT_MAG,
            "shift_dex_median": float(np.median(np.abs(shift[rows]))),
            "shift_over_crlb_median": float(np.median(ratio[rows])),
            "shift_over_crlb_p95": float(np.percentile(ratio[rows], 95)),
        }
        for name, rows in regions.items()
        if rows.any()
    }


def flagged(emulator: Emulator, nodes: Nodes, bundle: str) -> dict[str, Any]:
    """Do the quality bits catch spectra that the emulator gets wrong, at S/N 25.

    Every held-out node and its emulated twin get the same noise and go through the bundle. A node is *poor* if its
    median |dF|/F exceeds a fifth of the noise, and *off* if the mean difference of the two log g exceeds one
    `log_g_err`; a copy is *caught* if POOR_FIT, LABEL_EDGE or OUT_OF_DISTRIBUTION is set on it.
    """
    labels, flux, regions = held_out(emulator, nodes)
    model = emulator.flux(labels)
    error = expected_error(default_noise_model(), model, FLAG_MAG).astype(np.float32)
    estimator = Estimator(load_bundle(bundle))
    rng = np.random.default_rng(0)
    difference, err, caught, false_alarm = (np.empty((COPIES, len(labels))) for _ in range(4))
    bits = int(Quality.POOR_FIT | Quality.LABEL_EDGE | Quality.OUT_OF_DISTRIBUTION)
    for k in range(COPIES):
        noise = error * rng.standard_normal(error.shape, dtype=np.float32)
        node = estimator((flux + noise).astype(np.float32), error)
        twin = estimator((model + noise).astype(np.float32), error)
        difference[k], err[k] = node["log_g"] - twin["log_g"], node["log_g_err"]
        caught[k], false_alarm[k] = (node["quality"] & bits) > 0, (twin["quality"] & bits) > 0
    off = np.abs(difference.mean(0)) > err.mean(0)
    poor = np.median(np.abs(flux / model - 1.0), axis=1) > 0.2 / JUDGE_SNR
    return {
        name: {
            "spectra": int(rows.sum()),
            "mag": FLAG_MAG,
            "bundle": bundle,
            "difference_over_err_median": float(np.median(np.abs(difference.mean(0) / err.mean(0))[rows])),
            "off_share": float(off[rows].mean()),
            "caught_of_off": float(caught[:, rows & off].mean()) if (rows & off).any() else None,
            "poor_share": float(poor[rows].mean()),
            "caught_of_poor": float(caught[:, rows & poor].mean()) if (rows & poor).any() else None,
            "caught_of_all": float(caught[:, rows].mean()),
            "caught_of_twins": float(false_alarm[:, rows].mean()),
        }
        for name, rows in regions.items()
        if rows.any()
    }


def learning_curve(
    nodes: Nodes,
    sizes: Sequence[int] = CURVE,
    steps: int = FitConfig.steps,
    log: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Accuracy and shift on one hold-out for emulators fitted on more and more nodes, the last on all."""
    out: list[dict[str, Any]] = []
    for size in (*sizes, None):
        emulator = fit_emulator(nodes, FitConfig(limit=size, steps=steps))
        number = emulator.meta["training_nodes"]
        out.append({"nodes": number, "flux": evaluate_emulator(emulator, nodes), "log_g": shifts(emulator, nodes)})
        log(f"{number} nodes: {out[-1]['log_g']}")
    return out

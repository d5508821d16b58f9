"""Accuracy of models on one named test set, beside the limits of the same spectra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specvit_deploy import __version__
from specvit_deploy.bundle import load_bundle
from specvit_deploy.emulator import default_emulator
from specvit_deploy.labels import LABEL_BOX, LABELS, LOG_G
from specvit_deploy.metrics import (
    LOG_G_EDGES,
    M_H_EDGES,
    SNR_EDGES,
    TYPES,
    paired_r2_difference,
    scores,
    with_intervals,
)
from specvit_deploy.noise import default_noise_model
from specvit_deploy.pipeline import Estimator as BundleEstimator
from specvit_deploy.posterior import PosteriorSampler
from specvit_deploy.quality import median_snr
from specvit_deploy.recipe import Recipe
from specvit_deploy.scenario import get_scenario
from specvit_training.baselines import load_baseline
from specvit_training.checkpoint import load_checkpoint, subtree
from specvit_training.estimator import Estimator, Preparation, sufficient_statistic
from specvit_training.fit import build_network
from specvit_training.limits import Limits, TorchEmulator

Predictor = Callable[[NDArray[np.float32], NDArray[np.float32]], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Model:
    """Something to evaluate: its name in the report, what it is, and how to run it."""

    name: str
    facts: dict[str, Any]
    predict: Predictor


def load_model(path: str, scenario: str) -> Model:
    """Open a bundle (path or embedded name), a checkpoint or a baseline; `template` and `posterior` need no file.

    A checkpoint, template and posterior are told `scenario`.
    """
    if path in ("template", "posterior"):
        return _exact_model(path, scenario)
    if path.endswith(".safetensors"):
        _, header = load_checkpoint(Path(path))
        return _baseline_model(Path(path)) if "kind" in header else _checkpoint_model(Path(path), scenario)
    bundle = load_bundle(path)
    estimator = BundleEstimator(bundle)

    def predict(flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        table = estimator(flux, error)
        return {name: table[name] for name in ("log_g", "log_g_lo", "log_g_hi", "log_g_err")}

    facts = {
        "kind": "bundle",
        "sha256": bundle.sha256,
        "told": bundle.scenario,
        "engine": estimator.engine.name,
    }
    return Model(bundle.name, facts, predict)


@torch.no_grad()
def score_estimator(estimator: Estimator, recipe: Recipe) -> dict[str, Any]:
    """Scores and coverage of a torch estimator on a test set, with the recipe's hash."""
    truth, columns = [], []
    for labels, flux, error in recipe.blocks():
        out = estimator(torch.from_numpy(flux), torch.from_numpy(error))
        truth.append(labels[:, LOG_G].astype(np.float64))
        columns.append(
            torch.stack([out.labels[:, LOG_G], out.log_g_lo, out.log_g_hi, out.log_g_err], 1).double().numpy()
        )
    y, table = (
        np.concatenate(truth),
        dict(zip(("log_g", "log_g_lo", "log_g_hi", "log_g_err"), np.concatenate(columns).T, strict=True)),
    )
    return {
        "test_set": {**recipe.describe(), "hash": recipe.hash},
        **scores(y, table["log_g"]),
        **_coverage(y, table),
    }


def _exact_model(name: str, scenario: str) -> Model:
    """Maximum-likelihood template fit or posterior mean, both on the emulator."""
    sampler = PosteriorSampler(get_scenario(scenario))

    def fit(flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {"log_g": sampler.fit(flux, error).labels[:, LOG_G]}

    def sample(flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        found = sampler(flux, error)
        low, high = found.quantiles[:, LOG_G, 1], found.quantiles[:, LOG_G, 3]
        return {"log_g": found.mean[:, LOG_G], "log_g_lo": low, "log_g_hi": high, "log_g_err": found.sd[:, LOG_G]}

    return Model(name, {"kind": name, "told": scenario}, fit if name == "template" else sample)


def _baseline_model(path: Path) -> Model:
    predict, header = load_baseline(path)
    config = header["config"]
    facts = {"kind": "baseline", "told": config["scenario"], "spectra_seen": config["n"]}
    facts |= {k: header[k] for k in ("parameters", "trees", "penalty") if k in header}
    return Model(header["kind"], facts, lambda flux, error: {"log_g": predict(flux, error)})


def _checkpoint_model(path: Path, scenario: str) -> Model:
    tensors, header = load_checkpoint(path)
    network = build_network(header["config"]["model"])
    network.load_state_dict(subtree(tensors, "ema"))
    network.eval()
    mean, error, _ = sufficient_statistic(default_emulator(), default_noise_model())
    preparation = Preparation(_f32(mean), _f32(error), get_scenario(scenario))

    @torch.no_grad()
    def predict(flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        out = network(preparation(torch.from_numpy(flux), torch.from_numpy(error)).network)[:, LOG_G].numpy()
        return {
            "log_g": (LABEL_BOX.center[LOG_G] + LABEL_BOX.sd[LOG_G] * out).clip(
                LABEL_BOX.low[LOG_G], LABEL_BOX.high[LOG_G]
            )
        }

    facts = {
        "kind": "checkpoint",
        "model": header["config"]["model"],
        "told": scenario,
        "spectra_seen": header["step"] * header["config"]["batch"],
        "training_minutes": round(header["elapsed_s"] / 60, 1),
    }
    return Model(header["config"]["model"], facts, predict)


@torch.no_grad()
def evaluate(
    paths: Sequence[str], recipe: Recipe, advance: Callable[[int], None] = lambda rows: None
) -> dict[str, Any]:
    """Evaluate models on one test set with the same noise.

    Parameters
    ----------
    paths : sequence of str
        Bundles or checkpoints; R2 differences are taken to the first.
    recipe : Recipe
        The test set.
    advance : callable
        Told the number of rows after each block.

    Returns
    -------
    dict
        Recipe, limits of the spectra at their true labels with the scenario's nuisances (overall and by S/N bin),
        and per model the scores in dex: overall with bootstrap intervals, and by S/N, [M/H], type (true log g) and
        predicted log g.
    """
    models = [load_model(path, recipe.scenario) for path in paths]
    scenario = get_scenario(recipe.scenario)
    mean, reference, _ = sufficient_statistic(default_emulator(), default_noise_model())
    preparation = Preparation(_f32(mean), _f32(reference), scenario)
    limits = Limits(TorchEmulator(default_emulator()), scenario)
    truth, snr, crlb, crlb_prior, m_h = [], [], [], [], []
    outputs: list[list[dict[str, NDArray[Any]]]] = [[] for _ in models]
    for labels, flux, error in recipe.blocks():
        prepared = preparation(torch.from_numpy(flux), torch.from_numpy(error))
        bound, bound_prior, _ = limits(torch.from_numpy(labels), prepared.flux, prepared.inverse_variance)
        truth.append(labels[:, LOG_G].astype(np.float64))
        snr.append(median_snr(flux, error))
        m_h.append(labels[:, LABELS.index("M_H")])
        crlb.append(bound.numpy())
        crlb_prior.append(bound_prior.numpy())
        for model, parts in zip(models, outputs, strict=True):
            parts.append(model.predict(flux, error))
        advance(len(flux))
    y, s, c, cp = (np.concatenate(x).astype(np.float64) for x in (truth, snr, crlb, crlb_prior))
    tables = [{k: np.concatenate([p[k] for p in parts]).astype(np.float64) for k in parts[0]} for parts in outputs]
    by_snr = _cells(s, SNR_EDGES)
    by_m_h = _cells(np.concatenate(m_h).astype(np.float64), M_H_EDGES)
    by_type = [({"name": name, **cell}, rows) for name, low, high in TYPES for cell, rows in _cells(y, (low, high))]
    return {
        "version": __version__,
        "test_set": {
            **recipe.describe(),
            "hash": recipe.hash,
            "snr_convention": "median over good pixels of flux/error",
        },
        "limits": {
            "nuisances": recipe.scenario,
            "overall": _limits(c, cp),
            "by_snr": [{**cell, **_limits(c[rows], cp[rows])} for cell, rows in by_snr],
        },
        "models": [
            {
                "name": model.name,
                **model.facts,
                "overall": with_intervals(y, table["log_g"]),
                **_coverage(y, table),
                "r2_minus_first": paired_r2_difference(y, table["log_g"], tables[0]["log_g"]),
                "by_snr": _by_cell(y, table, by_snr),
                "by_M_H": _by_cell(y, table, by_m_h),
                "by_type": _by_cell(y, table, by_type),
                "by_predicted_log_g": _by_cell(y, table, _cells(table["log_g"], LOG_G_EDGES)),
            }
            for model, table in zip(models, tables, strict=True)
        ],
    }


Cells = list[tuple[dict[str, Any], NDArray[np.bool_]]]


def _cells(values: NDArray[np.float64], edges: tuple[float, ...]) -> Cells:
    """Bins of at least 50 spectra: what to call each, and its rows."""
    cells = [((low, high), (values >= low) & (values < high)) for low, high in pairwise(edges)]
    return [
        ({"range": [v if np.isfinite(v) else None for v in (low, high)], "n": int(rows.sum())}, rows)
        for (low, high), rows in cells
        if rows.sum() >= 50
    ]


def _by_cell(truth: NDArray[np.float64], table: dict[str, NDArray[np.float64]], cells: Cells) -> list[dict[str, Any]]:
    return [
        {
            **cell,
            **scores(truth[rows], table["log_g"][rows]),
            **_coverage(truth[rows], {name: column[rows] for name, column in table.items()}),
        }
        for cell, rows in cells
    ]


def _limits(crlb: NDArray[np.float64], crlb_prior: NDArray[np.float64]) -> dict[str, Any]:
    finite = np.isfinite(crlb)
    return {
        "crlb_median": float(np.median(crlb)),
        "crlb_rms_of_finite": float(np.sqrt((crlb[finite] ** 2).mean())) if finite.any() else None,
        "crlb_infinite_share": float(1 - finite.mean()),
        "crlb_prior_median": float(np.median(crlb_prior)),
        "crlb_prior_rms": float(np.sqrt((crlb_prior**2).mean())),
    }


def _coverage(truth: NDArray[np.float64], table: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    if "log_g_lo" not in table:
        return {}
    inside = (truth >= table["log_g_lo"]) & (truth <= table["log_g_hi"])
    within = np.abs(truth - table["log_g"]) <= table["log_g_err"]
    return {"coverage_68_interval": float(inside.mean()), "coverage_1_sigma": float(within.mean())}


def _f32(array: NDArray[np.float64]) -> torch.Tensor:
    return torch.as_tensor(array, dtype=torch.float32)

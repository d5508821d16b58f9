"""Accuracy of models on one named test set, beside the limits of the same spectra."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from specvit_deploy import __version__
from specvit_deploy.atomic import whole_file
from specvit_deploy.emulator import default_emulator
from specvit_deploy.labels import LABELS, LOG_G
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
from specvit_deploy.quality import median_snr
from specvit_deploy.recipe import Recipe
from specvit_deploy.scenario import get_scenario
from specvit_training.contestants import Model, load_models
from specvit_training.estimator import Estimator, Preparation, sufficient_statistic
from specvit_training.limits import Limits, TorchEmulator


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


@torch.no_grad()
def evaluate(
    arguments: Sequence[str],
    recipe: Recipe,
    advance: Callable[[int], None] = lambda rows: None,
    predictions: Path | None = None,
) -> dict[str, Any]:
    """Evaluate models on one test set with the same noise.

    Parameters
    ----------
    arguments : sequence of str
        Models, PATH or NAME=PATH (see `contestants.load_model`); R2 differences are taken to the first.
    recipe : Recipe
        The test set.
    advance : callable
        Told the number of spectra after each block.
    predictions : Path, optional
        HDF5 file to write every estimate to, whole or not at all: `truth` (N, 5) in the order of its attribute
        `labels`; `snr` (median), `log_snr` (log10 of the rms S/N per good pixel), `crlb`, `crlb_prior` (N,);
        `models/NAME/log_g` (N,) and, where a model has them, `log_g_err`, `log_g_lo`, `log_g_hi`.

    Returns
    -------
    dict
        Recipe, limits of the spectra at their true labels with the scenario's nuisances (overall and by S/N bin),
        and per model what it cost, processor time included, and its scores in dex: overall with bootstrap intervals,
        and by S/N, [M/H], type, true and predicted log g.
    """
    models = load_models(list(arguments), recipe.scenario)
    scenario = get_scenario(recipe.scenario)
    mean, reference, _ = sufficient_statistic(default_emulator(), default_noise_model())
    preparation = Preparation(_f32(mean), _f32(reference), scenario)
    limits = Limits(TorchEmulator(default_emulator()), scenario)
    stars: dict[str, list[NDArray[Any]]] = {k: [] for k in ("truth", "snr", "log_snr", "crlb", "crlb_prior")}
    outputs: list[list[dict[str, NDArray[Any]]]] = [[] for _ in models]
    seconds = np.zeros(len(models))
    with one_thread():
        for labels, flux, error in recipe.blocks():
            prepared = preparation(torch.from_numpy(flux), torch.from_numpy(error))
            bound, bound_prior, _ = limits(torch.from_numpy(labels), prepared.flux, prepared.inverse_variance)
            stars["truth"].append(labels)
            stars["snr"].append(median_snr(flux, error))
            stars["log_snr"].append(prepared.network.log_snr[:, 0].numpy())
            stars["crlb"].append(bound.numpy())
            stars["crlb_prior"].append(bound_prior.numpy())
            for i, model in enumerate(models):
                begun = time.process_time()
                outputs[i].append(model.predict(flux, error))
                seconds[i] += time.process_time() - begun
            advance(len(flux))
    star = {k: np.concatenate(parts).astype(np.float64) for k, parts in stars.items()}
    tables = [{k: np.concatenate([p[k] for p in parts]).astype(np.float64) for k in parts[0]} for parts in outputs]
    if predictions:
        _write_predictions(predictions, recipe, star, models, tables)
    y, c, cp = star["truth"][:, LOG_G], star["crlb"], star["crlb_prior"]
    cells = {
        "by_snr": _cells(star["snr"], SNR_EDGES),
        "by_M_H": _cells(star["truth"][:, LABELS.index("M_H")], M_H_EDGES),
        "by_type": [
            ({"name": name, **cell}, rows) for name, low, high in TYPES for cell, rows in _cells(y, (low, high))
        ],
        "by_true_log_g": _cells(y, LOG_G_EDGES),
    }
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
            "by_snr": [{**cell, **_limits(c[rows], cp[rows])} for cell, rows in cells["by_snr"]],
        },
        "models": [
            {
                "name": model.name,
                **model.facts,
                **asdict(model.cost),
                "ms_per_spectrum": round(1e3 * float(taken) / len(y), 4),
                "overall": with_intervals(y, table["log_g"]),
                **_coverage(y, table),
                "r2_minus_first": paired_r2_difference(y, table["log_g"], tables[0]["log_g"]),
                **{name: _by_cell(y, table, group) for name, group in cells.items()},
                "by_predicted_log_g": _by_cell(y, table, _cells(table["log_g"], LOG_G_EDGES)),
            }
            for model, table, taken in zip(models, tables, seconds, strict=True)
        ],
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as every time per spectrum is stated."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_predictions(
    path: Path,
    recipe: Recipe,
    star: dict[str, NDArray[np.float64]],
    models: Sequence[Model],
    tables: Sequence[dict[str, NDArray[np.float64]]],
) -> None:
    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update({"creator": f"specvit-deploy {__version__}", "test_set": json.dumps(recipe.describe())})
        file.attrs["hash"] = recipe.hash
        for name, column in star.items():
            file[name] = column
        file["truth"].attrs["labels"] = LABELS
        for model, table in zip(models, tables, strict=True):
            for name, column in table.items():
                file[f"models/{model.name}/{name}"] = column


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

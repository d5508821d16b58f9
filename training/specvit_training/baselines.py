"""Baselines on the same spectra: ridge regression and gradient-boosted trees on normalised flux.

Both see flux over amplitude minus the mean template, 0 at bad pixels: what the published baselines saw, made robust
to masks and units. Neither is told the errors.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G
from specvit_deploy.noise import default_noise_model
from specvit_deploy.recipe import Recipe
from specvit_deploy.scenario import get_scenario
from specvit_training.checkpoint import load_checkpoint, save_checkpoint
from specvit_training.estimator import Preparation, sufficient_statistic
from specvit_training.fit import prepare_folder

Features = NDArray[np.float32]
Data = tuple[Features, NDArray[np.float64]]
Fitted = tuple[dict[str, torch.Tensor], dict[str, Any]]
KINDS = ("ridge", "lightgbm")
ALPHAS = tuple(10.0 ** (0.5 * k) for k in range(-6, 9))
"""Ridge penalties that are tried, in units of the mean eigenvalue of X^T X."""
TREES = {"learning_rate": 0.05, "num_leaves": 63, "bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.8}
"""Settings of the published LightGBM baseline."""
QUICK = {"objective": "regression", "force_col_wise": True}
"""Least squares; histograms by columns at once instead of timing both layouts first: the trees are the same."""
PATIENCE = 50
"""Trees without gain on the held spectra before the boosting stops."""


@dataclass(frozen=True)
class BaselineConfig:
    """A baseline's run, as in `training/configs/{ridge,lightgbm}.toml`.

    Parameters
    ----------
    model : str
        "ridge" or "lightgbm".
    scenario, mag : str, (float, float)
        Of the training spectra.
    n, validation : int
        Training spectra, and those that choose the penalty or stop the boosting.
    seed : int
        Of both.
    threads : int
        Of the trees.
    trees : int
        Most of them; boosting stops earlier when the held spectra gain nothing for `PATIENCE` trees.
    """

    model: str
    scenario: str
    mag: tuple[float, float] = (20.5, 22.5)
    n: int = 50_000
    validation: int = 5_000
    seed: int = 5_101
    threads: int = 2
    trees: int = 5000


def read_baseline(path: Path) -> BaselineConfig | None:
    """Read a baseline's configuration from TOML; None if it is that of a network.

    Raises
    ------
    SpecVitError
        For an unknown key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecVitError(f"cannot read the training configuration {path} ({error}); see training/configs") from None
    return baseline_from_dict(table) if table.get("model") in KINDS else None


def baseline_from_dict(table: dict[str, Any]) -> BaselineConfig:
    """Build a configuration from plain data."""
    known = {f.name for f in fields(BaselineConfig)}
    if unknown := sorted(set(table) - known):
        raise SpecVitError(f"unknown option {', '.join(unknown)} of a baseline; choose from {', '.join(sorted(known))}")
    try:
        rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        config = BaselineConfig(**rest)
    except TypeError as error:
        raise SpecVitError(f"incomplete configuration of a baseline ({error}); see training/configs") from None
    get_scenario(config.scenario)
    if min(config.n, config.validation, config.threads, config.trees) < 1:
        raise SpecVitError("n, validation, threads and trees of a baseline must be at least 1; see training/configs")
    return config


def preparation(scenario: str) -> Preparation:
    """Build the preparation whose residual the baselines see."""
    mean, error, _ = sufficient_statistic(default_emulator(), default_noise_model())
    return Preparation(torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(error.astype(np.float32)),
                       get_scenario(scenario))  # fmt: skip


@torch.no_grad()
def features(prepare: Preparation, flux: Features, error: Features) -> Features:
    """Flux over amplitude minus the mean template, 0 at bad pixels, (N, n)."""
    out: Features = prepare(torch.from_numpy(flux), torch.from_numpy(error)).network.residual.numpy()
    return out


def train_baseline(config: BaselineConfig, out: Path, log: Callable[[str], None] = print) -> Path:
    """Train a baseline and return its file, `out`/baseline.safetensors.

    Raises
    ------
    SpecVitError
        If `out` cannot be made, or the package of the trees is missing.
    """
    path = prepare_folder(out) / "baseline.safetensors"
    prepare = preparation(config.scenario)
    train = Recipe(config.scenario, config.mag, config.n, config.seed)
    held = Recipe(config.scenario, config.mag, config.validation, config.seed + 1)
    log(f"{config.model}: {config.n} spectra of {config.scenario}, {config.validation} for validation")
    fit = _fit_ridge if config.model == "ridge" else _fit_trees
    begun = time.monotonic()
    tensors, facts = fit(_matrices(prepare, train), _matrices(prepare, held), config, log)
    facts["elapsed_s"] = time.monotonic() - begun  # the spectra included, as in the training of a network
    save_checkpoint(path, tensors, {"kind": config.model, "config": asdict(config), **facts})
    return path


def _matrices(prepare: Preparation, recipe: Recipe) -> tuple[Features, NDArray[np.float64]]:
    """Features (n, pixels) and log g (n,) of a recipe."""
    x, y, row = np.empty((recipe.n, len(prepare.mean)), np.float32), np.empty(recipe.n), 0
    for labels, flux, error in recipe.blocks():
        rows = slice(row, row + len(flux))
        x[rows], y[rows] = features(prepare, flux, error), labels[:, LOG_G]
        row += len(flux)
    return x, y


@dataclass(frozen=True)
class Ridge:
    """Linear regression: `weight` (k,), `center` (k,) of the features, `intercept`, `penalty`, rmse on held spectra."""

    weight: NDArray[np.float64]
    center: Features
    intercept: float
    penalty: float
    rmse: float

    def __call__(self, x: Features) -> NDArray[np.float64]:
        """Predict from features (N, k)."""
        return np.asarray((x - self.center) @ self.weight + self.intercept)


def solve_ridge(train: Data, held: Data) -> Ridge:
    """Solve for every penalty of `ALPHAS` from one eigendecomposition; the best on the held spectra wins.

    Of X^T X, or of X X^T where there are fewer spectra than features: the weights are the same.
    """
    (x, y), (x_held, y_held) = train, held
    center, middle = x.mean(0), float(y.mean())
    x = x - center
    target, few = (y - middle).astype(np.float32), len(x) < x.shape[1]
    gram = (x @ x.T if few else x.T @ x).astype(np.float64)
    value, vector = np.linalg.eigh(gram)
    projected = vector.T @ (target if few else x.T @ target)
    unit = float(np.trace(gram)) / x.shape[1]

    def solve(penalty: float) -> Ridge:
        weight = vector @ (projected / (value.clip(min=0.0) + penalty))
        weight = x.T @ weight if few else weight
        rmse = float(np.sqrt((((x_held - center) @ weight + middle - y_held) ** 2).mean()))
        return Ridge(weight, center, middle, penalty, rmse)

    return min((solve(alpha * unit) for alpha in ALPHAS), key=lambda ridge: ridge.rmse)


def _fit_ridge(train: Data, held: Data, config: BaselineConfig, log: Callable[[str], None]) -> Fitted:
    ridge = solve_ridge(train, held)
    log(f"penalty {ridge.penalty:.3g}, rmse {ridge.rmse:.4f} dex on the held spectra")
    tensors = {
        "weight": torch.from_numpy(ridge.weight.astype(np.float32)),
        "center": torch.from_numpy(ridge.center),
        "intercept": torch.tensor([ridge.intercept], dtype=torch.float32),
    }
    return tensors, {"penalty": ridge.penalty, "parameters": len(ridge.weight) + 1}


def _fit_trees(train: Data, held: Data, config: BaselineConfig, log: Callable[[str], None]) -> Fitted:
    import lightgbm

    settings = {**TREES, **QUICK, "num_threads": config.threads, "seed": config.seed, "verbosity": -1}
    data = lightgbm.Dataset(*train, params=settings, free_raw_data=True).construct()
    judge = lightgbm.Dataset(*held, reference=data, params=settings, free_raw_data=True).construct()
    del train, held  # only their bins are needed from here on
    booster = lightgbm.train(
        settings,
        data,
        num_boost_round=config.trees,
        valid_sets=[judge],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False), _report(log)],
    )
    text = booster.model_to_string(num_iteration=booster.best_iteration)
    log(f"{booster.best_iteration} trees")
    tensors = {"text": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}
    return tensors, {
        "trees": booster.best_iteration,
        "parameters": booster.best_iteration * (2 * TREES["num_leaves"] - 1),
    }


def _report(log: Callable[[str], None]) -> Callable[[Any], None]:
    def report(env: Any) -> None:
        if (env.iteration + 1) % 50 == 0:
            log(f"{env.iteration + 1} trees, rmse {env.evaluation_result_list[0][2] ** 0.5:.4f} dex")

    return report


def load_baseline(path: Path) -> tuple[Callable[[Features, Features], NDArray[np.float64]], dict[str, Any]]:
    """Open a baseline: a function from flux and error (N, n) to log g (N,), and the file's header.

    Raises
    ------
    SpecVitError
        If the file is no baseline.
    """
    tensors, header = load_checkpoint(path)
    if header.get("kind") not in KINDS:
        raise SpecVitError(f"{path} is no baseline; train one with training/configs/ridge.toml or lightgbm.toml")
    prepare = preparation(header["config"]["scenario"])
    if header["kind"] == "ridge":
        weight, center, middle = (tensors[k].numpy().astype(np.float64) for k in ("weight", "center", "intercept"))
        return lambda flux, error: (features(prepare, flux, error) - center) @ weight + middle, header
    import lightgbm

    booster = lightgbm.Booster(model_str=bytes(tensors["text"].numpy()).decode())
    return lambda flux, error: np.asarray(booster.predict(features(prepare, flux, error), num_threads=1)), header

"""The parity gate: every engine must agree with torch on every kind of spectrum, or nothing is shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from specvit_training.estimator import OUTPUTS, Estimator, Prepared, design_rank

from specvit_deploy.labels import LOG_G
from specvit_deploy.metrics import scores
from specvit_deploy.recipe import Recipe, test_recipe
from specvit_export.cases import DOMAIN_MAG, parity_cases
from specvit_export.tolerance import (
    COVERAGE_TOLERANCE,
    CRLB_TOLERANCE,
    LIMITS,
    LOG_G_TOLERANCE,
    P999_SIGMA,
    R2_TOLERANCE,
    RMS_SIGMA,
    WORST_SIGMA,
    Outputs,
    check_fractions,
    check_same_kind,
    check_worst,
    compare,
    compare_limits,
    failed,
    in_sigma,
    rms_of,
)

BATCHES = (1, 7, None)
"""Rows of one call while checking: one, an odd number, the engine's own."""
SPIKES = 10.0
"""Factor on the tolerance of float32 for spectra with spikes 10^4 times the star, chi2 near 10^7: sums over such pixels
in another order differ by up to 7e-4 dex, 0.1 % of the stated error."""
BLOCK = 64


class Runs(Protocol):
    """What the gate needs of an engine."""

    batch: int
    description: str

    def run(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Outputs by name, from flux and error (N, 4096)."""


Load = Callable[[int | None], Runs]
"""Loads an engine for so many rows a call; None is its own best."""


@dataclass(frozen=True)
class Sample:
    """Spectra with what torch makes of them; N rows.

    Parameters
    ----------
    flux, error : (N, 4096) arrays
    truth : (N,) array
        True log g.
    outputs : dict
        What the torch estimator gives.
    """

    flux: NDArray[np.float32]
    error: NDArray[np.float32]
    truth: NDArray[Any]
    outputs: Outputs


@dataclass(frozen=True)
class Reference:
    """What every engine is compared with, made once.

    Parameters
    ----------
    estimator : Estimator
        In torch, float32.
    cases : dict of slices
        Rows of each kind of spectrum in `mixed`.
    mixed : Sample
        All kinds of spectra, one after another, so that batches hold several kinds; no truth.
    domain, test : Sample
        Spectra over the training domain, and the test set.
    """

    estimator: Estimator
    cases: Mapping[str, slice]
    mixed: Sample
    domain: Sample
    test: Sample


def make_reference(estimator: Estimator, scenario: str, tests: int = 10_000) -> Reference:
    """Draw the spectra of the gate and run the torch estimator on them."""
    estimator.eval()
    cases, rows, start = parity_cases(scenario), {}, 0
    for name, (flux, _) in cases.items():
        rows[name] = slice(start, start + len(flux))
        start += len(flux)
    flux, error = (np.concatenate([case[i] for case in cases.values()]) for i in (0, 1))
    return Reference(
        estimator,
        rows,
        Sample(flux, error, np.zeros(0), torch_outputs(estimator, flux, error)),
        _sample(estimator, Recipe(scenario, DOMAIN_MAG, max(tests // 5, 100), 8_005)),
        _sample(estimator, test_recipe(scenario, tests)),
    )


def check_engine(reference: Reference, load: Load, precision: str, where: str) -> dict[str, Any]:
    """Compare an engine with torch: all kinds of spectra at batch 1, 7 and its own, then the domain and the test set.

    Parameters
    ----------
    reference : Reference
        Of the same estimator.
    load : callable
        Loads the engine.
    precision : str
        `fp32` is held to rounding, all others to a fraction of the stated errors.
    where : str
        Name of the engine in errors.

    Returns
    -------
    dict
        What a parity report says, the time aside.

    Raises
    ------
    SpecVitError
        If any difference exceeds its tolerance, one side is finite where the other is not, or a row depends on others.
    """
    exact = precision == "fp32"
    cases: dict[str, dict[str, float]] = {name: {} for name in reference.cases}
    for batch in BATCHES:
        engine = load(batch)
        outputs = engine.run(reference.mixed.flux, reference.mixed.error)
        at_labels = limits_at(reference.estimator, reference.mixed, outputs)
        for name, rows in reference.cases.items():
            place = f"{where}, {name}, batch {batch or engine.batch}"
            factor = SPIKES if name == "spikes" else 1.0
            found = _compare_rows(outputs, reference.mixed.outputs, at_labels, rows, exact, place, factor)
            for key, difference in found.items():
                cases[name][key] = max(cases[name].get(key, 0.0), difference)
    check_independence(engine, reference.mixed, where)
    domain, _ = check_sample(engine, reference.domain, exact, f"{where}, magnitude 18 to 23")
    test, changes = check_sample(engine, reference.test, exact, f"{where}, test spectra")
    return {
        "description": engine.description,
        "tolerance": (
            {"dex": LOG_G_TOLERANCE, "relative": CRLB_TOLERANCE}
            if exact
            else {
                "rms_sigma": RMS_SIGMA,
                "p999_sigma": P999_SIGMA,
                "max_sigma": WORST_SIGMA,
                "relative": CRLB_TOLERANCE,
            }
        )
        | {"r2": R2_TOLERANCE, "coverage": COVERAGE_TOLERANCE},
        "unit": "dex, other outputs relative" if exact else "stated error, limits relative",
        "batches": [batch or engine.batch for batch in BATCHES],
        "cases": cases,
        "largest": {key: max(case.get(key, 0.0) for case in cases.values()) for key in OUTPUTS},
        "log_g": test,
        "log_g_domain": domain,
        **changes,
        "spectra": len(reference.test.truth),
    }


def _compare_rows(
    outputs: Outputs, expected: Outputs, at_labels: Outputs, rows: slice, exact: bool, where: str, factor: float
) -> dict[str, float]:
    """Largest difference of each output of one kind of spectrum."""
    outputs, expected, at_labels = ({k: v[rows] for k, v in part.items()} for part in (outputs, expected, at_labels))
    check_same_kind(outputs, expected, where)
    limits = compare_limits(outputs, at_labels, where)
    if exact:
        return {key: compare(key, outputs[key], expected[key], where, factor) for key in OUTPUTS}
    return {**check_worst(in_sigma(outputs, expected), where), **limits, "n_good": 0.0}


def check_sample(engine: Runs, sample: Sample, exact: bool, where: str) -> tuple[dict[str, float], dict[str, float]]:
    """Compare an engine with torch on a set with truths: differences of log g, and changes of R2 and coverage.

    Raises
    ------
    SpecVitError
        If any exceeds its tolerance.
    """
    outputs = engine.run(sample.flux, sample.error)
    check_same_kind(outputs, sample.outputs, where)
    fractions = in_sigma(outputs, sample.outputs)
    dex = np.abs(outputs["labels"][:, LOG_G].astype(np.float64) - sample.outputs["labels"][:, LOG_G])
    sigma = fractions["labels"][:, LOG_G]
    found = {
        "rms_dex": rms_of(dex),
        "p999_dex": float(np.quantile(dex, 0.999)),
        "max_dex": float(dex.max()),
        "rms_sigma": rms_of(sigma),
        "p999_sigma": float(np.quantile(sigma, 0.999)),
    }
    if exact and found["p999_dex"] > LOG_G_TOLERANCE:
        raise failed(where, f"log_g differs by {found['p999_dex']:.2g} dex (tolerance {LOG_G_TOLERANCE:g})")
    check_fractions(fractions, where)
    allowed = max(COVERAGE_TOLERANCE, 2.5 / len(sample.truth))  # two spectra at least
    (r2, inside), (r2_torch, inside_torch) = (_quality(sample.truth, table) for table in (outputs, sample.outputs))
    changes = {"r2_change": r2 - r2_torch, "coverage_change": inside - inside_torch}
    if abs(changes["r2_change"]) > R2_TOLERANCE or abs(changes["coverage_change"]) > allowed:
        raise failed(
            where,
            f"R2 changes by {changes['r2_change']:+.4f} and coverage by {changes['coverage_change']:+.4f} "
            f"(tolerance {R2_TOLERANCE:g} and {allowed:g})",
        )
    return found, changes


def check_independence(engine: Runs, sample: Sample, where: str) -> None:
    """Refuse an engine in which a row's result depends on the other rows of its batch.

    Raises
    ------
    SpecVitError
        If any bit of a row changes when its neighbours become bright, faint or empty.
    """
    n = min(max(4, engine.batch), len(sample.flux))
    flux, error = sample.flux[:n].copy(), sample.error[:n].copy()
    alone = engine.run(flux, error)
    flux[0::4], error[1::4], flux[2::4] = np.nan, 1e-3, 1e4
    crowd = engine.run(flux, error)
    kept = slice(3, None, 4)
    for key in OUTPUTS:
        if not np.array_equal(alone[key][kept], crowd[key][kept], equal_nan=True):
            raise failed(where, f"{key} of a spectrum changes with the other spectra of its batch")


def limits_at(estimator: Estimator, sample: Sample, outputs: Outputs) -> Outputs:
    """Limits that torch gives at the labels that an engine reports; on empty rows, which have none, torch's own."""
    labels = np.nan_to_num(outputs["labels"], nan=4000.0)
    parts = []
    with torch.no_grad():
        for start in range(0, len(labels), BLOCK):
            rows = slice(start, start + BLOCK)
            prepared: Prepared = estimator.preparation(
                torch.from_numpy(sample.flux[rows]), torch.from_numpy(sample.error[rows])
            )
            crlb, prior, chi2 = estimator.limits(
                torch.from_numpy(labels[rows]), prepared.flux, prepared.inverse_variance
            )
            freedom = (prepared.n_good[:, 0] - design_rank(estimator.limits.scenario)).clamp(min=1.0)
            parts.append((crlb.numpy(), prior.numpy(), (chi2 / freedom).numpy()))
    empty = np.isnan(sample.outputs["labels"]).any(axis=1)
    return {
        key: np.where(empty, sample.outputs[key], np.concatenate(columns))
        for key, columns in zip(LIMITS, zip(*parts, strict=True), strict=True)
    }


def torch_outputs(estimator: Estimator, flux: NDArray[np.float32], error: NDArray[np.float32]) -> Outputs:
    """Outputs of a torch estimator by name."""
    with torch.no_grad():
        parts = [
            estimator(torch.from_numpy(flux[i : i + BLOCK]), torch.from_numpy(error[i : i + BLOCK]))
            for i in range(0, len(flux), BLOCK)
        ]
    return {key: np.concatenate([getattr(part, key).numpy() for part in parts]) for key in OUTPUTS}


def _sample(estimator: Estimator, recipe: Recipe) -> Sample:
    labels, flux, error = (np.concatenate(parts) for parts in zip(*recipe.blocks(), strict=True))
    return Sample(flux, error, labels[:, LOG_G].astype(np.float64), torch_outputs(estimator, flux, error))


def _quality(truth: NDArray[Any], table: Outputs) -> tuple[float, float]:
    inside = (truth >= table["log_g_lo"]) & (truth <= table["log_g_hi"])
    return scores(truth, table["labels"][:, LOG_G].astype(np.float64))["r2"], float(inside.mean())

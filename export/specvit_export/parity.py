"""The parity gate: torch and ONNX Runtime must agree on every kind of spectrum, or nothing is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from specvit_training.estimator import OUTPUTS, Estimator

from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G
from specvit_deploy.recipe import Recipe

LOG_G_TOLERANCE = 1e-4
"""Largest |d log_g| and |d log_g_err|, dex; twice that for either end of the interval."""
CRLB_TOLERANCE = 1e-3
"""Largest relative difference of CRLB, chi2, latent distance and the spreads of the other labels: what inherits the
rounding of the Fisher matrix."""
BATCHES = (1, 7, 64)

Case = tuple[NDArray[np.float32], NDArray[np.float32]]


def parity_cases(scenario: str) -> dict[str, Case]:
    """Ordinary, masked and extreme spectra by name: flux and error (N, 4096)."""
    rng = np.random.default_rng(11)

    def draw(mag: tuple[float, float], n: int, seed: int) -> Case:
        blocks = list(Recipe(scenario, mag, n, seed).blocks())
        return np.concatenate([b[1] for b in blocks]), np.concatenate([b[2] for b in blocks])

    flux, error = draw((20.5, 22.5), 128, 8_001)
    bright, bright_error = draw((15.0, 17.0), 32, 8_002)
    faint, faint_error = draw((23.0, 25.0), 32, 8_003)
    masked, masked_error = flux[:32].copy(), error[:32].copy()
    masked_error[rng.random(masked_error.shape) < np.linspace(0.05, 0.99, 32)[:, None]] = np.inf
    half, half_error = flux[:16].copy(), error[:16].copy()
    half[:8, :2048] = np.nan
    half_error[8:, 2048:] = 0.0
    return {
        "ordinary": (flux, error),
        "bright": (bright, bright_error),
        "faint": (faint, faint_error),
        "masked": (masked, masked_error),
        "half missing": (half, half_error),
        "flux x 1e6": (flux[:16] * np.float32(1e6), error[:16] * np.float32(1e6)),
        "flux x 1e-20": (flux[:16] * np.float32(1e-20), error[:16] * np.float32(1e-20)),
        "spikes": (np.where(rng.random((16, 4096)) < 0.001, np.float32(1e4), flux[:16]), error[:16]),
        "negative": (-flux[:8], error[:8]),
        "pure noise": (error[:16] * rng.standard_normal((16, 4096)).astype(np.float32), error[:16]),
        "no data": (np.full((4, 4096), np.nan, np.float32), error[:4]),
        "no error": (flux[:4], np.zeros((4, 4096), np.float32)),
    }


def check_parity(estimator: Estimator, graph: Path, scenario: str) -> dict[str, Any]:
    """Compare the graph on ONNX Runtime with the torch estimator at batch 1, 7 and 64.

    Returns
    -------
    dict
        Largest difference per case, output and overall.

    Raises
    ------
    SpecVitError
        If any difference exceeds its tolerance, or one side is finite where the other is not.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    estimator.eval()
    worst: dict[str, dict[str, float]] = {}
    for name, (flux, error) in parity_cases(scenario).items():
        with torch.no_grad():
            reference = estimator(torch.from_numpy(flux), torch.from_numpy(error))._asdict()
        for batch in BATCHES:
            parts = [
                session.run(list(OUTPUTS), {"flux": flux[i : i + batch], "error": error[i : i + batch]})
                for i in range(0, len(flux), batch)
            ]
            outputs = {
                key: np.concatenate(column) for key, column in zip(OUTPUTS, zip(*parts, strict=True), strict=True)
            }
            for key in OUTPUTS:
                difference = compare(key, outputs[key], reference[key].numpy(), f"{name}, batch {batch}")
                case = worst.setdefault(name, {})
                case[key] = max(case.get(key, 0.0), difference)
    overall = {key: max(case[key] for case in worst.values()) for key in OUTPUTS}
    return {
        "tolerance": {"dex": LOG_G_TOLERANCE, "relative": CRLB_TOLERANCE},
        "batches": list(BATCHES),
        "largest": overall,
        "cases": worst,
        "engine": f"onnxruntime {ort.__version__}",
        "torch": torch.__version__,
    }


def compare(key: str, value: NDArray[Any], reference: NDArray[Any], where: str) -> float:
    """Largest difference of one output: dex for log g and its errors, relative otherwise.

    Raises
    ------
    SpecVitError
        Beyond tolerance.
    """
    if value.shape != reference.shape:
        raise SpecVitError(
            f"parity failed ({where}): {key} has shape {value.shape}, torch {reference.shape}; export again"
        )
    same = (value == reference) | (np.isnan(value) & np.isnan(reference))
    if key == "n_good":
        if not same.all():
            raise SpecVitError(f"parity failed ({where}): n_good differs; the graph masks other pixels than torch")
        return 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.where(same, 0.0, np.abs(value.astype(np.float64) - reference))
        if key in ("labels", "label_sigma"):
            scale = np.abs(reference) + 1.0
            scale[:, LOG_G] = 1.0
            difference = difference / scale
        elif not key.startswith(("log_g_err", "log_g_lo", "log_g_hi")):
            difference = difference / np.abs(reference)
    difference[same] = 0.0
    loose = "crlb" in key or key in ("chi2_reduced", "latent_distance", "label_sigma")
    tolerance = np.full(difference.shape[1:], CRLB_TOLERANCE if loose else LOG_G_TOLERANCE)
    if key == "label_sigma":
        tolerance[LOG_G] = LOG_G_TOLERANCE
    if key in ("log_g_lo", "log_g_hi"):
        tolerance = 2 * tolerance  # an end of the interval is log g and a half-width together
    largest = float(difference.max())
    if not (difference <= tolerance).all():  # catches NaN: finite on one side only
        row = int(np.argmax(np.nan_to_num(difference / tolerance, nan=np.inf).reshape(len(value), -1).max(axis=1)))
        allowed = f"{tolerance.min():g} dex" if not loose else f"{CRLB_TOLERANCE:g}, log g {LOG_G_TOLERANCE:g} dex"
        raise SpecVitError(
            f"parity failed ({where}): {key} differs by {largest:.2g} in row {row} (tolerance {allowed}): "
            f"graph {value[row]}, torch {reference[row]}; nothing was written, check the torch and onnxruntime versions"
        )
    return largest

"""What may differ between torch and an engine, output by output.

float32: rounding, in dex and relative. Lower precision: a fraction of the error that the user is told, and the limits
must be those of the labels that are reported, to the rounding of float32: the Fisher matrix has one precision only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from specvit_training.estimator import OUTPUTS

from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G

Outputs = dict[str, NDArray[Any]]

LOG_G_TOLERANCE = 1e-4
"""float32: largest |d log_g| and |d log_g_err|, dex; twice that for either end of the interval. Errors beyond 1 dex,
which only spectra that are no star have, count relatively."""
CRLB_TOLERANCE = 1e-3
"""Largest relative difference of CRLB, chi2, latent distance and the spreads of the other labels: what inherits the
rounding of the Fisher matrix."""
RMS_SIGMA, P999_SIGMA = 0.05, 0.25
"""Lower precision: rms and 99.9th percentile of |d log_g| and of either end of the interval in units of log_g_err, of
other labels in units of their spread, and of relative differences of errors, spreads and latent distance."""
WORST_SIGMA = 1.0
"""Lower precision: largest of these differences on any kind of spectrum, those outside of the training domain too."""
R2_TOLERANCE, COVERAGE_TOLERANCE = 0.001, 0.005
"""Largest change of R2, and of the share of truths inside the 68 % interval, on the test spectra."""
LIMITS = ("log_g_crlb", "log_g_crlb_prior", "chi2_reduced")
"""Outputs that depend on labels and spectrum alone."""


def compare(key: str, value: NDArray[Any], reference: NDArray[Any], where: str, factor: float = 1.0) -> float:
    """Largest difference of one float32 output: dex for log g and its errors, relative otherwise.

    Parameters
    ----------
    key : str
        Name of the output.
    value, reference : arrays
        Of the engine and of torch.
    where : str
        For the error.
    factor : float
        On the tolerance.

    Raises
    ------
    SpecVitError
        Beyond tolerance.
    """
    check_shape(key, value, reference, where)
    same = (value == reference) | (np.isnan(value) & np.isnan(reference))
    if key == "n_good":
        if not same.all():
            raise failed(where, "n_good differs; the graph masks other pixels than torch")
        return 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.where(same, 0.0, np.abs(value.astype(np.float64) - reference))
        if key in ("labels", "label_sigma"):
            scale = np.abs(reference) + 1.0
            scale[:, LOG_G] = 1.0 if key == "labels" else np.maximum(np.abs(reference[:, LOG_G]), 1.0)
            difference = difference / scale
        elif key.startswith(("log_g_err", "log_g_lo", "log_g_hi")):
            difference = difference / np.maximum(np.abs(reference), 1.0)
        else:
            difference = difference / np.abs(reference)
    difference[same] = 0.0
    loose = key in LIMITS or key in ("latent_distance", "label_sigma")
    tolerance = np.full(difference.shape[1:], CRLB_TOLERANCE if loose else LOG_G_TOLERANCE)
    if key == "label_sigma":
        tolerance[LOG_G] = LOG_G_TOLERANCE
    if key in ("log_g_lo", "log_g_hi"):
        tolerance = 2 * tolerance  # an end of the interval is log g and a half-width together
    tolerance = factor * tolerance
    largest = float(difference.max())
    if not (difference <= tolerance).all():  # catches NaN: finite on one side only
        row = int(np.argmax(np.nan_to_num(difference / tolerance, nan=np.inf).reshape(len(value), -1).max(axis=1)))
        allowed = f"{tolerance.min():g} dex" if not loose else f"{tolerance.max():g}"
        raise failed(
            where,
            f"{key} differs by {largest:.2g} in row {row} (tolerance {allowed}): graph {value[row]}, "
            f"torch {reference[row]}",
        )
    return largest


def check_same_kind(outputs: Outputs, reference: Outputs, where: str) -> None:
    """Refuse outputs that are finite elsewhere than torch's, or count other pixels.

    The bound itself may be infinite elsewhere: it belongs to the labels, see `compare_limits`.

    Raises
    ------
    SpecVitError
        For the first output that is.
    """
    for key in OUTPUTS:
        check_shape(key, outputs[key], reference[key], where)
        odd = np.isfinite(outputs[key]) != np.isfinite(reference[key])
        if key != "log_g_crlb" and odd.any():
            row = int(np.argmax(odd.reshape(len(odd), -1).any(axis=1)))
            raise failed(where, f"{key} is {outputs[key][row]} in row {row}, torch {reference[key][row]}")
    if (outputs["n_good"] != reference["n_good"]).any():
        raise failed(where, "n_good differs; the graph masks other pixels than torch")


def compare_limits(outputs: Outputs, at_labels: Outputs, where: str) -> dict[str, float]:
    """Largest relative difference of the limits from those of torch at the reported labels.

    Parameters
    ----------
    outputs : dict
        What an engine gave.
    at_labels : dict
        `LIMITS` that torch gives at `outputs["labels"]`.

    Raises
    ------
    SpecVitError
        Beyond `CRLB_TOLERANCE`, or if one is finite where the other is not.
    """
    largest = {}
    for key in LIMITS:
        value, expected = outputs[key].astype(np.float64), at_labels[key].astype(np.float64)
        same = (value == expected) | (np.isnan(value) & np.isnan(expected))
        with np.errstate(invalid="ignore", divide="ignore"):
            difference = np.where(same, 0.0, np.abs(value - expected) / np.abs(expected))
        if not (difference <= CRLB_TOLERANCE).all():
            row = int(np.argmax(np.nan_to_num(difference, nan=np.inf)))
            raise failed(
                where,
                f"{key} is {value[row]:.6g} in row {row} where float32 gives {expected[row]:.6g} at the same labels "
                f"(tolerance {CRLB_TOLERANCE:g}): the Fisher matrix lost precision",
            )
        largest[key] = float(difference.max(initial=0.0))
    return largest


def in_sigma(outputs: Outputs, reference: Outputs) -> Outputs:
    """Absolute differences as fractions of the stated errors, see `RMS_SIGMA`; 0 where torch has no estimate."""
    sigma, spread = reference["log_g_err"], reference["label_sigma"].copy()
    spread[:, LOG_G] = sigma
    scales = {
        "labels": spread,
        "label_sigma": reference["label_sigma"],
        "log_g_err": sigma,
        "log_g_lo": sigma,
        "log_g_hi": sigma,
        "latent_distance": reference["latent_distance"],
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            key: np.nan_to_num(np.abs(outputs[key].astype(np.float64) - reference[key]) / scale)
            for key, scale in scales.items()
        }


def check_fractions(fractions: Outputs, where: str) -> None:
    """Refuse fractions whose rms or 99.9th percentile is beyond tolerance.

    Raises
    ------
    SpecVitError
        For the first output that is.
    """
    for key, values in fractions.items():
        rms, high = rms_of(values), float(np.quantile(values, 0.999, axis=0).max())
        if not (rms <= RMS_SIGMA and high <= P999_SIGMA):
            raise failed(
                where,
                f"{key} differs by {rms:.1%} rms and {high:.1%} at the 99.9th percentile of the stated error "
                f"(tolerance {RMS_SIGMA:.0%} and {P999_SIGMA:.0%})",
            )


def check_worst(fractions: Outputs, where: str) -> dict[str, float]:
    """Largest fraction of each output, refused beyond `WORST_SIGMA`.

    Raises
    ------
    SpecVitError
        For the first output that is.
    """
    largest = {key: float(values.max(initial=0.0)) for key, values in fractions.items()}
    for key, value in largest.items():
        if not value <= WORST_SIGMA:
            raise failed(where, f"{key} differs by {value:.2f} of the stated error (tolerance {WORST_SIGMA:g})")
    return largest


def rms_of(values: NDArray[Any]) -> float:
    """Largest root mean square of the columns."""
    return float(np.sqrt((values**2).mean(axis=0)).max())


def check_shape(key: str, value: NDArray[Any], reference: NDArray[Any], where: str) -> None:
    """Refuse an output of another shape than torch's."""
    if value.shape != reference.shape:
        raise failed(where, f"{key} has shape {value.shape}, torch {reference.shape}")


def failed(where: str, what: str) -> SpecVitError:
    """Build the error of a gate that closed."""
    return SpecVitError(
        f"parity failed ({where}): {what}; nothing was written, choose another --precision or check the versions of "
        "torch and the engine"
    )

"""Estimates of every test star, as `specvit-deploy evaluate --predictions` writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Truth and estimate of log g of one model on one test set, with the limits of its spectra.

    Parameters
    ----------
    model : str
        Its name.
    test_set : dict
        Recipe and hash.
    truth, estimate : (N,) arrays
        log g, dex.
    snr : (N,) array
        Median S/N per pixel.
    crlb, crlb_prior : (N,) arrays
        Cramer-Rao bound at the true labels, and the same with the label box as prior, dex; the first may be infinite.
    """

    model: str
    test_set: dict[str, Any]
    truth: Array
    estimate: Array
    snr: Array
    crlb: Array
    crlb_prior: Array


def read_predictions(path: Path, model: str | None = None) -> Predictions:
    """Read the estimates of one model.

    Raises
    ------
    SpecVitError
        If it is no such file, or does not hold that model; or holds several and none is named.
    """
    try:
        with h5py.File(path, "r") as file:
            models = list(file["models"])
            test_set = {**json.loads(file.attrs["test_set"]), "hash": str(file.attrs["hash"])}
            labels = list(file["truth"].attrs["labels"])
            truth = np.asarray(file["truth"][:, labels.index("log_g")], np.float64)
            columns = {name: np.asarray(file[name][()], np.float64) for name in ("snr", "crlb", "crlb_prior")}
            name = model or (models[0] if len(models) == 1 else None)
            if name is None or name not in models:
                given = "several models are" if name is None else f"no model {name} is"
                raise SpecVitError(f"{given} in {path}; name one with --model: {', '.join(models)}")
            estimate = np.asarray(file[f"models/{name}/log_g"][()], np.float64)
    except (OSError, KeyError, ValueError) as error:
        raise SpecVitError(
            f"{path} holds no predictions ({error}); write them with 'specvit-deploy evaluate --predictions'"
        ) from None
    return Predictions(name, test_set, truth, estimate, **columns)

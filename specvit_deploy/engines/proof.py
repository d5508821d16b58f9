"""An engine proves itself on this machine before it is used: spectra whose answers the bundle knows.

A parity report was written elsewhere, with other versions on another processor. So a bundle holds a few spectra with
the answers of its own source, and every engine is asked for them while loading.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.bundle import Bundle
from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LOG_G

PROOF = "proof.npz"
"""File of a bundle: flux and error (N, 4096), log_g and log_g_err (N,)."""
EXACT = 3e-4
"""Largest |d log_g| in float32, dex: what the parity gate allows, and room for another processor."""
REDUCED = 0.3
"""Largest |d log_g| of a reduced precision, as a share of log_g_err."""


def write_proof(
    folder: Path, flux: NDArray[np.float32], error: NDArray[np.float32], outputs: dict[str, NDArray[Any]]
) -> None:
    """Put spectra (N, 4096) and the outputs that a bundle's source gives for them into its folder."""
    np.savez_compressed(
        folder / PROOF, flux=flux, error=error, log_g=outputs["labels"][:, LOG_G], log_g_err=outputs["log_g_err"]
    )


def prove(engine: Any, bundle: Bundle) -> None:
    """Ask an engine for the answers that a bundle knows; bundles of earlier versions know none.

    Raises
    ------
    SpecVitError
        If they differ by more than `EXACT` or `REDUCED` allow.
    """
    if PROOF not in bundle.manifest["files"]:
        return
    with np.load(bundle.path / PROOF, allow_pickle=False) as proof:
        flux, error, known, sigma = (proof[name] for name in ("flux", "error", "log_g", "log_g_err"))
    difference = np.abs(engine.run(flux, error)["labels"][:, LOG_G] - known)
    allowed = EXACT if engine.precision == "fp32" else REDUCED * sigma
    if not (difference <= allowed).all():  # NaN is a failure too
        raise SpecVitError(
            f"{engine.name} {engine.precision} ({engine.description}) computes wrongly here: its log g differs by up "
            f"to {difference.max():.2g} dex from what the bundle knows of {len(known)} spectra; choose another engine "
            "or update its library"
        )

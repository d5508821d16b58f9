"""Reference engine: the estimator in torch, rebuilt from the weights inside a bundle instead of its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.bundle import Bundle
from specvit_deploy.engines.batches import in_batches, not_installed
from specvit_deploy.errors import SpecVitError

if TYPE_CHECKING:
    from specvit_training.estimator import Estimator

EXTRA = "train"
FORMS = {"fp32": "fp32"}
BATCH = 16
"""Rows of one call."""
WEIGHTS = "weights.safetensors"
LEARNED = ("vit.", "calibration.", "latent_")
"""Starts of the names of what training and calibration made; the rest of an estimator is the code's constants."""


def why_not(precision: str) -> str | None:
    """None if torch and safetensors are installed."""
    return not_installed("torch", EXTRA) or not_installed("safetensors", EXTRA)


def load(bundle: Bundle, precision: str, threads: int, batch: int | None) -> TorchEngine:
    """Rebuild a bundle's estimator."""
    return TorchEngine(rebuild(bundle), threads, batch or BATCH)


def rebuild(bundle: Bundle) -> Estimator:
    """Rebuild the estimator that a bundle was exported from.

    Raises
    ------
    SpecVitError
        If the bundle holds no weights of a ViT, or they do not fit its shape.
    """
    from safetensors.torch import load_file

    from specvit_deploy.emulator import default_emulator
    from specvit_deploy.noise import default_noise_model
    from specvit_deploy.scenario import get_scenario
    from specvit_training.estimator import Estimator
    from specvit_training.vit import CONFIGS, named_shape

    config = bundle.manifest.get("training", {}).get("config", {})
    if config.get("model") not in CONFIGS or WEIGHTS not in bundle.manifest["files"]:
        raise SpecVitError(f"bundle {bundle.name} holds no ViT's {WEIGHTS}; choose another engine than torch")
    shape = named_shape(config["model"], config.get("shape"))
    estimator = Estimator(shape, default_emulator(), default_noise_model(), get_scenario(bundle.scenario)).eval()
    given = {k: v for k, v in load_file(bundle.path / WEIGHTS).items() if k.startswith(LEARNED)}
    wanted = {k: v.shape for k, v in estimator.state_dict().items() if k.startswith(LEARNED)}
    if wanted != {k: v.shape for k, v in given.items()}:
        raise SpecVitError(f"the weights of bundle {bundle.name} do not fit its shape; export it again")
    estimator.load_state_dict(given, strict=False)
    return estimator


class TorchEngine:
    """An estimator run eagerly on the CPU.

    Parameters
    ----------
    estimator : Estimator
        In evaluation mode.
    threads : int
        Of torch, which has one number for the whole process.
    batch : int
        Rows of one call.
    """

    name, precision = "torch", "fp32"
    fell_back = False

    def __init__(self, estimator: Estimator, threads: int = 1, batch: int = BATCH) -> None:
        import torch

        torch.set_num_threads(threads)
        self.estimator, self.batch = estimator, batch
        self.description = f"torch {torch.__version__}, eager, CPU, {threads} thread{'s' * (threads > 1)}"

    def run(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Outputs of the estimator by name, from flux and error (N, 4096)."""
        return in_batches(self._once, flux, error, self.batch)

    def _once(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        import torch

        with torch.inference_mode():
            # a copy: torch warns about arrays that may not be written to
            found = self.estimator(torch.tensor(flux), torch.tensor(error))
        return {name: value.numpy() for name, value in found._asdict().items()}

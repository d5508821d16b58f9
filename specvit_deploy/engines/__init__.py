"""Engines: what runs a bundle's graph. One protocol, one small module each, imported on use."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.bundle import Bundle

BATCH = 16
"""Rows of one call: small batches stay in the cache of a CPU core."""


class Engine(Protocol):
    """Runs the whole estimator.

    Batches have a fixed size, the last one is padded: a row's result depends on its own pixels and its position
    alone, to the last bit.
    """

    name: str

    def run(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Outputs of the graph by name, N rows each, from flux and error (N, 4096)."""


def load_engine(bundle: Bundle, threads: int = 1, batch: int = BATCH) -> Engine:
    """Load the default engine for a bundle.

    Raises
    ------
    SpecVitError
        If no engine is installed.
    """
    from specvit_deploy.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle.graph("fp32"), threads=threads, batch=batch)

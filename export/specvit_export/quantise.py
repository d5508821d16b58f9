"""The int8 form: matrix products of the layers with static scales, everything else float32.

Weights and activations are signed and symmetric (S8S8), weights with one scale per output channel. Scales of the
activations are constants found on simulated spectra over the range of S/N: a dynamic scale would be shared by a batch,
and a bright star would move the others.

What was measured on the default model, in units of the stated error at magnitude 18 to 20.5 (rms, 99.9th percentile):
all four products of a layer 3.8 %, 28 %; without the last one of the MLP 2.1 %, 16 %, at 0.06 ms more. Its inputs,
after a GELU, fill half of a symmetric range. Extremes as scales beat percentiles (99.999: 7.9 %, 75 %); entropy
finds the extremes too.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from specvit_deploy.recipe import Recipe
from specvit_export.graph import trunk_nodes

CALIBRATION_MAG = ((15.0, 18.0), (18.0, 21.0), (21.0, 23.0), (23.0, 25.0))
"""Ranges of magnitude of the spectra behind the scales, equally many from each."""
CALIBRATION_SEED = 9_001
"""Seed of these spectra: apart from every training, test and calibration set."""
SPECTRA = 256
BATCH = 16


def calibration_spectra(scenario: str, n: int = SPECTRA) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flux and error (n, 4096) from bright to faint; every fourth spectrum has up to nine tenths of it masked."""
    each = n // len(CALIBRATION_MAG)
    blocks = [
        block
        for k, mag in enumerate(CALIBRATION_MAG)
        for block in Recipe(scenario, mag, each, CALIBRATION_SEED + k).blocks()
    ]
    flux, error = (np.concatenate([block[part] for block in blocks]) for part in (1, 2))
    rng = np.random.default_rng(CALIBRATION_SEED)
    masked = error[::4]
    masked[rng.random(masked.shape) < rng.uniform(0.0, 0.9, (len(masked), 1))] = np.inf
    return flux, error


def products(model: onnx.ModelProto) -> list[str]:
    """Names of the products to quantise."""
    weights = {tensor.name for tensor in model.graph.initializer}
    trunk = trunk_nodes(model)
    layers = sum(node.op_type == "LayerNormalization" for node in trunk) // 2
    names = [node.name for node in trunk if node.op_type == "MatMul" and node.input[1] in weights]
    each = len(names) // layers
    return [name for i, name in enumerate(names) if (i + 1) % each]


class _Spectra(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> None:
        self.batches: Iterator[dict[str, Any]] = iter(
            [{"flux": flux[i : i + BATCH], "error": error[i : i + BATCH]} for i in range(0, len(flux), BATCH)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def quantise(source: Path, path: Path, metadata: dict[str, str]) -> None:
    """Write the int8 twin of `source` (float32, attention as its parts) to `path`.

    Quantised are the products of a layer with a weight matrix, but for the last, that of the hidden layer of its MLP.
    Softmax attention, norms and the residual stream stay float32.

    Parameters
    ----------
    source, path : Path
        ONNX files.
    metadata : dict
        Text for the new file; `scenario` is that of the spectra behind the scales.
    """
    model = onnx.load(source)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "int8.onnx"
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it advises a preparation that this graph has been through
        quantize_static(
            str(source),
            str(made),
            _Spectra(*calibration_spectra(metadata["scenario"])),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products(model),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
            },
        )
        logging.root.setLevel(level)
        quantised = onnx.load(made)
    onnx.helper.set_model_props(quantised, metadata)
    onnx.save(quantised, path)

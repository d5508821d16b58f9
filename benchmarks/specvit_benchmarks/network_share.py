"""What the graph does besides its network: preparation, Fisher information, bounds, calibration, in share of its time.

The network alone is exported as a graph of its own, from prepared spectra to its outputs, by the same exporter, and
takes turns with the whole graph: what the whole graph takes longer is everything else.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxscript import optimizer
from specvit_training.estimator import Estimator
from specvit_training.second_look import SecondLook
from specvit_training.vit import Normalised
from torch import Tensor, nn

from specvit_benchmarks.turns import Array, rounds_of, spread

BATCHES = (8, 16, 32)
OPSET = 23


class Network(nn.Module):
    """The network of an estimator: what the ViT gives, and what its second look makes of it, if it has one."""

    def __init__(self, estimator: Estimator) -> None:
        super().__init__()
        self.network = estimator.vit
        self.index = estimator.preparation.scenario_index

    def forward(self, residual: Tensor, information: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """First and second estimate (B, 10) of prepared spectra."""
        scenario = torch.full_like(log_snr[:, 0], self.index, dtype=torch.int64)
        x = Normalised(residual, information, log_snr, scenario)
        if not isinstance(self.network, SecondLook):
            first = self.network(x)
            return first, first + 0.0
        first = self.network.network(x)
        return first, self.network.refine(first, x)


def network_share(estimator: Estimator, graph: Path, flux: Array, error: Array, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds a spectrum of the whole graph and of its network, and the share of the rest, batch by batch.

    Parameters
    ----------
    estimator : Estimator
        What the graph was made from.
    graph : Path
        Its float32 form, fused.
    flux, error : (N, 4096) float32 arrays
        Spectra, at least as many as the largest batch.
    rounds : int
        In which they take turns.

    Returns
    -------
    list of dict
        `batch`, `whole_ms`, `network_ms` (with the second look, if there is one), `vit_ms`; `outside_share`, the
        part of the time that is neither ViT nor second look, as median and quartiles over rounds.
    """
    with torch.no_grad():
        prepared = estimator.preparation(torch.from_numpy(flux), torch.from_numpy(error)).network
    tensors = {name: getattr(prepared, name) for name in ("residual", "information", "log_snr")}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    with TemporaryDirectory() as folder:
        network, vit = (str(Path(folder) / f"{name}.onnx") for name in ("network", "vit"))
        _export(Network(estimator).eval(), tuple(tensor[:2] for tensor in tensors.values()), network)
        onnx.utils.extract_model(network, vit, list(tensors), ["first"])
        sessions = {"whole": _session(str(graph)), "network": _session(network), "vit": _session(vit)}
    out = []
    for batch in BATCHES:
        repeats = max(1, 64 // batch)
        inputs: dict[str, dict[str, Array]] = {name: {k: v[:batch] for k, v in arrays.items()} for name in sessions}
        inputs["whole"] = {"flux": flux[:batch], "error": error[:batch]}
        found = rounds_of(
            {name: partial(_repeat, session, inputs[name], repeats) for name, session in sessions.items()}, rounds
        )
        milliseconds = {f"{name}_ms": 1e3 * float(np.median(t)) / (batch * repeats) for name, t in found.items()}
        share = spread(1.0 - found["network"] / found["whole"])
        out.append({"batch": batch, **milliseconds, "outside_share": share})
    return out


def _repeat(session: ort.InferenceSession, inputs: dict[str, Array], times: int) -> None:
    for _ in range(times):
        session.run(None, inputs)


def _session(path: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _export(network: Network, example: tuple[Tensor, ...], path: str) -> None:
    """Export as `specvit_export.graph` does."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(
            network,
            example,
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["residual", "information", "log_snr"],
            output_names=["first", "second"],
            dynamic_shapes=tuple({0: batch} for _ in example),
            external_data=False,
            verbose=False,
        )
        model = optimizer.optimize(onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True))
    onnx.save(model, path)

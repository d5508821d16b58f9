"""From an ONNX file to a serialised TensorRT engine; `library` is `tensorrt` (11 or later) or `tensorrt_rtx`."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from specvit_deploy.atomic import whole_file
from specvit_deploy.errors import SpecVitError
from specvit_deploy.graph_file import INPUTS

FUSED = ("fp16", "bf16")
"""Precisions whose attention has fused kernels; in float32 there is none."""


@dataclass(frozen=True)
class Plan:
    """A serialised engine.

    Parameters
    ----------
    data : bytes
        What TensorRT loads.
    layers : dict
        Layers of the network by type, as the builder was given them.
    attention : int
        Attention layers that were kept whole.
    seconds : float
        Wall time of parsing and building.
    """

    data: bytes
    layers: dict[str, int]
    attention: int
    seconds: float

    @property
    def facts(self) -> dict[str, Any]:
        """For a sidecar."""
        return {"seconds": round(self.seconds, 2), "attention_layers": self.attention, "layers": self.layers}


def build_plan(
    library: Any,
    graph: Path,
    precision: str,
    profile: tuple[int, int, int],
    capabilities: tuple[str, ...] = (),
    timing: Path | None = None,
) -> Plan:
    """Build an engine.

    TF32 is off, so that what the graph has in float32 is float32 (the Fisher information), and NaN stays NaN.
    An attention that is one node in the graph is marked as not decomposable: where no fused kernel takes it the build
    fails, it never comes apart.

    Parameters
    ----------
    library : module
        `tensorrt` or `tensorrt_rtx`.
    graph : Path
        ONNX file of the form that the precision reads.
    precision : str
        fp32, fp16, bf16 or int8.
    profile : (3,) tuple of int
        Least, best and largest batch.
    capabilities : tuple of str
        Compute capabilities to build for, without a device (`tensorrt_rtx`); the present device's if empty.
    timing : Path, optional
        File of the timing cache, made if it does not exist (`tensorrt`: the other never times).

    Raises
    ------
    SpecVitError
        If TensorRT cannot read the graph, has no fused attention for it, or cannot build it.
    """
    begun = time.monotonic()
    log = logger(library)
    log.errors.clear()
    builder = library.Builder(log)
    network = builder.create_network(0)
    parser = library.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise SpecVitError(
            f"{_version(library)} cannot read {graph}: {_parse_error(parser)}; export the graph again, "
            "or use the engine onnxruntime"
        )
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    attention = fused_attention(library, layers)
    if attention and precision not in FUSED:
        raise SpecVitError(
            f"{graph} has fused attention, for which TensorRT has no {precision} kernel; "
            "give the bundle's fp32-opset20 graph, or build fp16 or bf16"
        )
    config = builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)
    config.set_flag(library.BuilderFlag.STRICT_NANS)
    shapes = builder.create_optimization_profile()
    for name, (_, rest) in INPUTS.items():
        shapes.set_shape(name, *((rows, *rest) for rows in profile))
    config.add_optimization_profile(shapes)
    if capabilities:
        _target(library, config, capabilities)
    if timing is not None:
        _start_timing(config, timing)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise SpecVitError(
            f"{_version(library)} cannot build {graph} at {precision} ({one_line(log.errors)}); "
            "try another precision, or the engine onnxruntime or cuda"
        )
    if timing is not None:
        with whole_file(timing) as temporary:
            temporary.write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
    counts = Counter(layer.type.name.lower() for layer in layers)
    return Plan(bytes(memoryview(built)), dict(counts.most_common()), attention, time.monotonic() - begun)


def fused_attention(library: Any, layers: list[Any]) -> int:
    """Number of attentions that the network has whole: an input and an output layer each, not to be decomposed."""
    kinds = library.LayerType
    inputs = [layer for layer in layers if layer.type == kinds.ATTENTION_INPUT]
    outputs = sum(layer.type == kinds.ATTENTION_OUTPUT for layer in layers)
    whole = 0
    for layer in inputs:
        layer.__class__ = library.IAttentionInputLayer  # layers come out of a network as their base class
        whole += not layer.attention.decomposable
    if not len(inputs) == outputs == whole:
        raise SpecVitError(
            f"of {len(inputs)} attentions {whole} would stay whole; export the graph again with 'specvit-deploy export'"
        )
    return whole


@cache
def logger(library: Any) -> Any:
    """The one logger of a library: it keeps errors in `errors` and is silent."""

    class Quiet(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.errors.append(message)

    return Quiet()


def one_line(messages: list[str]) -> str:
    """First message, on one line of bearable length."""
    return " ".join(messages[0].split())[:240] if messages else "no reason given"


def known_capabilities(library: Any) -> tuple[str, ...]:
    """Compute capabilities that a library can build for without such a device."""
    return tuple(name.lower() for name in dir(getattr(library, "ComputeCapability", None)) if name.startswith("SM"))


def _target(library: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    known = known_capabilities(library)
    unknown = [name for name in capabilities if name not in known]
    if unknown:
        raise SpecVitError(
            f"{_version(library)} does not build for {', '.join(unknown)}; it knows {', '.join(known) or 'none'}"
        )
    config.num_compute_capabilities = len(capabilities)  # slots first
    for i, name in enumerate(capabilities):
        if not config.set_compute_capability(getattr(library.ComputeCapability, name.upper()), i):
            raise SpecVitError(f"{_version(library)} refuses to build for {name}; give other capabilities")


def _start_timing(config: Any, path: Path) -> None:
    """Start with the kept timings, or with none where there are none, or where they are of another machine."""
    kept = path.read_bytes() if path.exists() else b""
    for start in dict.fromkeys((kept, b"")):
        timings = config.create_timing_cache(start)
        if timings is not None and config.set_timing_cache(timings, False):
            return


def _parse_error(parser: Any) -> str:
    if not parser.num_errors:
        return "no reason given"
    error = parser.get_error(0)
    node = " ".join(part for part in (error.node_operator(), error.node_name()) if part)
    return one_line([f"{node}: {error.desc()}" if node else error.desc()])


def _version(library: Any) -> str:
    return f"{library.__name__} {library.__version__}"

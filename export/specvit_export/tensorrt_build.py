"""TensorRT engines ahead of time: one file for named compute capabilities, built without such a card.

TensorRT for RTX can do it. The native library builds on the card that it is for, and on no other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specvit_deploy.atomic import check_outputs
from specvit_deploy.bundle import file_sha256
from specvit_deploy.engines.device_memory import find_gpu
from specvit_deploy.engines.engine_cache import ENGINE, SIDECAR, EngineKey, write_engine
from specvit_deploy.engines.tensorrt import NATIVE, RTX
from specvit_deploy.engines.tensorrt_plan import FUSED, build_plan
from specvit_deploy.errors import SpecVitError
from specvit_deploy.graph_file import read_graph

CAPABILITIES = ("sm86", "sm89", "sm120")
"""Ampere, Ada and Blackwell cards."""
BATCH = (1, 64, 512)
"""Least, best and largest batch."""
LIBRARIES = {library.name: library for library in (NATIVE, RTX)}
WEIGHTS = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
"""Type of stored values that tells a form."""


def build(
    graph: Path,
    output: Path,
    precision: str,
    capabilities: tuple[str, ...] = CAPABILITIES,
    batch: tuple[int, int, int] = BATCH,
    target: str = "tensorrt-rtx",
) -> dict[str, Any]:
    """Build an engine from an ONNX file, with its key and facts in a JSON file beside it.

    Parameters
    ----------
    graph : Path
        ONNX file of the form that the precision reads (`specvit_deploy.engines.tensorrt.READS`).
    output : Path
        File to write, with the suffix .engine; the sidecar has .json instead. Both appear whole, or neither.
    precision : str
        fp32, fp16, bf16 or int8.
    capabilities : tuple of str
        Compute capabilities to build for; the native library takes that of the present card.
    batch : (3,) tuple of int
        Least, best and largest batch.
    target : str
        tensorrt-rtx, or tensorrt where the card is at hand.

    Returns
    -------
    dict
        What the sidecar says: `key` (graph SHA-256, library, version, precision, profile, capabilities), `file`,
        `sha256`, `bytes`, `seconds`, `attention_layers` (kept whole), `layers` (of the network, by type).

    Raises
    ------
    SpecVitError
        If the graph is of another form, an attention would come apart, or the library or the card is missing.
    """
    if target not in LIBRARIES:
        raise SpecVitError(f"there is no target {target}; give one of {', '.join(LIBRARIES)}")
    if output.suffix != ENGINE:
        raise SpecVitError(f"{output} does not end in {ENGINE}; engines are found by that name")
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise SpecVitError(f"batch {batch} is not in order; give least, best and largest, from 1")
    check_outputs([output, output.with_suffix(SIDECAR)], [graph])
    attention = check_form(graph, precision)
    try:
        library = LIBRARIES[target].library()
        gpu = find_gpu() if target == NATIVE.name else None
    except SpecVitError as error:
        raise SpecVitError(f"an engine for {target} cannot be built here: {error}") from None
    plan = build_plan(library, graph, precision, batch, () if gpu else tuple(capabilities))
    if plan.attention != attention:
        raise SpecVitError(
            f"{plan.attention} of {attention} attentions of {graph} stayed whole; use another version of {target}"
        )
    key = EngineKey(
        graph_sha256=file_sha256(graph),
        library=library.__name__,
        version=library.__version__,
        precision=precision,
        profile=batch,
        capabilities=(gpu.capability,) if gpu else tuple(capabilities),
        gpu=gpu.name if gpu else None,
        driver=gpu.driver if gpu else None,
    )
    return write_engine(output, plan.data, key, plan.facts)


def check_form(graph: Path, precision: str) -> int:
    """Refuse a graph that is not of the precision's form; returns the number of its fused attentions.

    Raises
    ------
    SpecVitError
        If its weights are of another type, or attention is not as the precision needs it.
    """
    if precision not in RTX.FORMS:
        raise SpecVitError(f"TensorRT has no precision {precision}; give one of {', '.join(RTX.FORMS)}")
    told = read_graph(graph)
    kinds = [name for name, kind in WEIGHTS.items() if kind in told["weights"]] or ["fp32"]
    if precision not in kinds:
        raise SpecVitError(f"{graph} is a {kinds[0]} graph; give the {RTX.FORMS[precision]} graph of a bundle")
    attention = int(told["nodes"].get("Attention", 0))
    if precision in FUSED and not attention:
        raise SpecVitError(f"{graph} has no fused attention; give the {RTX.FORMS[precision]} graph of a bundle")
    if precision not in FUSED and attention:
        raise SpecVitError(
            f"{graph} has fused attention, for which TensorRT has no {precision} kernel; "
            f"give the {RTX.FORMS[precision]} graph of a bundle"
        )
    return attention

"""Files for one engine: OpenVINO's own format, and TensorRT engines built ahead of time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from specvit_deploy.bundle import file_sha256, load_bundle
from specvit_deploy.calibration import SPECTRA
from specvit_deploy.engines import EngineModule, engine_module
from specvit_deploy.errors import SpecVitError
from specvit_export.forms import build_form
from specvit_export.gate import stand_in, summary
from specvit_export.parity import Reference, Runs, check_engine, make_reference
from specvit_export.seal import check_free, said_of, whole_folder
from specvit_export.source import Source, open_source

FACTS = "facts.json"
DEFAULTS = {"openvino": ("fp32",), "tensorrt": ("fp16",), "tensorrt-rtx": ("fp16",)}
"""Precisions of each target, unless others are asked for."""
Log = Callable[[str], None]


def convert(
    source: str | Path,
    output: Path,
    target: str,
    precisions: Sequence[str] = (),
    scenario: str | None = None,
    spectra: int = SPECTRA,
    tests: int = 10_000,
    log: Log = print,
) -> Path:
    """Write files for one engine into a folder, with what is known of them in `FACTS`, whole or not at all.

    A bundle's own graphs are taken where it has the forms, so that the files belong to that very bundle; others are
    built from its weights. OpenVINO's files pass the parity gate themselves. A TensorRT engine runs on its card only:
    here its graph passes, on what can run it.

    Parameters
    ----------
    source, scenario, spectra, tests
        As in `seal.export_bundle`.
    output : Path
        Folder to make.
    target : str
        Key of `DEFAULTS`.
    precisions : sequence of str
        What the engine shall run; `DEFAULTS` if empty.
    log : callable
        Told each step.

    Raises
    ------
    SpecVitError
        If the target has no such precision or cannot be built here, or parity fails; nothing is left behind.
    """
    check_free(output)
    module, precisions = engine_module(target), tuple(dict.fromkeys(precisions)) or DEFAULTS[target]
    check_target(target, module, precisions)
    opened = open_source(source, scenario, spectra, log)
    forms = dict.fromkeys(module.FORMS[precision] for precision in precisions)
    write = write_openvino if target == "openvino" else partial(write_tensorrt, target=target)
    with tempfile.TemporaryDirectory() as scratch, whole_folder(output) as folder:
        graphs = {form: graph_of(source, opened, form, Path(scratch), log) for form in forms}
        log(f"check      against torch, {tests} test spectra")
        reference = make_reference(opened.estimator, opened.facts["scenario"], tests)
        made = {p: write(graphs[module.FORMS[p]], module.FORMS[p], p, folder, reference, log) for p in precisions}
        log("seal       facts, hashes")
        facts = {
            "target": target,
            **said_of(opened),
            "graphs": {form: file_sha256(graph) for form, graph in graphs.items()},
            "files": {file.name: file_sha256(file) for file in sorted(folder.iterdir())},
            "precisions": made,
        }
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    return output


def check_target(target: str, module: EngineModule, precisions: Sequence[str]) -> None:
    """Refuse what cannot be built on this machine, before any work is done.

    Raises
    ------
    SpecVitError
        If the target has no such precision, its library is missing, or it needs a card that is not here.
    """
    for precision in precisions:
        if precision not in module.FORMS:
            raise SpecVitError(f"{target} has no precision {precision}; give one of {', '.join(module.FORMS)}")
        if target == "tensorrt-rtx":
            from specvit_deploy.engines.tensorrt import RTX

            RTX.library()  # no card: it builds for cards that are elsewhere
        elif reason := module.why_not(precision):
            where = "an engine for tensorrt is built on its card" if target == "tensorrt" else f"{target} does not run"
            raise SpecVitError(f"{where}: {reason}; or export with --target onnx")


def graph_of(source: str | Path, opened: Source, form: str, scratch: Path, log: Log) -> Path:
    """Graph of a form: the bundle's own if it has one for that scenario, else built from the weights."""
    if not str(source).endswith(".safetensors"):
        bundle = load_bundle(source)
        own = bundle.manifest["graphs"].get(form, {})
        if own.get("trunk") and bundle.scenario == opened.facts["scenario"]:  # older graphs do not name its ends
            log(f"take       {form} of bundle {bundle.name}")
            return bundle.graph(form)
    graph = scratch / f"{form}.onnx"
    build_form(opened.estimator, form, graph, said_of(opened), log)
    return graph


def write_openvino(
    graph: Path, form: str, precision: str, folder: Path, reference: Reference, log: Log
) -> dict[str, Any]:
    """Convert a graph to OpenVINO's format, weights as they are, and check that file at a precision."""
    from specvit_deploy.engines.openvino import OpenVinoEngine, library, the_core

    ov = library()
    file = folder / f"{form}.xml"
    if not file.exists():
        log(f"convert    {form}: OpenVINO {ov.__version__.split('-')[0]}")
        ov.save_model(the_core().read_model(graph), file, compress_to_fp16=False)

    def load(batch: int | None) -> Runs:
        return OpenVinoEngine(file, precision, 1, batch or 32)

    found = check_engine(reference, load, precision, f"openvino/{precision}")
    log(summary(f"openvino/{precision}", found))
    return {"file": file.name, "parity": found}


def write_tensorrt(
    graph: Path, form: str, precision: str, folder: Path, reference: Reference, log: Log, target: str
) -> dict[str, Any]:
    """Check a graph on what can run it here, and build its engine."""
    from specvit_export.tensorrt_build import build

    parity = stand_in(graph, form, reference, log)
    log(f"convert    {precision}: {target}")
    return {**build(graph, folder / f"{precision}.engine", precision, target=target), "graph_parity": parity}

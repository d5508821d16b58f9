"""The report file: one schema for everything that measures and everything that reads measurements.

Measuring writes it, tables and pages read it, and nobody joins numbers of two machines or two bundles by accident.
Every triple is [median, lower quartile, upper quartile] over rounds, or [value, 16th, 84th percentile] of a bootstrap;
what could not be measured is null, never left out.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from specvit_benchmarks.turns import machine
from specvit_deploy import __version__
from specvit_deploy.atomic import whole_file
from specvit_deploy.bundle import Bundle
from specvit_deploy.errors import SpecVitError

SCHEMA = "specvit-benchmark/1"
LENGTHS = ("quick", "standard", "full")

TEXT = {"type": "string", "minLength": 1}
TEXT_OR_NULL = {"type": ["string", "null"]}
NUMBER = {"type": "number"}
NUMBER_OR_NULL = {"type": ["number", "null"]}
POSITIVE = {"type": "number", "exclusiveMinimum": 0}
COUNT = {"type": "integer", "minimum": 1}
TRIPLE = {"type": "array", "items": NUMBER, "minItems": 3, "maxItems": 3}
TRIPLE_OR_NULL = {**TRIPLE, "type": ["array", "null"]}


def fields(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    """JSON schema of an object that has all of these fields, and perhaps others."""
    return {"type": "object", "properties": of, "required": list(of), **more}


def list_of(item: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of a list."""
    return {"type": "array", "items": item}


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, or null."""
    return {**schema, "type": [schema["type"], "null"]}


CASE = {"engine": TEXT, "precision": TEXT, "batch": COUNT, "threads": COUNT}
"""What names a case."""
MEASURED = {
    "spectra_per_cpu_second": TRIPLE,
    "spectra_per_second": TRIPLE,  # wall time
    "ms_p50": POSITIVE,  # of one call of one batch, wall time
    "ms_p95": POSITIVE,
    "ms_p99": POSITIVE,
    "calls": COUNT,  # behind these percentiles
    "seconds": POSITIVE,  # measured, all rounds, wall time
    "peak_rss_mb": POSITIVE,
    "load_s": POSITIVE,  # bundle, engine and proof, wall time
    "ceiling_share": NUMBER_OR_NULL,  # of the matrix product of that precision
    "stable": {"type": "boolean"},
    "spread": NUMBER,  # interquartile range over median of spectra_per_cpu_second
    "rms_sigma": NUMBER_OR_NULL,  # log g against onnxruntime fp32, in units of log_g_err
    "p999_sigma": NUMBER_OR_NULL,
    "r2": TRIPLE,
    "coverage_68": NUMBER,
    "gpu": or_null(
        fields(dict.fromkeys(("device_ms", "power_w", "memory_mb"), NUMBER_OR_NULL))
    ),  # device_ms: of one call
}
"""What a case yields; a case that was left out has a reason instead."""
ENGINE = {
    **fields({**CASE, "batch": or_null(COUNT), "reason": TEXT_OR_NULL}),
    "if": {"properties": {"reason": {"type": "null"}}},
    "then": fields({**CASE, **MEASURED}),
}
STAGES = fields(
    {
        **CASE,
        "rows": COUNT,
        "format": TEXT,
        "compression": TEXT_OR_NULL,
        "read_ms": NUMBER,  # processor time per spectrum
        "prepare_ms": NUMBER,
        "infer_ms": NUMBER,
        "write_ms": NUMBER,
        "begin_s": NUMBER,  # once a run, however many spectra: processor time
        "end_to_end_spectra_per_second": TRIPLE,  # processor time, from a file to a file
        "engine_only_spectra_per_second": TRIPLE,  # processor time, in the same rounds
        "end_to_end_spectra_per_wall_second": TRIPLE,  # one process: it reads beside the engine
        "ratio": TRIPLE,  # of the two processor times, round by round
        "wall_ratio": TRIPLE,  # of the same in wall time
        "peak_rss_mb": POSITIVE,
    }
)
ACCURACY = fields({"test_set": {"type": "object"}, "r2": TRIPLE, "coverage_68": NUMBER, "n": COUNT})
SCALING = fields(
    {
        "rows": list_of(fields({"n": COUNT, "cpu_s": POSITIVE, "wall_s": POSITIVE, "peak_rss_mb": POSITIVE})),
        "workers": list_of(fields({"workers": COUNT, "spectra_per_second": POSITIVE, "efficiency": POSITIVE})),
    }
)
PEER = fields(
    {
        "name": TEXT,
        "what": TEXT,
        "spectra_per_cpu_second": TRIPLE,
        "ratio_default_over_peer": TRIPLE,
        "accuracy": list_of(fields({"snr": TEXT, "r2": TRIPLE, "rmse": NUMBER, "n": COUNT})),
    }
)
REPORT = fields(
    {
        "schema": {"const": SCHEMA},
        "version": TEXT,
        "date": TEXT,
        "length": {"enum": list(LENGTHS)},
        "machine": fields({"processor": TEXT, "cores": COUNT, "memory_gb": NUMBER_OR_NULL, "gpu": TEXT_OR_NULL}),
        "bundle": fields(
            {"name": TEXT, "sha256": TEXT, "scenario": TEXT, "parameters": NUMBER_OR_NULL, "gflop": NUMBER_OR_NULL}
        ),
        "ceiling_gflops": fields({"fp32": POSITIVE, "bf16": NUMBER_OR_NULL}),
        "engines": list_of(ENGINE),
        "stages": or_null(STAGES),
        "accuracy": ACCURACY,
        "scaling": or_null(SCALING),
        "peers": or_null(list_of(PEER)),
        "notes": list_of(TEXT),
    },
    additionalProperties=False,
)
"""JSON schema (draft 2020-12) of a report file."""


def validate(report: dict[str, Any]) -> dict[str, Any]:
    """Give a report back if it is one.

    Raises
    ------
    SpecVitError
        Naming the first field that is missing or wrong.
    """
    error = best_match(Draft202012Validator(REPORT).iter_errors(report))
    if error is not None:
        where, said = error.json_path.removeprefix("$."), " ".join(error.message.split())[-160:]
        raise SpecVitError(f"no benchmark report: {where}: {said}; measure again with 'specvit-deploy benchmark'")
    return report


def load(path: str | Path) -> dict[str, Any]:
    """Read a report file.

    Raises
    ------
    SpecVitError
        If it cannot be read or is no report.
    """
    try:
        report = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise SpecVitError(f"cannot read {path} ({error}); give a file of 'specvit-deploy benchmark'") from None
    return validate(report)


def save(report: dict[str, Any], path: str | Path) -> None:
    """Write a report file, whole or not at all, if it is valid.

    Raises
    ------
    SpecVitError
        If it is no report, or cannot be written.
    """
    text = json.dumps(validate(report), indent=1, allow_nan=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text)


def new_report(bundle: Bundle, length: str, gflop: float | None = None) -> dict[str, Any]:
    """Begin a report: where, when and of what; nothing measured yet.

    Parameters
    ----------
    bundle : Bundle
        What is measured.
    length : str
        One of `LENGTHS`.
    gflop : float, optional
        Of one spectrum through the whole graph.
    """
    return {
        "schema": SCHEMA,
        "version": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "length": length,
        "machine": machine(),
        "bundle": {
            "name": bundle.name,
            "sha256": bundle.sha256,
            "scenario": bundle.scenario,
            "parameters": bundle.manifest.get("training", {}).get("parameters"),
            "gflop": gflop,
        },
        "ceiling_gflops": {"fp32": None, "bf16": None},
        "engines": [],
        "stages": None,
        "accuracy": None,
        "scaling": None,
        "peers": None,
        "notes": [],
    }

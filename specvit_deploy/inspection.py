"""What a bundle or an ONNX file is: contents, hashes, graphs, parity, and what can run it here. Plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specvit_deploy.bundle import DEFAULT, MANIFEST, Bundle, embedded, file_sha256, load_bundle
from specvit_deploy.engines import Choice, available, choose
from specvit_deploy.errors import SpecVitError
from specvit_deploy.graph_file import has_onnx, read_graph

STATED = ("scenario", "labels", "units", "box", "grid", "domain", "training", "emulator", "metrics", "versions")
"""Entries of a manifest that a report repeats."""
NO_ONNX = "node counts need onnx: pip install 'specvit-deploy[export]'"


def inspect(target: str | Path = DEFAULT) -> dict[str, Any]:
    """Describe a bundle (by path or embedded name) or an ONNX file.

    Returns
    -------
    dict
        `kind` ("bundle" or "graph"), `path`, `problems` (what is wrong, sentences; empty if nothing is) and what was
        found; a bundle with a problem in its files is not read any further.

    Raises
    ------
    SpecVitError
        If there is nothing to read, or `onnx` is missing and the target is a file.
    """
    path = embedded().get(str(target), Path(target))
    if path.is_file() and path.name != MANIFEST:
        return inspect_graph(path)
    if path.suffix == ".onnx" and not path.exists():
        raise SpecVitError(f"there is no {path}; give a bundle, one of {', '.join(embedded())}, or an ONNX file")
    return inspect_bundle(path.parent if path.is_file() else path)


def inspect_graph(path: Path) -> dict[str, Any]:
    """Describe an ONNX file."""
    facts = read_graph(path)
    return {
        "kind": "graph",
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "graph": facts,
        "problems": [f"{path} does not fulfil the graph contract: {broken}" for broken in facts["contract"]],
    }


def inspect_bundle(path: Path) -> dict[str, Any]:
    """Describe a bundle: first every file against its hash, and only what is whole any further."""
    files = check_files(path)
    problems = [f"bundle {path}: {file['file']} {file['state']}" for file in files if file["state"] != WHOLE]
    if problems:
        return {"kind": "bundle", "path": str(path), "files": files, "problems": problems}
    bundle = load_bundle(path)
    manifest = bundle.manifest
    forms = {form: _form(bundle, form) for form in manifest["graphs"]}
    return {
        "kind": "bundle",
        "path": str(path),
        "name": bundle.name,
        "sha256": bundle.sha256,
        **{key: manifest[key] for key in STATED if key in manifest},
        "calibration": {key: manifest.get("calibration", {}).get(key) for key in ("recipe", "level")},
        "files": files,
        "forms": forms,
        "parity": {pair: _parity(report) for pair, report in manifest.get("parity", {}).items()},
        "engines": [_choice(choice) for choice in available(bundle)],
        "auto": _auto(bundle),
        "note": None if has_onnx() else NO_ONNX,
        "problems": [
            f"bundle {path}: the {form} graph does not fulfil the graph contract: {broken}"
            for form, facts in forms.items()
            for broken in (facts["graph"] or {"contract": []})["contract"]
        ],
    }


WHOLE = "matches its hash"


def check_files(path: Path) -> list[dict[str, Any]]:
    """State of every file that a bundle lists or holds: name, bytes, and whether it matches its hash.

    Raises
    ------
    SpecVitError
        If there is no manifest that lists files.
    """
    try:
        listed = json.loads((path / MANIFEST).read_bytes())["files"]
        listed = {str(name): str(sha256) for name, sha256 in listed.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        load_bundle(path)  # says what is wrong
        raise SpecVitError(f"bundle {path} lists no files; export it again") from None
    present = {f.relative_to(path).as_posix(): f for f in path.rglob("*") if f.is_file()}
    present.pop(MANIFEST)
    out = []
    for name in sorted({*listed, *present}):
        if name not in present:
            state = "is missing"
        elif name not in listed:
            state = "is not covered by a hash"
        else:
            state = WHOLE if file_sha256(present[name]) == listed[name] else "does not match its hash"
        size = present[name].stat().st_size if name in present else None
        out.append({"file": name, "bytes": size, "sha256": listed.get(name), "state": state})
    return out


def _form(bundle: Bundle, form: str) -> dict[str, Any]:
    stated = bundle.manifest["graphs"][form]
    path = bundle.graph(form)
    return {**stated, "bytes": path.stat().st_size, "graph": read_graph(path) if has_onnx() else None}


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "engine": choice.engine,
        "precision": choice.precision,
        "form": choice.form,
        "why_not": choice.reason,
        "verified": choice.milliseconds is not None,
    }


def _auto(bundle: Bundle) -> str | None:
    """Pair that `predict` takes here, if any."""
    try:
        return choose(bundle).pair
    except SpecVitError:
        return None


def _parity(report: dict[str, Any]) -> dict[str, Any]:
    """A parity report without its single cases."""
    return {key: value for key, value in report.items() if key != "cases"}

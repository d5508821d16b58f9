"""Logs of training runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specvit_deploy.errors import SpecVitError


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read log.jsonl of a run; where a resumed run went over spectra again, the later record counts.

    Parameters
    ----------
    path : path
        The log, or the folder of the run.

    Raises
    ------
    SpecVitError
        If it is no such log.
    """
    file = path / "log.jsonl" if path.is_dir() else path
    records: list[dict[str, Any]] = []
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            while records and records[-1]["spectra"] >= record["spectra"]:
                records.pop()
            records.append(record)
        if not records:
            raise ValueError("it is empty")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecVitError(f"{path} is no log of a run ({error}); give log.jsonl of 'specvit-deploy train'") from None
    return records


def read_logs(paths: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """Read several logs, named after the folders of their runs.

    Raises
    ------
    SpecVitError
        If one is no log, or two runs have one name.
    """
    logs: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        folder = (path if path.is_dir() else path.parent).resolve().name
        if folder in logs:
            raise SpecVitError(f"two runs are named {folder}; give one of the folders another name")
        logs[folder] = read_log(path)
    return logs


def column(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Spectra seen and the value of `name`, where a record has it."""
    found = [(r["spectra"], r[name]) for r in records if r.get(name) is not None]
    return [float(x) for x, _ in found], [float(y) for _, y in found]

"""How far a run is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specvit_deploy.journal import Journal, folder_of
from specvit_deploy.result_formats import is_result


def status_of(output: Path) -> dict[str, Any]:
    """State of the run that ends in `output`: finished, or its rows, those sealed, the missing ranges, the pace.

    Raises
    ------
    SpecVitError
        If there is neither a result nor an unfinished run.
    """
    if not folder_of(output).exists() and output.exists() and is_result(output):
        return {"output": str(output), "finished": True}
    journal = Journal(output)
    sealed = journal.sealed()
    done = sum(stop - start for start, stop in sealed)
    missing: list[list[int]] = []
    row = 0
    for start, stop in [*sorted(sealed), (journal.rows, journal.rows)]:
        if start > row:
            missing.append([row, start])
        row = stop
    times = sorted(path.stat().st_mtime for path in sealed.values())
    pace = (done * (len(times) - 1) / len(times)) / (times[-1] - times[0]) if len(times) > 2 else None
    return {
        "output": str(output),
        "finished": False,
        "rows": journal.rows,
        "done": done,
        "parts": len(sealed),
        "missing": missing,
        "rows_per_second": pace,
        "seconds_left": (journal.rows - done) / pace if pace else None,
        **{name: journal.facts["run"][name] for name in ("engine", "precision", "bundle_sha256")},
        **journal.facts["about"],
    }


def describe(status: dict[str, Any]) -> str:
    """The same in a few lines."""
    if status["finished"]:
        return f"{status['output']} is finished"
    share = status["done"] / status["rows"]
    lines = [
        f"{status['output']}: {status['done']} of {status['rows']} rows ({share:.1%}) in {status['parts']} parts",
        f"  {status['catalog']} ({status['layout']}) with {status['bundle']} {status['bundle_sha256'][:12]}, "
        f"{status['engine']} {status['precision']}",
    ]
    if status["missing"]:
        ranges = ", ".join(f"{start} to {stop}" for start, stop in status["missing"][:5])
        more = f" and {len(status['missing']) - 5} more ranges" if len(status["missing"]) > 5 else ""
        lines.append(f"  missing: rows {ranges}{more}; run the same command again (every shard of it)")
    else:
        lines.append(f"  all rows are there; next: specvit-deploy merge {status['output']}")
    if status["rows_per_second"]:
        lines.append(
            f"  {status['rows_per_second']:.0f} rows a second, {status['seconds_left'] / 60:.0f} min to go at this pace"
        )
    return "\n".join(lines)

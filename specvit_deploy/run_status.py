"""How far a run is."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from specvit_deploy.claim import LOCK
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
    pace, idle = pace_of(journal)
    return {
        "output": str(output),
        "finished": False,
        "rows": journal.rows,
        "done": done,
        "parts": len(sealed),
        "parts_in_all": -(-journal.rows // int(journal.run["part"])),
        "missing": [list(part) for part in journal.missing()],
        "rows_per_second": pace,
        "seconds_since_last_part": idle,
        "seconds_left": (journal.rows - done) / pace if pace else None,
        **{name: journal.run[name] for name in ("engine", "precision", "engine_description", "bundle_sha256")},
        **journal.about,
    }


def pace_of(journal: Journal) -> tuple[float | None, float | None]:
    """Rows a second since the last process of the run began, and seconds since the last part; None if unknown."""
    now = time.time()
    times = {}
    for part, path in journal.sealed().items():
        with suppress(FileNotFoundError):  # merged in this moment
            times[part] = path.stat().st_mtime
    if not times:
        return None, None
    last = max(times.values())
    try:
        began = (journal.folder / LOCK).stat().st_mtime
    except FileNotFoundError:
        return None, max(0.0, now - last)
    rows = sum(stop - start for (start, stop), sealed in times.items() if sealed >= began)
    return (rows / (last - began) if rows and last > began else None), max(0.0, now - last)


def describe(status: dict[str, Any]) -> str:
    """The same in a few lines."""
    if status["finished"]:
        return f"{status['output']} is finished"
    share = status["done"] / status["rows"]
    lines = [
        f"{status['output']}: {status['done']} of {status['rows']} rows ({share:.1%}), "
        f"{status['parts']} of {status['parts_in_all']} parts",
        f"  {status['catalog']} ({status['layout']}) with {status['bundle']} {status['bundle_sha256'][:12]}, "
        f"{status['engine']} {status['precision']}",
    ]
    if status["missing"]:
        ranges = ", ".join(f"{start} to {stop}" for start, stop in status["missing"][:5])
        more = f" and {len(status['missing']) - 5} more ranges" if len(status["missing"]) > 5 else ""
        lines.append(f"  missing: rows {ranges}{more}; run the same command again (every shard of it)")
    else:
        lines.append(f"  all rows are there; next: specvit-deploy merge {status['output']}")
    if status["rows_per_second"] and status["missing"]:
        left = timedelta(seconds=round(status["seconds_left"]))
        lines.append(f"  {status['rows_per_second']:.0f} rows a second, {left} to go at this pace")
    if status["seconds_since_last_part"] is not None:
        lines.append(f"  the last part was sealed {timedelta(seconds=round(status['seconds_since_last_part']))} ago")
    return "\n".join(lines)

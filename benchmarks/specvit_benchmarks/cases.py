"""Cases in processes of their own that take turns: engines, the ceiling of a core, the whole pipeline.

Every case lives in its own process (`specvit_benchmarks.case`), so that none inherits another's memory, threads or
libraries. All stay loaded and one works at a time, round after round: a machine that slows down slows all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from specvit_benchmarks.turns import THREADS, spread
from specvit_deploy.errors import SpecVitError

STABLE = 0.05
"""Largest share of the median that quartiles may lie apart, and halves of a run, if it is to be called stable."""

Turn = dict[str, Any]


class CaseProcess:
    """A case in its own process; a context manager that ends it.

    Parameters
    ----------
    name : str
        For people.
    kind : str
        A kind of `specvit_benchmarks.case`.
    **settings
        What the kind takes; `threads` is what numerical libraries may use as well, one without it.

    Attributes
    ----------
    about : dict
        What the case said when it was ready.
    turns : list of dict
        One per round.

    Raises
    ------
    SpecVitError
        If the case cannot be made, or its process ends; with the last that it said.
    """

    def __init__(self, name: str, kind: str, **settings: Any) -> None:
        self.name, self.turns = name, []  # type: str, list[Turn]
        self.errors = TemporaryFile("w+")  # noqa: SIM115  closed with the process
        paths = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "specvit_benchmarks.case"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **dict.fromkeys(THREADS, str(settings.get("threads", 1))), "PYTHONPATH": paths},
        )
        try:
            self.about = self._say(kind=kind, **settings)
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, do: str, **settings: Any) -> dict[str, Any]:
        """Let the case do something, and wait for what it answers."""
        return self._say(do=do, **settings)

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def _say(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(order), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            last = (self.errors.read().strip() or "it said nothing").splitlines()[-1][:200]
            raise SpecVitError(f"the process of {self.name} ended with {code} ({last}); leave that engine out")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SpecVitError(answer["error"])
        return answer


def take_turns(
    cases: Sequence[CaseProcess],
    rounds: int,
    seconds: float,
    advance: Callable[[int], None] = lambda turns: None,
) -> None:
    """Warm all up, then let them take turns; what each turn took goes into `turns` of its case.

    Parameters
    ----------
    cases : sequence of CaseProcess
        All are loaded; who begins a round moves on by one from round to round.
    rounds : int
        Turns of each.
    seconds : float
        Of warming up, and of a turn.
    advance : callable
        Told the number of turns after each.
    """
    for case in cases:
        case.ask("warm_up", seconds=seconds)
        advance(1)
    for number in range(rounds):
        first = number % len(cases)
        for case in [*cases[first:], *cases[:first]]:
            case.turns.append(case.ask("turn"))
            advance(1)


def speed(turns: Sequence[Turn]) -> dict[str, Any]:
    """Rates, latencies and stability of a case, from its turns.

    Returns
    -------
    dict
        `spectra_per_cpu_second` and `spectra_per_second` (of wall time) with quartiles over turns, `ms_p50`, `ms_p95`
        and `ms_p99` of a call in wall time, `calls` and `seconds` behind them, `spread`, `stable`, `gpu`.
    """
    per_cpu = rates(turns, "cpu_s")
    calls = np.concatenate([turn["calls_ms"] for turn in turns])
    p50, p95, p99 = (float(x) for x in np.percentile(calls, [50, 95, 99]))
    return {
        "spectra_per_cpu_second": spread(per_cpu),
        "spectra_per_second": spread(rates(turns, "wall_s")),
        "ms_p50": p50,
        "ms_p95": p95,
        "ms_p99": p99,
        "calls": len(calls),
        "seconds": float(sum(turn["wall_s"] for turn in turns)),
        **stability(per_cpu),
        "gpu": card(turns),
    }


def ceiling_of(product: CaseProcess) -> float:
    """GFLOP per CPU second that a product of matrices reaches, median over turns."""
    gflop = product.about["gflop"]
    return float(np.median([gflop * len(turn["calls_ms"]) / turn["cpu_s"] for turn in product.turns]))


def card(turns: Sequence[Turn]) -> dict[str, float | None] | None:
    """Medians over turns of what the card said; None of a case that uses none."""
    said = [turn["gpu"] for turn in turns if "gpu" in turn]
    if not said:
        return None
    known = {name: [one[name] for one in said if one[name] is not None] for name in said[0]}
    return {name: float(np.median(values)) if values else None for name, values in known.items()}


def rates(turns: Sequence[Turn], time: str) -> NDArray[np.float64]:
    """Spectra per second of each turn, of processor time ("cpu_s") or wall time ("wall_s")."""
    return np.array([turn["rows"] / turn[time] for turn in turns])


def stability(rate: NDArray[np.float64]) -> dict[str, Any]:
    """Whether rates (R,) of one case over rounds stay where they are.

    Returns
    -------
    dict
        `spread`, the interquartile range over the median; `stable`, whether that and the drift, the relative
        difference of the medians of first and second half, are at most `STABLE`.
    """
    middle, low, high = spread(rate)
    half = len(rate) // 2
    drift = abs(np.median(rate[:half]) / np.median(rate[-half:]) - 1) if half else 0.0
    relative = (high - low) / middle
    return {"spread": relative, "stable": bool(max(relative, drift) <= STABLE)}


def outputs_of(case: CaseProcess, folder: Path) -> dict[str, NDArray[Any]]:
    """Outputs of a case's engine for the whole catalogue, by name."""
    file = folder / "outputs.npz"
    case.ask("outputs", path=str(file))
    with np.load(file, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}

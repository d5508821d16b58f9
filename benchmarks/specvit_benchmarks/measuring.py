"""What a bundle reaches on this machine, and how good its answers are: one report from processes that take turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_benchmarks.agreement import accuracy, difference
from specvit_benchmarks.cases import CaseProcess, ceiling_of, outputs_of, speed, take_turns
from specvit_benchmarks.field import Contestant, ceilings, enter, fastest, reasoned, selection, settings
from specvit_benchmarks.gpu import ENGINES as ON_A_CARD
from specvit_benchmarks.operations import gflop_of
from specvit_benchmarks.schema import new_report
from specvit_benchmarks.stages import stages_of
from specvit_benchmarks.turns import usable_cores
from specvit_deploy.bundle import Bundle
from specvit_deploy.catalog_writer import simulate
from specvit_deploy.engines import FALLBACK, choice, verified
from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.simulation import read_params
from specvit_deploy.recipe import Recipe, test_recipe

MLPERF_SECONDS, MLPERF_SPECTRA = 600, 24_576
"""Least length of a run in MLPerf's offline scenario."""
BUSY = 0.25
"""Load per core before the start above which the machine is called busy."""
FEWEST = 256
"""Rows of the test set however slow the bundle is."""


@dataclass(frozen=True)
class Length:
    """How long to measure.

    Parameters
    ----------
    rows : int
        Of the frozen test set, at most: behind accuracy, and through the pipeline in every turn.
    patience : float
        Seconds that one pass over them may take by the bundle's parity report; a large network gets fewer rows.
    rounds : int
        Turns of each case.
    seconds : float
        Of one turn of an engine, about.
    batches : tuple of int
        Measured besides each engine's own.
    """

    rows: int
    patience: float
    rounds: int
    seconds: float
    batches: tuple[int, ...] = ()

    def rows_of(self, bundle: Bundle) -> int:
        """Rows of the test set for a bundle."""
        return int(np.clip(1e3 * self.patience / max(verified(bundle).values()), min(FEWEST, self.rows), self.rows))


LENGTHS = {
    "quick": Length(4096, 6.0, 7, 0.5, (1,)),
    "standard": Length(10_000, 60.0, 11, 1.0, (1, 8, 64)),
    "full": Length(20_000, 600.0, 60, 11.0),
}
"""`full` gives every engine the 600 seconds that MLPerf asks for."""


def measure(
    bundle: Bundle,
    length: str,
    plan: Length,
    engines: Sequence[str] = (),
    batches: Sequence[int] = (),
    start: Callable[[int], None] = lambda steps: None,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Measure a bundle, see `specvit_benchmarks.schema` for what comes back.

    Parameters
    ----------
    bundle : Bundle
        What to measure.
    length, plan : str, Length
        Name and meaning of the length.
    engines : sequence of str
        Names, or names with a precision as in onnxruntime/fp32; all that run on this machine otherwise.
    batches : sequence of int
        Rows of one call; otherwise each engine's own and those of the plan.
    start, advance : callable
        Told the number of steps before the first, and after some of them.

    Raises
    ------
    SpecVitError
        If an engine that was asked for does not run here, or none does.
    """
    pairs, left_out = selection(bundle, engines)
    recipe = test_recipe(bundle.scenario, plan.rows_of(bundle))
    report = new_report(bundle, length, gflop_of(bundle.graph()))
    report["notes"] += [*restricted(), *busy()]
    with TemporaryDirectory(prefix="specvit-benchmark-") as folder, ExitStack() as stack:
        catalog, truth = write_test_set(recipe, Path(folder) / "catalog.h5")
        field: list[Contestant] = []
        for pair in pairs:
            try:
                field += enter(stack, bundle, pair, batches, plan.batches, catalog)
            except SpecVitError as error:
                if engines or batches or pair.milliseconds is not None:  # it was verified: that is an error
                    raise
                left_out.append(reasoned(pair, str(error)))
        if not field:
            raise SpecVitError(
                f"no engine loads {bundle.name} here ({left_out[-1]['reason']}); export the bundle again"
            )
        main = fastest(field, bundle)
        whole = CaseProcess("predict", "pipeline", **settings(bundle, main.pair, main.batch, catalog))
        stack.enter_context(whole)
        products = {p: stack.enter_context(CaseProcess(f"the {p} product", "product", precision=p)) for p in ceilings()}
        processes = [*products.values(), *(one.process for one in field), whole]
        start(len(processes) * (1 + plan.rounds))
        take_turns(processes, plan.rounds, plan.seconds, advance)
        report["ceiling_gflops"] |= {precision: ceiling_of(product) for precision, product in products.items()}
        report["stages"] = {
            **main.facts(),
            **stages_of(whole.turns, main.process.turns),
            **whole.ask("memory"),
        }
        for one in field:
            figures = {**speed(one.process.turns), **one.process.ask("memory"), "load_s": one.process.about["load_s"]}
            share = share_of_ceiling(report, one, figures["spectra_per_cpu_second"][0])
            report["engines"].append({**one.facts(), **figures, "ceiling_share": share, "reason": None})
        scores = scored(field, truth, bundle, catalog, Path(folder))
    for one, entry in zip(field, report["engines"], strict=True):
        entry |= scores[one.pair.pair]
    report["engines"] += left_out
    overall = {name: scores[main.pair.pair][name] for name in ("r2", "coverage_68")}
    report["accuracy"] = {"test_set": {**recipe.describe(), "hash": recipe.hash}, **overall, "n": recipe.n}
    report["notes"] += remarks(report)
    return report


def write_test_set(recipe: Recipe, path: Path) -> tuple[str, NDArray[np.float64]]:
    """Write the frozen test set as a catalogue; its path and the true log g (N,)."""
    simulate(path, recipe.n, recipe.seed, recipe.mag, recipe.scenario)
    with h5py.File(path) as file:
        return str(path), np.asarray(read_params(file)["log_g"], np.float64)


def share_of_ceiling(report: dict[str, Any], one: Contestant, rate: float) -> float | None:
    """Share of what a core reaches in the product of matrices; None on a card and where either is not known."""
    gflop, ceiling = report["bundle"]["gflop"], report["ceiling_gflops"].get(one.pair.precision)
    if gflop is None or ceiling is None or one.pair.engine in ON_A_CARD:
        return None
    return float(gflop * rate / ceiling)


def scored(
    field: Sequence[Contestant], truth: NDArray[np.float64], bundle: Bundle, catalog: str, folder: Path
) -> dict[str, dict[str, Any]]:
    """Accuracy of each engine and precision on the test set, and agreement with ONNX Runtime in float32, by pair."""
    first = {one.pair.pair: one.process for one in reversed(field)}
    found = {pair: outputs_of(process, folder) for pair, process in first.items()}
    known = choice(*FALLBACK, bundle)
    reference = found.get(known.pair)
    if reference is None and known.reason is None:
        with CaseProcess(known.pair, "engine", **settings(bundle, known, None, catalog)) as process:
            reference = outputs_of(process, folder)
    scores = {}
    for pair, outputs in found.items():
        distance = {} if reference is None else difference(outputs, reference)
        agreement = {name: distance.get(name) for name in ("rms_sigma", "p999_sigma")}
        scores[pair] = {**agreement, **accuracy(outputs, truth)}
    return scores


def restricted() -> list[str]:
    """A remark if this process may use fewer cores than the machine has."""
    usable, cores = usable_cores(), os.cpu_count() or 1
    if usable >= cores:
        return []
    return [
        f"this process may use {usable} of {cores} cores; times by the clock are of {usable}, plans for this machine "
        f"count {cores}: measure again with all of them"
    ]


def busy() -> list[str]:
    """A remark if others are at work on this machine."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return [f"the machine was busy before the start: load {load:.1f} per core"] if load > BUSY else []


def remarks(report: dict[str, Any]) -> list[str]:
    """What a reader must know: length, stability, where the catalogue lay."""
    measured = [entry for entry in report["engines"] if entry["reason"] is None]
    seconds = min(entry["seconds"] for entry in measured)
    spectra = min(entry["calls"] * entry["batch"] for entry in measured)
    said = ["the catalogue lay in the page cache"]
    if seconds < MLPERF_SECONDS or spectra < MLPERF_SPECTRA:
        said.append(
            f"not MLPerf length: its offline scenario asks for {MLPERF_SECONDS} s and {MLPERF_SPECTRA:,} spectra, the "
            f"shortest case here had {seconds:.0f} s and {spectra:,}"
        )
    if shaky := [f"{e['engine']}/{e['precision']} at batch {e['batch']}" for e in measured if not e["stable"]]:
        said.append(f"unstable: {', '.join(shaky)}; measure again on a machine that does nothing else")
    return said

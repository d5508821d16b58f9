"""Who takes part: every engine that runs a bundle on this machine; why the others do not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from specvit_benchmarks.cases import CaseProcess
from specvit_deploy.bundle import Bundle
from specvit_deploy.engines import ENGINES, Choice, choice, engine_module, verified
from specvit_deploy.errors import SpecVitError

THREADS = 1
"""Of every engine: one per process is the fastest per core."""


@dataclass(frozen=True)
class Contestant:
    """An engine at one precision and batch size, in its process."""

    pair: Choice
    batch: int
    process: CaseProcess

    def facts(self) -> dict[str, Any]:
        """What names it in a report."""
        return {**named(self.pair), "batch": self.batch}


def named(pair: Choice) -> dict[str, Any]:
    """Engine, precision and threads, as a report names them."""
    return {"engine": pair.engine, "precision": pair.precision, "threads": THREADS}


def selection(bundle: Bundle, asked: Sequence[str]) -> tuple[list[Choice], list[dict[str, Any]]]:
    """Engines that shall take part, and the entries of those that cannot.

    Parameters
    ----------
    bundle : Bundle
        What they run.
    asked : sequence of str
        Names, or names with a precision as in onnxruntime/fp32; our own at every precision otherwise.

    Raises
    ------
    SpecVitError
        If one that was asked for does not exist or does not run here, or none does.
    """
    run: dict[str, Choice] = {}
    left_out: list[dict[str, Any]] = []
    for name in dict.fromkeys(asked or ENGINES):
        engine, _, precision = name.partition("/")
        found = [choice(engine, p, bundle) for p in ([precision] if precision else engine_module(engine).FORMS)]
        usable = [one for one in found if one.reason is None]
        if asked and not usable:
            raise SpecVitError(f"{name} does not run here ({found[0].reason}); leave out --engine to see what does")
        run |= {one.pair: one for one in usable}
        left_out += [reasoned(one, one.reason) for one in found if one.reason is not None]
    if not run:
        raise SpecVitError("no engine runs here; pip install 'specvit-deploy[cpu]'")
    return list(run.values()), left_out


def reasoned(pair: Choice, reason: str) -> dict[str, Any]:
    """Entry of a report for an engine that was left out."""
    return {**named(pair), "batch": None, "reason": reason}


def settings(bundle: Bundle, pair: Choice, batch: int | None, catalog: str) -> dict[str, Any]:
    """What a case's process needs to know."""
    return {**named(pair), "bundle": str(bundle.path.absolute()), "batch": batch, "catalog": catalog}


def enter(
    stack: ExitStack, bundle: Bundle, pair: Choice, batches: Sequence[int], besides: Sequence[int], catalog: str
) -> list[Contestant]:
    """Start the processes of one engine.

    Parameters
    ----------
    stack : ExitStack
        That ends them.
    bundle, pair, catalog
        What runs, on what, on which spectra.
    batches, besides : sequence of int
        Rows of one call; without `batches` the engine's own, and `besides` those.

    Raises
    ------
    SpecVitError
        If the engine cannot load the bundle, or a batch is larger than the catalogue.
    """

    def started(batch: int | None) -> Contestant:
        process = CaseProcess(pair.pair, "engine", **settings(bundle, pair, batch, catalog))
        stack.enter_context(process)
        return Contestant(pair, process.about["batch"], process)

    if batches:
        return [started(batch) for batch in dict.fromkeys(batches)]
    own = started(None)
    return [own, *(started(batch) for batch in besides if batch != own.batch)]


def fastest(field: Sequence[Contestant], bundle: Bundle) -> Contestant:
    """The one that engine auto would take first, by the bundle's parity report."""
    order = list(verified(bundle))
    pairs = [(one.pair.engine, one.pair.precision) for one in field]
    return field[min(range(len(field)), key=lambda i: order.index(pairs[i]) if pairs[i] in order else len(order))]


def ceilings() -> list[str]:
    """Precisions in which the product of matrices can be measured here."""
    return ["fp32"] + ["bf16"] * (choice("openvino", "bf16").reason is None)

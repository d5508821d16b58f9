"""Engines: what runs a bundle's graph. One protocol, one small module each, imported on use.

An engine's module (or the object that its place names) has

- `EXTRA`, the extra of this distribution that supplies it,
- `FORMS`, the form of graph that each of its precisions reads,
- `why_not(precision)`, None if this machine can run it now, else why not ("compiled in" is not "usable"),
- `load(bundle, precision, threads, batch)`, an `Engine`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.bundle import Bundle
from specvit_deploy.errors import SpecVitError

ENGINES = {
    "onnxruntime": "specvit_deploy.engines.onnxruntime",
    "cuda": "specvit_deploy.engines.cuda",
    "openvino": "specvit_deploy.engines.openvino",
    "tensorrt": "specvit_deploy.engines.tensorrt",
    "tensorrt-rtx": "specvit_deploy.engines.tensorrt:RTX",
}
"""Place of each engine: a module, or an object in one."""
GROUP = "specvit_deploy.engines"
"""Entry points of other distributions' engines."""
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-bf16")
AUTO = "auto"
FALLBACK = ("onnxruntime", "fp32")


class Engine(Protocol):
    """Runs the whole estimator.

    Batches have a fixed size, the last one is padded: a row's result depends on its own pixels and its position
    alone, to the last bit.

    Attributes
    ----------
    name, precision : str
        What really runs.
    batch : int
        Rows of one call.
    fell_back : bool
        Whether it stands in for the one that was asked for.
    description : str
        For people: library, version, device, threads.
    """

    name: str
    precision: str
    batch: int
    fell_back: bool
    description: str

    def run(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Outputs of the graph by name, N rows each, from flux and error (N, 4096)."""


class EngineModule(Protocol):
    """What an engine's module holds."""

    EXTRA: str
    FORMS: dict[str, str]

    def why_not(self, precision: str) -> str | None:
        """None if this machine can run it now, else one clause that says why not."""

    def load(self, bundle: Bundle, precision: str, threads: int, batch: int | None) -> Engine:
        """Load a bundle; without `batch` the engine's own best."""


@dataclass(frozen=True)
class Choice:
    """An engine at one precision, on this machine.

    Parameters
    ----------
    engine, precision : str
        Their names.
    form : str
        Form of graph that it reads.
    reason : str or None
        Why it cannot run here; None if it can.
    milliseconds : float or None
        Of one spectrum, as recorded in the bundle's parity report; None if the bundle was not verified with it.
    """

    engine: str
    precision: str
    form: str
    reason: str | None
    milliseconds: float | None

    @property
    def pair(self) -> str:
        """Its name in a parity report."""
        return f"{self.engine}/{self.precision}"


def engine_places() -> dict[str, str]:
    """Place of every engine by name: our own, then those that entry points add."""
    from importlib.metadata import entry_points

    return ENGINES | {entry.name: entry.value for entry in entry_points(group=GROUP) if entry.name not in ENGINES}


def engine_module(name: str) -> EngineModule:
    """Import an engine's module.

    Raises
    ------
    SpecVitError
        If there is no engine of that name.
    """
    places = ENGINES if name in ENGINES else engine_places()
    if name not in places:
        raise SpecVitError(f"there is no engine {name}; give one of {', '.join(places)} or {AUTO}")
    module, _, attribute = places[name].partition(":")
    found: Any = import_module(module)
    return getattr(found, attribute) if attribute else found  # type: ignore[no-any-return]


def available(bundle: Bundle | None = None) -> list[Choice]:
    """List every engine at every precision: whether it can run here, this bundle if one is given, and if not why."""
    return [
        choice(engine, precision, bundle) for engine in engine_places() for precision in engine_module(engine).FORMS
    ]


def choice(engine: str, precision: str, bundle: Bundle | None = None) -> Choice:
    """Look at one engine and precision.

    Raises
    ------
    SpecVitError
        If the engine or its precision does not exist.
    """
    check_request(engine, precision)
    module = engine_module(engine)
    form = module.FORMS[precision]
    reason = module.why_not(precision)
    if reason is None and bundle is not None:
        reason = lacking(bundle, form, precision)
    milliseconds = verified(bundle).get((engine, precision)) if bundle is not None else None
    return Choice(engine, precision, form, reason, milliseconds)


def lacking(bundle: Bundle, form: str, precision: str) -> str | None:
    """What a bundle lacks to be run at a precision through a form; None if nothing."""
    graphs = bundle.manifest["graphs"]
    if form not in graphs:
        return f"the bundle has no {form} graph"
    if precision != "fp32" and not graphs[form].get("trunk"):
        return f"the {form} graph names no transformer layers to run in {precision}"
    return None


def check_request(engine: str, precision: str) -> None:
    """Refuse names that nothing has; "auto" is a name too.

    Raises
    ------
    SpecVitError
        If the engine or its precision does not exist.
    """
    names = PRECISIONS if engine == AUTO else (*engine_module(engine).FORMS,)
    if precision not in (AUTO, *names):
        who = "no engine has" if engine == AUTO else f"{engine} has no"
        raise SpecVitError(f"{who} precision {precision}; give one of {', '.join(names)} or {AUTO}")


def verified(bundle: Bundle) -> dict[tuple[str, str], float]:
    """Milliseconds of one spectrum for every engine and precision that the bundle's parity gate passed, fastest first.

    Older reports do not name pairs: their gate was ONNX Runtime's.
    """
    report = bundle.manifest.get("parity", {})
    times = {(e["engine"], e["precision"]): float(e["ms_per_spectrum"]) for pair, e in report.items() if "/" in pair}
    return dict(sorted(times.items(), key=lambda item: item[1])) or {FALLBACK: float("inf")}


def choose(bundle: Bundle, engine: str = AUTO, precision: str = AUTO) -> Choice:
    """Pick engine and precision for this machine, see `load_engine`; looks at no more of them than it must.

    Raises
    ------
    SpecVitError
        If the engine or its precision does not exist, or nothing that was asked for runs here.
    """
    check_request(engine, precision)
    if AUTO not in (engine, precision):
        wanted = [(engine, precision)]
    else:
        wanted = [
            (name, p)
            for name, p in verified(bundle)
            if (name == engine or (engine == AUTO and name in ENGINES)) and precision in (AUTO, p)
        ]
        if engine != AUTO and (engine, "fp32") not in wanted:
            wanted.append((engine, "fp32"))
    reasons = {}
    for pair in wanted:
        candidate = choice(*pair, bundle)
        if candidate.reason is None:
            return candidate
        reasons[candidate.pair] = candidate.reason
    if not reasons:
        raise SpecVitError(f"bundle {bundle.name} was verified with no engine at {precision}; name an engine as well")
    said = "; ".join(f"{pair}: {reason}" for pair, reason in reasons.items())
    remedy = (
        "choose engine auto, or allow a stand-in with --allow-fallback"
        if engine != AUTO
        else "install one of these engines"
    )
    raise SpecVitError(f"bundle {bundle.name} does not run here as asked ({said}); {remedy}")


def load_engine(
    bundle: Bundle,
    engine: str = AUTO,
    precision: str = AUTO,
    threads: int = 1,
    batch: int | None = None,
    allow_fallback: bool = False,
) -> Engine:
    """Load a bundle into an engine, which proves itself on spectra whose answers the bundle knows.

    Parameters
    ----------
    bundle : Bundle
        What to run.
    engine, precision : str
        "auto" for both takes the pair with the least time per spectrum in the bundle's parity report among those
        that run on this machine; a pair outside of the report is taken only if it was asked for, with a warning.
        An engine by name at precision "auto" runs at its fastest verified precision, else at fp32.
    threads : int
        Threads inside one operator; one per process is the fastest per core.
    batch : int, optional
        Rows of one call; the engine's measured best otherwise.
    allow_fallback : bool
        Take ONNX Runtime at fp32 where what was asked for does not run, with a warning and `Engine.fell_back`.

    Raises
    ------
    SpecVitError
        If the engine or its precision does not exist, or does not run here or computes wrongly here and no fallback
        is allowed.
    """
    from specvit_deploy.engines.proof import prove

    if batch is not None and batch < 1:
        raise SpecVitError(f"batch {batch} is impossible; give at least 1, or leave it out")
    check_request(engine, precision)
    try:
        chosen = choose(bundle, engine, precision)
        loaded = engine_module(chosen.engine).load(bundle, chosen.precision, threads, batch)
        prove(loaded, bundle)
    except SpecVitError as error:
        if not allow_fallback:
            raise
        problem = str(error).rpartition("; ")[0] or str(error)  # without what to try next: that is done here
        warnings.warn(f"{problem}; falling back to {' '.join(FALLBACK)}", stacklevel=2)
        loaded = engine_module(FALLBACK[0]).load(bundle, FALLBACK[1], threads, batch)
        prove(loaded, bundle)
        loaded.fell_back = True
        return loaded
    if chosen.milliseconds is None:
        warnings.warn(
            f"bundle {bundle.name} was never verified with {chosen.pair}; engine auto takes verified ones only",
            stacklevel=2,
        )
    return loaded

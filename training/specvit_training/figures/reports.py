"""Reports that figures are drawn from: read, checked to be of one test set, reduced to the models wanted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specvit_deploy.errors import SpecVitError

Report = dict[str, Any]
MAKERS = {"models": "specvit-deploy evaluate -o", "sets": "specvit-deploy ceiling --test-set -o"}
"""Commands that write reports with these keys."""


def read_report(path: Path, key: str) -> Report:
    """Read a report (JSON) that must have `key`.

    Raises
    ------
    SpecVitError
        If it has not; names the command that writes one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not found[key]:
            raise ValueError(f"no {key} in it")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecVitError(f"{path} is not such a report ({error}); write one with '{MAKERS[key]}'") from None
    return dict(found)


def read_accuracy(paths: Sequence[Path]) -> Report:
    """Read reports of `specvit-deploy evaluate` and join them; see `join_accuracy`."""
    return join_accuracy({str(path): read_report(path, "models") for path in paths})


def join_accuracy(reports: Mapping[str, Report]) -> Report:
    """Join reports of `specvit-deploy evaluate` on one test set; the keys name them in messages.

    Raises
    ------
    SpecVitError
        If they are of different test sets, or of none with a hash, or give one name to two models.
    """
    models: dict[str, Report] = {}
    first = next(iter(reports))
    for name, report in reports.items():
        if "hash" not in report["test_set"]:
            raise SpecVitError(f"{name} names no test set by its hash; evaluate without --nodes for figures")
        if report["test_set"]["hash"] != reports[first]["test_set"]["hash"]:
            raise SpecVitError(
                f"{name} is of test set {report['test_set']['hash']}, {first} of "
                f"{reports[first]['test_set']['hash']}; one figure shows one test set: evaluate all models on the same"
            )
        for model in report["models"]:
            if models.setdefault(model["name"], model)["overall"] != model["overall"]:
                raise SpecVitError(
                    f"{name} has another model named {model['name']}; evaluate it as NAME=PATH with a name of its own"
                )
    return {**reports[first], "models": list(models.values())}


def choose(models: Iterable[Report], names: Sequence[str]) -> list[Report]:
    """Take the models of these names, in this order; all of them if no name is given.

    Raises
    ------
    SpecVitError
        If one is not there; names those that are.
    """
    by_name = {model["name"]: model for model in models}
    if missing := [name for name in names if name not in by_name]:
        raise SpecVitError(f"no model {', '.join(missing)} in the report; choose from {', '.join(by_name)}")
    return [by_name[name] for name in names] if names else list(by_name.values())


def ceiling_of(sets: Iterable[Report], accuracy: Report) -> tuple[float, float, float]:
    """R2 of the posterior mean (MMSE) on the test set of `accuracy`, with its 68 % interval.

    Raises
    ------
    SpecVitError
        If no set of the report of `specvit-deploy ceiling` is that test set, or its posterior was not sampled.
    """
    wanted = accuracy["test_set"]["hash"]
    hashes = []
    for report in sets:
        found = (report["recipe"] or {}).get("hash", "a catalogue")
        if found == wanted:
            r2 = report["ceilings"]["overall"].get("posterior", {}).get("r2")
            if r2 is None:
                raise SpecVitError("the ceilings have no posterior; measure them without --no-posterior")
            return float(r2[0]), float(r2[1]), float(r2[2])
        hashes.append(found)
    raise SpecVitError(
        f"the ceilings are of {', '.join(hashes)}, the models of test set {wanted}; draw both of one set "
        "(ceiling --test-set)"
    )


def title_of(test_set: Report) -> str:
    """Scenario and test set in words."""
    low, high = test_set["mag"]
    return (
        f"scenario {test_set['scenario']}, test set {test_set['hash']} "
        f"({test_set['n']:,} spectra, magnitude {low:g} to {high:g})"
    )


def with_bars(values: Sequence[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    """Values and the lengths of their error bars, for `Axes.errorbar`, of [value, low, high]."""
    bars = [[abs(v[0] - v[1]) for v in values], [abs(v[2] - v[0]) for v in values]]
    return [v[0] for v in values], bars

"""Scaling and planning: what is run, what is kept, what follows from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from benchmark_report import made_report
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from specvit_benchmarks import performance, planning, scaling, scaling_catalogs, scaling_networks, timed
from specvit_benchmarks.scaling_cases import Case, Plan
from specvit_benchmarks.schema import SCALING
from specvit_training.estimator import Estimator

import specvit_deploy as sv
from specvit_deploy.errors import SpecVitError
from specvit_deploy.results import columns

START, EACH = 1.5, 0.8e-3
"""Seconds of a made-up run: to start, and for a spectrum."""


@pytest.fixture(scope="module")
def bundle() -> sv.Bundle:
    return sv.load_bundle()


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Runs cost what a formula says, and are listed."""
    ran: list[Case] = []

    def run(case: Case, catalog: Path, *_: object) -> dict[str, float]:
        assert catalog.exists()
        ran.append(case)
        cpu = START + EACH * case.rows * (4 if case.batch == 1 else 1)
        overlap = 1 + 0.8 * (case.workers - 1)
        return {"cpu_s": cpu, "wall_s": cpu / overlap, "peak_rss_mb": 300.0, "result_bytes": 5000 + 90 * case.rows}

    monkeypatch.setattr(scaling, "run", run)
    return ran


def test_catalogues_repeat_their_first_rows(tmp_path: Path) -> None:
    small, large = (scaling_catalogs.catalog_of(n, "survey", tmp_path, distinct=150) for n in (100, 340))
    with h5py.File(small) as few, h5py.File(large) as many:
        for name in ("flux", "error"):
            rows = many[name][()]
            np.testing.assert_array_equal(rows[:100], few[name])
            np.testing.assert_array_equal(rows[150:300], rows[:150])
            np.testing.assert_array_equal(rows[300:], rows[:40])
        assert len(np.unique(many["flux"][:150, 7])) == 150
    assert [row["id"] for row in sv.predict(small)] == list(range(100))


def test_catalogues_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6))
    with pytest.raises(SpecVitError, match=r"1000 spectra take 0.0 GB .*--sizes"):
        scaling_catalogs.catalog_of(1000, "survey", tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_command_is_timed_with_its_children_and_without_its_parent() -> None:
    burden = np.ones(2**26)  # 512 MB here must not count there
    own = "x = bytearray(b'x') * (150 << 20); sum(range(10**7))"
    work = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {own!r}])"
    command = [sys.executable, timed.__file__, sys.executable, "-c", work]
    cost = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert 150 < cost["peak_rss_mb"] < 300 < burden.nbytes / 1e6
    assert cost["cpu_s"] > 0.02 and cost["wall_s"] > 0.02
    failing = [sys.executable, timed.__file__, sys.executable, "-c", "raise SystemExit(3)"]
    assert subprocess.run(failing, capture_output=True, check=False).returncode == 3


def test_runs_from_file_to_file(tmp_path: Path, bundle: sv.Bundle) -> None:
    output = tmp_path / "scaling.json"
    options = ["--sizes", "40", "--workers", "1", "--batches", "8", "--no-networks", "--work", str(tmp_path / "work")]
    ran = CliRunner().invoke(scaling.main, [*options, "-o", str(output)])
    assert ran.exit_code == 0, ran.output
    found = json.loads(output.read_text())
    assert found["bundle"]["sha256"] == bundle.sha256 and found["machine"]["cores"] >= 1
    (row,) = found["scaling"]["rows"]
    assert row["n"] == 40 and row["cpu_s"] > 0 and row["peak_rss_mb"] > 50
    assert 40 * 88 < row["result_bytes"] < 200_000
    assert [cell["batch"] for cell in found["scaling"]["batch"]] == [8]
    assert found["scaling"]["workers"][0]["efficiency"] == 1.0
    assert not list((tmp_path / "work").glob("*/result.h5*"))


def test_what_follows_from_costs(tmp_path: Path, bundle: sv.Bundle, made_up: list[Case]) -> None:
    plan = Plan((30, 60, 120), (2,), (1, 32))
    found = scaling.measure(bundle, tmp_path, plan, networks=False, distinct=50)["scaling"]
    assert not list(Draft202012Validator(SCALING).iter_errors(found))
    assert found["fit"]["start_cpu_s"] == pytest.approx(START) and found["fit"]["cpu_ms"] == pytest.approx(1e3 * EACH)
    assert [(cell["workers"], round(cell["efficiency"], 6)) for cell in found["workers"]] == [(1, 1.0), (2, 0.9)]
    slow, fast = (cell["cpu_ms"] for cell in found["batch"])
    assert slow - fast == pytest.approx(3e3 * EACH)
    assert found["memory"] is None and found["networks"] is None
    assert len(set(made_up)) == len(made_up) == len(plan.cases())


def test_measurements_go_on(tmp_path: Path, bundle: sv.Bundle, made_up: list[Case]) -> None:
    plan = Plan((30, 60), (1,), ())
    scaling.measure(bundle, tmp_path, plan, networks=False)
    assert len(made_up) == 2
    scaling.measure(bundle, tmp_path, plan, networks=False)
    assert len(made_up) == 2
    scaling.measure(bundle, tmp_path, Plan((30, 60, 90), (1,), ()), rounds=2, networks=False)
    assert made_up[2:] == [Case(90), Case(30), Case(60), Case(90)]
    with pytest.raises(SpecVitError, match=r"is of bundle .*, not .*; remove it"):
        scaling.measure(sv.load_bundle("pfs-mr-study"), tmp_path, plan, networks=False)


def test_workers_are_measured_where_their_start_counts_least_and_batches_where_it_is_cheap() -> None:
    cases = Plan().cases()
    assert Case(200_000) in cases and Case(200_000, 2) in cases and Case(5_000, 1, 1) in cases
    assert not [case for case in cases if case.rows > 20_000 and case.batch is not None]


@pytest.mark.parametrize("largest, constant", [(300.0, True), (344.0, True), (346.0, False)])
def test_memory_may_grow_by_15_percent(largest: float, constant: bool) -> None:
    rows = [{"n": n, "peak_rss_mb": m} for n, m in ((1000, 100.0), (20_000, 300.0), (200_000, largest))]
    found = scaling.memory(rows)
    assert found is not None and found["n"] == [20_000, 200_000] and found["constant"] is constant


def test_a_failing_run_says_why(tmp_path: Path, bundle: sv.Bundle) -> None:
    catalog = tmp_path / "none.h5"
    with pytest.raises(SpecVitError, match=r"the run of 5 rows.* failed \(Error: .*none.h5"):
        scaling.run(Case(5), catalog, bundle, scaling.choose(bundle))


def test_networks_are_varied_one_way_at_a_time(bundle: sv.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    base = scaling_networks.shape_of(bundle)

    def stand_in(estimator: Estimator, path: Path, metadata: dict[str, str]) -> None:
        shutil.copy(bundle.graph(), path)  # an export takes long, and has tests of its own

    monkeypatch.setattr(scaling_networks, "build_graph", stand_in)
    tokens, depth = base.patches, base.depth
    found = scaling_networks.cost_of_networks(bundle, (tokens, 2 * tokens), (depth, depth + 1), rounds=1)
    assert [(cell["tokens"], cell["depth"]) for cell in found] == [
        (tokens, depth), (2 * tokens, depth), (tokens, depth + 1),
    ]  # fmt: skip
    own, many, deep = (cell["gflop_network"] for cell in found)
    assert 0 < own < many and own < deep and all(cell["cpu_ms"][0] > 0 for cell in found)


def test_scaling_goes_into_a_report_of_the_same_machine_only() -> None:
    machine = {"processor": "A", "cores": 2}
    report = {"machine": machine, "bundle": {"sha256": "1"}, "scaling": None}
    found = {"machine": machine, "bundle": {"sha256": "1"}, "scaling": {"rows": []}}
    assert scaling.add_to(report, found) == {**report, "scaling": {"rows": []}} and report["scaling"] is None
    for other in ({"machine": {"processor": "B", "cores": 2}}, {"bundle": {"sha256": "2"}}):
        with pytest.raises(SpecVitError, match="the report is of"):
            scaling.add_to(report, {**found, **other})


def test_scaling_as_the_readme_shows_it() -> None:
    report = made_report()
    text = performance.scaling(report)
    assert "| 200,000 | 181.2 | 185.4 | 0.91 | 424 |" in text
    assert "2 workers 1,960/s (90 % of as many single ones)" in text and "GFLOP" not in text
    cell = {"tokens": 8, "depth": 1, "dim": 64, "gflop_network": 0.00678, "cpu_ms": [0.41, 0.4, 0.43]}
    batch = [{"batch": 1, "cpu_ms": 1.5, "peak_rss_mb": 300.0}]
    report["scaling"] |= {"networks": [cell], "batch": batch, "fit": {"start_cpu_s": 1.24, "cpu_ms": 0.9}}
    text = performance.scaling(report)
    assert "| 8 | 1 | 0.00678 | 0.41 (0.40-0.43) |" in text and "| 1 | 1.50 | 300 |" in text
    assert "costs 1.2 CPU s, each spectrum 0.90 CPU ms" in text
    with pytest.raises(SpecVitError, match="--report"):
        performance.scaling({**report, "scaling": None})


def report_of(gflop: float | None = 0.06) -> dict[str, Any]:
    """As much of a report as planning needs."""
    return {
        "machine": {"cores": 2},
        "bundle": {"gflop": gflop},
        "stages": {"end_to_end_spectra_per_second": [1000.0, 990.0, 1010.0]},
        "scaling": {
            "rows": [{"n": 10, "result_bytes": 5000}, {"n": 1000, "result_bytes": 100_000}],
            "workers": [{"workers": 1, "spectra_per_second": 1100.0}, {"workers": 2, "spectra_per_second": 1800.0}],
            "fit": {"start_cpu_s": 3.6},
        },
    }


def test_plan_counts_hours_and_storage() -> None:
    rows = planning.plan(report_of(), [10**6, 10**9])
    node, _, nodes, _, card, _ = rows
    assert [row["where"] for row in rows[::2]] == ["this machine, 2 cores", "100 such nodes", "one H100"]
    assert node["spectra_per_second"] == pytest.approx(1800) and node["measured"] and not node["assumes"]
    assert node["hours"] == pytest.approx(10**6 / 1800 / 3600 + 0.001)
    assert node["core_hours"] == pytest.approx(2 * node["hours"])
    assert node["read_mb_s"] == pytest.approx(1800 * 32_768 / 1e6) and node["write_mb_s"] == pytest.approx(0.18)
    assert node["catalog_tb"] == pytest.approx(0.032768) and node["result_gb"] == pytest.approx(0.1)
    assert nodes["spectra_per_second"] == pytest.approx(180_000) and not nodes["measured"]
    assert card["core_hours"] is None and not card["measured"] and "nothing ran on a card" in card["assumes"]


def test_plan_says_what_was_not_measured() -> None:
    report = {**report_of(), "scaling": None}
    node = planning.plan(report, [10**6])[0]
    assert (
        node["spectra_per_second"] == 2000
        and not node["measured"]
        and node["assumes"] == "2 cores as fast as 2 times one"
    )
    assert node["result_gb"] * 1e3 == pytest.approx(
        sum(np.dtype(c.dtype).itemsize for c in columns(np.dtype(np.int64)))
    )
    many = planning.plan({**report_of(), "machine": {"cores": 64}}, [1])[0]
    assert many["assumes"] == "64 cores as efficient as 2" and many["spectra_per_second"] == pytest.approx(32 * 1800)
    for lacking in ({**report, "stages": None}, report_of(gflop=None)):
        with pytest.raises(SpecVitError, match="lacks stages or GFLOP; measure again"):
            planning.plan(lacking)


def test_the_card_is_bound_by_transfer_or_by_arithmetic() -> None:
    assert planning.card_rate(0.06) == (pytest.approx(55e9 / 32_768), "the transfer over PCIe")
    rate, roof = planning.card_rate(2.82)
    assert rate == pytest.approx(0.25 * 989e12 / 2.82e9) and roof.startswith("arithmetic at 25%")


def test_the_table_marks_what_was_not_measured() -> None:
    text = planning.table(planning.plan(report_of(), [10**6, 10**9]))
    lines = text.splitlines()
    assert lines[2].startswith("| this machine, 2 cores | 1e6 | 1,800 | 9.3 min |") and "| 1e9 |" in lines[3]
    assert all(("(not measured)" in line) is ("machine" not in line) for line in lines[2:8])
    assert lines[-1].startswith("one H100: upper limit by the transfer over PCIe")

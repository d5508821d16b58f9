"""`specvit-deploy benchmark`: a short run of the real bundle, what its report says, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from specvit_benchmarks import cases, command, engines, gpu, measuring, schema, turns
from specvit_benchmarks.measuring import Length
from specvit_benchmarks.operations import gflop_of, operations
from specvit_benchmarks.schema import load, new_report, validate
from specvit_training.torch_engine import rebuild
from test_report import Page

import specvit_deploy as sv
from specvit_deploy.cli import main
from specvit_deploy.engines.onnxruntime import OnnxRuntimeEngine
from specvit_deploy.labels import LOG_G
from specvit_deploy.metrics import with_intervals
from specvit_deploy.recipe import test_recipe as recipe_of

ROWS, ROUNDS, CORES = 96, 3, 4096
TINY = Length(ROWS, 60.0, ROUNDS, 0.02)
FIGURES = ("read_ms", "prepare_ms", "infer_ms", "write_ms", "begin_s")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The report of a short run through the command, what it printed, and the start of its files' names."""
    prefix = tmp_path_factory.mktemp("benchmark") / "here"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(command.LENGTHS, "quick", TINY)
        patch.setattr(os, "cpu_count", lambda: CORES)
        arguments = ["benchmark", "--quick", "--engine", "onnxruntime", "--batch", "16", "--batch", "5"]
        run = CliRunner().invoke(main, [*arguments, "-o", str(prefix)])
    assert run.exit_code == 0, run.output
    return load(prefix.with_suffix(".json")), run.output, prefix


@pytest.fixture(scope="module")
def report(written: tuple[dict[str, Any], str, Path]) -> dict[str, Any]:
    return written[0]


def test_every_case_is_measured_in_every_round(report: dict[str, Any]) -> None:
    ran = [entry for entry in report["engines"] if entry["reason"] is None]
    assert [(e["engine"], e["precision"], e["batch"]) for e in ran] == [("onnxruntime", "fp32", n) for n in (16, 5)]
    assert {(e["precision"], e["reason"]) for e in report["engines"][2:]} == {("int8", "the bundle has no int8 graph")}
    for entry in ran:
        middle, low, high = entry["spectra_per_cpu_second"]
        assert 0 < low <= middle <= high
        assert entry["ms_p50"] <= entry["ms_p95"] <= entry["ms_p99"]
        assert entry["calls"] >= ROUNDS and entry["seconds"] > 0 and entry["gpu"] is None
        assert entry["rms_sigma"] == 0.0  # it is the reference itself
        share = report["bundle"]["gflop"] * middle / report["ceiling_gflops"]["fp32"]
        assert entry["ceiling_share"] == pytest.approx(share) and 0 < share < 1.5


def test_the_whole_way_is_measured_beside_the_engine_alone(report: dict[str, Any]) -> None:
    stages = report["stages"]
    assert (stages["engine"], stages["batch"], stages["rows"], stages["format"]) == ("onnxruntime", 16, ROWS, "hdf5")
    assert all(stages[name] > 0 for name in FIGURES)
    assert stages["infer_ms"] > stages["read_ms"]
    assert stages["engine_only_spectra_per_second"] == report["engines"][0]["spectra_per_cpu_second"]
    assert 0 < stages["ratio"][0] < 1.5 and 0 < stages["wall_ratio"][0] < 1.5


def test_accuracy_is_that_of_the_frozen_test_set(report: dict[str, Any]) -> None:
    bundle = sv.load_bundle()
    recipe = recipe_of(bundle.scenario, ROWS)
    truth, flux, error = (np.concatenate(column) for column in zip(*recipe.blocks(), strict=True))
    found = OnnxRuntimeEngine(bundle.graph()).run(flux, error)
    expected = with_intervals(truth[:, LOG_G].astype(np.float64), found["labels"][:, LOG_G].astype(np.float64))["r2"]
    assert report["accuracy"]["r2"] == pytest.approx(expected, abs=1e-6) and report["accuracy"]["n"] == ROWS
    inside = (found["log_g_lo"] <= truth[:, LOG_G]) & (truth[:, LOG_G] <= found["log_g_hi"])
    assert report["accuracy"]["coverage_68"] == pytest.approx(inside.mean(), abs=1.5 / ROWS)
    assert report["accuracy"]["test_set"]["hash"] == recipe.hash
    assert report["bundle"]["sha256"] == bundle.sha256


def test_what_a_short_run_is_not_is_said(written: tuple[dict[str, Any], str, Path]) -> None:
    report, printed, prefix = written
    assert any(note.startswith("not MLPerf length") for note in report["notes"])
    for note in report["notes"]:
        assert note in printed
    assert "onnxruntime/fp32" in printed and "left out: onnxruntime/int8" in printed
    assert report["bundle"]["sha256"][:12] in prefix.with_suffix(".html").read_text()


def test_a_process_that_may_not_use_every_core_says_so(written: tuple[dict[str, Any], str, Path]) -> None:
    report, printed, prefix = written
    (note,) = [note for note in report["notes"] if f" of {CORES} cores; " in note]
    assert note.startswith(f"this process may use {turns.usable_cores()} of ")
    assert report["machine"]["cores"] == CORES  # still the machine's
    assert printed.startswith(f"Warning: {note}\n")
    assert note in Page(prefix.with_suffix(".html")).text


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no system call binds a process to cores here")
@pytest.mark.parametrize("with_dask", [True, False])
def test_cores_are_those_the_process_is_bound_to(with_dask: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_dask:
        monkeypatch.setitem(sys.modules, "dask.system", None)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert turns.usable_cores() == 1
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        (line,) = measuring.restricted()
        assert line.startswith("this process may use 1 of 2 cores; ")
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        assert measuring.restricted() == []
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "abacus"], "no engine abacus"),
        (["--engine", "onnxruntime/fp64"], "no precision fp64"),
        (["--engine", "onnxruntime/int8"], "does not run here (the bundle has no int8 graph)"),
        (["--engine", "onnxruntime", "--batch", "97"], "more than the 96 spectra"),
        (["--full"], "exclude each other"),
        (["-o", "nowhere/x"], "cannot write nowhere/x.json"),
        (["missing-bundle"], "no bundle at missing-bundle"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(command.LENGTHS, "quick", TINY)
    monkeypatch.setattr(command, "restricted", list)  # else one line more on some machines
    run = CliRunner().invoke(main, ["benchmark", "--quick", *arguments])
    assert run.exit_code == 2 and said in run.output and len(run.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_report_with_a_wrong_field_is_named(report: dict[str, Any], tmp_path: Path) -> None:
    for field, value, said in (
        ("schema", "specvit-benchmark/0", "schema"),
        ("length", "short", "length"),
        ("accuracy", {**report["accuracy"], "r2": [0.7]}, "accuracy.r2"),
        ("engines", [{k: v for k, v in report["engines"][0].items() if k != "ms_p99"}], "ms_p99"),
        ("engines", [{**report["engines"][0], "batch": None}], "batch"),
    ):
        with pytest.raises(sv.SpecVitError, match=said):
            validate({**report, field: value})
    with pytest.raises(sv.SpecVitError, match="speed"):
        validate({**report, "speed": 1})
    with pytest.raises(sv.SpecVitError, match="accuracy"):
        validate(new_report(sv.load_bundle(), "quick"))  # nothing measured yet
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(sv.SpecVitError, match=r"cannot read .*x\.json"):
        load(tmp_path / "x.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        schema.save({**report, "ceiling_gflops": {"fp32": float("nan"), "bf16": None}}, tmp_path / "y.json")
    assert not (tmp_path / "y.json").exists()


def test_measuring_needs_no_training_library() -> None:
    code = (
        "import sys\nfrom specvit_benchmarks import case, command, stages\n"
        "print(sorted({'torch', 'onnx', 'matplotlib', 'scipy', 'specvit_training'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_operations_of_the_graph_are_those_that_torch_counts() -> None:
    bundle = sv.load_bundle()
    assert gflop_of(bundle.graph()) == pytest.approx(engines.whole_gflop(rebuild(bundle)), rel=1e-3)
    heads = {"op_name": "Attention", "input_type_shape": [{"float": [1, 65, 96]}] * 3, "output_type_shape": [{}]}
    assert operations(heads) == 2 * (2 * 65 * 65 * 96)
    assert operations({"op_name": "Softmax", "input_type_shape": [], "output_type_shape": [{"float": [1]}]}) == 0


def turn(rows: int, cpu: float, wall: float, calls: list[float]) -> dict[str, Any]:
    return {"rows": rows, "cpu_s": cpu, "wall_s": wall, "calls_ms": calls}


def test_rates_are_of_turns_and_latencies_of_calls() -> None:
    found = cases.speed([turn(10, 1.0, 2.0, [1.0, 3.0]), turn(10, 2.0, 4.0, [2.0]), turn(10, 4.0, 5.0, [10.0])])
    assert found["spectra_per_cpu_second"] == [5.0, 3.75, 7.5]
    assert found["spectra_per_second"] == [2.5, 2.25, 3.75]
    assert found["ms_p50"] == 2.5 and found["calls"] == 4 and found["seconds"] == 11.0
    assert found["spread"] == pytest.approx(0.75) and not found["stable"]


def test_scatter_and_drift_make_a_case_unstable() -> None:
    rng = np.random.default_rng(0)
    assert cases.stability(100 + rng.normal(size=20))["stable"]
    assert not cases.stability(100 + 10 * rng.normal(size=20))["stable"]
    steps = np.array([100.0] * 4 + [110.0] * 16)  # quartiles agree, halves do not
    drifting = cases.stability(np.concatenate([[100.0] * 11, [90.0] * 9]))
    assert not drifting["stable"] and cases.stability(steps)["spread"] == 0


class Recorded(cases.CaseProcess):
    """A case without a process."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.turns = name, log, []

    def ask(self, do: str, **settings: Any) -> dict[str, Any]:
        self.log.append(f"{do} {self.name}")
        return {}


def test_cases_take_turns_and_begin_in_turn() -> None:
    log: list[str] = []
    told: list[int] = []
    cases.take_turns([Recorded(name, log) for name in "ab"], 2, 0.1, told.append)
    assert log == ["warm_up a", "warm_up b", "turn a", "turn b", "turn b", "turn a"]
    assert sum(told) == len(log)


def test_a_case_has_memory_of_its_own_and_says_how_it_ended() -> None:
    ballast = np.ones(60_000_000)  # 480 MB of this process
    with cases.CaseProcess("the product", "product", precision="fp32") as case:
        case.ask("warm_up", seconds=0.01)
        found = case.ask("turn")
        assert found["cpu_s"] > 0 and len(found["calls_ms"]) >= 1
        assert 0 < case.ask("memory")["peak_rss_mb"] < ballast.nbytes / 1e6
        case.process.kill()
        with pytest.raises(sv.SpecVitError, match="the product ended with -9"):
            case.ask("turn")
    with pytest.raises(sv.SpecVitError, match=r"ended with 1 \(KeyError: 'abacus'"):
        cases.CaseProcess("an abacus", "abacus")


def test_a_card_is_watched_where_nvidia_smi_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with gpu.Watch() as nothing:
        pass
    assert nothing.power_w is None and nothing.memory_mb is None
    ready = tmp_path / "ready"
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\nprintf '300.0, 1000\\n500.0, 2000\\n[N/A], 1500\\n4'\n: > {ready}\nexec /bin/sleep 60\n"
    )
    program.chmod(0o755)
    with gpu.Watch() as watch:
        until = time.monotonic() + 20
        while not ready.exists() and time.monotonic() < until:
            time.sleep(0.01)
    assert watch.power_w == 400.0 and watch.memory_mb == 2000.0
    turns = [{"gpu": {"power_w": w, "device_ms": None}} for w in (1.0, 5.0, 2.0, None)]
    assert cases.card(turns) == {"power_w": 2.0, "device_ms": None} and cases.card([{}]) is None


class Runtime:
    """CUDA as far as events go: an event holds the time at which it was recorded."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815

    def __init__(self) -> None:
        self.clock, self.events = 0.0, []  # type: float, list[float]

    def cudaEventCreate(self) -> tuple[int, int]:
        self.events.append(-1.0)
        return 0, len(self.events) - 1

    def cudaEventRecord(self, event: int, stream: str) -> tuple[int]:
        assert stream == "its stream"
        self.events[event] = self.clock
        return (0,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:
        return (0,)

    def cudaEventElapsedTime(self, begun: int, ended: int) -> tuple[int, float]:
        return 0, self.events[ended] - self.events[begun]


def test_the_time_of_a_card_is_that_between_its_events() -> None:
    class Memory:
        runtime, stream = Runtime(), "its stream"

    class Engine:
        memory = Memory()

    def call() -> None:
        Memory.runtime.clock += 7.0

    clock = gpu.device_clock(Engine())
    assert clock is not None and clock(call) == 7.0
    assert gpu.device_clock(object()) is None


def test_the_report_is_json_that_any_reader_reads(written: tuple[dict[str, Any], str, Path]) -> None:
    text = written[2].with_suffix(".json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["schema"] == schema.SCHEMA

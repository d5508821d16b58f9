"""Comparing two reports: what is slower is said and fails, what cannot be compared is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from benchmark_report import made_report
from click.testing import CliRunner, Result
from specvit_benchmarks import compare as module
from specvit_benchmarks.compare import TOLERANCE, compare, judge
from specvit_benchmarks.schema import save

from specvit_deploy.errors import SpecVitError

ROOT = Path(__file__).parents[1]


def changed(factor: float = 1.0, **machine: Any) -> dict[str, Any]:
    """The made report with one case's process time multiplied, on another machine if so told."""
    report = made_report()
    case = next(c for c in report["engines"] if (c["engine"], c["precision"], c["batch"]) == ("openvino", "bf16", 32))
    case["spectra_per_cpu_second"] = [rate / factor for rate in case["spectra_per_cpu_second"]]
    report["machine"] |= machine
    return report


def run(folder: Path, old: dict[str, Any], new: dict[str, Any], *options: str) -> Result:
    for name, report in (("old", old), ("new", new)):
        save(report, folder / f"{name}.json")
    return CliRunner().invoke(module.main, [str(folder / "old.json"), str(folder / "new.json"), *options])


def case(median: float, width: float, stable: bool = True) -> dict[str, Any]:
    rates = [median, median * (1 - width), median * (1 + width)]
    return {"spectra_per_cpu_second": rates, "stable": stable}


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (case(100, 0.01), case(100, 0.01), "same"),
        (case(100, 0.01), case(80, 0.01), "slower"),
        (case(100, 0.01), case(125, 0.01), "faster"),
        (case(100, 0.20), case(80, 0.20), "same"),  # the quartiles overlap
        (case(100, 0.001), case(97, 0.001), "same"),  # sure, but within the tolerance
        (case(100, 0.001), case(103, 0.001), "same"),
        (case(100, 0.01), case(50, 0.01, stable=False), "unstable"),
        (case(100, 0.01, stable=False), case(50, 0.01), "unstable"),
    ],
)
def test_a_verdict_needs_both_spread_and_tolerance(old: dict[str, Any], new: dict[str, Any], verdict: str) -> None:
    found = judge("a case", old, new, TOLERANCE)
    assert found.verdict == verdict
    middle, low, high = found.ratio
    assert low <= middle <= high
    assert middle == pytest.approx(old["spectra_per_cpu_second"][0] / new["spectra_per_cpu_second"][0])
    back = judge("a case", new, old, TOLERANCE)
    assert {verdict, back.verdict} in ({"same"}, {"unstable"}, {"slower", "faster"})
    assert back.ratio == pytest.approx((1 / middle, 1 / high, 1 / low))


def test_one_slower_case_fails(tmp_path: Path) -> None:
    result = run(tmp_path, made_report(), changed(1.25))
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.output.splitlines() if line.rstrip().endswith(" slower")]
    assert line.split() == ["openvino/bf16", "x", "32", "1327.0", "1061.6", "1.250", "1.201-1.301", "slower"]
    assert "1 slower, 28 same, 1 unstable" in result.output
    assert run(tmp_path, changed(1.25), made_report()).exit_code == 0
    assert run(tmp_path, made_report(), changed(1.25), "--tolerance", "0.3").exit_code == 0


def test_a_report_is_the_same_as_itself(tmp_path: Path) -> None:
    result = run(tmp_path, made_report(), made_report(), "--json")
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["differs"] == found["only_old"] == found["only_new"] == []
    assert {row["ratio"][0] for row in found["verdicts"]} == {1.0}
    assert [row["case"] for row in found["verdicts"] if row["verdict"] == "unstable"] == ["openvino/int8-bf16 x 64"]


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"processor": "another"}, "processor AMD EPYC in OLD, another in NEW"),
        ({"cores": 64}, "cores 2 in OLD, 64 in NEW"),
        ({"features": []}, "avx512_bf16 in OLD, none in NEW"),
        ({"gpu": "NVIDIA H100"}, "gpu none in OLD, NVIDIA H100 in NEW"),
    ],
)
def test_two_machines_are_refused(machine: dict[str, Any], said: str, tmp_path: Path) -> None:
    result = run(tmp_path, made_report(), changed(**machine))
    assert result.exit_code == 2 and said in result.output and len(result.output.strip().splitlines()) == 1


def of_another_bundle(length: str = "standard") -> dict[str, Any]:
    report = made_report(length)
    report["bundle"]["sha256"] = 64 * "a"
    return report


def test_two_bundles_are_refused_unless_asked_for(tmp_path: Path) -> None:
    refused = run(tmp_path, made_report(), of_another_bundle())
    assert refused.exit_code == 2 and len(refused.output.strip().splitlines()) == 1
    assert "two bundles: pfs-mr 9588f3bd2f22 in OLD, pfs-mr aaaaaaaaaaaa in NEW" in refused.output
    assert refused.output.strip().endswith("with --across-bundles")
    with pytest.raises(SpecVitError, match="two bundles"):
        compare(made_report(), of_another_bundle())
    asked = run(tmp_path, made_report(), of_another_bundle(), "--across-bundles")
    assert asked.exit_code == 0 and "bundle: pfs-mr 9588f3bd2f22 in OLD" in asked.output
    assert run(tmp_path, made_report(), changed(cores=64), "--across-bundles").exit_code == 2


def test_what_differs_is_said() -> None:
    new = of_another_bundle("quick")
    new["machine"]["versions"].pop("openvino")
    new["ceiling_gflops"]["fp32"] *= 0.8
    differs = compare(made_report(), new, across_bundles=True).differs
    assert differs == [
        "bundle: pfs-mr 9588f3bd2f22 in OLD, pfs-mr aaaaaaaaaaaa in NEW",
        "length: standard in OLD, quick in NEW",
        "openvino: 2026.4.1 in OLD, none in NEW",
        "the core itself, a product of fp32 matrices: 98 GFLOP/s in OLD, 78 in NEW (1.25 times the time)",
    ]


def test_cases_of_one_report_alone_are_listed_and_nothing_in_common_is_refused() -> None:
    old, new = made_report(), made_report()
    old["engines"] = [c for c in old["engines"] if c["engine"] != "openvino"]
    found = compare(old, new)
    assert len(found.only_new) == 20 and found.only_old == []
    assert not any("tensorrt" in name for name in found.only_new)  # it ran in neither
    new["engines"] = [c for c in new["engines"] if c["engine"] != "onnxruntime"]
    with pytest.raises(SpecVitError, match="with the options of OLD"):
        compare(old, new)


def test_nothing_judged_is_no_success(tmp_path: Path) -> None:
    report = made_report()
    report["engines"] = [deepcopy(c) for c in report["engines"] if c["reason"] is None and not c["stable"]]
    result = run(tmp_path, report, report)
    assert result.exit_code == 2 and "nothing was judged" in result.output


def test_the_script_in_the_folder_does_the_same(tmp_path: Path) -> None:
    run(tmp_path, made_report(), changed(1.25))
    command = [sys.executable, ROOT / "benchmarks" / "compare.py", tmp_path / "old.json", tmp_path / "new.json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "1 slower" in result.stdout, result.stderr

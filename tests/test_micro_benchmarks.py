"""Micro benchmarks run, once each and without timing; their own assertions say whether the results are right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = ("resampling", "median_snr", "bookkeeping", "emulator", "fisher", "reading", "writing")


def test_micro_benchmarks_run() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks/micro",
        "--benchmark-disable",
        "-rp",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
    passed = [line for line in run.stdout.splitlines() if line.startswith("PASSED")]
    for kind in KINDS:
        assert any(f"::test_{kind}" in line for line in passed), f"no micro benchmark of {kind}"

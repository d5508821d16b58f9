"""The example of the README for ONNX Runtime and numpy alone: it runs, and gives what the package gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import specvit_deploy as sv
from specvit_deploy.recipe import test_recipe as recipe_of

ROOT = Path(__file__).parents[1]
ALLOWED = {"numpy", "onnxruntime"}
GUARD = """\
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("specvit_deploy", "specvit_training", "torch", "onnx", "h5py", "click", "rich"):
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Guard())
"""


def example() -> str:
    (code,) = re.findall(
        r"<!-- plain consumer -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL
    )
    return str(code)


def test_the_example_gives_what_the_package_gives(tmp_path: Path) -> None:
    parts = list(recipe_of("survey", 12).blocks())
    flux, error = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    np.save(tmp_path / "flux.npy", flux.astype(np.float64))  # as users have them
    np.save(tmp_path / "error.npy", error)
    graph = tmp_path / "specvit_deploy" / "bundles" / "pfs-mr" / "graphs" / "fp32.onnx"
    graph.parent.mkdir(parents=True)
    graph.symlink_to(sv.load_bundle("pfs-mr").graph())
    code = GUARD + example() + "\nprint(sorted(sys.modules))\n"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *lines, modules = result.stdout.strip().splitlines()
    assert not {"specvit_deploy", "torch", "onnx", "h5py"} & set(modules.strip("[]").replace("'", "").split(", "))
    printed = np.array([[float(x) for x in re.findall(r"[\d.]+|inf", line)] for line in lines])
    table = sv.Estimator.load("pfs-mr", "onnxruntime", "fp32")(flux, error)
    ours = np.stack([table[name] for name in ("log_g", "log_g_err", "log_g_crlb")], axis=1)
    assert printed.shape == ours.shape == (12, 3)
    np.testing.assert_allclose(printed, ours, rtol=1e-3, atol=2e-4)  # printed with four digits


def test_the_guard_keeps_out_what_it_should() -> None:
    for name in ("specvit_deploy", "torch"):
        result = subprocess.run(
            [sys.executable, "-c", f"{GUARD}import {name}"], capture_output=True, cwd=ROOT, text=True
        )
        assert result.returncode == 1 and "ModuleNotFoundError" in result.stderr


def test_the_example_is_short_and_imports_two_packages() -> None:
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) <= 10
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported == ALLOWED

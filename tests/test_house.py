"""The rules of the house: what imports what, what a bare install can do, what the wheel holds."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import specvit_deploy as sv
from specvit_deploy.cli import OPTIONAL, main

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "specvit_deploy": ROOT / "specvit_deploy",
    "specvit_training": ROOT / "training" / "specvit_training",
    "specvit_export": ROOT / "export" / "specvit_export",
    "specvit_benchmarks": ROOT / "benchmarks" / "specvit_benchmarks",
}
MAY_IMPORT = {
    "specvit_deploy": set(),
    "specvit_training": {"specvit_deploy"},
    "specvit_export": {"specvit_deploy", "specvit_training"},
    "specvit_benchmarks": {"specvit_deploy", "specvit_training", "specvit_export"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def python(code: str, *blocked: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which importing any of `blocked` fails as if it were not installed."""
    guard = (
        "import sys\nclass Guard:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Guard())\n"
    )
    path = os.pathsep.join(str(p.parent) for p in PACKAGES.values())
    return subprocess.run(
        [sys.executable, "-c", guard + code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    for path in PACKAGES[package].rglob("*.py"):
        ours = imported(path) & set(PACKAGES) - {package}
        assert ours <= MAY_IMPORT[package], path


def test_the_runtime_never_imports_torch() -> None:
    for path in PACKAGES["specvit_deploy"].rglob("*.py"):
        assert not imported(path) & {"torch", "lightgbm", "scipy", "matplotlib"}, path


def test_no_module_unpickles_or_runs_strings() -> None:
    for package in PACKAGES.values():
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called not in ("eval", "exec", "pickle.load", "pickle.loads", "torch.load"), path
                    if called == "np.load":
                        assert any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords)


def test_import_works_with_nothing_but_numpy_at_hand() -> None:
    code = "import specvit_deploy; print(sorted({'torch', 'onnxruntime', 'astropy', 'h5py'} & set(sys.modules)))"
    result = python(code, "torch", "onnxruntime", "astropy")
    assert result.stdout.strip() == "[]", result.stderr


def test_predicting_needs_neither_torch_nor_the_training_package(tmp_path: Path) -> None:
    code = (
        f"import specvit_deploy as sv; p = sv.simulate({str(tmp_path / 'c.h5')!r}, n=20);"
        "print(len(sv.predict(p)), 'torch' in sys.modules)"
    )
    result = python(code, "torch", "specvit_training", "specvit_export", "scipy", "matplotlib", "pandas", "tables")
    assert result.stdout.strip() == "20 False", result.stderr


def test_a_missing_extra_says_how_to_install_it(tmp_path: Path) -> None:
    code = "from specvit_deploy.cli import main\nsys.argv = ['specvit-deploy'] + {args!r}\nmain()"
    catalog = sv.simulate(tmp_path / "c.h5", n=2)
    for args, blocked, extra in (
        (["train", "x.toml"], "torch", "train"),
        (["evaluate"], "torch", "train"),
        (["export", "x.safetensors"], "onnx", "export"),
        (["predict", str(catalog), "--engine", "onnxruntime"], "onnxruntime", "cpu"),
        (["predict", str(catalog), "--engine", "openvino"], "openvino", "openvino"),
    ):
        result = python(code.format(args=args), blocked)
        assert result.returncode == 2, (args, result.stderr)
        assert f"pip install 'specvit-deploy[{extra}]'" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_our_own_missing_module_is_not_taken_for_an_extra() -> None:
    code = "from specvit_deploy.cli import main\nsys.argv = ['specvit-deploy', 'train', 'x.toml']\nmain()"
    result = python(code, "specvit_training")
    assert result.returncode == 1 and "pip install" not in result.stderr


def test_help_is_quick_and_imports_no_extra() -> None:
    code = (
        "import contextlib\nfrom specvit_deploy.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "print(sorted({'torch', 'lightgbm', 'onnx', 'onnxruntime', 'h5py', 'scipy'} & set(sys.modules)))"
    )
    result = python(code)
    assert result.stdout.strip().splitlines()[-1] == "[]", result.stderr
    for name in OPTIONAL:
        assert name in result.stdout

    def seconds(code: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
        return time.perf_counter() - begun

    pairs = [(seconds("import specvit_deploy.cli"), seconds("import numpy, h5py")) for _ in range(3)]
    assert min(a / b for a, b in pairs) < 1.5  # lighter than the two packages every run needs


def commands(group: object = main, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name in group.list_commands(None):  # type: ignore[attr-defined]
        command = group.get_command(None, name)  # type: ignore[attr-defined]
        command = command.load() if hasattr(command, "load") else command
        found.append((*prefix, name))
        if hasattr(command, "list_commands"):
            found += commands(command, (*prefix, name))
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_and_option_is_documented(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0, result.output
    assert f"`specvit-deploy {' '.join(command)}" in (ROOT / "README.md").read_text() or len(command) > 1
    real = main
    for name in command:
        real = real.get_command(None, name)  # type: ignore[arg-type,assignment]
        real = real.load() if hasattr(real, "load") else real  # type: ignore[assignment]
    assert real.help
    for parameter in real.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert parameter.help, f"{command} {parameter.name}"  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_built_wheel_holds_the_default_bundle(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 40e6
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert {"specvit_deploy/data/emulator.npz", "specvit_deploy/bundles/pfs-mr/bundle.json", "specvit_training/vit.py",
            "specvit_export/seal.py"} <= names  # fmt: skip
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    code = "import specvit_deploy as sv; print(sv.__file__, sv.load_bundle('pfs-mr').sha256)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path / "installed",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
    )  # fmt: skip
    file, sha = result.stdout.split()
    assert Path(file).is_relative_to(tmp_path / "installed")
    assert sha == sv.load_bundle().sha256


def test_the_repository_holds_no_large_or_unexpected_top_level_entries() -> None:
    allowed = {"pyproject.toml", "specvit_deploy", "training", "export", "benchmarks", "tests", "README.md", "LICENSE"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    assert {name.split("/")[0] for name in tracked if not name.startswith(".")} <= allowed

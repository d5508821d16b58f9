"""Contestants that take turns, and the machine on which they did."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.engines.cuda import cuda_device
from specvit_deploy.errors import SpecVitError

Array = NDArray[Any]
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
"""Features of a processor that matrix products use."""
PACKAGES = (
    "specvit-deploy",
    "numpy",
    "h5py",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def rounds_of(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Array]:
    """Process time in seconds of each contestant in each round, (rounds,); one more round before to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            begun = time.process_time()
            run()
            if number:
                times[name].append(time.process_time() - begun)
    return {name: np.array(values) for name, values in times.items()}


def spread(values: Array) -> list[float]:
    """Median and quartiles: middle, low, high."""
    return [float(x) for x in np.percentile(values, [50, 25, 75])]


def one_thread() -> None:
    """Refuse an environment in which numpy may use more threads than one.

    Raises
    ------
    SpecVitError
        If none of the variables that limit its threads is 1.
    """
    if not any(os.environ.get(name) == "1" for name in THREADS):
        raise SpecVitError("times are those of one core: set OMP_NUM_THREADS=1 and start again")


def machine() -> dict[str, Any]:
    """Processor, its features, memory, card (null without one), versions and the load while measuring."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    facts = {name.strip(): value.strip() for name, value in pairs}
    features = facts.get("flags", "").split()
    card = cuda_device()
    return {
        "processor": facts.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "features": [flag for flag in FLAGS if flag in features],
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpu": None if card is None else card[0],
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "load": [round(x, 2) for x in os.getloadavg()],
    }


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to and, where dask is installed, its control group's quota."""
    try:
        from dask.system import cpu_count
    except ModuleNotFoundError:
        bound = getattr(os, "sched_getaffinity", None)  # Linux alone
        return len(bound(0)) if bound else os.cpu_count() or 1
    return cpu_count()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""What a card does while a case computes: time by its own events, power and memory as nvidia-smi tells them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from specvit_deploy.engines.device_memory import checked

QUERY = ("--query-gpu=power.draw,memory.used", "--format=csv,noheader,nounits", "--loop-ms=200")
ENGINES = ("cuda", "tensorrt", "tensorrt-rtx")
"""Engines that compute on a card."""


class Watch:
    """Power and memory of the first card while a block runs; a context manager.

    Attributes
    ----------
    power_w, memory_mb : float or None
        Mean power and largest memory in use, W and MiB; None without nvidia-smi, or if it does not know.
    """

    def __init__(self) -> None:
        self.power_w: float | None = None
        self.memory_mb: float | None = None
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if program := shutil.which("nvidia-smi"):
            command = [program, "--id=0", *QUERY]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is None:
            return
        self.process.terminate()
        said = self.process.communicate()[0]
        lines = [line.split(",") for line in said.splitlines() if line.count(",") == 1]
        power, memory = ([x for texts in lines if (x := _number(texts[column])) is not None] for column in (0, 1))
        self.power_w = float(np.mean(power)) if power else None
        self.memory_mb = max(memory, default=None)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]", or a line that was cut off
        return None


def device_clock(engine: Any) -> Callable[[Callable[[], object]], float] | None:
    """Make a clock that gives the milliseconds which the card counts between begin and end of a call.

    Copies are counted in. None for an engine whose stream is not ours (`specvit_deploy.engines.device_memory`).
    """
    memory = getattr(engine, "memory", None)
    if memory is None:
        return None
    runtime = memory.runtime
    begun, ended = (checked(runtime, runtime.cudaEventCreate()) for _ in range(2))

    def timed(call: Callable[[], object]) -> float:
        checked(runtime, runtime.cudaEventRecord(begun, memory.stream))
        call()
        checked(runtime, runtime.cudaEventRecord(ended, memory.stream))
        checked(runtime, runtime.cudaEventSynchronize(ended))
        return float(checked(runtime, runtime.cudaEventElapsedTime(begun, ended)))

    return timed

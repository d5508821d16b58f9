"""Buffers on a CUDA device, copies and one stream, through NVIDIA's `cuda.bindings.runtime`; and who the device is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from specvit_deploy.engines.cuda import cuda_device
from specvit_deploy.errors import SpecVitError


@dataclass(frozen=True)
class Gpu:
    """What identifies a card.

    Parameters
    ----------
    name : str
        As the driver tells it.
    capability : str
        Compute capability, such as sm90.
    driver : int
        CUDA version of the driver, as CUDA counts (13010 for 13.1).
    """

    name: str
    capability: str
    driver: int


def cuda_runtime() -> Any:
    """Import the bindings.

    Raises
    ------
    SpecVitError
        If they are not installed.
    """
    try:
        return import_module("cuda.bindings.runtime")
    except ModuleNotFoundError:
        raise SpecVitError("cuda-bindings is not installed: pip install cuda-bindings") from None


def find_gpu(runtime: Any = None) -> Gpu:
    """Look at the first device that the driver shows (`CUDA_VISIBLE_DEVICES` decides).

    Raises
    ------
    SpecVitError
        If there is none that can be used; one clause.
    """
    found = cuda_device()
    if found is None:
        raise SpecVitError("no CUDA device")
    runtime = cuda_runtime() if runtime is None else runtime
    name, (major, minor) = found
    try:
        driver = int(checked(runtime, runtime.cudaDriverGetVersion()))
    except CudaError as error:
        raise SpecVitError(f"the CUDA runtime cannot use {name} ({error})") from None
    return Gpu(name, f"sm{major}{minor}", driver)


class CudaError(Exception):
    """What the CUDA runtime says."""


def checked(runtime: Any, answer: tuple[Any, ...]) -> Any:
    """Value of an answer of the bindings, (error,) or (error, value).

    Raises
    ------
    CudaError
        With CUDA's own words, if the error is one.
    """
    if answer[0] != runtime.cudaError_t.cudaSuccess:
        _, words = runtime.cudaGetErrorString(answer[0])
        raise CudaError(words.decode() if isinstance(words, bytes) else str(words))
    return answer[1] if len(answer) > 1 else None


class DeviceMemory:
    """Buffers on the current device, by name, and the stream that they are used in.

    Raises
    ------
    SpecVitError
        From every method, if CUDA refuses.
    """

    def __init__(self, runtime: Any = None) -> None:
        self.runtime = cuda_runtime() if runtime is None else runtime
        self.stream = self._do("cudaStreamCreate")
        self.address: dict[str, int] = {}

    def allocate(self, name: str, nbytes: int) -> int:
        """Address of a new buffer."""
        self.address[name] = int(self._do("cudaMalloc", max(nbytes, 1)))
        return self.address[name]

    def upload(self, name: str, array: NDArray[Any]) -> None:
        """Start to copy a contiguous array into a buffer; it must stay as it is until `wait`."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do("cudaMemcpyAsync", self.address[name], array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, name: str, array: NDArray[Any]) -> None:
        """Start to copy a buffer into a contiguous array; it is filled after `wait`."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do("cudaMemcpyAsync", array.ctypes.data, self.address[name], array.nbytes, kind, self.stream)

    def wait(self) -> None:
        """Wait for all that was started."""
        self._do("cudaStreamSynchronize", self.stream)

    def free(self) -> None:
        """Give everything back; nothing else may be called afterwards."""
        for address in self.address.values():
            self.runtime.cudaFree(address)
        self.address.clear()
        self.runtime.cudaStreamDestroy(self.stream)

    def _do(self, function: str, *arguments: Any) -> Any:
        try:
            return checked(self.runtime, getattr(self.runtime, function)(*arguments))
        except CudaError as error:
            raise SpecVitError(f"CUDA failed in {function} ({error}); try a smaller batch or another engine") from None

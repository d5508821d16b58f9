"""TensorRT on an NVIDIA card: the native library (11 or later), and TensorRT for RTX through the same code.

An engine is built from the bundle's ONNX file when it is first needed, and kept (`engine_cache`).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.bundle import Bundle
from specvit_deploy.engines.batches import check_names, in_batches
from specvit_deploy.engines.device_memory import DeviceMemory, Gpu, find_gpu
from specvit_deploy.engines.engine_cache import EngineKey, cache_folder, open_or_build
from specvit_deploy.engines.tensorrt_plan import build_plan, known_capabilities, logger, one_line
from specvit_deploy.errors import SpecVitError

BATCH = 512
"""Rows of one call: as many as are read at a time."""
READS = {"fp32": "fp32-opset20", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}
"""Form of each precision; in float32 attention has no fused kernel, so that it is given as its parts."""


@dataclass(frozen=True)
class TensorRT:
    """One of the two libraries, as an engine's module.

    Parameters
    ----------
    name : str
        Of the engine.
    module : str
        Python module.
    EXTRA : str
        Extra of this distribution that supplies it.
    least : int
        First major version that works.
    """

    name: str
    module: str
    EXTRA: str
    least: int
    FORMS: dict[str, str] = field(default_factory=lambda: dict(READS))

    def library(self) -> Any:
        """Import the library.

        Raises
        ------
        SpecVitError
            If it is not installed, cannot be loaded, or is too old; one clause.
        """
        try:
            library = import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name != self.module:
                raise SpecVitError(f"{self.module} lacks {error.name}: {self._install()}") from None
            raise SpecVitError(f"{self.module} is not installed: {self._install()}") from None
        except (ImportError, OSError, RuntimeError) as error:  # a shared library that it needs
            raise SpecVitError(
                f"{self.module} cannot be loaded ({one_line([str(error)])}): {self._install()}"
            ) from None
        if int(library.__version__.split(".")[0]) < self.least:
            raise SpecVitError(
                f"{self.module} {library.__version__} is installed, whose precisions are flags of the builder and not "
                f"those of the graph: pip install '{self.module}>={self.least}', or use the engine cuda"
            )
        return library

    def why_not(self, precision: str) -> str | None:
        """None if this machine can run it now, else one clause that says why not."""
        try:
            gpu, library = find_gpu(), self.library()  # without a card the library is of no use
        except SpecVitError as error:
            return str(error)
        return self._why_not_on(library, gpu, precision)

    def load(self, bundle: Bundle, precision: str, threads: int, batch: int | None) -> TensorRTEngine:
        """Open the engine of a bundle on the current device, built now if none is kept; `threads` is not used.

        Raises
        ------
        SpecVitError
            If the library or a device is missing, the bundle lacks the form, or the build fails.
        """
        graph, form = bundle.graph(READS[precision]), bundle.manifest["graphs"][READS[precision]]
        gpu, library = find_gpu(), self.library()
        if reason := self._why_not_on(library, gpu, precision):
            raise SpecVitError(f"{self.name} cannot run {precision}: {reason}; choose another engine or precision")
        rows = BATCH if batch is None else batch
        wanted = EngineKey(
            graph_sha256=form["sha256"],
            library=library.__name__,
            version=library.__version__,
            precision=precision,
            profile=(1, rows, rows),
            capabilities=(gpu.capability,),
            gpu=gpu.name,
            driver=gpu.driver,
        )
        folder = cache_folder()

        def built() -> tuple[bytes, dict[str, Any]]:
            ahead = known_capabilities(library)  # such a library names its target and never times anything
            timing = folder / f"{library.__name__}-{library.__version__}-{gpu.capability}-{gpu.driver}.timing"
            plan = build_plan(
                library,
                graph,
                precision,
                wanted.profile,
                wanted.capabilities if ahead else (),
                None if ahead else timing,
            )
            return plan.data, plan.facts

        runtime = library.Runtime(logger(library))
        engine = open_or_build(wanted, folder, runtime.deserialize_cuda_engine, built)
        description = f"{library.__name__} {library.__version__} {precision} on {gpu.name} ({gpu.capability})"
        return TensorRTEngine(library, engine, self.name, precision, rows, description)

    def _why_not_on(self, library: Any, gpu: Gpu, precision: str) -> str | None:
        known = known_capabilities(library)
        if known and gpu.capability not in known:
            return f"{self.module} {library.__version__} does not run on {gpu.name} ({gpu.capability}): use tensorrt"
        if precision == "bf16" and int(gpu.capability[2:]) < 80:
            return f"{gpu.name} ({gpu.capability}) has no bfloat16"
        return None

    def _install(self) -> str:
        return f"pip install 'specvit-deploy[{self.EXTRA}]'"


class TensorRTEngine:
    """A deserialised engine with its buffers on the device.

    Parameters
    ----------
    library, engine : module, ICudaEngine
        The library, and what it loaded.
    name, precision : str
        Of the engine.
    batch : int
        Rows of one call, inside the engine's profile.
    description : str
        For people.
    memory : DeviceMemory, optional
        Of the device; the current one's otherwise.

    Raises
    ------
    SpecVitError
        If the engine is not of a bundle's graph, or the device has no room.
    """

    def __init__(
        self,
        library: Any,
        engine: Any,
        name: str,
        precision: str,
        batch: int,
        description: str,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.name, self.precision, self.batch, self.description = name, precision, batch, description
        self.fell_back = False
        self.engine, self.context = engine, engine.create_execution_context()
        if self.context is None:
            raise SpecVitError(f"{name} has no room on the device; give a smaller batch")
        modes = {n: engine.get_tensor_mode(n) for n in map(engine.get_tensor_name, range(engine.num_io_tensors))}
        inputs = [n for n, mode in modes.items() if mode == library.TensorIOMode.INPUT]
        outputs = [n for n in modes if n not in inputs]
        check_names(f"the engine of {name}", inputs, outputs)
        for n in inputs:
            shape = (batch, *tuple(engine.get_tensor_shape(n))[1:])
            if not self.context.set_input_shape(n, shape):
                raise SpecVitError(f"the engine of {name} does not take {n} {shape}; give a smaller batch")
        self.memory = DeviceMemory() if memory is None else memory
        weakref.finalize(self, self.memory.free).atexit = False
        self.host: dict[str, NDArray[Any]] = {}
        for n in modes:
            array = np.empty(tuple(self.context.get_tensor_shape(n)), library.nptype(engine.get_tensor_dtype(n)))
            if n in outputs:
                self.host[n] = array
            if not self.context.set_tensor_address(n, self.memory.allocate(n, array.nbytes)):
                raise SpecVitError(f"the engine of {name} refuses a buffer for {n}; report it")

    def run(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Outputs of the graph by name, N rows each, from flux and error (N, 4096)."""
        return in_batches(self._once, flux, error, self.batch)

    def _once(self, flux: NDArray[np.float32], error: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        self.memory.upload("flux", flux)
        self.memory.upload("error", error)
        if not self.context.execute_async_v3(int(self.memory.stream)):
            raise SpecVitError(f"{self.name} failed to run; give a smaller batch, or use another engine")
        for name, array in self.host.items():
            self.memory.download(name, array)
        self.memory.wait()
        return self.host


NATIVE = TensorRT("tensorrt", "tensorrt", "tensorrt", 11)
RTX = TensorRT("tensorrt-rtx", "tensorrt_rtx", "rtx", 1)

EXTRA, FORMS, why_not, load = NATIVE.EXTRA, NATIVE.FORMS, NATIVE.why_not, NATIVE.load

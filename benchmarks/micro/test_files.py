"""Reading a block of a catalogue and writing results, by HDF5 filter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from specvit_deploy.formats import Block, Catalog
from specvit_deploy.grid import PFS_MR
from specvit_deploy.result_formats import Result, open_writer
from specvit_deploy.results import columns, provenance

CHUNK = 64
"""Rows of a chunk."""
RESULTS = 20_000
"""Rows of the result that is written."""


def plugin(name: str, **options: Any) -> Callable[[], dict[str, Any]]:
    """A filter of hdf5plugin; the benchmark is left out where that is not installed."""
    return lambda: dict(getattr(pytest.importorskip("hdf5plugin"), name)(**options))


FILTERS: dict[str, Callable[[], dict[str, Any]]] = {
    "none": dict,
    "gzip": lambda: {"compression": "gzip", "compression_opts": 4, "shuffle": True},
    "lzf": lambda: {"compression": "lzf", "shuffle": True},
    "blosc2": plugin("Blosc2", cname="lz4"),
    "bitshuffle": plugin("Bitshuffle"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_reading_a_block(benchmark: BenchmarkFixture, block: Block, tmp_path: Path, name: str) -> None:
    """From a file in the page cache to arrays on the grid; HDF5 keeps chunks, so every round opens the file anew."""
    path, settings, rows = tmp_path / "catalog.h5", FILTERS[name](), len(block.flux)
    with h5py.File(path, "w") as file:
        file["wave"] = PFS_MR.wave
        for key, array in (("flux", block.flux), ("error", block.error)):
            twice = np.concatenate([array[:CHUNK], array])  # the first chunk is looked at when the file is opened
            file.create_dataset(key, data=twice, chunks=(CHUNK, PFS_MR.n), **settings)
    with ExitStack() as stack:

        def opened() -> tuple[tuple[Catalog], dict[str, Any]]:
            stack.close()
            return (stack.enter_context(Catalog(path, PFS_MR)),), {}

        measure: Callable[..., Any] = benchmark.pedantic
        found = measure(lambda catalog: catalog.read(CHUNK, CHUNK + rows), setup=opened, rounds=20)
    np.testing.assert_array_equal(found.flux, block.flux)
    benchmark.extra_info["megabytes"] = path.stat().st_size / 1e6


@pytest.mark.parametrize("form", ["hdf5", "fits", "fits.gz", "parquet"])
def test_writing_results(benchmark: BenchmarkFixture, tmp_path: Path, form: str) -> None:
    """All columns, in one block."""
    dtype = [(column.name, column.dtype) for column in columns(np.dtype(np.int64))]
    results = np.zeros(RESULTS, dtype)
    results["id"] = np.arange(RESULTS)
    results["log_g"] = np.random.default_rng(5).normal(3, 1, RESULTS)
    path = tmp_path / "result"

    def write() -> None:
        with open_writer(path, form, RESULTS, provenance(bundle_sha256="0" * 64), "own") as writer:
            writer.write(results)

    benchmark(write)
    with Result(path) as result:
        assert result.attributes["bundle_sha256"] == "0" * 64
    benchmark.extra_info["bytes_per_row"] = path.stat().st_size / RESULTS

"""Simulator datasets: arrays under `dataset/arrays`, labels as a pandas frame under `dataset/params`.

The frame is the PyTables `table` of pandas: a compound dataset whose blocks `values_block_k` hold columns of one
dtype; the column names of block k are a pickled list in the attribute `values_block_k_kind`, which is read as text
(the strings in it) and never unpickled. Columns are resolved by name, never by position in the file.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.formats.columns import check_keep, plain_column
from specvit_deploy.formats.hdf5 import Arrays, dataset, has_datasets, open_hdf5
from specvit_deploy.formats.rows import Rows
from specvit_deploy.grid import C_KM_S
from specvit_deploy.quality import Quality

FLUX, ERROR, MASK = (f"dataset/arrays/{name}/value" for name in ("flux", "error", "mask"))
WAVE = "spectrumdataset/wave"
TABLE = "dataset/params/table"
EXPECTED = 30.0
"""km/s: three times the velocity scatter that the model was trained with."""


class SimulationReader:
    """Published simulator datasets, and what `specvit-deploy simulate` writes.

    The stars of these datasets are at rest by construction (z = 0; ours are shifted by the scenario's some 10 km/s,
    which the model expects), so neither the frame's `redshift` nor its `velocity` is used unless it is asked for:
    `redshift` because published frames say no unit and hold zeros, `velocity` because it is a truth that a survey
    would not have. A row whose `redshift` is more than the model expects is VELOCITY_UNKNOWN instead. All columns of
    the frame can be kept.
    """

    name = "simulation"

    def detect(self, path: Path) -> bool:
        """The flux array of the dataset group, and wavelengths."""
        return path.is_file() and has_datasets(path, FLUX, WAVE)

    def open(self, path: Path, keep: Sequence[str] = ()) -> SimulationSource:
        """Open the file."""
        return SimulationSource(path, keep)


class SimulationSource:
    """An open simulator dataset."""

    def __init__(self, path: Path, keep: Sequence[str] = ()) -> None:
        self.path, self.keep = path, keep
        self.file = open_hdf5(path)
        try:
            self._locate()
        except BaseException:
            self.close()
            raise

    def _locate(self) -> None:
        file, path = self.file, self.path
        self.arrays = Arrays(path, file[FLUX], dataset(file, ERROR), None, dataset(file, MASK))
        self.arrays.check()
        self.rows, pixels = self.arrays.flux.shape
        self.wave = np.asarray(file[WAVE][()], np.float64)
        if self.wave.shape != (pixels,):
            raise SpecVitError(f"{path}: flux has {pixels} pixels, wave has shape {self.wave.shape}; make them equal")
        table = dataset(file, TABLE)
        if table is not None and len(table) != self.rows:
            raise SpecVitError(
                f"{path} holds the flux of {self.rows} spectra and the labels of {len(table)}: it is incomplete; "
                "copy or simulate it again"
            )
        self.columns = () if table is None else tuple(read_params(file, slice(0, 0)))
        check_keep(path, self.keep, self.columns)

    def read(self, start: int, stop: int) -> Rows:
        """Rows [start, stop)."""
        flux, error = self.arrays.read(start, stop)
        frame = read_params(self.file, slice(start, stop)) if self.columns else {}
        flags = None
        if "redshift" in frame:
            moves = np.abs(frame["redshift"]) * C_KM_S > EXPECTED
            flags = np.where(moves, np.int32(Quality.VELOCITY_UNKNOWN), np.int32(0))
        return Rows(
            wave=self.wave,
            flux=flux,
            error=error,
            id=frame.get("id", np.arange(start, stop)),
            flags=flags,
            extras={name: plain_column(frame[name]) for name in self.keep},
        )

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_params(file: h5py.File, part: slice = slice(None)) -> dict[str, NDArray[Any]]:
    """Read the frame of labels and observing columns, by name.

    Parameters
    ----------
    file : h5py.File
        A simulator dataset.
    part : slice
        Rows to read.

    Returns
    -------
    dict
        Column name -> (N,) array.

    Raises
    ------
    SpecVitError
        If the frame's column names cannot be read.
    """
    table = file[TABLE]
    rows, columns = table[part], {}
    for block in (name for name in rows.dtype.names if name != "index"):
        names = _column_names(table.attrs, block)
        values = rows[block]
        values = values[:, None] if values.ndim == 1 else values
        if len(names) != values.shape[1]:
            raise SpecVitError(
                f"{file.filename}: {block} has {values.shape[1]} columns but {len(names)} names; write it with pandas"
            )
        columns.update({name: values[:, i] for i, name in enumerate(names)})
    return columns


def _column_names(attributes: Mapping[str, Any], block: str) -> list[str]:
    raw = attributes.get(f"{block}_kind")
    if raw is None:
        raise SpecVitError(
            f"the params table has no names for {block}; write it with pandas.DataFrame.to_hdf(format='table')"
        )
    raw = raw if isinstance(raw, bytes) else str(raw).encode("latin1")
    try:
        return list(_pickled_strings(raw))
    except Exception:  # pickletools raises whatever it likes on damaged input
        raise SpecVitError(
            f"the names of {block} in the params table are damaged; write it again with pandas"
        ) from None


def _pickled_strings(raw: bytes) -> Iterator[str]:
    """Strings of a pickled list in order, from its opcodes alone: nothing is built, nothing can run."""
    for opcode, argument, _ in pickletools.genops(raw):
        if isinstance(argument, str) and opcode.name in (
            "UNICODE",
            "BINUNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE8",
        ):
            yield argument


class ParamsTable:
    """Writes the frame so that pandas and PyTables readers find each column by its name.

    Parameters
    ----------
    file : h5py.File
        Open for writing.
    names : sequence of str
        Float columns.
    n : int
        Rows.
    """

    def __init__(self, file: h5py.File, names: tuple[str, ...], n: int) -> None:
        self.names = names
        dtype = np.dtype([("index", "<i8"), ("values_block_0", "<f8", (len(names),)), ("values_block_1", "<i8", (1,))])
        group = file.create_group("dataset/params")
        _attributes(
            group,
            CLASS="GROUP", TITLE="", VERSION="1.0", encoding="UTF-8", errors="strict", pandas_type="frame_table",
            pandas_version="0.15.2", table_type="appendable_frame", levels=np.int64(1), nan_rep="nan",
            index_cols=_pickle([(0, "index")]), values_cols=_pickle(["values_block_0", "values_block_1"]),
            non_index_axes=_pickle([(1, [*names, "id"])]), data_columns=_pickle([]),
            metadata=_pickle([]), info=_pickle({}),
        )  # fmt: skip
        self.table = file.create_dataset(TABLE, (n,), dtype, chunks=(min(n, 4096),), maxshape=(None,))
        _attributes(
            self.table,
            CLASS="TABLE", TITLE="", VERSION="2.7", NROWS=np.int64(n), index_kind="integer",
            FIELD_0_NAME="index", FIELD_1_NAME="values_block_0", FIELD_2_NAME="values_block_1",
            FIELD_0_FILL=np.int64(0), FIELD_1_FILL=np.float64(0), FIELD_2_FILL=np.int64(0),
            values_block_0_kind=_pickle(list(names)), values_block_0_dtype="float64", values_block_0_meta=_pickle(None),
            values_block_1_kind=_pickle(["id"]), values_block_1_dtype="int64", values_block_1_meta=_pickle(None),
        )  # fmt: skip

    def write(self, start: int, columns: dict[str, NDArray[Any]]) -> None:
        """Write rows from `start`."""
        n = len(columns[self.names[0]])
        rows = np.zeros(n, self.table.dtype)
        rows["index"] = rows["values_block_1"][:, 0] = np.arange(start, start + n)
        for i, name in enumerate(self.names):
            rows["values_block_0"][:, i] = columns[name]
        self.table[start : start + n] = rows


def _pickle(value: object) -> np.bytes_:
    """PyTables keeps attributes as protocol-0 pickles; writing one runs nothing."""
    return np.bytes_(pickle.dumps(value, protocol=0))


def _attributes(target: h5py.HLObject, **attributes: Any) -> None:
    for name, value in attributes.items():
        if isinstance(value, str):  # PyTables reads fixed-length UTF-8 as str, anything else as bytes
            value = np.array(value.encode(), h5py.string_dtype("utf-8", max(len(value.encode()), 1)))
        target.attrs[name] = value


READERS = (SimulationReader(),)

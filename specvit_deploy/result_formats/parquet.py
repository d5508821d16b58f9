"""Results in Parquet, a row group a block.

Fields have the metadata unit, ucd and description. The file's metadata hold the provenance, each attribute under its
name, once more as pandas' `DataFrame.attrs`, and a VOTable without data (VOParquet 1.0) from which TOPCAT and astropy
(`format="parquet.votable"`) take units and UCDs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.results import Column

PANDAS = "PANDAS_ATTRS"
VOTABLE = "IVOA.VOTable-Parquet"
NAMESPACE = "http://www.ivoa.net/xml/VOTable/v1.3"
TYPES = {
    "b1": "boolean", "u1": "unsignedByte", "i1": "short", "i2": "short", "u2": "int", "i4": "int", "u4": "long",
    "i8": "long", "u8": "long", "f2": "float", "f4": "float", "f8": "double",
}  # fmt: skip
"""Type -> type of VOTable."""


class FileWriter:
    """See `specvit_deploy.result_formats.Writer`."""

    def __init__(self, path: Path, rows: int, attributes: dict[str, Any]) -> None:
        self.path, self.attributes = path, attributes
        self.file: Any = None

    def begin(self, columns: Sequence[Column], dtypes: Sequence[np.dtype[Any]]) -> None:
        """Write the schema."""
        import pyarrow
        import pyarrow.parquet

        fields = [
            pyarrow.field(
                column.name,
                pyarrow.string() if dtype.kind == "O" else pyarrow.from_numpy_dtype(dtype),
                metadata={"unit": column.unit, "ucd": column.ucd, "description": column.description},
            )
            for column, dtype in zip(columns, dtypes, strict=True)
        ]
        metadata = {
            **{name: str(value) for name, value in self.attributes.items()},
            PANDAS: json.dumps(self.attributes),
        }
        self.columns, self.dtypes = list(columns), list(dtypes)
        self.schema = pyarrow.schema(fields, metadata=metadata)
        self.file = pyarrow.parquet.ParquetWriter(self.path, self.schema, compression="zstd")

    def append(self, block: dict[str, NDArray[Any]]) -> None:
        """Append a row group."""
        import pyarrow

        arrays = [
            pyarrow.array(values, type=field.type) for values, field in zip(block.values(), self.schema, strict=True)
        ]
        self.file.write_table(pyarrow.Table.from_arrays(arrays, schema=self.schema))
        for i, values in enumerate(block.values()):
            if values.dtype.kind == "O":
                wide = np.dtype(f"U{max(map(len, values)) or 1}")
                self.dtypes[i] = wide if self.dtypes[i].kind == "O" else max(self.dtypes[i], wide)

    def finish(self) -> None:
        """Add the VOTable, whose texts have the lengths that were seen; closing completes the file."""
        content = votable(self.columns, self.dtypes, self.attributes)
        self.file.add_key_value_metadata({f"{VOTABLE}.version": "1.0", f"{VOTABLE}.content": content})

    def close(self) -> None:
        """Write the footer."""
        if self.file is not None:
            self.file.close()


class FileReader:
    """See `specvit_deploy.result_formats.Reader`."""

    def __init__(self, path: Path) -> None:
        from specvit_deploy.formats.parquet import open_parquet

        self.file = open_parquet(path)
        schema = self.file.schema_arrow
        metadata = schema.metadata or {}
        self.attributes: dict[str, Any] = json.loads(metadata.get(PANDAS.encode(), b"{}"))
        self.columns = tuple(
            Column(
                field.name,
                str(field.type),
                *((field.metadata or {}).get(key, b"").decode() for key in (b"unit", b"description", b"ucd")),
            )
            for field in schema
        )

    def blocks(self, names: Sequence[str], size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Columns in blocks."""
        for batch in self.file.iter_batches(size, columns=list(names), use_threads=False):
            yield {name: batch.column(name).to_numpy(zero_copy_only=False) for name in names}

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def votable(columns: Sequence[Column], dtypes: Sequence[np.dtype[Any]], attributes: dict[str, Any]) -> str:
    """A VOTable (XML) that describes the columns and holds no data."""
    root = ElementTree.Element("VOTABLE", {"version": "1.4", "xmlns": NAMESPACE})
    resource = ElementTree.SubElement(root, "RESOURCE", {"type": "results"})
    table = ElementTree.SubElement(resource, "TABLE", {"name": "log_g"})
    for name, value in attributes.items():
        ElementTree.SubElement(
            table, "PARAM", {"name": name, "datatype": "unicodeChar", "arraysize": "*", "value": str(value)}
        )
    for column, dtype in zip(columns, dtypes, strict=True):
        if dtype.kind in "OU":
            kind = {"datatype": "unicodeChar", "arraysize": str(max(dtype.itemsize // 4, 1))}
        else:
            kind = {"datatype": TYPES[dtype.str[1:]]}
        described = {key: value for key, value in (("unit", column.unit), ("ucd", column.ucd)) if value}
        field = ElementTree.SubElement(table, "FIELD", {"name": column.name, **kind, **described})
        ElementTree.SubElement(field, "DESCRIPTION").text = column.description
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)

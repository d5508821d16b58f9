"""Names of result columns: our own, and those of catalogues downstream of the Subaru PFS pipeline.

The view "pfs" renames and adds nothing that was not measured:

    id -> objId (where it is a number)      snr_median -> snr_m
    log_g_err -> log_gErr                   T_eff_sigma -> T_effErr, and so on for M_H, a_M, C_M
    quality -> log_gStatus, and again as T_effStatus, M_HStatus, a_MStatus, C_MStatus: 0 is a value without remarks
    flag: no result, as a fatal bit is set

All other columns keep their names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError
from specvit_deploy.labels import LABELS
from specvit_deploy.quality import FATAL
from specvit_deploy.results import BITS, Column, columns, describe

OWN, PFS = "own", "pfs"
SCHEMAS = (OWN, PFS)
OTHERS = tuple(label for label in LABELS if label != "log_g")
PFS_NAMES = {
    "log_g_err": "log_gErr",
    "quality": "log_gStatus",
    "snr_median": "snr_m",
    **{f"{label}_sigma": f"{label}Err" for label in OTHERS},
}
"""Our name -> the name downstream of PFS."""
PFS_ID = "objId"


@dataclass(frozen=True)
class Field:
    """A column with its values (N,)."""

    column: Column
    values: NDArray[Any]


def view(table: NDArray[Any], schema: str) -> list[Field]:
    """Columns of a result table (structured array) under the names of a schema."""
    dtypes = {name: table.dtype[name] for name in table.dtype.names or ()}
    fields = [Field(describe(name, dtype, dtypes["id"]), table[name]) for name, dtype in dtypes.items()]
    return fields if schema == OWN else _as_pfs(fields)


def _as_pfs(fields: list[Field]) -> list[Field]:
    names = {field.column.name for field in fields}
    renamed = dict(PFS_NAMES)
    if PFS_ID not in names and next(f.values for f in fields if f.column.name == "id").dtype.kind in "iu":
        renamed["id"] = PFS_ID
    out = []
    for field in fields:
        name = field.column.name
        out.append(replace(field, column=replace(field.column, name=renamed.get(name, name))))
        if name == "quality":
            out += [
                Field(Column(f"{label}Status", "<i4", "", BITS, "meta.code.qual"), field.values) for label in OTHERS
            ]
            fatal = (field.values & np.int32(FATAL)) != 0
            out.append(Field(Column("flag", "|b1", "", "no result: a fatal bit is set", "meta.code.error"), fatal))
    return out


def our_name(name: str, schema: str, names: Collection[str]) -> str:
    """Our name of a column of a file whose columns are `names`."""
    if schema == OWN:
        return name
    back = {theirs: ours for ours, theirs in PFS_NAMES.items()}
    if "id" not in names:  # else it was carried along
        back[PFS_ID] = "id"
    return back.get(name, name)


def check_carried(names: Iterable[str], schema: str) -> None:
    """Refuse to carry along a column whose name a result column has.

    Raises
    ------
    SpecVitError
        Naming it.
    """
    ours = {column.name for column in columns(np.dtype(np.int64))}
    if schema == PFS:
        ours |= {*PFS_NAMES.values(), *(f"{label}Status" for label in OTHERS), "flag"}
    if twice := ours.intersection(names):
        said = ", ".join(sorted(twice))
        raise SpecVitError(f"the catalogue's {said} would hide a result column; leave it out of --keep")

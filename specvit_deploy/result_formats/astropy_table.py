"""Results in memory as an astropy table, with the units, descriptions and UCDs that the files carry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.errors import SpecVitError, missing_extra
from specvit_deploy.result_formats.schema import OWN, SCHEMAS, view
from specvit_deploy.results import Column

if TYPE_CHECKING:
    import astropy.table


def as_astropy(table: NDArray[Any], schema: str = OWN) -> astropy.table.Table:
    """Make an astropy table of results.

    Parameters
    ----------
    table : (N,) structured array
        What `specvit_deploy.predict`, `predict_blocks` or an `Estimator` gave, or some of its rows. Not modified, and
        not shared.
    schema : "own" or "pfs"
        Names of the columns, see `specvit_deploy.result_formats.schema`.

    Returns
    -------
    astropy.table.Table
        N rows. Each column has its unit (log g: dex(cm s-2), T_eff: K), its description, and its UCD in `meta["ucd"]`.
        Identifiers and texts are `str`.

    Raises
    ------
    SpecVitError
        If astropy is not installed, `table` is no result table, or the schema is unknown.

    Examples
    --------
    >>> import specvit_deploy as sv
    >>> table = sv.as_astropy(sv.predict("catalog.h5"))  # doctest: +SKIP
    >>> table["log_g"].unit  # doctest: +SKIP
    Unit("dex(cm / s2)")
    """
    try:
        from astropy.table import Table
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "astropy":
            raise
        raise missing_extra("as_astropy", "fits") from None
    if schema not in SCHEMAS:
        raise SpecVitError(f"schema {schema} is unknown; choose one of {', '.join(SCHEMAS)}")
    if not {"id", "log_g", "quality"} <= set(getattr(table, "dtype", np.dtype(float)).names or ()):
        raise SpecVitError("as_astropy takes a table of results; give it what predict or an Estimator returned")
    return Table([table_column(field.column, _texts(field.values)) for field in view(table, schema)])


def table_column(column: Column, values: NDArray[Any]) -> astropy.table.Column:
    """Make one column of an astropy table, with all that is known of it; astropy must be there."""
    from astropy.table import Column as TableColumn

    return TableColumn(
        values,
        name=column.name,
        unit=column.unit or None,
        description=column.description,
        meta={"ucd": column.ucd} if column.ucd else None,
    )


def _texts(values: NDArray[Any]) -> NDArray[Any]:
    """Texts of any kind as `str`; all else as it is."""
    if values.dtype.kind not in "SO":
        return values
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values.tolist()]
    return np.array(texts, "U")

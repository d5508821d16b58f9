"""Where the spectra are in the sky: rows in square cells of a map that fits them, counted in two readings of a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.result_formats import Result

Array = NDArray[np.float64]

CELLS = 110
"""Cells along the width of the map."""
WIDE = 80.0
"""Degrees of right ascension or declination from which on the whole sky is drawn."""


@dataclass(frozen=True)
class SkyMap:
    """Rows per cell.

    Parameters
    ----------
    ra, dec : float
        Centre, degrees.
    whole : bool
        Whole sky in Hammer's equal-area projection; else a plane around the centre.
    width, height : float
        Of the map, degrees on the plane (Hammer: of 4 sqrt(2) by 2 sqrt(2)).
    counts : (ny, nx) array of int
        Rows per cell, from the lower left; right ascension rises to the left.
    rows : int
        Rows with a position.
    """

    ra: float
    dec: float
    whole: bool
    width: float
    height: float
    counts: NDArray[np.int64]
    rows: int

    def project(self, ra: Array, dec: Array) -> tuple[Array, Array]:
        """Positions in degrees to x, y on the map, from its centre, x to the right."""
        east = (ra - self.ra + 180.0) % 360.0 - 180.0
        if not self.whole:
            return -east * np.cos(np.radians(self.dec)), dec - self.dec
        half, latitude = np.radians(east) / 2, np.radians(dec)
        scale = np.sqrt(2.0 / (1.0 + np.cos(latitude) * np.cos(half)))
        return -2 * scale * np.cos(latitude) * np.sin(half), scale * np.sin(latitude)


def map_sky(result: Result, columns: tuple[str, str], size: int) -> SkyMap | None:
    """Count rows per cell; None if no row has a position.

    Parameters
    ----------
    columns : (str, str)
        Right ascension and declination in degrees.
    size : int
        Rows that are read at a time.
    """
    around = np.zeros(1440, np.bool_)  # quarters of a degree of right ascension that are taken
    low, high, rows = 90.0, -90.0, 0
    for ra, dec in _positions(result, columns, size):
        around[np.floor(ra * 4).astype(np.int64) % 1440] = True
        if len(dec):
            low, high, rows = min(low, float(dec.min())), max(high, float(dec.max())), rows + len(dec)
    if not rows:
        return None
    start, span = _arc(around)
    whole = span > WIDE or high - low > WIDE
    centre = ((start + span / 2) % 360.0, (low + high) / 2)
    if whole:
        width, height = 4 * np.sqrt(2.0), 2 * np.sqrt(2.0)
        empty = SkyMap(180.0, 0.0, True, width, height, np.zeros((CELLS // 2, CELLS), np.int64), rows)
    else:
        width = max(span * np.cos(np.radians(centre[1])), 0.02) * 1.06
        height = max(high - low, 0.02) * 1.06
        width, height = max(width, 1.2 * height), max(height, 0.42 * width)
        shape = (max(1, round(CELLS * height / width)), CELLS)
        empty = SkyMap(*centre, False, width, height, np.zeros(shape, np.int64), rows)
    for ra, dec in _positions(result, columns, size):
        x, y = empty.project(ra, dec)
        i = np.clip(((y / height + 0.5) * empty.counts.shape[0]).astype(np.int64), 0, empty.counts.shape[0] - 1)
        j = np.clip(((x / width + 0.5) * CELLS).astype(np.int64), 0, CELLS - 1)
        np.add.at(empty.counts, (i, j), 1)
    return empty


def _positions(result: Result, columns: tuple[str, str], size: int) -> Iterator[tuple[Array, Array]]:
    """Finite positions of each block, degrees."""
    for block in result.blocks(columns, size):
        try:
            ra, dec = (block[name].astype(np.float64) for name in columns)
        except ValueError:  # sexagesimal texts
            return
        good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
        yield ra[good] % 360.0, dec[good]


def _arc(taken: NDArray[np.bool_]) -> tuple[float, float]:
    """Start and length, in degrees, of the shortest arc that holds all that is taken."""
    places = np.flatnonzero(taken)
    gaps = np.diff(np.append(places, places[0] + len(taken)))
    widest = int(np.argmax(gaps))
    step = 360.0 / len(taken)
    start = places[(widest + 1) % len(places)] * step
    return float(start), float((len(taken) - gaps[widest] + 1) * step)

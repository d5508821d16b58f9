"""Grids of synthetic spectra that users bring: BOSZ 2017 and 2024, converted to node files of the instrument."""

from specvit_training.grids.convert import convert, read_grid
from specvit_training.grids.files import GENERATIONS, REGION, choose, find_spectra, find_wavelengths
from specvit_training.grids.response import air_to_vacuum, limits, response, triplet_offset, vacuum_to_air
from specvit_training.grids.rows import Recipe, convert_one
from specvit_training.grids.spectrum import GridSpectrum, Sampled

__all__ = [
    "GENERATIONS",
    "REGION",
    "GridSpectrum",
    "Recipe",
    "Sampled",
    "air_to_vacuum",
    "choose",
    "convert",
    "convert_one",
    "find_spectra",
    "find_wavelengths",
    "limits",
    "read_grid",
    "response",
    "triplet_offset",
    "vacuum_to_air",
]

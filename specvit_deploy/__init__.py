"""Surface gravities with their Cramer-Rao bound for survey-scale catalogues of stellar spectra."""

__version__ = "0.1.0"

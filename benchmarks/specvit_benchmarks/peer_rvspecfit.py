"""rvspecfit on templates of our emulator: the peer whose users fit spectra one by one.

Koposov 2019, ascl:1907.013; Koposov et al. 2011, ApJ 736, 146. Its own tools make interpolator and cross-correlation
templates from a grid that the emulator fills, at the instrument's line spread and on its pixels; its own functions
find the start (`fitter_ccf.fit`) and fit (`vel_fit.process`), as its documentation shows.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specvit_benchmarks.peer_contestants import Columns, Peer, of_spectra
from specvit_deploy.emulator import default_emulator
from specvit_deploy.errors import missing_extra
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.simulator import MAX_VELOCITY_SD

PARAMETERS = ("teff", "logg", "feh", "alpha", "vrad")
"""Our labels in its words: it knows Hessian steps for these names alone, and the last stands for C_M."""
MASKED = 1000.0
"""Error of a masked pixel over the median flux, as in rvspecfit's own pipeline for DESI."""
VELOCITY = MAX_VELOCITY_SD * 10.0
"""Velocities are known to this, km/s: the farthest that the scenario `survey` draws."""
CONFIG = """\
template_lib: '{folder}/'
min_vel: -{velocity:g}
max_vel: {velocity:g}
min_vel_step: 0.2
vel_step0: 5
min_vsini: 0.01
max_vsini: 500
second_minimizer: 1
"""


@dataclass(frozen=True)
class Use:
    """A way to use rvspecfit.

    Parameters
    ----------
    name, what : str
        For the table.
    setup : str
        What its files are called.
    labels : int
        How many of our labels its templates have; C_M is 0 without the fifth.
    side : int
        Templates along each label, the same for all: 0.9.0 cannot write regular grids of unequal sides.
    npoly : int
        Terms of the continuum that multiplies a template.
    every : int
        One of so many templates is cross-correlated.
    """

    name: str
    what: str
    setup: str
    labels: int
    side: int
    npoly: int
    every: int = 30


USES = (
    Use("rvspecfit", "as for DESI: T_eff, log g, [M/H], alpha; continuum of 10 terms", "four", 4, 10, 10),
    Use("rvspecfit, told", "told the scenario: carbon as fifth label, linear continuum", "five", 5, 7, 2),
)


def why_not() -> str | None:
    """None if rvspecfit is installed, else what to do."""
    return None if find_spec("rvspecfit") else str(missing_extra("rvspecfit", "peers"))


def rvspecfit(folder: Path, rows: int, use: Use) -> Peer:
    """Make the templates in `folder`, which several uses share, and a peer that fits with them."""
    with quiet():
        make_templates(folder, use)
        fit = fitter(folder, use)

    def estimate(flux: NDArray[np.float32], error: NDArray[np.float32]) -> Columns:
        with quiet():
            found = np.array([fit(*spectrum) for spectrum in zip(flux, error, strict=True)])
        return {"log_g": found[:, 0], "log_g_lo": found[:, 0] - found[:, 1], "log_g_hi": found[:, 0] + found[:, 1]}

    return Peer(use.name, f"{use.what}; {use.side**use.labels:,} templates", rows, of_spectra(estimate))


def make_templates(folder: Path, use: Use) -> None:
    """Write a regular grid over the label box as `rvs_make_interpol` would, then run `rvs_make_nd`, `rvs_make_ccf`."""
    from rvspecfit import make_ccf, make_nd, serializer

    emulator = default_emulator()
    grid = emulator.grid.extended(emulator.margin)
    axes = [np.linspace(low, high, use.side) for low, high in zip(LABEL_BOX.low, LABEL_BOX.high, strict=True)]
    axes[use.labels :] = [np.zeros(1)] * (len(PARAMETERS) - use.labels)
    points = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], 1)
    logs = [
        np.log(emulator.mean + emulator.coefficients(part) @ emulator.basis).astype(np.float32)
        for part in np.array_split(points, -(-len(points) // 256))
    ]
    content = {
        "specs": np.concatenate(logs),
        "vec": points[:, : use.labels].T,
        "lam": grid.wave,
        "parnames": PARAMETERS[: use.labels],
        "mapper_module": "rvspecfit.read_grid",
        "mapper_class_name": "LogParamMapper",
        "mapper_args": ([0],),  # T_eff is interpolated in its logarithm
        "lognorms": np.zeros(len(points)),
        "log_spec": True,
        "log_step": False,
        "git_rev": "",
        "revision": "",
        "cmdline": "",
    }
    serializer.save_dict_to_hdf5(str(folder / f"specs_{use.setup}.h5"), content)
    named = ["--prefix", str(folder), "--setup", use.setup]
    make_nd.main([*named, "--regulargrid"])
    first, last = emulator.grid.wave[[0, -1]]
    make_ccf.main([*named, "--oprefix", str(folder), "--lambda0", str(first), "--lambda1", str(last),
                   "--step", str(grid.step), "--every", str(use.every), "--nthreads", "1"])  # fmt: skip


def fitter(folder: Path, use: Use) -> Callable[[NDArray[np.float32], NDArray[np.float32]], tuple[float, float]]:
    """Log g and its stated error from flux and error (n,); NaN where rvspecfit gives up."""
    from rvspecfit import fitter_ccf, spec_fit, utils, vel_fit

    path = folder / "config.yaml"
    path.write_text(CONFIG.format(folder=folder, velocity=VELOCITY))
    config = utils.read_config(str(path))
    wave = default_emulator().grid.wave

    def fit(flux: NDArray[np.float32], error: NDArray[np.float32]) -> tuple[float, float]:
        good = np.isfinite(error)
        level = float(np.median(flux[good]))
        value, sigma = np.where(good, flux, level), np.where(good, error, MASKED * abs(level))
        data = [spec_fit.SpecData(use.setup, wave, value, sigma, badmask=~good)]
        try:
            start = fitter_ccf.fit(data, config)["best_par"]
            found = vel_fit.process(data, start, config=config, options={"npoly": use.npoly})
        except (RuntimeError, ValueError, AssertionError, np.linalg.LinAlgError):
            return np.nan, np.nan
        return float(found["param"]["logg"]), float(found["param_err"]["logg"])

    return fit


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress, warnings nor log lines: what they say is in its result too."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

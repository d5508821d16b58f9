"""The simulator: labels -> emulator -> electrons -> what a pipeline would write.

One implementation serves numpy (catalogues, tests) and torch (training on any device): the arithmetic is common to
both, the random numbers come from a small source object.

The error of a pixel is estimated from its own *noisy* counts, as a pipeline does: given flux and conditions it
holds nothing about the star that flux does not hold already.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np

from specvit_deploy.emulator import C_O_WIDTH, LOG_C_O_SUN, THETA_K, Emulator, default_emulator
from specvit_deploy.errors import SpecVitError
from specvit_deploy.grid import C_KM_S
from specvit_deploy.labels import LABEL_BOX, LabelBox
from specvit_deploy.noise import (
    FIELD,
    REFERENCE_MAG,
    SEEING,
    SIGNAL_ELECTRONS,
    SIGNAL_SCALE,
    ZENITH,
    NoiseModel,
    default_noise_model,
    transmission,
)
from specvit_deploy.scenario import Scenario

MAX_VELOCITY_SD = 4.0
"""Simulated velocities are clipped to this many standard deviations."""
VELOCITY_TERMS = 12
"""Chebyshev terms in velocity: error below 1e-3 of the median flux at +-40 km/s (a test holds it)."""
RUN = 8
"""Length of a masked run of pixels (half of all masked pixels lie in runs, half alone)."""


class Draws(Protocol):
    """A source of random numbers of the simulator's array type, float32."""

    def normal(self, *shape: int) -> Any:
        """Draw standard normals."""

    def uniform(self, *shape: int) -> Any:
        """Draw from [0, 1)."""


@dataclass(frozen=True)
class NoiseVariety:
    """How the noise of catalogues differs from the instrument's own at rest.

    Parameters
    ----------
    share : float
        Of the spectra whose noise differs.
    velocity : float
        km/s. Stars move uniformly within plus and minus this and were brought to rest: sky lines and response lie at
        other pixels.
    lines : float
        Decades by which sky lines are weaker or stronger, uniform within plus and minus this.
    shape : float
        Standard deviation of the logarithm of a smooth factor on the background: another spectrograph, another night.

    Raises
    ------
    SpecVitError
        For a share outside 0 to 1, or negative sizes.
    """

    share: float = 0.0
    velocity: float = 0.0
    lines: float = 0.0
    shape: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or min(self.velocity, self.lines, self.shape) < 0:
            raise SpecVitError("the share of spectra with other noise lies in 0 to 1, its sizes are not negative")


AS_NOMINAL = NoiseVariety()
SMOOTH_TERMS = 4
"""Cosines of that smooth factor."""


class NumpyDraws:
    """Random numbers from a seed sequence (numpy PCG64)."""

    def __init__(self, seed: int | np.random.SeedSequence) -> None:
        self.generator = np.random.default_rng(seed)

    def normal(self, *shape: int) -> Any:
        """Draw standard normals."""
        return self.generator.standard_normal(shape, dtype=np.float32)

    def uniform(self, *shape: int) -> Any:
        """Draw from [0, 1)."""
        return self.generator.random(shape, dtype=np.float32)


@dataclass(frozen=True)
class Spectra:
    """Simulated spectra; N rows.

    Parameters
    ----------
    labels : (N, 5) array
        Truth, order of `LABELS`.
    mag, seeing, zenith, field : (N,) arrays
        HSC i magnitude, arcsec, degrees, degrees.
    velocity, slope : (N,) arrays
        km/s; tilt over half the arm.
    flux, error : (N, n) arrays
        Noisy flux (median about 0.5, times the amplitude where the scenario frees it) and its estimated 1 sigma.
    bad : (N, n) bool array
        Masked pixels; their flux is wrong on purpose.
    """

    labels: Any
    mag: Any
    seeing: Any
    zenith: Any
    field: Any
    velocity: Any
    slope: Any
    flux: Any
    error: Any
    bad: Any


class Simulator:
    """Draws noisy spectra of one scenario.

    Parameters
    ----------
    scenario : Scenario
        Which nuisances are drawn.
    mag : (float, float)
        Range of the uniform magnitude.
    box : LabelBox
        Range of the uniform labels.
    emulator, noise
        Defaults: those that ship with the package.
    xp : module
        `numpy`, or `torch` together with `convert`.
    convert : callable
        Turns a numpy array into an array of `xp` (float32 on its device).
    variety : NoiseVariety
        How the noise differs from the instrument's at rest; by default it does not.
    """

    def __init__(
        self,
        scenario: Scenario,
        mag: tuple[float, float] = (20.5, 22.5),
        box: LabelBox = LABEL_BOX,
        emulator: Emulator | None = None,
        noise: NoiseModel | None = None,
        xp: Any = np,
        convert: Any = lambda array: np.asarray(array, np.float32),
        variety: NoiseVariety = AS_NOMINAL,
    ) -> None:
        emulator = emulator or default_emulator()
        noise = noise or default_noise_model()
        self.scenario, self.mag, self.xp = scenario, mag, xp
        self.noise = NoiseModel(*(convert(getattr(noise, f.name)) for f in fields(noise)))
        self.low, self.width = convert(np.asarray(box.low)), convert(np.asarray(box.high) - box.low)
        self.tilt = convert(np.linspace(-1.0, 1.0, emulator.grid.n))
        self.variety = variety
        if variety.share:
            x, order = (np.arange(emulator.grid.n) + 0.5) / emulator.grid.n, np.arange(1, SMOOTH_TERMS + 1)
            self.cosines = convert(np.cos(np.pi * order[:, None] * x) * np.sqrt(2.0 / SMOOTH_TERMS))
            self.pixels = convert(np.arange(emulator.grid.n))
            self.pixels_per_km_s = convert(emulator.grid.wave / C_KM_S / emulator.grid.step)
        self.max_velocity = MAX_VELOCITY_SD * scenario.velocity_sd
        self.templates = convert(velocity_templates(emulator, self.max_velocity))
        self.layers = [convert(getattr(emulator, k)) for k in ("w1", "b1", "w2", "b2", "w3", "b3")]
        self.inputs = convert(emulator.x_low), convert(emulator.x_high)

    def draw(self, n: int, draws: Draws, labels: Any = None, velocity: Any = None) -> Spectra:
        """Draw `n` spectra: magnitude uniform, conditions and nuisances scattered, labels (n, 5) uniform or given.

        A given `velocity` (n,) km/s takes the place of the scenario's; every other random number stays the same.

        Raises
        ------
        SpecVitError
            If a given velocity is beyond the templates: `MAX_VELOCITY_SD` standard deviations of the scenario's.
        """
        xp, scenario = self.xp, self.scenario
        uniform = self.low + self.width * draws.uniform(n, 5)
        labels = uniform if labels is None else labels
        mag = self.mag[0] + (self.mag[1] - self.mag[0]) * draws.uniform(n)
        seeing, zenith, field = (low + (high - low) * draws.uniform(n) for low, high in (SEEING, ZENITH, FIELD))
        drawn = (scenario.velocity_sd * draws.normal(n)).clip(-self.max_velocity, self.max_velocity)
        velocity = drawn if velocity is None else velocity
        if velocity is not drawn and abs(velocity).max() > self.max_velocity:
            raise SpecVitError(
                f"velocities of {scenario.name} reach {self.max_velocity:g} km/s; give smaller ones, or a scenario "
                "with a larger velocity_sd"
            )
        slope = scenario.slope_sd * draws.normal(n)
        # star: electrons whose median over the arm follows the magnitude law
        shape = self.clean(labels, velocity)
        noise, factor = self.varied(n, draws) if self.variety.share else (self.noise, 1.0)
        per_flux = noise.response / _row_median(shape * noise.response, xp)[:, None]
        light = (
            SIGNAL_SCALE
            * SIGNAL_ELECTRONS
            * 10 ** (-0.4 * (mag - REFERENCE_MAG))
            * transmission(seeing, zenith, field, xp)
        )
        per_flux = per_flux * light[:, None]
        star = shape * per_flux
        # background: more sky through more air, and its own night-to-night scatter
        airmass = (1.0 / xp.cos(zenith * (np.pi / 180)))[:, None]
        background = factor * noise.background(
            airmass / 1.08 * xp.exp(0.15 * draws.normal(n, 1)),
            airmass / 1.08 * xp.exp(0.25 * draws.normal(n, 1)),
        )
        counts = star + (star + background) ** 0.5 * draws.normal(n, star.shape[1])
        estimated = (counts + background).clip(min=0.01 * background)
        calibration = 1.0 / per_flux
        if scenario.slope_sd > 0:
            calibration = calibration * (1.0 + slope[:, None] * self.tilt)
        if scenario.amplitude_free:
            calibration = calibration * xp.exp(0.3 * draws.normal(n, 1))
        flux, error = counts * calibration, estimated**0.5 * calibration
        bad = self.draw_mask(star, draws)
        if scenario.masked_fraction > 0:
            flux = xp.where(bad, flux + 30.0 * error * draws.uniform(n, 1), flux)
        return Spectra(labels, mag, seeing, zenith, field, velocity, slope, flux, error, bad)

    def clean(self, labels: Any, velocity: Any) -> Any:
        """Noise-free flux (N, n) at `labels` (N, 5) and `velocity` (N,) km/s."""
        xp = self.xp
        low, high = self.inputs
        w1, b1, w2, b2, w3, b3 = self.layers
        ratio = (labels[:, 4] - labels[:, 3] + LOG_C_O_SUN) / C_O_WIDTH
        raw = xp.stack([THETA_K / labels[:, 0], *(labels[:, i] for i in range(1, 5)), xp.tanh(ratio)], 1)
        h = (2.0 * (raw - low) / (high - low) - 1.0) @ w1 + b1
        h = (h / (1.0 + xp.exp(-h))) @ w2 + b2
        c = (h / (1.0 + xp.exp(-h))) @ w3 + b3
        c = xp.concatenate([xp.ones_like(c[:, :1]), c], 1)
        if self.max_velocity == 0:
            return c @ self.templates
        u = velocity[:, None] / self.max_velocity
        terms = [xp.ones_like(u), u]
        while len(terms) < VELOCITY_TERMS:
            terms.append(2.0 * u * terms[-1] - terms[-2])
        return xp.concatenate([term * c for term in terms], 1) @ self.templates

    def varied(self, n: int, draws: Draws) -> tuple[NoiseModel, Any]:
        """Draw a noise model of n rows, arrays (n, pixels), and smooth factors (n, pixels) on its background."""
        xp, variety, nominal = self.xp, self.variety, self.noise
        other = draws.uniform(n, 1) < variety.share
        velocity = variety.velocity * (2.0 * draws.uniform(n, 1) - 1.0) * other
        moved = xp.round(self.pixels + velocity * self.pixels_per_km_s)  # light seen at a pixel fell on this one
        pixel = moved.clip(0, self.pixels.shape[0] - 1)
        pixel = pixel.astype(np.intp) if xp is np else pixel.long()
        strength = 10 ** (variety.lines * (2.0 * draws.uniform(n, 1) - 1.0) * other)
        smooth = xp.exp(variety.shape * (draws.normal(n, SMOOTH_TERMS) * other) @ self.cosines)
        rows = NoiseModel(*(getattr(nominal, f.name)[pixel] for f in fields(nominal)))
        return replace(rows, lines=rows.lines * strength), smooth

    def draw_mask(self, like: Any, draws: Draws) -> Any:
        """Draw masked pixels, the shape of `like`: half of them alone, half in runs of `RUN`."""
        share = self.scenario.masked_fraction
        if share == 0:
            return self.xp.zeros_like(like, dtype=self.xp.bool)
        return singles_and_runs(draws.uniform(*like.shape), share / 2, share / 2 / RUN)


def singles_and_runs(u: Any, alone: Any, starts: Any) -> Any:
    """Masked pixels (N, n), of a numpy or torch array `u` (N, n) uniform in 0 to 1.

    A pixel is masked alone with probability `alone`, and begins a run of `RUN` masked pixels with probability `starts`;
    both are numbers or (N, 1) arrays.
    """
    begun = (u < starts).cumsum(1)
    bad = u > 1.0 - alone
    bad[:, :RUN] |= begun[:, :RUN] > 0
    bad[:, RUN:] |= begun[:, RUN:] > begun[:, :-RUN]
    return bad


def velocity_templates(emulator: Emulator, max_velocity: float) -> Any:
    """Mean and components as a Chebyshev series in velocity, (terms (K + 1), n).

    Row t (K + 1) + k is the coefficient of T_t(v / max_velocity) of template k: Doppler shift becomes one matrix
    product. One term (the templates at rest) when `max_velocity` is zero.
    """
    full = np.vstack([emulator.mean, emulator.basis])
    if max_velocity == 0:
        return full[:, emulator.inner]
    angle = np.pi * (np.arange(VELOCITY_TERMS) + 0.5) / VELOCITY_TERMS
    shifted = np.stack([emulator.doppler(full, np.full(len(full), v)) for v in max_velocity * np.cos(angle)])
    order = np.arange(VELOCITY_TERMS)
    weight = np.cos(order[:, None] * angle) * np.where(order == 0, 1.0, 2.0)[:, None] / VELOCITY_TERMS
    return np.tensordot(weight, shifted, axes=1).reshape(-1, emulator.grid.n)


def _row_median(x: Any, xp: Any) -> Any:
    """Median of every fourth pixel of each row: within 1e-3 of the full median at a fifth of the cost."""
    return np.median(x[:, ::4], axis=1) if xp is np else x[:, ::4].median(1).values

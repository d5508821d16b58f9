"""Scenarios: what is unknown besides the labels.

Simulator, test set, nuisances of the CRLB and their priors, and calibration always share one scenario.
"""

from __future__ import annotations

from dataclasses import dataclass

from specvit_deploy.errors import SpecVitError


@dataclass(frozen=True)
class Scenario:
    """Nuisances of an observation.

    Parameters
    ----------
    name : str
        As every figure and table names it.
    amplitude_free : bool
        Whether the absolute flux scale is unknown (scattered by 0.3 in ln when simulated, without prior
        in the CRLB).
    slope_sd : float
        Standard deviation of the continuum tilt s: flux is multiplied by 1 + s x, x from -1 to 1 over the arm.
    velocity_sd : float
        Standard deviation of the radial velocity left in the spectrum, km/s.
    masked_fraction : float
        Expected share of masked pixels.
    """

    name: str
    amplitude_free: bool
    slope_sd: float
    velocity_sd: float
    masked_fraction: float


STUDY = Scenario("study", amplitude_free=False, slope_sd=0.0, velocity_sd=0.0, masked_fraction=0.0)
"""The published protocol: amplitude known from the normalisation, at rest, no tilt, no masks."""
SURVEY = Scenario("survey", amplitude_free=True, slope_sd=0.03, velocity_sd=10.0, masked_fraction=0.02)
"""What a survey really has."""
SCENARIOS = {scenario.name: scenario for scenario in (STUDY, SURVEY)}


def get_scenario(name: str) -> Scenario:
    """Look a scenario up.

    Raises
    ------
    SpecVitError
        If there is none of that name.
    """
    if name not in SCENARIOS:
        raise SpecVitError(f"no scenario '{name}'; choose one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name]

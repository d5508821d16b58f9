"""Write the spectra that `npm run check` gives to the page, and what the package says of them.

    python export/browser/make_examples.py [BUNDLE]

Ten spectra drawn from the survey scenario, four odd ones, and the page's own example (which is rewritten).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import specvit_deploy as sv
from specvit_deploy.grid import PFS_MR
from specvit_deploy.recipe import Recipe

HERE = Path(__file__).parent
RECIPE = Recipe("survey", (18.0, 22.5), 19, 19_990_717)
DRAWN = 10
EXAMPLE = 18
"""Row of the recipe that the page shows as its example."""


def main(bundle: str) -> None:
    """Write check/*.csv, check/answers.json and page/example.csv."""
    labels, flux, error = next(RECIPE.blocks())
    example = rounded(flux[EXAMPLE]), rounded(error[EXAMPLE])
    spectra = {
        **{f"drawn-{i}": (flux[i], error[i]) for i in range(DRAWN)},
        "another-unit": (flux[3] * np.float32(1e-19), error[3] * np.float32(1e-19)),
        "half-missing": (np.where(np.arange(PFS_MR.n) < 2400, np.float32(np.nan), flux[2]), error[2]),
        "negative": (-flux[0], error[0]),
        "no-data": (np.full_like(flux[0], np.nan), error[0]),
        "no-error": (flux[0], np.zeros_like(error[0])),
        "example": example,
    }
    folder = HERE / "check"
    folder.mkdir(exist_ok=True)
    estimator = sv.Estimator.load(bundle)
    all_flux, all_error = (np.stack(arrays) for arrays in zip(*spectra.values(), strict=True))
    table = estimator(all_flux, all_error)
    for name, (f, e) in spectra.items():
        write(folder / f"{name}.csv", f"# {name}", f, e)
    write(HERE / "page" / "example.csv", describe(labels[EXAMPLE]), *example)
    rows = {name: plain(row) for name, row in zip(spectra, table, strict=True)}
    answers = {"bundle_sha256": estimator.bundle.sha256, "spectra": rows}
    (folder / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")
    print(f"{len(spectra)} spectra and their answers in {folder}")


def describe(labels: NDArray[Any]) -> str:
    """First line of the example."""
    t_eff, log_g, m_h, a_m, c_m = labels
    return (
        f"# A simulated star: T_eff {t_eff:.0f} K, log g {log_g:.2f}, [M/H] {m_h:.2f}, [α/M] {a_m:.2f}, [C/M] {c_m:.2f}"
    )


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Four digits are enough for an example."""
    return np.array([f"{value:.4g}" for value in values], dtype=np.float64).astype(np.float32)


def write(path: Path, comment: str, flux: NDArray[np.float32], error: NDArray[np.float32]) -> None:
    """One spectrum as CSV; the shortest digits that give the same float32 back."""
    lines = [comment, "wavelength,flux,error"]
    lines += [f"{wave:.3f},{f!s},{e!s}" for wave, f, e in zip(PFS_MR.wave, flux, error, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def plain(row: Any) -> dict[str, float | str]:
    """A row of the table without its name; what JSON cannot hold as text."""
    values = {name: float(row[name]) for name in row.dtype.names if name != "id"}
    return {name: value if np.isfinite(value) else str(value) for name, value in values.items()}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "pfs-mr")

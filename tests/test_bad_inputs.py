"""What a user sees who runs `specvit-deploy predict` on a bad input: an exit code, one clear line, bits by name.

Files of foreign layouts, units of wavelength and shapes that do not fit are tested beside their readers.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from test_outliers import KINDS, observe, sky_only, stars

from specvit_deploy.cli import main
from specvit_deploy.estimator import Estimator
from specvit_deploy.grid import PFS_MR
from specvit_deploy.labels import LABEL_BOX
from specvit_deploy.quality import Quality
from specvit_deploy.result_formats import Result
from specvit_deploy.slope_mistake import LARGEST, excess_slope

N, SNR = 24, 15
WAVE = PFS_MR.wave
pytestmark = pytest.mark.filterwarnings("always::UserWarning")  # as users see them
EXACT = ("--engine", "onnxruntime", "--precision", "fp32")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Seen:
    """What came of one command: exit code, warnings, error line, rows with log g, rows per bit, the results."""

    code: int
    warnings: list[str]
    error: str
    summary: str
    rows: tuple[int, int]
    bits: dict[str, int]
    results: dict[str, Array]


def predict(path: Path, *options: str) -> Seen:
    """Run the command; whatever happens there is no traceback, and never more than one line of error."""
    result = CliRunner().invoke(main, ["predict", str(path), *EXACT, *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    said = result.stderr.splitlines()
    warned = [line.removeprefix("Warning: ") for line in said if line.startswith("Warning: ")]
    errors = [line.removeprefix("Error: ") for line in said if line.startswith("Error: ")]
    assert len(warned) + len(errors) == len(said) and len(errors) == (result.exit_code != 0), result.stderr
    output, results = path.with_suffix(".logg.h5"), {}
    assert output.exists() == (result.exit_code == 0) and not list(path.parent.glob("*.parts"))
    if output.exists():
        with Result(output) as file:
            results = next(file.blocks(file.names))
    found = re.search(r": (\d+) rows, (\d+) with log_g", result.stdout)
    bits = {name: int(count) for name, count in re.findall(r"^  ([A-Z_]+): (\d+)$", result.stdout, re.MULTILINE)}
    for name, count in bits.items():
        assert ((results["quality"] & Quality[name]) != 0).sum() == count  # it says what the file holds
    rows = (int(found[1]), int(found[2])) if found else (0, 0)
    return Seen(result.exit_code, warned, "".join(errors), result.stdout, rows, bits, results)


def write(path: Path, flux: Array, error: Array | None = None, wave: Array = WAVE, unit: str = "", **more: Any) -> Path:
    with h5py.File(path, "w") as file:
        file["wave"], file["flux"] = wave, flux
        if unit:
            file["flux"].attrs["unit"] = unit
        if error is not None:
            file["error"] = error
        for name, values in more.items():
            file[name] = values
    return path


@pytest.fixture(scope="module", autouse=True)
def one_engine() -> Iterator[None]:
    """Load the model once for all commands of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Estimator, "load", functools.cache(Estimator.load))
        yield


@pytest.fixture(scope="module")
def spectra() -> tuple[Array, Array]:
    rng = np.random.default_rng(8)
    return observe(stars(rng, N), SNR, rng)


@pytest.fixture(scope="module")
def good(spectra: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return predict(write(tmp_path_factory.mktemp("good") / "good.h5", *spectra))


def test_a_good_catalogue_makes_no_fuss(good: Seen) -> None:
    assert (good.code, good.warnings, good.error, good.rows) == (0, [], "", (N, N))
    assert set(good.bits) <= {"LABEL_EDGE"} and "no row" not in good.summary


# ---- rows without a result


def some(x: Array, rows: slice, value: float, step: int = 1) -> Array:
    x = x.copy()
    x[rows, ::step] = value
    return x


LOST: dict[str, tuple[Callable[[Array, Array], dict[str, Any]], dict[str, int], int]] = {
    "all flux NaN": (lambda f, e: {"flux": f * np.nan, "error": e}, {"NO_DATA": N}, 0),
    "ivar zero, mask zero": (
        lambda f, e: {"flux": f, "ivar": 0 * e, "mask": np.zeros(f.shape, int)}, {"BAD_ERROR": N}, 0,
    ),
    "negative ivar": (lambda f, e: {"flux": f, "ivar": -(e**-2.0)}, {"BAD_ERROR": N}, 0),
    "negative errors": (lambda f, e: {"flux": f, "error": -e}, {"BAD_ERROR": N}, 0),
    "everything masked": (lambda f, e: {"flux": f, "error": e, "mask": 0 * f + 1}, {"NO_DATA": N}, 0),
    "infinite flux in five rows": (lambda f, e: {"flux": some(f, slice(5), np.inf), "error": e}, {"NO_DATA": 5}, N - 5),
    "infinite errors in five rows": (
        lambda f, e: {"flux": f, "error": some(e, slice(5), np.inf)}, {"BAD_ERROR": 5}, N - 5,
    ),
    "three rows whose wavelengths fall": (
        lambda f, e: {
            "flux": f, "error": e, "wave": np.where(np.arange(N)[:, None] < 3, WAVE[::-1], WAVE),
        }, {"NO_DATA": 3}, N - 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_rows_without_a_result_are_counted_by_name_and_the_others_go_on(
    case: str, spectra: tuple[Array, Array], good: Seen, tmp_path: Path
) -> None:
    make, bits, left = LOST[case]
    seen = predict(write(tmp_path / "c.h5", **make(*spectra)))
    assert (seen.code, seen.warnings, seen.rows) == (0, [], (N, left))
    assert {name: seen.bits.get(name, 0) for name in ("NO_DATA", "BAD_ERROR")} == {"NO_DATA": 0, "BAD_ERROR": 0} | bits
    assert ("no row has a result: look at masks, errors" in seen.summary) == (left == 0)
    lost = np.isnan(seen.results["log_g"])
    assert lost.sum() == N - left and not lost[N - left :].any()
    np.testing.assert_allclose(seen.results["log_g"][~lost], good.results["log_g"][~lost], atol=2e-4)


def test_infinite_pixels_cost_no_more_than_themselves(spectra: tuple[Array, Array], tmp_path: Path) -> None:
    flux, error = spectra
    one = predict(write(tmp_path / "one.h5", some(some(flux, slice(None), np.inf, 7), slice(3), -np.inf, 5), error))
    two = predict(write(tmp_path / "two.h5", some(some(flux, slice(None), np.nan, 7), slice(3), np.nan, 5), error))
    assert one.rows == (N, N) and one.bits == two.bits
    for name, values in two.results.items():
        np.testing.assert_array_equal(one.results[name], values, name)


# ---- numbers that mean something else


@pytest.mark.parametrize("scale", [1e-17, 1e3])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_any_scale_of_flux_gives_the_same(
    scale: float, kind: Any, spectra: tuple[Array, Array], good: Seen, tmp_path: Path
) -> None:
    seen = predict(write(tmp_path / "c.h5", *((scale * x).astype(kind) for x in spectra)))
    assert (seen.warnings, seen.bits, seen.rows) == (good.warnings, good.bits, good.rows)
    np.testing.assert_allclose(seen.results["log_g"], good.results["log_g"], atol=2e-4)


def test_flux_per_frequency_is_right_if_it_is_said(spectra: tuple[Array, Array], good: Seen, tmp_path: Path) -> None:
    flux, error = (x * (WAVE / 8000.0) ** 2 for x in spectra)
    seen = predict(write(tmp_path / "said.h5", flux, error, unit="nJy"))
    assert (seen.warnings, seen.bits) == ([], good.bits)
    np.testing.assert_allclose(seen.results["log_g"], good.results["log_g"], atol=2e-4)


def without_continuum(flux: Array, error: Array) -> tuple[Array, Array]:
    x = np.linspace(-1, 1, PFS_MR.n)
    weights = zip(flux, error, strict=True)
    continuum = np.stack([np.polyval(np.polyfit(x, row, 3, w=1 / sigma), x) for row, sigma in weights])
    return flux / continuum, error / continuum


SLOPES: dict[str, tuple[Callable[[Array, Array], tuple[Array, Array]], str]] = {
    "per frequency, not said": (lambda f, e: (f * (WAVE / 8000) ** 2, e * (WAVE / 8000) ** 2), r"rises 1\.[456]"),
    "converted twice": (lambda f, e: (f / (WAVE / 8000) ** 2, e / (WAVE / 8000) ** 2), r"falls 1\.[456]"),
    "continuum divided out": (without_continuum, r"rises 1\.[345]"),
}


@pytest.mark.parametrize("case", SLOPES)
def test_slopes_that_are_not_those_of_stars_are_told_in_one_line(
    case: str, spectra: tuple[Array, Array], tmp_path: Path
) -> None:
    make, message = SLOPES[case]
    (line,) = predict(write(tmp_path / "c.h5", *make(*spectra))).warnings
    assert re.search(rf"c\.h5 {message} times more than that of stars, .*write its unit into the file$", line)


@pytest.mark.parametrize("snr", [4, 60])
def test_no_sort_of_star_has_a_slope_that_is_warned_of(snr: int) -> None:
    rng = np.random.default_rng(snr)
    for low, high in ((3750, 4100), (3750, 6000), (5500, 6000)):
        labels = rng.uniform(LABEL_BOX.low, LABEL_BOX.high, (60, 5))
        labels[:, 0] = rng.uniform(low, high, 60)
        flux, error = observe(stars(rng, 60, labels), snr, rng)
        assert abs(excess_slope(flux, error)) < LARGEST / 2
        bad = rng.random(flux.shape) < 0.3
        assert abs(excess_slope(np.where(bad, np.nan, flux), error)) < LARGEST / 2
    for rate in (0.8, 1.3):
        tilt = 1 + (rate - 1) / (rate + 1) * np.linspace(-1, 1, PFS_MR.n)
        moved = excess_slope(flux * tilt, error * tilt) - excess_slope(flux, error)
        assert moved == pytest.approx((rate - 1) / (rate + 1), abs=0.04)
    assert np.isnan(excess_slope(flux[:7], error[:7])) and np.isnan(excess_slope(-flux, error))
    assert np.isnan(excess_slope(flux, np.inf * error))


MEANT: dict[str, tuple[Callable[[Array, Array], dict[str, Any]], tuple[str, ...], str]] = {
    "variance for error": (lambda f, e: {"flux": f, "error": e**2}, ("HIGH_SNR", "POOR_FIT"), ""),
    "ivar for error": (lambda f, e: {"flux": f, "error": e**-2.0}, ("LOW_SNR",), "noise-free"),
    "error for ivar": (lambda f, e: {"flux": f, "ivar": e}, ("LOW_SNR",), "noise-free"),
    "flux for error": (lambda f, e: {"flux": e, "error": f}, ("LOW_SNR",), "noise-free"),
    "one error for all pixels": (lambda f, e: {"flux": f, "error": 0 * e + np.median(e)}, ("POOR_FIT",), ""),
    "magnitudes for flux": (lambda f, e: {"flux": -2.5 * np.log10(np.abs(f)), "error": e}, ("POOR_FIT",), "nJy"),
    "flux zero": (lambda f, e: {"flux": 0 * f, "error": e}, ("LOW_SNR", "NEGATIVE_FLUX"), "noise-free"),
}  # fmt: skip


@pytest.mark.parametrize("case", MEANT)
def test_numbers_taken_for_others_are_flagged(case: str, spectra: tuple[Array, Array], tmp_path: Path) -> None:
    make, bits, warning = MEANT[case]
    seen = predict(write(tmp_path / "c.h5", **make(*spectra)))
    assert (seen.code, seen.rows) == (0, (N, N))
    assert all(seen.bits.get(bit, 0) >= N - 1 for bit in bits), seen.bits
    assert [warning in line for line in seen.warnings] == [True] * bool(warning)


OTHERS: dict[str, tuple[str, ...]] = {  # what most rows of them are
    "galaxy, absorption": ("POOR_FIT", "OUT_OF_DISTRIBUTION"),
    "galaxy, emission": ("POOR_FIT",),
    "white dwarf": ("POOR_FIT",),
    "sky": ("LOW_SNR", "OUT_OF_DISTRIBUTION"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_star_is_named_in_the_summary(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    flux, error = sky_only(rng, N) if kind == "sky" else observe(KINDS[kind](rng, N), SNR, rng)
    seen = predict(write(tmp_path / "c.h5", flux, error))
    assert (seen.code, seen.error) == (0, "")
    assert [line.count("of no stars?") for line in seen.warnings] == [1] * (kind != "sky")  # their slope is another
    assert all(seen.bits.get(bit, 0) >= 0.75 * N for bit in OTHERS[kind]), seen.bits
    outlier = Quality.POOR_FIT | Quality.OUT_OF_DISTRIBUTION
    assert ((seen.results["quality"] & outlier) != 0).mean() > 0.9


def test_wavelengths_in_air_are_suspected_once_and_put_right_by_the_option(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    path = write(tmp_path / "air.h5", *observe(stars(rng, 60), 30, rng), wave=WAVE - 2.33)
    seen = predict(path, "--velocity", "0")
    (line,) = seen.warnings
    assert re.search(r"air\.h5 stand -8\d \+- \d+ km/s from rest, .*run again with --medium air$", line)
    path.with_suffix(".logg.h5").unlink()
    assert predict(path, "--velocity", "0", "--medium", "air").warnings == []


# ---- identifiers


@pytest.mark.parametrize("kind", ["number", "text"])
def test_identifiers_that_repeat_are_told_in_one_line_and_every_row_is_kept(
    kind: str, spectra: tuple[Array, Array], good: Seen, tmp_path: Path
) -> None:
    ids: Any = np.arange(N)
    ids[[7, 9, 23]] = 3
    ids = [f"star {i}" for i in ids] if kind == "text" else ids
    seen = predict(write(tmp_path / "twice.h5", *spectra, id=ids))
    (line,) = seen.warnings
    name = "star 3" if kind == "text" else "3"
    assert line.startswith(f"3 rows of twice.h5 have the id of an earlier row ('{name}' for one); all rows are kept")
    assert seen.results["id"].tolist() == list(ids)
    np.testing.assert_array_equal(seen.results["log_g"], good.results["log_g"])
    assert seen.bits == good.bits


# ---- files


def no_permission(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the system says to others than root, who may read everything and may run this test."""
    path.write_bytes(b"x")
    was = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return was(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    return path


def given(name: str, data: Callable[[bytes], bytes]) -> Callable[[Path, bytes, pytest.MonkeyPatch], Path]:
    def make(folder: Path, whole: bytes, _: pytest.MonkeyPatch) -> Path:
        (folder / name).write_bytes(data(whole))
        return folder / name

    return make


REFUSED: dict[str, tuple[Callable[[Path, bytes, pytest.MonkeyPatch], Path], str]] = {
    "no bytes": (given("c.h5", lambda whole: b""), r"is empty; copy or write it again"),
    "first half": (given("c.h5", lambda whole: whole[: len(whole) // 2]), r"it is truncated: copy it again"),
    "last byte missing": (given("c.h5", lambda whole: whole[:-1]), r"it is truncated: copy it again"),
    "text": (given("c.h5", lambda _: b"wave flux\n7100 1\n"), r"is not an HDF5, FITS or Parquet file; write one"),
    "archive": (given("c.h5", lambda _: b"PK\x03\x04 zipped"), r"is compressed, .*; unpack it first, or copy it again"),
    "a strange name": (given("étoiles (copie) 星.h5", lambda _: b""), r"/étoiles \(copie\) 星\.h5 is empty; copy or"),
    "no permission": (
        lambda folder, _, patch: no_permission(folder / "c.h5", patch),
        r"cannot be read \(Permission denied\); see who owns it and its permissions",
    ),
    "nothing": (lambda folder, *_: folder / "c.h5", r"does not exist; give the path of a catalogue, or try"),
    "no rows": (
        lambda folder, *_: write(folder / "c.h5", np.ones((0, PFS_MR.n)), np.ones((0, PFS_MR.n))),
        r"flux has shape \(0, 4096\); it must be \(N, n\), a spectrum a row, with N > 0",
    ),
    "shuffled wavelengths": (
        lambda folder, *_: write(
            folder / "c.h5", np.ones((2, PFS_MR.n)), np.ones((2, PFS_MR.n)), np.random.default_rng(0).permutation(WAVE)
        ),
        r"must be finite and rise; sort each spectrum by them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_unusable_file_is_one_line_with_its_name_and_the_next_thing_to_try(
    case: str, catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = REFUSED[case]
    path = make(tmp_path, catalog.read_bytes(), monkeypatch)
    seen = predict(path)
    assert (seen.code, seen.warnings, seen.summary.count("\n")) == (2, [], 1)  # no more than which engine runs
    assert str(path) in seen.error and re.search(message, seen.error)
    assert {p.name for p in tmp_path.iterdir()} <= {path.name}


def test_a_name_of_blanks_and_letters_of_any_script_is_a_name(
    spectra: tuple[Array, Array], good: Seen, tmp_path: Path
) -> None:
    path = write(tmp_path / "mes étoiles (copie) 星 100%.h5", *spectra)
    seen = predict(path)
    assert seen.rows == (N, N) and f"wrote {tmp_path}/mes étoiles (copie) 星 100%.logg.h5: " in seen.summary
    np.testing.assert_array_equal(seen.results["log_g"], good.results["log_g"])


def test_a_catalogue_that_changes_during_the_run_stops_it_and_leaves_nothing(
    spectra: tuple[Array, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "c.h5", *spectra)
    table = Estimator.table

    def meanwhile(self: Estimator, *rows: Any) -> Any:
        os.utime(path, (1, 1))
        return table(self, *rows)

    with monkeypatch.context() as patch:
        patch.setattr(Estimator, "table", meanwhile)
        seen = predict(path)
    assert seen.code == 2 and "c.h5 changed since the run began; put it back as it was, or remove" in seen.error
    assert list(tmp_path.iterdir()) == [path]
    assert predict(path).rows == (N, N)  # as it is now

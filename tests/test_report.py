"""The report page: what it counts is true, what it shows is there, and it needs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from test_results import FACTS, FORMATS, made, write

import specvit_deploy as sv
from specvit_deploy.cli import main
from specvit_deploy.emulator import default_emulator
from specvit_deploy.formats import Catalog
from specvit_deploy.grid import PFS_MR
from specvit_deploy.quality import FATAL, Quality
from specvit_deploy.report import write_report
from specvit_deploy.report_drawing import Scale, plot
from specvit_deploy.report_sky import SkyMap, map_sky
from specvit_deploy.report_spectra import best_fit
from specvit_deploy.report_statistics import LEAST_ROWS, SNR_EDGES, QuantilesBySnr, count, sky_columns
from specvit_deploy.report_words import MEANINGS
from specvit_deploy.result_formats import Result

VOID = {"meta", "link", "br", "path", "rect", "circle", "img"}
STAR = "<b>&\"star\" '1'"


class Page(HTMLParser):
    """Well-formed HTML: every element is closed in order; collects texts, tags and attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert not self.open, self.open
        self.text = " ".join(self.words)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data.strip())


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A catalogue with positions and some bad spectra, and its results in FITS."""
    folder = tmp_path_factory.mktemp("field")
    simulated = sv.simulate(folder / "simulated.h5", n=120, seed=8, scenario="survey", mag=(18.5, 22.0))
    with Catalog(simulated, PFS_MR) as source:
        block = source.read(0, 120)
    flux, error = block.flux * np.float32(1e-17), block.error * np.float32(1e-17)
    flux[3], error[5] = np.nan, 0.0
    flux[7] *= 1 + 0.5 * np.exp(-(((PFS_MR.wave - 8000) / 40) ** 2)).astype(np.float32)
    rng = np.random.default_rng(4)
    with h5py.File(folder / "the <field> & more.h5", "w") as file:
        file["wave"], file["flux"], file["error"] = PFS_MR.wave, flux, error
        file["id"] = [STAR if i == 7 else f"star {i}" for i in range(120)]
        file["ra"], file["dec"] = (359.6 + rng.random(120)) % 360, rng.random(120) - 30
    catalog = folder / "the <field> & more.h5"
    return catalog, Path(str(sv.predict(catalog, folder / "r.fits", keep=("ra", "dec"))))


def test_the_page_holds_what_it_must(field: tuple[Path, Path], tmp_path: Path) -> None:
    catalog, results = field
    arguments = ["report", str(results), "-o", str(tmp_path / "page.html"), "--catalog", str(catalog)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    page = Page(tmp_path / "page.html")
    with Result(results) as opened:
        statistics = count(opened, 50)
        about = opened.attributes
    for title in ("Surface gravities", "Errors", "Error against the limit", "Efficiency", "Signal to noise",
                  "Where in the sky", "Worst fits", "Provenance", "Remarks"):  # fmt: skip
        assert title in page.words, title
    for bit in Quality:
        assert str(bit.name) in page.text
        if statistics.bits[bit]:
            assert MEANINGS[str(bit.name)] in page.text
    assert statistics.bits[Quality.NO_DATA] and statistics.bits[Quality.BAD_ERROR]
    for fact in ("bundle_sha256", "command", "engine", "date"):
        assert str(about[fact]) in page.text
    assert page.text.count(STAR) == 2  # in the table, and over its drawing
    assert page.words.count("emulator at the estimate") == 4
    assert "the <field> & more.h5" in page.text
    assert page.tags.count("b") == 1 + sum(count > 0 for count in statistics.bits.values())  # the star is none


def test_the_page_needs_neither_network_nor_script(field: tuple[Path, Path], tmp_path: Path) -> None:
    path = write_report(field[1], tmp_path / "page.html", field[0])
    text, page = path.read_text("utf-8"), Page(path)
    assert not re.search(r"(https?:)?//\w|url\(|@import|@font-face", text)
    assert not {"script", "iframe", "object", "embed", "img", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on") and name != "src"
        assert name != "href" or value == "data:,"
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    assert "NaN" not in text and "nan" not in re.sub(r"\w*nan\w+", "", text.lower())
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("schema", ["own", "pfs"])
def test_every_format_and_schema_gives_the_same_page(format: str, schema: str, tmp_path: Path) -> None:
    pages = []
    for form, view, name in (("hdf5", "own", "a"), (format, schema, "b")):
        tables = [made(60, seed=1), made(60, seed=2, start=60)]
        write_report(write(tmp_path / "r.x", form, tables, view), tmp_path / f"{name}.html")
        text = (tmp_path / f"{name}.html").read_text()
        pages.append(text[: text.index("<h2>Provenance")])
    differing = [(a, b) for a, b in zip(*(page.split(">") for page in pages), strict=True) if a != b]
    assert not differing, differing[:3]


def test_blocks_do_not_matter(tmp_path: Path) -> None:
    sky = {"ra": np.linspace(10, 20, 300), "dec": np.linspace(-5, 5, 300)}
    path = write(tmp_path / "r.h5", "hdf5", [made(300, **sky)])
    pages = [write_report(path, tmp_path / f"{size}.html", size=size).read_text() for size in (7, 300)]
    assert pages[0] == pages[1]


def test_quantiles_are_those_of_the_values() -> None:
    rng = np.random.default_rng(1)
    snr, value = 10 ** rng.uniform(0, 2, 20_000), 10 ** rng.normal(-0.5, 0.4, 20_000)
    quantiles = QuantilesBySnr()
    for part in np.array_split(np.arange(20_000), 7):
        quantiles.add(snr[part], value[part])
    for share in (0.16, 0.5, 0.84):
        assert quantiles.overall(share) == pytest.approx(np.quantile(value, share), rel=0.012)
        found = quantiles.quantile(share)
        for i, (low, high) in enumerate(pairwise(SNR_EDGES)):
            inside = value[(snr >= low) & (snr < high)]
            assert len(inside) < LEAST_ROWS or found[i] == pytest.approx(np.quantile(inside, share), rel=0.03)
            assert len(inside) >= LEAST_ROWS or np.isnan(found[i])


def test_infinite_limits_count_as_larger_than_all_others() -> None:
    quantiles = QuantilesBySnr()
    quantiles.add(np.full(10, 5.0), np.array([1.0] * 4 + [np.inf] * 6))
    assert quantiles.overall(0.3) == pytest.approx(1.0, rel=0.012) and quantiles.overall(0.5) == np.inf
    assert quantiles.beyond == 6 and np.isnan(quantiles.quantile(0.5)).all()
    quantiles.add(np.array([np.nan, 5.0]), np.array([1.0, np.nan]))  # neither counts
    assert quantiles.counts.sum() == 10


def test_counts_are_those_of_the_table(tmp_path: Path) -> None:
    table = made(500, seed=6)
    with Result(write(tmp_path / "r", "parquet", [table])) as result:
        statistics = count(result, 64)
    valid = (table["quality"] & int(FATAL)) == 0
    assert (statistics.rows, statistics.valid) == (500, valid.sum())
    assert statistics.clean == (table["quality"] == 0).sum() and statistics.log_g.sum() == valid.sum()
    for bit in Quality:
        assert statistics.bits[bit] == ((table["quality"] & int(bit)) != 0).sum()
    order = np.argsort(-table["chi2_reduced"] * valid, kind="stable")[:10]
    assert [row["row"] for row in statistics.worst] == order.tolist()
    assert [row["id"] for row in statistics.worst] == table["id"][order].tolist()


def test_every_bit_has_words() -> None:
    assert set(Quality.__members__) <= set(MEANINGS)


@pytest.mark.parametrize("centre", [0.2, 150.0])
def test_the_sky_keeps_every_row_and_its_place(centre: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    ra, dec = (centre + rng.uniform(-1, 1, 400)) % 360, 40 + rng.uniform(-1, 1, 400)
    ra[0] = np.nan
    with Result(write(tmp_path / "r", "hdf5", [made(400, RA=ra, DEC=dec)])) as result:
        assert sky_columns(result.names) == ("RA", "DEC")
        sky = map_sky(result, ("RA", "DEC"), 77)
    assert sky is not None and sky.rows == sky.counts.sum() == 399 and not sky.whole
    assert abs((sky.ra - centre + 180) % 360 - 180) < 0.5 and abs(sky.dec - 40) < 0.1
    x, y = sky.project(ra[1:], dec[1:])
    assert (np.abs(x) <= sky.width / 2).all() and (np.abs(y) <= sky.height / 2).all()
    east = (ra[1:] - centre + 180) % 360 - 180
    assert np.corrcoef(x, -east)[0, 1] > 0.999 and np.corrcoef(y, dec[1:])[0, 1] > 0.999  # east to the left


def test_the_whole_sky_is_drawn_with_equal_areas(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    n = 40_000
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    with Result(write(tmp_path / "r", "hdf5", [made(n, ra=ra, dec=dec)])) as result:
        sky = map_sky(result, ("ra", "dec"), 10_000)
    assert isinstance(sky, SkyMap) and sky.whole and sky.counts.sum() == n
    x = (np.arange(110) + 0.5) / 110 * 2 - 1
    y = (np.arange(55) + 0.5) / 55 * 2 - 1
    inside = x[None, :] ** 2 + y[:, None] ** 2 < 0.94
    outside = x[None, :] ** 2 + y[:, None] ** 2 > 1.06
    assert sky.counts[outside].sum() == 0
    mean = n / (np.pi / 4 * sky.counts.size)
    cells = sky.counts[inside]
    assert cells.mean() == pytest.approx(mean, rel=0.02) and cells.var() == pytest.approx(mean, rel=0.1)  # Poisson


def test_a_catalogue_that_is_another_one_is_refused(field: tuple[Path, Path], catalog: Path, tmp_path: Path) -> None:
    for other in (catalog, sv.simulate(tmp_path / "o.h5", n=120)):
        result = CliRunner().invoke(
            main, ["report", str(field[1]), "-o", str(tmp_path / "p.html"), "--catalog", str(other)]
        )
        assert result.exit_code == 2 and "give the catalogue that they come from" in result.output
    assert not (tmp_path / "p.html").exists()


@pytest.mark.parametrize("target", ["results", "folder", "catalog"])
def test_nothing_is_overwritten(field: tuple[Path, Path], target: str, tmp_path: Path) -> None:
    out = {"results": field[1], "folder": tmp_path, "catalog": field[0]}[target]
    result = CliRunner().invoke(main, ["report", str(field[1]), "-o", str(out), "--catalog", str(field[0])])
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1
    result = CliRunner().invoke(main, ["report", str(field[0])])
    assert result.exit_code == 2 and "not a result file" in result.output


def test_added_noise_is_added_again(tmp_path: Path) -> None:
    emulator = default_emulator()
    flux = emulator.flux([[4800.0, 2.5, -0.5, 0.1, 0.0]] * 30)
    with h5py.File(tmp_path / "clean.h5", "w") as file:
        file["wave"], file["flux"], file["error"] = PFS_MR.wave, flux, flux / 15
    out = sv.predict(tmp_path / "clean.h5", tmp_path / "r.h5", noise_level=1.0, seed=3)
    from specvit_deploy.report_spectra import read_fits

    with Result(Path(str(out))) as result:
        statistics, about = count(result, 100), result.attributes
    worst = statistics.worst[:2]
    for row, fit in zip(worst, read_fits(tmp_path / "clean.h5", worst, about, 30), strict=True):
        chi2 = np.nanmean(((fit.flux - fit.model) / fit.error) ** 2)
        assert chi2 == pytest.approx(row["chi2_reduced"], abs=0.03)


def test_the_fit_is_the_best_one() -> None:
    rng = np.random.default_rng(5)
    terms, error = rng.normal(size=(3, 200)), rng.uniform(0.5, 2, 200)
    truth = np.array([2.0, -0.3, 0.7])
    flux = truth @ terms
    np.testing.assert_allclose(best_fit(flux, error, terms), flux, atol=1e-12)
    noisy = flux + error * rng.normal(size=200)
    noisy[:20] = np.nan
    model = best_fit(noisy, error, terms)
    gradient = ((noisy - model) / error**2)[20:] @ terms[:, 20:].T
    np.testing.assert_allclose(gradient, 0, atol=1e-9)  # of chi2 by the coefficients


@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_round_and_inside(log: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        low = 10 ** rng.uniform(-3, 3)
        high = low * 10 ** rng.uniform(0.3, 3)
        ticks = Scale(low, high, 0, 100, log).ticks(5)
        assert all(low * 0.999999 <= tick <= high * 1.000001 for tick in ticks) and len(ticks) <= 9
        assert log or len(ticks) >= 2
        for tick in ticks:
            assert float(f"{tick:.3g}") == pytest.approx(tick, rel=1e-3)


def test_lines_break_where_nothing_is_known() -> None:
    frame = plot(200, 100, (0, 10), (0, 1))
    assert frame.line([0, 1, 2, 3, 4], [0.1, 0.2, np.nan, 0.3, np.inf], "x").count("<path") == 2
    assert frame.band([0, 1, 2], [0, np.nan, 0], [1, 1, np.nan], "x").count("<path") == 1
    assert "nan" not in frame.line([0, 1], [np.nan, np.nan], "x")


def test_few_rows_and_none_with_a_result_make_a_page(tmp_path: Path) -> None:
    table = made(3)
    table["quality"] = int(Quality.NO_DATA)
    table["log_g"] = table["log_g_err"] = np.nan
    nothing = Page(write_report(write(tmp_path / "n.h5", "hdf5", [table])))
    assert (
        "No spectrum has a result; see the remarks." in nothing.text and "Error against the limit" not in nothing.text
    )
    assert tmp_path / "n.html" in list(tmp_path.iterdir())  # beside the results
    one = made(1, seed=3)
    one["quality"] = 0
    page = Page(write_report(write(tmp_path / "o.h5", "hdf5", [one], **FACTS)))
    assert "1 spectrum, " in page.text

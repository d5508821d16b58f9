"""The page of a benchmark report: what it says is in the report, and it needs nothing but itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from benchmark_report import made_case, made_left_out, made_report
from specvit_benchmarks import tables
from specvit_benchmarks.page import write_page
from specvit_benchmarks.plots import spread_out
from specvit_benchmarks.schema import save
from specvit_benchmarks.selection import best, by_pair, duration, main_case, ran, wall_rate
from test_report import Page

from specvit_deploy.errors import SpecVitError

HEADINGS = ("Engines", "Throughput by batch", "What precision costs", "Accuracy against speed",
            "Against other methods", "Where the time goes", "Against the ceiling of a core", "Peak memory",
            "By size of the catalogue", "By workers", "Planning", "Provenance")  # fmt: skip


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def without(*names: str) -> dict[str, Any]:
    return made_report("quick") | dict.fromkeys(names)


def on_a_card() -> dict[str, Any]:
    """A report whose fastest engine computes on a card."""
    report = made_report()
    fast = made_case("openvino", "bf16", 64) | {
        "engine": "tensorrt", "precision": "fp16", "ceiling_share": None, "spectra_per_second": [9e4, 8.9e4, 9.1e4],
        "gpu": {"device_ms": 0.7, "power_w": 310.0, "memory_mb": 900.0},
    }  # fmt: skip
    report["engines"].append(fast)
    report["machine"]["gpu"] = "NVIDIA H100 80GB HBM3"
    report["stages"] |= {"engine": "tensorrt", "precision": "fp16", "batch": 64}
    return report


def bare() -> dict[str, Any]:
    """The least that a report may hold: one case, nothing beside it."""
    report = without("stages", "scaling", "peers")
    report["engines"] = [made_case("onnxruntime", "fp32", 16)]
    report["bundle"] |= {"gflop": None, "parameters": None}
    report["ceiling_gflops"]["bf16"] = None
    report["machine"] = {"processor": "a processor", "cores": 1, "memory_gb": None, "gpu": None}
    report["notes"] = []
    return report


REPORTS: dict[str, Callable[[], dict[str, Any]]] = {
    "whole": made_report,
    "quick": lambda: without("scaling", "peers"),
    "on a card": on_a_card,
    "bare": bare,
}


@pytest.fixture(params=REPORTS)
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_page(REPORTS[request.param](), tmp_path / "page.html")


def drawings(path: Path) -> list[ElementTree.Element]:
    """Every drawing of a page, bars in tables left out."""
    found = re.findall(r'<svg class="(?:wide|narrow)".*?</svg>', path.read_text("utf-8"), re.DOTALL)
    return [ElementTree.fromstring(text) for text in found]


def test_the_page_needs_neither_network_nor_script(page: Path) -> None:
    text, parsed = page.read_text("utf-8"), Page(page)
    assert not re.search(r"(https?:)?//\w|url\(|@import|@font-face", text)
    assert not {"script", "iframe", "object", "embed", "img", "form"} & set(parsed.tags)
    assert all(not name.startswith("on") and name != "src" for name, _ in parsed.attributes)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in parsed.attributes
    assert not re.search(r"\b(nan|inf|None)\b", parsed.text)
    assert page.stat().st_size < 300_000


def test_every_word_lies_inside_its_drawing(page: Path) -> None:
    assert drawings(page)
    for drawing in drawings(page):
        _, _, width, height = map(float, drawing.attrib["viewBox"].split())

        def check(node: ElementTree.Element, x: float, y: float, width: float = width, height: float = height) -> None:
            if found := re.match(r"translate\(([\d.]+) ([\d.]+)\)", node.attrib.get("transform", "")):
                x, y = x + float(found[1]), y + float(found[2])
            if node.tag == "text":
                length = 6.5 * len(node.text or "")  # about, at 12.5 pixels
                left = (
                    x
                    + float(node.attrib["x"])
                    - {"start": 0, "middle": 0.5, "end": 1}[node.attrib["text-anchor"]] * length
                )
                assert left > -8 and left + length < width + 8, (node.text, left, width)
                assert 0 < y + float(node.attrib["y"]) <= height, (node.text, height)
            for child in node:
                check(child, x, y)

        check(drawing, 0.0, 0.0)


def test_the_whole_report_is_there(tmp_path: Path) -> None:
    report = made_report()
    page = Page(write_page(report, tmp_path / "page.html"))
    for heading in HEADINGS:
        assert heading in page.words, heading
    for case in report["engines"]:
        assert f"{case['engine']}/{case['precision']}" in page.text
    for peer in report["peers"]:
        assert peer["name"] in page.words and peer["what"] in page.words
    for note in (*report["notes"], "no NVIDIA card in this machine", report["bundle"]["sha256"], report["date"]):
        assert note in page.text
    for name, found in report["machine"]["versions"].items():
        assert name in page.words and found in page.words


def test_what_was_left_out_stands_behind_one_fold_by_reason(tmp_path: Path) -> None:
    report = made_report()
    report["engines"] += [made_left_out("cuda", precision, "no CUDA device") for precision in ("fp32", "fp16")]
    text = write_page(report, tmp_path / "page.html").read_text("utf-8")
    (fold,) = re.findall(r"<details><summary>3 left out</summary>(.*?)</details>", text)
    assert re.findall(r"<b>(.*?)</b>: (.*?)</p>", fold) == [
        ("no NVIDIA card in this machine", "tensorrt/fp16"),
        ("no CUDA device", "cuda/fp32, cuda/fp16"),
    ]
    assert "left out" not in write_page(bare(), tmp_path / "page.html").read_text("utf-8")


WIDTHS = (390, 620, 621, 900, 1099, 1100, 1280)
MEASURE = """<pre></pre><script>
onload = () => document.querySelectorAll("iframe").forEach(({ contentDocument: page, width }) => {
  for (const box of [page.documentElement, ...page.querySelectorAll(".scroll")])
    document.querySelector("pre").append(`${width} ${box.scrollWidth - box.clientWidth} `);
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_nothing_is_cut_off_at_any_width(tmp_path: Path) -> None:
    report = on_a_card()
    report["engines"][-1] |= {"engine": "tensorrt-rtx", "threads": 16}  # about the longest name
    page = write_page(report, tmp_path / "page.html").read_text("utf-8").replace("<details>", "<details open>")
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{escape(page)}"></iframe>' for width in WIDTHS)
    (tmp_path / "frames.html").write_text(frames + MEASURE, "utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path}/frames.html"]
    seen = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.search(r"<pre>([-\d ]+)</pre>", seen)
    assert found is not None, seen[-500:]
    numbers = list(map(int, found[1].split()))
    beyond = list(zip(numbers[::2], numbers[1::2], strict=True))
    assert {width for width, _ in beyond} == set(WIDTHS) and len(beyond) > len(WIDTHS)
    assert all(pixels <= 0 for _, pixels in beyond), beyond


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    page = Page(write_page(bare(), tmp_path / "page.html"))
    assert [heading for heading in HEADINGS if heading in page.words] == [
        "Engines", "Throughput by batch", "Peak memory", "Provenance",
    ]  # fmt: skip
    assert "through the engine alone" in page.text


def test_the_headline_is_the_measured_rate_carried_on(tmp_path: Path) -> None:
    report = made_report()
    report["stages"] |= {
        "end_to_end_spectra_per_second": [1000.0, 990.0, 1010.0],
        "end_to_end_spectra_per_wall_second": [500.0, 490.0, 510.0],
    }
    page = Page(write_page(report, tmp_path / "page.html"))
    assert page.words.count("A million spectra in 16.7 min of one AMD EPYC core") == 2  # title and heading
    assert "0.28 CPU h for a million spectra, 278 CPU h for a billion; by the clock" in page.text
    assert "with other work on the machine, 33 min and 23 days" in page.text
    assert "1,000" in page.words and "quartiles over rounds: 990 to 1,010" in page.words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.50 s"), (42, "42 s"), (100, "100 s"), (600, "10.0 min"), (7200, "2.0 h"), (864_000, "10.0 days"),
     (3.2e7, "370 days"), (1e9, "32 years")],
)  # fmt: skip
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_unstable_cases_are_marked_and_never_the_best(tmp_path: Path) -> None:
    report = made_report()
    text = write_page(report, tmp_path / "page.html").read_text("utf-8")
    assert text.count('class="point unstable') == 2  # on wide and narrow screens
    assert text.count('<em class="mark">unstable') == 1  # among all cases; the best of its engine is another
    fast, steady = made_case("openvino", "bf16", 32, width=0.2), made_case("openvino", "fp32", 1)
    assert best([fast, steady]) is steady and best([fast]) is fast
    report["engines"] = [case for case in report["engines"] if case["reason"] is not None or case["stable"]]
    assert 'class="point unstable' not in write_page(report, tmp_path / "page.html").read_text("utf-8")


def test_the_headline_is_of_the_engine_that_went_from_file_to_file() -> None:
    report = made_report()
    report["stages"] |= {"engine": "onnxruntime", "precision": "fp32", "batch": 8}
    case = main_case(report)
    assert (case["engine"], case["precision"], case["batch"]) == ("onnxruntime", "fp32", 8)
    assert wall_rate(report) == report["stages"]["end_to_end_spectra_per_wall_second"]
    report["stages"] = None
    assert main_case(report)["precision"] == "bf16"


def test_a_card_is_judged_by_wall_time(tmp_path: Path) -> None:
    page = Page(write_page(on_a_card(), tmp_path / "page.html"))
    assert "A million spectra in 15.3 min on one NVIDIA H100 80GB HBM3" in page.words
    assert f"{wall_rate(on_a_card())[0]:,.0f}" in page.words and "other work" not in page.text
    slow = on_a_card()
    slow["stages"] = None
    words = Page(write_page(slow, tmp_path / "page.html")).text
    assert "A million spectra in 11.1 s on one NVIDIA H100 80GB HBM3" in words and "0.21 CPU h" in words
    assert "90,000" in page.words and "of wall time on a card" in page.text
    assert "285 MB, card 900 MB" not in page.text and "MB, card 900 MB" in page.text
    assert page.words.count("spectra per second") >= 2 and page.words.count("spectra per CPU second") >= 4


def test_bars_are_as_long_as_what_they_stand_for(tmp_path: Path) -> None:
    report = made_report()
    path = write_page(report, tmp_path / "page.html")
    wide = [drawing for drawing in drawings(path) if drawing.attrib["class"] == "wide"]
    (drawing,) = [drawing for drawing in wide if drawing.attrib["aria-label"].startswith("Peak memory")]
    lengths = [float(bar.attrib["width"]) for bar in drawing if bar.tag == "rect"]
    shown = [best(group) for group in by_pair(ran(report)).values()]
    memory = [case["peak_rss_mb"] for case in shown] + [report["stages"]["peak_rss_mb"]]
    np.testing.assert_allclose(np.array(lengths) / lengths[0], np.array(memory) / memory[0], rtol=2e-3)


def test_names_are_words_and_not_markup(tmp_path: Path) -> None:
    report = made_report()
    report["bundle"]["name"] = "<b>&amp;"
    report["engines"].append(made_left_out("x<y", "fp32", "<script>alert(1)</script>"))
    report["notes"].append("<img>")
    page = Page(write_page(report, tmp_path / "page.html"))
    assert not {"script", "img"} & set(page.tags)
    assert "<b>&amp;" in page.text and "<script>alert(1)</script>" in page.text and "<img>" in page.text


def test_without_other_work_the_clock_needs_no_excuse(tmp_path: Path) -> None:
    assert "other work" not in Page(write_page(made_report(), tmp_path / "page.html")).text


def test_no_report_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(SpecVitError, match="engines"):
        write_page(made_report() | {"engines": None}, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("places", [[10.0], [10, 11, 12, 40], [5, 5, 5], [0, 14, 28.5, 100], [50, 10, 30, 10.5]])
def test_labels_are_spread_as_little_as_needed(places: list[float]) -> None:
    spread = spread_out(places, 15)
    assert all(b - a > 15 - 1e-9 for a, b in pairwise(sorted(spread)))
    assert np.argsort(spread, kind="stable").tolist() == np.argsort(places, kind="stable").tolist()
    assert sum(spread) == pytest.approx(sum(places))
    alone = [k for k, a in enumerate(places) if all(abs(a - b) > 45 for j, b in enumerate(places) if j != k)]
    assert all(spread[k] == places[k] for k in alone)


def test_the_table_of_the_readme_is_made_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = made_report()
    save(report, tmp_path / "benchmark.json")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.fill("before\n<!-- performance -->\nwhat stood there\n<!-- end -->\nafter")
    assert text.startswith("before\n") and text.endswith("\nafter") and "what stood there" not in text
    assert tables.fill(text) == text
    lines = text.splitlines()
    for words in ("- AMD EPYC, 2 cores", "- 2026-11-28, length standard", "openvino 2026.4.1", "- not MLPerf length",
                  "0.87 (0.84-0.89) of the engine alone", "A million spectra: 0.25 CPU h"):  # fmt: skip
        assert words in text, words
    (row,) = [line for line in lines if line.startswith("| openvino/bf16 |")]
    assert row.split(" | ")[1:3] == ["32", "1327 (1300-1354)"]
    (row,) = [line for line in lines if line.startswith("| rvspecfit")]
    assert "| 0.90 (0.87-0.93) | 1,244 (1,222-1,267) |" in row
    for names in (("stages", "scaling", "peers"), ("peers",)):
        save(without(*names), tmp_path / "benchmark.json")
        assert "rvspecfit" not in tables.fill(text)

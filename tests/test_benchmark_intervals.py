"""A value with its interval as a reader meets it: no minus zero, no dash beside a minus, no zero that is none."""

from __future__ import annotations

import pytest
from benchmark_report import made_report
from specvit_benchmarks.command import cells
from specvit_benchmarks.intervals import interval
from specvit_benchmarks.page_words import interval as on_the_page
from specvit_benchmarks.performance import performance

NOTHING = [-0.00207, -0.00795, -0.00025]
"""R2 of a network that learned nothing: value, low, high."""


@pytest.mark.parametrize(
    ("values", "form", "text"),
    [
        ([0.719, 0.7131, 0.7249], ".3f", "0.719 (0.713-0.725)"),
        ([1504, 1480.2, 1528.7], ",.0f", "1,504 (1,480-1,529)"),
        ([-0.0101, -0.0116, -0.0086], "+.4f", "-0.0101 (-0.0116 to -0.0086)"),
        ([0.0003, 0.0001, 0.0005], "+.4f", "+0.0003 (+0.0001 to +0.0005)"),
        ([0.25, -0.033, 0.44], ".2f", "0.25 (-0.03 to 0.44)"),
        ([-0.012, -0.02, -0.0004], ".2f", "-0.01 (-0.02 to 0.00)"),
        (NOTHING, ".2f", "-0.002 (-0.008 to 0.000)"),
        ([0.004, 0.001, 0.007], ".2f", "0.004 (0.001-0.007)"),
        ([-0.00002, -0.0003, 0.0002], "+.4f", "-0.00002 (-0.00030 to +0.00020)"),
        ([-1e-9, -2e-9, 1e-9], ".2f", "0.000 (0.000-0.000)"),  # one more digit, not as many as it takes
        ([0.0, 0.0, 0.0], ".2f", "0.00 (0.00-0.00)"),
        ([-0.4, -1.2, 0.3], ".0f", "-0.4 (-1.2 to 0.3)"),
    ],
)
def test_an_interval_in_words(values: list[float], form: str, text: str) -> None:
    assert interval(values, form) == text


def test_terminal_page_and_document_say_the_same() -> None:
    report = made_report()
    report["peers"][0]["accuracy"] = [{"snr": "5", "r2": NOTHING, "rmse": 1.1, "n": 500}]
    report["engines"] = [case | {"r2": [-0.0002, -0.003, 0.004]} for case in report["engines"][:1]]
    assert on_the_page(NOTHING, 2) == "-0.002 (-0.008 to 0.000)"
    assert "| -0.002 (-0.008 to 0.000) |" in performance(report)
    assert "-0.0002 (-0.0030 to 0.0040)" in cells(report["engines"][0])

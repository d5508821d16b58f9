"""Two reports of benchmarks, case by case: `python -m specvit_benchmarks.compare OLD NEW`.

A ratio is process time NEW over OLD: 2 takes twice as long. Its interval pairs the quartiles of both reports the
unfavourable way, so that it is wider than chance alone. A case is slower (faster) if the whole interval says so *and*
the ratio leaves the tolerance; else it is the same. A case that either report calls unstable is shown and not judged.
Reports of two machines are refused, and of two bundles unless `--across-bundles` asks for them; what else differs,
versions and length, is said.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from specvit_benchmarks.schema import load
from specvit_deploy.errors import SpecVitError

TOLERANCE = 0.05
"""Share by which a time may differ before anybody need care."""
SAME_MACHINE = ("processor", "cores", "features", "gpu")
COLOURS = {"slower": "bold red", "faster": "green", "same": "", "unstable": "yellow"}


@dataclass(frozen=True)
class Verdict:
    """One case in both reports.

    Parameters
    ----------
    case : str
        Engine, precision and batch.
    old, new : float
        Spectra per CPU second, medians.
    ratio : (float, float, float)
        Process time NEW over OLD: middle, low, high.
    verdict : str
        slower, faster, same or unstable.
    """

    case: str
    old: float
    new: float
    ratio: tuple[float, float, float]
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """All cases of two reports.

    Parameters
    ----------
    differs : list of str
        What is not the same in both, a line each.
    verdicts : list of Verdict
        Cases that ran in both.
    only_old, only_new : list of str
        Cases that ran in one alone.
    """

    differs: list[str]
    verdicts: list[Verdict]
    only_old: list[str]
    only_new: list[str]

    def count(self, verdict: str) -> int:
        """Cases with that verdict."""
        return sum(found.verdict == verdict for found in self.verdicts)


def compare(
    old: dict[str, Any], new: dict[str, Any], tolerance: float = TOLERANCE, *, across_bundles: bool = False
) -> Comparison:
    """Compare two valid reports.

    Parameters
    ----------
    old, new : dict
        As `specvit_benchmarks.schema.load` gives them.
    tolerance : float
        Share by which a time may differ.
    across_bundles : bool
        Compare reports of two bundles as well; that they are two is among what differs.

    Raises
    ------
    SpecVitError
        If they come from two machines, of two bundles without `across_bundles`, or no case ran in both.
    """
    same_machine(old, new)
    if not across_bundles:
        same_bundle(old, new)
    before, after = ran(old), ran(new)
    both = [case for case in before if case in after]
    if not both:
        raise SpecVitError("no engine, precision and batch was measured in both; measure NEW with the options of OLD")
    return Comparison(
        differences(old, new),
        [judge(case, before[case], after[case], tolerance) for case in both],
        [case for case in before if case not in after],
        [case for case in after if case not in before],
    )


def same_machine(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse reports of two machines.

    Raises
    ------
    SpecVitError
        If processor, cores, features or graphics card differ.
    """
    for name in SAME_MACHINE:
        ours, theirs = old["machine"].get(name), new["machine"].get(name)
        if ours != theirs:
            raise SpecVitError(
                f"two machines: {name} {_words(ours)} in OLD, {_words(theirs)} in NEW; measure both on one of them"
            )


def same_bundle(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse reports of two bundles.

    Raises
    ------
    SpecVitError
        If the SHA-256 of the bundles differ.
    """
    if old["bundle"]["sha256"] != new["bundle"]["sha256"]:
        raise SpecVitError(
            f"two bundles: {_bundle(old)} in OLD, {_bundle(new)} in NEW; measure both with one, or compare their speed "
            "with --across-bundles"
        )


def ran(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Cases with a result by name."""
    cases = [found for found in report["engines"] if found["reason"] is None]
    return {f"{found['engine']}/{found['precision']} x {found['batch']}{_threads(found)}": found for found in cases}


def judge(case: str, old: dict[str, Any], new: dict[str, Any], tolerance: float) -> Verdict:
    """Ratio of process times with its interval, and what it says."""
    (a, a_low, a_high), (b, b_low, b_high) = old["spectra_per_cpu_second"], new["spectra_per_cpu_second"]
    ratio, low, high = a / b, a_low / b_high, a_high / b_low
    if not (old["stable"] and new["stable"]):
        verdict = "unstable"
    elif low > 1 and ratio > 1 + tolerance:
        verdict = "slower"
    elif high < 1 and ratio < 1 / (1 + tolerance):
        verdict = "faster"
    else:
        verdict = "same"
    return Verdict(case, a, b, (ratio, low, high), verdict)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What else differs between the reports, a line each: bundle, versions, length, the core's own speed."""
    here, there = old["machine"], new["machine"]
    pairs: list[tuple[str, Any, Any]] = [
        ("bundle", _bundle(old), _bundle(new)),
        ("version", old["version"], new["version"]),
        ("length", old["length"], new["length"]),
        ("python", here.get("python"), there.get("python")),
    ]
    ours, theirs = here.get("versions", {}), there.get("versions", {})
    pairs += [(name, ours.get(name), theirs.get(name)) for name in sorted({*ours, *theirs})]
    lines = [f"{name}: {_words(a)} in OLD, {_words(b)} in NEW" for name, a, b in pairs if a != b]
    for precision, before in old["ceiling_gflops"].items():
        after = new["ceiling_gflops"].get(precision)
        if before and after and abs(before / after - 1) > TOLERANCE:
            lines.append(
                f"the core itself, a product of {precision} matrices: {before:.0f} GFLOP/s in OLD, {after:.0f} in NEW "
                f"({before / after:.2f} times the time)"
            )
    return lines


def show(found: Comparison, console: Console) -> None:
    """Print what differs, the table and the sum of it."""
    for line in found.differs:
        console.print(line, highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("case", "OLD /s", "NEW /s", "time", "interval", "verdict"):
        words = name in ("case", "verdict")
        table.add_column(name, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for row in found.verdicts:
        middle, low, high = row.ratio
        cells = (f"{row.old:.1f}", f"{row.new:.1f}", f"{middle:.3f}", f"{low:.3f}-{high:.3f}", row.verdict)
        table.add_row(row.case, *cells, style=COLOURS[row.verdict])
    console.print(table)
    for name, cases in (("OLD", found.only_old), ("NEW", found.only_new)):
        if cases:
            console.print(f"in {name} alone: {', '.join(cases)}", highlight=False, soft_wrap=True)
    counts = [f"{found.count(name)} {name}" for name in COLOURS if found.count(name)]
    console.print(f"process time NEW over OLD: {', '.join(counts)}", highlight=False, soft_wrap=True)


def _threads(case: dict[str, Any]) -> str:
    return "" if case["threads"] == 1 else f", {case['threads']} threads"


def _bundle(report: dict[str, Any]) -> str:
    return f"{report['bundle']['name']} {report['bundle']['sha256'][:12]}"


def _words(value: Any) -> str:
    return (", ".join(map(str, value)) if isinstance(value, list) else str(value or "")) or "none"


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--tolerance", default=TOLERANCE, show_default=True, type=click.FloatRange(min=0), help="Share that is no matter."
)
@click.option("--across-bundles", is_flag=True, help="Compare reports of two bundles.  [default: refuse them]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_context
def main(context: click.Context, old: Path, new: Path, tolerance: float, across_bundles: bool, as_json: bool) -> None:
    """Compare the process times of report NEW with those of report OLD.

    Exit code 1 if a case became slower, beyond its interval and the tolerance; 2 if they cannot be compared, or all
    that both measured is unstable.
    """
    try:
        found = compare(load(old), load(new), tolerance, across_bundles=across_bundles)
    except SpecVitError as error:
        click.echo(f"Error: {error}", err=True)
        context.exit(2)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
    else:
        show(found, Console())
    if found.count("unstable") == len(found.verdicts):
        click.echo("Error: every case is unstable, nothing was judged; measure again on a quiet machine", err=True)
        context.exit(2)
    context.exit(1 if found.count("slower") else 0)


if __name__ == "__main__":
    main()

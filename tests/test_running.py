"""Runs that are killed, cut into shards, spread over processes and machines, and obstructed: equal columns, no loss."""

from __future__ import annotations

import errno
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import specvit_deploy as sv
from specvit_deploy import task as task_module
from specvit_deploy import workers as workers_module
from specvit_deploy.claim import claim
from specvit_deploy.cli import main
from specvit_deploy.formats import Catalog
from specvit_deploy.grid import PFS_MR
from specvit_deploy.journal import HEAD, Journal, folder_of
from specvit_deploy.pipeline import check_output, merge
from specvit_deploy.result_formats import Result
from specvit_deploy.run_status import describe, status_of
from specvit_deploy.task import Computer, Task, identify
from specvit_deploy.workers import work

ROWS, PART = 330, 32
"""Eleven parts, the last one short."""
WITH: dict[str, Any] = {"keep": ("ra", "field"), "noise_level": 0.5, "seed": 3}
FLAGS = ["--keep", "ra,field", "--noise-level", "0.5", "--seed", "3"]
PROGRAM = (
    f"import specvit_deploy.task as t; t.BLOCK = t.PART = {PART}\n"
    "if __name__ == '__main__':\n    from specvit_deploy.cli import main; main()"
)
Columns = dict[str, np.ndarray[Any, Any]]
Seals = dict[str, tuple[int, int]]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "BLOCK", PART)
    monkeypatch.setattr(task_module, "PART", PART)


@pytest.fixture(scope="module")
def stars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain catalogue with texts that grow longer from row to row, and columns to keep."""
    path = tmp_path_factory.mktemp("running") / "stars.h5"
    with Catalog(sv.simulate(path.with_name("drawn.h5"), n=ROWS, seed=8, scenario="survey"), PFS_MR) as source:
        block = source.read(0, ROWS)
    with h5py.File(path, "w") as file:
        file["wave"], file["flux"], file["error"] = PFS_MR.wave, block.flux, block.error
        file["id"] = ["*" * (1 + row // 40) + f" {row} \u03b1" for row in range(ROWS)]
        file["ra"] = np.linspace(0, 360, ROWS)
        file["field"] = [f"F{'x' * (row // 100)}" for row in range(ROWS)]
    return path


@pytest.fixture(scope="module")
def truth(stars: Path, tmp_path_factory: pytest.TempPathFactory) -> Columns:
    """Columns of the uninterrupted run, in parts of the usual size."""
    output = tmp_path_factory.mktemp("truth") / "truth.h5"
    sv.predict(stars, output, **WITH)
    return columns(output)


def columns(path: Path) -> Columns:
    with Result(path) as result:
        blocks = list(result.blocks(result.names))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def assert_equal(found: Columns, expected: Columns) -> None:
    """Bit for bit."""
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, name)
        assert values.dtype == object or found[name].tobytes() == values.tobytes(), name


def seals(output: Path) -> Seals:
    """Sealed parts of a run: a part that is written again is another file at another time."""
    states = {}
    for path in folder_of(output).glob("*.npy"):
        with suppress(FileNotFoundError):  # merged in this moment
            states[path.name] = path.stat()
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


def stop_after(parts: int) -> Callable[[int], None]:
    """An `advance` that ends a run when more than `parts` parts are computed."""
    rows = 0

    def advance(more: int) -> None:
        nonlocal rows
        rows += more
        if rows > parts * PART:
            raise KeyboardInterrupt

    return advance


def begin(stars: Path, output: Path, parts: int = 3, **options: Any) -> Seals:
    """Leave a run with some parts behind."""
    with pytest.raises(KeyboardInterrupt):
        sv.predict(stars, output, **WITH | options, advance=stop_after(parts))
    assert len(seals(output)) == parts
    return seals(output)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First rows of the parts that this process finishes."""
    starts: list[int] = []
    compute = Computer.tables

    def counted(self: Computer, *arguments: Any) -> Any:
        for part, table in compute(self, *arguments):
            starts.append(part[0])
            yield part, table

    monkeypatch.setattr(Computer, "tables", counted)
    return starts


def command(stars: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, "predict", str(stars), "-o", str(output), *FLAGS, *more]


def children_of(process: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:  # it has ended by itself
        return []


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill_after(run: subprocess.Popen[Any], output: Path, parts: int, pause: float) -> None:
    """Kill a run soon after it has sealed so many parts, and see its children end."""
    wait_for(lambda: len(seals(output)) >= parts or run.poll() is not None)
    time.sleep(pause)
    children = children_of(run.pid)
    run.kill()
    run.wait()
    wait_for(lambda: not any(map(is_alive, children)))


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


# ---------------------------------------------------------------------------------------------- equal columns, no loss


def test_a_table_and_a_file_in_parts_hold_the_same(stars: Path, truth: Columns) -> None:
    table = sv.predict(stars, **WITH)
    assert not isinstance(table, Path)
    texts = [value.decode() for value in table["id"]]
    assert_equal({name: np.array(texts, object) if name == "id" else table[name] for name in truth}, truth)
    assert len({len(text) for text in texts}) > 5 and len(set(truth["field"])) == 4


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_columns(
    workers: int, stars: Path, truth: Columns, tmp_path: Path
) -> None:
    rng, output, kept = random.Random(workers), tmp_path / "out.h5", Seals()
    for _ in range(4 - workers):
        with subprocess.Popen(command(stars, output, "--workers", str(workers)), stdout=subprocess.DEVNULL) as run:
            kill_after(run, output, len(kept) + rng.randrange(1, 3), rng.random() * 0.05)
        if output.exists():
            break
        found = seals(output)
        assert found.items() >= kept.items(), "a sealed part was written again"
        kept = found
    assert kept, "no kill came in time"
    if not output.exists():
        rest: list[int] = []
        sv.predict(stars, output, **WITH, start=rest.append)
        assert rest == [ROWS - sum(int(name[13:25]) - int(name[:12]) for name in kept)]
    assert_equal(columns(output), truth)
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("order", [(1,), (2, 1), (3, 1, 2), (2, 3, 1)])
def test_shards_in_any_order_make_the_same_file(
    order: tuple[int, ...], stars: Path, truth: Columns, tmp_path: Path, computed: list[int]
) -> None:
    output = tmp_path / "out.h5"
    for share in order:
        if share != order[0]:
            with pytest.raises(sv.SpecVitError, match=r"missing for .*every shard"):
                merge(output)
        assert sv.predict(stars, output, **WITH, shard=(share, len(order))) == folder_of(output)
    assert sorted(computed) == list(range(0, ROWS, PART))
    assert merge(output) == output == merge(output)
    assert_equal(columns(output), truth)
    assert list(tmp_path.iterdir()) == [output]
    sv.predict(stars, output, **WITH, shard=(1, len(order)))  # asked again by the queue: nothing is left to do
    assert list(tmp_path.iterdir()) == [output] and len(computed) == len(range(0, ROWS, PART))


def test_shares_cut_in_different_ways_compute_no_part_twice(
    stars: Path, truth: Columns, tmp_path: Path, computed: list[int]
) -> None:
    output = tmp_path / "out.h5"
    for shard in ((1, 2), (2, 3), (1, 3)):
        sv.predict(stars, output, **WITH, shard=shard)
    assert_equal(columns(sv.predict(stars, output, **WITH)), truth)  # type: ignore[arg-type]
    assert sorted(computed) == list(range(0, ROWS, PART))


def test_a_part_that_is_gone_again_is_not_taken_for_sealed(tmp_path: Path) -> None:
    run = {"rows": 4, "identity": "x"}
    journal = Journal.begin(tmp_path / "out.h5", run, {})
    assert not journal.has(0, 2)
    journal.seal(0, 2, np.zeros(2, [("id", "<i8")]))
    wait_for(lambda: Journal(tmp_path / "out.h5").has(0, 2))  # listed again before long
    next(folder_of(tmp_path / "out.h5").glob("*.npy")).unlink()
    assert not journal.has(0, 2)


def test_a_part_that_others_seal_in_the_meantime_is_not_computed(
    stars: Path, truth: Columns, tmp_path: Path, computed: list[int]
) -> None:
    output, other = tmp_path / "out.h5", tmp_path / "other.h5"
    begin(stars, other, parts=5)

    def bring(rows: int) -> None:
        for path in folder_of(other).glob("*.npy"):
            if not (folder_of(output) / path.name).exists():
                shutil.copy(path, folder_of(output))

    computed.clear()
    sv.predict(stars, output, **WITH, advance=bring)
    assert computed == [0, *range(5 * PART, ROWS, PART)]
    assert_equal(columns(output), truth)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing_but_its_part(stars: Path, truth: Columns, tmp_path: Path) -> None:
    output, kept, rows = tmp_path / "out.h5", Seals(), []

    def kill_first(more: int) -> None:
        rows.append(more)
        if not kept:
            kept.update(seals(output))
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        elif folder_of(output).exists():
            assert seals(output).items() >= kept.items()
            kept.update(seals(output))

    sv.predict(stars, output, **WITH, workers=2, advance=kill_first)
    assert sum(rows) == ROWS
    assert_equal(columns(output), truth)


def test_workers_that_always_die_are_given_up(stars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_settle", functools.partial(os._exit, 1))
    with pytest.raises(sv.SpecVitError, match=r"die before they finish anything.*fewer workers"):
        sv.predict(stars, tmp_path / "out.h5", **WITH, workers=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "ended"), [(1, signal.SIGINT), (2, signal.SIGINT), (1, signal.SIGTERM), (2, signal.SIGTERM)]
)
def test_ctrl_c_and_the_end_of_a_job_leave_a_run_that_goes_on(
    workers: int, ended: signal.Signals, stars: Path, truth: Columns, tmp_path: Path
) -> None:
    output = tmp_path / "out.h5"
    with subprocess.Popen(
        command(stars, output, "--workers", str(workers)),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it in the background
    ) as run:  # fmt: skip
        wait_for(lambda: bool(seals(output)) or run.poll() is not None)
        os.killpg(run.pid, ended)  # as a terminal and a queue do: to every process of the group
        said = run.communicate()[1]
    assert run.returncode == 2
    assert said == f"Error: stopped; run the same command again and {output} goes on where it stopped\n"
    kept = seals(output)
    assert kept
    sv.predict(stars, output, **WITH)
    assert_equal(columns(output), truth)


# ------------------------------------------------------------------------------------------------------- Dask clusters


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    """A cluster of two worker processes, two threads each."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
def test_a_dask_cluster_with_a_worker_killed_makes_the_same_file(
    dask: Any, stars: Path, truth: Columns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    output, kept, rows = Path("out.h5"), Seals(), []

    def kill_first(more: int) -> None:
        rows.append(more)
        if not kept:
            kept.update(seals(output))
            os.kill(next(iter(dask.run(os.getpid).values())), signal.SIGKILL)
        elif folder_of(output).exists():
            assert seals(output).items() >= kept.items(), "a sealed part was written again"
            kept.update(seals(output))

    sv.predict(stars, output, **WITH, cluster=dask.scheduler.address, advance=kill_first)
    assert sum(rows) == ROWS
    assert_equal(columns(output), truth)


@pytest.mark.slow
def test_what_a_dask_worker_raises_is_said(dask: Any, stars: Path, tmp_path: Path) -> None:
    output, copy = tmp_path / "out.h5", shutil.copy2(stars, tmp_path / "copy.h5")
    with pytest.raises(sv.SpecVitError, match="changed since the run began"):
        sv.predict(copy, output, **WITH, cluster=dask.scheduler.address, start=lambda _: os.utime(copy))


@pytest.mark.parametrize(
    ("cluster", "line"),
    [("tcp://127.0.0.1:9", "no Dask scheduler at tcp.*give local, slurm"), ("slurm", "no sbatch here")],
)
def test_a_cluster_that_is_not_there_is_said(
    cluster: str, line: str, stars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_jobqueue" if cluster == "slurm" else "distributed")
    monkeypatch.setattr(workers_module, "PATIENCE", "0.2s")
    monkeypatch.setattr(workers_module.shutil, "which", lambda _: None)
    with pytest.raises(sv.SpecVitError, match=line):
        sv.predict(stars, tmp_path / "out.h5", **WITH, cluster=cluster)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------ what a run must not mix up


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"noise_level": 1.0}, "noise_level was 0.5 and is 1.0"),
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"keep": ("ra",)}, r"keep was \['ra', 'field'\] and is \['ra'\]"),
        ({"velocity": 10}, "velocity was None and is 10.0"),
        ({"bundle": "pfs-mr-study"}, "bundle_sha256 was"),
        ({"batch": 8}, r"batch was \d+ and is 8"),
        ({"threads": 2}, "1 thread and is .*2 threads"),
        ({"shard": (1, 2), "seed": 4}, "seed was 3 and is 4"),
    ],
)
def test_an_unfinished_run_that_differs_is_refused(
    change: dict[str, Any], said: str, stars: Path, tmp_path: Path
) -> None:
    kept = begin(stars, tmp_path / "out.h5")
    with pytest.raises(sv.SpecVitError, match=rf"{said}.*; run it to its end as it was, or remove .*out.h5.parts"):
        sv.predict(stars, tmp_path / "out.h5", **WITH | change)
    assert seals(tmp_path / "out.h5") == kept


def test_a_run_of_another_version_is_refused(stars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(stars, tmp_path / "out.h5")
    monkeypatch.setattr(task_module, "__version__", "9.9")
    with pytest.raises(sv.SpecVitError, match=r"version was .* and is 9\.9"):
        sv.predict(stars, tmp_path / "out.h5", **WITH)


def test_a_catalogue_that_changed_is_refused(stars: Path, tmp_path: Path) -> None:
    copy, output = shutil.copy2(stars, tmp_path / "copy.h5"), tmp_path / "out.h5"
    begin(copy, output)
    os.utime(copy)
    with pytest.raises(sv.SpecVitError, match=r"the catalogue changed since .*remove .* to start afresh"):
        sv.predict(copy, output, **WITH)
    shutil.copystat(stars, copy)
    sv.predict(copy, output, **WITH)


def test_a_run_goes_on_with_the_engine_it_began_with(
    stars: Path, truth: Columns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    output = tmp_path / "out.h5"
    begin(stars, output, batch=8, engine="onnxruntime", precision="fp32")
    fastest = {("openvino", "fp32"): 0.1, ("onnxruntime", "fp32"): 1.0}  # it would be taken now
    monkeypatch.setattr("specvit_deploy.engines.verified", lambda _: fastest)
    computed.clear()
    sv.predict(stars, output, **WITH)
    assert computed == list(range(3 * PART, ROWS, PART))
    with Result(output) as result:
        assert (result.attributes["engine"], result.attributes["batch"]) == ("onnxruntime", 8)
    np.testing.assert_allclose(columns(output)["log_g"], truth["log_g"], atol=0.05)


def test_parts_of_another_run_never_pass_for_this_one_s(stars: Path, truth: Columns, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    begin(stars, output, seed=77)
    (folder_of(output) / HEAD).unlink()  # as if killed while it was removed
    sv.predict(stars, output, **WITH)
    assert_equal(columns(output), truth)


def test_a_damaged_part_alone_is_computed_again(
    stars: Path, truth: Columns, tmp_path: Path, computed: list[int]
) -> None:
    output = tmp_path / "out.h5"
    kept = begin(stars, output)
    damaged = sorted(folder_of(output).glob("*.npy"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (folder_of(output) / f".{damaged.name}.0.tmp").write_bytes(b"left by a process that died")
    computed.clear()
    with pytest.raises(KeyboardInterrupt):
        sv.predict(stars, output, **WITH, advance=stop_after(1))
    assert computed == [PART]
    again = seals(output)
    assert {name for name in kept if again[name] != kept[name]} == {damaged.name}
    sv.predict(stars, output, **WITH)
    assert_equal(columns(output), truth)
    assert list(tmp_path.iterdir()) == [output]


def test_a_part_that_is_damaged_later_stops_the_merge(stars: Path, truth: Columns, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    sv.predict(stars, output, **WITH, shard=(1, 1))
    path = sorted(folder_of(output).glob("*.npy"))[4]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(sv.SpecVitError, match="is damaged; run the same command again"):
        merge(output)
    assert not output.exists()
    sv.predict(stars, output, **WITH, shard=(1, 1))
    assert_equal(columns(merge(output)), truth)


def test_a_head_that_cannot_be_read_is_said(stars: Path, tmp_path: Path) -> None:
    begin(stars, tmp_path / "out.h5")
    for content in ("", "{}", '{"run": '):
        (folder_of(tmp_path / "out.h5") / HEAD).write_text(content)
        with pytest.raises(sv.SpecVitError, match=r"run.json is damaged; remove .*parts to start afresh"):
            sv.predict(stars, tmp_path / "out.h5", **WITH)


@pytest.mark.parametrize("name", ["out.h5", "out.fits", "out.parquet", "out.ecsv"])
def test_what_is_finished_is_left_as_it_is(name: str, stars: Path, tmp_path: Path, computed: list[int]) -> None:
    pytest.importorskip({"out.h5": "h5py", "out.parquet": "pyarrow"}.get(name, "astropy"))
    output = tmp_path / name
    sv.predict(stars, output, **WITH)
    before, parts = output.stat(), len(computed)
    sv.predict(stars, output, **WITH)
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(computed) == parts
    if name == "out.h5":
        sv.predict(stars, output, **WITH, schema="pfs")
        sv.predict(stars, output, **WITH | {"seed": 4})
        assert len(computed) == 3 * parts


# ----------------------------------------------------------------------------------------------- two at once, obstacles


def test_one_process_at_a_time_for_one_output(stars: Path, tmp_path: Path) -> None:
    output, refused = tmp_path / "out.h5", pytest.raises(sv.SpecVitError, match=r"another process.*choose another")
    with claim(output):
        for shard in (None, (1, 2)):
            with refused:
                sv.predict(stars, output, **WITH, shard=shard)
    assert list(tmp_path.iterdir()) == []
    begin(stars, output)
    with claim(output, (1, 2)):
        for shard in (None, (1, 2)):
            with refused:
                sv.predict(stars, output, **WITH, shard=shard)
        with refused:
            merge(output)
        sv.predict(stars, output, **WITH, shard=(2, 2))
    sv.predict(stars, output, **WITH)


def test_a_full_disk_is_said_and_costs_nothing(
    stars: Path, truth: Columns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    output, flush, calls = tmp_path / "out.h5", os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(sv.SpecVitError, match=r"No space left.*make room, then run the same command again"):
            sv.predict(stars, output, **WITH)
    assert not [path for path in folder_of(output).iterdir() if path.suffix == ".tmp"]
    parts = len(seals(output))
    assert parts == 4
    computed.clear()
    sv.predict(stars, output, **WITH)
    assert len(computed) == len(range(0, ROWS, PART)) - parts
    assert_equal(columns(output), truth)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.h5", "out.fits", "out.parquet"])
def test_no_room_for_the_result_is_said_and_merge_makes_up_for_it(
    name: str, stars: Path, truth: Columns, tmp_path: Path
) -> None:
    pytest.importorskip({"out.h5": "h5py", "out.parquet": "pyarrow"}.get(name, "astropy"))
    output = tmp_path / name
    sv.predict(stars, output, **WITH, shard=(1, 1))
    largest = max(path.stat().st_size for path in folder_of(output).iterdir())
    program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}))\n{PROGRAM}"
    run = [sys.executable, "-c", program, "merge", str(output)]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith(f"Error: cannot write {output} (") and result.stderr.count("\n") == 1
    assert f"make room, then run 'specvit-deploy merge {output}'" in result.stderr
    assert not output.exists()
    found = columns(merge(output))
    for column, values in truth.items():
        if name != "out.fits" or values.dtype != object:  # texts in FITS are ASCII
            np.testing.assert_array_equal(found[column], values)
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("kind", ["no folder", "no writing", "a file in its way"])
def test_an_output_that_cannot_be_written_is_said(kind: str, stars: Path, tmp_path: Path) -> None:
    output = Path("/proc/out.h5") if kind == "no writing" else tmp_path / "missing" / "out.h5"
    if kind == "a file in its way":
        output = tmp_path / "out.h5"
        folder_of(output).write_text("precious")
    with pytest.raises(sv.SpecVitError, match=r"cannot write beside .*choose another place with -o"):
        sv.predict(stars, output, **WITH)
    assert [path.read_text() for path in tmp_path.iterdir()] == (["precious"] if kind == "a file in its way" else [])


def test_a_folder_that_cannot_be_entered_is_said(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(0o000)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(sv.SpecVitError, match=r"Permission denied.*choose another output with -o"):
            check_output(tmp_path / "closed" / "out.h5")
    finally:
        os.seteuid(user)


def test_a_catalogue_that_vanishes_or_changes_during_the_run_is_said(
    stars: Path, truth: Columns, tmp_path: Path
) -> None:
    copy, output = shutil.copy2(stars, tmp_path / "copy.h5"), tmp_path / "out.h5"
    hidden = tmp_path / "hidden.h5"

    def after_some(what: Callable[[], object]) -> Callable[[int], None]:
        return lambda _: what() if len(seals(output)) > 2 and copy.exists() else None

    with pytest.raises(sv.SpecVitError, match=r"copy.h5 cannot be read any more \(No such file.*put it back"):
        sv.predict(copy, output, **WITH, advance=after_some(lambda: copy.rename(hidden)))
    hidden.rename(copy)
    with pytest.raises(sv.SpecVitError, match=r"copy.h5 changed since the run began; put it back as it was"):
        sv.predict(copy, output, **WITH, advance=after_some(lambda: os.utime(copy)))
    shutil.copystat(stars, copy)
    sv.predict(copy, output, **WITH)
    assert_equal(columns(output), truth)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_parts_that_vanish_during_the_run_are_said(workers: int, stars: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with pytest.raises(sv.SpecVitError, match=r"parts is gone; run the same|no unfinished run for"):
        sv.predict(stars, output, **WITH, workers=workers, advance=lambda _: shutil.rmtree(folder_of(output), True))
    assert list(tmp_path.iterdir()) == []


def test_a_worker_elsewhere_refuses_what_is_not_its_run(stars: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    begin(stars, output)
    run = Journal(output).run
    bundle = str(sv.load_bundle().path)
    known = {name: run[name] for name in run if name not in ("version", "keep")}
    task = Task(catalog=str(stars), bundle=bundle, threads=1, keep=tuple(run["keep"]), **known)
    assert work(task, str(output), 0, PART) == PART  # sealed already
    kept = seals(output)
    with pytest.raises(sv.SpecVitError, match="differs from this one: seed"):
        work(replace(task, seed=9), str(output), 3 * PART, 4 * PART)
    with pytest.raises(sv.SpecVitError, match=r"the run began with another card, here is .*machines of one kind"):
        Computer(replace(task, engine_description="another card"))
    with pytest.raises(sv.SpecVitError, match="changed while it was in use"):
        Computer(replace(task, bundle_sha256="0" * 64))
    assert seals(output) == kept


def test_a_folder_of_shards_is_its_index_and_its_shards(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in (1, 2):
        sv.simulate(folder / f"s{i}.h5", n=PART, seed=i)
    (folder / "shard_index.txt").write_text("s1.h5\ns2.h5\n")
    with Catalog(folder, PFS_MR) as source:
        before = identify(source)
        (folder / "notes.txt").write_text("of no concern")
        assert identify(source) == before
        os.utime(folder / "s2.h5", (1, 1))
        assert identify(source) != before
    output = folder / "out.h5"  # in the very folder that is read
    sv.predict(folder, output)
    assert len(columns(output)["id"]) == 2 * PART


# --------------------------------------------------------------------------------------------------------- status, CLI


def test_status_says_how_far_a_run_is(stars: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with pytest.raises(sv.SpecVitError, match=r"no unfinished run for .*start one"):
        status_of(output)
    begin(stars, output, parts=4)
    os.utime(folder_of(output) / "lock", (1000, 1000))
    for i, path in enumerate(sorted(folder_of(output).glob("*.npy"))):
        os.utime(path, (990 + 10 * i, 990 + 10 * i))  # one before the last process began, the others 10 s apart
    found = json.loads(CliRunner().invoke(main, ["status", str(output), "--json"]).stdout)
    assert (found["rows"], found["done"], found["parts"], found["parts_in_all"]) == (ROWS, 4 * PART, 4, 11)
    assert found["missing"] == [[4 * PART, ROWS]] and not found["finished"]
    assert found["rows_per_second"] == pytest.approx(3 * PART / 20)
    assert found["seconds_left"] == pytest.approx((ROWS - 4 * PART) / (3 * PART / 20))
    said = CliRunner().invoke(main, ["status", str(output)]).stdout
    for text in ("128 of 330 rows (38.8%), 4 of 11 parts", "missing: rows 128 to 330", "0:00:42 to go", "ago"):
        assert text in said
    sv.predict(stars, output, **WITH, shard=(1, 1))
    assert f"all rows are there; next: specvit-deploy merge {output}" in describe(status_of(output))
    sv.predict(stars, output, **WITH)
    assert status_of(output) == {"output": str(output), "finished": True}
    assert "is finished" in describe(status_of(output))


def test_the_command_line_leads_from_shards_to_the_file(stars: Path, truth: Columns, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    for shard in ("1/2", "2/2"):
        result = CliRunner().invoke(main, ["predict", str(stars), "-o", str(output), *FLAGS, "--shard", shard])
        assert result.exit_code == 0 and f"shard {shard} is done" in result.output
    result = CliRunner().invoke(main, ["merge", str(output)])
    assert result.exit_code == 0 and f"wrote {output}: {ROWS} rows" in result.output
    assert_equal(columns(output), truth)
    result = CliRunner().invoke(main, ["predict", str(stars), "-o", str(output), *FLAGS])
    assert "every row was there already" in result.output
    for shard in ("0/2", "3/2", "1", "a/b"):
        result = CliRunner().invoke(main, ["predict", str(stars), "-o", str(output), "--shard", shard])
        assert result.exit_code == 2 and "give I/N with I from 1 to N" in result.stderr


def test_a_result_goes_into_a_folder(stars: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["predict", str(stars), "-o", str(tmp_path), *FLAGS])
    assert result.exit_code == 0 and (tmp_path / f"{stars.stem}.logg.h5").exists(), result.output


@pytest.mark.parametrize("command", ["predict", "status", "merge", "report", "simulate", "ceiling"])
@pytest.mark.parametrize("path", ["", "."])
def test_a_path_without_a_name_is_refused(command: str, path: str) -> None:
    result = CliRunner().invoke(main, [command, path])
    assert result.exit_code == 2 and f"'{path}' names no file" in result.stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"workers": 0}, "at least one worker"),
        ({"shard": (0, 2)}, "I from 1 to N"),
        ({"shard": (3, 2)}, "I from 1 to N"),
        ({"schema": "theirs"}, "choose one of own, pfs"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], line: str, stars: Path, tmp_path: Path) -> None:
    with pytest.raises(sv.SpecVitError, match=line):
        sv.predict(stars, tmp_path / "out.h5", **options)
    for more in ({"workers": 2}, {"cluster": "local"}, {"shard": (1, 2)}):
        with pytest.raises(sv.SpecVitError, match="need an output file"):
            sv.predict(stars, **more)  # type: ignore[arg-type]

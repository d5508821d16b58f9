"""From a catalogue of spectra to a table of log g: plan -> compute parts -> merge, in bounded memory, resumable."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specvit_deploy.atomic import whole_file
from specvit_deploy.blocks import tables
from specvit_deploy.bundle import DEFAULT
from specvit_deploy.claim import claim
from specvit_deploy.engines import AUTO, Engine
from specvit_deploy.errors import SpecVitError
from specvit_deploy.estimator import Estimator
from specvit_deploy.formats.rows import Medium
from specvit_deploy.journal import Journal, Part, as_text, folder_of
from specvit_deploy.plan import make_plan
from specvit_deploy.repeated_ids import RepeatedIds
from specvit_deploy.result_formats import Result, format_of, is_result, open_writer
from specvit_deploy.result_formats.schema import OWN, SCHEMAS, check_carried
from specvit_deploy.results import provenance
from specvit_deploy.run_status import pace_of
from specvit_deploy.task import Computer, Task
from specvit_deploy.workers import run_cluster, run_pool


def predict(
    catalog: str | Path,
    output: str | Path | None = None,
    bundle: str | Path = DEFAULT,
    *,
    keep: Sequence[str] = (),
    velocity: float | str | None = None,
    medium: Medium | None = None,
    lsf: str | None = None,
    noise_level: float = 0.0,
    seed: int = 0,
    engine: str = AUTO,
    precision: str = AUTO,
    threads: int = 1,
    batch: int | None = None,
    allow_fallback: bool = False,
    workers: int = 1,
    cluster: str | None = None,
    shard: tuple[int, int] | None = None,
    format: str | None = None,
    schema: str = "own",
    loaded: Callable[[Engine], None] = lambda engine: None,
    start: Callable[[int], None] = lambda rows: None,
    advance: Callable[[int], None] = lambda rows: None,
) -> NDArray[Any] | Path:
    """Estimate log g for every spectrum of a catalogue.

    With an output, parts are sealed beside it (`specvit_deploy.journal`) as they are done and merged at the end: the
    same call goes on where an earlier one was stopped, and ends in the same columns, bit for bit, with any number of
    workers and shards. What is finished already is left as it is.

    Parameters
    ----------
    catalog : path
        Of a known format (`specvit_deploy.formats`); opened read-only.
    output : path, optional
        File for the results, written whole or not at all, in bounded memory. Without it the table is returned.
    bundle : path or str
        A bundle's directory or the name of an embedded one.
    keep, velocity, medium, lsf
        How to read the catalogue: columns to carry along, velocity to take out, medium of the wavelengths, width of
        its line-spread function as "1.2A" (FWHM) or "R5000"; see `specvit_deploy.formats.Catalog`.
    noise_level : float
        Add noise of this many times the error column (for catalogues of clean flux).
    seed : int
        Of that noise; a row's noise depends on the seed and its number alone.
    engine, precision, threads, batch, allow_fallback
        What runs the model, as in `specvit_deploy.engines.load_engine`. A run that goes on keeps its engine.
    workers : int
        Processes, one engine each; a script that asks for several keeps the call under `if __name__ == "__main__":`.
    cluster : str, optional
        "local", "slurm" or the address of a Dask scheduler: its workers compute the parts.
    shard : (int, int), optional
        (I, N) computes the I-th of N shares of the parts, 1 to N, and leaves them for `merge`.
    format : str, optional
        hdf5, fits, fits.gz, parquet or ecsv, whatever the ending of `output`.
    schema : "own" or "pfs"
        Names of the columns in the file, see `specvit_deploy.result_formats.schema`.
    loaded : callable
        Told the engine that runs.
    start, advance : callable
        Told the number of rows to compute before the first and after some of them.

    Returns
    -------
    structured array or Path
        The table, or `output`; of a shard, the folder of its parts.

    Raises
    ------
    SpecVitError
        If catalogue, bundle, engine or output cannot be used, an unfinished run for that output is another, or another
        process is at work on it.
    """
    if schema not in SCHEMAS:
        raise SpecVitError(f"schema {schema} is unknown; choose one of {', '.join(SCHEMAS)}")
    if workers < 1 or (shard is not None and not 1 <= shard[0] <= shard[1]):
        raise SpecVitError("give at least one worker, and a shard I/N with I from 1 to N")
    if output is None and (workers > 1 or cluster or shard):
        raise SpecVitError("workers, a cluster and shards need an output file; give one")
    output = None if output is None else Path(output)
    check_carried(keep, OWN if output is None else schema)
    if output is not None:
        check_output(output, Path(catalog), velocity)
        format = format_of(output, format)
        engine, precision, batch = _as_begun(output, engine, precision, batch)
    plan = make_plan(
        catalog, bundle, keep=keep, velocity=velocity, medium=medium, lsf=lsf, noise_level=noise_level,
        seed=seed, engine=engine, precision=precision, threads=threads, batch=batch, allow_fallback=allow_fallback,
        loaded=loaded,
    )  # fmt: skip
    task, estimator = plan.task, plan.estimator
    if output is None:
        start(task.rows)
        return np.concatenate(list(tables(plan, advance)))
    run, facts = task.describe(), provenance()
    if _is_finished(output, {"run": as_text(run), "format": format, "schema": schema}):
        start(0)
        return output
    about = {
        "bundle": estimator.bundle.name, "scenario": estimator.bundle.scenario, "catalog": Path(catalog).name,
        "layout": plan.layout, "command": facts["command"], "format": format, "schema": schema,
        "velocity": task.velocity,
    }  # fmt: skip
    with claim(output, shard):
        journal = Journal.begin(output, run, about)
        share, shares = shard or (1, 1)
        mine = task.parts()[share - 1 :: shares]
        done = journal.verified(mine)
        parts = [part for part in mine if part not in done]
        start(sum(stop - first for first, stop in parts))
        try:
            if cluster is not None and parts:
                run_cluster(task, journal, parts, cluster, workers, advance)
            elif workers > 1 and len(parts) > 1:
                run_pool(task, journal, parts, workers, advance)
            else:
                _run_here(task, estimator, journal, parts, advance)
        except BaseException:
            if shard is None and not journal.sealed():
                journal.remove()  # nothing to go on from
            raise
        return journal.folder if shard is not None else _merge(journal, format, schema)


def _run_here(
    task: Task, estimator: Estimator, journal: Journal, parts: Sequence[Part], advance: Callable[[int], None]
) -> None:
    """Compute parts in this process."""
    with Computer(task, estimator) as compute:
        for (start, stop), table in compute.tables(parts, advance, journal.has):  # others may seal meanwhile
            journal.seal(start, stop, table)


def merge(output: str | Path, format: str | None = None, schema: str | None = None) -> Path:
    """Join the sealed parts of a finished run into its result file, and remove them; a result that is there stays.

    Format and schema are those that `predict` was told first, unless others are given.

    Raises
    ------
    SpecVitError
        If there is no run for `output`, a process is still at it, rows are missing, a part is damaged, or the result
        cannot be written.
    """
    output = Path(output)
    if not folder_of(output).exists() and output.exists() and is_result(output):
        return output
    Journal(output)  # there is one
    with claim(output):
        return _merge(Journal(output), format, schema)


def _merge(journal: Journal, format: str | None, schema: str | None) -> Path:
    """Join the parts; the result is written among them, so that nothing stays behind if this is killed."""
    output, run, about = journal.output, journal.run, journal.about
    check_output(output)
    form, schema = format_of(output, format or about["format"]), schema or about["schema"]
    check_carried(run["keep"], schema)
    used = ("bundle_sha256", "engine", "precision", "batch", "engine_description", "medium", "lsf")
    attributes = provenance(
        **about,
        run=as_text(run),
        catalog_identity=run["identity"],
        rows=journal.rows,
        noise_level=run["noise_level"],
        noise_seed=run["seed"],
        **{name: run.get(name) for name in used},
    ) | {"command": about["command"], "format": form, "schema": schema}  # the command of the run, not of `merge`
    pace, _ = pace_of(journal)
    if pace:  # not of shards: they ran at other times, in other places
        attributes["rows_per_second"] = round(pace, 1)
    whole, repeated = journal.folder / output.name, RepeatedIds()
    try:
        _try_room(whole, journal)
        with (
            whole_file(whole) as temporary,
            open_writer(temporary, form, journal.rows, attributes, schema) as writer,
        ):
            for table in journal.tables():
                writer.write(table)
                repeated.add(table["id"])
        whole.replace(output)
        _to_disk(output.parent)
    except (OSError, RuntimeError) as error:  # h5py has both
        said = " ".join(str(error).split())
        raise SpecVitError(
            f"cannot write {output} ({said}); make room, then run 'specvit-deploy merge {output}'"
        ) from None
    journal.remove()
    repeated.warn(about["catalog"])
    return output


def _try_room(whole: Path, journal: Journal) -> None:
    """Take the room that the result needs, once, and give it back: HDF5 does not survive a disk that fills up.

    Raises
    ------
    OSError
        If there is not enough: disk full, quota, limit on the size of a file.
    """
    need = sum(path.stat().st_size for path in journal.sealed().values()) * 5 // 4  # its texts take more than ours
    try:
        with whole.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, need)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
    finally:
        whole.unlink(missing_ok=True)


def _to_disk(folder: Path) -> None:
    """Flush the names in a folder, so that no power cut loses both a result and its parts."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(path: Path, catalog: Path | None = None, velocity: float | str | None = None) -> None:
    """Refuse to replace the catalogue, the file of its velocities (FILE:COLUMN), or a file that is no result of ours.

    Raises
    ------
    SpecVitError
        If `path` is one of them, or exists and is anything else than a result file.
    """
    if catalog is not None and path.resolve() == catalog.resolve():
        raise SpecVitError(f"{path} is the catalogue itself; choose another output with -o")
    if isinstance(velocity, str) and ":" in velocity and path.resolve() == Path(velocity.rpartition(":")[0]).resolve():
        raise SpecVitError(f"{path} holds the velocities; choose another output with -o")
    try:
        is_foreign = path.exists() and not is_result(path)
    except PermissionError as error:
        raise SpecVitError(f"{path} cannot be looked at ({error.strerror}); choose another output with -o") from None
    if is_foreign:
        raise SpecVitError(f"{path} exists and is not a result file; choose another output with -o")


def _as_begun(output: Path, engine: str, precision: str, batch: int | None) -> tuple[str, str, int | None]:
    """Engine, precision and batch of an unfinished run for `output`, where none was asked for."""
    if not folder_of(output).is_dir():
        return engine, precision, batch
    try:
        run = Journal(output).run
    except SpecVitError:
        return engine, precision, batch
    if engine == AUTO and precision in (AUTO, run["precision"]) and not run["fell_back"]:
        return run["engine"], run["precision"], batch or run["batch"]
    return engine, precision, batch


def _is_finished(output: Path, facts: dict[str, str | None]) -> bool:
    """Whether `output` is the whole result of this very run, in this format."""
    if folder_of(output).exists() or not output.exists():
        return False
    with Result(output) as result:
        return all(result.attributes.get(name) == value for name, value in facts.items())

"""Who computes the parts of a run: this process, a pool of processes, or a Dask cluster. One unit of work for all."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from specvit_deploy.errors import SpecVitError, missing_extra
from specvit_deploy.journal import Journal, Part
from specvit_deploy.task import Computer, Task

RETRIES = 3
"""How often work is tried again after its worker died: in a pool without any progress, on a cluster over one part."""
PATIENCE = "30s"
"""How long a scheduler is tried to be reached."""
_AT_WORK = threading.Lock()
"""Engine and open catalogue of a process serve one thread at a time."""


@lru_cache(maxsize=1)
def _computer(task: Task) -> Computer:
    return Computer(task)


def work(task: Task, output: str, start: int, stop: int) -> int:
    """Compute one part and seal it; the number of its rows. Runs in any process on any machine.

    A part that is sealed already is left alone: a cluster may ask again for what a dead worker had finished.
    """
    journal = Journal(Path(output))
    journal.check(task.describe())
    if not journal.has(start, stop):
        with _AT_WORK, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, where the run was planned
            table = _computer(task)(start, stop)
        journal.seal(start, stop, table)
    return stop - start


def run_pool(task: Task, journal: Journal, parts: Sequence[Part], workers: int, advance: Callable[[int], None]) -> None:
    """Compute parts in processes of their own, one engine each.

    A process that dies (out of memory, killed) costs the parts that were at work; they are tried again.

    Raises
    ------
    SpecVitError
        What a worker raised, or that workers died `RETRIES` times without finishing anything.
    """
    left, fruitless = dict.fromkeys(parts), 0
    while left:
        before = len(left)
        try:
            _run_once(task, journal, left, workers, advance)
        except BrokenProcessPool:
            for start, stop in [part for part in left if journal.has(*part)]:
                del left[start, stop]
                advance(stop - start)
            fruitless = fruitless + 1 if len(left) == before else 0
            if fruitless == RETRIES:
                raise SpecVitError(
                    "worker processes die before they finish anything (out of memory? from a script: is the call under "
                    "'if __name__ == \"__main__\":'?); run the same command again with fewer workers"
                ) from None


def _run_once(
    task: Task, journal: Journal, left: dict[Part, None], workers: int, advance: Callable[[int], None]
) -> None:
    """Compute what is left with one pool, and strike it off; whatever happens, parts at work are finished first."""
    pool = ProcessPoolExecutor(min(workers, len(left)), multiprocessing.get_context("spawn"), initializer=_settle)
    try:
        with _interrupt_kept_from_children():
            futures = {pool.submit(work, task, str(journal.output.absolute()), *part): part for part in left}
        for future in as_completed(futures):
            rows = future.result()
            del left[futures[future]]
            advance(rows)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupt_kept_from_children() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, from their first instruction on; it is the parent's."""
    resource_tracker.ensure_running()  # its own start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle() -> None:
    """Leave Ctrl-C to the parent, and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def run_cluster(
    task: Task, journal: Journal, parts: Sequence[Part], cluster: str, workers: int, advance: Callable[[int], None]
) -> None:
    """Compute parts on a Dask cluster: "local", "slurm", or the address of a scheduler.

    Paths must mean the same on every worker.

    Raises
    ------
    SpecVitError
        What a worker raised, that workers died `RETRIES` times over one part, or that the scheduler is gone.
    """
    with dask_client(cluster, workers) as client:
        distributed: Any = import_module("distributed")
        place = str(journal.output.absolute())
        futures = [client.submit(work, task, place, *part, pure=False, retries=RETRIES) for part in parts]
        try:
            for future in distributed.as_completed(futures, loop=client.loop):  # the caller may have a client too
                advance(future.result())
        except distributed.KilledWorker:
            raise SpecVitError(
                f"workers of {cluster} died {RETRIES} times over one part (out of memory?); give them more memory "
                "and run the same command again: it goes on where it stopped"
            ) from None
        except CancelledError:
            raise SpecVitError(
                f"the scheduler of {cluster} is gone; run the same command again: it goes on where it stopped"
            ) from None


@contextmanager
def dask_client(cluster: str, workers: int) -> Iterator[Any]:
    """Open a client of a Dask cluster; one that is started for it has one thread a worker and ends with it.

    Raises
    ------
    SpecVitError
        If Dask is not installed, there is no scheduler at that address, or Slurm cannot be asked.
    """
    try:
        distributed: Any = import_module("distributed")  # its types are half-declared
        jobqueue: Any = import_module("dask_jobqueue") if cluster == "slurm" else None
    except ModuleNotFoundError:
        raise missing_extra(f"--cluster {cluster}", "cluster") from None
    made: Any = None
    try:
        if cluster == "local":
            with _interrupt_kept_from_children():
                made = distributed.LocalCluster(
                    n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
                )
        elif cluster == "slurm":
            made = _slurm(jobqueue, workers)
        client = distributed.Client(made or cluster, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        if made is not None:
            made.close()
        raise SpecVitError(f"no Dask scheduler at {cluster} ({error}); give local, slurm or its address") from None
    try:
        yield client
    finally:
        client.close()
        if made is not None:
            made.close()


def _slurm(jobqueue: Any, workers: int) -> Any:
    """Ask Slurm for workers of one core each; memory, queue and time are the site's, in jobqueue.yaml."""
    if shutil.which("sbatch") is None:
        raise SpecVitError("there is no sbatch here; run on a machine that submits to Slurm, or use --cluster local")
    try:
        made = jobqueue.SLURMCluster(cores=1, processes=1)
    except ValueError as error:
        said = str(error).split(", for example")[0]
        raise SpecVitError(
            f"Slurm needs to be told more ({said}); say it in ~/.config/dask/jobqueue.yaml, or in the environment: "
            "DASK_JOBQUEUE__SLURM__MEMORY=2GiB"
        ) from None
    made.adapt(minimum_jobs=workers, maximum_jobs=workers)  # jobs that end, as their time is up, are replaced
    return made

"""Who computes the parts of a run: this process, a pool of processes, or a Dask cluster. One unit of work for all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from specvit_deploy.errors import SpecVitError, missing_extra
from specvit_deploy.journal import Journal, Part
from specvit_deploy.task import Computer, Task

RETRIES = 3
"""How often a part is tried again on a cluster after its worker died."""


@lru_cache(maxsize=1)
def _computer(task: Task) -> Computer:
    return Computer(task)


def work(task: Task, output: str, start: int, stop: int) -> int:
    """Compute one part and seal it; the number of its rows. Runs in any process on any machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once, where the run was planned
        table = _computer(task)(start, stop)
    journal = Journal(Path(output))
    journal.check(task.describe())
    journal.seal(start, stop, table)
    return stop - start


def run_pool(task: Task, journal: Journal, parts: Sequence[Part], workers: int, advance: Callable[[int], None]) -> None:
    """Compute parts in processes of their own, one engine each.

    A process that dies (out of memory, killed) costs the parts it was at; they are tried again as long as others
    are finished in between.

    Raises
    ------
    SpecVitError
        What a worker raised, or that workers die without finishing anything.
    """
    left = list(parts)
    while left:
        before = len(left)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, before), context, initializer=_settle)
        try:
            futures = {pool.submit(work, task, str(journal.output), *part): part for part in left}
            for future in as_completed(futures):
                advance(future.result())
                left.remove(futures[future])
        except BrokenProcessPool:
            done = journal.sealed()
            left = [part for part in left if part not in done]
            if len(left) == before:
                raise SpecVitError(
                    "a worker process died before it finished anything (out of memory?); run the same command again "
                    "with fewer --workers"
                ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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
        What a worker raised, or that its workers died `RETRIES` times over one part.
    """
    with dask_client(cluster, workers) as client:
        distributed: Any = import_module("dask.distributed")
        futures = [client.submit(work, task, str(journal.output), *part, pure=False, retries=RETRIES) for part in parts]
        for future in distributed.as_completed(futures):
            try:
                advance(future.result())
            except distributed.KilledWorker:
                raise SpecVitError(
                    f"workers of {cluster} died {RETRIES} times over one part (out of memory?); give them more memory "
                    "and run the same command again"
                ) from None


@contextmanager
def dask_client(cluster: str, workers: int) -> Iterator[Any]:
    """Open a client of a Dask cluster with one thread a worker; a cluster that was started for it ends with it."""
    try:
        distributed: Any = import_module("dask.distributed")  # its types are half-declared
    except ModuleNotFoundError:
        raise missing_extra("--cluster", "cluster") from None
    made: Any = None
    if cluster == "local":
        made = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
    elif cluster == "slurm":
        try:
            jobqueue: Any = import_module("dask_jobqueue")
        except ModuleNotFoundError:
            raise missing_extra("--cluster slurm", "cluster") from None
        made = jobqueue.SLURMCluster(cores=1, processes=1)  # memory, queue and walltime: the site's jobqueue.yaml
        made.scale(jobs=workers)
    try:
        client = distributed.Client(made or cluster, timeout="30s")
    except (OSError, ValueError) as error:
        raise SpecVitError(f"no Dask scheduler at {cluster} ({error}); give local, slurm or its address") from None
    try:
        yield client
    finally:
        client.close()
        if made is not None:
            made.close()

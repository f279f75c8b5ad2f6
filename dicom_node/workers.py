"""The compute workers: a local Dask cluster, or one elsewhere.

A worker is a process of its own: a correction that crashes or eats memory takes no listener with it.
Dask's own retries are off, because the ledger counts attempts and gives the reasons.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

import dask
from distributed import Client, Future, LocalCluster, Worker, WorkerPlugin
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from dicom_node.compute import CorrectionTask, Outcome, Refusal, run
from dicom_node.config import LogSettings
from dicom_node.log import configure, exception_words
from dicom_node.spool import SpoolError

START_TIMEOUT_S = 60.0
RESULT_TIMEOUT_S = 30.0  # to fetch the few hundred bytes of an outcome from its worker


@dataclass(frozen=True, slots=True)
class Finished:
    """A correction that ended: with an outcome, or an error for people. `lost`: its worker died under it."""

    job_id: int
    outcome: Outcome | Refusal | None = None
    error: str = ""
    lost: bool = False


class _OwnLog(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """Sets up the log in each worker process, so that no library there prints what it reads."""

    name = "dicom-node-log"

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings

    def setup(self, worker: Worker) -> None:
        configure(self._settings)


@dataclass(frozen=True, slots=True)
class _Running:
    future: Future
    since: float


class Workers:
    """Hands tasks to the workers and tells what became of them; never blocks on a computation."""

    def __init__(self, *, scheduler: str, count: int, threads: int, scratch: Path, log: LogSettings) -> None:
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": 0,
                "distributed.worker.daemon": False,
                "distributed.comm.timeouts.connect": "30s",
                # one correction is memory-bound by design; Dask's spilling would only slow it down
                "distributed.worker.memory.target": False,
                "distributed.worker.memory.spill": False,
                "distributed.worker.memory.pause": False,
            }
        )
        self._threads = threads
        self._cluster: LocalCluster | None = None
        if scheduler:
            self._client = Client(scheduler, timeout=START_TIMEOUT_S, set_as_default=False)
        else:
            self._cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                local_directory=str(scratch),
                silence_logs=40,
            )
            self._client = Client(self._cluster, set_as_default=False)
        self._client.register_plugin(_OwnLog(log))
        self._running: dict[int, _Running] = {}

    def running(self) -> frozenset[int]:
        """The jobs that are with a worker now."""
        return frozenset(self._running)

    def alive(self) -> int:
        """How many workers answer."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def free(self) -> int:
        """How many more tasks can start now."""
        return max(0, self.alive() - len(self._running))

    def submit(self, job_id: int, attempt: int, task: CorrectionTask) -> None:
        """Start a correction."""
        # a key of its own: Dask answers a key that it still knows with the earlier result, and the
        # attempts of a job that a person retries begin at one again
        key = f"job-{job_id}-{attempt}-{secrets.token_hex(4)}"
        future = self._client.submit(
            run, replace(task, threads=self._threads), key=key, pure=False, retries=0
        )
        self._running[job_id] = _Running(future, time.monotonic())

    def finished(self) -> list[Finished]:
        """The corrections that ended since the last call."""
        ended = []
        for job_id, running in list(self._running.items()):
            if running.future.done():
                del self._running[job_id]
                ended.append(_finished(job_id, running.future))
        return ended

    def overdue(self, timeout_s: float) -> list[int]:
        """The jobs whose correction has run longer than `timeout_s`."""
        now = time.monotonic()
        return [job_id for job_id, running in self._running.items() if now - running.since > timeout_s]

    def stop_job(self, job_id: int) -> None:
        """Give up a correction, and restart its worker: a computation cannot be interrupted otherwise."""
        running = self._running.pop(job_id, None)
        if running is None:
            return
        busy = [
            address
            for address, keys in self._client.processing().items()
            if any(str(key) == running.future.key for key in keys)
        ]
        running.future.cancel(force=True)
        if busy:
            self._client.restart_workers(busy, timeout=START_TIMEOUT_S, raise_for_error=False)

    def close(self) -> None:
        """Stop the local workers; those elsewhere only lose their client."""
        with contextlib.suppress(TimeoutError, OSError):
            self._client.close(timeout=5)
        if self._cluster is not None:
            with contextlib.suppress(TimeoutError, OSError):
                self._cluster.close(timeout=10)


def _finished(job_id: int, future: Future) -> Finished:
    """What became of it; never raises, so that one lost result hides no other."""
    try:
        return Finished(job_id, outcome=future.result(timeout=RESULT_TIMEOUT_S))
    except (KilledWorker, FutureCancelledError, TimeoutError, CommClosedError):
        return Finished(job_id, error="its process ended", lost=True)
    except SpoolError as error:
        return Finished(job_id, error=str(error))
    except Exception as error:
        # whatever a correction may raise; its message might quote a header
        return Finished(job_id, error=exception_words(error))

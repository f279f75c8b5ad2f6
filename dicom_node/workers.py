"""The compute workers: a local Dask cluster, or one elsewhere.

A worker is a process of its own: a correction that crashes or eats memory takes no listener with it.
Dask's own retries are off, because the ledger counts attempts and gives the reasons. What connects to a
Dask scheduler can run anything as its user: workers here talk TLS with a certificate that lives as long as
the node, workers elsewhere with certificates of the site (`correction.scheduler_tls`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Future, LocalCluster, Nanny, Security, Worker, WorkerPlugin
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from dicom_node.compute import CorrectionTask, Outcome, Refusal, run
from dicom_node.config_sections import LogSettings
from dicom_node.log import configure, exception_words, get_logger
from dicom_node.spool import SpoolError

START_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 30.0  # to a peer of Dask, each time
RECONNECT_S = 5.0  # between attempts to reach a scheduler
MISSING_S = 120.0  # a local worker that has not come back by then never will; a start takes far less
RESULT_TIMEOUT_S = 30.0  # to fetch the few hundred bytes of an outcome from its worker
LOST = "its process ended"
# What Dask raises when a peer is gone, at whichever layer it notices.
GONE = (OSError, TimeoutError, CommClosedError, FutureCancelledError, asyncio.CancelledError)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Finished:
    """A correction that ended: with an outcome, or an error for people. `lost`: its worker died under it."""

    job_id: int
    outcome: Outcome | Refusal | None = None
    error: str = ""
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A Dask scheduler elsewhere, and the PEM files by which it and we know each other (tls://)."""

    address: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def security(self) -> Security:
        """As Dask takes it: the same certificate in whichever role we are."""
        if self.ca is None:
            return Security()
        roles = {f"tls_{role}_{part}": str(path) for role in ("client", "worker", "scheduler")
                 for part, path in (("cert", self.certificate), ("key", self.key))}  # fmt: skip
        return Security(tls_ca_file=str(self.ca), require_encryption=True, **roles)


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
    """Hands tasks to the workers and tells what became of them; never blocks on a computation.

    A scheduler that is away is looked for again and again; until it is back there are no workers, and what
    was with it is lost, that is: goes back into the queue.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler | None,
        count: int,
        threads: int,
        scratch: Path,
        log: LogSettings,
        gpu: bool = False,
    ) -> None:
        """gpu: on workers elsewhere, run only where one is. Waits a while for the workers to be there."""
        _set_dask_up()
        self._scheduler = scheduler
        self._count = count
        self._threads = threads
        self._scratch = scratch
        self._log = log
        self._resources = {"GPU": 1} if gpu and scheduler else None
        self._cluster: LocalCluster | None = None
        self._client: Client | None = None
        self._running: dict[int, _Running] = {}
        self._lost: list[Finished] = []  # with workers that were started anew
        self._missing_since: float | None = None
        self._closed = threading.Event()
        self._connected = threading.Event()
        self._connecting = threading.Thread(target=self._connect, name="workers", daemon=True)
        self._connecting.start()
        self._connected.wait(START_TIMEOUT_S if scheduler is None else RECONNECT_S)

    # ---------------------------------------------------------------- the connection

    def _connect(self) -> None:
        """Until there is a client; a thread of its own, because a scheduler that is away takes its time."""
        while not self._closed.is_set():
            try:
                client = self._local() if self._scheduler is None else self._remote(self._scheduler)
            except Exception:  # whatever Dask raises while something is being killed around it
                log.exception("no connection to the compute workers yet", scheduler=self._elsewhere)
                self._closed.wait(RECONNECT_S)
                continue
            self._client = client
            self._connected.set()
            return

    @property
    def _elsewhere(self) -> str | None:
        """The address of a scheduler that is not our own, for the log."""
        return self._scheduler.address if self._scheduler else None

    def _local(self) -> Client:
        if self._cluster is not None:
            _quietly(self._cluster.close, timeout=5)
            self._cluster = None
        cluster = LocalCluster(
            n_workers=self._count,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tls://",
            security=Security.temporary(),
            dashboard_address=None,
            # its port for HTTP: on loopback, and any; the default is a fixed one, which may be taken
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            local_directory=str(self._scratch),
            silence_logs=40,
        )
        self._cluster = cluster
        return self._prepared(Client(cluster, set_as_default=False, timeout=START_TIMEOUT_S))

    def _remote(self, scheduler: Scheduler) -> Client:
        return self._prepared(
            Client(
                scheduler.address,
                security=scheduler.security(),
                timeout=START_TIMEOUT_S,
                set_as_default=False,
            )
        )

    def _prepared(self, client: Client) -> Client:
        try:
            client.register_plugin(_OwnLog(self._log))
        except BaseException:
            _quietly(client.close, timeout=5)
            raise
        return client

    def _live(self) -> Client | None:
        """The client while it is connected. One that has given up is replaced, in the background."""
        client = self._client
        if client is None or client.status == "running":
            return client
        if client.status in ("closing", "closed"):
            log.warning("the compute scheduler is gone", scheduler=self._elsewhere)
            self._connect_anew()
        return None

    def _connect_anew(self) -> None:
        self._client = None
        if not self._connecting.is_alive():
            self._connected.clear()
            self._connecting = threading.Thread(target=self._connect, name="workers", daemon=True)
            self._connecting.start()

    def _replace_missing(self, alive: int) -> None:
        """Start the local workers anew when one stays away, and no correction that runs would be lost by it.

        Dask starts a worker again that is killed, but not one that is killed while it is starting.
        """
        client = self._client
        if client is None or self._cluster is None or alive >= self._count:
            self._missing_since = None
            return
        now = time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        elif now - self._missing_since > MISSING_S and (not alive or not self._running):
            log.error("compute workers did not come back", workers=alive, count=self._count)
            self._missing_since = None
            self._lost += [Finished(job_id, error=LOST, lost=True) for job_id in self._running]
            self._running.clear()
            self._connect_anew()
            _quietly(client.close, timeout=5)

    # ---------------------------------------------------------------- what the loop asks

    def running(self) -> frozenset[int]:
        """The jobs that are with a worker now."""
        return frozenset(self._running)

    def alive(self) -> int:
        """How many workers answer."""
        client = self._live()
        if client is None:
            return 0
        try:
            return len(client.scheduler_info(n_workers=-1)["workers"])
        except GONE:
            return 0

    def free(self) -> int:
        """How many more tasks can start now. To be asked again and again: it keeps the workers complete."""
        alive = self.alive()
        self._replace_missing(alive)
        return max(0, alive - len(self._running))

    def submit(self, job_id: int, attempt: int, task: CorrectionTask) -> None:
        """Start a correction. One that cannot even be handed over is told by `finished` as lost."""
        client = self._live()
        if client is None:
            return  # its lease runs out
        # a key of its own: Dask answers a key that it still knows with the earlier result, and the
        # attempts of a job that a person retries begin at one again
        key = f"job-{job_id}-{attempt}-{secrets.token_hex(4)}"
        task = replace(task, threads=self._threads)
        future = client.submit(run, task, key=key, pure=False, retries=0, resources=self._resources)
        self._running[job_id] = _Running(future, time.monotonic())

    def finished(self) -> list[Finished]:
        """The corrections that ended since the last call."""
        live = self._live() is not None
        ended, self._lost = self._lost, []
        for job_id, running in list(self._running.items()):
            if running.future.done() or not live:
                del self._running[job_id]
                ended.append(_finished(job_id, running.future, RESULT_TIMEOUT_S if live else 0.0))
        return ended

    def overdue(self, timeout_s: float) -> list[int]:
        """The jobs whose correction has run longer than `timeout_s`."""
        now = time.monotonic()
        return [job_id for job_id, running in self._running.items() if now - running.since > timeout_s]

    def stop_job(self, job_id: int) -> None:
        """Give up a correction, and restart its worker: a computation cannot be interrupted otherwise."""
        running, client = self._running.pop(job_id, None), self._live()
        if running is None or client is None:
            return
        with contextlib.suppress(*GONE):
            busy = [
                address
                for address, keys in client.processing().items()
                if any(str(key) == running.future.key for key in keys)
            ]
            running.future.cancel(force=True)
            if busy:
                client.restart_workers(busy, timeout=START_TIMEOUT_S, raise_for_error=False)

    def close(self) -> None:
        """Stop the local workers; those elsewhere only lose their client."""
        self._closed.set()
        if self._client is not None:
            _quietly(self._client.close, timeout=5)
        if self._cluster is not None:
            _quietly(self._cluster.close, timeout=10)


def _set_dask_up() -> None:
    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": 0,
            "distributed.worker.daemon": False,
            "distributed.comm.timeouts.connect": f"{CONNECT_TIMEOUT_S:g}s",
            # one correction is memory-bound by design; Dask's spilling would only slow it down
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": False,
            # Dask's 64 KiB makes glibc give every tensor back to the system and fault it in again: 19 s of
            # system time in a correction of 14 s
            "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
        }
    )


def _quietly(close: Callable[..., Any], *, timeout: float) -> None:
    with contextlib.suppress(*GONE):
        close(timeout=timeout)


def _finished(job_id: int, future: Future, timeout_s: float) -> Finished:
    """What became of it; never raises, so that one lost result hides no other."""
    try:
        return Finished(job_id, outcome=future.result(timeout=timeout_s))
    except (KilledWorker, *GONE):
        return Finished(job_id, error=LOST, lost=True)
    except SpoolError as error:
        return Finished(job_id, error=str(error))
    except Exception as error:
        # whatever a correction may raise; its message might quote a header
        return Finished(job_id, error=exception_words(error))


# -------------------------------------------------------------------- a worker elsewhere


def serve_worker(scheduler: Scheduler, *, scratch: Path, gpu: bool, stop: threading.Event) -> None:
    """Compute for a node elsewhere until `stop`; a scheduler that is away is looked for again and again."""
    _set_dask_up()
    asyncio.run(_serve(scheduler, scratch, gpu, stop))


async def _serve(scheduler: Scheduler, scratch: Path, gpu: bool, stop: threading.Event) -> None:
    bound = log.bind(scheduler=scheduler.address, device="cuda" if gpu else "cpu")
    while not stop.is_set():
        nanny = Nanny(
            scheduler.address,
            nthreads=1,
            resources={"GPU" if gpu else "CPU": 1},
            security=scheduler.security(),
            local_directory=str(scratch),
            death_timeout=START_TIMEOUT_S,
            silence_logs=40,
        )
        try:
            await nanny
            bound.info("worker connected")
            while not stop.is_set() and nanny.status.name == "running" and nanny.process is not None:
                await asyncio.sleep(0.5)
        except (RuntimeError, *GONE):  # RuntimeError: Dask's "Nanny failed to start", for any reason
            bound.warning("the compute scheduler cannot be reached")
        finally:
            with contextlib.suppress(RuntimeError, *GONE):
                await nanny.close(timeout=5)
        if not stop.is_set():
            await asyncio.sleep(RECONNECT_S)

"""The daemon: builds the parts, starts and stops them, and keeps them alive.

The listener is a process of its own and so is each compute worker; here run the reconcile loop, one
delivery thread for each destination, and the web server. systemd hears READY, a watchdog beat with every
tick of the loop, and STOPPING.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sqlite3
import threading
import time
from functools import partial
from multiprocessing.context import SpawnProcess
from typing import Any

import uvicorn

from dicom_node import preconditions
from dicom_node.config import Settings
from dicom_node.config_parts import derive_policy, pairing_policy, peers, recipe
from dicom_node.config_sections import ServerTls
from dicom_node.delivery import DeliveryLoop
from dicom_node.health import Parts, health_document
from dicom_node.ledger import Ledger, path_below
from dicom_node.listener import Caller, ListenerReport, ListenerSettings, run_listener
from dicom_node.log import configure, get_logger
from dicom_node.preconditions import NodeError
from dicom_node.rebuild import agree
from dicom_node.reconcile import ReconcilePolicy, Reconciler
from dicom_node.retention import EVERY_S as RETENTION_EVERY_S
from dicom_node.retention import RetentionPolicy, finish_deletions, retain
from dicom_node.sockets import TlsSettings
from dicom_node.spool import SpoolError
from dicom_node.systemd import notify
from dicom_node.web.app import create_app
from dicom_node.workers import Scheduler, Workers

TICK_S = 0.5
LISTENER_START_S = 90.0  # on a machine that is very busy; usually two or three
LISTENER_STOP_S = 10.0
LISTENER_RESTART_S = 5.0
WEB_STOP_S = 5.0
WEB_CONNECTIONS = 64  # at once; one more is answered 503
WEB_KEEP_ALIVE_S = 5
RETENTION_FIRST_S = 60.0  # after the start, when there is more urgent work
REBUILD_STEP_S = 120.0  # systemd waits this much longer for READY after each step of a rebuild

log = get_logger(__name__)


def _server_tls(tls: ServerTls | None) -> TlsSettings | None:
    if tls is None:
        return None
    return TlsSettings(tls.certificate, tls.key, tls.ca, tls.require_client_certificate)


def listener_settings(settings: Settings) -> ListenerSettings:
    """The node section as the listener takes it."""
    return ListenerSettings(
        ae_title=settings.node.ae_title,
        root=settings.storage.root,
        ledger_path=path_below(settings.storage.root),
        bind=settings.node.bind,
        port=settings.node.port,
        max_associations=settings.node.max_associations,
        max_pdu=settings.node.max_pdu,
        accept_from=tuple(
            Caller(caller.ae_title or "", str(caller.address or "")) for caller in settings.node.accept_from
        ),
        min_free_bytes=settings.storage.min_free_bytes,
        tls=_server_tls(settings.node.tls),
        takes_commitments=any(settings.destinations[name].storage_commitment for name in settings.deliver_to),
    )


def compute_scheduler(settings: Settings) -> Scheduler | None:
    """Where the compute workers are; None when they are here."""
    correction = settings.correction
    if not correction.scheduler:
        return None
    tls = correction.scheduler_tls
    if tls is None:
        return Scheduler(correction.scheduler)
    return Scheduler(correction.scheduler, tls.ca, tls.certificate, tls.key)


class Node:
    """A running node. `start`, then `run` until its event is set, then `stop`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._started = False
        self._spool = preconditions.storage(settings.storage.root, settings.storage.min_free_bytes)
        self._lock = preconditions.lock(settings.storage.root)
        self._ledger = preconditions.ledger(path_below(settings.storage.root), self._spool)
        self._listener: SpawnProcess | None = None
        self._listener_lost_at = 0.0
        self._workers: Workers | None = None
        self._reconciler: Reconciler | None = None
        self._deliveries: list[DeliveryLoop] = []
        self._threads: list[threading.Thread] = []
        self._web: uvicorn.Server | None = None

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Start every part; raises NodeError and leaves nothing running when one cannot."""
        try:
            self._start_listener()
            self._start_web()
            # the listener runs: whatever the past has left to do, scanners do not wait for it
            finish_deletions(self._ledger, self._spool)
            agree(self._ledger, self._spool, _still_starting)
            self._spool.sweep_work()
            self._start_workers()
            self._start_deliveries()
            self._start_retention()
        except BaseException:
            self.stop()
            raise
        self._started = True
        notify("READY=1")
        node = self._settings.node
        log.info("node started", ae_title=node.ae_title, address=node.bind, port=node.port)

    def run(self, stop: threading.Event) -> None:
        """Reconcile until `stop` is set."""
        if self._reconciler is None:
            raise RuntimeError("run() before start()")
        while not stop.is_set():
            try:
                self._keep_listener()
                self._reconciler.tick()
            except Exception:  # the outermost loop: the next tick looks at everything again
                log.exception("reconcile tick failed")
            notify("WATCHDOG=1")
            stop.wait(TICK_S)

    def stop(self) -> None:
        """Stop every part; what was not finished goes on at the next start."""
        notify("STOPPING=1")
        self._stop.set()
        if self._listener is not None:
            self._listener.terminate()
            self._listener.join(LISTENER_STOP_S)
            if self._listener.is_alive():
                self._listener.kill()
        if self._web is not None:
            self._web.should_exit = True
        for thread in self._threads:
            thread.join(WEB_STOP_S)
        if self._workers is not None:
            self._workers.close()
        self._ledger.close()
        self._lock.close()
        log.info("node stopped")

    # ---------------------------------------------------------------- parts

    def _start_listener(self) -> None:
        listener = listener_settings(self._settings)
        preconditions.check_port("The node", "node", listener.bind, listener.port)
        context = multiprocessing.get_context("spawn")
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(
            target=run_listener,
            args=(listener, sending, partial(configure, self._settings.log)),
            name="dicom-node-listener",
        )
        process.start()
        sending.close()
        self._listener = process
        report = ListenerReport(None, "its process did not start")
        with contextlib.suppress(EOFError):
            if receiving.poll(LISTENER_START_S):
                report = receiving.recv()
        receiving.close()
        if report.port is None:
            raise NodeError(f"The node cannot receive: {report.problem}.")

    def _keep_listener(self) -> None:
        """A listener that died is started again; scanners retry meanwhile."""
        if self._listener is not None and self._listener.is_alive():
            return
        now = time.monotonic()
        if now - self._listener_lost_at < LISTENER_RESTART_S:
            return
        self._listener_lost_at = now
        log.error("listener lost", exit_code=self._listener.exitcode if self._listener else None)
        try:
            self._start_listener()
        except NodeError:
            log.exception("listener did not start")

    def _start_web(self) -> None:
        web = self._settings.web
        token = preconditions.token(web.token_file) if web.token_file else None
        app = create_app(
            self._ledger,
            self._spool,
            self.health,
            destinations=self._settings.deliver_to,
            token=token,
            title=self._settings.node.ae_title,
        )
        preconditions.check_port("The status page", "web", web.bind, web.port)
        self._web = uvicorn.Server(
            uvicorn.Config(
                app,
                host=web.bind,
                port=web.port,
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=WEB_CONNECTIONS,
                timeout_keep_alive=WEB_KEEP_ALIVE_S,
                proxy_headers=False,  # an event tells the address of the connection, not of a header
                ssl_certfile=web.tls.certificate if web.tls else None,
                ssl_keyfile=web.tls.key if web.tls else None,
            )
        )
        self._run_thread("web", self._web.run)

    def _start_workers(self) -> None:
        settings = self._settings
        correction = settings.correction
        self._workers = Workers(
            scheduler=compute_scheduler(settings),
            gpu=correction.device.startswith("cuda"),
            count=correction.workers,
            threads=correction.threads or max(1, (os.cpu_count() or 1) // correction.workers),
            scratch=settings.storage.root / "work",
            log=settings.log,
        )
        policy = ReconcilePolicy(
            series_quiet_s=settings.assembly.series_quiet_s,
            study_wait_s=settings.assembly.study_wait_s,
            pairing=pairing_policy(settings),
            recipe=recipe(settings),
            derive=derive_policy(settings),
            on_reject=correction.on_poor_quality,
            on_review=correction.on_review,
            deliver_to=settings.deliver_to,
            attempts=correction.attempts,
            timeout_s=correction.timeout_s,
        )
        self._reconciler = Reconciler(
            self._ledger, self._spool, self._workers, policy, alive=partial(notify, "WATCHDOG=1")
        )
        self._reconciler.recover()

    def _start_deliveries(self) -> None:
        known = peers(self._settings)
        for lost in self._ledger.fail_deliveries_except(self._settings.deliver_to):
            log.warning(
                "delivery to a destination that is gone", job=lost.job_id, destination=lost.destination
            )
        for name in self._settings.deliver_to:
            destination = self._settings.destinations[name]
            loop = DeliveryLoop(
                name,
                known[name],
                Ledger(path_below(self._settings.storage.root)),
                self._spool,
                give_up_days=self._settings.delivery.give_up_days,
                commitment_timeout_s=(
                    destination.commitment_timeout_s if destination.storage_commitment else None
                ),
            )
            self._deliveries.append(loop)
            self._run_thread(f"delivery-{name}", partial(loop.run, self._stop))

    def _start_retention(self) -> None:
        storage = self._settings.storage
        policy = RetentionPolicy(storage.keep_days, storage.keep_unsent_days)
        ledger = Ledger(path_below(storage.root))

        def look() -> None:
            pause_s = RETENTION_FIRST_S
            while not self._stop.wait(pause_s):
                pause_s = RETENTION_EVERY_S
                try:
                    retain(ledger, self._spool, policy)
                except Exception:  # the outermost loop: the next look sees everything again
                    log.exception("retention failed")
            ledger.close()

        self._run_thread("retention", look)

    def _run_thread(self, name: str, target: Any) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    # ---------------------------------------------------------------- health

    def health(self) -> dict[str, Any]:
        """What /health says; asks each part now."""
        try:
            self._ledger.count_jobs()
            ledger = True
        except sqlite3.Error:
            ledger = False
        try:
            room = self._spool.has_room()
        except SpoolError:
            room = False
        try:
            workers = self._workers.alive() if self._workers is not None else 0
        except (OSError, TimeoutError):  # the scheduler is elsewhere, or has just gone
            workers = 0
        return health_document(
            Parts(
                started=self._started,
                listener=self._listener is not None and self._listener.is_alive(),
                ledger=ledger,
                room=room,
                workers=workers,
                destinations={loop.name: loop.problem for loop in self._deliveries},
            )
        )


def _still_starting(done: int, of: int) -> None:
    """Tell systemd that a rebuild goes on: it may take longer than a start usually does."""
    notify(f"EXTEND_TIMEOUT_USEC={int(REBUILD_STEP_S * 1e6)}\nSTATUS=Counting in images: {done} of {of}")

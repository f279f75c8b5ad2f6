"""The storage and verification SCP: instances from the network into the spool and the ledger.

Who may associate, and the life of each association. What becomes of an instance is in `arrivals`, how it
comes off the connection in `store_scp`. PS3.4 Annex B, PS3.8 §7.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from multiprocessing import connection as pipes
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from pydicom import config as pydicom_config
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from dicom_node.arrivals import Arrival, Arrivals, Visit
from dicom_node.commitment import NOT_AUTHORISED, Answer, receive_report
from dicom_node.ledger import Ledger
from dicom_node.log import get_logger
from dicom_node.received import UNCOMPRESSED, supported_storage_classes, supported_transfer_syntaxes
from dicom_node.sockets import (
    GuardedServer,
    SharedContexts,
    TlsSettings,
    close_for_both,
    server_context,
    tune,
    wake_when_closed,
)
from dicom_node.spool import Spool, SpoolError
from dicom_node.store_scp import StoreRequest, StoringDul
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_log = get_logger(__name__)

STOP_S = 2.0  # for aborts to go out when the listener stops
TICK_S = 0.2  # how soon the listener notices that it shall stop, or that an association was lost


# -------------------------------------------------------------------- settings


@dataclass(frozen=True, slots=True)
class Caller:
    """Who may send: an AE title, and the address or network (CIDR) it calls from; empty means any."""

    ae_title: str
    address: str = ""

    def admits(self, ae_title: str, address: str) -> bool:
        """Whether this entry allows that caller."""
        if self.ae_title and self.ae_title.strip() != ae_title.strip():
            return False
        if not self.address:
            return True
        own = ipaddress.ip_address(address)
        mapped = getattr(own, "ipv4_mapped", None)  # ::ffff:192.0.2.1 on a dual-stack socket
        return bool((mapped or own) in ipaddress.ip_network(self.address, strict=False))


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """Everything a listener needs; small and picklable, because the listener is its own process."""

    ae_title: str
    root: Path
    ledger_path: Path
    bind: str = "0.0.0.0"
    port: int = 11112
    max_associations: int = 50
    max_pdu: int = 131072
    accept_from: tuple[Caller, ...] = ()
    min_free_bytes: int = 20 * 1024**3
    tls: TlsSettings | None = None
    acse_timeout_s: float = 30.0
    dimse_timeout_s: float = 120.0
    network_timeout_s: float = 600.0  # consoles keep an association open between reconstructions
    stall_timeout_s: float = 60.0
    max_instance_bytes: int = 2 * 1024**3
    takes_commitments: bool = False  # whether archives may call to promise that they keep what we sent


# -------------------------------------------------------------------- the listener


class Refusal(Enum):
    """Why an association is rejected: (result, source, reason) of A-ASSOCIATE-RJ, PS3.8 table 9-21."""

    CALLED_AE = (0x01, 0x01, 0x07)
    CALLING_AE = (0x01, 0x01, 0x03)
    TOO_MANY = (0x02, 0x03, 0x02)
    NO_REASON = (0x02, 0x02, 0x01)


class Listener:
    """The SCP. `start` returns when it listens; `stop` aborts what is open and returns when it is gone."""

    def __init__(
        self,
        settings: ListenerSettings,
        spool: Spool,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ValueError for settings that cannot work."""
        for caller in settings.accept_from:
            if caller.address:
                ipaddress.ip_network(caller.address, strict=False)
        self._settings = settings
        self._spool = spool
        self._ledger = ledger
        self._arrivals = Arrivals(spool, ledger, settings.max_instance_bytes, clock)
        self._visits: dict[Any, Visit] = {}
        self._visits_lock = threading.Lock()
        self._server: GuardedServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on: the one of the settings, or the one chosen when that was 0."""
        if self._server is None:
            raise RuntimeError("the listener is not started")
        return int(self._server.server_address[1])

    @property
    def running(self) -> bool:
        """Whether it accepts connections."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Bind and listen; raises OSError when the address is taken, ValueError for bad TLS settings."""
        settings = self._settings
        tls = server_context(settings.tls) if settings.tls else None
        self._spool.sweep_incoming()
        self._ledger.close_orphaned_associations()
        entity = self._application_entity()
        server = entity.make_server(
            (settings.bind, settings.port),
            evt_handlers=[
                (evt.EVT_CONN_OPEN, tune, [settings.acse_timeout_s]),
                (evt.EVT_CONN_OPEN, self._take_over),
                (evt.EVT_CONN_CLOSE, wake_when_closed),
                (evt.EVT_REQUESTED, self._admit),
                (evt.EVT_RELEASED, self._on_end, [False]),
                (evt.EVT_ABORTED, self._on_end, [True]),
                (evt.EVT_N_EVENT_REPORT, self._on_commitment),
                (evt.EVT_N_ACTION, _refuse_to_commit),
            ],
            server_class=GuardedServer,
        )
        entity._servers.append(server)  # as AE.start_server does; shutdown() removes it again
        server.contexts = SharedContexts(server.contexts)
        server.tls = tls
        server.first_bytes_timeout_s = settings.acse_timeout_s
        server.each_tick = self._bury_lost_associations
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, args=(TICK_S,), name="listener", daemon=True
        )
        self._thread.start()
        _log.info("listening", ae_title=settings.ae_title, port=self.port, tls=tls is not None)

    def stop(self) -> None:
        """Stop accepting, abort the open associations (their peers will send again), close the port."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        server.shutdown()
        thread.join()
        aborting = [
            (threading.Thread(target=association.abort, daemon=True), association)
            for association in server.active_associations
        ]
        for abort, _ in aborting:
            abort.start()
        deadline = time.monotonic() + STOP_S
        for abort, association in aborting:
            abort.join(max(0.0, deadline - time.monotonic()))
            if abort.is_alive():  # its peer is stalled in the middle of a PDU
                close_for_both(association.dul.socket.socket)
        self._bury_lost_associations(lost_only=False)
        self._server = self._thread = None

    def _application_entity(self) -> AE:
        settings = self._settings
        entity = AE(ae_title=settings.ae_title)
        entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_pdu_size = settings.max_pdu
        entity.acse_timeout = settings.acse_timeout_s
        entity.dimse_timeout = settings.dimse_timeout_s
        entity.network_timeout = settings.network_timeout_s
        # _admit counts: pynetdicom would count connections that never became an association
        entity.maximum_associations = 1_000_000
        syntaxes = list(supported_transfer_syntaxes())
        for uid in supported_storage_classes():
            entity.add_supported_context(uid, syntaxes)
        entity.add_supported_context(Verification, list(UNCOMPRESSED[:2]))
        if settings.takes_commitments:  # with or without role selection by the archive
            entity.add_supported_context(
                StorageCommitmentPushModel, list(UNCOMPRESSED[:2]), scu_role=True, scp_role=True
            )
        return entity

    # ---------------------------------------------------------------- associations

    def _admit(self, event: Event) -> None:
        """Reject whoever may not associate (PS3.8 table 9-21), whatever goes wrong here included."""
        association, server = event.assoc, self._server
        connection = association.dul.socket.socket
        if server is not None and connection is not None:
            server.admitted(connection)
            connection.settimeout(self._settings.stall_timeout_s)
        try:
            request = association.requestor.primitive
            calling, called = request.calling_ae_title.strip(), request.called_ae_title.strip()
            address = association.requestor.address_info.address
            refusal = self._refusal(association, calling, called, address)
        except Exception:
            _log.exception("association could not be judged")
            _reject(association, Refusal.NO_REASON.value)
            return
        if refusal is None:
            with self._visits_lock:
                self._visits[association] = Visit(calling, address)
            return
        _log.warning(
            "association rejected", reason=refusal.name, calling_ae=calling, called_ae=called, address=address
        )
        _reject(association, refusal.value)

    def _refusal(self, association: Any, calling: str, called: str, address: str) -> Refusal | None:
        settings = self._settings
        if called != settings.ae_title.strip():
            return Refusal.CALLED_AE
        proposed = association.requestor.primitive.presentation_context_definition_list
        if not proposed or any(not one.abstract_syntax or not one.transfer_syntax for one in proposed):
            return Refusal.NO_REASON  # pynetdicom's thread would die of it
        if settings.accept_from and not any(c.admits(calling, address) for c in settings.accept_from):
            return Refusal.CALLING_AE
        with self._visits_lock:
            return Refusal.TOO_MANY if len(self._visits) >= settings.max_associations else None

    def _on_end(self, event: Event, aborted: bool) -> None:
        self._end(event.assoc, aborted)

    def _end(self, association: Any, aborted: bool) -> None:
        association.dul.drop()
        with self._visits_lock:
            visit = self._visits.pop(association, None)
        if visit is None:
            return
        if visit.recorded:
            try:
                self._ledger.association_closed(visit.id, aborted)
            except sqlite3.Error:
                _log.exception("association end not recorded", association=visit.id)
        if visit.answers:
            _log.info(
                "association ended",
                calling_ae=visit.calling_ae,
                address=visit.address,
                aborted=aborted,
                answers=" ".join(f"{answer}={count}" for answer, count in sorted(visit.answers.items())),
            )

    def _bury_lost_associations(self, lost_only: bool = True) -> None:
        """End the visits whose threads died without an event: connection lost, timeout, rejection."""
        with self._visits_lock:
            ended = [a for a in self._visits if not lost_only or (a.ident is not None and not a.is_alive())]
        for association in ended:
            self._end(association, aborted=True)
            # a thread that died of a hostile request leaves the other one and the connection behind
            association.dul.kill_dul()
            close_for_both(getattr(association.dul.socket, "socket", None))

    # ---------------------------------------------------------------- storage commitment

    def _on_commitment(self, event: Event) -> tuple[int, None]:
        """An archive says what it keeps of what we sent it (N-EVENT-REPORT)."""
        status = receive_report(event.request, UID(event.context.transfer_syntax), self._record_answer)
        _log.info("commitment received", status=f"0x{status:04X}")
        return status, None

    def _record_answer(self, answer: Answer) -> bool:
        committed = None if answer.whole else answer.committed
        return self._ledger.record_answer(answer.transaction_uid, committed, answer.failed)

    # ---------------------------------------------------------------- C-STORE

    def _take_over(self, event: Event) -> None:
        """Before a connection's threads start: let C-STORE be served by `store_scp`."""
        association = event.assoc
        settings = self._settings
        association.dul.__class__ = StoringDul
        association.dul.serve_store(
            partial(self._begin, association), settings.max_instance_bytes, settings.stall_timeout_s
        )

    def _begin(self, association: Any, request: StoreRequest) -> Arrival:
        with self._visits_lock:
            visit = self._visits.get(association)
        return self._arrivals.begin(visit or Visit("", ""), request)


def _refuse_to_commit(_event: Event) -> tuple[int, None]:
    """Who gets a promise that we keep their images may delete theirs, and this node is no archive."""
    return NOT_AUTHORISED, None


def _reject(association: Any, code: tuple[int, int, int]) -> None:
    """Send A-ASSOCIATE-RJ and wait until it is out: pynetdicom closes the socket when the handler returns."""
    association.acse.send_reject(*code)
    association.kill()


# -------------------------------------------------------------------- the process


@dataclass(frozen=True, slots=True)
class ListenerReport:
    """What the listener process tells its parent once: the port it listens on, or why it does not."""

    port: int | None
    problem: str = ""


def run_listener(
    settings: ListenerSettings,
    report: pipes.Connection | None = None,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Main of the listener's own process: listens until SIGTERM, or until its parent is gone.

    `prepare` is called first (logging is set up per process). Sends one ListenerReport through `report`.
    Exits with status 1 when it cannot listen or its accept loop ends by itself.
    """
    if prepare is not None:
        prepare()
    warnings.simplefilter("ignore")  # pydicom's warnings quote values of elements
    # and what it would warn of takes a quarter of the time that an association costs
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    wake_read, wake_write = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake_write, b"."))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent decides
    try:
        spool = Spool(settings.root, settings.min_free_bytes)
        ledger = Ledger(settings.ledger_path)
        listener = Listener(settings, spool, ledger)
        listener.start()
    except (OSError, ValueError, SpoolError, sqlite3.Error) as error:
        problem = f"cannot listen on {settings.bind}:{settings.port}: {error}"
        if report is not None:
            report.send(ListenerReport(None, problem))
        _log.exception("listener failed")
        raise SystemExit(1) from None
    if report is not None:
        report.send(ListenerReport(listener.port))
    parent = parent_process()
    wait_for = [wake_read] if parent is None else [wake_read, parent.sentinel]
    while listener.running and not pipes.wait(wait_for, timeout=1.0):
        pass
    lost = not listener.running
    listener.stop()
    ledger.close()
    if lost:
        raise SystemExit(1)

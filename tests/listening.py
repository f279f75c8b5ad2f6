"""A listener on loopback for tests, and an SCU that sends whatever bytes it is told to."""

from __future__ import annotations

import multiprocessing
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from instances import encoded, mr_dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, build_context, evt
from pynetdicom.dimse_primitives import C_STORE

from dicom_node.association import Peer, Timeouts
from dicom_node.ledger import Ledger
from dicom_node.listener import Listener, ListenerReport, ListenerSettings, run_listener
from dicom_node.spool import Spool, create_file

UID = "1.2.826.0.1.3680043.10.77"


class Node:
    """A listener on loopback with its spool and ledger."""

    def __init__(self, settings: ListenerSettings, opener: Callable[[Path], BinaryIO]) -> None:
        self.settings = settings
        self.spool = Spool(settings.root, settings.min_free_bytes, opener=opener)
        self.ledger = Ledger(settings.ledger_path)
        self.listener = Listener(settings, self.spool, self.ledger)
        self.listener.start()
        self.port = self.listener.port

    def peer(self, **changes: Any) -> Peer:
        peer = Peer("NODE", "127.0.0.1", self.port, "SCANNER1", Timeouts(5, 5, 5, 5))
        return replace(peer, **changes)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.settings.ledger_path) as database:
            return database.execute(sql).fetchall()

    def quarantined(self) -> int:
        return len(list((self.settings.root / "quarantine").glob("*.bin")))


def starting(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """For a fixture: a function that starts listeners, each on its own root; all are stopped at the end."""
    nodes: list[Node] = []

    def start(opener: Callable[[Path], BinaryIO] = create_file, **changes: Any) -> Node:
        root = changes.pop("root", tmp_path / f"root{len(nodes)}")
        settings = ListenerSettings(
            "NODE", root, root / "ledger.sqlite", bind="127.0.0.1", port=0, min_free_bytes=0
        )
        nodes.append(Node(replace(settings, **changes), opener))
        return nodes[-1]

    yield start
    for node in nodes:
        node.listener.stop()
        node.ledger.close()


class Scu:
    """An SCU that sends whatever bytes it is told to."""

    def __init__(
        self, port: int, *, sop_class: str = MRImageStorage, syntaxes: list[str] | None = None
    ) -> None:
        entity = AE(ae_title="SCANNER1")
        entity.acse_timeout = entity.dimse_timeout = 5
        self.association = entity.associate(
            "127.0.0.1",
            port,
            [build_context(sop_class, syntaxes or ExplicitVRLittleEndian)],
            ae_title="NODE",
            evt_handlers=[(evt.EVT_ESTABLISHED, lambda event: event.assoc._reactor_checkpoint.clear())],
        )

    def __enter__(self) -> Scu:
        return self

    def __exit__(self, *_: object) -> None:
        if self.association.is_established:
            self.association.release()

    def send(
        self, data: bytes, sop_uid: str | None = UID, sop_class: str = MRImageStorage
    ) -> tuple[int, str]:
        """(status, ErrorComment) of one C-STORE."""
        request = C_STORE()
        request.MessageID = 1
        request.AffectedSOPClassUID = sop_class
        if sop_uid is not None:
            request._affected_sop_instance_uid = sop_uid  # past pynetdicom's own check
        request.DataSet = BytesIO(data) if data else None
        context = self.association.accepted_contexts[0]
        self.association.dimse.send_msg(request, context.context_id)
        _, response = self.association.dimse.get_msg(block=True)
        assert response is not None, "no answer"
        return response.Status, response.ErrorComment or ""


def store_request(uid: str, message_id: int = 1) -> C_STORE:
    request = C_STORE()
    request.MessageID = message_id
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = MRImageStorage, uid
    request.DataSet = BytesIO(encoded(mr_dataset(sop_uid=uid)))
    return request


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def listener_process(settings: ListenerSettings) -> tuple[Any, ListenerReport]:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=run_listener, args=(settings, sending))
    process.start()
    assert receiving.poll(30)
    return process, receiving.recv()

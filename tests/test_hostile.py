"""Unlucky and hostile scanners against the real listener: nothing is lost, nobody else is disturbed."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from instances import encoded, mr_dataset, write_series
from listening import UID, Node, Scu, listener_process, starting, wait_until
from pydicom.uid import MRImageStorage

from dicom_node import sockets
from dicom_node.association import Peer
from dicom_node.dimse import (
    AFFECTED_SOP_CLASS_UID,
    AFFECTED_SOP_INSTANCE_UID,
    C_STORE_RQ,
    COMMAND,
    COMMAND_DATA_SET_TYPE,
    COMMAND_FIELD,
    DATA_SET,
    MESSAGE_ID,
    NO_DATA_SET,
    command_set,
    pdus,
    uid_value,
    us_value,
)
from dicom_node.listener import ListenerSettings
from dicom_node.scu import echo, store

ABORT = bytes.fromhex("07000000000400000000")  # A-ABORT by the service user, PS3.8 §9.3.8
MAX_PDU = 4096


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    yield from starting(tmp_path)


def command(uid: str = UID, data_set: int = DATA_SET) -> bytes:
    return command_set(
        {
            AFFECTED_SOP_CLASS_UID: uid_value(MRImageStorage),
            COMMAND_FIELD: us_value(C_STORE_RQ),
            MESSAGE_ID: us_value(1),
            COMMAND_DATA_SET_TYPE: us_value(data_set),
            AFFECTED_SOP_INSTANCE_UID: uid_value(uid),
        }
    )


def instance_pdus(uid: str = UID, size: int = 128) -> list[bytes]:
    """A C-STORE request with its data set, cut into small PDUs."""
    data = encoded(mr_dataset(sop_uid=uid, size=size))
    return [*pdus(1, COMMAND, command(uid), MAX_PDU), *pdus(1, 0, data, MAX_PDU)]


def raw_of(scu: Scu) -> socket.socket:
    """The connection itself, for bytes that no proper SCU sends."""
    raw: socket.socket = scu.association.dul.socket.socket
    return raw


def nothing_is_left_of_it(node: Node) -> bool:
    return not node.listener._visits and not list((node.settings.root / "incoming").iterdir())


# -------------------------------------------------------------------- scanners out of luck


@pytest.mark.parametrize("pdus_sent", [1, 2, 5])
def test_a_scanner_that_aborts_mid_instance_leaves_nothing_behind(
    start: Callable[..., Node], pdus_sent: int
) -> None:
    node = start(max_associations=1)
    scu = Scu(node.port)
    assert scu.send(encoded(mr_dataset(sop_uid=UID)))[0] == 0x0000
    raw_of(scu).sendall(b"".join(instance_pdus(UID + ".2")[:pdus_sent]) + ABORT)
    wait_until(lambda: nothing_is_left_of_it(node))
    wait_until(lambda: node.rows("SELECT aborted FROM associations") == [(1,)])
    assert node.rows("SELECT sop_uid FROM instances") == [(UID,)]
    assert echo(node.peer()).answered


@pytest.mark.parametrize("stop_at", [3, 6, 100, -1])
def test_a_scanner_that_stops_sending_is_given_up_wherever_it_stopped(
    start: Callable[..., Node], stop_at: int
) -> None:
    """In a PDU's header, after it, in its body, and between two PDUs of one instance."""
    node = start(stall_timeout_s=0.4, max_associations=1)
    scu = Scu(node.port)
    whole = instance_pdus()
    raw_of(scu).sendall(b"".join(whole[:3]) + (whole[3][:stop_at] if stop_at > 0 else b""))
    wait_until(lambda: nothing_is_left_of_it(node))
    assert echo(node.peer()).answered
    assert node.rows("SELECT COUNT(*) FROM instances") == [(0,)]
    scu.association.kill()


def test_a_burst_of_associations_beyond_the_limit_loses_nothing(
    start: Callable[..., Node], tmp_path: Path
) -> None:
    node = start(max_associations=3)
    series = [write_series(tmp_path / str(number), 4) for number in range(12)]

    def send(files: list[Path]) -> int:
        for attempt in range(1, 60):  # as consoles do: rejected for the moment, so again
            if store(node.peer(), files).complete:
                return attempt
            time.sleep(0.1)
        return 0

    with ThreadPoolExecutor(12) as pool:
        attempts = list(pool.map(send, series))
    assert all(attempts)
    assert max(attempts) > 1
    assert node.rows("SELECT COUNT(*), MAX(revision) FROM instances") == [(48, 1)]


def test_one_study_on_four_associations_at_once_is_stored_once(
    start: Callable[..., Node], tmp_path: Path
) -> None:
    node = start()
    files = write_series(tmp_path / "series", 25, size=64)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: store(node.peer(), files), range(4)))
    assert all(result.complete for result in results)
    assert node.rows("SELECT COUNT(*), MAX(revision), SUM(repeats) FROM instances") == [(25, 1, 75)]
    assert len(list((node.settings.root / "instances").rglob("*.dcm"))) == 25


def test_three_studies_interleaved_on_one_association_are_told_apart(start: Callable[..., Node]) -> None:
    node = start()
    with Scu(node.port) as scu:
        for number in range(1, 11):
            for study in ("7", "8", "9"):
                dataset = mr_dataset(
                    sop_uid=f"{UID}.{study}.{number}",
                    study_uid=f"{UID}.{study}",
                    series_uid=f"{UID}.{study}.1",
                    number=number,
                )
                assert scu.send(encoded(dataset), f"{UID}.{study}.{number}")[0] == 0x0000
    assert node.rows("SELECT study_uid, COUNT(*) FROM instances GROUP BY study_uid ORDER BY 1") == [
        (f"{UID}.{study}", 10) for study in ("7", "8", "9")
    ]


# -------------------------------------------------------------------- peers that break the protocol


HUGE = 0x7FFFFFFF
BROKEN: dict[str, bytes] = {
    "a data set without a command": b"".join(pdus(1, 0, b"data", MAX_PDU)),
    "a command within a data set": b"".join([*instance_pdus()[:2], *pdus(1, COMMAND, command(), MAX_PDU)]),
    "a context that was not accepted": b"".join(pdus(99, COMMAND, command(), MAX_PDU)),
    "a data set under another context": b"".join(
        [*pdus(1, COMMAND, command(), MAX_PDU), *pdus(3, 0, b"data", MAX_PDU)]
    ),
    "a command that is noise": b"".join(pdus(1, COMMAND, bytes(range(256)), MAX_PDU)),
    "a command that is cut short": b"".join(pdus(1, COMMAND, command()[:-3], MAX_PDU)),
    "a command of another group": b"".join(pdus(1, COMMAND, struct.pack("<HHL", 8, 0x18, 0), MAX_PDU)),
    "an element longer than its command": b"".join(
        pdus(1, COMMAND, struct.pack("<HHL", 0, COMMAND_FIELD, HUGE), MAX_PDU)
    ),
    "a command without a message number": b"".join(
        pdus(1, COMMAND, command_set({COMMAND_FIELD: us_value(C_STORE_RQ)}), MAX_PDU)
    ),
    "a command that never ends": b"".join(
        struct.pack(">BBLLBB", 4, 0, 4006, 4002, 1, COMMAND) + bytes(4000) for _ in range(20)
    ),
    "an item longer than its PDU": struct.pack(">BBLLBB", 4, 0, 6, HUGE, 1, COMMAND),
    "an item too short for its header": struct.pack(">BBLLBB", 4, 0, 6, 1, 1, COMMAND),
    "a PDU longer than any PDU": struct.pack(">BBL", 4, 0, 0xFFFFFFFF),
    "a PDU of an unknown type": struct.pack(">BBL", 9, 0, 4) + b"abcd",
    "a service that nobody offers": b"".join(
        pdus(1, COMMAND, command_set({COMMAND_FIELD: us_value(0x0FFF), MESSAGE_ID: us_value(1)}), MAX_PDU)
    ),
    "a second association within the first": b"\x01\x00\x00\x00\x00\x04abcd",
}


@pytest.mark.parametrize("noise", BROKEN.values(), ids=BROKEN.keys())
def test_who_breaks_the_protocol_loses_only_the_own_association(
    start: Callable[..., Node], noise: bytes
) -> None:
    node = start(stall_timeout_s=1.0)
    with Scu(node.port) as other:
        scu = Scu(node.port)
        raw_of(scu).sendall(noise)
        wait_until(lambda: len(node.listener._visits) == 1)
        assert other.send(encoded(mr_dataset(sop_uid=UID)))[0] == 0x0000
        scu.association.kill()
    wait_until(lambda: nothing_is_left_of_it(node))


def test_a_store_without_a_data_set_is_answered(start: Callable[..., Node]) -> None:
    node = start()
    with Scu(node.port) as scu:
        raw_of(scu).sendall(b"".join(pdus(1, COMMAND, command(data_set=NO_DATA_SET), MAX_PDU)))
        _, response = scu.association.dimse.get_msg(block=True)
        assert response.Status == 0xC000


def test_a_peer_that_takes_tiny_pdus_gets_its_answer_in_pieces(start: Callable[..., Node]) -> None:
    whole = b"".join(piece[12:] for piece in pdus(1, COMMAND, command(), 16))
    assert whole == command()
    assert all(len(piece) <= 16 + 6 for piece in pdus(1, COMMAND, command(), 16))


def test_a_peer_that_never_reads_its_answers_is_given_up(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "BUFFER_BYTES", 4096)
    node = start(stall_timeout_s=0.5)
    scu = Scu(node.port)
    scu.association.dul.kill_dul()  # nobody reads on our side any more
    scu.association.dul.join()
    raw = raw_of(scu)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(0.2)
    request = b"".join(pdus(1, COMMAND, command("no UID", NO_DATA_SET), MAX_PDU)) * 100
    deadline = time.monotonic() + 20
    while node.listener._visits and time.monotonic() < deadline:
        try:
            raw.sendall(request)
        except OSError:
            continue
    assert not node.listener._visits
    assert echo(node.peer()).answered
    raw.close()


def test_a_request_that_dribbles_in_is_given_up(start: Callable[..., Node]) -> None:
    """Slow-loris: a byte now and then, so that no single read ever times out."""
    node = start(acse_timeout_s=0.6, max_associations=2)
    slow = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(10)]
    try:
        gone: set[socket.socket] = set()
        deadline = time.monotonic() + 10
        pieces = iter(b"\x01\x00\x00\x00\x01\x00" + bytes(1000))
        while len(gone) < len(slow) and time.monotonic() < deadline:
            piece = bytes([next(pieces)])
            for connection in set(slow) - gone:
                try:
                    connection.sendall(piece)
                except OSError:
                    gone.add(connection)
            assert echo(node.peer()).answered
            time.sleep(0.1)
        assert len(gone) == len(slow)
    finally:
        for connection in slow:
            connection.close()


# -------------------------------------------------------------------- port probes, on the real process


def test_a_thousand_silent_connections_leak_neither_threads_nor_descriptors(tmp_path: Path) -> None:
    settings = ListenerSettings(
        "NODE",
        tmp_path,
        tmp_path / "ledger.sqlite",
        bind="127.0.0.1",
        port=0,
        min_free_bytes=0,
        max_associations=2,
    )
    process, report = listener_process(settings)
    proc = Path(f"/proc/{process.pid}")

    def threads() -> int:
        return len(list((proc / "task").iterdir()))

    def descriptors() -> int:
        return len(list((proc / "fd").iterdir()))

    peer = Peer("NODE", "127.0.0.1", report.port or 0, "SCANNER1")
    try:
        assert echo(peer).answered
        wait_until(lambda: threads() <= 4)
        threads_before, descriptors_before = threads(), descriptors()
        probes = []
        try:
            for _ in range(1000):
                probes.append(socket.create_connection(("127.0.0.1", report.port or 0), timeout=10))
            assert echo(peer).answered
            assert threads() <= threads_before + sockets.MAX_WAITING + 8
            assert descriptors() <= descriptors_before + sockets.MAX_WAITING + 8
        finally:
            for probe in probes:
                probe.close()
        wait_until(lambda: threads() <= threads_before, 10)
        wait_until(lambda: descriptors() <= descriptors_before, 10)
        assert echo(peer).answered
    finally:
        process.terminate()
        process.join(10)


def test_files_belong_to_the_node_alone(start: Callable[..., Node]) -> None:
    node = start()
    old = os.umask(0)
    try:
        with Scu(node.port) as scu:
            scu.send(encoded(mr_dataset(sop_uid=UID)))
            scu.send(b"no DICOM")
    finally:
        os.umask(old)
    modes = {
        path.relative_to(node.settings.root).as_posix(): path.stat().st_mode & 0o077
        for path in node.settings.root.rglob("*")
    }
    assert len([path for path in modes if path.endswith((".dcm", ".bin", ".txt"))]) == 3
    assert not [path for path, others in modes.items() if others]


def test_a_stalled_association_does_not_delay_the_others(start: Callable[..., Node]) -> None:
    """P7: one that holds a half-sent instance, one whose disk write is slow; a third is served at once."""
    release = threading.Event()
    node = start()
    real = node.ledger.association_opened

    def slow(*arguments: Any) -> None:
        release.wait(5)
        real(*arguments)

    stalled = Scu(node.port)
    raw_of(stalled).sendall(b"".join(instance_pdus()[:3]))
    node.ledger.association_opened = slow  # type: ignore[method-assign]
    try:
        with Scu(node.port) as waiting, ThreadPoolExecutor(1) as pool:
            blocked = pool.submit(waiting.send, encoded(mr_dataset(sop_uid=UID + ".2")), UID + ".2")
            began = time.monotonic()
            assert echo(node.peer()).answered
            assert time.monotonic() - began < 3
            assert not blocked.done()
            release.set()
            assert blocked.result(10)[0] == 0x0000
    finally:
        raw_of(stalled).shutdown(socket.SHUT_RDWR)
        stalled.association.kill()

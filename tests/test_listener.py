from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from certificates import make_certificates, tls
from instances import encoded, mr_dataset, write_series
from listening import UID, Node, Scu, listener_process, starting, store_request, wait_until
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.service_class import VerificationServiceClass
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from dicom_node import arrivals, sockets
from dicom_node import listener as listener_module
from dicom_node.association import Peer
from dicom_node.ledger import Ledger
from dicom_node.listener import Caller, Listener, ListenerSettings
from dicom_node.scu import echo, store
from dicom_node.sockets import TlsSettings
from dicom_node.spool import Part, Spool, create_file, instance_path
from dicom_node.statuses import Outcome

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # about UIDs that are bad on purpose


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    yield from starting(tmp_path)


# -------------------------------------------------------------------- storing


def test_what_was_answered_with_success_is_on_disk_byte_for_byte_and_in_the_ledger(
    start: Callable[..., Node],
) -> None:
    node = start()
    data = encoded(mr_dataset(sop_uid=UID))
    with Scu(node.port) as scu:
        assert scu.send(data) == (0x0000, "")
    stored = (node.settings.root / instance_path(UID, 1)).read_bytes()
    assert stored.endswith(data)
    read = dcmread(BytesIO(stored))
    assert read.file_meta.SourceApplicationEntityTitle == "SCANNER1"
    assert read.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    record = node.ledger.instance(UID)
    assert record is not None
    assert record.path == instance_path(UID, 1).as_posix()
    assert (record.study_uid, record.series_uid) == (read.StudyInstanceUID, read.SeriesInstanceUID)
    assert record.size == len(stored)


def test_file_place_and_row_are_durable_before_the_answer_goes_out(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    order: list[str] = []

    def note(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def noted(*arguments: Any) -> Any:
            result = real(*arguments)
            order.append(name)
            return result

        monkeypatch.setattr(owner, name, noted)

    note(Part, "sync")
    note(node.spool, "place")
    note(node.spool, "settle")
    note(node.ledger, "record_instances")
    with Scu(node.port) as scu:
        scu.send(encoded(mr_dataset(sop_uid=UID)))
        order.append("answer")
    assert order == ["sync", "place", "settle", "record_instances", "answer"]


def test_the_same_bytes_again_are_counted_and_change_nothing(start: Callable[..., Node]) -> None:
    node = start()
    data = encoded(mr_dataset(sop_uid=UID))
    for _ in range(3):
        with Scu(node.port) as scu:
            assert scu.send(data)[0] == 0x0000
    assert node.rows("SELECT revision, repeats FROM instances") == [(1, 2)]
    assert len(list((node.settings.root / "instances").rglob("*.dcm"))) == 1


def test_other_bytes_under_the_same_uid_are_kept_as_a_new_revision(start: Callable[..., Node]) -> None:
    node = start()
    first, second = (encoded(mr_dataset(sop_uid=UID, number=number)) for number in (1, 2))
    with Scu(node.port) as scu:
        assert [scu.send(first)[0], scu.send(second)[0]] == [0, 0]
    assert node.rows("SELECT revision FROM instances ORDER BY 1") == [(1,), (2,)]
    assert (node.settings.root / instance_path(UID, 1)).read_bytes().endswith(first)
    assert (node.settings.root / instance_path(UID, 2)).read_bytes().endswith(second)


def test_one_uid_on_four_associations_at_once_is_stored_once(start: Callable[..., Node]) -> None:
    node = start()
    uids = [f"{UID}.{number}" for number in range(10)]
    data = {uid: encoded(mr_dataset(sop_uid=uid)) for uid in uids}

    def send_all(_: int) -> list[int]:
        with Scu(node.port) as scu:
            return [scu.send(data[uid], uid)[0] for uid in uids]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send_all, range(4)))
    assert answers == [[0] * 10] * 4
    assert node.rows("SELECT COUNT(*), MAX(revision), SUM(repeats) FROM instances") == [(10, 1, 30)]


def test_a_file_left_by_a_crash_before_its_row_is_adopted(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    data = encoded(mr_dataset(sop_uid=UID))
    real = node.ledger.record_instances

    def locked(records: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    with Scu(node.port) as scu:
        monkeypatch.setattr(node.ledger, "record_instances", locked)
        assert scu.send(data)[0] == 0xA700
        monkeypatch.setattr(node.ledger, "record_instances", real)
        assert scu.send(data)[0] == 0x0000
    assert node.rows("SELECT revision FROM instances") == [(1,)]
    assert len(list((node.settings.root / "instances").rglob("*.dcm"))) == 1


def test_a_ledger_older_than_the_disk_never_costs_an_instance(start: Callable[..., Node]) -> None:
    node = start()
    old = node.settings.root / instance_path(UID, 1)
    old.write_bytes(b"answered yesterday")
    with Scu(node.port) as scu:
        assert scu.send(encoded(mr_dataset(sop_uid=UID)))[0] == 0x0000
    assert old.read_bytes() == b"answered yesterday"
    assert node.rows("SELECT revision FROM instances") == [(2,)]


def test_explicit_vr_is_chosen_when_the_scanner_leaves_the_choice(start: Callable[..., Node]) -> None:
    with Scu(start().port, syntaxes=[ImplicitVRLittleEndian, ExplicitVRLittleEndian]) as scu:
        assert scu.association.accepted_contexts[0].transfer_syntax == [ExplicitVRLittleEndian]


def test_what_one_association_negotiates_is_nothing_to_the_next(start: Callable[..., Node]) -> None:
    """They share the contexts that the listener supports."""
    node = start(takes_commitments=True)
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        for sop_class in (MRImageStorage, Verification, StorageCommitmentPushModel):
            with Scu(node.port, sop_class=sop_class, syntaxes=[syntax]) as scu:
                assert [c.transfer_syntax for c in scu.association.accepted_contexts] == [[syntax]]


@pytest.mark.parametrize("sop_class", ["1.3.46.670589.11.0.0.12.1", "1.2.840.10008.5.1.4.1.1.9"])
def test_private_and_retired_classes_are_kept(start: Callable[..., Node], sop_class: str) -> None:
    dataset = mr_dataset(sop_uid=UID)
    dataset.SOPClassUID = sop_class
    node = start()
    with Scu(node.port, sop_class=sop_class) as scu:
        assert scu.send(encoded(dataset), UID, sop_class)[0] == 0x0000


# -------------------------------------------------------------------- refusing


def test_below_the_watermark_it_is_out_of_resources_until_space_returns(start: Callable[..., Node]) -> None:
    node = start()
    data = encoded(mr_dataset(sop_uid=UID))
    with Scu(node.port) as scu:
        node.spool._min_free_bytes = node.spool.free_bytes() * 2
        status, comment = scu.send(data)
        assert status == 0xA700
        assert 0 < len(comment) <= 64
        assert node.ledger.instance(UID) is None
        node.spool._min_free_bytes = 0
        assert scu.send(data)[0] == 0x0000


def test_a_disk_that_fills_while_receiving_keeps_the_ledger_sound(start: Callable[..., Node]) -> None:
    full = threading.Event()

    def opener(path: Path) -> BinaryIO:
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return create_file(path)

    node = start(opener)
    first, second = encoded(mr_dataset(sop_uid=UID)), encoded(mr_dataset(sop_uid=UID + ".2"))
    with Scu(node.port) as scu:
        assert scu.send(first)[0] == 0x0000
        full.set()
        assert scu.send(second, UID + ".2")[0] == 0xA700
        full.clear()
        assert scu.send(second, UID + ".2")[0] == 0x0000
    assert node.rows("SELECT COUNT(*) FROM instances") == [(2,)]
    assert list((node.settings.root / "incoming").iterdir()) == []


def test_a_data_set_that_is_not_what_its_command_says_is_refused_and_kept_for_a_look(
    start: Callable[..., Node],
) -> None:
    node = start()
    other_class = mr_dataset(sop_uid=UID)
    other_class.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    with Scu(node.port) as scu:
        assert scu.send(encoded(mr_dataset(sop_uid=UID + ".9")))[0] == 0xA900
        assert scu.send(encoded(other_class))[0] == 0xA900
        assert scu.send(encoded(other_class), UID, "1.2.840.10008.5.1.4.1.1.2")[0] == 0xA900
    assert node.quarantined() == 3
    assert node.rows("SELECT COUNT(*) FROM instances") == [(0,)]


@pytest.mark.parametrize("data", [b"", b"not DICOM at all", b"\x08\x00\x16\x00UI\xff\xff1.2"])
def test_bytes_without_uids_cannot_be_understood(start: Callable[..., Node], data: bytes) -> None:
    node = start()
    with Scu(node.port) as scu:
        status, comment = scu.send(data)
        assert (status, len(comment) <= 64) == (0xC000, True)
        assert scu.send(encoded(mr_dataset(sop_uid=UID)))[0] == 0x0000  # the association lives on
    assert node.quarantined() == 1


@pytest.mark.parametrize("uid", [None, "../../../etc/passwd", "1..2", "1.2.abc", "1." + "2" * 63])
def test_a_command_without_a_proper_instance_uid_is_answered_as_such(
    start: Callable[..., Node], uid: str | None
) -> None:
    node = start()
    with Scu(node.port) as scu:
        assert scu.send(encoded(mr_dataset(sop_uid=UID)), uid)[0] == 0x0117
        assert scu.send(encoded(mr_dataset(sop_uid=UID)))[0] == 0x0000


def test_an_unexpected_error_is_a_processing_failure_and_the_association_lives_on(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    data = encoded(mr_dataset(sop_uid=UID))

    def broken(*_: object) -> str:
        raise ZeroDivisionError

    with Scu(node.port) as scu:
        with monkeypatch.context() as patch:
            patch.setattr(arrivals, "file_header", broken)
            assert scu.send(data)[0] == 0x0110
        assert scu.send(data)[0] == 0x0000


def test_an_instance_beyond_the_largest_size_ends_its_association_only(start: Callable[..., Node]) -> None:
    node = start(max_instance_bytes=300_000)
    before = threading.active_count()
    with Scu(node.port) as scu:
        with pytest.raises(AssertionError, match="no answer"):
            scu.send(encoded(mr_dataset(sop_uid=UID, size=1024)))
        scu.association.kill()
    wait_until(lambda: threading.active_count() <= before)
    with Scu(node.port) as scu:
        assert scu.send(encoded(mr_dataset(sop_uid=UID)))[0] == 0x0000


# -------------------------------------------------------------------- who may call


def test_another_called_title_is_rejected_in_words(start: Callable[..., Node]) -> None:
    problem = echo(start().peer(ae_title="OTHER")).problem
    assert problem is not None
    assert "called AE title not recognised" in problem.text


@pytest.mark.parametrize(
    ("entries", "admitted"),
    [
        ((), True),
        ((Caller("SCANNER1"),), True),
        ((Caller("scanner1"),), False),
        ((Caller("SCANNER1", "127.0.0.0/8"), Caller("X")), True),
        ((Caller("SCANNER1", "192.0.2.7"), Caller("X", "127.0.0.1")), False),
        ((Caller("", "127.0.0.1"),), True),
    ],
)
def test_only_listed_callers_are_admitted(
    start: Callable[..., Node], entries: tuple[Caller, ...], admitted: bool
) -> None:
    result = echo(start(accept_from=entries).peer())
    assert result.answered is admitted
    if result.problem is not None:
        assert "calling AE title not recognised" in result.problem.text


def test_a_mapped_address_is_the_same_as_the_plain_one() -> None:
    assert Caller("A", "192.0.2.0/24").admits("A", "::ffff:192.0.2.9")
    assert not Caller("A", "192.0.2.0/24").admits("A", "::1")


def test_an_address_that_is_none_is_refused_at_start(tmp_path: Path) -> None:
    settings = ListenerSettings("NODE", tmp_path, tmp_path / "l", accept_from=(Caller("A", "host.example"),))
    with pytest.raises(ValueError, match=r"host\.example"):
        Listener(settings, Spool(tmp_path, 0), Ledger(tmp_path / "l"))


def test_when_the_caller_cannot_be_judged_it_is_not_admitted(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    monkeypatch.setattr(node.listener, "_refusal", lambda *_: 1 / 0)
    assert not echo(node.peer()).answered


def test_associations_beyond_the_limit_are_rejected_for_the_moment(start: Callable[..., Node]) -> None:
    node = start(max_associations=2)
    with Scu(node.port), Scu(node.port):
        problem = echo(node.peer()).problem
        assert problem is not None
        assert problem.transient
        assert "too many" in problem.text
    wait_until(lambda: echo(node.peer()).answered)


# -------------------------------------------------------------------- associations in the ledger


def test_an_association_is_recorded_from_its_first_instance_to_its_release(
    start: Callable[..., Node],
) -> None:
    node = start()
    assert echo(node.peer()).answered
    assert node.rows("SELECT * FROM associations") == []
    with Scu(node.port) as scu:
        scu.send(encoded(mr_dataset(sop_uid=UID)))
        assert node.rows("SELECT calling_ae, address, closed FROM associations") == [
            ("SCANNER1", "127.0.0.1", None)
        ]
    wait_until(lambda: node.rows("SELECT closed IS NOT NULL, aborted FROM associations") == [(1, 0)])


def test_an_aborted_association_is_recorded_as_aborted(start: Callable[..., Node]) -> None:
    node = start()
    scu = Scu(node.port)
    scu.send(encoded(mr_dataset(sop_uid=UID)))
    scu.association.abort()
    wait_until(lambda: node.rows("SELECT closed IS NOT NULL, aborted FROM associations") == [(1, 1)])


def test_a_scanner_that_loses_its_power_mid_instance_leaves_neither_slot_nor_file(
    start: Callable[..., Node],
) -> None:
    node = start(stall_timeout_s=0.5, max_associations=1)
    scu = Scu(node.port)
    scu.send(encoded(mr_dataset(sop_uid=UID)))
    raw = scu.association.dul.socket.socket
    raw.sendall(b"\x04\x00" + (5000).to_bytes(4, "big") + b"a beginning, and then silence")
    wait_until(lambda: node.rows("SELECT closed IS NOT NULL, aborted FROM associations") == [(1, 1)])
    assert echo(node.peer()).answered
    assert node.rows("SELECT COUNT(*) FROM instances") == [(1,)]
    raw.close()


def test_stopping_does_not_wait_for_a_peer_that_is_stalled(start: Callable[..., Node]) -> None:
    node = start()
    scu = Scu(node.port)
    scu.association.dul.socket.socket.sendall(b"\x04\x00" + (5000).to_bytes(4, "big"))
    time.sleep(0.2)
    began = time.monotonic()
    node.listener.stop()
    assert time.monotonic() - began < listener_module.STOP_S + 1
    scu.association.kill()


def test_stopping_aborts_what_is_open_and_frees_the_port(start: Callable[..., Node]) -> None:
    node = start()
    scu = Scu(node.port)
    scu.send(encoded(mr_dataset(sop_uid=UID)))
    began = time.monotonic()
    node.listener.stop()
    assert time.monotonic() - began < 3
    assert node.rows("SELECT closed IS NOT NULL, aborted FROM associations") == [(1, 1)]
    with socket.create_server(("127.0.0.1", node.port)):
        pass


# -------------------------------------------------------------------- hostile and silent peers


def test_silent_connections_take_no_slot_and_only_a_few_descriptors(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MAX_WAITING", 8)
    node = start(max_associations=2)
    before = threading.active_count()
    probes = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(100)]
    try:
        assert echo(node.peer()).answered
        wait_until(lambda: threading.active_count() <= before + 10)
    finally:
        for probe in probes:
            probe.close()
    wait_until(lambda: threading.active_count() <= before)


def test_connections_that_never_finish_their_request_take_no_slot_either(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MAX_WAITING", 8)
    node = start(max_associations=2)
    before = threading.active_count()
    slow = []
    try:
        for _ in range(60):
            slow.append(socket.create_connection(("127.0.0.1", node.port)))
            slow[-1].sendall(b"\x01")
        assert echo(node.peer()).answered
        wait_until(lambda: threading.active_count() <= before + 2 * 10)
    finally:
        for connection in slow:
            connection.close()
    wait_until(lambda: threading.active_count() <= before)


def test_instances_that_do_not_wait_for_their_answers_are_answered_one_after_another(
    start: Callable[..., Node],
) -> None:
    node = start()
    with Scu(node.port) as scu:
        context_id = scu.association.accepted_contexts[0].context_id
        for number in range(20):
            uid = f"{UID}.{number}"
            scu.association.dimse.send_msg(store_request(uid, message_id=number + 1), context_id)
        for number in range(20):
            _, response = scu.association.dimse.get_msg(block=True)
            assert (response.MessageIDBeingRespondedTo, response.Status) == (number + 1, 0x0000)
    assert node.rows("SELECT COUNT(*) FROM instances") == [(20,)]


def test_echoes_that_do_not_wait_for_their_answers_end_the_connection(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    monkeypatch.setattr(VerificationServiceClass, "SCP", lambda *_: time.sleep(0.5))
    with Scu(node.port, sop_class=Verification) as scu:
        request = C_ECHO()
        request.MessageID = 1
        request.AffectedSOPClassUID = Verification
        for _ in range(20):
            scu.association.dimse.send_msg(request, scu.association.accepted_contexts[0].context_id)
        wait_until(lambda: not node.listener._visits)
        scu.association.kill()


def test_probes_that_connect_and_leave_are_forgotten_at_once(start: Callable[..., Node]) -> None:
    node = start()
    before = threading.active_count()
    for _ in range(100):
        socket.create_connection(("127.0.0.1", node.port)).close()
    wait_until(lambda: threading.active_count() <= before)
    assert echo(node.peer()).answered


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello to a port without TLS
        b"\x01\x00\xff\xff\xff\xff",
        b"\x04\x00\x00\x00\x00\x04abcd",
        bytes(4096),
    ],
)
def test_noise_ends_its_own_connection_only(start: Callable[..., Node], noise: bytes) -> None:
    node = start(stall_timeout_s=0.5, acse_timeout_s=0.5)
    with socket.create_connection(("127.0.0.1", node.port)) as probe:
        probe.sendall(noise)
        assert echo(node.peer()).answered
        wait_until(lambda: not node.listener._visits)


# -------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_mutual_tls_carries_instances_and_keeps_strangers_out(
    start: Callable[..., Node], certificates: Path, tmp_path: Path
) -> None:
    node = start(tls=tls(certificates, "node"))
    files = write_series(tmp_path / "series", 3, size=256)
    assert store(node.peer(tls=tls(certificates, "peer")), files).complete
    assert not echo(node.peer()).answered  # plain text
    assert not echo(node.peer(tls=tls(certificates, "stranger"))).answered
    assert not echo(node.peer(tls=TlsSettings(ca=certificates / "ca.pem"))).answered  # no certificate
    assert node.rows("SELECT COUNT(*) FROM instances") == [(3,)]


def test_a_server_that_its_authority_does_not_vouch_for_is_not_sent_to(
    start: Callable[..., Node], certificates: Path
) -> None:
    stranger = TlsSettings(
        certificates / "stranger.pem", certificates / "stranger.key", require_client_certificate=False
    )
    problem = echo(start(tls=stranger).peer(tls=tls(certificates, "peer"))).problem
    assert problem is not None
    assert "TLS certificate" in problem.text


def test_a_client_that_opens_tls_and_says_nothing_blocks_nobody(
    start: Callable[..., Node], certificates: Path
) -> None:
    node = start(tls=tls(certificates, "node"), acse_timeout_s=1.0)
    silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(3)]
    silent[0].sendall(b"\x16\x03\x01")  # half a record header
    try:
        began = time.monotonic()
        assert echo(node.peer(tls=tls(certificates, "peer"))).answered
        assert time.monotonic() - began < 1.0
        for connection in silent:  # closed once the handshake has taken too long
            connection.settimeout(3)
            assert connection.recv(1) == b""
    finally:
        for connection in silent:
            connection.close()


# -------------------------------------------------------------------- the process


def test_the_process_reports_its_port_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    settings = ListenerSettings(
        "NODE", tmp_path, tmp_path / "ledger.sqlite", bind="127.0.0.1", port=0, min_free_bytes=0
    )
    process, report = listener_process(settings)
    assert report.port is not None
    peer = Peer("NODE", "127.0.0.1", report.port, "SCANNER1")
    sent = store(peer, write_series(tmp_path / "series", 2))
    open_association = Scu(report.port)
    process.terminate()
    process.join(10)
    assert sent.complete
    assert process.exitcode == 0
    wait_until(lambda: bool(open_association.association.acse.is_aborted()))
    open_association.association.kill()
    assert not echo(peer).answered


def test_a_port_that_is_taken_is_reported_in_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ListenerSettings(
            "NODE",
            tmp_path,
            tmp_path / "ledger.sqlite",
            bind="127.0.0.1",
            port=taken.getsockname()[1],
            min_free_bytes=0,
        )
        process, report = listener_process(settings)
        process.join(10)
    assert report.port is None
    assert "cannot listen on 127.0.0.1" in report.problem
    assert process.exitcode == 1


def _parent_of_a_listener(settings: ListenerSettings, pipe: Any) -> None:
    process, report = listener_process(settings)
    pipe.send((process.pid, report.port))
    time.sleep(60)


def test_the_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    settings = ListenerSettings(
        "NODE", tmp_path, tmp_path / "ledger.sqlite", bind="127.0.0.1", port=0, min_free_bytes=0
    )
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    parent = context.Process(target=_parent_of_a_listener, args=(settings, sending))
    parent.start()
    assert receiving.poll(40)
    pid, port = receiving.recv()
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"

    wait_until(gone, 10)
    assert not echo(Peer("NODE", "127.0.0.1", port, "SCANNER1")).answered


def test_outcomes_seen_by_our_own_scu_match_the_answers(start: Callable[..., Node], tmp_path: Path) -> None:
    node = start()
    files = write_series(tmp_path / "series", 2)
    node.spool._min_free_bytes = node.spool.free_bytes() * 2
    result = store(node.peer(), files)
    assert [status.outcome for status in result.statuses] == [Outcome.TRANSIENT]
    assert result.not_tried == (files[1],)

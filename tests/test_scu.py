from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from instances import mr_dataset, write_series
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    MRImageStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.sop_class import Verification
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node.association import Peer, Timeouts
from dicom_node.scu import StoreStatus, echo, store
from dicom_node.statuses import TREATMENTS, Answer, Outcome, treat

BOTH = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


class Archive:
    """An SCP that answers as it is told, and keeps what it stored."""

    def __init__(self, answer: Callable[[Any], int], contexts: dict[str, tuple[str, ...]]) -> None:
        self.stored: list[tuple[str, str, bytes]] = []  # transfer syntax, SOP instance, data set
        self._answer = answer
        entity = AE(ae_title="ARCHIVE")
        entity.require_called_aet = True
        for sop_class, syntaxes in contexts.items():
            entity.add_supported_context(sop_class, list(syntaxes))
        self.entity = entity
        self.server = entity.make_server(
            ("127.0.0.1", 0),
            evt_handlers=[(evt.EVT_C_STORE, self._on_store)],
            server_class=ThreadedAssociationServer,
        )
        entity._servers.append(self.server)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def _on_store(self, event: Any) -> int:
        status = self._answer(event)
        if status < 0xA000:
            request = event.request
            content = request.DataSet.getvalue()
            self.stored.append(
                (str(event.context.transfer_syntax), str(request.AffectedSOPInstanceUID), content)
            )
        return status

    def peer(self, **changes: Any) -> Peer:
        values = {"ae_title": "ARCHIVE", "calling_ae_title": "NODE", "timeouts": Timeouts(2, 2, 2, 5)}
        port = self.server.server_address[1]
        return Peer(**({"host": "127.0.0.1", "port": port} | values | changes))


@pytest.fixture
def archive() -> Iterator[Callable[..., Archive]]:
    running: list[Archive] = []

    def starting(answer: Callable[[Any], int] = lambda event: 0x0000, **changes: Any) -> Archive:
        contexts = changes.get("contexts", {MRImageStorage: BOTH, Verification: BOTH})
        running.append(Archive(answer, contexts))
        return running[-1]

    yield starting
    for one in running:
        one.entity.shutdown()


def answers(*statuses: int) -> Callable[[Any], int]:
    """An answer for each instance in turn."""
    remaining = list(statuses)
    return lambda event: remaining.pop(0)


# -------------------------------------------------------------------- storing


def test_a_series_is_stored_in_order_and_each_status_is_told_at_once(
    archive: Callable[..., Archive], tmp_path: Path
) -> None:
    there = archive()
    files = write_series(tmp_path, 5)
    told: list[StoreStatus] = []
    result = store(there.peer(), files, told.append)
    assert result.complete
    assert result.problem is None
    assert tuple(told) == result.statuses
    uids = [str(dcmread(path).SOPInstanceUID) for path in files]
    assert [status.sop_uid for status in told] == [uid for _, uid, _ in there.stored] == uids
    assert [status.path for status in told] == files


def test_the_bytes_of_the_file_are_sent_as_they_are(archive: Callable[..., Archive], tmp_path: Path) -> None:
    there = archive()
    (path,) = write_series(tmp_path, 1)
    store(there.peer(), [path])
    assert path.read_bytes().endswith(there.stored[0][2])
    assert there.stored[0][0] == ExplicitVRLittleEndian


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0x0000, Outcome.STORED),
        (0xB000, Outcome.STORED_WITH_WARNING),
        (0xB006, Outcome.STORED_WITH_WARNING),
        (0xB007, Outcome.STORED_WITH_WARNING),
        (0x0111, Outcome.DUPLICATE),
    ],
)
def test_these_statuses_mean_that_the_archive_has_it(
    archive: Callable[..., Archive], tmp_path: Path, code: int, outcome: Outcome
) -> None:
    result = store(archive(answers(code, 0)).peer(), write_series(tmp_path, 2))
    assert result.statuses[0].outcome is outcome
    assert result.statuses[0].status == code
    assert result.complete


@pytest.mark.parametrize("code", [0xA900, 0xC000, 0xC123, 0x0112, 0x0117, 0x0122, 0x0124, 0x0210, 0x0212])
def test_a_refusal_is_permanent_for_its_instance_and_the_others_go_on(
    archive: Callable[..., Archive], tmp_path: Path, code: int
) -> None:
    result = store(archive(answers(0, code, 0)).peer(), write_series(tmp_path, 3))
    assert [status.outcome for status in result.statuses] == [
        Outcome.STORED,
        Outcome.PERMANENT,
        Outcome.STORED,
    ]
    assert not result.complete
    assert result.problem is None
    assert f"0x{code:04X}" in result.refused[0].text


@pytest.mark.parametrize("code", [0xA700, 0xA7FF, 0x0110, 0x0213])
def test_an_archive_without_resources_is_left_alone_with_the_rest(
    archive: Callable[..., Archive], tmp_path: Path, code: int
) -> None:
    files = write_series(tmp_path, 4)
    result = store(archive(answers(0, code)).peer(), files)
    assert [status.outcome for status in result.statuses] == [Outcome.STORED, Outcome.TRANSIENT]
    assert result.not_tried == tuple(files[2:])
    assert result.problem is not None
    assert result.problem.transient


def test_an_archive_that_aborts_mid_series_is_told_with_what_it_has(
    archive: Callable[..., Archive], tmp_path: Path
) -> None:
    count = 0

    def answer(event: Any) -> int:
        nonlocal count
        count += 1
        if count == 3:
            event.assoc.abort()
        return 0x0000

    files = write_series(tmp_path, 5)
    result = store(archive(answer).peer(), files)
    assert [status.outcome.arrived for status in result.statuses] == [True, True, False]
    assert result.not_tried == tuple(files[3:])
    assert result.problem is not None
    assert "broke the association off" in result.problem.text


def test_an_archive_that_loses_its_power_mid_series_is_told_too(
    archive: Callable[..., Archive], tmp_path: Path
) -> None:
    def answer(event: Any) -> int:
        event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        return 0x0000

    result = store(archive(answer).peer(), write_series(tmp_path, 2))
    assert [status.outcome for status in result.statuses] == [Outcome.TRANSIENT]
    assert len(result.not_tried) == 1


def test_an_archive_that_never_answers_is_given_up_after_the_timeout(
    archive: Callable[..., Archive], tmp_path: Path
) -> None:
    done = threading.Event()

    def answer(event: Any) -> int:
        done.wait(10)
        return 0x0000

    there = archive(answer)
    began = time.monotonic()
    result = store(there.peer(timeouts=Timeouts(2, 2, 0.5, 5)), write_series(tmp_path, 2))
    assert time.monotonic() - began < 3
    done.set()
    assert result.problem is not None
    assert "did not answer within 0.5 s" in result.problem.text
    assert result.statuses[0].outcome is Outcome.TRANSIENT


def test_no_response_is_ever_taken_by_the_reactor(
    archive: Callable[..., Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    real = DIMSEServiceProvider.get_msg

    def get_msg(self: Any, block: bool = False) -> Any:
        if self.assoc.is_requestor:
            looked.append(block)
        return real(self, block)

    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", get_msg)
    assert store(archive().peer(), write_series(tmp_path, 20)).complete
    assert looked[:20] == [True] * 20  # each by us, waiting; the reactor looks once, after the release
    assert len(looked) <= 21


def test_nothing_is_left_running_afterwards(archive: Callable[..., Archive], tmp_path: Path) -> None:
    there = archive(answers(0, 0xA700))
    before = threading.active_count()
    store(there.peer(), write_series(tmp_path, 3))
    echo(there.peer(ae_title="WRONG"))
    echo(there.peer(port=1))
    deadline = time.monotonic() + 3
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


# -------------------------------------------------------------------- contexts


def test_where_only_implicit_vr_is_accepted_it_is_converted_and_nothing_is_lost(
    archive: Callable[..., Archive], tmp_path: Path
) -> None:
    there = archive(contexts={MRImageStorage: (ImplicitVRLittleEndian,)})
    dataset = mr_dataset()
    dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", "1000")
    path = tmp_path / "one.dcm"
    dataset.save_as(path, enforce_file_format=True)
    assert store(there.peer(), [path]).complete
    syntax, _, content = there.stored[0]
    assert syntax == ImplicitVRLittleEndian
    received = dcmread(BytesIO(content), force=True)
    assert received.PixelData == dataset.PixelData
    assert received[0x0019, 0x100C].value == 1000


def test_a_deflated_file_is_inflated_for_an_archive_that_wants_it_plain(
    archive: Callable[..., Archive], tmp_path: Path
) -> None:
    there = archive()
    dataset = mr_dataset(syntax=DeflatedExplicitVRLittleEndian)
    path = tmp_path / "one.dcm"
    dataset.save_as(path, enforce_file_format=True)
    assert store(there.peer(), [path]).complete
    assert there.stored[0][0] == ExplicitVRLittleEndian
    assert dataset.PixelData in there.stored[0][2]


def test_a_compressed_file_that_nobody_there_can_read_is_refused_in_words(
    archive: Callable[..., Archive], tmp_path: Path
) -> None:
    dataset = mr_dataset(syntax=JPEGLosslessSV1)
    dataset.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    dataset["PixelData"].is_undefined_length = True
    path = tmp_path / "one.dcm"
    dataset.save_as(path, enforce_file_format=True)
    (status,) = store(archive().peer(), [path]).statuses
    assert status.outcome is Outcome.PERMANENT
    assert "JPEG Lossless" in status.text


def test_a_class_that_is_not_accepted_does_not_stop_the_others(
    archive: Callable[..., Archive], tmp_path: Path
) -> None:
    capture = mr_dataset()
    capture.SOPClassUID = SecondaryCaptureImageStorage
    capture.save_as(tmp_path / "capture.dcm", enforce_file_format=True)
    files = [tmp_path / "capture.dcm", *write_series(tmp_path / "series", 2)]
    result = store(archive().peer(), files)
    assert [status.outcome for status in result.statuses] == [
        Outcome.PERMANENT,
        Outcome.STORED,
        Outcome.STORED,
    ]
    assert "does not accept Secondary Capture Image Storage" in result.statuses[0].text


def test_an_archive_that_accepts_nothing_is_a_mistake_of_configuration(
    archive: Callable[..., Archive], tmp_path: Path
) -> None:
    there = archive(contexts={Verification: BOTH})
    result = store(there.peer(), write_series(tmp_path, 2))
    assert result.problem is not None
    assert not result.problem.transient
    assert "MR Image Storage" in result.problem.text
    assert len(result.not_tried) == 2


@pytest.mark.parametrize("content", [None, b"", b"plain text, no DICOM", bytes(128) + b"DICM" + bytes(40)])
def test_a_file_that_is_no_dicom_is_named_and_the_others_are_sent(
    archive: Callable[..., Archive], tmp_path: Path, content: bytes | None
) -> None:
    bad = tmp_path / "bad.dcm"
    if content is not None:
        bad.write_bytes(content)
    result = store(archive().peer(), [bad, *write_series(tmp_path / "series", 1)])
    assert [status.outcome for status in result.statuses] == [Outcome.PERMANENT, Outcome.STORED]
    assert "bad.dcm" in result.statuses[0].text


# -------------------------------------------------------------------- reaching a peer


def test_an_echo_that_is_answered(archive: Callable[..., Archive]) -> None:
    result = echo(archive().peer())
    assert result.answered
    assert 0 < result.seconds < 2


def test_where_nothing_listens_the_sentence_names_host_and_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    problem = echo(Peer("ARCHIVE", "127.0.0.1", port, "NODE")).problem
    assert problem is not None
    assert problem.transient
    assert problem.text == (
        f"ARCHIVE@127.0.0.1:{port} cannot be reached: nothing listens there (connection refused)"
    )


def test_a_host_name_that_does_not_resolve() -> None:
    problem = echo(Peer("ARCHIVE", "no-such-host.invalid", 104, "NODE")).problem
    assert problem is not None
    assert "host name cannot be resolved" in problem.text


def test_a_server_that_takes_the_connection_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = Peer("ARCHIVE", "127.0.0.1", silent.getsockname()[1], "NODE", Timeouts(1, 0.5, 1, 1))
        began = time.monotonic()
        problem = echo(peer).problem
        assert time.monotonic() - began < 3
    assert problem is not None
    assert problem.transient
    assert "0.5 s" in problem.text


def test_a_server_that_speaks_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        peer = Peer("ARCHIVE", "127.0.0.1", server.getsockname()[1], "NODE", Timeouts(1, 2, 1, 1))
        assert not echo(peer).answered


def test_a_rejection_names_the_title_that_was_wrong(archive: Callable[..., Archive]) -> None:
    there = archive()
    problem = echo(there.peer(ae_title="OTHER")).problem
    assert problem is not None
    assert not problem.transient
    assert "its AE title is not OTHER (called AE title not recognised)" in problem.text
    there.entity.require_calling_aet = ["FRIEND"]
    problem = echo(there.peer()).problem
    assert problem is not None
    assert "does not know our AE title NODE (calling AE title not recognised)" in problem.text


def test_a_busy_archive_is_worth_another_try(archive: Callable[..., Archive]) -> None:
    there = archive()

    def full(event: Any) -> None:
        event.assoc.acse.send_reject(0x02, 0x03, 0x02)
        event.assoc.kill()

    there.server.bind(evt.EVT_REQUESTED, full)
    problem = echo(there.peer()).problem
    assert problem is not None
    assert problem.transient
    assert "too many open associations" in problem.text


def test_a_title_that_no_standard_allows_is_told_and_not_raised() -> None:
    problem = echo(Peer("A TITLE THAT IS TOO LONG", "127.0.0.1", 104, "NODE")).problem
    assert problem is not None
    assert not problem.transient


# -------------------------------------------------------------------- the table


def test_the_table_of_statuses_has_no_overlap_and_every_code_an_outcome() -> None:
    ranges = sorted((entry.first, entry.last) for entry in TREATMENTS)
    assert all(last < following for (_, last), (following, _) in itertools.pairwise(ranges))
    assert treat(0x9999).outcome is Outcome.PERMANENT
    assert treat(0xA7AB).outcome is Outcome.TRANSIENT


def test_our_own_answers_are_among_those_we_understand() -> None:
    transient = {answer for answer in Answer if treat(answer).outcome is Outcome.TRANSIENT}
    assert transient == {Answer.OUT_OF_RESOURCES, Answer.PROCESSING_FAILURE}


def test_a_status_that_pynetdicom_knows_is_known_here_too() -> None:
    for code, (category, *_) in STORAGE_SERVICE_CLASS_STATUS.items():
        if category in ("Success", "Warning"):
            assert treat(code).outcome.arrived, hex(code)
        else:
            assert not treat(code).outcome.arrived or code == 0x0111, hex(code)


def test_converting_never_touches_the_file(archive: Callable[..., Archive], tmp_path: Path) -> None:
    there = archive(contexts={MRImageStorage: (ImplicitVRLittleEndian,)})
    (path,) = write_series(tmp_path, 1)
    before = path.read_bytes()
    store(there.peer(), [path])
    assert path.read_bytes() == before

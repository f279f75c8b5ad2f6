"""Unlucky and hostile archives: deliveries over real connections, with the ledger's own backoff."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from instances import mr_dataset, write_series
from listening import wait_until
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SecondaryCaptureImageStorage
from pynetdicom import AE, evt

from dicom_node.association import Peer, Timeouts
from dicom_node.delivery import DeliveryLoop
from dicom_node.ledger import Ledger
from dicom_node.records import Delivery, InstanceRecord
from dicom_node.spool import Spool
from dicom_node.states import DeliveryState, JobState

RESULT = "result-1"
INSTANCES = 6
HOUR_S = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Archive:
    """An SCP on a port of its own that answers as `answer` says; it can go away and come back."""

    def __init__(self, answer: Callable[[Any], int]) -> None:
        self.answer = answer
        self.arrived: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._server: Any = None

    def start(self) -> None:
        entity = AE(ae_title="ARCHIVE")
        entity.add_supported_context(MRImageStorage, ExplicitVRLittleEndian)
        self._server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._on_store)]
        )

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _on_store(self, event: Any) -> int:
        status = self.answer(event)
        if status in (0x0000, 0xB000):
            self.arrived.append(str(event.request.AffectedSOPInstanceUID))
        return status

    @property
    def peer(self) -> Peer:
        return Peer("ARCHIVE", "127.0.0.1", self.port, "NODE", Timeouts(2, 2, 1, 5))


class Site:
    """A ledger with one result that is owed to some destinations."""

    def __init__(self, root: Path, *names: str) -> None:
        self.clock = Clock()
        self.spool = Spool(root, 0)
        self.ledger = Ledger(root / "ledger.sqlite", clock=self.clock)
        self.files = write_series(self.spool.result_dir(RESULT) / "derived", INSTANCES)
        record = InstanceRecord(
            "1.1", 1, "1", "1.0", "1.2", "1.2.1", "00", "instances/1", 1, "a", self.clock.now
        )
        self.ledger.record_instance(record)
        self.ledger.complete_series("1.0", "{}", "p", seen_last_at=self.clock.now)
        self.job = self.ledger.create_job(self.ledger.series("1")[0], 4).id
        self.ledger.change_job(self.job, JobState.QUEUED)
        self.ledger.change_job(self.job, JobState.CORRECTING, result=RESULT)
        self.ledger.change_job(self.job, JobState.CORRECTED)
        self.ledger.start_delivery(self.job, names, expected=JobState.CORRECTED)

    def loop(self, name: str, peer: Peer) -> DeliveryLoop:
        return DeliveryLoop(name, peer, self.ledger, self.spool, give_up_days=7, clock=self.clock)

    def delivery(self, name: str = "pacs") -> Delivery:
        return next(one for one in self.ledger.deliveries(self.job) if one.destination == name)

    def uids(self) -> list[str]:
        return [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in self.files]


@pytest.fixture
def archive() -> Iterator[Archive]:
    archive = Archive(lambda event: 0x0000)
    yield archive
    archive.stop()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, "pacs")


def test_an_archive_that_is_down_for_hours_gets_everything_when_it_returns(
    site: Site, archive: Archive
) -> None:
    loop = site.loop("pacs", archive.peer)
    delays = []
    while site.clock.now < 1_000_000.0 + 12 * HOUR_S:
        assert loop.deliver_one()
        waiting = site.delivery()
        assert (waiting.state, waiting.reason_code) == (DeliveryState.PENDING, "unreachable")
        delays.append(waiting.next_attempt_at - site.clock.now)
        assert not loop.deliver_one()  # not before its time
        site.clock.now = waiting.next_attempt_at
    assert delays[0] < 10
    assert max(delays) <= 1.2 * HOUR_S
    assert len(delays) < 40  # it is not called day and night
    archive.start()
    assert loop.deliver_one()
    assert site.ledger.job(site.job).state is JobState.SENT
    assert archive.arrived == site.uids()


def test_an_archive_that_aborts_mid_series_gets_only_the_rest_the_next_time(
    site: Site, archive: Archive
) -> None:
    def abort_after_three(event: Any) -> int:
        if len(archive.arrived) == 3:
            archive.answer = lambda _: 0x0000
            event.assoc.abort()
        return 0x0000

    archive.answer = abort_after_three
    archive.start()
    loop = site.loop("pacs", archive.peer)
    assert loop.deliver_one()
    assert site.delivery().state is DeliveryState.PENDING
    site.clock.now += 10
    assert loop.deliver_one()
    assert site.ledger.job(site.job).state is JobState.SENT
    assert set(archive.arrived) == set(site.uids())
    assert len(archive.arrived) <= INSTANCES + 1  # the one that was on its way may come twice


def test_a_class_that_the_archive_refuses_does_not_hold_up_the_others(site: Site, archive: Archive) -> None:
    picture = mr_dataset(sop_uid="1.2.826.0.1.99")
    picture.SOPClassUID = SecondaryCaptureImageStorage
    picture.save_as(site.files[0].with_name("00000.dcm"), enforce_file_format=True)
    archive.start()
    loop = site.loop("pacs", archive.peer)
    for _ in range(3):
        assert loop.deliver_one()
        site.clock.now += HOUR_S
    assert archive.arrived == site.uids()
    refused = site.delivery()
    assert (refused.state, refused.reason_code) == (DeliveryState.FAILED, "refused")
    assert "Secondary Capture Image Storage" in (refused.reason_text or "")
    assert site.ledger.job(site.job).state is JobState.FAILED


@pytest.mark.parametrize(("status", "state"), [(0x0111, JobState.SENT), (0xB000, JobState.SENT)])
def test_duplicates_and_warnings_count_as_arrived(
    site: Site, archive: Archive, status: int, state: JobState
) -> None:
    archive.answer = lambda event: status
    archive.start()
    assert site.loop("pacs", archive.peer).deliver_one()
    assert site.ledger.job(site.job).state is state


def test_an_archive_without_room_is_left_alone_until_it_has_some(site: Site, archive: Archive) -> None:
    asked = []
    archive.answer = lambda event: (asked.append(1), 0xA700)[1]
    archive.start()
    loop = site.loop("pacs", archive.peer)
    assert loop.deliver_one()
    assert len(asked) == 1  # the rest is not tried on a full archive
    assert site.delivery().state is DeliveryState.PENDING
    archive.answer = lambda event: 0x0000
    site.clock.now += 10
    assert loop.deliver_one()
    assert site.ledger.job(site.job).state is JobState.SENT


@pytest.mark.parametrize("hangs", ["before the association", "before an answer"])
def test_an_archive_that_hangs_delays_no_other_destination(
    tmp_path: Path, archive: Archive, hangs: str
) -> None:
    site = Site(tmp_path, "dead", "pacs")
    free = threading.Event()
    hanging = Archive(lambda event: (free.wait(20), 0x0000)[1])
    silent = socket.create_server(("127.0.0.1", 0))  # takes the connection and says nothing
    hanging.start()
    archive.start()
    peer = hanging.peer
    if hangs == "before the association":
        peer = replace(peer, port=silent.getsockname()[1])
    stop = threading.Event()
    loops = [site.loop("dead", peer), site.loop("pacs", archive.peer)]
    threads = [threading.Thread(target=loop.run, args=(stop,)) for loop in loops]
    try:
        began = time.monotonic()
        for thread in threads:
            thread.start()
        wait_until(lambda: site.delivery("pacs").state is DeliveryState.SENT, 20)
        wait_until(lambda: site.delivery("dead").attempts == 1, 20)
        wait_until(lambda: site.delivery("dead").state is DeliveryState.PENDING, 20)
        assert time.monotonic() - began < 20
        assert site.delivery("dead").reason_code == "unreachable"
        assert site.ledger.job(site.job).state is JobState.SENDING
    finally:
        stop.set()
        free.set()
        for thread in threads:
            thread.join(10)
        hanging.stop()
        silent.close()
    assert not any(thread.is_alive() for thread in threads)


def test_a_result_that_is_gone_does_not_crash_the_loop(site: Site, archive: Archive) -> None:
    archive.start()
    shutil.rmtree(site.spool.result_dir(RESULT))
    loop = site.loop("pacs", archive.peer)
    for _ in range(3):
        loop.deliver_one()
        site.clock.now += HOUR_S
    assert archive.arrived == []
    assert site.ledger.job(site.job).state is not JobState.SENT

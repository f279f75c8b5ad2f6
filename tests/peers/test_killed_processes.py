"""The real processes, killed (SIGKILL) while a study is in each state; Orthanc is the archive and commits.

tests/test_crashes.py kills at every durable step in one process; here are the process boundaries: listener,
worker and daemon die one by one and together, and a scanner that retries is all the help there is.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pydicom
import pytest
from hospital import NODE_AE, PACS_AE, SCANNER_AE, Orthanc, free_ports, orthanc, until
from quick_correction import SETTINGS, write_head_study

from dicom_node.association import Peer, Timeouts
from dicom_node.scu import store

pytestmark = [pytest.mark.peers, pytest.mark.slow]

SETTLE_S = 240.0


@dataclass
class Service:
    """`dicom-node serve` that comes back on the same root after it was killed."""

    folder: Path
    port: int
    pacs_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        return self.folder / "spool"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (web,) = free_ports(1)
        config = self.folder / "config.yaml"
        config.write_text(
            f"""\
node: {{ae_title: {NODE_AE}, bind: 127.0.0.1, port: {self.port}}}
destinations: {{pacs: {{ae_title: {PACS_AE}, host: 127.0.0.1, port: {self.pacs_port},
                       storage_commitment: true, commitment_timeout_s: 10}}}}
storage: {{root: {self.root}, min_free_bytes: 100 MiB}}
assembly: {{series_quiet_s: 1, study_wait_s: 3}}
correction: {{matcher: none, on_poor_quality: flag, device: cpu, threads: 1, attempts: 9,
             settings: {json.dumps(dict(SETTINGS))}}}
web: {{port: {web}}}
"""
        )
        program = Path(sys.executable).with_name("dicom-node")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([program, "--config", config, "serve"], stdout=log, stderr=log)

    def restart_if_gone(self) -> None:
        """What systemd does, also when a start failed: the dead node's listener may hold the port."""
        if self.process is None or self.process.poll() is not None:
            self.start()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)

    def child(self, listens: bool) -> psutil.Process:
        """The listener, or the compute worker."""
        assert self.process is not None
        found = {True: [], False: []}  # type: dict[bool, list[psutil.Process]]
        for child in psutil.Process(self.process.pid).children(recursive=True):
            ports = {c.laddr.port for c in child.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
            found[self.port in ports].append(child)
        return max(found[listens], key=lambda child: child.memory_info().rss)

    def rows(self, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        try:
            with sqlite3.connect(f"file:{self.root / 'ledger.sqlite'}?mode=ro", uri=True) as database:
                return database.execute(sql, parameters).fetchall()
        except sqlite3.OperationalError:  # not there yet
            return []

    def state(self, series_uid: str) -> str:
        """Of the newest job of a series; '' when it has none."""
        found = self.rows("SELECT state FROM jobs WHERE series_uid = ? ORDER BY id DESC LIMIT 1", series_uid)
        return str(found[0][0]) if found else ""


@dataclass(frozen=True)
class Sent:
    dwi_series_uid: str
    files: tuple[Path, ...]


def study(template: Sequence[Path], dwi_uid: str, folder: Path, number: int) -> Sent:
    """A copy of the phantom study under UIDs and a patient of its own."""
    folder.mkdir(parents=True)
    files = []
    for path in template:
        dataset = pydicom.dcmread(path)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            setattr(dataset, keyword, f"{getattr(dataset, keyword)[:50]}.{number}")
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.PatientID = f"CRASH-{number}"
        files.append(folder / f"{len(files):04d}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return Sent(f"{dwi_uid[:50]}.{number}", tuple(files))


def send(service: Service, sent: Sent) -> None:
    """As a scanner: until every image was answered with Success."""
    peer = Peer(NODE_AE, "127.0.0.1", service.port, SCANNER_AE, Timeouts(5, 10, 30, 30))
    left = list(sent.files)
    while left:
        service.restart_if_gone()
        result = store(peer, left)
        arrived = {status.path for status in result.statuses if status.outcome.arrived}
        left = [path for path in left if path not in arrived]
        if left:
            time.sleep(0.5)


class Day:
    """The service, its archive, and everything that was sent."""

    def __init__(self, service: Service, pacs: Orthanc, folder: Path) -> None:
        self.service, self.pacs, self._folder = service, pacs, folder
        made = write_head_study(folder / "template")
        self._template = [*made.reference_files, *made.dwi_files]
        self._dwi_uid = made.dwi_series_uid
        self.sent: list[Sent] = []

    def study(self) -> Sent:
        number = len(self.sent)
        self.sent.append(study(self._template, self._dwi_uid, self._folder / f"study{number}", number))
        return self.sent[-1]

    def until_state(self, sent: Sent, *states: str) -> None:
        def reached() -> bool:
            self.service.restart_if_gone()
            return self.service.state(sent.dwi_series_uid) in states

        until(reached, 120, f"no job was {' or '.join(states)}")

    def settle(self) -> None:
        def settled() -> bool:
            self.service.restart_if_gone()
            return all(self.service.state(sent.dwi_series_uid) == "committed" for sent in self.sent)

        until(settled, SETTLE_S, "not every study was committed")


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    """A day on which everything is killed in turn, told as it happened."""
    folder = tmp_path_factory.mktemp("crashes")
    (port,) = free_ports(1)
    with orthanc(folder / "orthanc", port) as pacs:
        service = Service(folder / "node", port, pacs.dicom_port)
        service.start()
        told = Day(service, pacs, folder)
        try:
            for trouble in TROUBLES:
                trouble(told)
            told.settle()
            yield told
        finally:
            service.stop()


def while_sending(day: Day, kill: Callable[[], None]) -> None:
    """A study, and a kill when a third of it has arrived."""
    sent = day.study()
    scanner = threading.Thread(target=send, args=(day.service, sent))
    scanner.start()
    study_uid = pydicom.dcmread(sent.files[0], specific_tags=["StudyInstanceUID"]).StudyInstanceUID
    count = "SELECT COUNT(*) FROM instances WHERE study_uid = ?"
    until(
        lambda: sum(int(str(n)) for (n,) in day.service.rows(count, study_uid)) > len(sent.files) // 3,
        60,
        "slow",
    )
    kill()
    scanner.join()


def listener_while_receiving(day: Day) -> None:
    while_sending(day, lambda: day.service.child(listens=True).kill())


def daemon_while_receiving(day: Day) -> None:
    while_sending(day, day.service.kill)


def worker_while_correcting(day: Day) -> None:
    sent = day.study()
    send(day.service, sent)
    day.until_state(sent, "correcting")
    day.service.child(listens=False).kill()


def daemon_while_correcting(day: Day) -> None:
    sent = day.study()
    send(day.service, sent)
    day.until_state(sent, "correcting")
    day.service.kill()


def daemon_while_sending(day: Day) -> None:
    """The archive hangs, so that the daemon is surely in the middle of it."""
    sent = day.study()
    hanging = psutil.Process(next(c.pid for c in psutil.net_connections("tcp")
                                  if c.laddr and c.laddr.port == day.pacs.dicom_port
                                  and c.status == psutil.CONN_LISTEN and c.pid))  # fmt: skip
    hanging.send_signal(signal.SIGSTOP)
    try:
        send(day.service, sent)
        day.until_state(sent, "sending")
        time.sleep(0.5)
        day.service.kill()
    finally:
        hanging.send_signal(signal.SIGCONT)


def daemon_while_a_promise_is_awaited(day: Day) -> None:
    sent = day.study()
    send(day.service, sent)
    day.until_state(sent, "sent", "committed")
    day.service.kill()


def ledger_lost(day: Day) -> None:
    """The daemon dies, and the ledger with it: everything is built again from disk."""
    day.settle()
    day.service.kill()
    for path in day.service.root.glob("ledger.sqlite*"):
        path.unlink()
    for part in range(3):  # and the power went in the middle of three images
        (day.service.root / "incoming" / f"{part:032x}.part").write_bytes(os.urandom(1000 * part))


TROUBLES: tuple[Callable[[Day], None], ...] = (
    listener_while_receiving,
    daemon_while_receiving,
    worker_while_correcting,
    daemon_while_correcting,
    daemon_while_sending,
    daemon_while_a_promise_is_awaited,
    ledger_lost,
)


def test_every_study_ended_as_one_committed_derived_series(day: Day) -> None:
    found = day.service.rows(
        "SELECT series_uid, COUNT(*) FROM jobs WHERE state = 'committed' GROUP BY series_uid"
    )
    assert sorted(found) == sorted((sent.dwi_series_uid, 1) for sent in day.sent)


def test_the_archive_holds_each_derived_series_in_full_and_nothing_else(day: Day) -> None:
    outputs = {
        str(uid)
        for (uid,) in day.service.rows("SELECT output_series_uid FROM jobs WHERE state = 'committed'")
    }
    held = {
        series["MainDicomTags"]["SeriesInstanceUID"]: len(series["Instances"]) for series in day.pacs.series()
    }
    assert set(held) == outputs
    assert len(outputs) == len(day.sent)
    dwi = sum(
        pydicom.dcmread(path, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID
        == day.sent[0].dwi_series_uid
        for path in day.sent[0].files
    )
    assert set(held.values()) == {dwi}


def test_no_image_was_lost_and_nothing_is_left_over(day: Day) -> None:
    (counted,) = day.service.rows("SELECT COUNT(*) FROM instances")
    assert counted == (sum(len(sent.files) for sent in day.sent),)
    assert not list((day.service.root / "incoming").iterdir())
    work = [path.name for path in (day.service.root / "work").iterdir()]
    assert all("dask" in name for name in work)


def test_what_the_lost_ledger_knew_was_told_again(day: Day) -> None:
    codes = {code for (code,) in day.service.rows("SELECT DISTINCT code FROM events")}
    assert "ledger-lost" in codes

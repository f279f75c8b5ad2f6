"""P8: while every failure path runs, no patient shows in a log line, a page, a metric, a URL or an answer."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sqlite3
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import structlog
from fastapi.testclient import TestClient
from hostile_files import DATA_SETS, syntax_of
from instances import encoded, mr_dataset
from listening import UID, Node, Scu, starting, wait_until
from pydicom import dcmread
from received_study import QUIET_S, STUDY_WAIT_S, SmallNode, outcome_of, variant, write_small_study

from dicom_node import arrivals, log
from dicom_node.association import Peer, Timeouts
from dicom_node.config_sections import LogSettings
from dicom_node.delivery import DeliveryLoop
from dicom_node.jobs import series_document
from dicom_node.scu import echo
from dicom_node.spool import create_file
from dicom_node.web.app import create_app

PATIENT = re.compile(
    r"phantom|DEMO-0001|19700101", re.IGNORECASE
)  # names, IDs and birth date in all made data


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Everything that was logged or printed so far, at the most talkative level."""
    stream = io.StringIO()
    structured, hooks = structlog.get_config(), (sys.excepthook, threading.excepthook, warnings.showwarning)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.configure(LogSettings(format="json", level="debug"), stream)

    def told() -> str:
        out, err = capfd.readouterr()
        stream.write(out + err)
        return stream.getvalue()

    yield told
    sys.excepthook, threading.excepthook, warnings.showwarning = hooks
    root.handlers[:], root.level = handlers, level
    structlog.configure(**structured)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    yield from starting(tmp_path)


def assert_nobody(text: str, where: str) -> None:
    found = PATIENT.search(text)
    assert found is None, f"{where}: …{text[max(0, found.start() - 80) : found.end() + 20]}…"


def test_receiving_tells_no_patient_whatever_goes_wrong(
    start: Callable[..., Node], lines: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [False]

    def opener(path: Path) -> BinaryIO:
        if failing[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{path}/Phantom^Head")
        return create_file(path)

    node = start(opener, stall_timeout_s=0.5)
    data = encoded(mr_dataset(sop_uid=UID))
    assert b"Phantom^Head" in data
    comments = []

    def send(*arguments: Any, **keywords: Any) -> None:
        comments.append(scu.send(*arguments, **keywords)[1])

    with Scu(node.port) as scu:
        send(data)
        send(data, UID + ".1")  # not the instance that the command names
        send(data, "PHANTOM/../x")
        send(data[:80])
        send(data, UID, "1.2.840.10008.5.1.4.1.1.2")
        failing[0] = True
        send(encoded(mr_dataset(sop_uid=UID + ".2")), UID + ".2")
        failing[0] = False
        with monkeypatch.context() as patch:
            patch.setattr(arrivals, "file_header", lambda *_: int("Phantom^Head"))
            send(data)
        with monkeypatch.context() as patch:
            patch.setattr(
                node.ledger,
                "record_instances",
                lambda _: (_ for _ in ()).throw(sqlite3.OperationalError("locked")),
            )
            send(encoded(mr_dataset(sop_uid=UID + ".3")), UID + ".3")
    for name in ("noise", "wrong vr", "cut in the uids", "sequences before the uids"):
        with Scu(node.port, syntaxes=[syntax_of(name)]) as scu:
            send(DATA_SETS[name](), UID + ".4")
    assert not echo(node.peer(ae_title="PHANTOMX")).answered
    aborting = Scu(node.port)
    aborting.association.dul.socket.socket.sendall(b"\x04\x00\x00\x00\x10\x00Phantom^Head")
    wait_until(lambda: not node.listener._visits)
    aborting.association.kill()
    told = lines()
    assert "quarantine" in told
    assert "could not be stored" in told
    assert "storing failed" in told
    # a called AE title is what a peer says it calls, and is needed to find its mistake
    assert_nobody(told.replace("PHANTOMX", ""), "log")
    assert_nobody(" ".join(comments), "ErrorComment")


def test_jobs_pages_and_metrics_tell_no_patient_whatever_goes_wrong(
    tmp_path: Path, lines: Callable[[], str]
) -> None:
    study = write_small_study(tmp_path / "study")
    header = dcmread(study.dwi_files[0], stop_before_pixels=True)
    assert PATIENT.search(f"{header.PatientName} {header.PatientID}")
    node = SmallNode(tmp_path / "root", attempts=1)
    node.receive([*study.reference_files, *study.dwi_files])
    for number in (7, 8):
        node.receive(variant(study.dwi_files, tmp_path / str(number), number))
    broken = variant(study.dwi_files[:1], tmp_path / "9", 9)
    broken[0].write_bytes(broken[0].read_bytes()[:-100])
    node.receive(broken)
    node.after(QUIET_S + 1)
    for end in ("withheld", "lost", "sent"):
        for job_id in sorted(node.workers.running())[:1]:
            task = node.workers.tasks[job_id]
            if end == "lost":
                words = log.exception_words(ValueError("Phantom^Head, PHANTOM"))  # as workers tell it
                node.workers.end(job_id, error=words)
            else:
                derived = node.spool.result_dir(task.name) / "derived"
                derived.mkdir(parents=True)
                (derived / "00001.dcm").write_bytes(study.dwi_files[0].read_bytes())
                node.workers.end(job_id, outcome_of(task, "reject" if end == "withheld" else "pass"))
            node.after(1)
            node.after(1)
    dead = Peer("PACS", "127.0.0.1", 9, "NODE", Timeouts(1, 1, 1, 1))
    DeliveryLoop("PACS", dead, node.ledger, node.spool, give_up_days=7, clock=node.clock).deliver_one()
    states = {job.state.value for job in node.jobs()}
    assert {"withheld", "failed", "sending"} <= states, states

    assert_pages_tell_nobody(node)
    assert_nobody(lines(), "log")


def test_a_name_typed_into_descriptions_is_told_nowhere(tmp_path: Path, lines: Callable[[], str]) -> None:
    study = write_small_study(tmp_path / "study")
    node = SmallNode(tmp_path / "root")

    def receive(files: Sequence[Path], number: int, words: str, **elements: Any) -> None:
        named = f"{words} PHANTOM^HEAD".strip()
        elements = {"StudyDescription": named, "ProtocolName": "PHANTOM^HEAD dwi"} | elements
        copies = variant(files, tmp_path / str(number), number, SeriesDescription=named, **elements)
        node.receive(copies)

    receive(study.dwi_files, 5, "dwi")
    derived = ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]
    receive(study.dwi_files, 6, "dwi TRACEW", ImageType=derived)
    receive(study.reference_files, 7, "T2")
    receive(study.reference_files, 8, "T2")  # lost to the other
    receive(study.reference_files[:5], 9, "T2")  # too few slices
    receive(study.reference_files, 10, "localizer")
    receive(study.reference_files, 11, "", ProtocolName="scout PHANTOM^HEAD")
    receive(study.reference_files, 12, "Field Map")
    receive(study.reference_files, 13, "", ProtocolName="b0_map PHANTOM^HEAD")
    alone = {"StudyInstanceUID": "1.2.3", "PatientID": "PHANTOM-2"}
    receive(study.dwi_files, 14, "dwi", **alone)
    receive(study.reference_files[:5], 15, "T2", **alone)
    mixed = {"StudyInstanceUID": "1.2.4"}
    receive(study.dwi_files, 16, "dwi", **mixed)
    receive(study.reference_files, 17, "T2", PatientID="OTHER", **mixed)
    node.after(QUIET_S + 1)
    node.after(STUDY_WAIT_S)
    reasons = {job.series_number: job.reason_code for job in node.jobs()}
    assert reasons == {5: None, 14: "no-reference", 16: "patient-mismatch"}
    told = {item["series_number"]: item["why"] for item in series_document(node.ledger.all_series())}
    assert "series 5" in told[6]
    assert [told[number].split(" ")[0] for number in (10, 11)] == ["SeriesDescription", "ProtocolName"]
    assert [told[number].split(" ")[0] for number in (12, 13)] == ["SeriesDescription", "ProtocolName"]
    assert_pages_tell_nobody(node)
    assert_nobody(lines(), "log")


def assert_pages_tell_nobody(node: SmallNode) -> None:
    """Ask for everything that is served over HTTP, and for what is not there."""
    health = {"status": "degraded", "checks": {"listener": "ok", "destinations": {"PACS": "refused"}}}
    app = create_app(node.ledger, node.spool, lambda: health, destinations=("PACS",), title="NODE")
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    paths = ["/", "/review", "/series", "/login", "/metrics", "/health", "/api/jobs", "/api/series"]
    paths += ["/openapi.json", "/jobs/77", "/api/jobs/77", "/nowhere", "/?state=x", "/jobs/x"]
    for job in node.jobs():
        paths += [f"/jobs/{job.id}", f"/api/jobs/{job.id}", f"/api/jobs/{job.id}/qc.png"]
        paths += [f"POST /api/jobs/{job.id}/withhold", f"POST /jobs/{job.id}/retry"]
    for path in paths:
        method, _, rest = path.rpartition(" ")
        answer = client.request(method or "GET", rest)
        assert_nobody(answer.text, path)
        assert_nobody(str(answer.headers), path)
        for link in re.findall(r'(?:href|src|action)="([^"]*)"', answer.text):
            assert_nobody(link, f"a link of {path}")


def test_an_error_of_a_page_tells_no_patient(tmp_path: Path, lines: Callable[[], str]) -> None:
    node = SmallNode(tmp_path / "root")

    def broken() -> dict[str, Any]:
        raise KeyError("Phantom^Head")

    app = create_app(node.ledger, node.spool, broken)
    client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    for path in ("/", "/metrics", "/health"):
        answer = client.get(path)
        assert answer.status_code == 500
        assert_nobody(answer.text, path)
    told = lines()
    assert "a page failed" in told
    assert_nobody(told, "log")

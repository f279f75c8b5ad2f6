"""Our listener and SCU against DCMTK's storescu, storescp and echoscu, on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import make_certificates, tls
from instances import write_series
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.association import Peer, Timeouts
from dicom_node.ledger import Ledger
from dicom_node.listener import Listener, ListenerSettings
from dicom_node.scu import echo, store
from dicom_node.sockets import TlsSettings
from dicom_node.spool import Spool
from dicom_node.statuses import Outcome

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(shutil.which("storescu") is None, reason="DCMTK is not installed"),
]


class Node:
    def __init__(self, root: Path, tls_settings: TlsSettings | None = None) -> None:
        self.root = root
        settings = ListenerSettings(
            "NODE",
            root,
            root / "ledger.sqlite",
            bind="127.0.0.1",
            port=0,
            min_free_bytes=0,
            tls=tls_settings,
        )
        self.ledger = Ledger(settings.ledger_path)
        self.listener = Listener(settings, Spool(root, 0), self.ledger)
        self.listener.start()
        self.address = ["127.0.0.1", str(self.listener.port)]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.root / "ledger.sqlite") as database:
            return database.execute(sql).fetchall()

    def stop(self) -> None:
        self.listener.stop()
        self.ledger.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    running = Node(tmp_path / "root")
    yield running
    running.stop()


def dcmtk(*command: object, nagle: bool = True) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({} if nagle else {"TCP_NODELAY": "1"})
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment, timeout=120
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Archive:
    """DCMTK's storescp with a folder."""

    def __init__(self, folder: Path, *options: object, **changes: Any) -> None:
        folder.mkdir()
        self.folder = folder
        port = free_port()
        command = ["storescp", "-aet", "ARCHIVE", "-od", folder, *options, port]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.peer = Peer("ARCHIVE", "127.0.0.1", port, "NODE", Timeouts(5, 5, 10, 10), **changes)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("storescp did not start")

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Callable[..., Archive]]:
    running: list[Archive] = []

    def starting(*options: object, **changes: Any) -> Archive:
        running.append(Archive(tmp_path / f"archive{len(running)}", *options, **changes))
        return running[-1]

    yield starting
    for one in running:
        one.process.terminate()
        one.process.wait()


# -------------------------------------------------------------------- DCMTK calls us


def test_echoscu_is_answered(node: Node) -> None:
    assert dcmtk("echoscu", "-aec", "NODE", *node.address).returncode == 0
    refused = dcmtk("echoscu", "-aec", "OTHER", *node.address)
    assert refused.returncode != 0
    assert "Called AE Title Not Recognized" in refused.stderr + refused.stdout


def test_a_series_of_small_instances_arrives_whole(node: Node, tmp_path: Path) -> None:
    series = tmp_path / "series"
    write_series(series, 200, size=64)
    sent = dcmtk("storescu", "-aet", "SCANNER1", "-aec", "NODE", *node.address, "+sd", series)
    assert sent.returncode == 0, sent.stderr
    assert node.rows("SELECT COUNT(DISTINCT path) FROM instances") == [(200,)]


@pytest.mark.parametrize("syntax", ["-xe", "-xi", "-xd", "-xb"])
def test_every_uncompressed_syntax_arrives_whole(node: Node, tmp_path: Path, syntax: str) -> None:
    files = write_series(tmp_path / "series", 3)
    assert dcmtk("storescu", "-aec", "NODE", syntax, *node.address, *files).returncode == 0
    for path in files:
        sent = dcmread(path)
        record = node.ledger.instance(sent.SOPInstanceUID)
        assert record is not None
        stored = dcmread(node.root / record.path)
        assert stored.file_meta.TransferSyntaxUID == record.transfer_syntax_uid
        assert (stored.pixel_array == sent.pixel_array).all()


def test_a_real_study_arrives_whole_and_sending_it_again_changes_nothing(
    node: Node, data_set: Callable[[str], Path]
) -> None:
    study = data_set("siemens-e11-mosaic")
    send = ["storescu", "-aec", "NODE", "-nh", "+sd", "+r", *node.address, study]
    dcmtk(*send)  # its exit code is that of the licence file among the images
    uids = {}
    for path in study.rglob("*"):
        if path.is_file() and path.read_bytes()[128:132] == b"DICM":
            uids[str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)] = path
    assert node.rows("SELECT COUNT(*) FROM instances") == [(len(uids),)]
    for uid, path in uids.items():
        record = node.ledger.instance(uid)
        assert record is not None
        assert dcmread(node.root / record.path).PixelData == dcmread(path).PixelData
    before = sorted((path, path.stat().st_mtime_ns) for path in node.root.rglob("*.dcm"))
    dcmtk(*send)
    assert sorted((path, path.stat().st_mtime_ns) for path in node.root.rglob("*.dcm")) == before
    assert node.rows("SELECT MAX(revision), MIN(repeats) FROM instances") == [(1, 1)]


def test_four_storescu_at_once_with_the_same_study_store_it_once(node: Node, tmp_path: Path) -> None:
    write_series(tmp_path / "series", 50, size=32)
    command = ["storescu", "-aec", "NODE", *node.address, "+sd", str(tmp_path / "series")]
    senders = [subprocess.Popen(command) for _ in range(4)]
    assert [sender.wait(60) for sender in senders] == [0] * 4
    assert node.rows("SELECT COUNT(*), MAX(revision), SUM(repeats) FROM instances") == [(50, 1, 150)]


def test_a_storescu_that_is_killed_leaves_whole_instances_and_an_aborted_association(
    node: Node, tmp_path: Path
) -> None:
    write_series(tmp_path / "series", 400, size=256)
    sender = subprocess.Popen(["storescu", "-aec", "NODE", *node.address, "+sd", str(tmp_path / "series")])
    while node.rows("SELECT COUNT(*) FROM instances")[0][0] < 20:
        assert sender.poll() is None
        time.sleep(0.01)
    sender.kill()
    sender.wait()
    for _ in range(100):
        if node.rows("SELECT aborted FROM associations WHERE closed IS NOT NULL") == [(1,)]:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the association was not recorded as aborted")
    recorded = {node.root / path for (path,) in node.rows("SELECT path FROM instances")}
    assert recorded == set((node.root / "instances").rglob("*.dcm"))
    assert all(len(dcmread(path).PixelData) == 256 * 256 * 2 for path in recorded)
    assert list((node.root / "incoming").iterdir()) == []


# -------------------------------------------------------------------- we call DCMTK


@pytest.mark.parametrize("nagle", [True, False])
def test_a_series_of_small_instances_arrives_at_storescp(
    tmp_path: Path, archive: Callable[..., Archive], nagle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nagle:
        monkeypatch.setenv("TCP_NODELAY", "1")
    there = archive()
    series = tmp_path / "series"
    write_series(series, 200, size=64)
    assert store(there.peer, sorted(series.iterdir())).complete
    assert len(there.files) == 200


def test_the_archive_has_byte_for_byte_what_we_have(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    there = archive("+B")
    files = write_series(tmp_path / "series", 3)
    assert store(there.peer, files).complete
    sent = {str(dcmread(path).SOPInstanceUID): dcmread(path) for path in files}
    for path in there.files:
        arrived = dcmread(path)
        assert arrived == sent[arrived.SOPInstanceUID]
        assert arrived.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_an_archive_of_implicit_vr_only_gets_that(tmp_path: Path, archive: Callable[..., Archive]) -> None:
    there = archive("+xi", "+B")
    files = write_series(tmp_path / "series", 2)
    assert store(there.peer, files).complete
    for path in there.files:
        arrived = dcmread(path)
        assert arrived.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert arrived.PixelData in [dcmread(sent).PixelData for sent in files]


def test_storescp_answers_our_echo(archive: Callable[..., Archive]) -> None:
    assert echo(archive().peer).answered


def test_an_archive_that_refuses_every_association(archive: Callable[..., Archive]) -> None:
    problem = echo(archive("--refuse").peer).problem
    assert problem is not None
    assert "rejected the association" in problem.text


@pytest.mark.parametrize("when", ["--abort-after", "--abort-during"])
def test_an_archive_that_aborts(tmp_path: Path, archive: Callable[..., Archive], when: str) -> None:
    files = write_series(tmp_path / "series", 3, size=256)
    result = store(archive(when).peer, files)
    assert result.problem is not None
    assert result.problem.transient
    assert [status.outcome for status in result.statuses] == [Outcome.TRANSIENT]
    assert result.not_tried == tuple(files[1:])


def test_an_archive_that_is_killed_mid_series_is_resumed_with_what_it_lacks(
    tmp_path: Path, archive: Callable[..., Archive]
) -> None:
    first, second = archive("--sleep-after", "1"), archive()
    files = write_series(tmp_path / "series", 4)
    result = store(first.peer, files, lambda status: first.process.kill())
    assert not result.complete
    arrived = {status.path for status in result.statuses if status.outcome.arrived}
    rest = [path for path in files if path not in arrived]
    assert arrived
    assert rest
    assert store(second.peer, rest).complete
    assert len(second.files) == len(rest)


# -------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_mutual_tls_with_dcmtk_in_both_directions(
    tmp_path: Path, certificates: Path, archive: Callable[..., Archive]
) -> None:
    files = write_series(tmp_path / "series", 3, size=128)
    dcmtk_tls = ["+tls", certificates / "peer.key", certificates / "peer.pem", "+cf", certificates / "ca.pem"]
    node = Node(tmp_path / "root", tls(certificates, "node"))
    try:
        sent = dcmtk("storescu", *dcmtk_tls, "-aec", "NODE", *node.address, *files)
        assert sent.returncode == 0, sent.stderr
        assert node.rows("SELECT COUNT(*) FROM instances") == [(3,)]
        assert dcmtk("storescu", "-aec", "NODE", *node.address, *files).returncode != 0
    finally:
        node.stop()
    there = archive(*dcmtk_tls, tls=tls(certificates, "node"))
    assert store(there.peer, files).complete
    assert len(there.files) == 3

"""The daemon: settings reach the parts, parts that die are noticed, systemd is told."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from certificates import make_certificates

from dicom_node.config import Settings
from dicom_node.node import Node, NodeError, listener_settings, notify, peers
from dicom_node.scu import Peer, echo


def settings(root: Path, **changes: object) -> Settings:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, web_port = one.getsockname()[1], other.getsockname()[1]
    document = {
        "node": {"ae_title": "NODE", "bind": "0.0.0.0", "port": port},
        "storage": {"root": str(root), "min_free_bytes": "1 MiB"},
        "web": {"port": web_port},
        "log": {"level": "error"},
    }
    return Settings.model_validate(document | changes)


def eventually(condition: Callable[[], bool], limit_s: float = 60.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Settings]]:
    chosen = settings(tmp_path_factory.mktemp("node"))
    node = Node(chosen)
    node.start()
    stop = threading.Event()
    loop = threading.Thread(target=node.run, args=(stop,))
    loop.start()
    yield node, chosen
    stop.set()
    loop.join()
    node.stop()


def test_what_the_configuration_says_of_tls_reaches_both_sides(tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "certificates")
    ours = {"certificate": made / "node.pem", "key": made / "node.key", "ca": made / "ca.pem"}
    pacs = {"ae_title": "PACS", "host": "127.0.0.1", "port": 104, "tls": {"ca": made / "ca.pem"}}
    chosen = settings(tmp_path / "root", node={"ae_title": "NODE", "tls": ours}, destinations={"pacs": pacs})
    listening, calling = listener_settings(chosen).tls, peers(chosen)["pacs"].tls
    assert listening is not None
    assert (listening.certificate, listening.require_client_certificate) == (made / "node.pem", True)
    assert calling is not None
    assert (calling.ca, calling.certificate) == (made / "ca.pem", None)


def test_a_running_node_is_healthy_and_answers(running: tuple[Node, Settings]) -> None:
    node, chosen = running
    assert node.health()["status"] == "ok"
    assert echo(Peer("NODE", "127.0.0.1", chosen.node.port, "SCANNER")).answered


def test_a_port_that_is_taken_is_told_in_one_sentence(running: tuple[Node, Settings], tmp_path: Path) -> None:
    _, chosen = running
    second = Node(settings(tmp_path, node=chosen.node.model_dump()))
    with pytest.raises(NodeError, match=f"cannot listen on 0.0.0.0:{chosen.node.port}"):
        second.start()


def test_only_the_dicom_port_can_be_reached_from_other_machines(running: tuple[Node, Settings]) -> None:
    """Status page, compute scheduler, workers and their nannies: loopback alone."""
    node, chosen = running
    assert eventually(lambda: node.health()["checks"]["workers"] == "ok")
    ours = psutil.Process()
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in (ours, *ours.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    reachable = {address for address in listening if address[0] not in ("127.0.0.1", "::1")}
    assert reachable == {("0.0.0.0", chosen.node.port)}
    assert len(listening) >= 4  # DICOM, status page, scheduler, worker


def test_a_listener_that_is_killed_is_started_again(running: tuple[Node, Settings]) -> None:
    node, chosen = running
    killed = node._listener
    assert killed is not None
    os.kill(killed.pid or 0, signal.SIGKILL)
    peer = Peer("NODE", "127.0.0.1", chosen.node.port, "SCANNER")
    assert eventually(lambda: node._listener is not killed and echo(peer).answered)


def test_a_token_file_that_is_empty_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" \n")
    node = Node(settings(tmp_path / "root", web={"port": 1, "token_file": tmp_path / "token"}))
    with pytest.raises(NodeError, match="empty"):
        node.start()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The end of the notify socket that systemd reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield channel


class Loop:
    """A reconcile loop whose tick takes as long as the test wants."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1
        self.goes_on.wait(30)


def test_the_watchdog_is_fed_by_each_tick_and_starves_when_one_is_stuck(
    tmp_path: Path, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.node.TICK_S", 0.01)
    node, loop, stop = Node(settings(tmp_path / "root")), Loop(), threading.Event()
    monkeypatch.setattr(node, "_reconciler", loop)
    monkeypatch.setattr(node, "_keep_listener", lambda: None)
    running = threading.Thread(target=node.run, args=(stop,))
    running.start()
    try:
        assert {systemd.recv(64) for _ in range(5)} == {b"WATCHDOG=1"}
        loop.goes_on.clear()
        time.sleep(0.3)  # the tick before it has ended
        systemd.setblocking(False)
        with suppress(BlockingIOError):
            while systemd.recv(64):  # what was said until then
                pass
        systemd.settimeout(0.5)
        with pytest.raises(TimeoutError):
            systemd.recv(64)
        loop.goes_on.set()
        systemd.settimeout(5)
        assert systemd.recv(64) == b"WATCHDOG=1"
    finally:
        loop.goes_on.set()
        stop.set()
        running.join()
        node.stop()


def test_a_tick_that_fails_is_not_the_end_of_the_loop(
    tmp_path: Path, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.node.TICK_S", 0.01)
    node, loop, stop = Node(settings(tmp_path / "root")), Loop(), threading.Event()

    def fail() -> None:
        loop.ticks += 1
        raise OSError("the disk is full")

    monkeypatch.setattr(loop, "tick", fail)
    monkeypatch.setattr(node, "_reconciler", loop)
    monkeypatch.setattr(node, "_keep_listener", lambda: None)
    running = threading.Thread(target=node.run, args=(stop,))
    running.start()
    assert eventually(lambda: loop.ticks > 3, 5)
    stop.set()
    running.join()
    node.stop()


def test_systemd_hears_what_is_said(systemd: socket.socket) -> None:
    notify("READY=1")
    assert systemd.recv(64) == b"READY=1"


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")

"""The daemon: settings reach the parts, and parts that die are noticed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from certificates import make_certificates

from dicom_node.association import Peer
from dicom_node.config import Settings
from dicom_node.config_parts import peers
from dicom_node.node import Node, listener_settings
from dicom_node.preconditions import NodeError
from dicom_node.scu import echo


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
    told = f"The node cannot listen on 0.0.0.0:{chosen.node.port}: another program uses it; .* node.port "
    with pytest.raises(NodeError, match=told):
        second.start()


def test_a_node_that_has_not_started_yet_says_that_it_is_starting(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    node, seen = Node(chosen), threading.Event()
    said: list[str] = []

    def watch() -> None:
        while not seen.is_set():
            with contextlib.suppress(httpx.TransportError):
                said.append(httpx.get(f"http://127.0.0.1:{chosen.web.port}/health").json()["status"])
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        node.start()
        assert eventually(lambda: bool(said) and said[-1] == "ok")
    finally:
        seen.set()
        watching.join()
        node.stop()
    assert set(said) == {"starting", "ok"}


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

"""systemd hears that the node lives, from each tick of its loop, and nothing from a loop that is stuck.

A module of its own: every node of this process would talk to the socket.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dicom_node.config import Settings
from dicom_node.node import Node
from dicom_node.systemd import notify


def settings(folder: Path) -> Settings:
    return Settings.model_validate(
        {"node": {"ae_title": "NODE"}, "storage": {"root": str(folder / "root")}, "log": {"level": "error"}}
    )


def eventually(condition: Callable[[], bool], limit_s: float = 5.0) -> bool:
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


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
    node, loop, stop = Node(settings(tmp_path)), Loop(), threading.Event()
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
    node, loop, stop = Node(settings(tmp_path)), Loop(), threading.Event()

    def fail() -> None:
        loop.ticks += 1
        raise OSError("the disk is full")

    monkeypatch.setattr(loop, "tick", fail)
    monkeypatch.setattr(node, "_reconciler", loop)
    monkeypatch.setattr(node, "_keep_listener", lambda: None)
    running = threading.Thread(target=node.run, args=(stop,))
    running.start()
    assert eventually(lambda: loop.ticks > 3)
    stop.set()
    running.join()
    node.stop()


def test_systemd_hears_what_is_said(systemd: socket.socket) -> None:
    notify("READY=1")
    assert systemd.recv(64) == b"READY=1"


def test_without_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")

"""The processes of the soak: a node and an archive that are killed, and come back as systemd has it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.networks import free_port, wait_for_port

NODE_AE, PACS_AE, SCANNER_AE = "DWICORR", "ORTHANC", "SCANNER"
RESTART_S = 5.0  # RestartSec of the service
# corrects a coarse head in a second or two, and takes any field for better than none
QUICK = {
    "coarse_voxel_mm": "6", "judge_voxel_mm": "6", "wide_voxel_mm": "8",
    "wide_spacings_mm": "60", "spacings_mm": "40,20", "near_spacing_mm": "20", "near_step_mm": "2",
    "label_step_mm": "2", "iterations": "4", "least_gain": "-1",
    "most_structure_ratio": "10",
}  # fmt: skip


@dataclass
class Service:
    """A program that is started again when it ends, until `stop`."""

    name: str
    command: list[str]
    log: Path
    restart_s: float
    environment: dict[str, str] = field(default_factory=dict)
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _ending: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start it, and a thread that starts it again whenever it ends."""
        self._spawn()
        threading.Thread(target=self._keep, daemon=True).start()

    @property
    def pid(self) -> int | None:
        """Of the running process; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def kill(self) -> bool:
        """kill -9; whether there was something to kill."""
        if (pid := self.pid) is None:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    def stop(self) -> int:
        """End it in order; its exit status."""
        self._ending.set()
        process = self._process
        if process is None:
            return 0
        process.terminate()
        try:
            return process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=os.environ | self.environment
            )
        self.starts += 1

    def _keep(self) -> None:
        while not self._ending.is_set():
            if self.pid is None and not self._ending.wait(self.restart_s):
                self._spawn()
            self._ending.wait(0.2)


# -------------------------------------------------------------------- the two services


def archive(folder: Path, node_port: int) -> tuple[Service, int, httpx.Client]:
    """Orthanc, which commits to what it stores by calling the node back; with its port and REST interface."""
    folder.mkdir(parents=True)
    dicom_port, http_port = free_port(), free_port()
    (folder / "orthanc.json").write_text(
        json.dumps(
            {
                "Name": "PACS",
                "StorageDirectory": str(folder / "db"),
                "IndexDirectory": str(folder / "db"),
                "DicomAet": PACS_AE,
                "DicomPort": dicom_port,
                "HttpPort": http_port,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "DicomAlwaysAllowStore": True,
                "DicomModalities": {"node": [NODE_AE, "127.0.0.1", node_port]},
            }
        )
    )
    service = Service("archive", ["Orthanc", str(folder / "orthanc.json")], folder / "log", restart_s=10.0)
    service.start()
    wait_for_port(dicom_port)
    return service, dicom_port, httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=30)


def node(folder: Path, port: int, pacs_port: int) -> tuple[Service, httpx.Client]:
    """`dicom-node serve` with short waits; its HTTP interface."""
    folder.mkdir(parents=True)
    web_port = free_port()
    settings: dict[str, Any] = {
        "node": {"ae_title": NODE_AE, "bind": "127.0.0.1", "port": port},
        "destinations": {
            "PACS": {
                "ae_title": PACS_AE,
                "host": "127.0.0.1",
                "port": pacs_port,
                "storage_commitment": True,
                "commitment_timeout_s": 20,
            }
        },
        "storage": {"root": str(folder / "spool"), "min_free_bytes": "100 MiB"},
        "assembly": {"series_quiet_s": 2, "study_wait_s": 10},
        "correction": {
            "matcher": "none",
            "settings": QUICK,
            "device": "cpu",
            "threads": 1,
            "on_poor_quality": "flag",
            "attempts": 20,
        },
        "web": {"port": web_port},
        "log": {"format": "json"},
    }
    (folder / "config.yaml").write_text(json.dumps(settings, indent=1))  # JSON is YAML
    program = Path(sys.executable).with_name("dicom-node")
    command = [str(program), "--config", str(folder / "config.yaml"), "serve"]
    service = Service("node", command, folder / "log", restart_s=RESTART_S)
    service.start()
    return service, httpx.Client(base_url=f"http://127.0.0.1:{web_port}", timeout=30)


# -------------------------------------------------------------------- its children


def listener_of(pid: int, port: int) -> psutil.Process | None:
    """The child of the node that listens on the DICOM port."""
    for child in _children(pid):
        try:
            listening = [c for c in child.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        except psutil.Error:
            continue
        if any(connection.laddr.port == port for connection in listening):
            return child
    return None


def worker_of(pid: int, port: int) -> psutil.Process | None:
    """A compute worker of the node: the child with the most memory that is not the listener."""
    listener = listener_of(pid, port)
    found = [child for child in _children(pid) if listener is None or child.pid != listener.pid]
    return max(found, key=_memory, default=None)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


# -------------------------------------------------------------------- trouble


VICTIMS = ("daemon", "listener", "worker", "archive")


@dataclass
class Killer:
    """Kills the daemon, its listener, a worker or the archive, one after the other at random."""

    node: Service
    archive: Service
    port: int
    every_s: tuple[float, float]
    chance: random.Random
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))

    def strike(self, what: tuple[str, ...]) -> None:
        """Kill one of these now, if it is there."""
        victim = self.chance.choice(what)
        pid = self.node.pid
        if victim == "daemon":
            struck = self.node.kill()
        elif victim == "archive":
            struck = self.archive.kill()
        else:
            find = listener_of if victim == "listener" else worker_of
            process = find(pid, self.port) if pid is not None else None
            struck = process is not None and _killed(process)
        self.kills[victim] += struck

    def pause_s(self) -> float:
        """How long until the next one."""
        return self.chance.uniform(*self.every_s)


def _killed(process: psutil.Process) -> bool:
    try:
        process.kill()
    except psutil.Error:
        return False
    return True


# -------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Sample:
    """What a process holds."""

    at: float
    process: str
    pid: int
    rss_bytes: int
    threads: int
    descriptors: int


def samples(pid: int, port: int) -> list[Sample]:
    """Of the daemon and its listener, now."""
    found = []
    for name, process in (("daemon", _process(pid)), ("listener", listener_of(pid, port))):
        if process is None:
            continue
        try:
            with process.oneshot():
                found.append(
                    Sample(
                        time.monotonic(),
                        name,
                        process.pid,
                        process.memory_info().rss,
                        process.num_threads(),
                        process.num_fds(),
                    )
                )
        except psutil.Error:
            continue
    return found


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None

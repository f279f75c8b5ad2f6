"""A small hospital for the tests: Orthanc is the PACS, `dicom-node serve` the node, storescu the scanner."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

NODE_AE, PACS_AE, SCANNER_AE = "DWICORR", "ORTHANC", "SCANNER"
ENDS = {"sent", "committed", "skipped", "withheld", "failed", "superseded"}


def needed(*programs: str) -> None:
    """Skip the test where one of the peers is not installed; .ci/run installs them all."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (.ci/run names the Debian package)")


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


@dataclass(frozen=True, slots=True)
class Orthanc:
    """The PACS, seen through its REST interface."""

    http: httpx.Client
    dicom_port: int

    def count_instances(self) -> int:
        return int(self.http.get("/statistics").json()["CountInstances"])

    def series(self) -> list[dict[str, Any]]:
        found = self.http.get("/series", params={"expand": ""}).json()
        assert isinstance(found, list)
        return found

    def store(self, paths: Iterable[Path]) -> None:
        """Put files in, past the network."""
        for path in paths:
            self.http.post("/instances", content=path.read_bytes()).raise_for_status()

    def download(self, series: dict[str, Any], folder: Path) -> list[Path]:
        """The instances of a series as files."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, instance in enumerate(sorted(series["Instances"])):
            path = folder / f"{number:05d}.dcm"
            path.write_bytes(self.http.get(f"/instances/{instance}/file").content)
            paths.append(path)
        return paths


@contextmanager
def orthanc(folder: Path, node_port: int = 0, plugins: Sequence[Path] = ()) -> Iterator[Orthanc]:
    """An empty Orthanc on loopback. node_port: where it calls the node back, to commit to what it stored."""
    needed("Orthanc")
    dicom_port, http_port = free_ports(2)
    folder.mkdir(parents=True)
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
                "DicomCheckCalledAet": True,
                "OverwriteInstances": False,
                "DicomModalities": {"node": [NODE_AE, "127.0.0.1", node_port]} if node_port else {},
                "Plugins": [str(plugin) for plugin in plugins],
                "WebViewer": {"CachePath": str(folder / "viewer")},
            }
        )
    )
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=60) as http:
            until(lambda: _answers(process, http), 60, "Orthanc did not start")
            yield Orthanc(http, dicom_port)
    finally:
        process.terminate()
        process.wait(30)


def _answers(process: subprocess.Popen[bytes], http: httpx.Client) -> bool:
    assert process.poll() is None, "Orthanc ended at once: see orthanc.log"
    return http.get("/system").status_code == 200


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A `dicom-node serve` process, seen as a user sees it: by command line and HTTP."""

    config: Path
    port: int
    http: httpx.Client

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return dicom_node("--config", str(self.config), *arguments, check=check)

    def jobs(self) -> list[dict[str, Any]]:
        found = json.loads(self.command("jobs", "--json").stdout)["jobs"]
        assert isinstance(found, list)
        return found

    def wait_until_settled(self, limit_s: float) -> list[dict[str, Any]]:
        """Wait until every received series is complete and every job has ended; the jobs."""

        def settled() -> bool:
            series = self.http.get("/api/series", params={"limit": 1000}).json()["series"]
            jobs = self.http.get("/api/jobs", params={"limit": 1000}).json()["jobs"]
            return (
                bool(series)
                and all(item["state"] == "complete" and item["class"] for item in series)
                and all(job["state"] in ENDS for job in jobs)
            )

        until(settled, limit_s, "the node did not settle")
        return self.jobs()


def dicom_node(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    program = Path(sys.executable).with_name("dicom-node")
    return subprocess.run([program, *arguments], check=check, capture_output=True, text=True, timeout=600)


@contextmanager
def node(folder: Path, pacs_port: int, **changes: str) -> Iterator[RunningNode]:
    """`dicom-node serve` with short waits; changes: DICOM_NODE__… variables."""
    folder.mkdir(parents=True, exist_ok=True)
    port, web_port = free_ports(2)
    config = folder / "config.yaml"
    config.write_text(
        f"""\
node: {{ae_title: {NODE_AE}, bind: 127.0.0.1, port: {port}}}
destinations: {{pacs: {{ae_title: {PACS_AE}, host: 127.0.0.1, port: {pacs_port}}}}}
storage: {{root: {folder / "spool"}, min_free_bytes: 100 MiB}}
assembly: {{series_quiet_s: 3, study_wait_s: 8}}
web: {{port: {web_port}}}
"""
    )
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("dicom-node"), "--config", config, "serve"],
            stdout=log,
            stderr=log,
            env=os.environ | changes,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{web_port}", timeout=60) as http:

            def up() -> bool:
                if process.poll() is not None:
                    raise AssertionError((folder / "serve.log").read_text())
                return http.get("/health").json()["checks"]["workers"] == "ok"

            until(up, 120, "the node did not start")
            yield RunningNode(config, port, http)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def storescu(port: int, *paths: Path, propose: str = "") -> None:
    """Send folders as a scanner would; licence files lie between the images, so it must not halt.

    propose: the option by which storescu offers a compressed transfer syntax.
    """
    needed("storescu")
    environment = os.environ | {"TCP_NODELAY": "1"}
    for path in paths:
        subprocess.run(
            ["storescu", "--no-halt", *filter(None, [propose]), "-aet", SCANNER_AE, "-aec", NODE_AE,
             "+sd", "+r", "127.0.0.1", str(port), str(path)],
            check=False, capture_output=True, timeout=600, env=environment,
        )  # fmt: skip


def dcm2niix(folder: Path, out: Path) -> dict[int, tuple[dict[str, Any], tuple[float, ...], Path]]:
    """Convert a folder: SeriesNumber → (sidecar, b-values, NIfTI path)."""
    out.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).with_name("dcm2niix")
    subprocess.run(
        [program, "-b", "y", "-z", "n", "-f", "%s_%d_%e", "-o", out, folder], check=True, capture_output=True
    )
    found: dict[int, tuple[dict[str, Any], tuple[float, ...], Path]] = {}
    for sidecar in sorted(out.glob("*.json")):
        text = json.loads(sidecar.read_text(encoding="utf-8", errors="replace"))
        bval = sidecar.with_suffix(".bval")
        b_values = tuple(map(float, bval.read_text().split())) if bval.exists() else ()
        number = int(text["SeriesNumber"])
        if number not in found or b_values:
            found[number] = (text, b_values, sidecar.with_suffix(".nii"))
    return found


def until(condition: Any, limit_s: float, what: str) -> None:
    """Wait until `condition()` holds; `what` is said when it does not in time."""
    end = time.monotonic() + limit_s
    while True:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > end:
            raise AssertionError(f"{what} within {limit_s:g} s")
        time.sleep(0.5)


def errors_of(program: Sequence[str], path: Path) -> set[str]:
    """The Error lines of dciodvfy."""
    needed(program[0])
    run = subprocess.run([*program, str(path)], capture_output=True, text=True, errors="replace", check=False)
    return {line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error")}

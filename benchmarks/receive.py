"""How fast instances are received: our listener (durable) against DCMTK's storescp, in the same run.

    python -m benchmarks.receive [--series 512x300 128x6000] [--associations 1 4] [--json FILE]

DCMTK's storescu sends, with TCP_NODELAY=1 in its environment; one short series also with Nagle's algorithm,
as packaged. A series is pixels a side and instances.
Ours answers Success after fsync of the file, rename, fsync of the folder and a committed ledger row;
storescp writes without fsync and keeps no ledger, so it is a bound and not an equal.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import structlog

from benchmarks.networks import (
    NAGLE,
    environment,
    free_port,
    machine,
    make_series,
    running_storescp,
    save,
    show,
    wait_for_port,
)
from dicom_node.listener import ListenerSettings, run_listener

DURABLE = "fsync(file), rename, fsync(folder), ledger commit (WAL, synchronous=FULL)"
NAGLE_RUN = (64, 300, 1, True)  # size, instances, associations, Nagle: 13 s for DCMTK's receiver
NOT_DURABLE = "write only, no fsync, no ledger"


def send_all(port: int, folders: list[Path], nagle: bool) -> float:
    """Seconds that one storescu for each folder, all at once, take to send everything."""
    commands = [
        ["storescu", "-aec", "NODE", "-pdu", "131072", "127.0.0.1", str(port), "+sd", str(folder)]
        for folder in folders
    ]
    began = time.perf_counter()
    senders = [subprocess.Popen(command, env=environment(nagle)) for command in commands]
    codes = [sender.wait() for sender in senders]
    seconds = time.perf_counter() - began
    if any(codes):
        sys.exit(f"storescu failed: {codes}")
    return seconds


def only_errors() -> None:
    """The listener process writes a line for each association otherwise."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


class PeakMemory:
    """The largest resident size of a process while it is watched, by polling /proc."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._stop = threading.Event()
        self.bytes = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            lines = self._status.read_text().splitlines()
            peak = next((line for line in lines if line.startswith("VmHWM:")), "VmHWM: 0 kB")
            self.bytes = max(self.bytes, int(peak.split()[1]) * 1024)

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.bytes


def ours(folders: list[Path], nagle: bool, root: Path) -> tuple[float, int]:
    """(seconds, peak resident bytes) of our listener in its own process, as the node runs it."""
    settings = ListenerSettings(
        "NODE", root, root / "ledger.sqlite", bind="127.0.0.1", port=0, min_free_bytes=0
    )
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=run_listener, args=(settings, sending, only_errors))
    process.start()
    port = receiving.recv().port
    assert process.pid is not None
    memory = PeakMemory(process.pid)
    try:
        seconds = send_all(port, folders, nagle)
    finally:
        peak = memory.stop()
        process.terminate()
        process.join()
    stored = sum(1 for _ in (root / "instances").rglob("*.dcm"))
    sent = sum(1 for folder in folders for _ in folder.iterdir())
    if stored != sent:
        sys.exit(f"{sent} instances were sent and {stored} stored")
    return seconds, peak


def theirs(folders: list[Path], nagle: bool, root: Path) -> float:
    """Seconds of DCMTK's storescp."""
    port = free_port()
    with running_storescp(port, root, nagle, fork=len(folders) > 1):
        wait_for_port(port)
        return send_all(port, folders, nagle)


def measure(instances: int, size: int, associations: int, nagle: bool, scratch: Path) -> list[dict[str, Any]]:
    """One line for each receiver."""
    folders = [scratch / f"in{number}" for number in range(associations)]
    for folder in folders:
        make_series(folder, instances // associations, size)
    count = instances // associations * associations
    megabytes = sum(path.stat().st_size for folder in folders for path in folder.iterdir()) / 1e6
    common = {"instances": count, "size": size, "associations": associations, "nagle": nagle}
    rows = []
    seconds, peak = ours(folders, nagle, scratch / "ours")
    rows.append({"receiver": "dicom-node", "writes": DURABLE, "peak_rss_mb": round(peak / 1e6), **common})
    rows[-1] |= {"seconds": seconds, "mb_per_s": megabytes / seconds, "instances_per_s": count / seconds}
    seconds = theirs(folders, nagle, scratch / "theirs")
    rows.append({"receiver": "DCMTK storescp", "writes": NOT_DURABLE, "peak_rss_mb": None, **common})
    rows[-1] |= {"seconds": seconds, "mb_per_s": megabytes / seconds, "instances_per_s": count / seconds}
    return rows


def pair(text: str) -> tuple[int, int]:
    """'512x300' → (512, 300)."""
    size, _, instances = text.partition("x")
    return int(size), int(instances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--series", type=pair, nargs="+", default=[(512, 300), (128, 6000)])
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "receive.json")
    options = parser.parse_args()
    print(machine())
    print(f"dicom-node: {DURABLE}\nDCMTK storescp: {NOT_DURABLE}\nsender: DCMTK storescu, PDU 131072")
    runs = [
        (size, count, several, False) for size, count in options.series for several in options.associations
    ]
    rows: list[dict[str, Any]] = []
    for size, count, associations, nagle in [*runs, NAGLE_RUN]:
        with tempfile.TemporaryDirectory() as scratch:
            measured = measure(count, size, associations, nagle, Path(scratch))
        for row in measured:
            title = f"{row['receiver']:15s} {size}² × {row['instances']}, {associations} assoc., "
            show(title + NAGLE[nagle], row)
        rows += measured
    save(options.json, rows)


if __name__ == "__main__":
    main()

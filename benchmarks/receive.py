"""How fast instances are received: our listener (durable) against DCMTK's storescp, in the same run.

    python -m benchmarks.receive [--series 512x300 128x6000] [--associations 1 4] [--add] [--json FILE]

DCMTK's storescu sends, with TCP_NODELAY=1 in its environment; one short series also with Nagle's algorithm,
as packaged. A series is pixels a side and instances. `--add` keeps the rows of earlier runs: a long table
can be taken in pieces.
Ours answers Success after fsync of the file, rename, fsync of the folder and a committed ledger row.
storescp writes without fsync and keeps no ledger: a bound and not an equal. Where there is a C compiler, it
is therefore measured a second time with fsync of each file and its folder, by a library loaded into it; and
ours a second time with fsync and the ledger's made to do nothing, which tells what the disk takes of it.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from benchmarks.networks import (
    NAGLE,
    durable_shim,
    environment,
    free_port,
    machine,
    make_series,
    pair,
    running_storescp,
    save,
    show,
    wait_for_port,
)
from dicom_node.ledger_core import LedgerCore
from dicom_node.listener import ListenerSettings, run_listener

DURABLE = "fsync(file), rename, fsync(folder), ledger commit (WAL, synchronous=FULL)"
NAGLE_RUN = (64, 300, 1, True)  # size, instances, associations, Nagle: 13 s for DCMTK's receiver
NOT_DURABLE = "write only, no fsync, no ledger"
SHIM_DURABLE = "fsync(file), fsync(folder), no ledger"
NO_FSYNC = "as above, but fsync does nothing and the ledger is synchronous=OFF"


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


def without_fsync() -> None:
    """In the listener's process, for comparison alone: nothing is durable."""
    only_errors()
    os.fsync = lambda file: None  # type: ignore[assignment]
    opened = LedgerCore.__init__

    def open_without_sync(self: LedgerCore, *arguments: Any, **named: Any) -> None:
        opened(self, *arguments, **named)
        self._db.execute("PRAGMA synchronous = OFF")

    LedgerCore.__init__ = open_without_sync  # type: ignore[method-assign]


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


def ours(
    folders: list[Path], nagle: bool, root: Path, prepare: Callable[[], None] = only_errors
) -> tuple[float, int]:
    """(seconds, peak resident bytes) of our listener in its own process, as the node runs it."""
    settings = ListenerSettings(
        "NODE", root, root / "ledger.sqlite", bind="127.0.0.1", port=0, min_free_bytes=0
    )
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=run_listener, args=(settings, sending, prepare))
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


def theirs(folders: list[Path], nagle: bool, root: Path, shim: Path | None = None) -> float:
    """Seconds of DCMTK's storescp."""
    port = free_port()
    with running_storescp(port, root, nagle, fork=len(folders) > 1, shim=shim):
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

    def add(receiver: str, writes: str, seconds: float, peak: int | None = None) -> None:
        rows.append(
            {
                **{"receiver": receiver, "writes": writes, **common},
                "peak_rss_mb": round(peak / 1e6) if peak else None,
                "seconds": seconds,
                "mb_per_s": megabytes / seconds,
                "instances_per_s": count / seconds,
            }
        )

    add("dicom-node", DURABLE, *ours(folders, nagle, scratch / "ours"))
    add("storescp", NOT_DURABLE, theirs(folders, nagle, scratch / "theirs"))
    if not nagle:  # what Nagle's algorithm costs hides everything else
        if shim := durable_shim(scratch):
            add("storescp + fsync", SHIM_DURABLE, theirs(folders, nagle, scratch / "theirs-durable", shim))
        add("dicom-node - fsync", NO_FSYNC, ours(folders, nagle, scratch / "ours-without", without_fsync)[0])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--series", type=pair, nargs="+", default=[(512, 300), (128, 6000)])
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--add", action="store_true", help="keep the rows that the file has")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "receive.json")
    options = parser.parse_args()
    print(machine())
    print(f"dicom-node: {DURABLE}\nstorescp: {NOT_DURABLE}\nstorescp + fsync: {SHIM_DURABLE}")
    print(f"dicom-node - fsync: {NO_FSYNC}\nsender: DCMTK storescu, PDU 131072")
    runs = [
        (size, count, several, False) for size, count in options.series for several in options.associations
    ]
    rows: list[dict[str, Any]] = []
    short = [] if options.add else [NAGLE_RUN]
    for size, count, associations, nagle in [*runs, *short]:
        with tempfile.TemporaryDirectory() as scratch:
            measured = measure(count, size, associations, nagle, Path(scratch))
        for row in measured:
            title = f"{row['receiver']:18s} {size}² × {row['instances']}, {associations} assoc., "
            show(title + NAGLE[nagle], row)
        rows += measured
    save(options.json, rows, add=options.add)


if __name__ == "__main__":
    main()

"""How fast a series is sent: our SCU against DCMTK's storescu, both to DCMTK's storescp, in the same run.

    python -m benchmarks.send [--series 512x300 128x6000] [--associations 1 4] [--nagle] [--add] [--json FILE]

A series is pixels a side and instances; of several associations each sends its share. TCP_NODELAY=1 is in
the environment of storescp and storescu; `--nagle` measures DCMTK as packaged, as many archives have it.
storescp writes without fsync. `--add` keeps the rows of earlier runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.networks import (
    NAGLE,
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
from dicom_node.association import Peer
from dicom_node.scu import store


def ours(port: int, folders: list[list[Path]], nagle: bool) -> float:
    """Seconds of our SCU, one thread for each association as delivery has them."""
    del nagle  # ours always sends without delay; the setting is the peer's
    began = time.perf_counter()
    with ThreadPoolExecutor(len(folders)) as pool:
        results = list(
            pool.map(lambda files: store(Peer("ARCHIVE", "127.0.0.1", port, "NODE"), files), folders)
        )
    seconds = time.perf_counter() - began
    for result in results:
        if not result.complete:
            sys.exit(f"not everything was stored: {result.problem}")
    return seconds


def theirs(port: int, folders: list[list[Path]], nagle: bool) -> float:
    """Seconds of DCMTK's storescu, one process for each association."""
    began = time.perf_counter()
    senders = [
        subprocess.Popen(
            ["storescu", "-pdu", "131072", "127.0.0.1", str(port), "+sd", str(files[0].parent)],
            env=environment(nagle),
        )
        for files in folders
    ]
    codes = [sender.wait() for sender in senders]
    seconds = time.perf_counter() - began
    if any(codes):
        sys.exit(f"storescu failed: {codes}")
    return seconds


def measure(instances: int, size: int, associations: int, nagle: bool, scratch: Path) -> list[dict[str, Any]]:
    """One line for each sender."""
    share = instances // associations
    folders = [make_series(scratch / f"in{number}", share, size) for number in range(associations)]
    count = share * associations
    megabytes = sum(path.stat().st_size for files in folders for path in files) / 1e6
    rows = []
    for sender, send in (("dicom-node", ours), ("DCMTK storescu", theirs)):
        port = free_port()
        with running_storescp(port, scratch / sender.replace(" ", "-"), nagle, fork=associations > 1):
            wait_for_port(port)
            seconds = send(port, folders, nagle)
        rows.append(
            {
                **{"sender": sender, "instances": count, "size": size, "associations": associations},
                **{"nagle": nagle, "seconds": seconds, "mb_per_s": megabytes / seconds},
                "instances_per_s": count / seconds,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--series", type=pair, nargs="+", default=[(512, 300), (128, 6000)])
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--nagle", action="store_true", help="DCMTK as packaged")
    parser.add_argument("--add", action="store_true", help="keep the rows that the file has")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "send.json")
    options = parser.parse_args()
    print(machine())
    print("receiver: DCMTK storescp, PDU 131072")
    rows: list[dict[str, Any]] = []
    for size, count in options.series:
        for associations in options.associations:
            with tempfile.TemporaryDirectory() as scratch:
                measured = measure(count, size, associations, options.nagle, Path(scratch))
            for row in measured:
                title = f"{row['sender']:15s} {size}² × {row['instances']}, {associations} assoc., "
                show(title + NAGLE[options.nagle], row)
            rows += measured
    save(options.json, rows, add=options.add)


if __name__ == "__main__":
    main()

"""How fast a series is sent: our SCU against DCMTK's storescu, both to DCMTK's storescp, in the same run.

    python -m benchmarks.send [--instances 500] [--size 64 512] [--json FILE]

With Nagle's algorithm in DCMTK as packaged (as many archives have it), and with TCP_NODELAY=1 in the
environment of storescp and storescu. One association each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
from dicom_node.scu import Peer, store


def ours(port: int, files: list[Path], nagle: bool) -> float:
    """Seconds of our SCU."""
    del nagle  # ours always sends without delay; the setting is the peer's
    began = time.perf_counter()
    result = store(Peer("ARCHIVE", "127.0.0.1", port, "NODE"), files)
    seconds = time.perf_counter() - began
    if not result.complete:
        sys.exit(f"not everything was stored: {result.problem}")
    return seconds


def theirs(port: int, files: list[Path], nagle: bool) -> float:
    """Seconds of DCMTK's storescu."""
    command = ["storescu", "-pdu", "131072", "127.0.0.1", str(port), "+sd", str(files[0].parent)]
    began = time.perf_counter()
    subprocess.run(command, check=True, env=environment(nagle))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--instances", type=int, default=400)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 512], help="pixels a side, 16 bit")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "send.json")
    options = parser.parse_args()
    print(machine())
    print("receiver: DCMTK storescp, one association, PDU 131072")
    rows: list[dict[str, Any]] = []
    for size in options.size:
        for nagle in (True, False):
            with tempfile.TemporaryDirectory() as scratch:
                files = make_series(Path(scratch, "in"), options.instances, size)
                megabytes = sum(path.stat().st_size for path in files) / 1e6
                for sender, send in (("dicom-node", ours), ("DCMTK storescu", theirs)):
                    port = free_port()
                    with running_storescp(port, Path(scratch, sender.replace(" ", "-")), nagle, fork=False):
                        wait_for_port(port)
                        seconds = send(port, files, nagle)
                    row = {
                        "sender": sender,
                        "instances": len(files),
                        "size": size,
                        "nagle": nagle,
                        "seconds": seconds,
                        "mb_per_s": megabytes / seconds,
                        "instances_per_s": len(files) / seconds,
                    }
                    show(f"{sender:15s} {size}² × {len(files)}, {NAGLE[nagle]}", row)
                    rows.append(row)
    save(options.json, rows)


if __name__ == "__main__":
    main()

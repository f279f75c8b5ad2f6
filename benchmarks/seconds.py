"""Seconds of one correction by stage, and peak memory, on the synthetic head and on a study if given.

    python -m benchmarks.seconds [--study FOLDER] [--device cpu|cuda]

Each case is a process of its own, `dicom-node correct` from start to end, as a user runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from correction.phantom import head_case
from dicom_node.phantom_study import weighted, write_phantom_study

RESULTS = Path(__file__).parent / "results"


def device_name(device: str) -> str:
    """The device as people call it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def measure(name: str, study: Path, device: str) -> dict[str, object]:
    """Run one correction and read its report."""
    with tempfile.TemporaryDirectory() as out:
        started = time.monotonic()
        program = Path(sys.executable).with_name("dicom-node")
        subprocess.run(
            [program, "correct", study, "--out", out, "--device", device], check=False, capture_output=True
        )
        wall_s = time.monotonic() - started
        reports = sorted(Path(out).rglob("report.json"))
        if not reports:
            raise SystemExit(f"{name}: no correction came out of {study}")
        documents = [json.loads(path.read_text()) for path in reports]
    return {
        "case": name,
        "wall_s": wall_s,
        "corrections": [
            {
                "seconds": document["seconds"],
                "peak_memory_bytes": document["peak_memory_bytes"],
                "verdict": document["verdict"]["level"],
            }
            for document in documents
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--study", type=Path, action="append", default=[])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        case = head_case(1)
        write_phantom_study(Path(folder), case.reference, weighted(case.b0), 1)
        rows = [measure("synthetic head", Path(folder), arguments.device)]
    rows += [measure(study.name, study, arguments.device) for study in arguments.study]
    document = {"device": device_name(arguments.device), "torch": torch.__version__, "cases": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "correction.json").write_text(json.dumps(document, indent=2) + "\n")
    print(f"device: {document['device']}, torch {document['torch']}")
    for row in rows:
        print(f"{row['case']}: {row['wall_s']:.1f} s from start to end of the process")
        for correction in row["corrections"]:  # type: ignore[attr-defined]
            stages = ", ".join(f"{stage} {value:.1f}" for stage, value in correction["seconds"].items())
            memory = correction["peak_memory_bytes"] / 2**30
            print(f"  {stages} s; peak {memory:.2f} GiB; verdict {correction['verdict']}")


if __name__ == "__main__":
    main()

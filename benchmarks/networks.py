"""What the network benchmarks share: test series, DCMTK's processes, the machine, the result file."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

NAGLE = {True: "DCMTK as packaged (Nagle)", False: "DCMTK with TCP_NODELAY=1"}


def machine() -> str:
    """One line: CPU, cores, system, and that no GPU is used."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    cores = os.cpu_count()
    load = os.getloadavg()[0]
    return f"device: CPU ({model}, {cores} cores, load {load:.1f}), {platform.system()} {platform.release()}"


def make_series(folder: Path, count: int, size: int) -> list[Path]:
    """`count` MR slices of size × size pixels, noise, as files of one series."""
    folder.mkdir(parents=True)
    study_uid, series_uid = generate_uid(), generate_uid()
    random = np.random.default_rng(1)
    paths = []
    for number in range(1, count + 1):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = MRImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
        dataset.Modality, dataset.PatientID = "MR", "PHANTOM"
        dataset.InstanceNumber = number
        dataset.Rows = dataset.Columns = size
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 0
        dataset.PixelData = random.integers(0, 4096, (size, size), dtype=np.uint16).tobytes()
        dataset["PixelData"].VR = "OW"
        paths.append(folder / f"{number:05d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def environment(nagle: bool) -> dict[str, str]:
    """The environment of a DCMTK process: as packaged, or with TCP_NODELAY=1."""
    return dict(os.environ) | ({} if nagle else {"TCP_NODELAY": "1"})


def free_port() -> int:
    """A port on loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Until something listens on `port`; raises TimeoutError after ten seconds."""
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


@contextmanager
def running_storescp(port: int, folder: Path, nagle: bool, *, fork: bool) -> Iterator[None]:
    """DCMTK's storescp; `fork` for several associations at once."""
    folder.mkdir()
    command = ["storescp", *(["--fork"] if fork else []), "-pdu", "131072", "-od", str(folder), str(port)]
    process = subprocess.Popen(
        command, env=environment(nagle), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def show(title: str, row: dict[str, Any]) -> None:
    """One line of figures."""
    memory = f"  peak {row['peak_rss_mb']} MB" if row.get("peak_rss_mb") else ""
    print(
        f"{title:72s} {row['seconds']:6.2f} s  {row['instances_per_s']:7.0f} instances/s  "
        f"{row['mb_per_s']:7.1f} MB/s{memory}",
        flush=True,
    )


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the figures with the machine they were taken on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"written to {path}")

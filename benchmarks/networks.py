"""What the network benchmarks share: test series, DCMTK's processes, the machine, the result file."""

from __future__ import annotations

import json
import os
import platform
import shutil
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
# storescp has no option to be durable: this makes it fsync each file and its folder before it answers
DURABLE_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static char folder[4096];
static int durable(int file) {
    struct stat about;
    int mode = fcntl(file, F_GETFL);
    if (mode < 0 || (mode & O_ACCMODE) == O_RDONLY) return 0;
    if (fstat(file, &about) || !S_ISREG(about.st_mode)) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    strcpy(folder, dirname(path));
    return fsync(file) == 0;
}
static void settle(void) {
    int file = open(folder, O_RDONLY | O_DIRECTORY);
    if (file >= 0) { fsync(file); ((int (*)(int))dlsym(RTLD_NEXT, "close"))(file); }
}
int fclose(FILE *stream) {
    int (*original)(FILE *) = dlsym(RTLD_NEXT, "fclose");
    fflush(stream);
    int wrote = durable(fileno(stream)), result = original(stream);
    if (wrote) settle();
    return result;
}
"""


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


def durable_shim(folder: Path) -> Path | None:
    """The library that makes storescp durable (for LD_PRELOAD); None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source, library = folder / "durable.c", folder / "durable.so"
    source.write_text(DURABLE_SHIM)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@contextmanager
def running_storescp(
    port: int, folder: Path, nagle: bool, *, fork: bool, shim: Path | None = None
) -> Iterator[None]:
    """DCMTK's storescp; `fork` for several associations at once, `shim` to make it durable."""
    folder.mkdir()
    command = ["storescp", *(["--fork"] if fork else []), "-pdu", "131072", "-od", str(folder), str(port)]
    preload = {"LD_PRELOAD": str(shim)} if shim else {}
    process = subprocess.Popen(
        command, env=environment(nagle) | preload, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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


def pair(text: str) -> tuple[int, int]:
    """'512x300' → (512, 300): pixels a side, instances."""
    size, _, instances = text.partition("x")
    return int(size), int(instances)


def save(path: Path, rows: list[dict[str, Any]], *, add: bool = False) -> None:
    """Write the figures with the machine they were taken on; `add` keeps those that are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text())["rows"] if add and path.exists() else []
    path.write_text(json.dumps({"machine": machine(), "rows": earlier + rows}, indent=1) + "\n")
    print(f"written to {path}")

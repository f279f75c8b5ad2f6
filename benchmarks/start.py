"""How soon a node that holds very many instances is up again after a restart.

    python -m benchmarks.start [--instances 100000] [--size 64] [--json FILE]

Makes a spool and a ledger as a node has them that received so many instances (studies of 400, each with a job
that was sent), and times what `dicom-node serve` does before systemd hears READY: open and check the ledger,
bring disk and ledger to agreement, sweep, the first look of the reconcile loop. Three times:
as it was left; without a ledger (built again from disk); and with a ledger that lacks the last hundredth.
The files are small: at a restart their names and sizes count, not their pixels; only a rebuild reads them.
"""

from __future__ import annotations

import argparse
import hashlib
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom.dsutils import encode

from benchmarks.networks import machine, save
from dicom_node.derive import DerivePolicy
from dicom_node.ledger import Ledger, path_below
from dicom_node.preconditions import lock
from dicom_node.rebuild import agree, open_ledger
from dicom_node.received import file_header
from dicom_node.recipe import Recipe
from dicom_node.reconcile import ReconcilePolicy, Reconciler
from dicom_node.records import InstanceRecord
from dicom_node.retention import finish_deletions
from dicom_node.spool import Spool, instance_path
from dicom_node.workers import Finished
from rules.pair import PairingPolicy

OF_A_STUDY = 400  # a DWI and its reference
FIRST = 1_000_000  # numbers in UIDs begin here: all have as many digits
ROOT_UID = "1.2.826.0.1.3680043.8.498.1"
POLICY = ReconcilePolicy(
    series_quiet_s=20, study_wait_s=900, pairing=PairingPolicy(), recipe=Recipe(), derive=DerivePolicy(),
    on_reject="withhold", on_review="send", deliver_to=("PACS",), attempts=3, timeout_s=3600,
)  # fmt: skip


class NoWorkers:
    """A pool in which nothing runs: the loop is timed, not corrections."""

    def running(self) -> frozenset[int]:
        return frozenset()

    def free(self) -> int:
        return 0

    def submit(self, job_id: int, attempt: int, task: object) -> None:
        raise RuntimeError("nothing is free")

    def finished(self) -> list[Finished]:
        return []

    def overdue(self, timeout_s: float) -> list[int]:
        return []

    def stop_job(self, job_id: int) -> None:
        """Nothing runs."""


# -------------------------------------------------------------------- a node that has received much


def template(size: int) -> bytes:
    """An MR image as it comes over the network, Explicit VR Little Endian, with the UIDs of number 0."""
    study, series, sop_uid = uids(0)
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, sop_uid
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.Modality, image.PatientID, image.InstanceNumber = "MR", "PHANTOM", 1
    image.Rows = image.Columns = size
    image.PixelData = bytes(size * size * 2)
    image["PixelData"].VR = "OW"
    data = encode(image, False, True)
    if data is None:
        raise ValueError("the image cannot be encoded")
    return bytes(data)


def uids(number: int) -> tuple[str, str, str]:
    """Of the study, the series and the instance with this number; always equally long."""
    study = f"{ROOT_UID}.{FIRST + number // OF_A_STUDY}"
    series = f"{study}.{FIRST + number % OF_A_STUDY // (OF_A_STUDY // 2)}"
    return study, series, f"{series}.{FIRST + number}"


def instances(root: Path, count: int, size: int) -> Iterator[InstanceRecord]:
    """Write one file after the other, and tell its row. Written without fsync: only a restart is timed."""
    image = template(size)
    of_first = uids(0)
    received_at = time.time() - 86400
    for number in range(count):
        of_this = study, series, sop_uid = uids(number)
        data = image
        for was, becomes in zip(reversed(of_first), reversed(of_this), strict=True):  # the longest first
            data = data.replace(was.encode(), becomes.encode())
        content = file_header(MRImageStorage, sop_uid, ExplicitVRLittleEndian, "SCANNER") + data
        path = instance_path(sop_uid, 1)
        (root / path).write_bytes(content)
        yield InstanceRecord(
            sop_uid=sop_uid, revision=1, study_uid=study, series_uid=series, sop_class_uid=MRImageStorage,
            transfer_syntax_uid=ExplicitVRLittleEndian, sha256=hashlib.sha256(data).hexdigest(),
            path=path.as_posix(), size=len(content), association_id=f"a{number // OF_A_STUDY}",
            received_at=received_at + number / 100,
        )  # fmt: skip


def fill(root: Path, count: int, size: int) -> None:
    """A spool and a ledger as after weeks of work: every study settled, every job sent."""
    Spool(root, 0)
    ledger = Ledger(path_below(root))
    batch: list[InstanceRecord] = []
    for record in instances(root, count, size):
        batch.append(record)
        if len(batch) == OF_A_STUDY:
            ledger.record_instances(batch)
            batch = []
    if batch:
        ledger.record_instances(batch)
    with ledger.transaction() as db:
        db.execute("UPDATE series SET state = 'complete', facts = NULL, patient = ''")
        db.execute("UPDATE studies SET settled = 1")
        db.execute(
            "INSERT INTO jobs(series_uid, revision, study_uid, state, created, changed) "
            "SELECT series_uid, 1, study_uid, 'sent', first_at, last_at FROM series "
            f"WHERE series_uid LIKE '%.{FIRST}'"
        )
    ledger.close()


# -------------------------------------------------------------------- a start


def start(root: Path) -> dict[str, float]:
    """Seconds of each step that a node takes at its start."""
    steps: dict[str, float] = {}
    began = time.perf_counter()

    def step(name: str) -> None:
        nonlocal began
        steps[name] = time.perf_counter() - began
        began = time.perf_counter()

    spool = Spool(root, 0)
    held = lock(root)
    step("spool")
    ledger = open_ledger(path_below(root), spool)
    step("ledger")
    spool.sweep_incoming()
    ledger.close_orphaned_associations()
    finish_deletions(ledger, spool)
    step("sweep")
    agree(ledger, spool)
    step("agreement")
    reconciler = Reconciler(ledger, spool, NoWorkers(), POLICY)
    reconciler.recover()
    reconciler.tick()
    step("first look")
    ledger.close()
    held.close()
    return steps | {"total": sum(steps.values())}


def lose_last_hundredth(root: Path) -> None:
    """The ledger is older than the disk: it was restored from a backup."""
    with closing(sqlite3.connect(path_below(root))) as database, database:
        database.execute(
            "DELETE FROM instances WHERE received_at > "
            "(SELECT MAX(received_at) - (MAX(received_at) - MIN(received_at)) / 100 FROM instances)"
        )


def rows_of(root: Path) -> int:
    """How many instances the ledger knows."""
    with closing(sqlite3.connect(path_below(root))) as database:
        (count,) = database.execute("SELECT COUNT(*) FROM instances").fetchone()
        return int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=16, help="pixels a side of each image")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "start.json")
    options = parser.parse_args()
    print(machine())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fill(root, options.instances, options.size)
        for name in ("as it was left", "ledger of yesterday", "no ledger"):
            if name == "ledger of yesterday":
                lose_last_hundredth(root)
            elif name == "no ledger":
                path_below(root).unlink()
            seconds = start(root)
            if rows_of(root) != options.instances:
                sys.exit(f"{name}: {rows_of(root)} of {options.instances} instances are known")
            told = ", ".join(f"{step} {figure:.2f}" for step, figure in seconds.items())
            print(f"{options.instances} instances, {name}: {told} s", flush=True)
            rows.append({"instances": options.instances, "ledger": name, "seconds": seconds})
    save(options.json, rows)


if __name__ == "__main__":
    main()

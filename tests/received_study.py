"""A small phantom study as a listener leaves it behind, and a node around it whose clock and workers obey."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from derived_series import ball

from dicom_node.compute import CorrectionTask, Outcome, Refusal
from dicom_node.derive import DerivePolicy
from dicom_node.ledger import Ledger
from dicom_node.phantom_study import PhantomStudy, weighted, write_phantom_study
from dicom_node.recipe import Recipe
from dicom_node.reconcile import ReconcilePolicy, Reconciler
from dicom_node.records import InstanceRecord, Job
from dicom_node.spool import Spool
from dicom_node.workers import Finished
from rules.pair import PairingPolicy

QUIET_S, STUDY_WAIT_S, TIMEOUT_S = 20.0, 1200.0, 600.0
SLICES = 9

POLICY = ReconcilePolicy(
    series_quiet_s=QUIET_S,
    study_wait_s=STUDY_WAIT_S,
    pairing=PairingPolicy(),
    recipe=Recipe(device="cpu"),
    derive=DerivePolicy(),
    on_reject="withhold",
    on_review="send",
    deliver_to=("PACS",),
    attempts=2,
    timeout_s=TIMEOUT_S,
)


def write_small_study(folder: Path) -> PhantomStudy:
    """A T2 of 9 slices and a DWI of the same place: b = 0, 500 and 1000, volume after volume."""
    dwi, t2 = np.diag([4.0, 4.0, 3.0, 1.0]), np.diag([2.0, 2.0, 3.0, 1.0])
    volumes = weighted(ball((SLICES, 8, 8), dwi), (500.0, 1000.0), ((0.0, 0.0, 1.0),))
    return write_phantom_study(folder, ball((SLICES, 16, 16), t2), volumes)


def variant(files: Iterable[Path], folder: Path, number: int, **elements: Any) -> list[Path]:
    """Copies of a series under new UIDs and another number; `elements` are set, those of None deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID += f".{number}"
        dataset.SOPInstanceUID += f".{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.SeriesNumber = number
        for keyword, value in elements.items():
            if value is not None:
                setattr(dataset, keyword, value)
            elif keyword in dataset:
                delattr(dataset, keyword)
        copies.append(folder / f"{number}-{path.name}")
        dataset.save_as(copies[-1], enforce_file_format=True)
    return copies


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_750_000_000.0

    def __call__(self) -> float:
        return self.now


class FakeWorkers:
    """Workers that end a correction when the test says how."""

    def __init__(self) -> None:
        self.tasks: dict[int, CorrectionTask] = {}
        self.attempts: list[int] = []
        self.slots = 1
        self.late: list[int] = []
        self.stopped: list[int] = []
        self._ended: list[Finished] = []

    def running(self) -> frozenset[int]:
        return frozenset(self.tasks)

    def free(self) -> int:
        return max(0, self.slots - len(self.tasks))

    def submit(self, job_id: int, attempt: int, task: CorrectionTask) -> None:
        self.tasks[job_id] = task
        self.attempts.append(attempt)

    def finished(self) -> list[Finished]:
        ended, self._ended = self._ended, []
        return ended

    def overdue(self, timeout_s: float) -> list[int]:
        assert timeout_s == TIMEOUT_S
        return self.late

    def stop_job(self, job_id: int) -> None:
        self.tasks.pop(job_id)
        self.late.remove(job_id)
        self.stopped.append(job_id)

    def end(self, job_id: int, outcome: Outcome | Refusal | None = None, **trouble: Any) -> None:
        """The correction of a job ends: with an outcome and its result, or with `error` and `lost`."""
        task = self.tasks.pop(job_id)
        if isinstance(outcome, Outcome):
            (task.root / "results" / task.name).mkdir(exist_ok=True)
        self._ended.append(Finished(job_id, outcome, **trouble))


def outcome_of(task: CorrectionTask, verdict: str = "pass") -> Outcome:
    """What a worker would say; its UIDs follow from the task's name, as the real ones from its inputs."""
    series_uid = f"2.25.{int(task.name, 16)}"
    reasons = [] if verdict == "pass" else [{"code": "worse", "text": "the images agree less than before"}]
    return Outcome(
        verdict=verdict,
        verdict_text="",
        output_series_uid=series_uid,
        sop_uids=(f"{series_uid}.1",),
        figures={"verdict": {"level": verdict, "reasons": reasons}},
        seconds={"total": 1.0},
    )


class SmallNode:
    """Spool, ledger and reconcile loop of a node; `receive` stands for the listener."""

    def __init__(self, root: Path, **policy: Any) -> None:
        self.clock = Clock()
        self.spool = Spool(root, 0)
        self.ledger = Ledger(root / "ledger.sqlite", clock=self.clock)
        self.policy = replace(POLICY, **policy)
        self._associations = 0
        self.restart()

    def restart(self) -> None:
        """What a new process begins with: nothing but the disk."""
        self.workers = FakeWorkers()
        self.loop = Reconciler(self.ledger, self.spool, self.workers, self.policy, clock=self.clock)
        self.loop.recover()

    def open_association(self) -> str:
        self._associations += 1
        association = f"association-{self._associations}"
        self.ledger.association_opened(association, "SCANNER", "127.0.0.1")
        return association

    def receive(self, files: Sequence[Path], association: str | None = None) -> None:
        """Store and record files as the listener does; in an association of their own unless one is open."""
        own = association or self.open_association()
        for path in files:
            content = path.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            uid = str(dataset.SOPInstanceUID)
            known = self.ledger.instance(uid)
            if known is not None and known.sha256 == sha256:
                self.ledger.record_repeat(uid)
                continue
            revision = known.revision + 1 if known else 1
            stored = self.spool.receive(uid, revision, content)
            self.ledger.record_instance(
                InstanceRecord(
                    sop_uid=uid,
                    revision=revision,
                    study_uid=str(dataset.StudyInstanceUID),
                    series_uid=str(dataset.SeriesInstanceUID),
                    sop_class_uid=str(dataset.SOPClassUID),
                    transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
                    sha256=sha256,
                    path=stored.as_posix(),
                    size=len(content),
                    association_id=own,
                    received_at=self.clock(),
                )
            )
        if association is None:
            self.ledger.association_closed(own, aborted=False)

    def after(self, seconds: float) -> list[Job]:
        """Let time pass and look once; the jobs there are then."""
        self.clock.now += seconds
        self.loop.tick()
        return self.jobs()

    def jobs(self) -> list[Job]:
        return self.ledger.jobs()

    def job(self) -> Job:
        """The only job."""
        (job,) = self.jobs()
        return job

    def series_states(self) -> dict[str, str]:
        return {row.series_uid: str(row.state) for row in self.ledger.all_series()}

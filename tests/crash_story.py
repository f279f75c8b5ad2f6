"""A day of the node told in one process without waiting, so that it can be killed at every durable step.

The clock, the workers and the archive obey the story; spool, ledger, reconcile loop, delivery and retention
are the node's own. `forked` plays it in a child that kills itself (SIGKILL, no handlers, no clean-up) at the
step that it is told; what is left on disk is what the next child begins with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
from instances import mr_dataset
from received_study import POLICY, QUIET_S, STUDY_WAIT_S, Clock, outcome_of, write_small_study

from dicom_node import ledger_core
from dicom_node.association import Peer
from dicom_node.commitment import Answer, Asked, OnAnswer, Requests
from dicom_node.compute import CorrectionTask, Outcome, Refusal, read_outcome
from dicom_node.delivery import DeliveryLoop
from dicom_node.headers import InstanceFacts, read_instance
from dicom_node.intake import read_file
from dicom_node.ledger import Ledger, path_below
from dicom_node.rebuild import agree, open_ledger
from dicom_node.reconcile import Reconciler
from dicom_node.records import InstanceRecord, Job
from dicom_node.retention import DAY_S, RetentionPolicy, finish_deletions, retain
from dicom_node.scu import OnStatus, StoreResult, StoreStatus
from dicom_node.spool import Spool, instance_path
from dicom_node.states import JobState
from dicom_node.statuses import Outcome as Arrival
from dicom_node.workers import Finished
from rules.reasons import Code

ENDS = frozenset(
    {JobState.COMMITTED, JobState.SKIPPED, JobState.WITHHELD, JobState.FAILED, JobState.SUPERSEDED}
)
RETENTION = RetentionPolicy(keep_days=14, keep_unsent_days=90)
PEER = Peer("PACS", "127.0.0.1", 1, "NODE")


# -------------------------------------------------------------------- what is sent


@dataclass(frozen=True)
class Case:
    """A study and what becomes of its DWI. files: in order; late: sent when the first job exists."""

    name: str
    files: tuple[Path, ...]
    end: JobState
    late: tuple[Path, ...] = ()
    dwi_series_uid: str = ""


def write_cases(folder: Path, names: Sequence[str]) -> dict[str, Case]:
    """The studies of the story, each of a patient of its own. Their headers are read here, once for all."""
    cases = {name: _CASES[name](folder / name, name) for name in names}
    for case in cases.values():
        for path in (*case.files, *case.late):
            _FACTS[instance_path(_instance(path).identity.sop_uid, 1).name] = read_instance(path)
    return cases


def _study(folder: Path, name: str) -> tuple[list[Path], list[Path], str]:
    study = write_small_study(folder)
    uids: dict[str, str] = {}
    for path in (*study.reference_files, *study.dwi_files):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = f"CASE-{name}"
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            own = uids.setdefault(
                getattr(dataset, keyword), f"2.25.{_number(name + getattr(dataset, keyword))}"
            )
            setattr(dataset, keyword, own)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(path, enforce_file_format=True)
    return list(study.reference_files), list(study.dwi_files), uids[study.dwi_series_uid]


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:30], 16)


def _plain(folder: Path, name: str, end: JobState = JobState.COMMITTED) -> Case:
    reference, dwi, uid = _study(folder, name)
    return Case(name, (*reference, *dwi), end, dwi_series_uid=uid)


def _alone(folder: Path, name: str) -> Case:
    _, dwi, uid = _study(folder, name)
    return Case(name, tuple(dwi), JobState.SKIPPED, dwi_series_uid=uid)


def _growing(folder: Path, name: str) -> Case:
    reference, dwi, uid = _study(folder, name)
    third = len(dwi) // 3
    return Case(name, (*reference, *dwi[:-third]), JobState.COMMITTED, tuple(dwi[-third:]), uid)


_CASES: dict[str, Callable[[Path, str], Case]] = {
    "plain": _plain,
    "poor": lambda folder, name: _plain(folder, name, JobState.WITHHELD),
    "broken": lambda folder, name: _plain(folder, name, JobState.FAILED),
    "refused": lambda folder, name: _plain(folder, name, JobState.FAILED),
    "alone": _alone,
    "growing": _growing,
}


# -------------------------------------------------------------------- the outside world


class Archive:
    """Takes instances into a folder and promises to keep them, but refuses those of some results."""

    def __init__(self, folder: Path, refuses: frozenset[str]) -> None:
        self._folder = folder
        self._refuses = refuses
        folder.mkdir(exist_ok=True)

    def store(self, _peer: Peer, files: Sequence[Path], on_status: OnStatus) -> StoreResult:
        statuses = []
        for path in files:
            refused = path.parent.parent.name in self._refuses
            if not refused:
                self._keep(path)
            outcome = Arrival.PERMANENT if refused else Arrival.STORED
            status = StoreStatus(path, path.stem, outcome, 0xA900 if refused else 0, "said so")
            on_status(status)
            statuses.append(status)
        return StoreResult(tuple(statuses))

    def _keep(self, path: Path) -> None:
        content, kept = path.read_bytes(), self._folder / path.name
        if kept.exists() and kept.stat().st_size == len(content):
            assert kept.read_bytes() == content, "the same UID with other bytes"
        else:
            kept.write_bytes(content)

    def ask(self, _peer: Peer, requests: Requests, on_answer: OnAnswer, *, wait_s: float) -> Asked:
        for transaction_uid, instances in requests.items():
            here = [uid for uid in instances if (self._folder / f"{uid}.dcm").exists()]
            lacking = {uid: 0x0112 for uid in instances if uid not in here}
            on_answer(Answer(transaction_uid, tuple(here), lacking, whole=not lacking))
        return Asked(len(requests), len(requests))


class InlineWorkers:
    """A worker that computes between two ticks: real publishing, invented images."""

    def __init__(self, spool: Spool, broken: frozenset[str], poor: frozenset[str]) -> None:
        self._spool, self._broken, self._poor = spool, broken, poor
        self._tasks: dict[int, CorrectionTask] = {}

    def running(self) -> frozenset[int]:
        return frozenset(self._tasks)

    def free(self) -> int:
        return 2 - len(self._tasks)

    def submit(self, job_id: int, attempt: int, task: CorrectionTask) -> None:
        self._tasks[job_id] = task

    def finished(self) -> list[Finished]:
        ended = [Finished(job_id, self._run(task)) for job_id, task in self._tasks.items()]
        self._tasks = {}
        return ended

    def overdue(self, timeout_s: float) -> list[int]:
        return []

    def stop_job(self, job_id: int) -> None:
        raise AssertionError("nothing is overdue")

    def _run(self, task: CorrectionTask) -> Outcome | Refusal:
        """As compute.run, with images made from the name of the task."""
        series_uid = _FACTS[task.source[0].name].series_uid
        if series_uid in self._broken:
            return Refusal(Code.GEOMETRY, "made so")
        if (done := read_outcome(self._spool.result_dir(task.name))) is not None:
            return done
        work = self._spool.work_dir(task.name)
        outcome = outcome_of(task, "reject" if series_uid in self._poor else "pass")
        (work / "derived").mkdir()
        outcome = replace(outcome, sop_uids=tuple(f"{outcome.output_series_uid}.{n}" for n in (1, 2)))
        for uid in outcome.sop_uids:
            _derived(uid, outcome.output_series_uid).save_as(
                work / "derived" / f"{uid}.dcm", enforce_file_format=True
            )
        (work / "outcome.json").write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        self._spool.publish(work, task.name)
        return outcome


def _derived(sop_uid: str, series_uid: str) -> pydicom.Dataset:
    return mr_dataset(sop_uid=sop_uid, series_uid=series_uid, number=_number(sop_uid) % 1000)


# what the files say, by the name under which they are stored
_FACTS: dict[str, InstanceFacts] = {}


def _read(path: Path) -> InstanceFacts:
    return _FACTS[path.name]


# -------------------------------------------------------------------- the story


@dataclass
class Story:
    """One root, one archive, and what the scanner has been told that the node has."""

    folder: Path
    cases: Mapping[str, Case]
    every_instance: bool = False  # False: only the first and last of a series are received in killable steps
    keep: bool = True  # False: the story ends with everything deleted after its time
    start: float = 1_750_000_000.0

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def archive_folder(self) -> Path:
        return self.folder / "archive"

    def told(self) -> set[str]:
        """The files that were answered with Success."""
        path = self.folder / "told"
        return set(path.read_text().split("\n")) - {""} if path.exists() else set()

    def play(self) -> None:
        """From whatever is on disk to the end of the story."""
        self.folder.mkdir(parents=True, exist_ok=True)
        clock = Clock()
        clock.now = self.start
        spool = Spool(self.root, 0)
        ledger = open_ledger(path_below(self.root), spool)
        ledger._clock = clock
        spool.sweep()
        ledger.close_orphaned_associations()
        finish_deletions(ledger, spool)
        agree(ledger, spool)
        uid_of = {case.dwi_series_uid: name for name, case in self.cases.items()}
        named = {name: frozenset(uid for uid, n in uid_of.items() if n == name) for name in _CASES}
        workers = InlineWorkers(spool, named["broken"], named["poor"])
        policy = replace(POLICY, on_reject="withhold", attempts=100)
        loop = Reconciler(ledger, spool, workers, policy, clock=clock, read=_read)
        loop.recover()
        archive = Archive(self.archive_folder, frozenset(self._results(ledger, named["refused"])))
        delivery = DeliveryLoop(
            "PACS", PEER, ledger, spool, give_up_days=7, clock=clock, send=archive.store,
            commitment_timeout_s=3600, ask_commitment=archive.ask,
        )  # fmt: skip
        self._day(ledger, spool, loop, delivery, archive, named["refused"], clock)
        if not self.keep:
            clock.now += 200 * DAY_S
            retain(ledger, spool, RETENTION)
        ledger.close()

    def _day(
        self,
        ledger: Ledger,
        spool: Spool,
        loop: Reconciler,
        delivery: DeliveryLoop,
        archive: Archive,
        refused: frozenset[str],
        clock: Clock,
    ) -> None:
        if not self._over(ledger):
            for case in self.cases.values():
                self._send(ledger, spool, case.files, clock)
        for _ in range(200):
            if self._over(ledger):
                return
            clock.now += QUIET_S + 1
            loop.tick()
            for case in self.cases.values():
                if case.late and ledger.rows(
                    "SELECT 1 FROM jobs WHERE series_uid = ?", (case.dwi_series_uid,)
                ):
                    self._send(ledger, spool, case.late, clock)
            archive._refuses = frozenset(self._results(ledger, refused))
            delivery.deliver_one()
            delivery.commit_one()
            if any(job.state is JobState.WAITING for job in ledger.jobs(limit=1000)):
                clock.now += STUDY_WAIT_S / 4
        raise AssertionError(f"the story does not end: {[(j.id, j.state) for j in ledger.jobs(limit=1000)]}")

    def _results(self, ledger: Ledger, series: frozenset[str]) -> set[str]:
        return {job.result for job in ledger.jobs(limit=1000) if job.series_uid in series and job.result}

    def _over(self, ledger: Ledger) -> bool:
        told = self.told()
        sent = all(
            path.name in told or str(path) in told for case in self.cases.values() for path in _all(case)
        )
        latest = {job.series_uid: job for job in ledger.jobs(limit=1000)}
        growing = ledger.growing()
        return (
            sent
            and not growing
            and len(latest) == len(self.cases)
            and all(job.state in ENDS for job in latest.values())
        )

    def _send(self, ledger: Ledger, spool: Spool, files: Sequence[Path], clock: Clock) -> None:
        """What a scanner does: send everything that was not answered with Success."""
        told = self.told()
        missing = [path for path in files if str(path) not in told]
        if not missing:
            return
        association = f"a{time.monotonic_ns()}-{os.getpid()}"
        ledger.association_opened(association, "SCANNER", "127.0.0.1")
        descriptor = os.open(self.folder / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for number, path in enumerate(missing):
            _Steps.counting = self.every_instance or number in (0, len(missing) - 1)
            _receive(ledger, spool, path, association, clock())
            os.write(descriptor, f"{path}\n".encode())
        os.close(descriptor)
        _Steps.counting = True
        ledger.association_closed(association, aborted=False)


def _all(case: Case) -> tuple[Path, ...]:
    return (*case.files, *case.late)


@cache
def _instance(path: Path) -> Any:
    return read_file(path)


def _receive(ledger: Ledger, spool: Spool, path: Path, association: str, now: float) -> None:
    """One C-STORE, as the listener does it: bytes durable, row durable, then Success."""
    found = _instance(path)
    known = ledger.instance(found.identity.sop_uid)
    if known is not None and known.sha256 == found.sha256:
        ledger.record_repeat(found.identity.sop_uid)
        return
    stored = spool.receive(found.identity.sop_uid, 1, path.read_bytes())
    ledger.record_instance(
        InstanceRecord(
            found.identity.sop_uid,
            1,
            found.identity.study_uid,
            found.identity.series_uid,
            found.identity.sop_class_uid,
            found.transfer_syntax_uid,
            found.sha256,
            stored.as_posix(),
            found.size,
            association,
            now,
        )
    )


# -------------------------------------------------------------------- killing


class _Steps:
    """Counts durable steps and ends the process at one of them."""

    counting = True

    def __init__(self, crash_at: int, note: Path) -> None:
        self._left = crash_at
        self._note = note

    def __call__(self, name: str) -> None:
        self._left -= self.counting
        if self.counting and self._left == 0:
            self._note.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)


def _arm(step: _Steps) -> None:
    """Every COMMIT, fsync, rename and deletion is a step, and so is the moment after it.

    A killed process leaves everything that it wrote to the kernel: the fsyncs themselves are left out here.
    """
    real_rename, real_unlink, real_rmtree = Path.rename, Path.unlink, shutil.rmtree

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "PRAGMA synchronous = FULL":
                sql = "PRAGMA synchronous = OFF"
            if sql != "COMMIT":
                return super().execute(sql, *parameters)
            step("before commit")
            ended = super().execute(sql)
            step("after commit")
            return ended

    def fsync(descriptor: int) -> None:
        step("before fsync")

    def rename(self: Path, target: Path) -> Path:
        step("before rename")
        renamed = real_rename(self, target)
        step("after rename")
        return renamed

    def unlink(self: Path, missing_ok: bool = False) -> None:
        step("before unlink")
        real_unlink(self, missing_ok)

    def rmtree(*arguments: Any, **options: Any) -> None:
        step("before rmtree")
        real_rmtree(*arguments, **options)

    connect = sqlite3.connect
    ledger_core.sqlite3.connect = lambda *a, **k: connect(*a, **k, factory=Connection)  # type: ignore[attr-defined]
    os.fsync, Path.rename, Path.unlink = fsync, rename, unlink  # type: ignore[method-assign,assignment]
    shutil.rmtree = rmtree  # type: ignore[assignment]


def forked(story: Story, crash_at: int = 0) -> str | None:
    """Play in a child; where it was killed, None when it came to the end. An error of it is raised here."""
    story.folder.mkdir(parents=True, exist_ok=True)
    note, trouble = story.folder / "killed-at", story.folder / "trouble"
    note.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            _arm(_Steps(crash_at, note))
            story.play()
        except BaseException:
            trouble.write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return note.read_text()
    assert os.WEXITSTATUS(status) == 0, trouble.read_text()
    return None


def states(story: Story) -> set[str]:
    """What the ledger says after a crash: `job sending`, `delivery pending`, `series receiving` …"""
    path = path_below(story.root)
    if not path.exists():
        return set()
    found = set()
    with sqlite3.connect(path) as database:
        for table, kind in (("jobs", "job"), ("deliveries", "delivery"), ("series", "series")):
            try:
                rows = database.execute(f"SELECT DISTINCT state FROM {table}").fetchall()
            except sqlite3.OperationalError:  # killed before it had tables
                return set()
            found |= {f"{kind} {state}" for (state,) in rows}
    database.close()
    return found


# -------------------------------------------------------------------- what must hold in the end


@dataclass(frozen=True)
class Ending:
    """What became of the story, in what must not depend on how often the node was killed."""

    jobs: tuple[tuple[str, str, str | None, str | None], ...]  # series, end, reason, result
    archive: tuple[tuple[str, str], ...]  # file, hash
    instances: tuple[tuple[str, str], ...]
    results: tuple[str, ...]  # those of superseded revisions may be there or not
    left_over: tuple[str, ...]


def ending(story: Story) -> Ending:
    """Everything that is there at the end."""
    ledger = Ledger(path_below(story.root))
    jobs: list[Job] = [job for job in ledger.jobs(limit=1000) if job.state is not JobState.SUPERSEDED]
    rows = ledger.rows("SELECT path, sha256 FROM instances ORDER BY path")
    for row in rows:
        assert _instance_hash(story.root / row["path"]) == row["sha256"]
    ledger.close()
    on_disk = sorted(
        path.relative_to(story.root).as_posix() for path in (story.root / "instances").rglob("*.dcm")
    )
    assert on_disk == [row["path"] for row in rows]
    return Ending(
        tuple(sorted((job.series_uid, job.state, job.reason_code, job.result) for job in jobs)),
        tuple(sorted((path.name, _hash(path)) for path in story.archive_folder.glob("*.dcm"))),
        tuple((row["path"], row["sha256"]) for row in rows),
        tuple(sorted({path.name for path in (story.root / "results").iterdir()} & {j.result for j in jobs})),
        tuple(str(path) for name in ("incoming", "work") for path in (story.root / name).iterdir()),
    )


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _instance_hash(path: Path) -> str:
    return str(read_file(path).sha256)

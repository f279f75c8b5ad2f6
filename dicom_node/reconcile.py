"""The loop that moves everything: it asks what is so now, never what event it missed.

Each step looks at the ledger and does what can be done; doing it twice does nothing more. A restart needs
no special path but one: what a dead process held in its hands goes back into the queue (`recover`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from dicom_node.assembly import FACTS, Assembly
from dicom_node.compute import CorrectionTask, Outcome, Refusal
from dicom_node.decisions import RELEASED
from dicom_node.derive import DerivePolicy
from dicom_node.headers import InstanceFacts, read_instance
from dicom_node.inputs import JobInputs, SeriesRevision, job_to_follow, siblings_of
from dicom_node.ledger import Ledger
from dicom_node.log import get_logger
from dicom_node.recipe import Recipe
from dicom_node.records import Job
from dicom_node.spool import Spool
from dicom_node.states import JobState, SeriesState
from dicom_node.tasks import task_of
from dicom_node.workers import Finished
from rules.classify import SeriesClass
from rules.facts import SeriesFacts
from rules.pair import NoPairing, Pairing, PairingPolicy
from rules.patient import mismatch
from rules.rank import default_order
from rules.reasons import Code, Reason, reason
from rules.study import StudyDecision, decide_study

BETTER_REFERENCE_WAIT_S = 180.0  # how long the second-best contrast waits for the best one
# A skipped job is decided again when the study grows: what it lacked, or what was wrong, may have changed.
_MAY_CHANGE = frozenset({Code.NO_REFERENCE, Code.PATIENT_MISMATCH})
LEASE_S = 60.0
RETRY_DELAY_S = 10.0

log = get_logger(__name__)


class WorkerPool(Protocol):
    """What the loop needs of the compute workers."""

    def running(self) -> frozenset[int]: ...
    def free(self) -> int: ...
    def submit(self, job_id: int, attempt: int, task: CorrectionTask) -> None: ...
    def finished(self) -> list[Finished]: ...
    def overdue(self, timeout_s: float) -> list[int]: ...
    def stop_job(self, job_id: int) -> None: ...


@dataclass(frozen=True, slots=True)
class ReconcilePolicy:
    """The settings that the loop needs, in its own words.

    on_reject: withhold | flag. on_review: send | withhold | flag.
    """

    series_quiet_s: float
    study_wait_s: float
    pairing: PairingPolicy
    recipe: Recipe
    derive: DerivePolicy
    on_reject: str
    on_review: str
    deliver_to: tuple[str, ...]
    attempts: int
    timeout_s: float


class Reconciler:
    """Looks at the ledger and moves whatever can move."""

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        workers: WorkerPool,
        policy: ReconcilePolicy,
        *,
        clock: Callable[[], float] = time.time,
        read: Callable[[Path], InstanceFacts] = read_instance,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """alive: called now and then during a tick that has much to read."""
        self._ledger = ledger
        self._spool = spool
        self._workers = workers
        self._policy = policy
        self._clock = clock
        self._assembly = Assembly(
            ledger,
            spool,
            quiet_s=policy.series_quiet_s,
            overrides=policy.pairing.overrides,
            clock=clock,
            read=read,
            alive=alive,
        )

    def recover(self) -> None:
        """At start: corrections that a process before this one held are nobody's now."""
        for job in self._ledger.jobs([JobState.CORRECTING], limit=1_000_000):
            self._ledger.change_job(
                job.id,
                JobState.QUEUED,
                reason(Code.RESTARTED),
                expected=JobState.CORRECTING,
                lease_until=None,
            )

    def tick(self) -> None:
        """One look at everything."""
        busy = self._assembly.complete_quiet()
        self._decide_studies(busy)
        self._collect_finished()
        self._give_back_lost()
        self._stop_overdue()
        self._start_queued()
        self._route_corrected()

    # ---------------------------------------------------------------- complete → job

    def _decide_studies(self, busy: frozenset[str]) -> None:
        for study_uid, last_at in self._ledger.unsettled_studies():
            if study_uid in busy:
                continue
            open_jobs = self._decide_study(study_uid, self._clock() - last_at)
            if not open_jobs:
                self._ledger.settle_study(study_uid, last_at)

    def _decide_study(self, study_uid: str, age_s: float) -> bool:
        """Create, queue and skip the jobs of one study; True while one of them still waits."""
        rows = {row.series_uid: row for row in self._ledger.series(study_uid)}
        complete = {uid: row for uid, row in rows.items() if row.state is SeriesState.COMPLETE}
        pool = {
            row.series_uid: FACTS.validate_json(row.facts)
            for row in self._ledger.series_of_patient(study_uid)
            if row.facts is not None
        }
        decision = decide_study(tuple(pool.values()), self._policy.pairing)
        two_patients = mismatch(study_uid, pool.values())
        if two_patients is not None:
            self._park(study_uid, two_patients)
        jobs = {(job.series_uid, job.revision): job for job in self._ledger.jobs_of_study(study_uid)}
        waiting = False
        for uid, row in complete.items():
            found = decision.classifications[uid]
            if row.series_class != found.series_class:
                self._ledger.classify_series(uid, found.series_class, found.reason)
            outcome = decision.outcomes.get(uid)
            job = jobs.get((uid, row.revision))
            lead = None if two_patients else job_to_follow(row, decision, complete, jobs)
            if job is None and (outcome is not None or lead is not None):
                job = self._ledger.create_job(row, pool[uid].series_number)
            if job is not None and lead is not None:
                self._follow(job, lead)
            elif job is not None:
                beside = siblings_of(uid, decision, complete, jobs)
                self._decide_again(job, beside, uid in decision.outcomes)
                waiting |= self._settle_job(self._ledger.job(job.id), decision, pool[uid], age_s, beside)
        return waiting

    def _park(self, study_uid: str, why: Reason) -> None:
        """Two patients in one study, found after its jobs were decided: nothing goes on, nothing is sent."""
        for job in self._ledger.jobs_of_study(study_uid):
            match job.state:
                case JobState.QUEUED:
                    if self._ledger.change_job(job.id, JobState.WAITING, why, expected=JobState.QUEUED):
                        self._ledger.change_job(job.id, JobState.SKIPPED, why, expected=JobState.WAITING)
                case JobState.CORRECTED | JobState.SENDING:
                    self._ledger.change_job(job.id, JobState.WITHHELD, why, expected=job.state)

    def _follow(self, job: Job, lead: Job) -> None:
        """Queue a sibling that came too late for the job of its lead: it takes over that job's field."""
        if job.state is JobState.SKIPPED:
            self._ledger.change_job(job.id, JobState.WAITING, expected=JobState.SKIPPED)
        self._ledger.change_job(
            job.id,
            JobState.QUEUED,
            expected=JobState.WAITING,
            reference_series_uid=lead.reference_series_uid,
            reference_revision=lead.reference_revision,
            choice=lead.choice,
            inputs=JobInputs(field_from=(lead.series_uid, lead.revision)).as_json(),
        )

    def _decide_again(self, job: Job, beside: tuple[SeriesRevision, ...], leads: bool) -> None:
        """A queued job is decided again when a sibling of it has arrived, or the lead that it belongs to."""
        if job.state is JobState.QUEUED and not (leads and JobInputs.of(job).siblings == beside):
            self._ledger.change_job(job.id, JobState.WAITING, expected=JobState.QUEUED)

    def _settle_job(
        self,
        job: Job,
        decision: StudyDecision,
        dwi: SeriesFacts,
        age_s: float,
        beside: tuple[SeriesRevision, ...],
    ) -> bool:
        """Queue or skip one job as the decision says; True while it waits."""
        no_reference = job.state is JobState.SKIPPED and job.reason_code in _MAY_CHANGE
        if job.state is not JobState.WAITING and not no_reference:
            return False
        outcome = decision.outcomes.get(job.series_uid)
        if isinstance(outcome, Pairing):
            if no_reference:
                why = reason(Code.NEW_REFERENCE, f"series {outcome.reference.series_number}")
                self._ledger.change_job(job.id, JobState.WAITING, why)
            if self._better_may_come(outcome, decision, dwi, age_s):
                return True
            self._queue(job, outcome, beside)
            return False
        if no_reference:
            return False
        if isinstance(outcome, NoPairing) and age_s < self._policy.study_wait_s:
            return True
        self._skip(job, outcome)
        return False

    def _better_may_come(
        self, pairing: Pairing, decision: StudyDecision, dwi: SeriesFacts, age_s: float
    ) -> bool:
        """Whether something better might still come: another contrast, or a trace's directional DWI."""
        order = self._policy.pairing.reference_order or default_order(dwi)
        chosen = decision.classifications[pairing.reference.series_uid].contrast
        trace = decision.classifications[dwi.series_uid].series_class is SeriesClass.TRACE_DWI
        if chosen == order[0] and not trace:
            return False
        return age_s < min(BETTER_REFERENCE_WAIT_S, self._policy.study_wait_s)

    def _queue(self, job: Job, pairing: Pairing, beside: tuple[SeriesRevision, ...]) -> None:
        reference = pairing.reference
        rows = {row.series_uid: row for row in self._ledger.series(reference.study_uid)}
        self._ledger.change_job(
            job.id,
            JobState.QUEUED,
            expected=JobState.WAITING,
            reference_series_uid=reference.series_uid,
            reference_revision=rows[reference.series_uid].revision,
            choice=json.dumps([asdict(candidate) for candidate in pairing.candidates]),
            inputs=JobInputs(siblings=beside).as_json(),
        )
        log.info("job queued", job=job.id, reference=reference.series_uid)

    def _skip(self, job: Job, outcome: NoPairing | Reason | None) -> None:
        if isinstance(outcome, NoPairing):
            why, choice = outcome.reason, json.dumps([asdict(candidate) for candidate in outcome.candidates])
        else:
            by_product = reason(Code.BY_PRODUCT, "a diffusion series of this study")
            why, choice = outcome or by_product, None
        self._ledger.change_job(job.id, JobState.SKIPPED, why, expected=JobState.WAITING, choice=choice)
        log.info("job skipped", job=job.id, reason=why.code)

    # ---------------------------------------------------------------- queued → corrected

    def _start_queued(self) -> None:
        free = self._workers.free()
        if not free:
            return
        now = self._clock()
        due = (job for job in self._ledger.jobs([JobState.QUEUED], limit=1000) if job.next_attempt_at <= now)
        for job in due:
            if not free:
                return
            task = task_of(job, self._ledger, self._spool.root, self._policy)
            if task is None:
                self._ledger.change_job(job.id, JobState.WAITING, expected=JobState.QUEUED)
                self._ledger.unsettle_study(job.study_uid)
                continue
            if self._ledger.change_job(
                job.id,
                JobState.CORRECTING,
                expected=JobState.QUEUED,
                attempts=job.attempts + 1,
                lease_until=now + LEASE_S,
                result=task.name,
            ):
                self._workers.submit(job.id, job.attempts + 1, task)
                free -= 1
                log.info("correction started", job=job.id, attempts=job.attempts + 1)

    def _collect_finished(self) -> None:
        for job_id in self._workers.running():
            self._ledger.renew_lease(job_id, self._clock() + LEASE_S)
        for finished in self._workers.finished():
            job = self._ledger.job(finished.job_id)
            match finished.outcome:
                case Outcome() as outcome:
                    self._corrected(job, outcome)
                case Refusal() as refusal:
                    self._failed(job, reason(refusal.code, refusal.text), again=False)
                case None:
                    code = Code.WORKER_LOST if finished.lost else Code.CORRECTION_FAILED
                    self._failed(job, reason(code, finished.error), again=True)

    def _give_back_lost(self) -> None:
        """What no worker holds once its lease has run out: its end was not heard, or it never began."""
        held, now = self._workers.running(), self._clock()
        for job in self._ledger.jobs([JobState.CORRECTING], limit=1000):
            if job.id not in held and (job.lease_until or 0.0) < now:
                self._failed(job, reason(Code.WORKER_LOST, "no worker holds it any more"), again=True)

    def _corrected(self, job: Job, outcome: Outcome) -> None:
        derived = (outcome.output_series_uid, *(uid for _, uid in outcome.siblings))
        self._ledger.issue_uids(job.id, (*derived, *outcome.series_uids, *outcome.sop_uids))
        self._ledger.change_job(
            job.id,
            JobState.CORRECTED,
            expected=JobState.CORRECTING,
            figures={
                **outcome.figures,
                "seconds": outcome.seconds,
                "siblings": [{"source": source, "derived": uid} for source, uid in outcome.siblings],
            },
            verdict=outcome.verdict,
            output_series_uid=outcome.output_series_uid,
            lease_until=None,
        )
        log.info("corrected", job=job.id, verdict=outcome.verdict, seconds=outcome.seconds.get("total"))

    def _failed(self, job: Job, why: Reason, *, again: bool) -> None:
        """Back to the queue while attempts are left and another try can help; else the job ends."""
        if job.result:
            self._spool.discard_work_of(job.result)  # a worker that was killed could not
        if again and job.attempts < self._policy.attempts:
            self._ledger.change_job(
                job.id,
                JobState.QUEUED,
                why,
                expected=JobState.CORRECTING,
                lease_until=None,
                next_attempt_at=self._clock() + RETRY_DELAY_S * job.attempts,
            )
        else:
            self._ledger.change_job(
                job.id, JobState.FAILED, why, expected=JobState.CORRECTING, lease_until=None
            )
        log.warning("correction failed", job=job.id, reason=why.code, attempts=job.attempts)

    def _stop_overdue(self) -> None:
        for job_id in self._workers.overdue(self._policy.timeout_s):
            self._workers.stop_job(job_id)
            why = reason(Code.TIMEOUT, f"{self._policy.timeout_s:g} s")
            self._failed(self._ledger.job(job_id), why, again=True)

    # ---------------------------------------------------------------- corrected → sending | withheld

    def _route_corrected(self) -> None:
        for job in self._ledger.jobs([JobState.CORRECTED], limit=1000):
            why = self._why_withheld(job)
            if not self._spool.result_dir(job.result or "").is_dir():
                why = reason(Code.RESULT_LOST)
                self._ledger.change_job(job.id, JobState.QUEUED, why, expected=JobState.CORRECTED)
            elif why is not None:
                self._ledger.change_job(job.id, JobState.WITHHELD, why, expected=JobState.CORRECTED)
            else:
                found = self._ledger.was_found(job.result or "")
                self._ledger.start_delivery(
                    job.id,
                    self._policy.deliver_to,
                    expected=JobState.CORRECTED,
                    why=reason(Code.LEDGER_LOST) if found else None,
                )

    def _complete_facts(self, study_uid: str) -> list[SeriesFacts]:
        return [
            FACTS.validate_json(row.facts)
            for row in self._ledger.series(study_uid)
            if row.facts is not None and row.state is SeriesState.COMPLETE
        ]

    def _why_withheld(self, job: Job) -> Reason | None:
        """Why a result is not to be sent; None when it is.

        Of a result that was made before the ledger was lost, what a person decided then still holds.
        """
        two_patients = mismatch(job.study_uid, self._complete_facts(job.study_uid))
        if two_patients is not None:
            return two_patients
        decided = self._spool.decision(job.result or "") if self._ledger.was_found(job.result or "") else None
        if decided is not None and decided.get("decision") != RELEASED:
            return reason(Code.WITHHELD_BY_PERSON, decided.get("who", "somebody"))
        withhold = (job.verdict == "reject" and self._policy.on_reject == "withhold") or (
            job.verdict == "review" and self._policy.on_review == "withhold"
        )
        if withhold and decided is None:
            return reason(Code.VERDICT, _verdict_text(job))
        return None if self._policy.deliver_to else reason(Code.NO_DESTINATION)


def _verdict_text(job: Job) -> str:
    verdict = json.loads(job.figures or "{}").get("verdict", {})
    return " ".join(item["text"] for item in verdict.get("reasons", ())) or str(job.verdict)

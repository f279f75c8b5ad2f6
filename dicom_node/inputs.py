"""The series beside source and reference that decide the result of a job, as the ledger keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dicom_node.records import InstanceRecord, Job, SeriesRow
from dicom_node.states import DELIVERED_JOBS, JobState
from rules.study import StudyDecision

SeriesRevision = tuple[str, int]  # SeriesInstanceUID, revision


@dataclass(frozen=True, slots=True)
class JobInputs:
    """Series of the same EPI acquisition.

    siblings: take over the field that the job estimates. field_from: the series that the job's own source
    takes its field from, because it arrived when that one was corrected already.
    """

    siblings: tuple[SeriesRevision, ...] = ()
    field_from: SeriesRevision | None = None

    @classmethod
    def of(cls, job: Job) -> Self:
        """What was recorded when the job was queued."""
        said = json.loads(job.inputs or "{}")
        lead = said.get("field_from")
        return cls(
            tuple((uid, revision) for uid, revision in said.get("siblings", ())),
            None if lead is None else (lead[0], lead[1]),
        )

    @property
    def series(self) -> tuple[SeriesRevision, ...]:
        """All of them."""
        return self.siblings if self.field_from is None else (*self.siblings, self.field_from)

    def as_json(self) -> str:
        """For the ledger."""
        return json.dumps({"siblings": self.siblings, "field_from": self.field_from})


# The inputs of a job in these states are settled: a sibling that arrives now gets a job of its own.
_BEGUN = frozenset(
    {JobState.CORRECTING, JobState.CORRECTED, JobState.SENDING, JobState.WITHHELD, JobState.FAILED}
    | DELIVERED_JOBS
)


def siblings_of(
    lead_uid: str,
    decision: StudyDecision,
    complete: Mapping[str, SeriesRow],
    jobs: Mapping[SeriesRevision, Job],
) -> tuple[SeriesRevision, ...]:
    """The siblings that the job of a lead takes along: complete, and not corrected on their own already."""
    here = ((uid, complete[uid].revision) for uid in decision.carried(lead_uid) if uid in complete)
    return tuple(one for one in here if one not in jobs or jobs[one].state not in _BEGUN)


def job_to_follow(
    row: SeriesRow,
    decision: StudyDecision,
    complete: Mapping[str, SeriesRow],
    jobs: Mapping[SeriesRevision, Job],
) -> Job | None:
    """The job of this series' lead, when that one has begun without it."""
    sibling = decision.siblings.get(row.series_uid)
    lead = complete.get(sibling.lead_uid) if sibling is not None and not sibling.obstacle else None
    job = jobs.get((lead.series_uid, lead.revision)) if lead is not None else None
    if job is None or job.state not in _BEGUN:
        return None
    return None if (row.series_uid, row.revision) in JobInputs.of(job).siblings else job


def paths(records: Iterable[InstanceRecord]) -> tuple[Path, ...]:
    """Where the instances lie, relative to the storage root."""
    return tuple(Path(record.path) for record in records)

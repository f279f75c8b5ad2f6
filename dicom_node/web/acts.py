"""What a person can do to a job by the web, and which of it makes sense now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dicom_node import decisions
from dicom_node.ledger import Ledger
from dicom_node.states import JobState
from rules.reasons import Code


class Act(StrEnum):
    """The verbs of the command line that decide about a job."""

    RETRY = "retry"
    RELEASE = "release"
    WITHHOLD = "withhold"
    WITHDRAW = "withdraw"


# The states in which a button is shown; decisions.py has the last word.
OFFERED: dict[Act, frozenset[JobState]] = {
    Act.RELEASE: frozenset({JobState.WITHHELD}),
    Act.RETRY: frozenset({JobState.FAILED, JobState.SKIPPED, JobState.WITHHELD}),
    Act.WITHHOLD: frozenset({JobState.CORRECTED, JobState.SENDING}),
    Act.WITHDRAW: frozenset({JobState.SENT, JobState.COMMITTED}),
}


@dataclass(frozen=True, slots=True)
class Acts:
    """Does what a person decided. destinations: where a released result goes."""

    ledger: Ledger
    destinations: tuple[str, ...]

    def do(self, act: Act, job_id: int, address: str) -> None:
        """Raises UnknownJob, NotNow or IllegalChange with a sentence; notes from which address it came."""
        who = f"web:{address}"
        match act:
            case Act.RETRY:
                decisions.retry(self.ledger, job_id, who)
            case Act.RELEASE:
                decisions.release(self.ledger, job_id, who, self.destinations)
            case Act.WITHHOLD:
                decisions.withhold(self.ledger, job_id, who)
            case Act.WITHDRAW:
                decisions.withdraw(self.ledger, job_id, who, self.destinations)


def offered(job: Mapping[str, Any]) -> list[Act]:
    """The acts that make sense for a job as its document tells it; none when its images were rejected."""
    return [] if withdrawn(job) else [act for act, states in OFFERED.items() if job["state"] in states]


def withdrawn(job: Mapping[str, Any]) -> bool:
    """Whether somebody took the job's images back, which is the last word about it."""
    return bool(job["reason"]) and job["reason"]["code"] == Code.WITHDRAWN_BY_PERSON

"""The states of a series, a job and a delivery, and which may follow which.

A table, not branches: the ledger refuses any change that is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class SeriesState(StrEnum):
    """A received series grows, then is complete; a late instance re-opens it."""

    RECEIVING = "receiving"
    COMPLETE = "complete"


class JobState(StrEnum):
    """One job for each complete DWI series and revision."""

    WAITING = "waiting"
    QUEUED = "queued"
    CORRECTING = "correcting"
    CORRECTED = "corrected"
    SENDING = "sending"
    SENT = "sent"
    COMMITTED = "committed"
    SKIPPED = "skipped"
    WITHHELD = "withheld"
    FAILED = "failed"
    SUPERSEDED = "superseded"


class DeliveryState(StrEnum):
    """One delivery for each job and destination."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    COMMITTED = "committed"
    FAILED = "failed"


_J = JobState
JOB_LEAVES: Mapping[JobState, frozenset[JobState]] = {
    _J.WAITING: frozenset({_J.QUEUED, _J.SKIPPED, _J.SUPERSEDED}),
    _J.QUEUED: frozenset({_J.CORRECTING, _J.WAITING, _J.SUPERSEDED}),
    _J.CORRECTING: frozenset({_J.CORRECTED, _J.FAILED, _J.QUEUED, _J.SUPERSEDED}),
    # back to the queue: the result is gone from the disk, so it is computed again
    _J.CORRECTED: frozenset({_J.SENDING, _J.WITHHELD, _J.QUEUED, _J.SUPERSEDED}),
    _J.SENDING: frozenset({_J.SENT, _J.FAILED, _J.WITHHELD, _J.QUEUED, _J.SUPERSEDED}),
    # back to sending: asked to commit, a destination says that it lacks some of the images
    # what was sent, or some of it, can be withdrawn by a person: its images are rejected where they are
    _J.SENT: frozenset({_J.COMMITTED, _J.SENDING, _J.FAILED, _J.WITHHELD}),
    _J.COMMITTED: frozenset({_J.WITHHELD}),
    _J.SKIPPED: frozenset({_J.WAITING, _J.SUPERSEDED}),
    _J.WITHHELD: frozenset({_J.SENDING, _J.QUEUED, _J.WITHHELD, _J.SUPERSEDED}),
    _J.FAILED: frozenset({_J.QUEUED, _J.WITHHELD, _J.SUPERSEDED}),
    _J.SUPERSEDED: frozenset(),
}

_D = DeliveryState
DELIVERY_LEAVES: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    _D.PENDING: frozenset({_D.SENDING, _D.FAILED}),
    _D.SENDING: frozenset({_D.PENDING, _D.SENT, _D.FAILED}),
    _D.SENT: frozenset({_D.COMMITTED, _D.PENDING, _D.FAILED}),
    _D.COMMITTED: frozenset({_D.PENDING}),
    _D.FAILED: frozenset({_D.PENDING}),
}

# A late instance does not undo what a PACS already holds: these stay as they are, and the new revision's
# output goes out beside them under a new series UID.
DELIVERED_JOBS = frozenset({JobState.SENT, JobState.COMMITTED})
# In progress: what these need, their own images and their reference's, must stay on disk.
MOVING_JOBS = frozenset(
    {JobState.WAITING, JobState.QUEUED, JobState.CORRECTING, JobState.CORRECTED, JobState.SENDING}
)

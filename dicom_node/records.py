"""The rows of the ledger as frozen values."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from typing import Any, Self

from dicom_node.states import DeliveryState, JobState, SeriesState


def _columns(kind: type, row: sqlite3.Row) -> dict[str, Any]:
    return {field.name: row[field.name] for field in fields(kind)}


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One received instance, as the listener stored it. `path` is relative to the storage root."""

    sop_uid: str
    revision: int
    study_uid: str
    series_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    path: str
    size: int
    association_id: str
    received_at: float

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """From a row that has (at least) these columns."""
        return cls(**_columns(cls, row))


@dataclass(frozen=True, slots=True)
class SeriesRow:
    """A received series. `facts` is the JSON of rules.facts.SeriesFacts once the series is complete."""

    series_uid: str
    study_uid: str
    state: SeriesState
    revision: int
    first_at: float
    last_at: float
    facts: str | None
    series_class: str | None
    class_reason: str | None
    deleted: float | None  # when retention deleted its files

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """From a row that has (at least) these columns."""
        return cls(**(_columns(cls, row) | {"state": SeriesState(row["state"])}))


@dataclass(frozen=True, slots=True)
class Job:
    """One correction of one DWI series in one revision."""

    id: int
    series_uid: str
    revision: int
    study_uid: str
    series_number: int | None
    state: JobState
    reason_code: str | None
    reason_text: str | None
    reference_series_uid: str | None
    reference_revision: int | None
    choice: str | None  # JSON: the ranked candidates with their sentences
    result: str | None  # name of the published result
    output_series_uid: str | None
    verdict: str | None
    figures: str | None  # JSON
    attempts: int
    next_attempt_at: float
    lease_until: float | None
    created: float
    changed: float
    deleted: float | None  # when retention deleted its images and its result
    inputs: str | None  # JSON: the series beside source and reference that decide the result

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """From a row that has (at least) these columns."""
        return cls(**(_columns(cls, row) | {"state": JobState(row["state"])}))


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one destination is owed of one job.

    commitment: it still has to say that it stores for good. asks: how often it was asked, refusals: how
    often it said that it lacks something.
    """

    job_id: int
    destination: str
    state: DeliveryState
    attempts: int
    next_attempt_at: float
    since: float
    reason_code: str | None
    reason_text: str | None
    commitment: int
    asks: int
    refusals: int

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """From a row that has (at least) these columns."""
        return cls(**(_columns(cls, row) | {"state": DeliveryState(row["state"])}))


@dataclass(frozen=True, slots=True)
class DeliveryCount:
    """How many deliveries of one destination are in one state, and since when the oldest of them waits."""

    destination: str
    state: DeliveryState
    number: int
    since: float


@dataclass(frozen=True, slots=True)
class Event:
    """One change of state, or one act of a person."""

    id: int
    at: float
    subject: str
    was: str | None
    became: str | None
    code: str | None
    text: str | None
    who: str | None
    figures: str | None

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """From a row that has (at least) these columns."""
        return cls(**_columns(cls, row))


@dataclass(frozen=True, slots=True)
class Growth:
    """A series that is still receiving, and what decides whether it has become quiet."""

    series_uid: str
    study_uid: str
    last_at: float
    open_associations: int
    aborted: bool  # the association that brought the latest instances was aborted

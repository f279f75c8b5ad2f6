"""A queued job → what a worker is to do: the files of its inputs, and the name of its result.

The name is a hash of everything that the result depends on, so that computing again gives the same name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from dicom_node import __version__
from dicom_node.assembly import FACTS
from dicom_node.compute import CorrectionTask, SiblingFiles
from dicom_node.derive import DerivePolicy
from dicom_node.inputs import JobInputs, paths
from dicom_node.ledger import Ledger
from dicom_node.recipe import Recipe
from dicom_node.records import InstanceRecord, Job, SeriesRow
from rules.classify import classify
from rules.pair import PairingPolicy


class TaskPolicy(Protocol):
    """The settings that a task needs."""

    @property
    def pairing(self) -> PairingPolicy: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def derive(self) -> DerivePolicy: ...


def task_of(job: Job, ledger: Ledger, root: Path, policy: TaskPolicy) -> CorrectionTask | None:
    """What the worker is to do; None when an input is not what it was when the job was queued."""
    series = {row.series_uid: row for row in ledger.series_of_patient(job.study_uid)}
    reference = series.get(job.reference_series_uid or "")
    if reference is None or reference.revision != job.reference_revision or reference.facts is None:
        return None
    inputs = JobInputs.of(job)
    if any(uid not in series or series[uid].revision != revision for uid, revision in inputs.series):
        return None
    source_records = ledger.instances_of(job.series_uid)
    reference_records = ledger.instances_of(reference.series_uid)
    lead_records = ledger.instances_of(inputs.field_from[0]) if inputs.field_from else []
    beside = [ledger.instances_of(uid) for uid, _ in inputs.siblings]
    # a sibling gets the same UIDs whether it is corrected with its lead or after it
    decides = [lead_records, reference_records] if lead_records else [reference_records]
    digest = _digest(source_records, *decides)
    siblings = tuple(
        SiblingFiles(paths(records), _digest(records, source_records, reference_records))
        for records in beside
    )
    name = hashlib.sha256(
        json.dumps(
            [
                *(__version__, job.series_uid, digest, [one.input_digest for one in siblings]),
                *(asdict(policy.recipe), asdict(policy.derive)),
            ],
            sort_keys=True,
        ).encode()
    ).hexdigest()[:32]
    found = classify(FACTS.validate_json(reference.facts), policy.pairing.overrides)
    return CorrectionTask(
        name=name,
        root=root,
        source=paths(source_records),
        reference=paths(reference_records),
        contrast=str(found.contrast or "anatomical"),
        recipe=policy.recipe,
        derive=policy.derive,
        taken_numbers=_numbers(series.values(), job.study_uid),
        input_digest=digest,
        siblings=siblings,
        field_from=paths(lead_records),
    )


def _digest(*series: Sequence[InstanceRecord]) -> str:
    """Of the bytes of all inputs, whatever their order of arrival."""
    digest = hashlib.sha256()
    for records in series:
        for sha256 in sorted(record.sha256 for record in records):
            digest.update(sha256.encode())
        digest.update(b"|")
    return digest.hexdigest()


def _numbers(rows: Iterable[SeriesRow], study_uid: str) -> frozenset[int]:
    """The SeriesNumbers that the study uses already."""
    facts = (FACTS.validate_json(row.facts) for row in rows if row.study_uid == study_uid and row.facts)
    return frozenset(
        item.series_number for item in facts if item.series_number is not None and not item.own_output
    )

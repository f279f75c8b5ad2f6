"""Rejection of our own images: a Key Object Selection (IHE IOCM, PS3.16 TID 2010).

Archives that follow IOCM hide or delete what such a note names. Only what this program made is ever named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from highdicom.ko import KeyObjectSelection
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    ObserverContext,
    RelationshipTypeValues,
)
from pydicom import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from dicom_node.companions.document import Identity, evidence, new_object
from dicom_node.derive.instance_file import put, read_header
from dicom_node.derive.provenance import instance_uid, uid_of
from dicom_node.derive.series_header import series_description
from dicom_node.headers.scan import PRODUCT

REJECTED = CodedConcept("113001", "DCM", "Rejected for Quality Reasons")
MODIFIER = CodedConcept("113011", "DCM", "Document Title Modifier")
INAPPROPRIATE = CodedConcept("111219", "DCM", "Inappropriate image processing")
DEVICE = CodedConcept("121007", "DCM", "Device")
NAMED_BY = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Rows", "Columns"]


@dataclass(frozen=True, slots=True)
class _Rejected:
    """One of our objects, as the evidence of a note names it."""

    sop_class_uid: str
    sop_uid: str
    series_uid: str


def rejection(files: Sequence[Path], version: str, now: datetime) -> Dataset:
    """The note that rejects the objects of `files`, which are all of one study.

    The same objects give the same UIDs. Raises OSError, pydicom.errors.InvalidDicomError.
    """
    headers = [read_header(path, NAMED_BY) for path in sorted(files)]
    rejected = [
        _Rejected(str(one.SOPClassUID), str(one.SOPInstanceUID), str(one.SeriesInstanceUID))
        for one in headers
    ]
    first = read_header(min(files))
    uid = uid_of("rejection|" + "|".join(sorted(one.sop_uid for one in rejected)))
    number = max(int(one.SeriesNumber) for one in headers) + 1
    note = new_object(
        first,
        Identity(KeyObjectSelectionDocumentStorage, "KO", instance_uid(uid, "note"), uid, number),
        series_description(first, " REJECTED"),
        version,
        now,
    )
    for element in _content(headers, version)[0]:
        note[element.tag] = element
    put(note, "ReferencedPerformedProcedureStepSequence", [])
    put(note, "CurrentRequestedProcedureEvidenceSequence", evidence(str(first.StudyInstanceUID), rejected))
    return note


def _content(rejected: Sequence[Dataset], version: str) -> KeyObjectSelection:
    """The content tree. rejected: headers; those with Rows are images, the others composite objects."""
    device = DeviceObserverIdentifyingAttributes(
        uid_of(f"device|{PRODUCT}|{version}"), name=PRODUCT, manufacturer_name=PRODUCT, model_name=PRODUCT
    )
    observer = ObserverContext(DEVICE, device)
    content = KeyObjectSelection(REJECTED, rejected, observer_device_context=observer)
    why = CodeContentItem(MODIFIER, INAPPROPRIATE, RelationshipTypeValues.HAS_CONCEPT_MOD)
    content[0].ContentSequence.insert(0, why)
    return content

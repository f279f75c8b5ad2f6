"""What every object beside the images has: patient and study of the source, and this program as its maker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Protocol

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.tag import Tag

from dicom_node.derive import provenance, template
from dicom_node.derive.instance_file import put, put_given
from dicom_node.derive.series_header import local_time
from dicom_node.headers.scan import PRODUCT

DEVICE_SERIAL = "none"  # type 1 in some objects; a program has none
EMPTY_IF_UNKNOWN = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
)


class Referenced(Protocol):
    """An object that a document names."""

    @property
    def sop_class_uid(self) -> str: ...
    @property
    def sop_uid(self) -> str: ...
    @property
    def series_uid(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What an object is and how it is called."""

    class_uid: str
    modality: str
    sop_uid: str
    series_uid: str
    series_number: int


def new_object(
    header: Dataset, identity: Identity, description: template.Element, version: str, now: datetime
) -> Dataset:
    """The only object of a series of its own, without its content.

    header: of an image of the study; patient and study keep its bytes and its character set. All other text
    is ASCII, which every character set holds.
    """
    now = local_time(now, header)
    made = Dataset()
    for tag, element in template.public_elements(header).items():
        if template.belongs_to_study(tag):
            made[tag] = element
    for keyword in EMPTY_IF_UNKNOWN:
        tag = Tag(tag_for_keyword(keyword))
        if tag not in made:
            made[tag] = DataElement(tag, dictionary_VR(tag), "")
    put(made, "SOPClassUID", identity.class_uid)
    put(made, "SOPInstanceUID", identity.sop_uid)
    put(made, "SeriesInstanceUID", identity.series_uid)
    put(made, "Modality", identity.modality)
    put(made, "SeriesNumber", identity.series_number)
    put(made, "InstanceNumber", 1)
    made[description.tag] = description
    for occasion in ("Series", "Content", "InstanceCreation"):
        put(made, f"{occasion}Date", now.strftime("%Y%m%d"))
        put(made, f"{occasion}Time", now.strftime("%H%M%S.%f"))
    put(made, "Manufacturer", PRODUCT)
    put(made, "ManufacturerModelName", PRODUCT)
    put(made, "SoftwareVersions", version)
    put(made, "DeviceSerialNumber", DEVICE_SERIAL)
    put(made, "ContributingEquipmentSequence", [provenance.equipment(version, now)])
    made.set_original_encoding(False, True, header.original_character_set)
    return made


def put_body_part(made: Dataset, header: Dataset) -> None:
    """What an object with a body part says of it: as the image does; Laterality is required where none is."""
    for keyword in ("BodyPartExamined", "Laterality"):
        element = template.carried(header, Tag(keyword))
        if element is not None and str(header.get(keyword) or "").strip():
            made[element.tag] = element
    if "BodyPartExamined" not in made and "Laterality" not in made:
        put(made, "Laterality", "")


def evidence(study_uid: str, objects: Iterable[Referenced]) -> list[Dataset]:
    """Items of a sequence of referenced instances of one study, by series (PS3.3 table C.17-3)."""

    def series_uid(one: Referenced) -> str:
        return one.series_uid

    study = Dataset()
    put_given(study, "StudyInstanceUID", study_uid)
    series_items = []
    for uid, members in groupby(sorted(objects, key=series_uid), key=series_uid):
        item = Dataset()
        put_given(item, "SeriesInstanceUID", uid)
        references = [
            provenance.image_reference(one.sop_class_uid, one.sop_uid, None, None) for one in members
        ]
        put(item, "ReferencedSOPSequence", references)
        series_items.append(item)
    put(study, "ReferencedSeriesSequence", series_items)
    return [study]

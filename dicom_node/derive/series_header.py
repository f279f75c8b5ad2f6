"""The header that all instances of a derived series share: from the first source header, and from us.

Encoded once into raw elements, so that writing a slice does not encode patient, study and provenance again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import count

import pydicom
from highdicom.sr import CodedConcept
from pydicom import DataElement, Dataset
from pydicom.dataelem import convert_raw_data_element
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag

from dicom_node.derive import provenance, template
from dicom_node.derive.instance_file import put, put_given
from dicom_node.derive.policy import DerivePolicy, OutputGrid
from dicom_node.derive.provenance import Provenance
from rules.facts import SeriesFacts

LONG_STRING_MAX = 64  # characters of LO
SERIES_NUMBER_SCALE, SERIES_NUMBER_STEP = 100, 90  # source 5 → 590: sorts just behind its source
SERIES_NUMBER_LIMIT = 21_000_000  # of a source whose number times 100 still is an IS
QC_MARK = {"pass": "", "review": " QC!", "reject": " QC FAIL"}


@dataclass(frozen=True, slots=True)
class SeriesLabel:
    """How one of the derived series is called.

    ending: of its description, after the source's. computed: what was made of the corrected images, with the
    code of that; empty where it is these themselves.
    """

    uid: str
    number: int
    ending: str
    computed: str = ""
    codes: tuple[CodedConcept, ...] = ()


def series_header(
    first: Dataset,
    facts: SeriesFacts,
    made_by: Provenance,
    grid: OutputGrid,
    label: SeriesLabel,
    clipped: int,
    now: datetime,
) -> Dataset:
    """Raw elements that are the same in every instance.

    first: header of the first source slice. facts: of the source series. clipped: voxels that the pixel
    description could not hold. now: of processing; where it knows its time zone it is put on the scanner's.
    """
    now = local_time(now, first)
    elements = Dataset()
    for tag, element in template.public_elements(first).items():
        if template.belongs_to_series(tag):
            elements[tag] = element
    if not str(elements.get("Laterality") or "").strip():
        elements.pop(Tag("Laterality"), None)  # 2C: an empty one is wrong beside an unpaired body part
    put(elements, "SeriesInstanceUID", label.uid)
    put(elements, "SeriesNumber", label.number)
    description = series_description(first, label.ending + QC_MARK[made_by.verdict])
    elements[description.tag] = description
    put_given(elements, "FrameOfReferenceUID", provenance.frame_of_reference(facts, made_by, grid))
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    for occasion in ("Series", "Content", "InstanceCreation"):
        put(elements, f"{occasion}Date", date)
        put(elements, f"{occasion}Time", time)
    derivation = provenance.derivation_description(facts, made_by, grid, clipped, label.computed)
    put(elements, "DerivationDescription", derivation)
    codes = [provenance.SPATIAL_RESAMPLING, provenance.DEFORMED, *label.codes]
    put(elements, "DerivationCodeSequence", codes)
    put(elements, "RelatedSeriesSequence", provenance.related_series(facts, made_by))
    earlier = list(first.get("ContributingEquipmentSequence") or [])
    put(elements, "ContributingEquipmentSequence", [*earlier, provenance.equipment(made_by.version, now)])
    put(elements, "ImageComments", provenance.image_comments(facts, made_by))
    put(elements, "BurnedInAnnotation", "NO")
    elements.set_original_encoding(False, True, first.original_character_set)
    return _encoded(elements)


def _encoded(elements: Dataset) -> Dataset:
    """The same elements as raw bytes in Explicit VR Little Endian."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, elements)
    buffer.seek(0)
    return read_dataset(buffer, is_implicit_VR=False, is_little_endian=True)


def local_time(now: datetime, header: Dataset) -> datetime:
    """`now` on the clock of the scanner: DA and TM are in TimezoneOffsetFromUTC, or else local time."""
    if now.tzinfo is None:
        return now
    offset = str(header.get("TimezoneOffsetFromUTC") or "").strip()
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit():
        shift = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:]))
        return now.astimezone(timezone(-shift if offset[0] == "-" else shift))
    return now.astimezone()


def series_numbers(source: int | None, policy: DerivePolicy, taken: Collection[int]) -> Iterator[int]:
    """The free numbers just behind the source's, one after the other."""
    number = source or 0
    if policy.series_number_offset is not None:
        wanted = number + policy.series_number_offset
    else:
        wanted = number * SERIES_NUMBER_SCALE + SERIES_NUMBER_STEP
    if not 0 < number <= SERIES_NUMBER_LIMIT:
        wanted = 9000 + number % 1000
    return (free for free in count(wanted) if free not in taken)


def series_description(first: Dataset, suffix: str) -> template.Element:
    """The source's description with `suffix`; its bytes are kept unless it has to be shortened.

    Shortened by characters on the decoded text: cutting bytes would break a multi-byte character.
    """
    tag = Tag("SeriesDescription")
    ending = suffix.encode("ascii", "replace").decode()
    raw = template.carried(first, tag)
    if raw is None:
        return DataElement(tag, "LO", ending.strip())
    if isinstance(raw, DataElement):  # decoded already, from an encoding whose bytes cannot be kept
        return DataElement(tag, "LO", _decoded(raw)[: LONG_STRING_MAX - len(ending)].rstrip() + ending)
    # not first[tag]: that would keep the decoded text in `first`, and the next series would re-encode it
    text = _decoded(convert_raw_data_element(raw, encoding=first.original_character_set))
    if len(text) + len(ending) > LONG_STRING_MAX:
        return DataElement(tag, "LO", text[: LONG_STRING_MAX - len(ending)].rstrip() + ending)
    value = raw.value.rstrip(b" \0") + ending.encode()
    value += b" " * (len(value) % 2)
    return raw._replace(value=value, length=len(value))


def _decoded(element: DataElement) -> str:
    value = element.value
    return ("\\".join(value) if isinstance(value, pydicom.multival.MultiValue) else str(value or "")).strip()

"""docs/conformance.md says what the program does: its tables against the tables of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dicom_node.companions import adc, rejection
from dicom_node.companions.quality_record import QUALITY, SCHEME
from dicom_node.delivery import INSTANCES_PER_REQUEST
from dicom_node.derive import provenance, template
from dicom_node.listener import Refusal
from dicom_node.received import BIG_ENDIAN, LOSSLESS, PRIVATE_CLASSES, UNCOMPRESSED
from dicom_node.statuses import TREATMENTS, Answer, Outcome
from dicom_node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

STATEMENT = (Path(__file__).parent.parent / "docs" / "conformance.md").read_text(encoding="utf-8")


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table behind `heading`, without its head."""
    table = re.search(r"((?:^\|.*\n)+)", STATEMENT.split(heading, 1)[1], flags=re.MULTILINE)
    assert table
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()[2:]]


def test_transfer_syntaxes_are_told_in_order_of_preference() -> None:
    told = [uid for _, uid in rows_below("Lossy syntaxes are not accepted")]
    assert told == [*UNCOMPRESSED, *LOSSLESS, BIG_ENDIAN]


@pytest.mark.parametrize("uid", PRIVATE_CLASSES.values())
def test_every_private_class_is_named(uid: str) -> None:
    assert uid in STATEMENT.split("Private storage classes", 1)[1].split("\n\n")[0]


def test_every_answer_to_a_store_is_told_and_no_other() -> None:
    told = {int(status, 16) for status, _ in rows_below("Answers to C-STORE:")}
    assert told == set(Answer)


def test_received_statuses_are_told_as_they_are_treated() -> None:
    told: dict[int, Outcome] = {}
    words = {
        "stored": Outcome.STORED,
        "stored, with a warning in the log": Outcome.STORED_WITH_WARNING,
        "stored before": Outcome.DUPLICATE,
    }
    for statuses, treated in rows_below("Explicit is used where both are accepted"):
        for status in re.findall(r"0x([0-9A-FBx]{4})", statuses):
            first = int(status.replace("x", "0"), 16)
            told[first] = words.get(treated, Outcome.TRANSIENT)
    expected = {t.first: t.outcome for t in TREATMENTS if t.outcome is not Outcome.PERMANENT}
    assert told == expected


def test_rejections_are_told_with_their_codes() -> None:
    told = {tuple(int(n) for n in codes.split(",")) for _, codes in rows_below("Rejections (result")}
    assert told == {refusal.value for refusal in Refusal} - {Refusal.NO_REASON.value}


@pytest.mark.parametrize("text", [IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME])
def test_the_implementation_is_named(text: str) -> None:
    assert f"| {text} |" in STATEMENT


@pytest.mark.parametrize(
    "code",
    [
        *(provenance.PROCESSING_EQUIPMENT, provenance.SPATIAL_RESAMPLING, provenance.DEFORMED),
        *(provenance.DIFFUSION_ANALYSIS, provenance.SOURCE_IMAGE, provenance.STRUCTURAL_IMAGE),
        *(provenance.ANATOMIC_IMAGE, provenance.SOURCE_SERIES, provenance.SAME_ANATOMY),
        *(adc.ADC, adc.UNIT, QUALITY),
        *(rejection.REJECTED, rejection.MODIFIER, rejection.INAPPROPRIATE),
    ],
    ids=lambda code: str(code.value),
)
def test_every_code_is_told(code: provenance.CodedConcept) -> None:
    assert f"({code.value}, {code.scheme_designator}" in STATEMENT


def test_the_private_elements_told_are_the_white_list() -> None:
    told = {
        creator: {
            (int(elements[:4], 16), int(element, 16))
            for element in re.findall(r"xx([0-9A-F]{2})", elements.split(";")[0])
        }
        for creator, elements in rows_below("## 4 Private elements")
    }
    assert told == {creator: set(elements) for creator, elements in template.WHITE_LIST.items()}


def test_the_scheme_of_private_codes_and_the_size_of_requests_are_told() -> None:
    assert SCHEME in STATEMENT
    assert f"at most {INSTANCES_PER_REQUEST} instances" in STATEMENT

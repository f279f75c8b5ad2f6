"""Elements that scanners and PACS write strangely are read as what they mean, or not at all."""

from __future__ import annotations

import struct
from datetime import datetime

import pytest
from made_headers import add_private, dataset_of, header
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node.headers import tags
from dicom_node.headers.elements import moment

CREATOR = "SIEMENS MR HEADER"


@pytest.mark.parametrize(
    ("vr", "stored", "true_vr", "expected"),
    [
        ("IS", "800", "IS", (800.0,)),
        ("OB", b"800 ", "IS", (800.0,)),  # de-identified
        ("UN", b"800 ", "IS", (800.0,)),
        ("UN", b"1000\\8\\0\\0", "IS", (1000.0, 8.0, 0.0, 0.0)),
        ("OB", struct.pack("<3d", 0.6, 0.0, -0.8), "FD", (0.6, 0.0, -0.8)),
        ("UN", struct.pack("<f", 1000.0), "FL", (1000.0,)),
        ("OB", b"0.5\\0.25", "FD", (0.5, 0.25)),  # eight bytes of text, not a double
        ("UN", struct.pack("<d", 0.0), "FD", (0.0,)),
        ("UN", b"123", "FD", (123.0,)),
        ("UN", b"\x01\x02\x03", "FD", ()),  # no multiple of eight, no text
        ("LO", "not a number", "IS", ()),
        ("UN", struct.pack("<d", float("nan")), "FD", ()),
    ],
)
def test_private_numbers_are_read_however_they_were_stored(
    vr: str, stored: object, true_vr: str, expected: tuple[float, ...]
) -> None:
    made = add_private(Dataset(), 0x0019, CREATOR, {0x0C: (vr, stored)})
    assert header(made).private_numbers(0x0019, CREATOR, 0x0C, true_vr) == pytest.approx(expected)


def test_private_numbers_survive_implicit_vr() -> None:
    made = add_private(Dataset(), 0x0065, "Image Private Header", {0x09: ("FD", 929.75)})
    assert header(made, implicit=True).private_number(0x0065, "Image Private Header", 0x09, "FD") == 929.75


def test_a_private_block_is_found_by_its_creator_wherever_it_lies() -> None:
    made = add_private(Dataset(), 0x0019, "SOMEBODY ELSE", {0x0C: ("IS", 1)})
    add_private(made, 0x0019, CREATOR, {0x0C: ("IS", 700)})
    assert header(made).private_number(0x0019, CREATOR, 0x0C, "IS") == 700


def test_another_vendors_block_is_not_read() -> None:
    made = add_private(Dataset(), 0x0019, "SOMEBODY ELSE", {0x0C: ("IS", 1)})
    assert header(made).private_number(0x0019, CREATOR, 0x0C, "IS") is None


def test_the_first_block_is_tried_where_every_creator_was_stripped() -> None:
    made = Dataset()
    made.add_new(0x0019100C, "IS", "500")
    assert header(made).private_number(0x0019, CREATOR, 0x0C, "IS") == 500


def test_a_sequence_that_became_un_is_still_read() -> None:
    item = dataset_of({"ImagePositionPatient": [1.0, 2.0, 3.0]})
    made = add_private(Dataset(), 0x0065, "Image Private Header", {0x51: ("SQ", Sequence([item, item]))})
    assert len(header(made, implicit=True).private_items(0x0065, "Image Private Header", 0x51)) == 2


def test_bytes_that_only_look_like_items_are_no_items() -> None:
    made = add_private(Dataset(), 0x0065, "Image Private Header", {0x51: ("UN", b"\xfe\xff\x00\xe0\xff\xff")})
    assert header(made).private_items(0x0065, "Image Private Header", 0x51) == []


def test_padding_is_no_part_of_a_text() -> None:
    made = dataset_of({"SeriesDescription": "T2 tra ", "SoftwareVersions": ["FS ", " pfp"]})
    assert header(made).text(tags.SERIES_DESCRIPTION) == "T2 tra"
    assert header(made).tokens(tags.SOFTWARE_VERSIONS) == ("FS", "PFP")


def test_text_is_decoded_in_its_character_set() -> None:
    made = dataset_of({"SpecificCharacterSet": "ISO_IR 192", "SeriesDescription": "扩散 Diffusion"})
    assert header(made).text(tags.SERIES_DESCRIPTION) == "扩散 Diffusion"


def test_text_without_a_character_set_is_shown_as_latin_1() -> None:
    made = Dataset()
    made.add_new(0x0008103E, "UN", "Schädel".encode("latin-1"))
    assert header(made).text(tags.SERIES_DESCRIPTION) == "Schädel"


@pytest.mark.parametrize(
    ("date", "time", "expected"),
    [
        ("20240229", "235959.5", datetime(2024, 2, 29, 23, 59, 59, 500000)),
        ("20240229", "2359", datetime(2024, 2, 29, 23, 59)),
        ("20220711121255.180000", "", datetime(2022, 7, 11, 12, 12, 55, 180000)),
        ("20220711121255+0200", "", datetime(2022, 7, 11, 12, 12, 55)),
        ("20161231235960", "", datetime(2017, 1, 1)),  # a leap second
        ("20230230", "1200", None),
        ("***", "134431", None),  # de-identified
        ("", "", None),
    ],
)
def test_times_are_read_or_unknown(date: str, time: str, expected: datetime | None) -> None:
    assert moment(date, time) == expected

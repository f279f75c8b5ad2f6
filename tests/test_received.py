from __future__ import annotations

import zlib
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import encoded, mr_dataset
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from dicom_node import received
from dicom_node.received import (
    Identity,
    Unidentifiable,
    file_header,
    read_identity,
    supported_storage_classes,
    supported_transfer_syntaxes,
)
from dicom_node.uids import is_acceptable

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # that the UIDs are bad is the point

EXPECTED = Identity(
    MRImageStorage,
    "1.2.826.0.1.3680043.10.5",
    "1.2.826.0.1.3680043.10.1",
    "1.2.826.0.1.3680043.10.1.1",
)


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
    ids=lambda syntax: syntax.name,
)
def test_the_identity_is_read_in_every_encoding(syntax: object) -> None:
    data = encoded(mr_dataset(sop_uid=EXPECTED.sop_uid, syntax=syntax))  # type: ignore[arg-type]
    assert read_identity(data, str(syntax)) == EXPECTED


def test_reading_stops_before_the_pixels() -> None:
    data = encoded(mr_dataset(sop_uid=EXPECTED.sop_uid))
    end_of_uids = data.index(b"\x20\x00\x0e\x00") + 8 + 26
    assert read_identity(data[:end_of_uids], ExplicitVRLittleEndian) == EXPECTED


def test_a_deflate_bomb_is_inflated_no_further_than_the_identity_can_lie() -> None:
    bomb = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    data = bomb.compress(encoded(mr_dataset(sop_uid=EXPECTED.sop_uid)) + bytes(1 << 28)) + bomb.flush()
    assert len(data) < 1 << 20
    assert read_identity(data, DeflatedExplicitVRLittleEndian) == EXPECTED


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
@pytest.mark.parametrize("value", [None, "", "../../etc/passwd", "1..2", "1.2." + "3" * 64, "1.2\\1.3"])
def test_a_missing_or_malformed_uid_is_unidentifiable(keyword: str, value: str | None) -> None:
    dataset = mr_dataset()
    if value is None:
        del dataset[keyword]
    else:
        dataset[keyword].value = value
    with pytest.raises(Unidentifiable):
        read_identity(encoded(dataset), ExplicitVRLittleEndian)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=600),
    st.sampled_from(
        [
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
            ExplicitVRBigEndian,
            DeflatedExplicitVRLittleEndian,
        ]
    ),
)
def test_arbitrary_bytes_are_unidentifiable_and_nothing_else_happens(data: bytes, syntax: str) -> None:
    with pytest.raises(Unidentifiable):
        read_identity(data, syntax)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_data_sets_are_identified_rightly_or_not_at_all(draw: st.DataObject) -> None:
    data = bytearray(encoded(mr_dataset(sop_uid=EXPECTED.sop_uid)))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, 299))] = draw.draw(st.integers(0, 255))
    try:
        identity = read_identity(bytes(data), ExplicitVRLittleEndian)
    except Unidentifiable:
        return
    assert all(character in "0123456789." for character in identity.sop_uid + identity.study_uid)


def test_sequences_nested_beyond_any_sense_do_not_break_the_reader() -> None:
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    nested = (b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff" + item) * 5000
    with pytest.raises(Unidentifiable):
        read_identity(nested, ExplicitVRLittleEndian)


def test_a_sequence_before_the_uids_is_passed_over() -> None:
    dataset = mr_dataset(sop_uid=EXPECTED.sop_uid)
    inner = Dataset()
    inner.SOPInstanceUID = "1.9.9"
    dataset.add_new(0x00081111, "SQ", Sequence([inner]))
    assert read_identity(encoded(dataset), ExplicitVRLittleEndian) == EXPECTED


def test_the_header_makes_a_file_that_names_its_source() -> None:
    header = file_header(MRImageStorage, EXPECTED.sop_uid, ExplicitVRLittleEndian, "SCANNER1")
    read = dcmread(BytesIO(header + encoded(mr_dataset(sop_uid=EXPECTED.sop_uid))))
    assert read.file_meta.MediaStorageSOPInstanceUID == EXPECTED.sop_uid == read.SOPInstanceUID
    assert read.file_meta.SourceApplicationEntityTitle == "SCANNER1"
    assert len(read.file_meta.ImplementationVersionName) <= 16
    assert len(read.file_meta.ImplementationClassUID) <= 64


@given(
    uid=st.from_regex(r"[0-9]{1,30}(\.[0-9]{1,9}){1,3}", fullmatch=True),
    calling_ae=st.text(
        st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="\\"), max_size=16
    ),
)
def test_the_header_is_the_one_that_pydicom_writes(uid: str, calling_ae: str) -> None:
    header = file_header(MRImageStorage, uid, ExplicitVRLittleEndian, calling_ae)
    read = dcmread(BytesIO(header))
    again = DicomBytesIO()
    again.is_little_endian, again.is_implicit_VR = True, False
    write_file_meta_info(again, read.file_meta)
    assert header[132:] == again.getvalue()
    assert read.file_meta.MediaStorageSOPInstanceUID == uid


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_quick_walk_never_finds_anything_else_than_the_full_parse(draw: st.DataObject) -> None:
    syntax = draw.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
    data = bytearray(encoded(mr_dataset(sop_uid=EXPECTED.sop_uid, syntax=syntax)))
    for _ in range(draw.draw(st.integers(0, 3))):
        data[draw.draw(st.integers(0, 250))] = draw.draw(st.integers(0, 255))
    walked = received._walk(bytes(data), syntax)
    try:
        parsed = received._parse(bytes(data), syntax)
    except Unidentifiable:
        return
    if walked is not None and all(map(is_acceptable, walked.values())):
        assert walked == parsed


def test_explicit_little_endian_comes_first_and_no_lossy_syntax_at_all() -> None:
    syntaxes = supported_transfer_syntaxes()
    assert syntaxes[:2] == (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    assert not {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.91"} & set(syntaxes)


def test_every_class_that_is_accepted_is_also_served() -> None:
    classes = supported_storage_classes()
    assert len(classes) == len(set(classes)) > 120
    assert all(issubclass(uid_to_service_class(uid), StorageServiceClass) for uid in classes)
    assert "1.3.46.670589.11.0.0.12.1" in classes

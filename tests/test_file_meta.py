"""File meta information read by stepping, against pydicom's reader."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instances import write_series
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom.dsutils import split_dataset

from dicom_node import file_meta
from dicom_node.file_meta import FileMeta, NotDicom, read_file_meta
from dicom_node.received import file_header


def by_pydicom(path: Path) -> FileMeta:
    return file_meta._parsed(path)


def test_what_we_store_is_read_without_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.dcm"
    header = file_header(MRImageStorage, "1.2.3", ExplicitVRLittleEndian, "SCANNER")
    path.write_bytes(header + struct.pack("<HH2sH", 8, 5, b"CS", 0))
    expected = by_pydicom(path)
    monkeypatch.setattr(file_meta, "split_dataset", None)
    assert read_file_meta(path) == expected
    assert expected == FileMeta(MRImageStorage, "1.2.3", ExplicitVRLittleEndian, "SCANNER", len(header))


def test_real_files_are_read_as_pydicom_reads_them(data_set: Callable[[str], Path]) -> None:
    stepped = 0
    for path in sorted(data_set("parser-fixtures").rglob("*.dcm")):
        try:
            expected = by_pydicom(path)
        except NotDicom:
            with pytest.raises(NotDicom):
                read_file_meta(path)
            continue
        assert read_file_meta(path) == expected, path.name
        stepped += file_meta._stepped(path.read_bytes()[: file_meta.HEAD_BYTES]) is not None
    assert stepped > 20


@pytest.mark.parametrize("content", [b"", b"DICM", b"not DICOM at all" * 40])
def test_what_is_no_dicom_file_is_told_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    with pytest.raises(NotDicom):
        read_file_meta(path)


def test_a_wrong_group_length_is_left_to_pydicom(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, 1)
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<L", content, 140)
    for wrong in (length - 20, length + 1, 0, 0xFFFFFFFF):
        struct.pack_into("<L", content, 140, wrong)
        path.write_bytes(content)
        assert read_file_meta(path).sop_uid == split_dataset(path)[0].MediaStorageSOPInstanceUID


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.integers(128, 330), noise=st.binary(min_size=1, max_size=8), cut=st.integers(0, 600))
def test_damaged_headers_are_read_or_refused(tmp_path: Path, at: int, noise: bytes, cut: int) -> None:
    header = file_header(MRImageStorage, "1.2.3", ExplicitVRLittleEndian, "SCANNER")
    content = bytearray(header + struct.pack("<HH2sH", 8, 5, b"CS", 0) * 20)
    content[at : at + len(noise)] = noise
    path = tmp_path / "a.dcm"
    path.write_bytes(content[:cut] if cut > 140 else content)
    try:
        found = read_file_meta(path)
    except NotDicom:
        return
    assert 0 <= found.offset <= len(content)

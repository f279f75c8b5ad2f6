from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset

from dicom_node.companions import Finished, write_companions
from dicom_node.companions.rejection import rejection
from dicom_node.derive.instance_file import write_instance
from dicom_node.headers import read_instance

NOW = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


@pytest.fixture
def sent(done: Finished) -> list[Path]:
    """The derived series and its companions."""
    write_companions(done, done.written[0].path.parent)
    return sorted(done.written[0].path.parent.glob("*.dcm"))


def named_by(note: Dataset) -> set[str]:
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    return {
        one.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


def test_the_note_names_every_object_that_was_sent_and_no_source(sent: list[Path], done: Finished) -> None:
    note = rejection(sent, "1.2.3", NOW)

    assert named_by(note) == {pydicom.dcmread(path).SOPInstanceUID for path in sent}
    sources = {f.sop_instance_uid for v in done.source.arrangement.volumes for f in v.frames}
    assert not named_by(note) & sources
    listed = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID: item.ValueType
        for item in note.ContentSequence
        if "ReferencedSOPSequence" in item
    }
    assert listed.keys() == named_by(note)
    images = {pydicom.dcmread(path).SOPInstanceUID for path in sent if "Rows" in pydicom.dcmread(path)}
    assert {uid for uid, kind in listed.items() if kind == "IMAGE"} == images


def test_the_note_rejects_for_quality_because_of_processing(sent: list[Path]) -> None:
    note = rejection(sent, "1.2.3", NOW)

    assert note.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.59"
    assert note.ConceptNameCodeSequence[0].CodeValue == "113001"
    modifier = note.ContentSequence[0]
    assert modifier.ConceptNameCodeSequence[0].CodeValue == "113011"
    assert modifier.ConceptCodeSequence[0].CodeValue == "111219"
    assert (note.StudyInstanceUID, note.PatientID) == (
        pydicom.dcmread(sent[0]).StudyInstanceUID,
        pydicom.dcmread(sent[0]).PatientID,
    )


def test_the_same_images_give_the_same_note_and_fewer_another(sent: list[Path]) -> None:
    first, again = rejection(sent, "1.2.3", NOW), rejection(sent[::-1], "1.2.3", NOW)
    fewer = rejection(sent[:-1], "1.2.3", NOW)

    assert first.SOPInstanceUID == again.SOPInstanceUID
    assert first.SOPInstanceUID != fewer.SOPInstanceUID
    assert first.SeriesInstanceUID != fewer.SeriesInstanceUID


def test_the_node_knows_the_note_as_its_own(sent: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "note.dcm"
    write_instance(rejection(sent, "1.2.3", NOW), path)

    assert read_instance(path).series.own_output

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pydicom
import pytest
from derived_series import DESCRIPTIONS, NAMES, edited, load_files, put_raw, raw
from finished_correction import ALL, companions, finished
from pydicom import Dataset

from dicom_node.companions import Finished, write_companions
from dicom_node.derive import CompanionPolicy
from dicom_node.headers import InstanceFacts, read_instance
from dicom_node.load import LoadedSeries
from dicom_node.phantom_study import PhantomStudy
from rules.classify import SeriesClass, classify

SWITCHES = {
    "qc": "1.2.840.10008.5.1.4.1.1.7",
    "registration": "1.2.840.10008.5.1.4.1.1.66.3",
    "adc": "1.2.840.10008.5.1.4.1.1.4",
    "quality_record": "1.2.840.10008.5.1.4.1.1.88.33",
}


def test_every_switch_is_tested() -> None:
    assert {field.name for field in fields(CompanionPolicy)} == {*SWITCHES, "notice"}


def test_nothing_goes_with_the_series_unless_it_is_asked_for(done: Finished) -> None:
    assert companions(done, qc=False) == []


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_brings_its_object(done: Finished, switch: str) -> None:
    made = companions(done, **{switch: True})

    assert {one.SOPClassUID for one in made} == {SWITCHES[switch]}
    assert len({one.SeriesInstanceUID for one in made}) == 1


def test_companions_lie_behind_the_derived_series_with_numbers_of_their_own(done: Finished) -> None:
    made = companions(done)

    derived = pydicom.dcmread(done.written[0].path)
    numbers = {one.SeriesInstanceUID: int(one.SeriesNumber) for one in made}
    assert sorted(numbers.values()) == [int(derived.SeriesNumber) + k for k in (1, 2, 3, 4)]
    files = sorted(done.written[0].path.parent.glob("*.dcm"))
    assert len(files) == len(done.written) + len(made)


def test_the_same_correction_gives_the_same_uids(
    source: LoadedSeries, reference: list[InstanceFacts], tmp_path: Path
) -> None:
    first, second = (
        [(one.series_uid, one.sop_uid) for one in write_companions(finished(source, reference, out), out)]
        for out in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second
    assert len({sop for _, sop in first}) == len(first)


def test_another_setting_gives_other_uids(
    source: LoadedSeries, reference: list[InstanceFacts], done: Finished, tmp_path: Path
) -> None:
    other = finished(source, reference, tmp_path / "other", settings_digest="another")
    ours = {(one.SOPInstanceUID, one.SeriesInstanceUID) for one in companions(done)}
    theirs = {(one.SOPInstanceUID, one.SeriesInstanceUID) for one in companions(other)}

    assert not {uid for pair in ours for uid in pair} & {uid for pair in theirs for uid in pair}


def test_the_node_never_takes_a_companion_as_input(done: Finished) -> None:
    for one in write_companions(done, done.written[0].path.parent):
        facts = read_instance(one.path).series
        assert facts.own_output
        assert classify(facts).series_class is SeriesClass.OWN_OUTPUT


def test_a_verdict_to_be_reviewed_can_be_read_on_every_companion(
    source: LoadedSeries, reference: list[InstanceFacts], tmp_path: Path
) -> None:
    done = finished(source, reference, tmp_path / "derived", verdict="review")

    assert all(one.SeriesDescription.endswith("DISTCORR QC!") for one in companions(done))


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize("script", [script for script in NAMES if script != "undeclared"])
def test_names_in_any_character_set_keep_their_bytes(
    script: str, study: PhantomStudy, reference: list[InstanceFacts], tmp_path: Path
) -> None:
    charset, name = NAMES[script]

    def written_in(dataset: Dataset, index: int) -> None:
        put_raw(dataset, "SpecificCharacterSet", "CS", charset)
        put_raw(dataset, "PatientName", "PN", name)
        put_raw(dataset, "SeriesDescription", "LO", DESCRIPTIONS[script])
        dataset.set_original_encoding(False, True, dataset._character_set)

    files = edited(study.dwi_files, tmp_path / "edited", written_in)
    done = finished(load_files(files), reference, tmp_path / "derived")

    for one in write_companions(done, tmp_path / "derived"):
        made = pydicom.dcmread(one.path)
        assert raw(made, "PatientName").rstrip(b" ") == name
        declared = made.SpecificCharacterSet
        assert (declared if isinstance(declared, str) else "\\".join(declared)).encode() == charset
        assert raw(made, "SeriesDescription").startswith(DESCRIPTIONS[script])
        assert pydicom.dcmread(one.path).PatientName == pydicom.dcmread(files[0]).PatientName


def test_patient_and_study_are_those_of_the_source(done: Finished, study: PhantomStudy) -> None:
    first = pydicom.dcmread(study.dwi_files[0])
    for one in companions(done):
        for keyword in ("PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
            assert one.get(keyword, "") == first.get(keyword, ""), keyword


def test_all_are_on(done: Finished) -> None:
    assert done.policy.companions == ALL

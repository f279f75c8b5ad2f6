from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from derived_series import (
    NOW,
    Bench,
    by_source,
    code,
    edited,
    instances_of,
    load_files,
    made_by,
)
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import UID

from dicom_node.derive import derived_series_uid
from dicom_node.derive.provenance import instance_uid, series_uid
from dicom_node.headers import InstanceFacts
from dicom_node.phantom_study import PhantomStudy

BenchOf = Callable[[Callable[[Dataset, int], None]], Bench]


def test_the_same_inputs_give_the_same_uids(bench: Bench) -> None:
    first = [(i.SeriesInstanceUID, i.SOPInstanceUID) for i in bench.derive()]
    again = [(i.SeriesInstanceUID, i.SOPInstanceUID) for i in bench.derive()]

    assert first == again
    assert len({sop for _, sop in first}) == 16
    assert {series for series, _ in first} == {derived_series_uid(bench.source, made_by(bench.reference))}
    for uid in (first[0][0], *(sop for _, sop in first)):
        assert UID(uid).is_valid
        assert uid.startswith("2.25.")
        assert len(uid) <= 44


@given(
    sops=st.lists(st.from_regex(r"1(\.[1-9][0-9]{0,4}){1,6}", fullmatch=True), min_size=2, unique=True),
    part=st.sampled_from(["", "b1000", "adc"]),
    data=st.data(),
)
def test_uids_depend_on_the_inputs_and_not_on_their_order(
    reference: list[InstanceFacts], sops: list[str], part: str, data: st.DataObject
) -> None:
    correction = made_by(reference, input_digest=data.draw(st.text(max_size=8)))
    uid = series_uid("1.2", sops, correction, part)
    assert series_uid("1.2", data.draw(st.permutations(sops)), correction, part) == uid
    assert series_uid("1.2", sops[1:], correction, part) != uid
    assert series_uid("1.3", sops, correction, part) != uid
    assert series_uid("1.2", sops, replace(correction, input_digest="another revision"), part) != uid
    assert instance_uid(uid, sops[0]) == instance_uid(uid, sops[0]) != instance_uid(uid, sops[1])
    assert UID(uid).is_valid
    assert len(uid) <= 44


@pytest.mark.parametrize(
    "change",
    [{"version": "1.2.4"}, {"settings_digest": "other"}, {"input_digest": "other bytes"}],
    ids=lambda change: next(iter(change)),
)
def test_another_program_setting_or_revision_gives_other_uids(bench: Bench, change: dict[str, str]) -> None:
    plain = derived_series_uid(bench.source, made_by(bench.reference))

    assert derived_series_uid(bench.source, made_by(bench.reference, **change)) != plain


def test_other_inputs_give_other_uids(bench: Bench, study: PhantomStudy) -> None:
    plain = derived_series_uid(bench.source, made_by(bench.reference))

    fewer = load_files(study.dwi_files[:12])
    assert derived_series_uid(fewer, made_by(bench.reference)) != plain
    assert derived_series_uid(bench.source, made_by(bench.reference[1:])) != plain


def test_every_image_names_its_source_and_the_nearest_reference_slice(bench: Bench) -> None:
    positions = {
        frame.sop_instance_uid: np.asarray(frame.position_mm)
        + np.asarray(frame.row) * frame.spacing_mm[1] * (frame.columns - 1) / 2
        + np.asarray(frame.column) * frame.spacing_mm[0] * (frame.rows - 1) / 2
        for instance in bench.reference
        for frame in instance.frames
        if frame.spacing_mm is not None
    }
    for source, derived in by_source(bench.source, bench.derive()):
        own, reference = derived.SourceImageSequence
        assert own.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert own.ReferencedSOPClassUID == source.SOPClassUID
        assert own.SpatialLocationsPreserved == "NO"
        assert (code(own), code(reference)) == ("121322", "128250")
        (anatomic,) = derived.ReferencedImageSequence
        assert code(anatomic) == "121338"
        assert anatomic.ReferencedSOPInstanceUID == reference.ReferencedSOPInstanceUID
        iop, spacing = source.ImageOrientationPatient, source.PixelSpacing
        centre = (
            np.asarray(source.ImagePositionPatient)
            + np.asarray(iop[:3]) * float(spacing[1]) * (source.Columns - 1) / 2
            + np.asarray(iop[3:]) * float(spacing[0]) * (source.Rows - 1) / 2
        )
        nearest = min(positions, key=lambda uid: float(np.linalg.norm(positions[uid] - centre)))
        assert reference.ReferencedSOPInstanceUID == nearest
        assert "StudiesContainingOtherReferencedInstancesSequence" not in derived


def test_related_series_are_the_source_and_the_reference(bench: Bench, study: PhantomStudy) -> None:
    related = bench.derive()[0].RelatedSeriesSequence

    assert [(item.SeriesInstanceUID, code(item)) for item in related] == [
        (study.dwi_series_uid, "121323"),
        (study.reference_series_uid, "122401"),
    ]
    assert {item.StudyInstanceUID for item in related} == {study.study_uid}


def test_the_derivation_is_coded_and_told_without_patient_data(bench: Bench) -> None:
    instance = bench.derive()[0]

    assert [code(item) for item in instance.DerivationCodeSequence] == ["113085", "125027"]
    assert list(instance.ImageType) == ["DERIVED", "SECONDARY", "OTHER", "DIFFUSION", "DISTCORR"]
    assert instance.DerivationDescription == (
        "dicom-node 1.2.3: EPI susceptibility distortion corrected to T2 reference, series no. 2; along "
        "phase-encode axis j; Jacobian modulation no; displacement (mm): rms 1.5, p95 3.25"
    )
    assert instance.ImageComments == (
        "Processed: EPI distortion correction dicom-node 1.2.3; QC=PASS; see original series no. 3"
    )
    for text in (instance.DerivationDescription, instance.ImageComments):
        assert "PHANTOM" not in text
        assert "DEMO" not in text


def test_our_equipment_is_appended_to_what_contributed_before(bench_of: BenchOf) -> None:
    def contribute(dataset: Dataset, index: int) -> None:
        item = Dataset()
        item.Manufacturer = "Gateway"
        dataset.ContributingEquipmentSequence = [item]

    first, ours = bench_of(contribute).derive()[0].ContributingEquipmentSequence

    assert first.Manufacturer == "Gateway"
    assert (ours.Manufacturer, ours.ManufacturerModelName) == ("dicom-node", "dicom-node")
    assert ours.SoftwareVersions == "1.2.3"
    assert code(ours) == "109102"
    assert ours.ContributionDateTime == f"{NOW:%Y%m%d%H%M%S.%f}"


def test_a_reference_of_another_study_is_declared_as_such(bench: Bench, tmp_path: Path) -> None:
    def elsewhere(dataset: Dataset, index: int) -> None:
        dataset.StudyInstanceUID = "2.25.42"

    files = edited([instance.path for instance in bench.reference], tmp_path / "elsewhere", elsewhere)
    bench.reference = instances_of(files)

    instance = bench.derive()[0]

    (other,) = instance.StudiesContainingOtherReferencedInstancesSequence
    assert other.StudyInstanceUID == "2.25.42"
    listed = other.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
    assert listed == instance.ReferencedImageSequence[0].ReferencedSOPInstanceUID


@pytest.mark.parametrize(("phase_axis", "follows"), [("j", "dwi"), ("i-", "dwi"), ("none", "reference")])
def test_only_a_free_correction_moves_to_the_frame_of_the_reference(
    bench: Bench, tmp_path: Path, phase_axis: str, follows: str
) -> None:
    def other_frame(dataset: Dataset, index: int) -> None:
        dataset.FrameOfReferenceUID = "2.25.43"

    own = bench.source.facts.frame_of_reference_uid
    paths = [instance.path for instance in bench.reference]
    bench.reference = instances_of(edited(paths, tmp_path / "other", other_frame))

    derived = bench.derive(phase_axis=phase_axis)

    assert {i.FrameOfReferenceUID for i in derived} == {own if follows == "dwi" else "2.25.43"}
    named = "diffusion series" if follows == "dwi" else "reference"
    assert f"frame of reference of the {named}" in derived[0].DerivationDescription

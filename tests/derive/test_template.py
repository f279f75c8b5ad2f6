from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from derived_series import (
    Bench,
    edited,
    load_files,
)
from pydicom import DataElement, Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from dicom_node.phantom_study import PhantomStudy

BenchOf = Callable[[Callable[[Dataset, int], None]], Bench]


def test_nothing_that_describes_the_source_pixels_is_copied(bench_of: BenchOf) -> None:
    icon = Dataset()
    icon.Rows = 1
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = "1.2.3.4.5"

    def clutter(dataset: Dataset, index: int) -> None:
        dataset.IconImageSequence = [icon]
        dataset.SourceImageSequence = [reference]
        dataset.DigitalSignaturesSequence = [Dataset()]
        dataset.add_new("PixelPaddingValue", "US", 0)
        dataset.VOILUTSequence = [Dataset()]
        dataset.WindowCenterWidthExplanation = "WINDOW1"
        dataset.NumberOfSlices = 3  # UIH: of the grid that an image was a tile of
        dataset.InstanceCreatorUID = "2.25.8"
        dataset.QualityControlImage = "YES"
        dataset.add_new(0x60003000, "OW", b"\1\2")
        dataset.add_new(0x50003000, "OW", b"\1\2")
        dataset.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
        dataset.add_new(0x00291010, "OB", b"SV10")
        dataset.OriginalAttributesSequence = [Dataset()]

    for instance in bench_of(clutter).derive():
        groups = {tag.group for tag in instance.keys()}  # noqa: SIM118
        assert not groups & {0x6000, 0x5000, 0x0029, 0xFFFA}
        for keyword in (
            *("IconImageSequence", "PixelPaddingValue", "VOILUTSequence", "InstanceCreatorUID"),
            *("WindowCenterWidthExplanation", "DigitalSignaturesSequence", "NumberOfSlices"),
        ):
            assert keyword not in instance, keyword
        assert "1.2.3.4.5" not in str(instance.SourceImageSequence)
        assert instance.QualityControlImage == "NO"
        assert "OriginalAttributesSequence" in instance


def test_white_listed_private_elements_keep_block_creator_and_encoding(
    bench_of: BenchOf,
) -> None:
    def private(dataset: Dataset, index: int) -> None:
        dataset.add_new(0x00190010, "LO", "SOMEBODY ELSE")
        dataset.add_new(0x0019100C, "LO", "not a b-value")
        dataset.add_new(0x00190011, "LO", "SIEMENS MR HEADER")
        dataset.add_new(0x0019110C, "OB", b"1000")
        dataset.add_new(0x0019110A, "US", 48)

    for instance in bench_of(private).derive():
        assert instance[0x00190011].value == "SIEMENS MR HEADER"
        assert instance[0x0019110C].VR == "OB"
        assert instance[0x0019110C].value == b"1000"
        for absent in (0x00190010, 0x0019100C, 0x0019110A):
            assert absent not in instance


def test_the_vendor_elements_of_a_stripped_creator_get_it_back(bench_of: BenchOf) -> None:
    def stripped(dataset: Dataset, index: int) -> None:
        dataset.Manufacturer = "GE MEDICAL SYSTEMS"
        dataset[0x00431039] = DataElement(0x00431039, "IS", [1000 if index >= 4 else 0, 8, 0, 0])

    instance = bench_of(stripped).derive()[-1]

    assert instance[0x00430010].value == "GEMS_PARM_01"
    assert list(instance[0x00431039].value) == [1000, 8, 0, 0]


def test_missing_required_attributes_are_supplied(bench_of: BenchOf) -> None:
    optional = (
        "StudyID",
        "ReferringPhysicianName",
        "ScanOptions",
        "PatientSex",
        "PositionReferenceIndicator",
    )

    def remove(dataset: Dataset, index: int) -> None:
        for keyword in (*optional, "SequenceVariant", "BodyPartExamined"):
            del dataset[keyword]

    for instance in bench_of(remove).derive():
        assert all(instance[keyword].is_empty for keyword in (*optional, "Laterality"))
        assert instance.SequenceVariant == "NONE"


def test_a_frame_of_reference_is_made_where_the_source_has_none(bench_of: BenchOf) -> None:
    def remove(dataset: Dataset, index: int) -> None:
        del dataset.FrameOfReferenceUID

    uids = {instance.FrameOfReferenceUID for instance in bench_of(remove).derive()}

    assert len(uids) == 1
    assert uids.pop().startswith("2.25.")


def test_loss_is_never_denied(bench_of: BenchOf) -> None:
    def lossy(dataset: Dataset, index: int) -> None:
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = "12"

    for instance in bench_of(lossy).derive():
        assert (instance.LossyImageCompression, instance.LossyImageCompressionRatio) == ("01", 12)
        assert instance.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_every_instance_says_the_same_of_patient_and_study(bench_of: BenchOf) -> None:
    def wavering(dataset: Dataset, index: int) -> None:
        dataset.PatientWeight = str(70 + index)
        dataset.StudyDescription = f"visit {index}"

    derived = bench_of(wavering).derive()

    assert len({(str(i.PatientWeight), i.StudyDescription) for i in derived}) == 1


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian],
    ids=lambda s: s.name,
)
def test_the_encoding_of_the_source_makes_no_difference(
    bench: Bench, study: PhantomStudy, tmp_path: Path, syntax: UID
) -> None:
    def encode(dataset: Dataset, index: int) -> None:
        dataset.ContributingEquipmentSequence = [Dataset()]
        dataset.ContributingEquipmentSequence[0].Manufacturer = "Gateway"
        dataset.add_new(0x00431010, "LO", "x")

    plain_files = edited(study.dwi_files, tmp_path / "plain", encode)
    other = tmp_path / "other"
    other.mkdir()
    for path in plain_files:
        dataset = pydicom.dcmread(path)
        if syntax is ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.astype(">u2").tobytes()
            dataset.set_original_encoding(None, None)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(other / path.name, enforce_file_format=True)
    plain = Bench(load_files(plain_files), bench.reference, tmp_path / "a").derive()
    changed = Bench(load_files(other.iterdir()), bench.reference, tmp_path / "b").derive()

    assert plain == changed


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_uids_with_leading_zeros_are_repeated_as_they_are(bench_of: BenchOf) -> None:
    def zeros(dataset: Dataset, index: int) -> None:
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.02.3", "1.02.4"
        dataset.SOPInstanceUID = f"1.02.3.{index}"

    instance = bench_of(zeros).derive()[3]

    assert (instance.StudyInstanceUID, instance.FrameOfReferenceUID) == ("1.02.3", "1.02.4")
    assert instance.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.02.3.3"
    assert UID(instance.SOPInstanceUID).is_valid

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from derived_series import Bench, load_files
from pydicom import Dataset

from dicom_node.derive.functional_groups import classic_elements, rescale_elements
from dicom_node.headers import InstanceFacts


def group(**values: object) -> list[Dataset]:
    """A functional group's sequence with one item."""
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


# some scanners write longer names and worse times than the standard allows
pytestmark = pytest.mark.filterwarnings("ignore:(The value length|Invalid value for VR DT)")


@pytest.fixture
def enhanced() -> Dataset:
    """The header of a two-frame object, with some groups shared and some of each frame."""
    header, shared = Dataset(), Dataset()
    header.EchoPulseSequence, header.EchoPlanarPulseSequence = "SPIN", "YES"
    header.SegmentedKSpaceTraversal, header.SteadyStatePulseSequence = "PARTIAL", "NONE"
    header.SpectrallySelectedSuppression, header.ResonantNucleus = "NONE", "1H"
    header.PulseSequenceName = "a name longer than sixteen"
    header.AcquisitionDateTime = "20260102030405.5-0500"
    shared.MRFOVGeometrySequence = group(
        InPlanePhaseEncodingDirection="ROW",
        MRAcquisitionFrequencyEncodingSteps=96,
        MRAcquisitionPhaseEncodingStepsInPlane=64,
    )
    shared.MRModifierSequence = group(
        InversionRecovery="YES",
        InversionTimes=[180.0, 200.0],
        PartialFourier="YES",
        PartialFourierDirection="FREQUENCY",
        SpatialPresaturation="SLAB",
        Spoiling="RF",
    )
    shared.MREchoSequence = group(EffectiveEchoTime=70.0)
    shared.PixelValueTransformationSequence = group(RescaleSlope="2", RescaleIntercept="0", RescaleType="US")
    frames = [Dataset(), Dataset()]
    frames[1].MREchoSequence = group(EffectiveEchoTime=71.23456789012345678)
    frames[1].FrameContentSequence = group(
        FrameAcquisitionDateTime="20260102030406", FrameAcquisitionNumber=7, TemporalPositionIndex=2
    )
    frames[1].PixelValueTransformationSequence = group(
        RescaleSlope="3", RescaleIntercept="1", RescaleType="US"
    )
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = frames
    return header


def as_dataset(header: Dataset, frame: int) -> Dataset:
    classic = Dataset()
    for tag, element in classic_elements(header, frame).items():
        classic[tag] = element
    return classic


def test_the_kind_of_sequence_is_told_in_classic_terms(enhanced: Dataset) -> None:
    classic = as_dataset(enhanced, 0)

    assert list(classic.ScanningSequence) == ["SE", "IR", "EP"]
    assert list(classic.SequenceVariant) == ["SK", "SP"]
    assert list(classic.ScanOptions) == ["PFF", "SP"]
    assert classic.SequenceName == "a name longer th"
    assert (classic.ImagedNucleus, classic.AngioFlag) == ("1H", "N")
    assert classic.InversionTime == 180


def test_phase_encoding_along_rows_keeps_its_sense(enhanced: Dataset) -> None:
    classic = as_dataset(enhanced, 0)

    assert classic.InPlanePhaseEncodingDirection == "ROW"
    assert list(classic.AcquisitionMatrix) == [0, 96, 64, 0]
    assert classic.NumberOfPhaseEncodingSteps == 64


def test_what_a_frame_says_of_itself_goes_before_what_is_shared(enhanced: Dataset) -> None:
    first, second = as_dataset(enhanced, 0), as_dataset(enhanced, 1)

    assert (first.EchoTime, str(second.EchoTime)) == (70, "71.2345678901235")
    assert (first.AcquisitionDate, first.AcquisitionTime) == ("20260102", "030405.5")
    assert (second.AcquisitionTime, second.AcquisitionNumber) == ("030406", 7)
    assert second.TemporalPositionIdentifier == 2
    slopes = [next(iter(rescale_elements(enhanced, frame).values())).value for frame in (0, 1)]
    assert [float(value) for value in slopes] == [0.0, 1.0]


def test_what_a_frame_says_wrongly_is_left_out(enhanced: Dataset) -> None:
    enhanced.PerFrameFunctionalGroupsSequence[0].FrameContentSequence = group(
        FrameAcquisitionDateTime="**************"
    )
    enhanced.SharedFunctionalGroupsSequence[0].MREchoSequence = group(EffectiveEchoTime=float("nan"))

    classic = as_dataset(enhanced, 0)

    for keyword in ("AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "EchoTime"):
        assert keyword not in classic
    assert classic.InPlanePhaseEncodingDirection == "ROW"


def test_a_legacy_converted_frame_gets_its_classic_attributes_back(enhanced: Dataset) -> None:
    shared, frame = enhanced.SharedFunctionalGroupsSequence[0], enhanced.PerFrameFunctionalGroupsSequence[0]
    shared.UnassignedSharedConvertedAttributesSequence = group(ScanningSequence="EP", SAR="0.1")
    frame.UnassignedPerFrameConvertedAttributesSequence = group(AcquisitionTime="111213", WindowWidth="1")

    classic = as_dataset(enhanced, 0)

    assert (classic.ScanningSequence, classic.SAR, classic.AcquisitionTime) == ("EP", 0.1, "111213")
    assert "WindowWidth" not in classic


def test_functional_groups_of_a_scanner_become_classic_attributes(
    data_set: Callable[[str], Path], reference: list[InstanceFacts], tmp_path: Path
) -> None:
    files = sorted(data_set("siemens-xa30-enhanced").glob("17_*/*"))[:2]

    derived = Bench(load_files(files), reference, tmp_path / "derived").derive()

    for instance in derived[:2]:
        assert instance.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
        assert (instance.EchoTime, instance.RepetitionTime, instance.FlipAngle) == (68, 3516, 78)
        assert list(instance.ScanningSequence) == ["GR", "EP"]
        assert list(instance.ScanOptions) == ["PFP", "FS"]
        assert list(instance.AcquisitionMatrix) == [72, 0, 0, 72]
        assert instance.InPlanePhaseEncodingDirection == "COL"
        assert instance.AcquisitionDate == "20220711"
        assert (instance.ImagedNucleus, instance.PixelBandwidth) == ("1H", 1781)
        assert "NumberOfFrames" not in instance
        assert "PerFrameFunctionalGroupsSequence" not in instance
        assert instance[0x00210011].value == "SIEMENS MR SDI 02"
        assert instance[0x0021111C].value == 1
    assert [instance.AcquisitionTime for instance in derived[:2]] == ["121251.665000", "121253.547500"]
    sources = [item.SourceImageSequence[0] for item in derived]
    assert [item.ReferencedFrameNumber for item in sources[:3]] == [1, 2, 3]
    assert len({item.ReferencedSOPInstanceUID for item in sources}) == 2

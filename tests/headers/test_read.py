"""One file in, its facts out; whatever the file is, nothing but Unreadable escapes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from made_headers import AXIAL, add_private, dataset_of, mr_image, write
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, RawDataStorage

from dicom_node.headers import FrameFacts, Unreadable, read_instance
from rules.facts import Directionality, Vendor

SETS = (
    "siemens-xa30-enhanced",
    "siemens-xa30-classic",
    "siemens-e11-mosaic",
    "siemens-xa61-noref",
    "prostatex-0218",
    "prostatex-0000",
    "philips-classic",
    "philips-dwi-noref",
    "ge-phantom",
    "canon-classic",
    "canon-enhanced",
    "uih",
    "vendor-mini",
    "parser-fixtures",
    "open_ms_long01",
    "isles22_0009",
)


@pytest.mark.parametrize("name", SETS)
def test_every_real_file_is_read_or_refused_in_one_sentence(
    name: str, data_set: Callable[[str], Path]
) -> None:
    read = 0
    for path in sorted(path for path in data_set(name).rglob("*") if path.is_file()):
        sentence = _outcome(path)
        assert not sentence or sentence.startswith(path.name)
        assert "\n" not in sentence
        read += not sentence
    assert read or name in ("open_ms_long01", "isles22_0009")


@pytest.mark.parametrize("name", ["vendor-mini/philips_enhanced/dti/001_implicit", "vendor-mini/ge/dti/001"])
def test_a_cut_or_corrupted_file_never_raises_anything_else(
    name: str, data_set: Callable[[str], Path], tmp_path: Path
) -> None:
    study, _, folder = name.partition("/")
    whole = min((data_set(study) / folder).iterdir()).read_bytes()
    header_bytes = min(len(whole), 30_000)
    random = np.random.default_rng(7)
    damaged = tmp_path / "damaged.dcm"
    outcomes = set()
    for cut in random.integers(0, header_bytes, 25):
        damaged.write_bytes(whole[:cut])
        outcomes.add(bool(_outcome(damaged)))
    for _ in range(40):
        content = bytearray(whole[:header_bytes])
        for place in random.integers(132, header_bytes, 20):
            content[place] = random.integers(0, 256)
        damaged.write_bytes(content)
        outcomes.add(bool(_outcome(damaged)))
    assert outcomes == {True, False}


def _outcome(path: Path) -> str:
    """The sentence of the refusal, nothing when the file was read."""
    try:
        assert read_instance(path).series_uid
    except Unreadable as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize("content", [b"", b"name,b\n1,2\n", b"\0" * 4096, b"\0" * 128 + b"DICM"])
def test_what_is_no_dicom_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "Grad_AP.csv"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=r"^Grad_AP\.csv "):
        read_instance(path)


def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.dcm"):
        with pytest.raises(Unreadable, match="cannot be opened"):
            read_instance(path)


def test_an_empty_file_and_one_cut_in_its_header_are_called_so(
    data_set: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = min((data_set("siemens-xa30-enhanced") / "17_DWI_dir80_AP").iterdir()).read_bytes()
    for content, told in ((b"", "is empty"), (whole[:3000], "is cut short")):
        path = tmp_path / "image.dcm"
        path.write_bytes(content)
        with pytest.raises(Unreadable, match=rf"^image\.dcm {told}"):
            read_instance(path)


def _single(folder: Path, image: Dataset) -> FrameFacts:
    (frame,) = read_instance(write(folder, image)[0]).frames
    return frame


def test_a_classic_image_is_one_slice(tmp_path: Path) -> None:
    frame = _single(tmp_path, mr_image(3, RescaleSlope=1.5, RescaleIntercept=-2.0, EchoTime=80.0))
    assert (frame.position_mm, frame.spacing_mm) == ((-7.0, -7.0, 6.0), (2.0, 2.0))
    assert (frame.row, frame.column, frame.normal) == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert (frame.slope, frame.intercept, frame.echo_time_ms) == (1.5, -2.0, 80.0)
    assert (frame.frame, frame.tile, frame.component) == (None, None, "MAGNITUDE")


def test_a_slope_of_0_would_lose_the_image_and_is_not_believed(tmp_path: Path) -> None:
    assert _single(tmp_path, mr_image(RescaleSlope=0.0)).slope == 1.0


def test_an_orientation_that_is_none_is_not_used(tmp_path: Path) -> None:
    assert _single(tmp_path, mr_image(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])).normal is None


def test_orientation_text_is_made_exactly_orthonormal(tmp_path: Path) -> None:
    frame = _single(tmp_path, mr_image(ImageOrientationPatient=[0.9992, 0.0400, 0.0, -0.0395, 0.9992, 0.0]))
    assert np.dot(frame.row, frame.column) == pytest.approx(0.0, abs=1e-12)
    assert np.linalg.norm(frame.column) == pytest.approx(1.0, abs=1e-12)


def test_de_identified_dates_leave_the_time_of_day(tmp_path: Path) -> None:
    image = mr_image(InstanceCreationDate="20180925", AcquisitionTime="134548")
    image.add_new("AcquisitionDate", "LO", "***")
    image["AcquisitionDate"].VR = "LO"
    assert _single(tmp_path, image).acquired == datetime(2018, 9, 25, 13, 45, 48)


def test_an_object_without_pixels_has_no_slices(tmp_path: Path) -> None:
    image = mr_image(SOPClassUID=RawDataStorage)
    del image.Rows, image.Columns, image.PixelData
    assert read_instance(write(tmp_path, image)[0]).frames == ()


def _enhanced() -> Dataset:
    """Two frames: orientation and spacing shared, position and diffusion per frame, polarity private."""
    shared = dataset_of(
        {
            "PlaneOrientationSequence": Sequence([dataset_of({"ImageOrientationPatient": list(AXIAL)})]),
            "PixelMeasuresSequence": Sequence(
                [dataset_of({"PixelSpacing": [2.0, 2.0], "SliceThickness": 2.0})]
            ),
            "MRFOVGeometrySequence": Sequence([dataset_of({"InPlanePhaseEncodingDirection": "COLUMN"})]),
        }
    )
    frames = []
    for index, b_value in enumerate((0.0, 1000.0)):
        diffusion = dataset_of({"DiffusionBValue": b_value, "DiffusionDirectionality": "DIRECTIONAL"})
        if b_value:
            gradient = dataset_of({"DiffusionGradientOrientation": [0.0, 1.0, 0.0]})
            diffusion.DiffusionGradientDirectionSequence = Sequence([gradient])
        item = dataset_of(
            {
                "PlanePositionSequence": Sequence(
                    [dataset_of({"ImagePositionPatient": [0.0, 0.0, 2.0 * index]})]
                ),
                "MRDiffusionSequence": Sequence([diffusion]),
                "PixelValueTransformationSequence": Sequence(
                    [dataset_of({"RescaleSlope": 1.0 + index, "RescaleIntercept": 0.0})]
                ),
                "MREchoSequence": Sequence([dataset_of({"EffectiveEchoTime": 70.0})]),
            }
        )
        inner = add_private(
            Dataset(), 0x0021, "SIEMENS MR SDI 02", {0x1C: ("IS", 1), 0x75: ("CS", ["M", "ND"])}
        )
        frames.append(add_private(item, 0x0021, "SIEMENS MR SDI 02", {0xFE: ("SQ", Sequence([inner]))}))
    image = mr_image(
        SOPClassUID=EnhancedMRImageStorage,
        Manufacturer="Siemens Healthineers",
        NumberOfFrames=2,
        PixelData=np.zeros((2, 8, 8), np.uint16).tobytes(),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del image[keyword]
    return image


def test_frames_of_an_enhanced_object_share_what_is_shared(tmp_path: Path) -> None:
    instance = read_instance(write(tmp_path, _enhanced())[0])
    first, second = instance.frames
    assert (first.frame, second.frame) == (0, 1)
    assert first.position_mm == (0, 0, 0)
    assert second.position_mm == (0, 0, 2)
    assert (first.normal, second.normal) == ((0, 0, 1), (0, 0, 1))
    assert (first.directionality, first.direction) == (Directionality.NONE, None)
    assert (second.b_value, second.direction, second.slope) == (1000, (0, 1, 0), 2.0)


def test_frames_that_the_header_does_not_describe_are_a_problem(tmp_path: Path) -> None:
    image = _enhanced()
    image.NumberOfFrames = 3
    assert (
        read_instance(write(tmp_path, image)[0]).problem == "The file says 3 frames and describes 2 of them."
    )


def test_what_a_conversion_could_not_place_is_still_read(tmp_path: Path) -> None:
    image = _enhanced()
    for item in image.PerFrameFunctionalGroupsSequence:
        del item.MRDiffusionSequence
        left = add_private(Dataset(), 0x0019, "SIEMENS MR HEADER", {0x0C: ("IS", 750)})
        item.UnassignedPerFrameConvertedAttributesSequence = Sequence([left])
    assert [frame.b_value for frame in read_instance(write(tmp_path, image)[0]).frames] == [750, 750]


def test_private_items_of_an_enhanced_object_are_read(tmp_path: Path) -> None:
    scan = read_instance(write(tmp_path, _enhanced())[0]).series
    assert scan.vendor is Vendor.SIEMENS
    assert scan.gradient_nonlinearity == "ND"
    assert scan.phase_encoding is not None
    assert (scan.phase_encoding.bids, scan.phase_encoding.source) == ("j-", "Siemens XA (0021,111C)")


@pytest.mark.parametrize(
    ("elements", "evidence"),
    [
        (
            {
                "ContributingEquipmentSequence": Sequence(
                    [dataset_of({"ManufacturerModelName": "dicom-node"})]
                )
            },
            "ContributingEquipmentSequence",
        ),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "DIFFUSION", "DISTCORR"]}, "ImageType"),
        (
            {
                "DerivationCodeSequence": Sequence([dataset_of({"CodeValue": "125027"})]),
                "DerivationDescription": "dicom-node 1.0, EPI distortion corrected",
            },
            "DerivationDescription",
        ),
        ({"DerivationDescription": "dicom-node 1.0"}, ""),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "OTHER", "DIFFUSION", "DISTCORR"]}, ""),
        ({}, ""),
    ],
)
def test_our_own_output_is_recognised(elements: dict[str, object], evidence: str, tmp_path: Path) -> None:
    found = read_instance(write(tmp_path, mr_image(**elements))[0]).series.own_output
    assert found.startswith(evidence) if evidence else not found


def test_reading_leaves_the_settings_of_pydicom_alone(tmp_path: Path) -> None:
    before = (pydicom.config.convert_wrong_length_to_UN, pydicom.config.settings.reading_validation_mode)
    read_instance(write(tmp_path, mr_image())[0])
    after = (pydicom.config.convert_wrong_length_to_UN, pydicom.config.settings.reading_validation_mode)
    assert after == before

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from derived_series import edited, load_files
from finished_correction import companions, finished
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from dicom_node.companions import Finished
from dicom_node.companions.adc import adc_map
from dicom_node.derive import DerivePolicy, OutputGrid
from dicom_node.derive.series import b_values_of
from dicom_node.derive.shells import Shell, shells_of
from dicom_node.headers import InstanceFacts
from dicom_node.load import LoadedSeries
from dicom_node.phantom_study import PhantomStudy

SHELLS = [Shell(0.0, (0,)), Shell(500.0, (1, 3)), Shell(1000.0, (2,))]


def fitted(signals: np.ndarray, b_values: list[float]) -> np.ndarray:
    """ADC in µm²/s by numpy's own least squares. signals: (shells, N)."""
    slope, _ = np.polyfit(b_values, np.log(signals), 1)
    return -1e6 * slope


@given(st.floats(1.0, 4000.0), st.floats(0.0, 4000.0))
def test_a_mono_exponential_signal_gives_back_its_adc(s0: float, adc: float) -> None:
    signals = [s0 * np.exp(-b * adc * 1e-6) for b in (0.0, 500.0, 1000.0)]
    corrected = np.asarray([*signals, signals[1]]).reshape(4, 1, 1, 1)

    assert adc_map(corrected, SHELLS).item() == pytest.approx(adc, abs=1e-3)


def test_directions_count_by_their_geometric_mean_and_shells_alike() -> None:
    rng = np.random.default_rng(1)
    corrected = rng.uniform(50, 1000, (4, 2, 3, 4)).astype(np.float32)

    adc = adc_map(corrected, SHELLS)

    trace = np.sqrt(corrected[1].astype(float) * corrected[3])
    shells = np.stack([corrected[0], trace, corrected[2]]).reshape(3, -1)
    assert adc.ravel() == pytest.approx(fitted(shells, [0.0, 500.0, 1000.0]), abs=0.01)


def test_where_a_signal_has_no_logarithm_there_is_no_adc() -> None:
    corrected = np.full((4, 1, 1, 2), 100.0, dtype=np.float32)
    corrected[2] = 50.0
    corrected[3, 0, 0, 1] = 0.0

    assert adc_map(corrected, SHELLS)[0, 0, 0] > 0
    assert adc_map(corrected, SHELLS)[0, 0, 1] == 0


def test_the_map_in_the_archive_is_that_of_the_corrected_images(done: Finished) -> None:
    images = companions(done, adc=True)

    exact = adc_map(done.corrected, shells_of(b_values_of(done.source)))
    stored = np.stack([image.pixel_array for image in images])
    assert np.abs(stored - np.maximum(exact, 0)).max() <= 0.5  # of 1 µm²/s
    assert exact.max() > 500


def test_the_map_is_what_anybody_computes_from_the_archive(done: Finished) -> None:
    stored = np.stack([image.pixel_array for image in companions(done, adc=True)]).astype(float)
    by_b_value: dict[float, list[np.ndarray]] = {}
    for image in (pydicom.dcmread(one.path) for one in done.written):
        by_b_value.setdefault(float(image.DiffusionBValue), []).append(image.pixel_array.astype(float))
    b0, weighted = (np.reshape(slices, (-1, *stored.shape)) for slices in by_b_value.values())
    bright = np.min(weighted, axis=0) > 60  # where rounding hardly moves a logarithm
    assert bright.sum() > 50

    trace = np.prod(weighted, axis=0) ** (1 / len(weighted))
    adc = np.log(b0[0] / np.maximum(trace, 1)) / 1000 * 1e6

    assert np.abs(stored - adc)[bright].max() < 1e6 / 1000 * (0.5 / 60 + 0.5 / 60)


def test_units_and_quantity_are_coded(done: Finished) -> None:
    for image in companions(done, adc=True):
        (mapping,) = image.RealWorldValueMappingSequence
        assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "um2/s"
        assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
        quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
        assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("113041", "DCM")
        assert [item.CodeValue for item in image.DerivationCodeSequence] == ["113085", "125027", "129105"]
        assert list(image.ImageType) == ["DERIVED", "SECONDARY", "DIFFUSION MAP", "ADC", "DISTCORR"]
        assert "RescaleSlope" not in image
        assert "DiffusionBValue" not in image  # no weighting of its own


def test_the_map_lies_where_the_corrected_images_lie_and_names_all_their_sources(done: Finished) -> None:
    images = companions(done, adc=True)
    first_volume = [pydicom.dcmread(one.path) for one in done.written[: len(images)]]

    for index, (image, beside) in enumerate(zip(images, first_volume, strict=True)):
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"):
            assert image[keyword].value == beside[keyword].value
        assert image.FrameOfReferenceUID == beside.FrameOfReferenceUID
        wanted = [volume.frames[index].sop_instance_uid for volume in done.source.arrangement.volumes]
        named = [item.ReferencedSOPInstanceUID for item in image.SourceImageSequence]
        assert named[: len(wanted)] == wanted


def test_the_map_goes_with_the_grid_of_the_reference(
    source: LoadedSeries, reference: list[InstanceFacts], tmp_path: Path
) -> None:
    done = finished(source, reference, tmp_path / "derived", DerivePolicy(grid=OutputGrid.REFERENCE))

    images = companions(done, adc=True)

    assert len(images) == len(reference)
    assert [i.ImagePositionPatient for i in images] == [
        pydicom.dcmread(instance.path).ImagePositionPatient for instance in reference
    ]
    assert max(image.pixel_array.max() for image in images) > 100


def test_uncorrected_images_give_the_map_that_the_scanner_computed(data_set: Callable[[str], Path]) -> None:
    folder = data_set("prostatex-0000")
    source = load_files(next(folder.glob("6.*")).iterdir())
    scanner = {
        tuple(image.ImagePositionPatient): image.pixel_array.astype(float)
        for image in map(pydicom.dcmread, next(folder.glob("7.*")).glob("*.dcm"))
    }
    places = [
        tuple(pydicom.dcmread(frame.path, stop_before_pixels=True).ImagePositionPatient)
        for frame in source.arrangement.volumes[0].frames
    ]

    adc = adc_map(source.voxels, shells_of(b_values_of(source)))

    expected = np.stack([scanner[place] for place in places])
    bright = (source.voxels.min(axis=0) > 60) & (expected > 200)  # the scanner computed before it rounded
    assert bright.sum() > 500
    apart = np.abs(adc - expected)[bright] / expected[bright]
    assert np.median(apart) < 0.02
    assert np.percentile(apart, 95) < 0.04


def test_one_b_value_gives_no_map(
    study: PhantomStudy, reference: list[InstanceFacts], tmp_path: Path
) -> None:
    def unweighted(dataset: Dataset, index: int) -> None:
        dataset.DiffusionBValue = 0.0
        for keyword in ("DiffusionGradientOrientation", "DiffusionGradientDirectionSequence"):
            dataset.pop(keyword, None)

    files = edited(study.dwi_files[:4], tmp_path / "edited", unweighted)
    done = finished(load_files(files), reference, tmp_path / "derived")

    assert companions(done, adc=True) == []

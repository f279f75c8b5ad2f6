"""Several series of one correction, and images on the grid of the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from derived_series import Bench, instances_of, load_files, pixels_of, stored_of
from pydicom import Dataset

from dicom_node.derive import DerivePolicy, OutputGrid, on_reference_grid
from dicom_node.headers import InstanceFacts
from dicom_node.load import LoadedSeries, load_reference

BenchOf = Callable[[Callable[[Dataset, int], None]], Bench]
BY_B_VALUE = DerivePolicy(one_series_per_b_value=True)
ON_REFERENCE = DerivePolicy(grid=OutputGrid.REFERENCE)


def unmoved(source: LoadedSeries, reference: list[InstanceFacts], scratch: Path) -> np.ndarray:
    """The volumes of `source` without any displacement, on the grid of the reference."""
    target = load_reference(reference)
    still = np.zeros((3, *source.arrangement.shape), dtype=np.float32)
    return on_reference_grid(source, still, None, target.affine, target.shape, scratch)


def test_each_b_value_can_be_a_series_of_its_own(bench: Bench) -> None:
    derived = bench.derive(policy=BY_B_VALUE)

    by_series: dict[str, list[Dataset]] = {}
    for image in derived:
        by_series.setdefault(image.SeriesInstanceUID, []).append(image)
    b0, weighted = by_series.values()
    assert {float(image.DiffusionBValue) for image in b0} == {0.0}
    assert {float(image.DiffusionBValue) for image in weighted} == {1000.0}
    assert {image.SeriesDescription for image in b0} == {"DWI EPI b0 DISTCORR"}
    assert {image.SeriesDescription for image in weighted} == {"DWI EPI b1000 DISTCORR"}
    assert {image.SeriesNumber for image in weighted} == {b0[0].SeriesNumber + 1}
    for series in (b0, weighted):
        assert [image.InstanceNumber for image in series] == list(range(1, len(series) + 1))


def test_series_by_b_value_hold_what_one_series_holds(bench: Bench) -> None:
    derived = bench.derive(policy=BY_B_VALUE)

    assert np.array_equal(pixels_of(derived, bench.source.voxels.shape), stored_of(bench.source))
    assert len({image.SOPInstanceUID for image in derived}) == len(derived)
    assert len({path.name for path in bench.out.iterdir()}) == len(derived)


def test_a_second_series_lies_behind_the_first_in_the_same_folder(bench: Bench) -> None:
    first = bench.derive()
    second = bench.derive(settings_digest="another")

    assert len(list(bench.out.iterdir())) == len(first) + len(second)
    assert not {one.SOPInstanceUID for one in first} & {one.SOPInstanceUID for one in second}


def test_maps_that_the_scanner_appended_are_not_warped(bench_of: BenchOf) -> None:
    def last_is_a_map(dataset: Dataset, index: int) -> None:
        if index >= 12:
            dataset.ImageType = ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]

    derived = bench_of(last_is_a_map).derive()

    assert len(derived) == 12


# -- the grid of the reference


@pytest.fixture
def on_reference(bench: Bench, tmp_path: Path) -> list[Dataset]:
    return bench.derive(unmoved(bench.source, bench.reference, tmp_path), policy=ON_REFERENCE)


def test_images_on_the_reference_grid_lie_in_its_slices(bench: Bench, on_reference: list[Dataset]) -> None:
    reference = [pydicom.dcmread(instance.path) for instance in bench.reference]
    volumes = len(bench.source.voxels)

    assert len(on_reference) == volumes * len(reference)
    for image, plane in zip(on_reference, reference * volumes, strict=True):
        for keyword in (
            *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
            *("Rows", "Columns", "FrameOfReferenceUID"),
        ):
            assert image[keyword].value == plane[keyword].value, keyword
        assert image.get("SpacingBetweenSlices") == plane.get("SpacingBetweenSlices")
        assert "InPlanePhaseEncodingDirection" not in image
        assert "AcquisitionMatrix" not in image
        assert "resampled on the voxels of the reference" in image.DerivationDescription


def test_images_on_the_reference_grid_stay_diffusion_images(
    bench: Bench, on_reference: list[Dataset]
) -> None:
    slices = len(bench.reference)
    of_volumes = [on_reference[start : start + slices] for start in range(0, len(on_reference), slices)]

    for volume, images in zip(bench.source.arrangement.volumes, of_volumes, strict=True):
        assert {float(image.DiffusionBValue) for image in images} == {volume.b_value}
        sources = {frame.sop_instance_uid for frame in volume.frames}
        named = [image.SourceImageSequence[0].ReferencedSOPInstanceUID for image in images]
        assert set(named) == sources
    assert [image.InstanceNumber for image in on_reference] == list(range(1, len(on_reference) + 1))


def test_a_displacement_of_nothing_gives_the_interpolated_source(bench: Bench, tmp_path: Path) -> None:
    voxels = unmoved(bench.source, bench.reference, tmp_path)

    # voxels of half the size, the first of them at the same place: every second one is a source voxel
    source = bench.source.voxels[:, :, :10, :12]
    assert np.allclose(voxels[:, 0:7:2, 0:20:2, 0:24:2], source, atol=1e-2)
    # in the middle of eight voxels: a spline through them, never beyond the greatest or least of the eight
    between = voxels[:, 1:6:2, 1:19:2, 1:22:2]
    corners = [source[:, z : z + 3, y : y + 9, x : x + 11] for z, y, x in itertools.product((0, 1), repeat=3)]
    assert (between >= np.min(corners, axis=0) - 1e-2).all()
    assert (between <= np.max(corners, axis=0) + 1e-2).all()
    assert np.abs(between - np.mean(corners, axis=0)).mean() > 1


def test_a_shift_is_in_patient_millimetres_on_any_grid(bench: Bench, tmp_path: Path) -> None:
    source, target = bench.source, load_reference(bench.reference)
    shift = np.zeros((3, *source.arrangement.shape), dtype=np.float32)
    shift[:] = source.affine[:3, 0, None, None, None]  # one column further on
    moved = on_reference_grid(source, shift, None, target.affine, target.shape, tmp_path)

    assert np.allclose(moved[:, 0:7:2, 0:20:2, 0:20:2], source.voxels[:, :, :10, 1:11], atol=1e-2)


def test_modulation_goes_with_the_images(bench: Bench, tmp_path: Path) -> None:
    source, target = bench.source, load_reference(bench.reference)
    still = np.zeros((3, *source.arrangement.shape), dtype=np.float32)
    doubled = np.full(source.arrangement.shape, 2.0, dtype=np.float32)
    plain = on_reference_grid(source, still, None, target.affine, target.shape, tmp_path)

    modulated = on_reference_grid(source, still, doubled, target.affine, target.shape, tmp_path)

    assert np.allclose(modulated, 2 * plain, atol=1e-2)


def test_vectors_in_the_image_frame_do_not_go_onto_another_grid(bench_of: BenchOf, tmp_path: Path) -> None:
    def ge(dataset: Dataset, index: int) -> None:
        block = dataset.private_block(0x0019, "GEMS_ACQU_01", create=True)
        block.add_new(0xBB, "DS", "1.0")
        block = dataset.private_block(0x0043, "GEMS_PARM_01", create=True)
        block.add_new(0x39, "IS", [1000, 8, 0, 0])

    bench = bench_of(ge)
    derived = bench.derive(unmoved(bench.source, bench.reference, tmp_path), policy=ON_REFERENCE)

    assert 0x001910BB not in derived[0]
    assert 0x00431039 in derived[0]
    assert 0x001910BB in bench.derive()[0]


def test_volumes_on_the_wrong_grid_are_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="for images of"):
        bench.derive(bench.source.voxels, policy=ON_REFERENCE)


@pytest.mark.parametrize("name", ["siemens-e11-mosaic"])
def test_a_mosaic_goes_onto_the_slices_of_a_real_reference(
    name: str, data_set: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = data_set(name)
    source = load_files(sorted(next(folder.glob("4_*")).iterdir())[:2])
    reference = instances_of(next(folder.glob("2_*")).iterdir())
    target = load_reference(reference)
    bench = Bench(source, reference, tmp_path / "derived")

    derived = bench.derive(unmoved(source, reference, tmp_path), policy=ON_REFERENCE)

    assert len(derived) == len(source.voxels) * target.shape[0]
    volume = load_files(bench.out.iterdir())
    assert volume.arrangement.affine == pytest.approx(target.affine, abs=1e-3)

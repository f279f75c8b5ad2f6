"""The field is read back from the standard's text alone (PS3.3 C.20.3) and applied by SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from finished_correction import companions, finished
from pydicom import Dataset

from dicom_node.companions import Finished
from dicom_node.derive import DerivePolicy, OutputGrid
from dicom_node.headers import InstanceFacts
from dicom_node.load import LoadedSeries


def field_of(registration: Dataset) -> sitk.Image:
    """Δ of the one item of a Deformable Spatial Registration; without matrices Source = Registered + Δ."""
    (item,) = registration.DeformableRegistrationSequence
    assert "PreDeformationMatrixRegistrationSequence" not in item
    assert "PostDeformationMatrixRegistrationSequence" not in item
    (grid,) = item.DeformableRegistrationGridSequence
    x, y, z = grid.GridDimensions
    vectors = np.frombuffer(grid.VectorGridData, "<f4").reshape(z, y, x, 3)
    field = sitk.GetImageFromArray(vectors.astype(np.float64), isVector=True)
    row, column = np.reshape([float(number) for number in grid.ImageOrientationPatient], (2, 3))
    field.SetDirection(np.column_stack([row, column, np.cross(row, column)]).ravel().tolist())
    field.SetOrigin([float(number) for number in grid.ImagePositionPatient])
    field.SetSpacing(list(grid.GridResolution))
    return field


def stack_of(images: list[Dataset]) -> sitk.Image:
    """Classic slices of one volume as an image, from nothing but their Image Plane attributes."""
    first = images[0]
    row, column = np.reshape([float(number) for number in first.ImageOrientationPatient], (2, 3))
    normal = np.cross(row, column)
    images = sorted(images, key=lambda image: float(normal @ np.array(image.ImagePositionPatient, float)))
    depths = [float(normal @ np.array(image.ImagePositionPatient, float)) for image in images]
    stack = sitk.GetImageFromArray(np.stack([image.pixel_array for image in images]).astype(np.float32))
    stack.SetDirection(np.column_stack([row, column, normal]).ravel().tolist())
    stack.SetOrigin([float(number) for number in images[0].ImagePositionPatient])
    row_spacing, column_spacing = (float(number) for number in first.PixelSpacing)
    stack.SetSpacing([column_spacing, row_spacing, (depths[-1] - depths[0]) / (len(depths) - 1)])
    return stack


def of_volume(images: list[Dataset], b_value: float) -> list[Dataset]:
    return [image for image in images if float(image.DiffusionBValue) == b_value]


def reapplied(
    registration: Dataset, distorted: sitk.Image, onto: sitk.Image, interpolator: int
) -> np.ndarray:
    """The field applied by another program, by cubic B-spline, which may overshoot beside an edge."""
    transform = sitk.DisplacementFieldTransform(field_of(registration))
    return sitk.GetArrayFromImage(sitk.Resample(distorted, onto, transform, sitk.sitkBSpline, 0.0))


def test_the_field_applied_to_the_source_gives_the_corrected_images(done: Finished) -> None:
    (registration,) = companions(done, registration=True)
    source = [pydicom.dcmread(f.path) for v in done.source.arrangement.volumes for f in v.frames]
    derived = [pydicom.dcmread(one.path) for one in done.written]

    distorted, corrected = stack_of(of_volume(source, 0.0)), stack_of(of_volume(derived, 0.0))
    again = reapplied(registration, distorted, corrected, sitk.sitkBSpline)

    expected = sitk.GetArrayFromImage(corrected)
    assert np.abs(expected - sitk.GetArrayFromImage(distorted)).max() > 100  # something was moved
    # rounding of stored pixels, float32 arithmetic; an overshoot is held at the voxel beside it
    same = np.abs(again - expected) <= 0.5 + 0.05
    assert same.mean() > 0.9
    assert (same | at_a_neighbour(expected, distorted, field_of(registration))).all()


def at_a_neighbour(corrected: np.ndarray, distorted: sitk.Image, field: sitk.Image) -> np.ndarray:
    """Where a value is one of the two measured ones between which the field, along columns, leads."""
    column = np.reshape(distorted.GetDirection(), (3, 3))[:, 1]
    shift = sitk.GetArrayFromImage(field) @ column / distorted.GetSpacing()[1]
    measured = sitk.GetArrayFromImage(distorted)
    rows = np.arange(measured.shape[1])[None, :, None] + shift
    beside = (np.clip(np.floor(rows) + step, 0, measured.shape[1] - 1).astype(int) for step in (0, 1))
    near = [np.abs(np.take_along_axis(measured, row, axis=1) - corrected) <= 0.5 + 0.05 for row in beside]
    return near[0] | near[1]


def test_the_field_applied_to_the_source_gives_the_images_on_the_grid_of_the_reference(
    source: LoadedSeries, reference: list[InstanceFacts], tmp_path: Path
) -> None:
    done = finished(source, reference, tmp_path / "derived", DerivePolicy(grid=OutputGrid.REFERENCE))
    (registration,) = companions(done, registration=True)
    distorted = stack_of(
        of_volume([pydicom.dcmread(f.path) for v in source.arrangement.volumes for f in v.frames], 0.0)
    )
    corrected = stack_of(of_volume([pydicom.dcmread(one.path) for one in done.written], 0.0))

    again = reapplied(registration, distorted, corrected, sitk.sitkLinear)

    expected = sitk.GetArrayFromImage(corrected)
    # of twelve slices the eighth lies on the very face of the slab, where rounding decides, the rest outside
    assert (np.abs(again - expected)[:7] <= 0.5 + 0.05).mean() > 0.9
    assert (
        expected.max() <= sitk.GetArrayFromImage(distorted).max()
    )  # where the other overshoots, ours is held
    assert expected[:7].max() > 500
    assert not expected[8:].any()


def test_frames_of_reference_say_from_where_to_where(done: Finished) -> None:
    (registration,) = companions(done, registration=True)
    derived = pydicom.dcmread(done.written[0].path)

    assert registration.FrameOfReferenceUID == derived.FrameOfReferenceUID
    (item,) = registration.DeformableRegistrationSequence
    assert item.SourceFrameOfReferenceUID == done.source.facts.frame_of_reference_uid


def test_a_free_correction_leads_into_the_frame_of_the_reference(
    source: LoadedSeries, reference: list[InstanceFacts], tmp_path: Path
) -> None:
    done = finished(source, reference, tmp_path / "derived", phase_axis="none")
    (registration,) = companions(done, registration=True)

    assert registration.FrameOfReferenceUID == done.made_by.reference_facts.frame_of_reference_uid


def test_only_the_distorted_series_is_said_to_be_deformed(done: Finished) -> None:
    (registration,) = companions(done, registration=True)
    wanted = {f.sop_instance_uid for v in done.source.arrangement.volumes for f in v.frames}

    (item,) = registration.DeformableRegistrationSequence
    assert {one.ReferencedSOPInstanceUID for one in item.ReferencedImageSequence} == wanted
    (series,) = registration.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == done.source.facts.series_uid
    assert {one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence} == wanted

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from correction import Volume
from correction.apply import warp
from dicom_node.nifti import (
    NiftiProblem,
    lowest_shell,
    read_b_values,
    read_nifti,
    write_displacement,
    write_volumes,
)

SHAPE = (6, 9, 7)  # z, y, x


def oblique() -> np.ndarray:
    """Voxels of 2 × 3 × 4 mm, turned about every axis."""
    turn, _ = np.linalg.qr(np.array([[1.0, 0.2, -0.1], [-0.15, 1.0, 0.3], [0.2, -0.25, 1.0]]))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) @ np.diag([2.0, 3.0, 4.0])
    affine[:3, 3] = (-20.0, 15.0, 7.0)
    return affine


def soft(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return (100 + 40 * np.sin(3 * x + 2 * y) + 30 * z * y).astype(np.float32)


def values_at(path: Path, points_lps: np.ndarray) -> np.ndarray:
    """What another program (ITK works in LPS) finds at points in the patient."""
    image = sitk.ReadImage(str(path))
    return np.array([image.EvaluateAtPhysicalPoint(point.tolist()) for point in points_lps])


@pytest.mark.parametrize("flip_rows", [False, True])
def test_a_written_volume_lies_where_it_was_in_the_patient(tmp_path: Path, flip_rows: bool) -> None:
    voxels, affine = soft(), oblique()
    write_volumes(tmp_path / "a.nii.gz", voxels[np.newaxis], affine, flip_rows=flip_rows)
    index = np.array([[0, 0, 0], [3, 4, 5], [6, 8, 5], [1, 7, 2]])  # x, y, z
    points = index @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = index.T
    np.testing.assert_allclose(values_at(tmp_path / "a.nii.gz", points), voxels[z, y, x], rtol=1e-4)


@pytest.mark.parametrize("flip_rows", [False, True])
def test_what_was_written_is_read_again_at_the_same_place(tmp_path: Path, flip_rows: bool) -> None:
    voxels, affine = np.stack([soft(), 2 * soft()]), oblique()
    write_volumes(tmp_path / "a.nii.gz", voxels, affine, flip_rows=flip_rows)
    image = read_nifti(tmp_path / "a.nii.gz")
    if flip_rows:  # the rows run the other way in the file
        last = affine @ [0, SHAPE[1] - 1, 0, 1]
        np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], last, atol=1e-4)
        np.testing.assert_array_equal(image.voxels, voxels[:, :, ::-1])
    else:
        np.testing.assert_allclose(image.affine, affine, atol=1e-4)
        np.testing.assert_array_equal(image.voxels, voxels)


def test_one_volume_becomes_a_3d_file_and_several_a_4d_file(tmp_path: Path) -> None:
    write_volumes(tmp_path / "one.nii.gz", soft()[np.newaxis], np.eye(4), flip_rows=False)
    write_volumes(tmp_path / "two.nii.gz", np.stack([soft()] * 2), np.eye(4), flip_rows=False)
    assert nibabel.load(tmp_path / "one.nii.gz").shape == SHAPE[::-1]
    assert nibabel.load(tmp_path / "two.nii.gz").shape == (*SHAPE[::-1], 2)


@pytest.mark.parametrize("flip_rows", [False, True])
def test_itk_applies_the_displacement_as_we_do(tmp_path: Path, flip_rows: bool) -> None:
    """corrected(x) = distorted(x + u(x)), LPS mm."""
    affine = oblique()
    distorted = Volume.from_numpy(soft(), affine)
    # up to 3 mm along an oblique direction, different at every voxel
    length = torch.from_numpy(np.cos(np.arange(np.prod(SHAPE)) / 50).reshape(SHAPE).astype(np.float32)) * 3
    displacement = torch.tensor([0.6, -0.7, 0.4])[:, None, None, None] * length
    corrected = warp(distorted, displacement).data.numpy()
    write_displacement(tmp_path / "u.nii.gz", displacement, affine, flip_rows=flip_rows)
    write_volumes(tmp_path / "d.nii.gz", distorted.data.numpy()[np.newaxis], affine, flip_rows=flip_rows)

    field = sitk.ReadImage(str(tmp_path / "u.nii.gz"), sitk.sitkVectorFloat64)
    image = sitk.ReadImage(str(tmp_path / "d.nii.gz"))
    transform = sitk.DisplacementFieldTransform(field)
    by_itk = sitk.GetArrayFromImage(sitk.Resample(image, image, transform, sitk.sitkBSpline, 0.0))
    if flip_rows:
        by_itk = by_itk[:, ::-1]
    inside = np.s_[1:-1, 2:-2, 2:-2]
    # ours is held between the voxels around, which a smooth image needs nearly nowhere
    assert np.percentile(np.abs(by_itk - corrected)[inside], 90) < 0.02
    assert np.abs(corrected - soft())[inside].max() > 1


def test_the_displacement_file_is_what_itk_and_ants_expect(tmp_path: Path) -> None:
    write_displacement(tmp_path / "u.nii.gz", torch.ones(3, *SHAPE), oblique(), flip_rows=True)
    image = nibabel.load(tmp_path / "u.nii.gz")
    assert image.shape == (*SHAPE[::-1], 1, 3)
    assert image.header["intent_code"] == 1007
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.get_data_dtype() == np.float32
    assert image.header["sform_code"] == image.header["qform_code"] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.nii", b"this is no image"),
        ("empty.nii.gz", b""),
        ("text.nii.gz", b"this is no image"),
        ("inside.nii.gz", gzip.compress(b"no image either", mtime=0)),
    ],
)
def test_a_file_that_is_no_nifti_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NiftiProblem, match=name):
        read_nifti(tmp_path / name)


@pytest.mark.parametrize("damage", ["cut", "flipped", "header"])
def test_a_damaged_nifti_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.nii.gz"
    write_volumes(path, soft()[np.newaxis], np.eye(4), flip_rows=False)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        plain = bytearray(gzip.decompress(bytes(content)))
        plain[70:72] = b"\x99\x99"  # a data type that does not exist
        content = bytearray(gzip.compress(bytes(plain), mtime=0))
    path.write_bytes(content)
    with pytest.raises(NiftiProblem, match=r"a\.nii\.gz"):
        read_nifti(path)


def test_an_image_of_two_dimensions_is_refused_with_its_shape(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5), dtype=np.float32), np.eye(4)), tmp_path / "flat.nii")
    with pytest.raises(NiftiProblem, match=r"flat\.nii has the shape \(4, 5\)"):
        read_nifti(tmp_path / "flat.nii")


def test_b_values_are_one_for_each_volume(tmp_path: Path) -> None:
    path = tmp_path / "dwi.bval"
    path.write_text("0 500\t1000\n")
    assert read_b_values(path, 3) == (0.0, 500.0, 1000.0)
    with pytest.raises(NiftiProblem, match="3 b-values, but the image has 4 volumes"):
        read_b_values(path, 4)


@pytest.mark.parametrize("content", [b"0 five hundred", b"\xff\xfe\x00", b""])
def test_what_is_no_b_value_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dwi.bval").write_bytes(content)
    with pytest.raises(NiftiProblem, match=r"dwi\.bval"):
        read_b_values(tmp_path / "dwi.bval", 1)


@pytest.mark.parametrize(
    ("b_values", "lowest"),
    [
        ((0, 1000, 0, 1000), (0, 2)),
        ((5, 0, 15, 1000), (0, 1, 2)),
        ((1000, 50, 51, 800), (1, 2)),
        ((800,), (0,)),
        ((100, 120, 800), (0,)),
    ],
)
def test_the_lowest_shell_is_what_is_registered(b_values: tuple[float, ...], lowest: tuple[int, ...]) -> None:
    assert lowest_shell(b_values) == lowest

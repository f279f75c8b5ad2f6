"""Warping against SimpleITK, on an oblique anisotropic grid."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from correction import ShapeError, Volume
from correction.apply import warp


def _oblique(shape: tuple[int, int, int] = (9, 14, 11)) -> Volume:
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.2, 2.0, 3.5])
    affine[:3, 3] = [-20.0, 13.0, 5.0]
    return Volume.from_numpy(random.random(shape), affine)


def _itk(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.data.numpy())
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(tuple(volume.affine[:3, 3]))
    image.SetDirection(tuple(volume.axes.ravel()))
    return image


def test_the_displacement_is_itks_own_convention() -> None:
    volume = _oblique()
    random = np.random.default_rng(1)
    displacement = (3.0 * random.standard_normal((3, *volume.shape))).astype(np.float32)
    ours = warp(volume, torch.from_numpy(displacement)).data.numpy()
    field = sitk.GetImageFromArray(np.moveaxis(displacement, 0, -1).astype(np.float64), isVector=True)
    field.CopyInformation(_itk(volume))
    transform = sitk.DisplacementFieldTransform(field)
    theirs = sitk.Resample(_itk(volume), _itk(volume), transform, sitk.sitkLinear, 0.0)
    np.testing.assert_allclose(ours, sitk.GetArrayFromImage(theirs), atol=2e-4)


def test_no_displacement_changes_nothing() -> None:
    volume = _oblique()
    still = warp(volume, torch.zeros(3, *volume.shape))
    torch.testing.assert_close(still.data, volume.data, atol=1e-5, rtol=0)


def test_a_field_on_another_grid_is_refused() -> None:
    with pytest.raises(ShapeError, match="does not match"):
        warp(_oblique(), torch.zeros(3, 4, 4, 4))

"""Warping against SimpleITK, on an oblique anisotropic grid."""

from itertools import product

import numpy as np
import numpy.typing as npt
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


def _displacement(volume: Volume, axes: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """(3, Z, Y, X) LPS mm: up to 1.5 voxels along the given voxel axes (x, y, z), none along the others."""
    random = np.random.default_rng(1)
    voxels = np.zeros((3, *volume.shape))
    for axis in axes:
        voxels[axis] = random.uniform(-1.5, 1.5, volume.shape)
    displacement: npt.NDArray[np.float32] = np.einsum("ij,j...->i...", volume.affine[:3, :3], voxels).astype(
        np.float32
    )
    return displacement


def _by_itk(
    volume: Volume, displacement: npt.NDArray[np.float32], interpolator: int
) -> npt.NDArray[np.float32]:
    field = sitk.GetImageFromArray(np.moveaxis(displacement, 0, -1).astype(np.float64), isVector=True)
    field.CopyInformation(_itk(volume))
    transform = sitk.DisplacementFieldTransform(field)
    image = sitk.Resample(_itk(volume), _itk(volume), transform, interpolator, 0.0)
    array: npt.NDArray[np.float32] = sitk.GetArrayFromImage(image)
    return array


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_the_displacement_is_itks_own_convention(axes: tuple[int, ...]) -> None:
    volume = _oblique()
    displacement = _displacement(volume, axes)
    ours = warp(volume, torch.from_numpy(displacement)).data.numpy()
    theirs = _by_itk(volume, displacement, sitk.sitkBSpline)
    # ITK goes on beyond the outer voxel centres by mirroring, we by repeating; and ours is held
    free = np.abs(ours - theirs)[1:-1, 2:-2, 2:-2] < 1e-3
    assert free.mean() > 0.5
    np.testing.assert_array_equal(ours == 0, theirs == 0)  # both know what lies outside


@pytest.mark.parametrize("axes", [(1,), (0, 1, 2)])
def test_no_value_lies_beyond_the_voxels_around_it(axes: tuple[int, ...]) -> None:
    volume = _oblique()
    displacement = _displacement(volume, axes)
    ours = warp(volume, torch.from_numpy(displacement)).data.numpy()
    data = volume.data.numpy()
    shifts = np.einsum("ij,j...->i...", np.linalg.inv(volume.affine[:3, :3]), displacement)[::-1]
    inner = [range(2, n - 2) for n in volume.shape]
    for place in product(*inner):
        corner = [int(np.floor(place[axis] + shifts[axis][place] + 1e-4)) for axis in range(3)]
        around = data[tuple(slice(c, c + 2) for c in corner)]
        if around.shape == (2, 2, 2):
            assert around.min() - 1e-5 <= ours[place] <= around.max() + 1e-5


def test_a_small_bright_spot_keeps_its_signal_where_linear_interpolation_loses_it() -> None:
    affine = np.eye(4)
    steps = np.indices((5, 40, 5))[1]
    spot = np.exp(-0.5 * ((steps - 20.0) / 0.8) ** 2)
    volume = Volume.from_numpy(spot, affine)
    displacement = np.zeros((3, *volume.shape), np.float32)
    displacement[1] = 0.3
    kept = float(warp(volume, torch.from_numpy(displacement)).data.max())
    linear = float(_by_itk(volume, displacement, sitk.sitkLinear).max())
    true = np.exp(-0.5 * (0.3 / 0.8) ** 2)
    assert abs(kept - true) < 0.03
    assert true - linear > 0.06


def test_the_order_in_memory_does_not_matter() -> None:
    volume = _oblique()
    displacement = torch.from_numpy(_displacement(volume, (1,)))
    turned = volume.with_data(volume.data.permute(2, 1, 0).contiguous().permute(2, 1, 0))
    assert not turned.data.is_contiguous()
    assert torch.equal(warp(turned, displacement).data, warp(volume, displacement).data)


def test_what_is_not_a_number_spoils_only_what_is_read_from_it() -> None:
    volume = _oblique((5, 20, 5))
    displacement = torch.from_numpy(_displacement(volume, (1,)))
    holed = volume.data.clone()
    holed[2, 10, 2] = torch.nan
    spoiled = warp(volume.with_data(holed), displacement).data.isnan()
    # the displacement is at most 1.5 voxels, and a point is read between two
    assert spoiled.any()
    assert not spoiled[:, :8].any()
    assert not spoiled[:, 13:].any()
    assert int(spoiled.sum()) == int(spoiled[2, :, 2].sum())


def test_no_displacement_changes_nothing() -> None:
    volume = _oblique()
    still = warp(volume, torch.zeros(3, *volume.shape))
    torch.testing.assert_close(still.data, volume.data, atol=1e-5, rtol=0)


def test_a_field_on_another_grid_is_refused() -> None:
    with pytest.raises(ShapeError, match="does not match"):
        warp(_oblique(), torch.zeros(3, 4, 4, 4))

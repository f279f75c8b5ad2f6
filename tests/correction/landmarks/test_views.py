"""Pictures of a volume, and the way back: exact in every view of any volume."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.spatial.transform import Rotation

from correction import Volume
from correction.landmarks import views

# x, y, z in mm on a grid of (Z, Y, X): nothing is cubic, square or straight
SPACING = np.array([1.2, 2.0, 3.5])
SHAPE = (41, 67, 89)
TURN = Rotation.from_euler("xyz", [17, -23, 31], degrees=True).as_matrix()


def _affine(turn: npt.NDArray[np.float64] = TURN) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING
    affine[:3, 3] = (-40.0, 25.0, 70.0)
    return affine


VOLUME = Volume(torch.zeros(SHAPE), _affine())


def _lps(volume: Volume, voxels_zyx: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return voxels_zyx[:, ::-1] @ volume.affine[:3, :3].T + volume.affine[:3, 3]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_blob_lifted_from_its_picture_is_where_it_was_put(axis: int) -> None:
    centre = np.array([17, 41, 60])
    grids = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    away = sum(((g - c) * s) ** 2 for g, c, s in zip(grids, centre, SPACING[::-1], strict=True))
    volume = Volume.from_numpy(np.exp(-away / (2 * 4.0**2)), VOLUME.affine)
    one = views.plane(volume, axis, centre[axis], 0.5)
    picture = views.Pictures.of(volume).on([one], views.inside(volume, [one]))
    row, column = np.unravel_index(int(picture[0].argmax()), one.shape)
    found = one.to_lps(np.array([[column, row]], dtype=float))
    assert np.linalg.norm(found - _lps(volume, centre[None])) < 0.4  # half a pixel in each direction


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_pixel_shows_the_place_that_it_is_lifted_to(axis: int) -> None:
    """A volume that holds one patient coordinate must show this coordinate, whatever the slice."""
    grids = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    places = _lps(VOLUME, np.stack([g.ravel() for g in grids], axis=1).astype(float))
    one = views.plane(VOLUME, axis, 12.3, 0.7)
    pixels = np.array([[3.0, 5.0], [one.shape[1] - 5.0, 9.0], [20.0, one.shape[0] - 6.0]])
    for component in range(3):
        volume = VOLUME.with_data(torch.from_numpy(places[:, component].reshape(SHAPE)).float())
        inside = views.inside(volume, [one])
        assert bool(inside.all())
        x, y = pixels.astype(int).T
        expected = one.to_lps(pixels)[:, component]
        np.testing.assert_allclose(views.smooth_pictures(volume, [one])[0, y, x], expected, atol=1e-3)
        cubic = views.Pictures.of(volume).on([one], inside)
        # far from the faces, where the spline mirrors the volume
        middle = [one.shape[0] // 2, one.shape[1] // 2]
        np.testing.assert_allclose(
            float(cubic[0, middle[0], middle[1]]),
            one.to_lps(np.array([[middle[1], middle[0]]], dtype=float))[0, component], atol=1e-2,
        )  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pixels_voxels_and_millimetres_go_both_ways(axis: int) -> None:
    one = views.plane(VOLUME, axis, 7, 0.5)
    pixels = np.random.default_rng(0).uniform(0, 60, (50, 2))
    back, off_plane = one.to_pixels(one.to_lps(pixels))
    np.testing.assert_allclose(back, pixels, atol=1e-9)
    np.testing.assert_allclose(off_plane, 0, atol=1e-9)
    voxels = views.voxels_from_lps(VOLUME, one.to_lps(pixels))
    np.testing.assert_allclose(voxels[:, axis], 7, atol=1e-9)
    # rows and columns keep the order of the axes; x_pix = (i + 0.5)·s/p − 0.5
    row_axis, column_axis = (k for k in range(3) if k != axis)
    edge = SPACING[::-1]
    np.testing.assert_allclose((voxels[:, column_axis] + 0.5) * edge[column_axis] / 0.5 - 0.5, pixels[:, 0])
    np.testing.assert_allclose((voxels[:, row_axis] + 0.5) * edge[row_axis] / 0.5 - 0.5, pixels[:, 1])


def test_a_picture_covers_the_voxels_that_were_asked_for() -> None:
    one = views.plane(VOLUME, 1, 30, 0.5, box=((5, 30), (0, 0), (10, 69)))
    assert one.shape == (round(26 * 3.5 / 0.5), round(60 * 1.2 / 0.5))
    corner = views.voxels_from_lps(VOLUME, one.to_lps(np.array([[-0.5, -0.5]])))
    np.testing.assert_allclose(corner, [[4.5, 30.0, 9.5]], atol=1e-9)


def test_a_slice_of_one_volume_shows_the_same_place_in_another() -> None:
    """Reference and b = 0 lie differently; a plane belongs to the patient, not to either."""
    other = Volume(
        torch.zeros(60, 70, 80), np.array([[0, 0, 3, -130.0], [2, 0, 0, -60], [0, -2, 0, 150], [0, 0, 0, 1]])
    )
    grids = np.meshgrid(*(np.arange(n) for n in other.shape), indexing="ij")
    places = _lps(other, np.stack([g.ravel() for g in grids], axis=1).astype(float))
    one = views.plane(VOLUME, 0, 20, 0.5)
    volume = other.with_data(torch.from_numpy(places[:, 1].reshape(other.shape)).float())
    inside = views.inside(volume, [one])[0]
    assert 0.05 < float(inside.float().mean()) < 1
    y, x = torch.nonzero(inside)[::97].T
    expected = one.to_lps(torch.stack([x, y], dim=1).double().numpy())[:, 1]
    found = views.smooth_pictures(volume, [one])[0][y, x].numpy()
    np.testing.assert_allclose(found, expected, atol=1.01)  # the outer half voxel repeats the edge
    assert np.median(np.abs(found - expected)) < 1e-3
    assert not bool(views.smooth_pictures(volume, [one])[0][~inside].any())


def test_pixels_that_are_not_wanted_stay_black() -> None:
    volume = VOLUME.with_data(torch.ones(SHAPE))
    one = views.plane(VOLUME, 0, 20, 1.0)
    where = torch.zeros(1, *one.shape, dtype=torch.bool)
    where[0, 10:20, 30:40] = True
    picture = views.Pictures.of(volume).on([one], where)
    np.testing.assert_allclose(picture[where], 1.0, atol=1e-4)
    assert float(picture.sum()) == pytest.approx(100.0, abs=0.01)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_moved_plane_is_the_slice_that_far_along_its_axis(axis: int) -> None:
    edge = SPACING[::-1][axis]
    moved = views.plane(VOLUME, axis, 12, 0.7).moved(2 * edge)
    there = views.plane(VOLUME, axis, 14, 0.7)
    np.testing.assert_allclose(moved.origin_lps, there.origin_lps, atol=1e-9)
    assert moved.shape == there.shape


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_along_the_axes_is_drawn_as_one_askew_by_a_hair(axis: int) -> None:
    """The quick way, line by line, and the general one show the same."""
    voxels = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5))
    straight, askew = (Volume(voxels, _affine(turn)) for turn in (TURN, TURN @ _turned(1e-4)))
    one = views.plane(straight, axis, 20.3, 0.7)
    inner = views.inside(straight, [one]) & views.inside(askew, [one])
    assert views._Straight.of(straight, one) is not None
    assert views._Straight.of(askew, one) is None
    for draw in (
        lambda volume: views.smooth_pictures(volume, [one]),
        lambda volume: views.Pictures.of(volume).on([one], inner),
    ):
        assert float((draw(straight) - draw(askew))[inner].abs().max()) < 0.05  # noise, moved by 0.01 voxel


def _turned(radians: float) -> npt.NDArray[np.float64]:
    return np.asarray(Rotation.from_rotvec(radians * np.ones(3)).as_matrix())

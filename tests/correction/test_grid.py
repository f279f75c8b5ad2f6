"""Frames and resampling on oblique, anisotropic, non-cubic volumes."""

import numpy as np
import pytest
import torch

from correction import SettingsError, Volume
from correction.grid import Frame, Grid, resample

SHAPE = (17, 22, 29)


def _affine(seed: int, spacing: tuple[float, float, float]) -> np.ndarray:
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.standard_normal((3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = random.normal(0, 20, 3)
    return affine


def _lps(volume: Volume) -> np.ndarray:
    z, y, x = np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij")
    return np.stack([x, y, z, np.ones_like(x)], axis=-1) @ volume.affine.T


@pytest.mark.parametrize("axis", ["i", "j-", "k", None])
def test_the_frame_puts_phase_encode_last_and_gives_the_image_back(axis: str | None) -> None:
    volume = Volume(torch.rand(SHAPE), _affine(0, (1.2, 2.0, 3.5)))
    frame = Frame.of(volume, axis)
    turned = frame.to_frame(volume.data)
    assert turned.shape == frame.shape
    assert torch.equal(frame.to_image(turned), volume.data)
    if axis is not None:
        assert frame.spacing_mm[2] == pytest.approx(volume.spacing_mm["ijk".index(axis[0])])
        np.testing.assert_allclose(frame.directions[:, 2], volume.axes[:, "ijk".index(axis[0])])


@pytest.mark.parametrize("axis", ["i", "j", "k"])
def test_a_linear_image_is_resampled_exactly_at_patient_positions(axis: str) -> None:
    """An image whose value is a patient coordinate must keep telling it, on another stack's grid."""
    weights = np.array([0.7, -1.3, 0.4])
    target = Volume(torch.zeros(SHAPE), _affine(1, (2.0, 2.0, 2.5)))
    far = _affine(2, (1.7, 1.7, 2.2))
    # a source large enough to cover the target from any side
    far[:3, 3] = _lps(target).reshape(-1, 4)[:, :3].mean(0) - far[:3, :3] @ np.array([39.5, 44.5, 34.5])
    source = Volume(torch.zeros(70, 90, 80), far)
    source = source.with_data(torch.from_numpy((_lps(source)[..., :3] @ weights).astype(np.float32)))
    frame = Frame.of(target, axis)
    found, inside = resample(source, frame, frame.grid())
    expected = torch.from_numpy(_lps(target)[..., :3] @ weights).float()
    assert bool(inside.all())
    assert float((frame.to_image(found) - expected).abs().max()) < 1e-2


def test_what_lies_outside_the_source_is_marked() -> None:
    volume = Volume(torch.rand(SHAPE), np.eye(4))
    frame = Frame.of(volume, "j")
    wide = Grid((-5.0, -5.0, -5.0), (1.0, 1.0, 1.0), tuple(n + 10 for n in frame.shape))
    _, inside = resample(volume, frame, wide)
    assert int(inside.sum()) == np.prod(SHAPE)


def test_points_return_to_patient_space() -> None:
    volume = Volume(torch.zeros(SHAPE), _affine(3, (1.2, 2.0, 3.5)))
    frame = Frame.of(volume, "i")
    points = np.random.default_rng(0).normal(0, 30, (5, 3))
    back = frame.points_from_lps(points) @ frame.directions.T + frame.origin_lps
    np.testing.assert_allclose(back, points, atol=1e-9)


@pytest.mark.parametrize("wrong", ["x", "jj", "-j", "+j"])
def test_an_unknown_axis_is_refused(wrong: str) -> None:
    with pytest.raises(SettingsError, match="phase_encoding must be"):
        Frame.of(Volume(torch.zeros(3, 4, 5), np.eye(4)), wrong)


def test_a_grid_between_two_faces_is_centred_and_reaches_both() -> None:
    grid = Grid.between((0.0, 10.0, -3.0), (21.0, 14.0, 40.0), (2.0, 3.0, 4.0))
    for axis, (low, high) in enumerate(((0.0, 21.0), (10.0, 14.0), (-3.0, 40.0))):
        assert grid.first_mm[axis] <= low
        assert grid.last_mm(axis) >= high
        assert low - grid.first_mm[axis] == pytest.approx(grid.last_mm(axis) - high)

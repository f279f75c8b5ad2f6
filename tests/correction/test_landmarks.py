"""Robust consensus of landmarks: what is planted is kept, what is wrong is dropped under its own name."""

import numpy as np
import pytest
import torch

from correction import Landmarks, ShapeError, Volume
from correction.grid import Frame, Grid
from correction.landmarks import FrameLandmarks, agree

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
FRAME = Frame.of(Volume(torch.zeros(30, 60, 50), AFFINE), "j")
GRID = FRAME.grid()
EVERYWHERE = torch.ones(GRID.shape, dtype=torch.bool)


def _planted(count: int = 600, seed: int = 0) -> Landmarks:
    """Landmarks of a smooth shift along y with half a millimetre of scatter."""
    random = np.random.default_rng(seed)
    fixed = random.uniform([5, 5, 5], [90, 110, 80], size=(count, 3))
    shift = 4.0 * np.sin(fixed[:, 0] / 40) + 2.0 * np.cos(fixed[:, 1] / 50)
    moving = fixed + random.normal(0, 0.3, size=fixed.shape)
    moving[:, 1] += shift
    return Landmarks(fixed, moving, np.full(count, 0.8))


def test_good_landmarks_are_nearly_all_kept_as_shifts_along_phase_encode() -> None:
    landmarks = _planted()
    found = agree(landmarks, FRAME, GRID, EVERYWHERE, one_axis=True)
    assert found.found == 600
    assert found.count > 0.9 * (600 - found.dropped["crowded"])
    assert found.in_frame is not None
    assert found.kept is not None
    # patient y is the frame's last axis
    shifts = found.kept.moving_mm[:, 1] - found.kept.fixed_mm[:, 1]
    np.testing.assert_allclose(found.in_frame.shift_mm.numpy(), shifts, atol=1e-4)


def test_wrong_landmarks_are_dropped_and_counted() -> None:
    good = _planted()
    random = np.random.default_rng(3)
    moving = good.moving_mm.copy()
    moving[:60, 1] += random.choice([-9.0, 9.0], 60)  # against their neighbours
    moving[60:100, 0] += 8.0  # off the axis
    moving[100:110, 1] += 60.0  # implausible
    landmarks = Landmarks(good.fixed_mm, moving, good.confidence)
    found = agree(landmarks, FRAME, GRID, EVERYWHERE, one_axis=True)
    assert found.dropped["off the phase-encode axis"] >= 40
    assert found.dropped["implausibly far"] >= 10
    assert found.dropped["against their neighbours"] >= 45
    assert found.kept is not None
    wrong = {tuple(point) for point in good.fixed_mm[:110]}
    assert sum(tuple(point) in wrong for point in found.kept.fixed_mm) <= 3


def test_landmarks_over_a_steep_shift_are_kept() -> None:
    """Over the sinuses the shift changes by half a millimetre a millimetre: no reason to doubt."""
    good = _planted()
    steep = np.exp(-((good.fixed_mm - [50, 85, 40]) ** 2).sum(axis=1) / (2 * 12.0**2))
    moving = good.moving_mm.copy()
    moving[:, 1] += 10.0 * steep
    landmarks = Landmarks(good.fixed_mm, moving, good.confidence)
    found = agree(landmarks, FRAME, GRID, EVERYWHERE, one_axis=True)
    assert found.dropped["against their neighbours"] < 0.03 * len(good)


def test_a_set_whose_landmarks_err_together_is_trusted_less() -> None:
    good = _planted(2000)
    assert (sure := agree(good, FRAME, GRID, EVERYWHERE, one_axis=True)).trust > 0.8
    assert sure.common_error_mm is not None
    assert sure.common_error_mm < 0.2
    moving = good.moving_mm.copy()
    moving[:, 0] += 0.8 * np.sin(good.fixed_mm[:, 1] / 20) * np.cos(good.fixed_mm[:, 2] / 20)
    together = Landmarks(good.fixed_mm, moving, good.confidence)
    unsure = agree(together, FRAME, GRID, EVERYWHERE, one_axis=True)
    assert unsure.common_error_mm == pytest.approx(0.4, abs=0.12)
    assert unsure.trust < 0.75
    assert unsure.in_frame is not None
    assert sure.in_frame is not None
    same = torch.zeros(unsure.count)
    assert float(unsure.in_frame.weight.mean()) == pytest.approx(unsure.trust, abs=1e-6)
    assert float(unsure.in_frame.loss(same, 1.5)) < float(sure.in_frame.loss(torch.zeros(sure.count), 1.5))


def test_a_turn_of_the_whole_image_is_no_common_error() -> None:
    good = _planted(2000)
    moving = good.moving_mm.copy()
    moving[:, 0] += 0.02 * (good.fixed_mm[:, 1] - 60)
    found = agree(Landmarks(good.fixed_mm, moving, good.confidence), FRAME, GRID, EVERYWHERE, one_axis=True)
    assert found.common_error_mm is not None
    assert found.common_error_mm < 0.2


def test_landmarks_in_a_corner_of_the_head_are_trusted_less() -> None:
    good = _planted(3000)
    corner = good.keep(good.fixed_mm[:, 1] < 35)
    found = agree(corner, FRAME, GRID, EVERYWHERE, one_axis=True)
    assert 0.2 < found.trust < 0.85
    assert found.trust < agree(good, FRAME, GRID, EVERYWHERE, one_axis=True).trust


def test_landmarks_outside_the_head_and_too_few_landmarks_are_not_used() -> None:
    head = torch.zeros(GRID.shape, dtype=torch.bool)
    assert agree(_planted(), FRAME, GRID, head, one_axis=True).kept is None
    few = agree(_planted(20), FRAME, GRID, EVERYWHERE, one_axis=True)
    assert few.kept is None
    assert few.dropped["too few left"] <= 20


def test_a_common_offset_off_the_axis_is_reported_and_not_held_against_them() -> None:
    good = _planted()
    moved = Landmarks(good.fixed_mm, good.moving_mm + np.array([2.5, 0, 0]), good.confidence)
    found = agree(moved, FRAME, GRID, EVERYWHERE, one_axis=True)
    assert max(abs(v) for v in found.off_axis_mm) == pytest.approx(2.5, abs=0.2)
    assert found.count > 200


def test_the_offset_is_taken_from_the_view_that_shows_it() -> None:
    """A slice has no shift across itself: landmarks of two views are right about one axis each."""
    good = _planted(2000)
    moving = good.moving_mm + np.array([2.5, 0, -2.0])
    half = np.arange(2000) < 1000
    moving[half, 0] = good.fixed_mm[half, 0]
    moving[~half, 2] = good.fixed_mm[~half, 2]
    found = agree(Landmarks(good.fixed_mm, moving, good.confidence), FRAME, GRID, EVERYWHERE, one_axis=True)
    assert sorted(found.off_axis_mm) == pytest.approx([-2.0, 2.5], abs=0.1)
    assert found.dropped["off the phase-encode axis"] == 0


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="fixed_mm"):
        Landmarks(np.zeros((4, 3)), np.zeros((5, 3)), np.ones(4))


def test_a_grid_that_is_off_the_head_mask_counts_as_outside() -> None:
    far = Grid((1000.0, 0.0, 0.0), GRID.spacing_mm, GRID.shape)
    assert agree(_planted(), FRAME, far, EVERYWHERE, one_axis=True).dropped["outside the head"] == 600


def test_landmarks_that_a_field_contradicts_lose_their_weight() -> None:
    points = torch.zeros(3, 3, dtype=torch.float64)
    landmarks = FrameLandmarks(points, torch.tensor([1.0, 4.0, 13.0]), torch.full((3,), 0.8))
    weight = landmarks.doubted(torch.ones(3), 3.0).weight
    assert torch.allclose(weight, 0.8 * torch.tensor([1.0, 1 / 4, 1 / 17**2]))

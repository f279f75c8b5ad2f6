"""The rigid step: motion across phase encode is found, told and taken out; nothing else moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from correction import Volume, correct, methods, rigid
from correction.disturbed import shifted
from correction.grid import Frame
from correction.landmarks import Consensus, FrameLandmarks, Landmarks
from correction.phantom import head_case
from correction.rigid import Pose

QUICK = methods.clinical().override(
    ["air=false", "near_bending=150", "coarse_voxel_mm=3", "judge_voxel_mm=3"]
)
OBLIQUE = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])


def _frame(mirrored: bool = False) -> Frame:
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag([2.0, 2.0, -3.0 if mirrored else 3.0])
    affine[:3, 3] = (-80.0, -90.0, -40.0)
    return Frame.of(Volume(torch.zeros(40, 90, 80), affine), "j")


def _seen(frame: Frame, motion: Pose, noise_mm: float = 0.6, count: int = 1500, seed: int = 0) -> Consensus:
    """Landmarks of two views under a motion and a distortion; each view is blind across its slices."""
    random = np.random.default_rng(seed)
    high = [frame.spacing_mm[k] * frame.shape[k] for k in range(3)]
    there = random.uniform(0, 1, (count, 3)) * high  # where the b = 0 would have them, undistorted
    back = Pose(centre_lps=motion.centre_lps, turn_deg=_minus(motion.turn_deg))
    lps = there @ frame.directions.T + frame.origin_lps - np.asarray(motion.shift_mm)
    fixed = frame.points_from_lps(back.points(lps))
    moving = there + random.normal(0, noise_mm, (count, 3))
    moving[:, 2] += 5.0 * np.sin(there[:, 0] / 20.0)
    blind = np.where(np.arange(count) < count // 2, 0, 1)
    moving[np.arange(count), blind] = fixed[np.arange(count), blind]
    points = [p @ frame.directions.T + frame.origin_lps for p in (fixed, moving)]
    kept = Landmarks(points[0], points[1], np.ones(count))
    in_frame = FrameLandmarks(
        torch.from_numpy(fixed), torch.from_numpy(moving[:, 2] - fixed[:, 2]).float(), torch.ones(count)
    )
    return Consensus("planted", count, kept, in_frame, {}, (0.0, 0.0), 0.1, 1.0)


def _minus(vector: tuple[float, float, float]) -> tuple[float, float, float]:
    return -vector[0], -vector[1], -vector[2]


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_shift_across_phase_encode_is_found_in_patient_coordinates(mirrored: bool) -> None:
    frame = _frame(mirrored)
    wanted = frame.directions @ np.array([-2.0, 2.8, 0.0])
    found = rigid.pose(_seen(frame, Pose(tuple(wanted))), frame)
    np.testing.assert_allclose(found.shift_mm, wanted, atol=0.15)
    assert found.turn_deg == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_turn_is_found_about_every_axis(mirrored: bool) -> None:
    frame = _frame(mirrored)
    centre = tuple(frame.directions @ np.array([60.0, 80.0, 90.0]) + frame.origin_lps)
    for turn in np.eye(3) * 2.5:
        found = rigid.pose(_seen(frame, Pose((0.0, 0.0, 0.0), tuple(turn), centre)), frame)
        np.testing.assert_allclose(found.turn_deg, turn, atol=0.3)


@pytest.mark.parametrize(
    "motion",
    [
        Pose(),
        Pose((0.45, 0.0, 0.3)),  # what registered series differ by
        Pose((0.0, 4.0, 0.0)),  # along phase encode: not to be told from distortion
        Pose((12.0, 0.0, 0.0)),  # more than a patient moves between two series
    ],
)
def test_without_a_clear_small_motion_nothing_is_moved(motion: Pose) -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    frame = Frame.of(Volume(torch.zeros(40, 90, 80), affine), "j")
    assert rigid.pose(_seen(frame, motion), frame).identity


def test_offsets_that_contradict_one_another_move_nothing() -> None:
    frame = _frame()
    assert rigid.pose(_seen(frame, Pose((1.5, 0.0, 0.0)), noise_mm=6.0), frame).identity
    few = _seen(frame, Pose((2.5, 0.0, 0.0)), count=60)
    assert rigid.pose(few, frame).identity
    assert rigid.pose(replace(_seen(frame, Pose((2.5, 0.0, 0.0))), trust=0.1), frame).identity
    assert rigid.pose(replace(few, kept=None, in_frame=None), frame).identity


def test_after_the_step_landmarks_tell_of_distortion_only() -> None:
    frame = _frame()
    motion = Pose(tuple(frame.directions @ np.array([-2.0, 2.8, 0.0])))
    seen = _seen(frame, motion, noise_mm=0.0)
    placed = motion.landmarks(seen, frame)
    assert placed.kept is not None
    assert placed.in_frame is not None
    left = frame.points_from_lps(placed.kept.moving_mm) - frame.points_from_lps(placed.kept.fixed_mm)
    wanted = 5.0 * np.sin(frame.points_from_lps(placed.kept.moving_mm)[:, 0] / 20.0)
    half = len(seen.kept or ()) // 2
    assert np.abs(left[:, :2]).max() < 1e-6
    # the second half was seen along the axis that the distortion depends on here
    np.testing.assert_allclose(placed.in_frame.shift_mm.numpy()[half:], wanted[half:], atol=1e-3)


def test_a_volume_is_moved_without_resampling() -> None:
    volume = head_case(0).reference
    motion = Pose((2.0, 0.0, -1.0), (0.0, 0.0, 3.0), (5.0, 6.0, 7.0))
    placed = motion.volume(volume)
    assert placed.data is volume.data
    corner = volume.affine @ np.array([10.0, 20.0, 5.0, 1.0])
    np.testing.assert_allclose(
        (placed.affine @ np.array([10.0, 20.0, 5.0, 1.0]))[:3], motion.points(corner[None, :3])[0]
    )


def test_a_moved_reference_costs_little_and_the_output_stays_in_its_own_frame() -> None:
    made = head_case(0, voxel_mm=(3.0, 3.0, 4.0), reference_voxel_mm=(2.5, 2.5, 4.0))
    away = shifted(made.reference, (-3.0, 0.0, 0.0))
    truth = np.tensordot(made.b0.axes[:, 1], made.displacement_mm.numpy(), 1)
    index = np.argwhere(made.tissue.numpy())[:: max(1, int(made.tissue.sum()) // 1500)]
    points = index[:, ::-1] @ made.b0.affine[:3, :3].T + made.b0.affine[:3, 3]
    moving = points + truth[tuple(index.T)][:, None] * made.b0.axes[:, 1]
    fixed = points - np.array([3.0, 0.0, 0.0])
    # half of them as sagittal slices give them
    fixed[::2, 0] = points[::2, 0]
    landmarks = Landmarks(fixed, moving, np.ones(len(fixed)))
    result = correct(made.b0, away, "j", QUICK, landmarks)
    np.testing.assert_allclose(result.quality.reference_shift_mm, (3.0, 0.0, 0.0), atol=0.3)
    assert result.quality.remaining_across_mm < 1.0
    np.testing.assert_array_equal(result.reference.affine, made.b0.affine)
    error = (result.displacement - made.displacement_mm)[:, made.tissue].square().sum(0).mean().sqrt()
    before = made.displacement_mm[:, made.tissue].square().sum(0).mean().sqrt()
    assert float(error) < 0.35 * float(before)

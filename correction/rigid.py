"""The rigid part, apart from the field: how the patient lay between the reference and the b = 0.

EPI distorts along phase encode only. What landmarks tell across it is therefore no distortion but motion, and
no field along phase encode can follow it: the reference is laid where the b = 0 is before they are compared.
A shift along phase encode stays in the field, which alone cannot be told from it.

The b = 0, and with it everything that is corrected, stays where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.transform import Rotation

from correction.grid import Frame
from correction.landmarks import Consensus, FrameLandmarks
from correction.landmarks.consensus import BY_CONSTRUCTION_MM
from correction.volume import Volume

Array = npt.NDArray[np.float64]

# Landmarks of one session without motion say up to 0.6 mm and 0.6°, and below 0.7 mm nothing is gained.
LEAST_MM, LEAST_DEG = 1.0, 1.0
# beyond, the pair is not one that a small motion explains, and the verdict has to say so
MOST_MM, MOST_DEG = 6.0, 5.0
FEWEST = 100  # landmarks that show an axis, to say anything about it
LEAST_TRUST = 0.2  # of the set: another patient's landmarks agree on an offset, too, but not with one another
MOST_LEFT = 0.6  # of the median offset before: else the offset is no rigid one
_ROUNDS = 20  # of reweighting
_OUTLIER_MM = 0.7


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the reference is laid: turned about centre_lps, then shifted; patient LPS.

    turn_deg: rotation vector. Identity: as the headers say.
    """

    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    centre_lps: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def identity(self) -> bool:
        return not (any(self.shift_mm) or any(self.turn_deg))

    def points(self, points_lps: Array) -> Array:
        """(N, 3) of the reference → where the b = 0 has them, but for the distortion."""
        centre = np.asarray(self.centre_lps)
        moved: Array = self._turn().apply(points_lps - centre) + centre + np.asarray(self.shift_mm)
        return moved

    def volume(self, reference: Volume) -> Volume:
        """The same voxels elsewhere: nothing is resampled."""
        affine = reference.affine.copy()
        affine[:3, :3] = self._turn().as_matrix() @ affine[:3, :3]
        affine[:3, 3] = self.points(reference.affine[None, :3, 3])[0]
        return Volume(reference.data, affine)

    def landmarks(self, found: Consensus, frame: Frame) -> Consensus:
        """The landmarks of the reference in its new place: what is left of them lies along phase encode.

        A landmark shows nothing across its slice, which is the b = 0's: there it lies where the b = 0 has it.
        """
        if found.kept is None:
            return found
        before, there = (frame.points_from_lps(p) for p in (found.kept.fixed_mm, found.kept.moving_mm))
        fixed = frame.points_from_lps(self.points(found.kept.fixed_mm))
        unseen = np.abs(there[:, :2] - before[:, :2]) <= BY_CONSTRUCTION_MM
        fixed[:, :2] = np.where(unseen, there[:, :2], fixed[:, :2])
        kept = replace(found.kept, fixed_mm=fixed @ frame.directions.T + frame.origin_lps)
        in_frame = found.in_frame
        if in_frame is not None:
            shift = torch.from_numpy(there[:, 2] - fixed[:, 2]).float()
            in_frame = FrameLandmarks(torch.from_numpy(fixed), shift, in_frame.weight)
        return replace(found, kept=kept, in_frame=in_frame)

    def _turn(self) -> Rotation:
        return Rotation.from_rotvec(self.turn_deg, degrees=True)


def pose(found: Consensus, frame: Frame) -> Pose:
    """The pose that the landmarks agree on across phase encode; the identity without clear evidence.

    Two shifts and, if they are large enough to be believed, three rotations, by robust least squares on
    what each landmark shows across phase encode.
    """
    if found.kept is None or found.in_frame is None or found.trust < LEAST_TRUST:
        return Pose()
    fixed = frame.points_from_lps(found.kept.fixed_mm)
    offset = frame.points_from_lps(found.kept.moving_mm)[:, :2] - fixed[:, :2]
    seen = np.abs(offset) > BY_CONSTRUCTION_MM
    seen &= seen.sum(axis=0) >= FEWEST
    if not seen.any():
        return Pose()
    centre = fixed.mean(axis=0)
    away = fixed - centre
    shift, turn = _fitted(away, offset, seen, turning=True)
    if np.linalg.norm(np.degrees(turn)) < LEAST_DEG or not seen.any(axis=0).all():
        shift, turn = _fitted(away, offset, seen, turning=False)
    left = np.abs(offset - _displacement(away, shift, turn))[seen]
    moved = _displacement(away, shift, turn)[seen]
    if (
        not LEAST_MM < np.sqrt(2 * (moved**2).mean()) < MOST_MM
        or np.linalg.norm(np.degrees(turn)) > MOST_DEG
        or np.median(left) > MOST_LEFT * np.median(np.abs(offset[seen]))
    ):
        return Pose()
    place = frame.directions @ centre + frame.origin_lps
    return Pose(
        _triple(frame.directions @ shift), _triple(np.degrees(frame.directions @ turn) * _handedness(frame)),
        _triple(place),
    )  # fmt: skip


def _fitted(away: Array, offset: Array, seen: npt.NDArray[np.bool_], turning: bool) -> tuple[Array, Array]:
    """Shift (3,) mm, nothing along phase encode, and rotation vector (3,) rad, in the frame's axes.

    away: (N, 3) mm from the centre; offset, seen: (N, 2).
    """
    rows = [_unit_displacement(away, k)[seen[:, axis], axis] for axis in (0, 1) for k in range(5)]
    design = np.concatenate([np.stack(rows[:5], axis=1), np.stack(rows[5:], axis=1)])
    if not turning:
        design[:, 2:] = 0.0
    wanted = np.concatenate([offset[seen[:, axis], axis] for axis in (0, 1)])
    weight = np.ones(len(wanted))
    for _ in range(_ROUNDS):
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(design * root[:, None], wanted * root, rcond=None)[0]
        weight = 1.0 / (1.0 + ((wanted - design @ solution) / _OUTLIER_MM) ** 2) ** 2
    return np.array([solution[0], solution[1], 0.0]), solution[2:]


def _displacement(away: Array, shift: Array, turn: Array) -> Array:
    """(N, 2) mm across phase encode, for small turns."""
    parameters = [shift[0], shift[1], *turn]
    total: Array = sum(
        (value * _unit_displacement(away, k) for k, value in enumerate(parameters)), np.zeros((len(away), 2))
    )
    return total


def _unit_displacement(away: Array, parameter: int) -> Array:
    """(N, 2): what one mm or radian of a parameter does across phase encode: ω × x without its last row."""
    a, b, p = away.T
    nothing, one = np.zeros(len(away)), np.ones(len(away))
    across = ((one, nothing), (nothing, one), (nothing, -p), (p, nothing), (-b, a))[parameter]
    return np.stack(across, axis=1)


def _handedness(frame: Frame) -> float:
    """−1 where the frame's axes are left-handed: a rotation vector is an axial one."""
    return float(np.sign(np.linalg.det(frame.directions)))


def _triple(vector: Array) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])

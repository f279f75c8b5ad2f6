"""Which landmarks to believe, without knowing the answer: each filter in turn, and what it dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import cKDTree

from correction.grid import Frame, Grid
from correction.landmarks.points import FrameLandmarks, Landmarks

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# lengths in mm; the order is that of the filters
OFF_AXIS_MM = 1.5
BOUND_MM = 20.0
NEIGHBOURS = 8
CONSENSUS_MM = 2.0
FOLD_SLOPE = -0.8
CELL_MM = 10.0
MOST_PER_CELL = 6
FEWEST = 30


@dataclass(frozen=True, slots=True)
class Consensus:
    """Landmarks that survived, and why the others did not.

    kept: in patient space; in_frame: the same as shifts along phase encode, None when there is no axis or
    too few were left (`dropped` then says so). off_axis_mm: median offset away from phase encode, in the
    frame's other two axes: above 1 mm the images are not rigidly aligned.
    """

    matcher: str
    found: int
    kept: Landmarks | None
    in_frame: FrameLandmarks | None
    dropped: dict[str, int]
    off_axis_mm: tuple[float, float]

    @property
    def count(self) -> int:
        return 0 if self.kept is None else len(self.kept)


def nobody() -> Consensus:
    """No landmarks were given."""
    return Consensus("none", 0, None, None, {}, (0.0, 0.0))


def agree(landmarks: Landmarks, frame: Frame, grid: Grid, head: torch.Tensor, one_axis: bool) -> Consensus:
    """Filter landmarks by head mask, off-axis offset, bound, neighbours, folds and density.

    grid, head: the head mask (a, b, p) and where it lies in `frame`. one_axis: the field lies along the
    frame's last axis only; otherwise only mask, bound, neighbours and density are applied.
    """
    fixed = frame.points_from_lps(landmarks.fixed_mm)
    shift = frame.points_from_lps(landmarks.moving_mm) - fixed
    score = landmarks.confidence
    alive = _in_head(fixed, grid, head) & np.isfinite(shift).all(axis=1) & (score > 0)
    dropped = {"outside the head": int((~alive).sum())}
    off_axis = np.median(shift[alive][:, :2], axis=0) if alive.any() else np.zeros(2)

    def drop(name: str, bad: Flags) -> None:
        nonlocal alive
        dropped[name] = int((alive & bad).sum())
        alive = alive & ~bad

    if one_axis:
        limit = max(OFF_AXIS_MM, max(frame.spacing_mm[:2]))
        drop("off the phase-encode axis", np.asarray((np.abs(shift[:, :2] - off_axis) > limit).any(axis=1)))
    drop("implausibly far", np.asarray((np.abs(shift) > BOUND_MM).any(axis=1)))
    lone = np.zeros(len(score), dtype=bool)
    for _ in range(2):
        lone |= _disagreeing(fixed, shift, alive & ~lone)
    drop("against their neighbours", lone)
    if one_axis:
        drop("folding", _folding(fixed, shift[:, 2], score, alive))
    drop("crowded", _crowded(fixed, score, alive))
    if alive.sum() < FEWEST:
        dropped["too few left"] = int(alive.sum())
        return Consensus(landmarks.matcher, len(landmarks), None, None, dropped, (off_axis[0], off_axis[1]))
    in_frame = None
    if one_axis:
        in_frame = FrameLandmarks(
            torch.from_numpy(fixed[alive]), torch.from_numpy(shift[alive, 2]).float(),
            torch.from_numpy(score[alive]).float(),
        )  # fmt: skip
    return Consensus(
        landmarks.matcher, len(landmarks), landmarks.keep(alive), in_frame, dropped,
        (float(off_axis[0]), float(off_axis[1])),
    )  # fmt: skip


def _in_head(points: Array, grid: Grid, head: torch.Tensor) -> Flags:
    index = np.rint((points - np.asarray(grid.first_mm)) / np.asarray(grid.spacing_mm)).astype(int)
    inside = ((index >= 0) & (index < np.asarray(grid.shape))).all(axis=1)
    clipped = np.clip(index, 0, np.asarray(grid.shape) - 1)
    return np.asarray(head.cpu().numpy()[tuple(clipped.T)] & inside)


def _disagreeing(points: Array, shift: Array, alive: Flags) -> Flags:
    """Farther from the median of the nearest neighbours than max(2 mm, 3 robust SDs) in any axis."""
    bad = np.zeros(len(points), dtype=bool)
    where = np.flatnonzero(alive)
    if len(where) <= NEIGHBOURS:
        return bad
    near = cKDTree(points[where]).query(points[where], k=NEIGHBOURS + 1)[1][:, 1:]
    around = shift[where][near]
    median = np.median(around, axis=1)
    spread = 1.4826 * np.median(np.abs(around - median[:, None]), axis=1)
    bad[where] = (np.abs(shift[where] - median) > np.maximum(CONSENSUS_MM, 3 * spread)).any(axis=1)
    return bad


def _folding(points: Array, shift: Array, score: Array, alive: Flags) -> Flags:
    """The weaker of two neighbours whose shifts would swap their order along phase encode."""
    bad = np.zeros(len(points), dtype=bool)
    where = np.flatnonzero(alive)
    if len(where) < 2:
        return bad
    squeezed = points[where] * np.array([2.0, 2.0, 1.0])  # neighbours along the axis, not beside it
    for one, other in cKDTree(squeezed).query_pairs(CELL_MM):
        a, b = where[one], where[other]
        gap = points[b, 2] - points[a, 2]
        if abs(gap) > 1.0 and (shift[b] - shift[a]) / gap < FOLD_SLOPE:
            bad[a if score[a] < score[b] else b] = True
    return bad


def _crowded(points: Array, score: Array, alive: Flags) -> Flags:
    """All but the best few of each cell, so that edges do not outvote the middle."""
    bad = np.zeros(len(points), dtype=bool)
    where = np.flatnonzero(alive)
    if len(where) == 0:
        return bad
    cells = np.unique(np.floor(points[where] / CELL_MM), axis=0, return_inverse=True)[1].ravel()
    order = np.lexsort((-score[where], cells))
    rank = (
        np.arange(len(order))
        - np.concatenate([[0], np.flatnonzero(np.diff(cells[order])) + 1])[
            np.cumsum(np.concatenate([[0], (np.diff(cells[order]) != 0).astype(int)]))
        ]
    )
    bad[where[order[rank >= MOST_PER_CELL]]] = True
    return bad

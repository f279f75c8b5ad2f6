"""Which landmarks to believe, without knowing the answer: each filter in turn, and what it dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from correction.grid import Frame, Grid
from correction.landmarks import neighbourhood
from correction.landmarks.points import FrameLandmarks, Landmarks

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# lengths in mm; the order is that of the filters
OFF_AXIS_MM = 1.5
# A landmark from a slice has no shift across it, and one that was searched along phase encode has none at
# all: exact zeros say nothing about the images.
BY_CONSTRUCTION_MM = 1e-6
# from the median shift, or that many robust spreads where everything is shifted far: in a pelvis whole
# patches of texture match elsewhere, and their neighbours agree
BOUND_MM, BOUND_SPREADS = 20.0, 5.0
CONSENSUS_MM, CONSENSUS_SCATTERS = 2.0, 3.0
CELL_MM = 10.0
MOST_PER_CELL = 6
FEWEST = 30

# How much a whole set is believed: half at this common error, and in proportion where it leaves more than
# half of the head's larger cells empty.
TRUSTED_MM = 0.45
COVER_CELL_MM = 20.0
FULL_COVER = 0.5


@dataclass(frozen=True, slots=True)
class Consensus:
    """Landmarks that survived, and why the others did not.

    kept: in patient space; in_frame: the same as shifts along phase encode, None when there is no axis or
    too few were left (`dropped` then says so). off_axis_mm: median offset away from phase encode, in the
    frame's other two axes: above 1 mm the images are not rigidly aligned. common_error_mm: how far
    neighbours err together, None: unknown. trust: 0 … 1, the weight of the set that follows from it and
    from how much of the head the landmarks cover. weight_files: of the matcher, SHA-256 by name.
    """

    matcher: str
    found: int
    kept: Landmarks | None
    in_frame: FrameLandmarks | None
    dropped: dict[str, int]
    off_axis_mm: tuple[float, float]
    common_error_mm: float | None = None
    trust: float = 0.0
    weight_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return 0 if self.kept is None else len(self.kept)


def nobody() -> Consensus:
    """No landmarks were given."""
    return Consensus("none", 0, None, None, {}, (0.0, 0.0))


def agree(landmarks: Landmarks, frame: Frame, grid: Grid, head: torch.Tensor, one_axis: bool) -> Consensus:
    """Filter landmarks by head mask, off-axis offset, bound, neighbours and density.

    grid, head: the head mask (a, b, p) and where it lies in `frame`. one_axis: the field lies along the
    frame's last axis only; otherwise only mask, bound, neighbours and density are applied.
    """
    fixed = frame.points_from_lps(landmarks.fixed_mm)
    shift = frame.points_from_lps(landmarks.moving_mm) - fixed
    score = landmarks.confidence
    alive = _in_head(fixed, grid, head) & np.isfinite(shift).all(axis=1) & (score > 0)
    dropped = {"outside the head": int((~alive).sum())}
    seen = np.abs(shift[:, :2]) > BY_CONSTRUCTION_MM
    off_axis = [float(np.median(s)) if len(s := shift[alive & seen[:, k], k]) else 0.0 for k in (0, 1)]

    def drop(name: str, bad: Flags) -> None:
        nonlocal alive
        dropped[name] = int((alive & bad).sum())
        alive = alive & ~bad

    if one_axis:
        limit = max(OFF_AXIS_MM, max(frame.spacing_mm[:2]))
        away = seen & (np.abs(shift[:, :2] - off_axis) > limit)
        drop("off the phase-encode axis", np.asarray(away.any(axis=1)))
    drop("implausibly far", _far(shift, alive))
    lone = np.zeros(len(score), dtype=bool)
    for _ in range(2):
        lone |= _disagreeing(fixed, shift[:, 2:] if one_axis else shift, alive & ~lone)
    drop("against their neighbours", lone)
    error = _common_error(fixed[alive], shift[alive]) if one_axis else None
    drop("crowded", _crowded(fixed, score, alive))
    found = Consensus(
        landmarks.matcher, len(landmarks), None, None, dropped, (off_axis[0], off_axis[1]),
        error, weight_files=landmarks.weight_files,
    )  # fmt: skip
    if alive.sum() < FEWEST:
        dropped["too few left"] = int(alive.sum())
        return found
    trust = _trust(error, _covered(fixed[alive], grid, head))
    in_frame = None
    if one_axis:
        in_frame = FrameLandmarks(
            torch.from_numpy(fixed[alive]), torch.from_numpy(shift[alive, 2]).float(),
            torch.full((int(alive.sum()),), trust),
        )  # fmt: skip
    return replace(found, kept=landmarks.keep(alive), in_frame=in_frame, trust=trust)


def _trust(common_error_mm: float | None, covered: float) -> float:
    certain = 1.0 if common_error_mm is None else 1.0 / (1.0 + (common_error_mm / TRUSTED_MM) ** 4)
    return certain * min(1.0, covered / FULL_COVER)


def _covered(points: Array, grid: Grid, head: torch.Tensor) -> float:
    """Share of the head's cells that hold a landmark; cells with little head in them do not count."""
    first, spacing = np.asarray(grid.first_mm), np.asarray(grid.spacing_mm)
    voxels = np.argwhere(head.cpu().numpy()) * spacing + first
    cells, count = np.unique(np.floor(voxels / COVER_CELL_MM), axis=0, return_counts=True)
    full = {tuple(cell) for cell in cells[count * spacing.prod() > 0.5 * COVER_CELL_MM**3]}
    held = {tuple(cell) for cell in np.floor(points / COVER_CELL_MM)}
    return len(full & held) / len(full) if full else 0.0


def _common_error(points: Array, shift: Array) -> float | None:
    """The largest over the axes across phase encode."""
    found = []
    for axis in (0, 1):
        free = np.abs(shift[:, axis]) > BY_CONSTRUCTION_MM
        error = neighbourhood.common_error(points[free], shift[free, axis])
        found += [] if error is None else [error]
    return max(found, default=None)


def _in_head(points: Array, grid: Grid, head: torch.Tensor) -> Flags:
    index = np.rint((points - np.asarray(grid.first_mm)) / np.asarray(grid.spacing_mm)).astype(int)
    inside = ((index >= 0) & (index < np.asarray(grid.shape))).all(axis=1)
    clipped = np.clip(index, 0, np.asarray(grid.shape) - 1)
    return np.asarray(head.cpu().numpy()[tuple(clipped.T)] & inside)


def _far(shift: Array, alive: Flags) -> Flags:
    """Farther from the median than anything plausible, in any axis of shift (N, 3)."""
    if not alive.any():
        return np.zeros(len(shift), dtype=bool)
    away = np.abs(shift - np.median(shift[alive], axis=0))
    spread = 1.4826 * np.median(away[alive], axis=0)
    return np.asarray((away > np.maximum(BOUND_MM, BOUND_SPREADS * spread)).any(axis=1))


def _disagreeing(points: Array, shift: Array, alive: Flags) -> Flags:
    """Too far, in any axis of shift (N, axes), from what the neighbours predict there."""
    bad = np.zeros(len(points), dtype=bool)
    where = np.flatnonzero(alive)
    for along in shift[where].T:
        predicted, scatter = neighbourhood.planes(points[where], along)
        limit = np.maximum(CONSENSUS_MM, CONSENSUS_SCATTERS * scatter)
        bad[where] |= np.abs(along - predicted) > limit
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

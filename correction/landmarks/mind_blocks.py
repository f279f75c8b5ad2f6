"""Block matching on MIND-SSC: landmarks without a network and without weights.

The cost of every shift along phase encode is the mean MIND difference in a block; a point takes its best
shift, to a part of a voxel, where the search back from the b = 0 agrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from correction import preprocess, similarity, smooth
from correction.grid import Frame, Grid, resample
from correction.landmarks.points import Landmarks
from correction.volume import Volume

NAME = "mind-blocks"


@dataclass(frozen=True, slots=True)
class Blocks:
    """How blocks are matched; lengths in mm."""

    voxel_mm: float = 2.0
    reach_mm: float = 16.0  # to either side along phase encode
    block_mm: float = 7.0  # half edge
    every_mm: float = 6.0  # the most distinct point of each such cube becomes a landmark
    cycle_mm: float = 2.0  # forth and back may differ by this
    rival_mm: float = 5.0  # a second minimum nearer than this is the same one
    radius: int = 1  # of MIND, voxels
    dilation: int = 1
    mask_threshold: float = 0.12
    mask_closing_mm: float = 7.0
    shading_mm: float = 25.0
    log_offset: float = 0.1


def find(b0: Volume, reference: Volume, frame: Frame, blocks: Blocks | None = None) -> Landmarks:
    """Landmarks whose shifts lie along the frame's last axis (phase encode)."""
    blocks = blocks if blocks is not None else Blocks()
    full = frame.grid()
    ends = (full.last_mm(0), full.last_mm(1), full.last_mm(2))
    a, b, _ = frame.spacing_mm
    spacing = (max(blocks.voxel_mm, a), max(blocks.voxel_mm, b), blocks.voxel_mm)
    grid = Grid.between(full.first_mm, ends, spacing)
    fixed, head, seen = _described(reference, frame, grid, blocks)
    moving, _, _ = _described(b0, frame, grid, blocks)
    cost = _cost(fixed, moving, grid, blocks)
    shift, confidence = _best(cost, grid, blocks)
    confidence = confidence * (head & seen)
    points = _most_distinct(confidence, [max(1, round(blocks.every_mm / s)) for s in grid.spacing_mm])
    steps = torch.stack([grid.coordinates(k)[points[:, k]] for k in range(3)], dim=1)
    picked = tuple(points.T)
    moved = steps.clone()
    moved[:, 2] += shift[picked].double() * grid.spacing_mm[2]
    to_lps = frame.directions.T
    return Landmarks(
        steps.numpy() @ to_lps + frame.origin_lps,
        moved.numpy() @ to_lps + frame.origin_lps,
        confidence[picked].double().numpy(),
        NAME,
    )


def _described(volume: Volume, frame: Frame, grid: Grid, blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
    """MIND-SSC (12, A, B, P) of the debiased logarithm, the head and the field of view (A, B, P) bool."""
    image, seen = resample(Volume(volume.data.cpu(), volume.affine), frame, grid)
    image = image * seen
    head = preprocess.head_mask(image, grid.spacing_mm, blocks.mask_threshold, blocks.mask_closing_mm)
    flat = preprocess.debiased_log(image, head, grid.spacing_mm, blocks.shading_mm, blocks.log_offset)
    return similarity.mind_ssc(flat, blocks.radius, blocks.dilation), head, seen


def _cost(fixed: Tensor, moving: Tensor, grid: Grid, blocks: Blocks) -> Tensor:
    """(2R + 1, A, B, P): block mean of the squared difference of fixed(x) and moving(x + d), d in voxels."""
    reach = round(blocks.reach_mm / grid.spacing_mm[2])
    sigma = [blocks.block_mm / 2 / s for s in grid.spacing_mm]
    padded = functional.pad(moving[None], [reach, reach, 0, 0, 0, 0], mode="replicate")[0]
    size = fixed.shape[-1]
    return torch.stack(
        [
            smooth.gaussian(((fixed - padded[..., d : d + size]) ** 2).mean(0), sigma, truncate=2.0)
            for d in range(2 * reach + 1)
        ]
    )


def _best(cost: Tensor, grid: Grid, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Best shift in voxels and a confidence in [0, 1], 0 where forth and back disagree; (A, B, P) each."""
    count, size = cost.shape[0], cost.shape[-1]
    reach = count // 2
    lowest, best = cost.min(dim=0)
    inner = best.clamp(1, count - 2)
    below, at, above = (cost.gather(0, (inner + k)[None])[0] for k in (-1, 0, 1))
    bend = (below + above - 2 * at).clamp(min=1e-12)
    part = (0.5 * (below - above) / bend).clamp(-0.5, 0.5)
    # the same costs, seen from where each shift lands in the b = 0
    landed = cost.new_full(cost.shape, float("inf"))
    for label in range(count):
        d = label - reach
        low, high = max(0, d), min(size, size + d)
        landed[label, ..., low:high] = cost[label, ..., low - d : high - d]
    back = landed.argmin(dim=0)
    target = (torch.arange(size) + best - reach).clamp(0, size - 1)
    returns = (back.gather(-1, target) - best).abs() * grid.spacing_mm[2] <= blocks.cycle_mm
    labels = torch.arange(count).reshape(-1, 1, 1, 1)
    rivals = torch.where((labels - best).abs() * grid.spacing_mm[2] >= blocks.rival_mm, cost, torch.inf)
    distinct = 1.0 - lowest / rivals.min(dim=0).values.clamp(min=1e-12)
    inside = (best > 0) & (best < count - 1)
    return inner + part - reach, (distinct * returns * inside).clamp(0, 1)


def _most_distinct(confidence: Tensor, edges: list[int]) -> Tensor:
    """(N, 3) index of the most confident voxel of each block of `edges` voxels, where there is one."""
    highest, where = functional.max_pool3d(confidence[None, None], edges, ceil_mode=True, return_indices=True)
    flat = where[highest > 0]
    return torch.from_numpy(np.stack(np.unravel_index(flat.numpy(), confidence.shape), axis=1))

"""How well a field explains a pair of images, without knowing the true field.

All similarities are taken in one mask that is fixed before any field is tried (the reference's head inside
both fields of view), so that a field cannot improve its figures by moving the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from correction import estimate, preprocess, similarity, smooth
from correction.estimate import Candidate, Scene
from correction.grid import Frame, sample
from correction.landmarks import FrameLandmarks
from correction.methods import Clinical


@dataclass(frozen=True, slots=True)
class Signals:
    """What every candidate is compared by.

    agreement: correlation of the corrected, Jacobian-modulated b = 0 with what the reference predicts
    locally. structure: mean MIND difference of corrected b = 0 and reference (lower is better).
    """

    name: str
    agreement: float
    structure: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is looked at once more in the chosen field, and in none for comparison.

    edges: how parallel the gradients of both images run where either has one, 0 to 1. along_mm, across_mm:
    how far the median patch of the corrected b = 0 would still have to move along and across phase encode to
    look most like the reference; the first is what the correction left, the second what no distortion
    explains. far_fraction: share of the patches, by how clearly they say so, with more than FAR_MM to go
    along. landmarks_mm: median distance of the field from landmarks that had no part in it; landmarks_slope:
    by what part of the field they are shifted, 1 where it is right, less where it over-corrects; None where
    too little is moved to say.
    """

    edges: float
    along_mm: float
    across_mm: float
    far_fraction: float
    landmarks_mm: float | None
    landmarks_slope: float | None = None


class Judge:
    """Signals of any field on one scene; the reference's part is computed once."""

    def __init__(self, view: Scene, frame: Frame, settings: Clinical) -> None:
        self._view, self._frame, self._settings = view, frame, settings
        self._known: dict[Candidate, Signals] = {}
        self._weight = (view.reference_mask & view.seen).float()
        self._either = ((view.reference_mask | view.b0_mask) & view.seen).float()
        self._source = preprocess.debiased_log(
            view.reference,
            view.reference_mask,
            view.grid.spacing_mm,
            settings.shading_mm,
            settings.log_offset,
        )
        self._reference = similarity.mind_ssc(self._source, settings.mind_radius, settings.mind_dilation)
        steps = (torch.arange(n, device=view.b0.device).float() for n in view.grid.shape)
        self._index = torch.stack(torch.meshgrid(*steps, indexing="ij"))

    def signals(self, candidate: Candidate) -> Signals:
        """How well one candidate explains the images; asked twice of the same field, computed once."""
        if candidate not in self._known:
            self._known[candidate] = self._measured(candidate)
        return self._known[candidate]

    def inspect(self, candidate: Candidate, held_out: FrameLandmarks | None) -> Inspection:
        """The figures that cost too much for every candidate."""
        grid, settings = self._view.grid, self._settings
        warped, mask, jacobian, shift = self._warped(candidate)
        flat = preprocess.debiased_log(
            warped * jacobian, mask, grid.spacing_mm, settings.shading_mm, settings.log_offset
        )
        moved = estimate.descriptors(warped, mask, grid, settings)
        left = remaining(self._reference, moved, self._either, grid.spacing_mm)
        distance, slope = self._told_by(held_out, shift)
        return Inspection(
            edges=similarity.edge_agreement(self._source, flat, self._either, grid.spacing_mm),
            along_mm=left[2].median_mm,
            across_mm=max(left[0].median_mm, left[1].median_mm),
            far_fraction=left[2].far_fraction,
            landmarks_mm=distance,
            landmarks_slope=slope,
        )

    def _measured(self, candidate: Candidate) -> Signals:
        view = self._view
        warped, mask, jacobian, _ = self._warped(candidate)
        modulated = warped * jacobian
        a, b, p = (self._settings.synthesis_mm / s for s in view.grid.spacing_mm)
        predicted = similarity.local_synthesis(
            modulated, self._source, self._weight, self._settings.synthesis_bins, (a, b, p)
        )
        moved = estimate.descriptors(warped, mask, view.grid, self._settings)
        difference = ((self._reference - moved) ** 2).mean(0)
        return Signals(
            name=candidate.name,
            agreement=similarity.correlation(predicted, modulated, self._weight),
            structure=float((difference * self._either).sum() / self._either.sum().clamp(min=1)),
        )

    def _warped(self, candidate: Candidate) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The b = 0 pulled by the field, its mask, the Jacobian (at least 0), the shift (3, A, B, P) mm."""
        view = self._view
        vectors, jacobian = candidate.field.vectors(self._frame, view.grid)
        vectors = vectors.to(view.b0.device)
        spacing = torch.tensor(view.grid.spacing_mm, device=view.b0.device)[:, None, None, None]
        warped, mask = sample(torch.stack([view.b0, view.b0_mask.float()]), self._index + vectors / spacing)
        return warped, mask > 0.5, jacobian.to(view.b0.device).clamp(min=0), vectors

    def _told_by(self, landmarks: FrameLandmarks | None, shift: Tensor) -> tuple[float | None, float | None]:
        """Median |field − landmark| along phase encode, mm, and the slope of landmarks over field."""
        if landmarks is None or not len(landmarks.weight):
            return None, None
        grid = self._view.grid
        first, spacing = torch.tensor(grid.first_mm), torch.tensor(grid.spacing_mm)
        index = ((landmarks.fixed_mm.cpu().float() - first) / spacing).T.to(shift.device)
        field, told = sample(shift[2], index), landmarks.shift_mm.to(shift.device)
        return float((field - told).abs().median()), share_of_field(field, told)


LEAST_MOVED_MM = 1.0  # of a field, RMS, for its landmarks to tell whether it goes too far


def share_of_field(field: Tensor, told: Tensor) -> float | None:
    """The part of the field that landmarks were shifted by, both (N,) mm, robustly; None for a small field.

    Noise of the landmarks does not change it, a field that is too strong, noisy or wrong makes it smaller.
    """
    if float(field.square().mean().sqrt()) < LEAST_MOVED_MM:
        return None
    weight, found = torch.ones_like(field), 0.0
    for _ in range(10):
        found = float((weight * field * told).sum() / (weight * field.square()).sum())
        weight = 1.0 / (1.0 + ((told - found * field) / FAR_MM) ** 2) ** 2
    return found


REACH_MM = 6.0  # of the search for what is left
PATCH_MM = 6.0  # Gaussian that makes a patch; smaller ones lock to texture
STEP_MM = 4.0  # between the voxels that are compared
FAR_MM = 2.0  # one EPI voxel: what a reader would see


@dataclass(frozen=True, slots=True)
class Remaining:
    """How far patches would still move along one axis to look most like the reference."""

    median_mm: float
    far_fraction: float


def remaining(
    fixed: Tensor, moving: Tensor, weight: Tensor, spacing_mm: tuple[float, float, float]
) -> list[Remaining]:
    """What is left along each of the three axes, each searched by itself.

    fixed, moving: (12, A, B, P) MIND descriptors; weight: (A, B, P).
    """
    strides = [max(1, int(STEP_MM / s)) for s in spacing_mm]
    sigma = [PATCH_MM / (s * n) for s, n in zip(spacing_mm, strides, strict=True)]
    weight = _every(weight, strides)
    total = smooth.gaussian(weight, sigma).clamp(min=1e-3)
    fixed, inside = _every(fixed, strides), weight > 0.5
    found = []
    for axis in range(3):
        lines = _every(moving, [1 if other == axis else strides[other] for other in range(3)])
        size, reach = moving.shape[1 + axis], max(2, round(REACH_MM / spacing_mm[axis]))
        start = torch.arange(0, size, strides[axis], device=moving.device)
        costs = []
        for step in range(-reach, reach + 1):
            there = lines.index_select(1 + axis, (start + step).clamp(0, size - 1))
            difference = ((fixed - there) ** 2).mean(0) * weight
            costs.append((smooth.gaussian(difference, sigma) / total)[inside])
        found.append(_offsets(torch.stack(costs), spacing_mm[axis]))
    return found


def _every(volume: Tensor, strides: Sequence[int]) -> Tensor:
    """Every n-th voxel along each of the last three axes."""
    a, b, p = strides
    return volume[..., ::a, ::b, ::p].contiguous()


def _offsets(costs: Tensor, step_mm: float) -> Remaining:
    """Where the cost of each patch is least, by parabolas. costs: (2·reach + 1, N), one step_mm apart."""
    if costs.shape[1] == 0:
        return Remaining(0.0, 0.0)
    reach = costs.shape[0] // 2
    least = costs.argmin(0)
    middle = least.clamp(1, 2 * reach - 1)
    below, at, above = (costs.gather(0, (middle + k)[None])[0] for k in (-1, 0, 1))
    bow = (0.5 * (below - above) / (below - 2 * at + above).clamp(min=1e-9)).clamp(-1, 1)
    offset_mm = step_mm * (torch.where(least == middle, middle + bow, least.float()) - reach).abs()
    # a patch that looks the same everywhere says nothing
    clearness = 1.0 - costs.min(0).values / costs.mean(0).clamp(min=1e-12)
    far = (clearness * (offset_mm > FAR_MM)).sum() / clearness.sum().clamp(min=1e-12)
    return Remaining(float(offset_mm.median()), float(far))

"""The MIND cost of every shift along phase encode: the problem is stereo, one unknown per voxel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from correction import smooth
from correction.grid import Grid


@dataclass(frozen=True, slots=True)
class CostVolume:
    """Cost of shifting each voxel by each label.

    cost: (L, A, B, P), mean squared MIND difference over its weighted SD; labels_mm: first and step;
    weight: (A, B, P) ≥ 0; grid: where its voxels lie.
    """

    cost: Tensor
    first_mm: float
    step_mm: float
    weight: Tensor
    grid: Grid

    @property
    def labels_mm(self) -> Tensor:
        index = torch.arange(self.cost.shape[0], device=self.cost.device, dtype=self.cost.dtype)
        return self.first_mm + self.step_mm * index

    def at(self, shift_mm: Tensor) -> Tensor:
        """Cost of a shift per voxel, smooth in the shift (Catmull–Rom along the labels); both (A, B, P).

        Beyond the labels the cost of the last one is kept and grows with the square of the distance.
        """
        count = self.cost.shape[0]
        position = (shift_mm - self.first_mm) / self.step_mm
        held = position.clamp(1.0, count - 2.0 - 1e-4)
        first = held.detach().floor().long()
        t = held - first
        taps = [self.cost.gather(0, (first + k)[None])[0] for k in (-1, 0, 1, 2)]
        value = 0.5 * (
            2 * taps[1]
            + t * (taps[2] - taps[0])
            + t**2 * (2 * taps[0] - 5 * taps[1] + 4 * taps[2] - taps[3])
            + t**3 * (3 * taps[1] - taps[0] - 3 * taps[2] + taps[3])
        )
        return value + 0.05 * ((position - held) * self.step_mm) ** 2

    def mean(self, shift_mm: Tensor) -> Tensor:
        """Weighted mean cost of a shift field, in SDs of the cost."""
        return (self.at(shift_mm) * self.weight).sum() / self.weight.sum().clamp(min=1e-12)

    def whole(self) -> Tensor:
        """The one shift of everything that costs least, as a field (A, B, P) in mm."""
        total = (self.cost * self.weight).sum((1, 2, 3))
        return torch.full_like(self.weight, float(self.labels_mm[int(total.argmin())]))


def along_phase_encode(
    fixed: Tensor,
    moving: Tensor,
    weight: Tensor,
    grid: Grid,
    reach_mm: float,
    step_mm: float,
    aggregation_mm: float,
    pooling: tuple[int, int, int],
) -> CostVolume:
    """Descriptors of the reference against the shifted descriptors of the b = 0.

    fixed, moving: (K, A, B, P) on `grid`, phase encode last: cost(x, d) compares fixed(x) with
    moving(x + d). weight: (A, B, P). Labels −reach_mm … reach_mm by step_mm; each cost is aggregated by a
    Gaussian of aggregation_mm and pooled.
    """
    count = max(2, round(reach_mm / step_mm))
    sigma = [aggregation_mm / s for s in grid.spacing_mm]
    padded_by = int(count * step_mm / grid.spacing_mm[2]) + 2
    padded = torch.nn.functional.pad(moving[None], [padded_by, padded_by, 0, 0, 0, 0], mode="replicate")[0]
    layers = []
    for label in range(-count, count + 1):
        offset = label * step_mm / grid.spacing_mm[2]
        whole = int(torch.tensor(offset).floor())
        part = offset - whole
        start = padded_by + whole
        shifted = padded[..., start : start + fixed.shape[-1]]
        if part > 1e-6:
            shifted = torch.lerp(shifted, padded[..., start + 1 : start + 1 + fixed.shape[-1]], part)
        difference = ((fixed - shifted) ** 2).mean(0)
        layers.append(smooth.pool(smooth.gaussian(difference, sigma), pooling))
    cost = torch.stack(layers)
    pooled_weight = smooth.pool(weight, pooling)
    return CostVolume(
        _standardised(cost, pooled_weight), -count * step_mm, step_mm, pooled_weight, grid.pooled(pooling)
    )


def _standardised(cost: Tensor, weight: Tensor) -> Tensor:
    """Cost over its weighted SD, so that weights of other terms mean the same for every image pair."""
    total = weight.sum().clamp(min=1e-12) * cost.shape[0]
    mean = (cost * weight).sum() / total
    spread = torch.sqrt((((cost - mean) ** 2) * weight).sum() / total)
    return cost / spread.clamp(min=1e-12)

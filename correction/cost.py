"""The MIND cost of every shift along phase encode: the problem is stereo, one unknown per voxel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from correction import parallel, smooth
from correction.grid import Grid

_BEYOND = 0.05  # cost per mm² of a shift beyond the labels


@dataclass(frozen=True, slots=True)
class CostVolume:
    """Cost of shifting each voxel by each label.

    cost: (L, A, B, P), mean squared MIND difference over its weighted SD; labels_mm: first and step;
    weight: (A, B, P) ≥ 0; grid: where its voxels lie. around_mm: (A, B, P), the shift that the labels are
    counted from, or None for zero.
    """

    cost: Tensor
    first_mm: float
    step_mm: float
    weight: Tensor
    grid: Grid
    around_mm: Tensor | None = None

    @property
    def labels_mm(self) -> Tensor:
        index = torch.arange(self.cost.shape[0], device=self.cost.device, dtype=self.cost.dtype)
        return self.first_mm + self.step_mm * index

    def at(self, shift_mm: Tensor) -> Tensor:
        """Cost of a shift per voxel, smooth in the shift (Catmull–Rom along the labels); both (A, B, P).

        Beyond the labels the cost of the last one is kept and grows with the square of the distance.
        """
        out: Tensor = _CatmullRom.apply(self, shift_mm)  # type: ignore[no-untyped-call]
        return out

    def _with_slope(self, shift_mm: Tensor) -> tuple[Tensor, Tensor]:
        """The cost and its derivative by the shift, per mm; both (A, B, P)."""
        count = self.cost.shape[0]
        label_mm = shift_mm if self.around_mm is None else shift_mm - self.around_mm
        position = (label_mm - self.first_mm) / self.step_mm
        held = position.clamp(1.0, count - 2.0 - 1e-4)
        first = held.floor().long()
        t = held - first
        before, here, after, beyond = (self.cost.gather(0, (first + k)[None])[0] for k in (-1, 0, 1, 2))
        linear, square = after - before, 2 * before - 5 * here + 4 * after - beyond
        cube = 3 * (here - after) + beyond - before
        outside = (position - held) * self.step_mm
        value = here + 0.5 * t * (linear + t * (square + t * cube)) + _BEYOND * outside**2
        slope = 0.5 * (linear + t * (2 * square + 3 * t * cube)) / self.step_mm
        return value, torch.where(held == position, slope, 2 * _BEYOND * outside)

    def mean(self, shift_mm: Tensor) -> Tensor:
        """Weighted mean cost of a shift field, in SDs of the cost."""
        return (self.at(shift_mm) * self.weight).sum() / self.weight.sum().clamp(min=1e-12)

    def whole(self) -> Tensor:
        """The one shift of everything that costs least, as a field (A, B, P) in mm."""
        total = (self.cost * self.weight).sum((1, 2, 3))
        return torch.full_like(self.weight, float(self.labels_mm[int(total.argmin())]))


class _CatmullRom(torch.autograd.Function):
    """CostVolume.at: its slope is as cheap as its value, and thirty small steps back are not."""

    @staticmethod
    def forward(ctx: Any, volume: CostVolume, shift_mm: Tensor) -> Tensor:
        value, slope = volume._with_slope(shift_mm)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor]:
        (slope,) = ctx.saved_tensors
        return None, upstream * slope


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
    count = _labels_to_a_side(reach_mm, step_mm)
    padded_by = int(count * step_mm / grid.spacing_mm[2]) + 2
    padded = torch.nn.functional.pad(moving[None], [padded_by, padded_by, 0, 0, 0, 0], mode="replicate")[0]

    def shifted(label_mm: float) -> Tensor:
        offset = label_mm / grid.spacing_mm[2]
        whole = math.floor(offset)
        part = offset - whole
        start = padded_by + whole
        here = padded[..., start : start + fixed.shape[-1]]
        if part <= 1e-6:
            return here
        return torch.lerp(here, padded[..., start + 1 : start + 1 + fixed.shape[-1]], part)

    return _tabulated(fixed, shifted, weight, grid, count, step_mm, aggregation_mm, pooling)


def near(
    fixed: Tensor,
    moving: Callable[[Tensor], Tensor],
    shift_mm: Tensor,
    weight: Tensor,
    grid: Grid,
    reach_mm: float,
    step_mm: float,
    aggregation_mm: float,
    pooling: tuple[int, int, int],
) -> CostVolume:
    """The costs close to a shift that is known already; the arguments are as in `along_phase_encode`, but:

    shift_mm: (A, B, P) on `grid`; labels add to it. moving: the descriptors (K, A, B, P) of the b = 0 pulled
    by a shift. They are of an image that is stretched back already, and neighbours that are averaged may
    move differently: both matter where the field is steep.
    """
    count = _labels_to_a_side(reach_mm, step_mm)
    table = _tabulated(
        fixed, lambda label_mm: moving(shift_mm + label_mm), weight, grid, count, step_mm, aggregation_mm,
        pooling,
    )  # fmt: skip
    return replace(table, around_mm=smooth.pool(shift_mm, pooling))


def _labels_to_a_side(reach_mm: float, step_mm: float) -> int:
    return max(2, round(reach_mm / step_mm))


def _tabulated(
    fixed: Tensor, moving: Callable[[float], Tensor], weight: Tensor, grid: Grid, count: int, step_mm: float,
    aggregation_mm: float, pooling: tuple[int, int, int],
) -> CostVolume:  # fmt: skip
    """Costs of −count … count steps; moving: descriptors of the b = 0 shifted by a label in mm."""
    sigma = [aggregation_mm / s for s in grid.spacing_mm]

    def layer(label: int) -> Tensor:
        difference = ((fixed - moving(label * step_mm)) ** 2).mean(0)
        return smooth.pool(smooth.gaussian(difference, sigma), pooling)

    cost = torch.stack(parallel.each(layer, range(-count, count + 1), fixed.device))
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

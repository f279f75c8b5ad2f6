"""Separable smoothing and pooling of volumes, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def gaussian(volume: Tensor, sigma_voxels: Sequence[float], truncate: float = 3.0) -> Tensor:
    """Gaussian smoothing with the edge voxels repeated outside.

    volume: (..., A, B, C), any unit. sigma_voxels: one standard deviation per axis A, B, C, in voxels;
    an axis with less than a tenth of a voxel is left as it is. Returns the same shape.
    """
    for axis, sigma in enumerate(sigma_voxels):
        if sigma < 0.1:
            continue
        radius = max(1, round(truncate * sigma))
        offsets = torch.arange(-radius, radius + 1, dtype=volume.dtype, device=volume.device)
        weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
        volume = _along(volume, weights / weights.sum(), axis)
    return volume


def box(volume: Tensor, radius: int) -> Tensor:
    """Mean over a cube of 2·radius + 1 voxels, edge voxels repeated outside. volume: (..., A, B, C)."""
    if radius == 0:
        return volume
    shape = volume.shape
    padded = functional.pad(volume.reshape(-1, 1, *shape[-3:]), [radius] * 6, mode="replicate")
    return functional.avg_pool3d(padded, 2 * radius + 1, stride=1).reshape(shape)


def pool(volume: Tensor, factors: Sequence[int]) -> Tensor:
    """Mean over blocks of `factors` voxels; voxels that fill no whole block are dropped. (..., A, B, C)."""
    shape = volume.shape
    pooled = functional.avg_pool3d(volume.reshape(-1, 1, *shape[-3:]), tuple(factors))
    return pooled.reshape(*shape[:-3], *pooled.shape[-3:])


def _along(volume: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Correlate the last-but-(2−axis) dimension of (..., A, B, C) with `weights` (odd length)."""
    shape = volume.shape
    radius = len(weights) // 2
    padding = [0, 0, 0, 0, 0, 0]
    padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
    kernel_shape = [1, 1, 1, 1, 1]
    kernel_shape[2 + axis] = len(weights)
    padded = functional.pad(volume.reshape(-1, 1, *shape[-3:]), padding, mode="replicate")
    return functional.conv3d(padded, weights.reshape(kernel_shape)).reshape(shape)

"""Applying a displacement field: warp and Jacobian. Estimation is elsewhere; here only the field counts."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from correction.errors import ShapeError
from correction.volume import Volume

# Less than this many voxels along an axis everywhere is rounding, and the axis is not resampled.
_STILL_VOXELS = 1e-3


def warp(volume: Volume, displacement_mm: Tensor) -> Volume:
    """corrected(x) = volume(x + u(x)), by cubic B-spline interpolation, never beyond the voxels around.

    Linear interpolation halfway between two voxels is their mean: a small bright lesion would lose a fifth of
    its signal. The spline (Unser 1999) keeps it; it is held between the least and the greatest of the voxels
    that enclose the point, so that it neither rings nor turns negative. An axis along which nothing moves is
    left as it is: a phase-encode displacement blurs across phase encode not at all.

    displacement_mm: (3, Z, Y, X), patient LPS mm, on the volume's grid. Points outside the volume's outer
    voxel faces become 0, as ITK and ANTs do. Raises ShapeError when the grids differ.
    """
    if tuple(displacement_mm.shape) != (3, *volume.shape):
        raise ShapeError(
            f"displacement {tuple(displacement_mm.shape)} does not match a volume of {(3, *volume.shape)}"
        )
    data = volume.data.to(displacement_mm.device, torch.float32).contiguous()
    to_xyz = torch.from_numpy(np.linalg.inv(volume.affine[:3, :3])).to(displacement_mm)
    shift = torch.einsum("ij,j...->i...", to_xyz, displacement_mm).flip(0)  # voxels along Z, Y, X
    inside = torch.ones(volume.shape, dtype=torch.bool, device=data.device)
    places, moved = [], []
    for axis, size in enumerate(volume.shape):
        steps = torch.arange(size, device=data.device).reshape([-1 if k == axis else 1 for k in range(3)])
        if size == 1 or float(shift[axis].abs().max()) < _STILL_VOXELS:
            # one slice has no neighbours to move to, but can be left
            inside &= shift[axis].abs() <= 0.5
            places.append(steps)
            continue
        index = steps + shift[axis]
        inside &= (index >= -0.5) & (index <= size - 0.5)
        places.append(index.clamp(0, size - 1))
        moved.append(axis)
    return volume.with_data((_interpolated(data, places, moved) * inside).to(volume.data.device))


def _interpolated(data: Tensor, places: list[Tensor], moved: list[int]) -> Tensor:
    """(Z, Y, X) at `places`: per axis the index, whole numbers along all axes but the `moved` ones.

    data: contiguous. What is not finite stays in its own cells: a spline would carry it along whole lines.
    """
    coefficients = torch.where(data.isfinite(), data, 0.0)
    for axis in moved:
        coefficients = _coefficients(coefficients, axis)
    still = sum(
        (places[axis] * data.stride(axis) for axis in range(3) if axis not in moved),
        torch.zeros(1, dtype=torch.int64, device=data.device),
    )
    taps = {axis: _taps(places[axis], data.shape[axis], data.stride(axis)) for axis in moved}
    value = torch.zeros_like(data)
    least, most = torch.full_like(data, torch.inf), torch.full_like(data, -torch.inf)
    for which in product(range(4), repeat=len(moved)):
        offset, weight = still, torch.ones((), device=data.device)
        for axis, tap in zip(moved, which, strict=True):
            offset = offset + taps[axis][0][tap]
            weight = weight * taps[axis][1][tap]
        offset = offset.expand(data.shape)
        value += weight * torch.take(coefficients, offset)
        if all(tap in (1, 2) for tap in which):  # the voxels that enclose the point
            around = torch.take(data, offset)
            least, most = torch.minimum(least, around), torch.maximum(most, around)
    return torch.minimum(torch.maximum(value, least), most)


def _coefficients(data: Tensor, axis: int) -> Tensor:
    """Cubic B-spline coefficients along one axis whose spline passes through `data`; mirrored at the ends."""
    size = data.shape[axis]
    basis = torch.eye(size, dtype=torch.float64) * (4 / 6)
    beside = torch.arange(size - 1)
    basis[beside, beside + 1] = basis[beside + 1, beside] = 1 / 6
    basis[0, 1] = basis[-1, -2] = 2 / 6
    inverse = torch.linalg.inv(basis).to(data)
    return torch.movedim(torch.tensordot(inverse, data, dims=([1], [axis])), 0, axis).contiguous()


def _taps(index: Tensor, size: int, stride: int) -> tuple[list[Tensor], list[Tensor]]:
    """Memory offsets and weights of the four coefficients around each index."""
    base = index.floor().clamp(max=size - 2).long()
    t = index - base
    weights = [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * (t**2 - t**3 + t) + 1) / 6, t**3 / 6]
    mirrored = [(size - 1 - (size - 1 - (base + k).abs()).abs()) * stride for k in (-1, 0, 1, 2)]
    return mirrored, weights

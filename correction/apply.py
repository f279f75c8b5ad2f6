"""Applying a displacement field: warp and Jacobian. Estimation is elsewhere; here only the field counts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from correction.errors import ShapeError
from correction.grid import sample
from correction.volume import Volume


def warp(volume: Volume, displacement_mm: Tensor) -> Volume:
    """corrected(x) = volume(x + u(x)), trilinear.

    displacement_mm: (3, Z, Y, X), patient LPS mm, on the volume's grid. Points outside the volume's outer
    voxel faces become 0, as ITK and ANTs do. Raises ShapeError when the grids differ.
    """
    if tuple(displacement_mm.shape) != (3, *volume.shape):
        raise ShapeError(
            f"displacement {tuple(displacement_mm.shape)} does not match a volume of {(3, *volume.shape)}"
        )
    data = volume.data.to(displacement_mm.device, torch.float32)
    to_xyz = torch.from_numpy(np.linalg.inv(volume.affine[:3, :3])).to(displacement_mm)
    shift = torch.einsum("ij,j...->i...", to_xyz, displacement_mm)  # voxels along x, y, z
    index = torch.stack([shift[2], shift[1], shift[0]])
    inside = torch.ones(volume.shape, dtype=torch.bool, device=data.device)
    for axis, size in enumerate(volume.shape):
        steps = torch.arange(size, device=data.device, dtype=index.dtype)
        index[axis] += steps.reshape([-1 if k == axis else 1 for k in range(3)])
        inside &= (index[axis] >= -0.5) & (index[axis] <= size - 0.5)
    return volume.with_data((sample(data, index) * inside).to(volume.data.device))

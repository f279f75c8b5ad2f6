"""The frame and the grids in which a field is estimated.

Estimation runs in a frame tied to the voxel axes of one image, in millimetres from the centre of its
first voxel. Along phase encode the shift is one number per voxel, so the axes are ordered with phase
encode last: (a, b, p). Everything is then the same code for i, j and k, and for any orientation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from correction import smooth
from correction.errors import SettingsError
from correction.volume import Volume

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
AXIS_OF_LETTER = {"i": 2, "j": 1, "k": 0}  # dimension of a (Z, Y, X) tensor


@dataclass(frozen=True, slots=True)
class Frame:
    """Millimetres along the voxel axes of an image, in the order `order`.

    origin_lps: patient position of the centre of voxel 0. directions: (3, 3), column a is the patient
    LPS unit vector of frame axis a. order: frame axis a is dimension order[a] of the image's (Z, Y, X)
    tensor. spacing_mm, shape: of that image, in frame order.
    """

    origin_lps: npt.NDArray[np.float64]
    directions: npt.NDArray[np.float64]
    order: tuple[int, int, int]
    spacing_mm: Triple
    shape: Shape

    @classmethod
    def of(cls, volume: Volume, phase_encoding: str | None) -> Frame:
        """The frame of `volume` with the phase-encode axis last; (z, y, x) when there is none.

        Raises SettingsError for anything but i, j, k, with or without '-'.
        """
        order = (0, 1, 2)
        if phase_encoding is not None:
            letter = phase_encoding.rstrip("-")
            if letter not in AXIS_OF_LETTER or len(phase_encoding) > 2:
                raise SettingsError(
                    f"phase_encoding must be i, i-, j, j-, k, k- or none, not {phase_encoding!r}"
                )
            last = AXIS_OF_LETTER[letter]
            first, second = (axis for axis in (0, 1, 2) if axis != last)
            order = (first, second, last)
        spacing_zyx = volume.spacing_mm[::-1]
        directions = volume.axes[:, ::-1]
        return cls(
            origin_lps=volume.affine[:3, 3].copy(),
            directions=directions[:, list(order)].copy(),
            order=order,
            spacing_mm=(spacing_zyx[order[0]], spacing_zyx[order[1]], spacing_zyx[order[2]]),
            shape=(volume.shape[order[0]], volume.shape[order[1]], volume.shape[order[2]]),
        )

    def grid(self) -> Grid:
        """The image's own voxels."""
        return Grid((0.0, 0.0, 0.0), self.spacing_mm, self.shape)

    def to_frame(self, tensor: Tensor) -> Tensor:
        """(..., Z, Y, X) → (..., a, b, p)."""
        lead = tensor.ndim - 3
        return tensor.permute(*range(lead), *(lead + axis for axis in self.order))

    def to_image(self, tensor: Tensor) -> Tensor:
        """(..., a, b, p) → (..., Z, Y, X)."""
        lead = tensor.ndim - 3
        inverse = [self.order.index(axis) for axis in range(3)]
        return tensor.permute(*range(lead), *(lead + axis for axis in inverse))

    def points_from_lps(self, points_lps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(N, 3) patient LPS mm → (N, 3) frame mm."""
        return np.asarray(
            np.linalg.solve(self.directions, (points_lps - self.origin_lps).T).T, dtype=np.float64
        )


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular grid along the axes of a Frame; voxel centres at first_mm + index · spacing_mm."""

    first_mm: Triple
    spacing_mm: Triple
    shape: Shape

    def coordinates(self, axis: int, device: torch.device | str = "cpu") -> Tensor:
        """Positions of the voxel centres along one frame axis, mm, float64."""
        index = torch.arange(self.shape[axis], dtype=torch.float64, device=device)
        return self.first_mm[axis] + self.spacing_mm[axis] * index

    def last_mm(self, axis: int) -> float:
        return self.first_mm[axis] + self.spacing_mm[axis] * (self.shape[axis] - 1)

    @classmethod
    def between(cls, low_mm: Triple, high_mm: Triple, spacing_mm: Triple) -> Grid:
        """The smallest grid of that spacing, centred on the box, whose voxels reach the box's faces."""
        shape = tuple(
            max(2, int(np.ceil((h - lo) / s)) + 1)
            for lo, h, s in zip(low_mm, high_mm, spacing_mm, strict=True)
        )
        first = tuple(
            (lo + h - s * (n - 1)) / 2 for lo, h, s, n in zip(low_mm, high_mm, spacing_mm, shape, strict=True)
        )
        return cls((first[0], first[1], first[2]), spacing_mm, (shape[0], shape[1], shape[2]))

    def pooled(self, factors: tuple[int, int, int]) -> Grid:
        """The grid of smooth.pool(): centres of blocks of `factors` voxels."""
        a, b, p = (
            (
                self.first_mm[i] + self.spacing_mm[i] * (factors[i] - 1) / 2,
                self.spacing_mm[i] * factors[i],
                self.shape[i] // factors[i],
            )
            for i in range(3)
        )
        return Grid((a[0], b[0], p[0]), (a[1], b[1], p[1]), (a[2], b[2], p[2]))


def index_map(
    source: Volume, frame: Frame, grid: Grid
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Grid index (a, b, p) → source voxel index (z, y, x), as matrix (3, 3) and offset (3,)."""
    to_xyz = np.linalg.inv(source.affine[:3, :3])
    matrix = to_xyz @ frame.directions @ np.diag(grid.spacing_mm)
    first = frame.directions @ np.asarray(grid.first_mm) + frame.origin_lps - source.affine[:3, 3]
    return matrix[::-1].copy(), (to_xyz @ first)[::-1].copy()


def resample(source: Volume, frame: Frame, grid: Grid) -> tuple[Tensor, Tensor]:
    """`source` on a grid of another image's frame: trilinear, smoothed first where the grid is coarser.

    Returns the image (a, b, p), source intensities, the edge repeated outside; and a mask (a, b, p) of
    the points that lie inside the source's field of view (to the outer faces of its voxels).
    """
    matrix, offset = index_map(source, frame, grid)
    # resolution that the grid asks of each source axis, in source voxels; FWHM → standard deviation
    wanted = np.sqrt((matrix**2).sum(axis=1))
    sigma = [0.425 * float(np.sqrt(max(0.0, w * w - 1.0))) for w in wanted]
    data = smooth.gaussian(source.data, sigma)
    index = _grid_indices(matrix, offset, grid.shape, data.device)
    inside = torch.ones(grid.shape, dtype=torch.bool, device=data.device)
    for axis, size in enumerate(data.shape):
        inside &= (index[axis] >= -0.5) & (index[axis] <= size - 0.5)
    return sample(data, index), inside


def sample(data: Tensor, index: Tensor) -> Tensor:
    """Trilinear interpolation, the edge repeated outside.

    data: (Z, Y, X) or (C, Z, Y, X). index: (3, ...), voxel index along Z, Y, X. Returns (...) or (C, ...).
    """
    channels = data if data.ndim == 4 else data[None]
    sizes = channels.shape[-3:]
    points = [2.0 * index[a] / max(1, sizes[a] - 1) - 1.0 for a in (2, 1, 0)]
    points = [p if sizes[a] > 1 else torch.zeros_like(p) for p, a in zip(points, (2, 1, 0), strict=True)]
    positions = torch.stack(points, dim=-1).to(channels.dtype)
    shape = positions.shape[:-1]
    out = functional.grid_sample(
        channels[None],
        positions.reshape(1, -1, 1, 1, 3),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    ).reshape(channels.shape[0], *shape)
    return out if data.ndim == 4 else out[0]


def _grid_indices(
    matrix: npt.NDArray[np.float64], offset: npt.NDArray[np.float64], shape: Shape, device: torch.device
) -> Tensor:
    """(3, a, b, p) float32 source indices of all grid points."""
    steps = [torch.arange(n, dtype=torch.float64, device=device) for n in shape]
    rows = []
    for row in range(3):
        along = [steps[a] * float(matrix[row, a]) for a in range(3)]
        total = along[0][:, None, None] + along[1][None, :, None] + along[2][None, None, :]
        rows.append((total + float(offset[row])).float())
    return torch.stack(rows)

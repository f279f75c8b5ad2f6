"""Uniform cubic B-splines on a lattice of control points: values, analytic derivatives, bending energy.

Displacements, not positions, are the coefficients, so that zero is the identity (Rueckert 1999). The
tensor product is evaluated by one small matrix per axis, which covers any sampling, on the lattice's
grid or off it; scattered points use the 4 × 4 × 4 taps around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from correction.grid import Grid, Triple

# powers of t (rows: 1, t, t², t³) of the four cubic B-spline pieces that overlap one interval
_PIECES = np.array([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]) / 6.0


@dataclass(frozen=True, slots=True)
class Lattice:
    """Control points over a box with full spline support everywhere inside.

    low_mm: lower face of the box in frame mm. spacing_mm: distance of control points. intervals: number
    of spline pieces per axis; there are intervals + 3 control points, the first one spacing before the box.
    """

    low_mm: Triple
    spacing_mm: Triple
    intervals: tuple[int, int, int]

    @classmethod
    def over(cls, grid: Grid, spacing_mm: float | Triple) -> Lattice:
        """The lattice that covers the voxel centres of a grid, with the slack shared by both ends."""
        spacing = (spacing_mm,) * 3 if isinstance(spacing_mm, float | int) else spacing_mm
        low, counts = [], []
        for axis in range(3):
            extent = grid.last_mm(axis) - grid.first_mm[axis]
            count = max(1, int(np.ceil(extent / spacing[axis] - 1e-9)))
            counts.append(count)
            low.append(grid.first_mm[axis] - (count * spacing[axis] - extent) / 2)
        return cls(
            (low[0], low[1], low[2]),
            (float(spacing[0]), float(spacing[1]), float(spacing[2])),
            (counts[0], counts[1], counts[2]),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Control points per axis."""
        a, b, p = self.intervals
        return a + 3, b + 3, p + 3

    def axis_positions(self, axis: int, device: torch.device | str = "cpu") -> Tensor:
        """Frame mm of the control points along one axis, float64."""
        steps = torch.arange(self.shape[axis], dtype=torch.float64, device=device) - 1
        return self.low_mm[axis] + self.spacing_mm[axis] * steps

    def control_positions(self) -> Tensor:
        """(3, a, b, p) frame mm of every control point, float64."""
        axes = [self.axis_positions(axis) for axis in range(3)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))

    def taps(self, coordinates_mm: Tensor, axis: int, derivative: int = 0) -> tuple[Tensor, Tensor]:
        """First control point and the four weights at each coordinate.

        coordinates_mm: (N,). Returns (N,) int64 and (N, 4) in mm^−derivative. Beyond the box the value
        at its face is kept, so that derivatives there are zero.
        """
        t = (coordinates_mm.double() - self.low_mm[axis]) / self.spacing_mm[axis]
        inside = (t >= -1e-9) & (t <= self.intervals[axis] + 1e-9)
        t = t.clamp(0.0, float(self.intervals[axis]))
        first = t.floor().clamp(max=self.intervals[axis] - 1)
        t = t - first
        pieces = torch.from_numpy(_PIECES).to(t.device)
        factor = [[1, 1, 1, 1], [0, 1, 2, 3], [0, 0, 2, 6]][derivative]
        powers = [
            factor[k] * t ** max(0, k - derivative) if k >= derivative else torch.zeros_like(t)
            for k in range(4)
        ]
        weights = torch.stack(powers, dim=1) @ pieces / self.spacing_mm[axis] ** derivative
        if derivative:
            weights = weights * inside[:, None]
        return first.long(), weights

    def axis_matrix(self, coordinates_mm: Tensor, axis: int, derivative: int = 0) -> Tensor:
        """(N, control points) float32: rows give the value or derivative at each coordinate."""
        first, weights = self.taps(coordinates_mm, axis, derivative)
        matrix = torch.zeros(len(first), self.shape[axis], dtype=torch.float64, device=weights.device)
        columns = first[:, None] + torch.arange(4, device=weights.device)
        matrix.scatter_(1, columns, weights)
        return matrix.float()


def grid_matrices(
    lattice: Lattice, grid: Grid, derivative: Triple | tuple[int, int, int] = (0, 0, 0), device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """The three axis matrices that evaluate a lattice on a grid; derivative: order per axis."""
    a, b, p = (
        lattice.axis_matrix(grid.coordinates(axis, device), axis, int(derivative[axis])) for axis in range(3)
    )
    return a, b, p


def evaluate(coefficients: Tensor, matrices: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Dense values: coefficients (..., nA, nB, nP), matrices (A, nA), (B, nB), (P, nP) → (..., A, B, P)."""
    a, b, p = matrices
    out = coefficients @ p.T
    out = b @ out
    lead = out.shape[:-3]
    flat = out.reshape(*lead, out.shape[-3], -1)
    return (a @ flat).reshape(*lead, a.shape[0], b.shape[0], p.shape[0])


@dataclass(frozen=True, slots=True)
class PointTaps:
    """The 64 control points and weights of each of N scattered points; see `at_points`."""

    index: Tensor  # (N, 64) into the flattened lattice
    weight: Tensor  # (N, 64)


def point_taps(lattice: Lattice, points_mm: Tensor, derivative: Sequence[int] = (0, 0, 0)) -> PointTaps:
    """points_mm: (N, 3) frame mm. derivative: order per axis."""
    firsts, weights = zip(*(lattice.taps(points_mm[:, k], k, derivative[k]) for k in range(3)), strict=True)
    step = torch.arange(4, device=points_mm.device)
    ia, ib, ip = (first[:, None] + step for first in firsts)
    _, nb, np_ = lattice.shape
    index = (ia[:, :, None, None] * nb + ib[:, None, :, None]) * np_ + ip[:, None, None, :]
    wa, wb, wp = weights
    weight = wa[:, :, None, None] * wb[:, None, :, None] * wp[:, None, None, :]
    return PointTaps(index.reshape(len(points_mm), 64), weight.reshape(len(points_mm), 64).float())


def at_points(coefficients: Tensor, taps: PointTaps) -> Tensor:
    """(nA, nB, nP) or (C, nA, nB, nP) coefficients → (N,) or (C, N) values."""
    flat = coefficients.reshape(*coefficients.shape[:-3], -1)
    return (flat[..., taps.index] * taps.weight).sum(-1)


def with_gradients(coefficients: Tensor, lattice: Lattice, points_mm: Tensor) -> tuple[Tensor, Tensor]:
    """Values and first derivatives at scattered points, the taps gathered once.

    coefficients: (C, nA, nB, nP). points_mm: (N, 3). Returns (C, N) and (N, C, 3), the last per frame axis.
    """
    both = [[lattice.taps(points_mm[:, k], k, order) for order in (0, 1)] for k in range(3)]
    step = torch.arange(4, device=points_mm.device)
    ia, ib, ip = (axis[0][0][:, None] + step for axis in both)
    _, nb, np_ = lattice.shape
    index = (ia[:, :, None, None] * nb + ib[:, None, :, None]) * np_ + ip[:, None, None, :]
    wa, wb, wp = (torch.stack([axis[0][1], axis[1][1]], dim=-1).float() for axis in both)  # (N, 4, 2)
    count, components = len(points_mm), coefficients.shape[0]
    patch = coefficients.reshape(components, -1)[:, index.reshape(count, 16, 4)]
    along_p = patch @ wp  # (C, N, 16, 2): value and slope along p
    along_b = along_p.reshape(components, count, 4, 4, 2)
    plain, sloped_b = (torch.einsum("cnab,nb->cna", along_b[..., 0], wb[..., order]) for order in (0, 1))
    sloped_p = torch.einsum("cnab,nb->cna", along_b[..., 1], wb[..., 0])
    value = (plain * wa[..., 0]).sum(-1)
    gradient = [
        (plain * wa[..., 1]).sum(-1),
        (sloped_b * wa[..., 0]).sum(-1),
        (sloped_p * wa[..., 0]).sum(-1),
    ]
    return value, torch.stack(gradient, dim=-1).transpose(0, 1)


def fit(lattice: Lattice, grid: Grid, values: Tensor) -> Tensor:
    """Least-squares coefficients of dense values (A, B, P) on a grid that samples every lattice interval."""
    out = values
    for axis in range(3):
        matrix = lattice.axis_matrix(grid.coordinates(axis, values.device), axis).double()
        n = matrix.shape[1]
        # a whisper of second-difference smoothing decides what too few samples leave open
        second = torch.diff(torch.eye(n, dtype=torch.float64, device=values.device), n=2, dim=0)
        normal = matrix.T @ matrix + 1e-6 * second.T @ second + 1e-9 * torch.eye(n, device=values.device)
        solve = torch.linalg.solve(normal, matrix.T).float()
        out = torch.movedim(torch.tensordot(solve, torch.movedim(out, axis, 0), dims=1), 0, axis)
    return out.contiguous()


def grams(lattice: Lattice, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """∫ b_i⁽ʳ⁾ b_j⁽ʳ⁾ over the box for r = 0, 1, 2: (n, n) each, mm^(1 − 2r), float64.

    Exact: products of cubics have degree six, which four Gauss points integrate. Interior rows are the
    bands of Shackleford 2012.
    """
    nodes, weights = np.polynomial.legendre.leggauss(4)
    starts = lattice.low_mm[axis] + lattice.spacing_mm[axis] * np.arange(lattice.intervals[axis])
    points = (starts[:, None] + lattice.spacing_mm[axis] * (nodes + 1) / 2).ravel()
    scale = np.tile(weights * lattice.spacing_mm[axis] / 2, lattice.intervals[axis])
    out = []
    for order in range(3):
        first, taps = lattice.taps(torch.from_numpy(points), axis, order)
        matrix = torch.zeros(len(points), lattice.shape[axis], dtype=torch.float64)
        matrix.scatter_(1, first[:, None] + torch.arange(4), taps)
        out.append(matrix.T @ (matrix * torch.from_numpy(scale)[:, None]))
    return out[0], out[1], out[2]


class Bending:
    """Mean over the box of Σ_ab (∂_ab u)², u in mm, positions in mm: a quadratic form of the coefficients."""

    def __init__(self, lattice: Lattice, device: torch.device | str = "cpu") -> None:
        sides = zip(lattice.intervals, lattice.spacing_mm, strict=True)
        self._volume = float(np.prod([n * s for n, s in sides]))
        self._grams = [tuple(g.float().to(device) for g in grams(lattice, axis)) for axis in range(3)]

    def __call__(self, coefficients: Tensor) -> Tensor:
        """coefficients: (..., nA, nB, nP) mm → scalar, mm^−2; components add."""
        total = coefficients.new_zeros(())
        for orders, factor in (
            ((2, 0, 0), 1.0), ((0, 2, 0), 1.0), ((0, 0, 2), 1.0),
            ((1, 1, 0), 2.0), ((1, 0, 1), 2.0), ((0, 1, 1), 2.0),
        ):  # fmt: skip
            a, b, p = (self._grams[axis][order] for axis, order in enumerate(orders))
            total = total + factor * (coefficients * evaluate(coefficients, (a, b, p))).sum()
        return total / self._volume


@dataclass(frozen=True, slots=True)
class Whitening:
    """Coefficients as a linear map of parameters in which data and bending curve about equally.

    Along each axis the eigenvectors of bending against mass (second-derivative Gram against values' Gram);
    in their basis the bending energy is nearly (k_a² + k_b² + k_p²)². A minimiser that starts from the unit
    matrix then needs tens of iterations instead of hundreds, whatever the bending weight.
    """

    vectors: tuple[Tensor, Tensor, Tensor]
    inverses: tuple[Tensor, Tensor, Tensor]
    scale: Tensor  # (nA, nB, nP)

    @classmethod
    def of(
        cls, lattice: Lattice, bending_weight: float, curvature: float, device: torch.device | str = "cpu"
    ) -> Whitening:
        """curvature: rough second derivative of the data term for a shift of everything, mm^−2."""
        vectors, inverses, squares = [], [], []
        for axis in range(3):
            mass, _, bending = (gram.numpy() for gram in grams(lattice, axis))
            values, basis = eigh(bending, mass)
            basis *= np.sqrt(lattice.intervals[axis] * lattice.spacing_mm[axis])
            vectors.append(torch.from_numpy(basis).float().to(device))
            inverses.append(torch.from_numpy(np.linalg.inv(basis)).float().to(device))
            squares.append(torch.from_numpy(np.sqrt(np.clip(values, 0.0, None))).float().to(device))
        square = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :]
        scale = 1.0 / torch.sqrt(curvature + 2.0 * bending_weight * square**2)
        return cls((vectors[0], vectors[1], vectors[2]), (inverses[0], inverses[1], inverses[2]), scale)

    def __call__(self, parameters: Tensor) -> Tensor:
        """Parameters (nA, nB, nP) → coefficients of the same shape."""
        return evaluate(parameters * self.scale, self.vectors)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The parameters of given coefficients."""
        return evaluate(coefficients, self.inverses) / self.scale


def fold_penalty(coefficients: Tensor, spacing_mm: float, least_jacobian: float) -> Tensor:
    """How far control differences along the last axis break J ≥ least_jacobian, squared and averaged.

    ∂u/∂p is a convex combination of the coefficient differences over the spacing, so keeping every
    difference above −(1 − least_jacobian)·spacing keeps J = 1 + ∂u/∂p above least_jacobian everywhere.
    """
    breach = torch.relu(-(1.0 - least_jacobian) - torch.diff(coefficients, dim=-1) / spacing_mm)
    return (breach**2).mean()


def unfold(coefficients: Tensor, spacing_mm: float, least_jacobian: float) -> Tensor:
    """The coefficients with every control difference along the last axis at least −(1 − J_min)·spacing.

    The least-squares projection would be an isotonic regression; the mean of the running maximum from
    below and the running minimum from above is monotone, keeps what is monotone, and is one line.
    """
    ramp = torch.arange(coefficients.shape[-1], device=coefficients.device, dtype=coefficients.dtype)
    ramp = ramp * spacing_mm * (1.0 - least_jacobian)
    raised = coefficients + ramp
    upper = torch.cummax(raised, dim=-1).values
    lower = torch.flip(torch.cummin(torch.flip(raised, [-1]), dim=-1).values, [-1])
    return (upper + lower) / 2 - ramp

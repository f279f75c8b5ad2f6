"""Free three-dimensional B-spline registration: the paper's method, and `clinical` without a phase axis.

The field is a spline of displacement vectors on a lattice in one image's frame. Its control points are
free parameters or the output of the paper's network (`field`); the similarity is mutual information of
samples (paper) or MIND (clinical).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from correction import estimate, field, preprocess, similarity, spline
from correction.estimate import Pair, Scene
from correction.grid import Frame, Grid, index_map, sample
from correction.landmarks import Landmarks
from correction.methods import Clinical, Paper
from correction.spline import Lattice
from correction.volume import Volume

_CHUNK = 1 << 16
Report = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class FreeField:
    """Displacement vectors in a frame: coefficients (3, nA, nB, nP), frame mm along the frame's axes."""

    frame: Frame
    lattice: Lattice
    coefficients: Tensor

    def vectors(self, frame: Frame, grid: Grid) -> tuple[Tensor, Tensor]:
        """Displacement (3, A, B, P) in mm along `frame`'s axes and the Jacobian (A, B, P) on a grid of it."""
        device = self.coefficients.device
        axes = [grid.coordinates(k, device) for k in range(3)]
        turn = np.linalg.solve(self.frame.directions, frame.directions)  # the grid's axes in mine
        offset = torch.from_numpy(self.frame.points_from_lps(frame.origin_lps[None])[0]).to(device)
        mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        points = mesh @ torch.from_numpy(turn).to(device).T + offset
        values, determinants = [], []
        for part in torch.split(points, _CHUNK):
            value, gradient = spline.with_gradients(self.coefficients, self.lattice, part)
            values.append(value)
            determinants.append(torch.linalg.det(gradient + torch.eye(3, device=device)))
        back = torch.from_numpy(np.linalg.inv(turn)).to(self.coefficients)
        return (back @ torch.cat(values, dim=1)).reshape(3, *grid.shape), torch.cat(determinants).reshape(
            grid.shape
        )


def paper(
    b0: Volume, reference: Volume, phase_direction: npt.NDArray[np.float64] | None, settings: Paper,
    landmarks: Landmarks | None, generator: torch.Generator, report: Report,
) -> FreeField:  # fmt: skip
    """Fit the published model: MI + λ·landmarks by Adam, on the reference's grid.

    phase_direction: patient LPS unit vector that the field is confined to, or None for free 3-D.
    """
    frame = Frame.of(reference, None)
    grid = frame.grid()
    device = b0.data.device
    spacing = tuple(settings.spacing_voxels * s for s in frame.spacing_mm)
    lattice = Lattice.over(grid, (spacing[0], spacing[1], spacing[2]))
    basis = (
        np.eye(3) if phase_direction is None else np.linalg.solve(frame.directions, phase_direction[:, None])
    )
    half_extent = np.array(
        [max(1e-6, (n - 1) * s / 2) for n, s in zip(grid.shape, grid.spacing_mm, strict=True)]
    )
    # the network speaks half extents of the reference grid, as the authors' program
    scale = (
        np.diag(half_extent) if phase_direction is None else basis * np.linalg.norm(basis[:, 0] * half_extent)
    )
    to_mm = torch.from_numpy(scale).to(device, torch.float32)
    model = field.parameterisation(settings, lattice, to_mm.shape[1], generator).to(device)
    match = _MutualInformation(frame, grid, reference, b0, lattice, settings, generator)
    pull = None if landmarks is None else _NormalisedLandmarks(frame, lattice, landmarks, half_extent)
    bend = spline.Bending(lattice, device)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.999))
    for iteration in range(settings.iterations):
        optimiser.zero_grad()
        coefficients = torch.einsum("kc,c...->k...", to_mm, model())
        loss = -match(coefficients)
        if pull is not None:
            loss = loss + settings.landmark_weight * pull(coefficients)
        if settings.bending:
            loss = loss + settings.bending * bend(coefficients)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        report((iteration + 1) / settings.iterations)
    with torch.no_grad():
        return FreeField(frame, lattice, torch.einsum("kc,c...->k...", to_mm, model()))


class _MutualInformation:
    """MI between the z-scored reference and b = 0 at φ(x), over all voxels of the reference or a sample."""

    def __init__(
        self, frame: Frame, grid: Grid, reference: Volume, b0: Volume, lattice: Lattice, settings: Paper,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self._settings, self._generator, self._lattice, self._grid = settings, generator, lattice, grid
        self._fixed = preprocess.z_score(frame.to_frame(reference.data)).contiguous()
        self._moving = preprocess.z_score(b0.data)
        self._ranges = tuple((float(i.min()), float(i.max())) for i in (self._fixed, self._moving))
        device = reference.data.device
        self._matrices = (
            spline.grid_matrices(lattice, grid, device=str(device)) if settings.samples == 0 else None
        )
        self._axes = [grid.coordinates(k, device) for k in range(3)]
        unit = Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), grid.shape)
        matrix, offset = index_map(b0, frame, unit)  # frame mm → b0 voxel index
        self._matrix = torch.from_numpy(matrix).to(device, torch.float32)
        self._offset = torch.from_numpy(offset).to(device, torch.float32)

    def __call__(self, coefficients: Tensor) -> Tensor:
        if self._matrices is not None:
            mesh = torch.stack(torch.meshgrid(*self._axes, indexing="ij")).float()
            moved = (mesh + spline.evaluate(coefficients, self._matrices)).reshape(3, -1)
            fixed = self._fixed.reshape(-1)
        else:
            draws = [
                torch.randint(n, (self._settings.samples,), generator=self._generator).to(self._fixed.device)
                for n in self._grid.shape
            ]
            points = torch.stack([axis[draw] for axis, draw in zip(self._axes, draws, strict=True)], dim=1)
            shift = spline.at_points(coefficients, spline.point_taps(self._lattice, points))
            moved = points.T.float() + shift
            fixed = self._fixed[draws[0], draws[1], draws[2]]
        index = self._matrix @ moved + self._offset[:, None]
        return similarity.mutual_information(
            fixed, sample(self._moving, index), self._ranges, self._settings.bins
        )


class _NormalisedLandmarks:
    """Σ c ‖moving − φ(fixed)‖ / Σ c, each axis in half extents of the reference grid."""

    def __init__(
        self, frame: Frame, lattice: Lattice, landmarks: Landmarks, half_extent: npt.NDArray[np.float64]
    ) -> None:
        fixed = frame.points_from_lps(landmarks.fixed_mm)
        moving = frame.points_from_lps(landmarks.moving_mm)
        self._taps = spline.point_taps(lattice, torch.from_numpy(fixed))
        self._wanted = torch.from_numpy((moving - fixed).T).float()
        self._half = torch.from_numpy(half_extent).float()[:, None]
        self._confidence = torch.from_numpy(landmarks.confidence).float()

    def __call__(self, coefficients: Tensor) -> Tensor:
        device = coefficients.device
        taps = spline.PointTaps(self._taps.index.to(device), self._taps.weight.to(device))
        error = (self._wanted.to(device) - spline.at_points(coefficients, taps)) / self._half.to(device)
        confidence = self._confidence.to(device)
        distance = torch.sqrt((error**2).sum(0) + 1e-12)
        return (confidence * distance).sum() / confidence.sum().clamp(min=1e-12)


def clinical(pair: Pair, settings: Clinical, report: Report) -> list[FreeField]:
    """Free 3-D field for an unknown phase-encode axis: MIND, coarse to fine, one candidate per level.

    Each level starts from the one before; the volume's Jacobian is kept above settings.least_jacobian.
    """
    found: list[FreeField] = []
    start: FreeField | None = None
    view = estimate.scene(pair, settings.free_voxel_mm, settings)
    for level, spacing in enumerate(settings.free_spacings_mm):
        start = _mind_level(view, pair.frame, spacing, start, settings)
        found.append(start)
        report((level + 1) / len(settings.free_spacings_mm))
    return found


def _mind_level(
    view: Scene, frame: Frame, spacing_mm: float, start: FreeField | None, settings: Clinical
) -> FreeField:
    grid = view.grid
    fixed = estimate.descriptors(view.reference, view.reference_mask, grid, settings)
    moving = estimate.descriptors(view.b0, view.b0_mask, grid, settings)
    weight = ((view.reference_mask | view.b0_mask) & view.seen).float()
    weight = weight / weight.sum().clamp(min=1.0)
    lattice = Lattice.over(grid, spacing_mm)
    device = fixed.device
    matrices = spline.grid_matrices(lattice, grid, device=str(device))
    bend = spline.Bending(lattice, device)
    index = torch.stack(
        torch.meshgrid(*(torch.arange(n, device=device).float() for n in grid.shape), indexing="ij")
    )
    per_mm = 1.0 / torch.tensor(grid.spacing_mm, device=device)[:, None, None, None]
    spread = ((fixed - moving) ** 2).mean(0)
    scale = torch.sqrt(((spread - (spread * weight).sum()) ** 2 * weight).sum()).clamp(min=1e-6)
    slopes = [
        spline.grid_matrices(lattice, grid, order, str(device)) for order in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]

    def determinant(coefficients: Tensor) -> Tensor:
        gradient = torch.stack([spline.evaluate(coefficients, m) for m in slopes], dim=1)
        value: Tensor = torch.linalg.det(gradient.permute(2, 3, 4, 0, 1) + torch.eye(3, device=device))
        return value

    def objective(coefficients: Tensor) -> Tensor:
        shift = spline.evaluate(coefficients, matrices)
        difference = ((fixed - sample(moving, index + shift * per_mm)) ** 2).mean(0)
        folds = torch.relu(settings.least_jacobian - determinant(coefficients)) ** 2
        value = (difference * weight).sum() / scale + settings.free_bending * bend(coefficients)
        return value + settings.fold_weight * folds.mean()

    initial = torch.zeros(3, *lattice.shape, device=device)
    if start is not None:
        dense = spline.evaluate(
            start.coefficients, spline.grid_matrices(start.lattice, grid, device=str(device))
        )
        initial = torch.stack([spline.fit(lattice, grid, component) for component in dense])
    coefficients, _ = estimate.minimise(objective, initial, settings.iterations)
    with torch.no_grad():
        # the penalty is soft: where it was overrun, the whole field is scaled back until nothing folds
        while float(determinant(coefficients).min()) < settings.least_jacobian / 2:
            coefficients = 0.9 * coefficients
    return FreeField(frame, lattice, coefficients)

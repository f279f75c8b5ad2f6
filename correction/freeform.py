"""Free three-dimensional B-spline registration: the paper's method, and `clinical` without a phase axis.

The field is a spline of displacement vectors on a lattice in one image's frame. Its control points are
free parameters or the output of the paper's network (`field`); the similarity is mutual information of
samples (paper) or MIND (clinical).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from correction import estimate, field, fit, preprocess, similarity, spline
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
        points, turn = _points_in(self.frame, frame, grid, device)
        values, determinants = [], []
        for part in torch.split(points, _CHUNK):
            value, gradient = spline.with_gradients(self.coefficients, self.lattice, part)
            values.append(value)
            determinants.append(torch.linalg.det(gradient + torch.eye(3, device=device)))
        back = torch.from_numpy(np.linalg.inv(turn)).to(self.coefficients)
        return (back @ torch.cat(values, dim=1)).reshape(3, *grid.shape), torch.cat(determinants).reshape(
            grid.shape
        )


def _points_in(
    own: Frame, frame: Frame, grid: Grid, device: torch.device
) -> tuple[Tensor, npt.NDArray[np.float64]]:
    """The voxels of a grid of `frame` as (N, 3) mm of `own`, and the turn from frame's axes to own's."""
    turn = np.asarray(np.linalg.solve(own.directions, frame.directions), dtype=np.float64)
    offset = torch.from_numpy(own.points_from_lps(frame.origin_lps[None])[0]).to(device)
    axes = [grid.coordinates(k, device) for k in range(3)]
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    return mesh @ torch.from_numpy(turn).to(device).T + offset, turn


@dataclass(frozen=True, slots=True)
class NetworkField:
    """Displacement straight from the network at any point: the paper's ablation without the spline.

    to_mm: (3, components), what the network says → frame mm along the frame's axes.
    """

    frame: Frame
    network: field.ImplicitDisplacement
    to_mm: Tensor

    def vectors(self, frame: Frame, grid: Grid) -> tuple[Tensor, Tensor]:
        """As FreeField.vectors; the Jacobian is taken by differences between the grid's voxels."""
        points, turn = _points_in(self.frame, frame, grid, self.to_mm.device)
        with torch.no_grad():
            values = torch.cat([self.at(part) for part in torch.split(points, _CHUNK)], dim=1)
        back = torch.from_numpy(np.linalg.inv(turn)).to(values)
        vectors = (back @ values).reshape(3, *grid.shape)
        gradient = torch.stack(
            [torch.stack(torch.gradient(component, spacing=grid.spacing_mm)) for component in vectors]
        )
        eye = torch.eye(3, device=vectors.device)
        return vectors, torch.linalg.det(gradient.permute(2, 3, 4, 0, 1) + eye)

    def at(self, points_mm: Tensor) -> Tensor:
        """(3, N) frame mm at (N, 3) points in frame mm."""
        out: Tensor = self.to_mm @ self.network(points_mm)
        return out


class _Motion(Protocol):
    """The displacement under way in the optimiser; what it returns carries gradients."""

    def parameters(self) -> Iterable[Tensor]: ...

    def begin(self) -> None:
        """Called once in every iteration, before the displacement is asked for."""

    def at(self, points_mm: Tensor) -> Tensor:
        """(3, N) frame mm at (N, 3) frame mm."""

    def field(self) -> FreeField | NetworkField: ...


class _SplineMotion:
    """Control points, from the network or free, carried everywhere by the spline."""

    def __init__(self, frame: Frame, lattice: Lattice, model: torch.nn.Module, to_mm: Tensor) -> None:
        self._frame, self._lattice, self._model, self._to_mm = frame, lattice, model, to_mm
        self._matrices = spline.grid_matrices(lattice, frame.grid(), device=str(to_mm.device))
        self._bending = spline.Bending(lattice, to_mm.device)
        self._coefficients = torch.zeros(0)

    def parameters(self) -> Iterable[Tensor]:
        return self._model.parameters()

    def begin(self) -> None:
        self._coefficients = torch.einsum("kc,c...->k...", self._to_mm, self._model())

    def at(self, points_mm: Tensor) -> Tensor:
        return spline.at_points(self._coefficients, spline.point_taps(self._lattice, points_mm))

    def everywhere(self) -> Tensor:
        """(3, A, B, P) frame mm at every voxel of the reference."""
        return spline.evaluate(self._coefficients, self._matrices)

    def bending(self) -> Tensor:
        return self._bending(self._coefficients)

    def field(self) -> FreeField:
        with torch.no_grad():
            self.begin()
        return FreeField(self._frame, self._lattice, self._coefficients)


class _NetworkMotion:
    """The network asked directly. It has no bending energy, and all voxels would not fit in memory."""

    def __init__(self, frame: Frame, network: field.ImplicitDisplacement, to_mm: Tensor) -> None:
        self._field = NetworkField(frame, network, to_mm)

    def parameters(self) -> Iterable[Tensor]:
        return self._field.network.parameters()

    def begin(self) -> None:
        """Nothing is shared between the points."""

    def at(self, points_mm: Tensor) -> Tensor:
        return self._field.at(points_mm)

    def field(self) -> NetworkField:
        return self._field


def paper(
    b0: Volume, reference: Volume, phase_direction: npt.NDArray[np.float64] | None, settings: Paper,
    landmarks: Landmarks | None, generator: torch.Generator, report: Report,
) -> FreeField | NetworkField:  # fmt: skip
    """Fit the published model: MI + λ·landmarks by Adam, on the reference's grid.

    phase_direction: patient LPS unit vector that the field is confined to, or None for free 3-D.
    """
    frame = Frame.of(reference, None)
    half_extent = np.array(
        [max(1e-6, (n - 1) * s / 2) for n, s in zip(frame.shape, frame.spacing_mm, strict=True)]
    )
    # the network speaks half extents of the reference grid, as the authors' program
    scale = np.diag(half_extent)
    if phase_direction is not None:
        basis = np.linalg.solve(frame.directions, phase_direction[:, None])
        scale = basis * np.linalg.norm(basis[:, 0] * half_extent)
    to_mm = torch.from_numpy(scale).to(b0.data.device, torch.float32)
    motion: _Motion
    if settings.parameterisation == "dense":
        motion = _dense(frame, half_extent, to_mm, settings, generator)
        objective = _sampled(motion, _MutualInformation(frame, reference, b0, settings, generator))
    else:
        motion = _on_lattice(frame, to_mm, settings, generator)
        objective = _smooth(motion, _MutualInformation(frame, reference, b0, settings, generator), settings)
    pull = None if landmarks is None else _NormalisedLandmarks(frame, landmarks, half_extent, b0.data.device)
    optimiser = torch.optim.Adam(motion.parameters(), lr=settings.learning_rate, betas=(0.9, 0.999))
    for iteration in range(settings.iterations):
        optimiser.zero_grad()
        motion.begin()
        loss = objective()
        if pull is not None:
            loss = loss + settings.landmark_weight * pull(motion)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        report((iteration + 1) / settings.iterations)
    return motion.field()


def _dense(
    frame: Frame, half_extent: npt.NDArray[np.float64], to_mm: Tensor,
    settings: Paper, generator: torch.Generator,
) -> _NetworkMotion:  # fmt: skip
    network = field.ImplicitDisplacement(half_extent, to_mm.shape[1], settings, generator)
    return _NetworkMotion(frame, network.to(to_mm.device), to_mm)


def _on_lattice(frame: Frame, to_mm: Tensor, settings: Paper, generator: torch.Generator) -> _SplineMotion:
    a, b, p = (settings.spacing_voxels * s for s in frame.spacing_mm)
    lattice = Lattice.over(frame.grid(), (a, b, p))
    model = field.parameterisation(settings, lattice, to_mm.shape[1], generator).to(to_mm.device)
    return _SplineMotion(frame, lattice, model, to_mm)


def _sampled(motion: _Motion, match: _MutualInformation) -> Callable[[], Tensor]:
    return lambda: -match.of_samples(motion)


def _smooth(motion: _SplineMotion, match: _MutualInformation, settings: Paper) -> Callable[[], Tensor]:
    def objective() -> Tensor:
        loss = -(match.of_samples(motion) if settings.samples else match.of_all(motion))
        return loss + settings.bending * motion.bending() if settings.bending else loss

    return objective


class _MutualInformation:
    """MI between the z-scored reference and b = 0 at φ(x), over all voxels of the reference or a sample."""

    def __init__(
        self, frame: Frame, reference: Volume, b0: Volume, settings: Paper, generator: torch.Generator
    ) -> None:
        self._settings, self._generator = settings, generator
        self._fixed = preprocess.z_score(frame.to_frame(reference.data)).contiguous()
        self._moving = preprocess.z_score(b0.data)
        self._ranges = tuple((float(i.min()), float(i.max())) for i in (self._fixed, self._moving))
        device = reference.data.device
        self._axes = [frame.grid().coordinates(k, device) for k in range(3)]
        unit = Grid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), frame.shape)
        matrix, offset = index_map(b0, frame, unit)  # frame mm → b0 voxel index
        self._matrix = torch.from_numpy(matrix).to(device, torch.float32)
        self._offset = torch.from_numpy(offset).to(device, torch.float32)

    def of_all(self, motion: _SplineMotion) -> Tensor:
        """Over every voxel of the reference."""
        mesh = torch.stack(torch.meshgrid(*self._axes, indexing="ij")).float()
        return self._between(self._fixed.reshape(-1), (mesh + motion.everywhere()).reshape(3, -1))

    def of_samples(self, motion: _Motion) -> Tensor:
        """Over samples that are drawn anew in every call."""
        # drawn on the processor, so that a seed means the same on every device
        draws = [
            torch.randint(n, (self._settings.samples,), generator=self._generator).to(self._fixed.device)
            for n in self._fixed.shape
        ]
        points = torch.stack([axis[draw] for axis, draw in zip(self._axes, draws, strict=True)], dim=1)
        return self._between(self._fixed[draws[0], draws[1], draws[2]], points.T.float() + motion.at(points))

    def _between(self, fixed: Tensor, moved: Tensor) -> Tensor:
        """fixed: (N,) z-scores; moved: (3, N) frame mm where the b = 0 is read."""
        index = self._matrix @ moved + self._offset[:, None]
        return similarity.mutual_information(
            fixed, sample(self._moving, index), self._ranges, self._settings.bins
        )


class _NormalisedLandmarks:
    """Σ c ‖moving − φ(fixed)‖ / Σ c, each axis in half extents of the reference grid."""

    def __init__(
        self, frame: Frame, landmarks: Landmarks, half_extent: npt.NDArray[np.float64], device: torch.device
    ) -> None:
        fixed = frame.points_from_lps(landmarks.fixed_mm)
        moving = frame.points_from_lps(landmarks.moving_mm)
        self._fixed = torch.from_numpy(fixed).to(device)
        self._wanted = torch.from_numpy((moving - fixed).T).to(device, torch.float32)
        self._half = torch.from_numpy(half_extent).to(device, torch.float32)[:, None]
        self._confidence = torch.from_numpy(landmarks.confidence).to(device, torch.float32)

    def __call__(self, motion: _Motion) -> Tensor:
        error = (self._wanted - motion.at(self._fixed)) / self._half
        distance = torch.sqrt((error**2).sum(0) + 1e-12)
        return (self._confidence * distance).sum() / self._confidence.sum().clamp(min=1e-12)


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
    coefficients, _ = fit.minimise(objective, initial, settings.free_iterations)
    with torch.no_grad():
        # the penalty is soft: where it was overrun, the whole field is scaled back until nothing folds
        while float(determinant(coefficients).min()) < settings.least_jacobian / 2:
            coefficients = 0.9 * coefficients
    return FreeField(frame, lattice, coefficients)

"""The spline of shifts that a cost volume, landmarks and smoothness agree on, with room for what air does.

The shift is a spline plus the fields of the air in the head (`susceptibility`), each with its own strength.
Bending energy acts on the spline alone, so that the steep fields beside sinuses and ears cost only what it
takes to explain them by the air that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize
from torch import Tensor

from correction import spline
from correction.cost import CostVolume
from correction.landmarks import FrameLandmarks
from correction.methods import Clinical
from correction.shifts import ShiftField
from correction.spline import Lattice
from correction.susceptibility import AirFields

# Share of the energy that a step must gain to go on; what energies decide differs by a thousand times that.
_LEAST_PROGRESS = 2e-6


@dataclass(frozen=True, slots=True)
class Fit:
    """A minimum: the whole shift, and what it is made of.

    smooth: (A, B, P) mm, the spline's part on the cost volume's grid. strengths: (K,) of the air's fields, or
    None. energy: cost, landmarks, bending, strengths and folds together.
    """

    field: ShiftField
    smooth: Tensor
    strengths: Tensor | None
    energy: float


def fit_shifts(
    volume: CostVolume,
    spacings_mm: tuple[float, ...],
    bending_weight: float,
    settings: Clinical,
    iterations: int,
    *,
    start: Fit | Tensor | None = None,
    air: AirFields | None = None,
    landmarks: FrameLandmarks | None = None,
    landmark_weight: float = 0.0,
) -> Fit:
    """Minimise cost + λ·bending + landmarks + strengths of the air + fold penalty, coarse to fine.

    start: an earlier fit, a shift (A, B, P) in mm on the cost volume's grid, or None for zero. The returned
    field has its control differences cut to the fold limit.
    """
    fit = start if isinstance(start, Fit) else None
    dense = start.smooth if isinstance(start, Fit) else start
    for spacing in spacings_mm:
        terms = _Terms(volume, spacing, bending_weight, settings, air, landmarks, landmark_weight)
        parameters = terms.parameters(dense, None if fit is None else fit.strengths)
        fit = terms.fit(minimise(terms.energy, parameters, iterations)[0])
        dense = fit.smooth
    assert fit is not None
    return fit


class _Terms:
    """The energy of one lattice as a function of well-scaled parameters."""

    def __init__(
        self, volume: CostVolume, spacing_mm: float, bending_weight: float, settings: Clinical,
        air: AirFields | None, landmarks: FrameLandmarks | None, landmark_weight: float,
    ) -> None:  # fmt: skip
        device = volume.cost.device
        self._volume, self._settings = volume, settings
        self._bending_weight, self._landmark_weight = bending_weight, landmark_weight
        self._landmarks = landmarks
        self._lattice = Lattice.over(volume.grid, spacing_mm)
        self._matrices = spline.grid_matrices(self._lattice, volume.grid, device=str(device))
        self._bending = spline.Bending(self._lattice, device)
        self._whitening = spline.Whitening.of(self._lattice, bending_weight, settings.cost_curvature, device)
        self._taps = None if landmarks is None else spline.point_taps(self._lattice, landmarks.fixed_mm)
        self._air = None if air is None else _Air.on(air, volume, landmarks, settings)

    def parameters(self, smooth: Tensor | None, strengths: Tensor | None) -> Tensor:
        """Where the search starts: (n + K,)."""
        shape = self._lattice.shape
        if smooth is None:
            coefficients = torch.zeros(shape, device=self._volume.cost.device)
        else:
            coefficients = spline.unfold(
                spline.fit(self._lattice, self._volume.grid, smooth),
                self._lattice.spacing_mm[2],
                self._settings.least_jacobian,
            )
        parameters = self._whitening.inverse(coefficients).flatten()
        if self._air is None:
            return parameters
        if strengths is None:
            strengths = torch.zeros_like(self._air.scale)
        return torch.cat([parameters, strengths / self._air.scale])

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
        count = self._lattice.shape[0] * self._lattice.shape[1] * self._lattice.shape[2]
        coefficients = self._whitening(parameters[:count].reshape(self._lattice.shape))
        return coefficients, None if self._air is None else parameters[count:] * self._air.scale

    def energy(self, parameters: Tensor) -> Tensor:
        """Scalar, in standard deviations of the cost."""
        settings = self._settings
        coefficients, strengths = self._split(parameters)
        shift = spline.evaluate(coefficients, self._matrices)
        fold = spline.fold_penalty(coefficients, self._lattice.spacing_mm[2], settings.least_jacobian)
        value = self._bending_weight * self._bending(coefficients)
        if self._air is not None and strengths is not None:
            shift = shift + torch.tensordot(strengths, self._air.dense, 1)
            # a penalty on the sum's own differences: no lattice limits spline and air together
            fold = spline.fold_penalty(shift, self._volume.grid.spacing_mm[2], settings.least_jacobian)
            value = value + settings.air_ridge * (strengths**2).sum()
        value = value + self._volume.mean(shift) + settings.fold_weight * fold
        if self._landmarks is not None and self._taps is not None:
            at = spline.at_points(coefficients, self._taps)
            if self._air is not None and strengths is not None and self._air.at_landmarks is not None:
                at = at + strengths @ self._air.at_landmarks
            value = value + self._landmark_weight * self._landmarks.loss(at, settings.landmark_huber_mm)
        return value

    def fit(self, parameters: Tensor) -> Fit:
        """The whole shift on one lattice, its differences cut to the fold limit."""
        with torch.no_grad():
            energy = float(self.energy(parameters))
            coefficients, strengths = self._split(parameters)
            smooth = spline.evaluate(coefficients, self._matrices)
            lattice = self._lattice
            if self._air is not None and strengths is not None:
                lattice = self._air.lattice
                coefficients = _on_controls(coefficients, self._lattice, lattice)
                coefficients = coefficients + torch.tensordot(strengths, self._air.coefficients, 1)
            coefficients = spline.unfold(coefficients, lattice.spacing_mm[2], self._settings.least_jacobian)
            return Fit(ShiftField(lattice, coefficients), smooth, strengths, energy)


@dataclass(frozen=True, slots=True)
class _Air:
    """The air's fields as splines of their own lattice, and where they are looked at.

    coefficients: (K, nA, nB, nP); dense: (K, A, B, P) on the cost volume's grid; at_landmarks: (K, N);
    scale: (K,) strength for one unit of a parameter.
    """

    lattice: Lattice
    coefficients: Tensor
    dense: Tensor
    at_landmarks: Tensor | None
    scale: Tensor

    @classmethod
    def on(
        cls, air: AirFields, volume: CostVolume, landmarks: FrameLandmarks | None, settings: Clinical
    ) -> _Air:
        lattice = Lattice.over(volume.grid, settings.air_spacing_mm)
        coefficients = air.on(lattice)
        matrices = spline.grid_matrices(lattice, volume.grid, device=str(volume.cost.device))
        dense = spline.evaluate(coefficients, matrices)
        at_landmarks = None
        if landmarks is not None:
            taps = spline.point_taps(lattice, landmarks.fixed_mm)
            at_landmarks = torch.stack([spline.at_points(each, taps) for each in coefficients])
        power = (dense**2 * volume.weight).sum((1, 2, 3)) / volume.weight.sum().clamp(min=1e-12)
        scale = 1.0 / torch.sqrt(settings.cost_curvature * power + 2.0 * settings.air_ridge)
        return cls(lattice, coefficients, dense, at_landmarks, scale)


def _on_controls(coefficients: Tensor, source: Lattice, target: Lattice) -> Tensor:
    """The coefficients of a smooth spline on a finer lattice: its values there, which differ by little."""
    a, b, p = (
        source.axis_matrix(target.axis_positions(axis, coefficients.device), axis) for axis in range(3)
    )
    return spline.evaluate(coefficients, (a, b, p))


def minimise(objective: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> tuple[Tensor, float]:
    """L-BFGS with strong Wolfe line search from `start`; the minimiser and its value.

    SciPy's: the first optimiser of torch in a process imports its compiler, for three seconds.
    """

    def value_and_slope(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        parameters = torch.from_numpy(flat).to(start).reshape(start.shape).requires_grad_(True)
        value = objective(parameters)
        (slope,) = torch.autograd.grad(value, parameters)
        return float(value.detach()), slope.detach().cpu().double().numpy().ravel()

    first = start.detach().cpu().double().numpy().ravel()
    if iterations == 0:
        return start.detach().clone(), value_and_slope(first)[0]
    found = optimize.minimize(
        value_and_slope, first, jac=True, method="L-BFGS-B",
        options={"maxiter": iterations, "maxfun": 4 * iterations, "ftol": _LEAST_PROGRESS, "gtol": 1e-7},
    )  # fmt: skip
    return torch.from_numpy(found.x).to(start).reshape(start.shape), float(found.fun)

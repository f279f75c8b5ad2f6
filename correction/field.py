"""Where control points come from: free parameters, or the paper's implicit neural representation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from correction.methods import Paper
from correction.spline import Lattice


class ControlPoints(nn.Module):
    """Control points as parameters, starting at zero. forward() → (components, nA, nB, nP)."""

    def __init__(self, lattice: Lattice, components: int) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(components, *lattice.shape))

    def forward(self) -> Tensor:
        return self.coefficients


class ImplicitControlPoints(nn.Module):
    """Control points predicted from their positions: Fourier features and a ReLU network.

    γ(p) = [sin 2πBp, cos 2πBp] with a fixed random B, rows drawn from N(0, sigma²), p in [−1, 1] over the
    control points. `layers` fully connected layers, ReLU on all but the last, which starts at zero so that
    the first field is the identity (the paper does not say how it starts).
    """

    def __init__(
        self, lattice: Lattice, components: int, *, layers: int, hidden: int, rows: int, sigma: float,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        self._shape = (components, *lattice.shape)
        axes = [torch.linspace(-1.0, 1.0, n) for n in lattice.shape]
        positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        angles = 2 * torch.pi * positions @ (sigma * torch.randn(rows, 3, generator=generator)).T
        self.register_buffer("features", torch.cat([torch.sin(angles), torch.cos(angles)], dim=1))
        self.network = _network(2 * rows, hidden, layers, components, generator)

    def forward(self) -> Tensor:
        out: Tensor = self.network(self.features)
        return out.T.reshape(self._shape)


class ImplicitDisplacement(nn.Module):
    """The same network asked at any point instead of at control points: the ablation without a spline.

    forward(): (N, 3) frame mm → (components, N), in half extents of the grid.
    """

    rows: Tensor
    half_extent: Tensor

    def __init__(
        self, half_extent_mm: npt.NDArray[np.float64], components: int, settings: Paper,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        rows = settings.fourier_sigma * torch.randn(settings.fourier_rows, 3, generator=generator)
        self.register_buffer("rows", rows)
        self.register_buffer("half_extent", torch.from_numpy(half_extent_mm).float())
        self.network = _network(
            2 * settings.fourier_rows, settings.hidden, settings.layers, components, generator
        )

    def forward(self, points_mm: Tensor) -> Tensor:
        positions = points_mm.float() / self.half_extent - 1.0
        angles = 2 * torch.pi * positions @ self.rows.T
        out: Tensor = self.network(torch.cat([torch.sin(angles), torch.cos(angles)], dim=1))
        return out.T


def parameterisation(
    settings: Paper, lattice: Lattice, components: int, generator: torch.Generator
) -> nn.Module:
    """The module whose forward() gives the control points that the settings ask for."""
    if settings.parameterisation == "control_points":
        return ControlPoints(lattice, components)
    return ImplicitControlPoints(
        lattice, components, layers=settings.layers, hidden=settings.hidden, rows=settings.fourier_rows,
        sigma=settings.fourier_sigma, generator=generator,
    )  # fmt: skip


def _network(
    inputs: int, hidden: int, layers: int, components: int, generator: torch.Generator
) -> nn.Sequential:
    """`layers` fully connected layers, ReLU on all but the last, which starts at zero."""
    widths = [inputs] + [hidden] * (layers - 1)
    steps: list[nn.Module] = []
    for before, after in pairwise(widths):
        steps += [_linear(before, after, generator), nn.ReLU()]
    last = nn.Linear(widths[-1], components)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*steps, last)


def _linear(before: int, after: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's default range, drawn from our generator so that a seed fixes the result."""
    layer = nn.Linear(before, after)
    reach = before**-0.5
    with torch.no_grad():
        layer.weight.copy_((torch.rand(after, before, generator=generator) * 2 - 1) * reach)
        layer.bias.copy_((torch.rand(after, generator=generator) * 2 - 1) * reach)
    return layer

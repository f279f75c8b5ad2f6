"""Landmark pairs in patient space, and in the frame of an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from correction.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Landmarks:
    """N pairs of the same anatomy.

    fixed_mm: (N, 3) patient LPS in the undistorted reference. moving_mm: (N, 3) patient LPS where it
    appears in the distorted b = 0, so that u(fixed) = moving − fixed. confidence: (N,) in [0, 1].
    weight_files: SHA-256 by name of the files that the matcher was loaded from.
    Raises ShapeError when the three do not fit together.
    """

    fixed_mm: npt.NDArray[np.float64]
    moving_mm: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    matcher: str = "given"
    weight_files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fixed = np.asarray(self.fixed_mm, dtype=np.float64)
        moving = np.asarray(self.moving_mm, dtype=np.float64)
        confidence = np.asarray(self.confidence, dtype=np.float64)
        if (
            fixed.ndim != 2
            or fixed.shape[1] != 3
            or moving.shape != fixed.shape
            or confidence.shape != fixed.shape[:1]
        ):
            raise ShapeError(
                "Landmarks need fixed_mm (N, 3), moving_mm (N, 3) and confidence (N,), not "
                f"{fixed.shape}, {moving.shape}, {confidence.shape}"
            )
        object.__setattr__(self, "fixed_mm", fixed)
        object.__setattr__(self, "moving_mm", moving)
        object.__setattr__(self, "confidence", confidence)

    def __len__(self) -> int:
        return len(self.confidence)

    def keep(self, chosen: npt.NDArray[np.bool_]) -> Landmarks:
        return replace(
            self, fixed_mm=self.fixed_mm[chosen], moving_mm=self.moving_mm[chosen],
            confidence=self.confidence[chosen],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class FrameLandmarks:
    """Landmarks as shifts along phase encode, in frame mm: fixed_mm (N, 3), shift_mm (N,), weight (N,).

    A weight of 1 is that of a landmark of a set that is fully believed.
    """

    fixed_mm: Tensor
    shift_mm: Tensor
    weight: Tensor

    def to(self, device: torch.device | str) -> FrameLandmarks:
        """The same on another device."""
        return FrameLandmarks(self.fixed_mm.to(device), self.shift_mm.to(device), self.weight.to(device))

    def doubted(self, field_mm: Tensor, scale_mm: float) -> FrameLandmarks:
        """The same, those that a field contradicts by more than scale_mm with little of their weight left."""
        contradiction = (field_mm - self.shift_mm) / scale_mm
        return FrameLandmarks(self.fixed_mm, self.shift_mm, self.weight / (1.0 + contradiction**2) ** 2)

    def loss(self, field_mm: Tensor, huber_mm: float) -> Tensor:
        """Mean pseudo-Huber distance times weight: mm² near zero, mm far away, over huber_mm.

        Not divided by the sum of the weights: a set of little trust is to pull little.
        """
        residual = (field_mm - self.shift_mm) / huber_mm
        cost = torch.sqrt(1.0 + residual**2) - 1.0
        return (self.weight * cost).mean()

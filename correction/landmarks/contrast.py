"""Drawing a volume so that reference and b = 0 look alike, as far as a matcher needs it.

A b = 0 is T2-weighted: fluid bright, white matter dark. T2 and FLAIR resemble it; a T1 is close to its
negative, and matchers fail on negatives. So the reference is drawn either as it is or inverted inside the
head (air stays black). Which of the two, the matches say themselves: see `find`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from correction import preprocess, smooth
from correction.grid import Frame, Grid, resample
from correction.landmarks.views import Pictures, Plane, smooth_pictures
from correction.volume import Volume

# of the intensities inside the head, what becomes black and white
BLACK, WHITE = 0.01, 0.995
HEAD_THRESHOLD, CLOSING_MM = 0.12, 7.0
SHADING_MM = 25.0


class Contrast(StrEnum):
    """How an image is shown to the matcher."""

    AS_IS = "as it is"
    INVERTED = "inverted"


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A volume with what is needed to draw it.

    head, mean: on an overview grid of the other image's frame; head 1 inside, mean the local mean
    intensity there (the coils' shading). black, white: shares of that mean.
    """

    pictures: Pictures
    head: Volume
    mean: Volume
    black: float
    white: float

    @classmethod
    def of(cls, volume: Volume, frame: Frame, grid: Grid) -> Subject:
        volume = Volume(volume.data.cpu(), volume.affine)
        image, seen = resample(volume, frame, grid)
        image = image.clamp(min=0) * seen
        head = preprocess.head_mask(image, grid.spacing_mm, HEAD_THRESHOLD, CLOSING_MM) & seen
        weight = head.float()
        sigma = [SHADING_MM / s for s in grid.spacing_mm]
        sums = smooth.gaussian(torch.stack([image * weight, weight]), sigma, truncate=2.5)
        mean = sums[0] / sums[1].clamp(min=1e-3)
        floor = 0.05 * float((image * weight).sum() / weight.sum().clamp(min=1))
        mean = mean.clamp(min=max(floor, 1e-12))
        inside = (image / mean)[head] if bool(head.any()) else torch.zeros(1)
        inside = inside[:: max(1, len(inside) // 1_000_000)]
        black, white = (float(torch.quantile(inside, q)) for q in (BLACK, WHITE))
        affine = _affine(frame, grid)
        return cls(Pictures.of(volume), Volume(weight, affine), Volume(mean, affine), black, white)

    def draw(self, planes: Sequence[Plane], contrast: Contrast) -> Tensor:
        """(B, rows, columns) in [0, 1], free of shading, air black. Planes of one shape."""
        head = smooth_pictures(self.head, planes) > 0.5
        image = self.pictures.on(planes, head) / smooth_pictures(self.mean, planes).clamp(min=1e-12)
        scaled = ((image - self.black) / max(self.white - self.black, 1e-12)).clamp(0, 1)
        return (1.0 - scaled if contrast is Contrast.INVERTED else scaled) * head


def _affine(frame: Frame, grid: Grid) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Voxel (x, y, z) of a grid's (A, B, P) tensor, read as (Z, Y, X), to patient LPS mm."""
    affine = np.eye(4)
    affine[:3, :3] = (frame.directions * np.asarray(grid.spacing_mm))[:, ::-1]
    affine[:3, 3] = frame.origin_lps + frame.directions @ np.asarray(grid.first_mm)
    return affine

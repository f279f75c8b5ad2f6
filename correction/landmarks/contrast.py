"""Drawing a volume so that reference and b = 0 look alike, as far as a matcher needs it.

A b = 0 is T2-weighted: fluid bright, white matter dark. A T2 resembles it; a T1 is close to its negative,
and matchers fail on negatives; a FLAIR agrees with it but for the fluid, and then corners are found on the
wrong side of every sulcus. So the reference is drawn in one of several tones: as it is, inverted inside the
head (air stays black), or with each brightness replaced by what the b = 0 shows there on average. Which of
them, the matches say themselves: see `find`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from correction import preprocess, smooth
from correction.grid import Frame, Grid, resample, sample
from correction.landmarks.views import Pictures, Plane, smooth_pictures
from correction.volume import Volume

# of the intensities inside the head, what becomes black and white
BLACK, WHITE = 0.01, 0.995
HEAD_THRESHOLD, CLOSING_MM = 0.12, 7.0
SHADING_MM = 25.0

# a tone learned from the pair: bins of brightness, their smoothing (bins), voxels that make a bin count,
# and how deep below the skin is looked, so that dark skull does not speak for dark fluid
BINS, BLUR_BINS, FEWEST_VOXELS = 48, 1.5, 20
DEPTH_MM = 12.0
NEIGHBOURS = 12  # landmarks whose mean shift moves a voxel


@dataclass(frozen=True, slots=True, eq=False)
class Tone:
    """How an image is shown to the matcher: the brightness drawn for brightness 0 … 1, evenly spaced."""

    name: str
    curve: npt.NDArray[np.float32]

    def __call__(self, brightness: Tensor) -> Tensor:
        """The same shape, [0, 1] → [0, 1], linear between the curve's points."""
        position = brightness * (len(self.curve) - 1)
        below = position.floor().clamp(0, len(self.curve) - 2)
        curve = torch.from_numpy(self.curve)
        index = below.long()
        return torch.lerp(curve[index], curve[index + 1], position - below)


AS_IS = Tone("as it is", np.array([0.0, 1.0], dtype=np.float32))
INVERTED = Tone("inverted", np.array([1.0, 0.0], dtype=np.float32))


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

    def draw(self, planes: Sequence[Plane], tone: Tone) -> Tensor:
        """(B, rows, columns) in [0, 1], free of shading, air black. Planes of one shape."""
        head = smooth_pictures(self.head, planes) > 0.5
        image = self.pictures.on(planes, head) / smooth_pictures(self.mean, planes).clamp(min=1e-12)
        return tone(self._scaled(image)) * head

    def _scaled(self, image: Tensor) -> Tensor:
        return ((image - self.black) / max(self.white - self.black, 1e-12)).clamp(0, 1)

    def brightness(self, frame: Frame, grid: Grid) -> Tensor:
        """(A, B, P) in [0, 1] on the overview grid."""
        image, _ = resample(self.pictures.volume, frame, grid)
        return self._scaled(image.clamp(min=0) / self.mean.data.clamp(min=1e-12))


def learned(
    reference: Subject, b0: Subject, frame: Frame, grid: Grid,
    points_mm: npt.NDArray[np.float64], shift_mm: npt.NDArray[np.float64],
) -> Tone | None:  # fmt: skip
    """The mean brightness of the b = 0 for each brightness of the reference; None where too little is seen.

    grid: the subjects' overview grid. points_mm (N, 3), shift_mm (N, 3): landmarks in frame mm that move
    the b = 0 roughly into place first.
    """
    deep = (reference.head.data > 0.5).numpy()
    deep = (
        ndimage.distance_transform_edt(np.pad(deep, 1), sampling=grid.spacing_mm)[1:-1, 1:-1, 1:-1] > DEPTH_MM
    )
    index = np.argwhere(deep)
    if len(points_mm) < NEIGHBOURS or len(index) < BINS * FEWEST_VOXELS:
        return None
    spacing = np.asarray(grid.spacing_mm)
    near = cKDTree(points_mm).query(index * spacing + np.asarray(grid.first_mm), k=NEIGHBOURS)[1]
    there = torch.from_numpy((index + shift_mm[near].mean(axis=1) / spacing).T).float()
    shown = sample(torch.stack([b0.brightness(frame, grid), b0.head.data]), there)
    inside = shown[1].numpy() > 0.5
    wanted = shown[0].numpy()[inside]
    source = reference.brightness(frame, grid).numpy()[deep][inside]
    bins = np.minimum((source * BINS).astype(int), BINS - 1)
    count, total = (
        ndimage.gaussian_filter1d(np.bincount(bins, weights=w, minlength=BINS), BLUR_BINS, mode="constant")
        for w in (np.ones_like(wanted), wanted)
    )
    filled = count > FEWEST_VOXELS
    if filled.sum() < 2:
        return None
    levels = np.arange(BINS)
    mean = np.interp(levels, levels[filled], total[filled] / count[filled])
    low, high = np.quantile(mean[bins], [BLACK, WHITE])
    curve = ((mean - low) / max(high - low, 1e-12)).clip(0, 1)
    return Tone("as b = 0", curve.astype(np.float32))


def _affine(frame: Frame, grid: Grid) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Voxel (x, y, z) of a grid's (A, B, P) tensor, read as (Z, Y, X), to patient LPS mm."""
    affine = np.eye(4)
    affine[:3, :3] = (frame.directions * np.asarray(grid.spacing_mm))[:, ::-1]
    affine[:3, 3] = frame.origin_lps + frame.directions @ np.asarray(grid.first_mm)
    return affine

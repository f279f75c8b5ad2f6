"""A synthetic head, and real images, with a known distortion: for the demo, the tests and the benchmarks.

The anatomy is a function of patient position (scalp, skull, fluid, folded cortex, white matter, ventricles,
air in the sinus and the ear canals), so that reference and b = 0 can be drawn on any grid without
interpolating one from the other. The field is what such air does: smooth, strong near it, zero far away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from correction.grid import AXIS_OF_LETTER
from correction.volume import Volume

Array = npt.NDArray[np.float64]

SCANNER_UNITS = 1000.0  # scanners store whole numbers; this is the brightest tissue
# tissue: (T2-weighted reference, EPI b = 0); the scalp's fat is suppressed in the EPI
_SIGNAL = {
    "air": (0.0, 0.0),
    "scalp": (0.55, 0.12),
    "skull": (0.06, 0.02),
    "fluid": (1.0, 1.0),
    "grey": (0.52, 0.50),
    "white": (0.38, 0.36),
}
# centres and 1/e radii (mm) of the disturbed regions, head-centred LPS, and their share of the largest shift
_SOURCES = (
    ((0.0, -56.0, -20.0), 24.0, 1.0),
    ((-52.0, 8.0, -28.0), 18.0, -0.6),
    ((52.0, 8.0, -28.0), 18.0, -0.55),
    ((0.0, 50.0, 25.0), 45.0, 0.4),
)


@dataclass(frozen=True, slots=True)
class PhantomCase:
    """One synthetic examination and its truth.

    reference: undistorted, T2-like, its own grid. b0: distorted, EPI grid. undistorted: the b = 0 without
    distortion, same grid. displacement_mm: (3, Z, Y, X), LPS, on b0's grid, undistorted(x) =
    b0(x + u(x))·J. tissue: (Z, Y, X) bool, brain and fluid in undistorted space.
    """

    reference: Volume
    b0: Volume
    undistorted: Volume
    displacement_mm: Tensor
    tissue: Tensor
    phase_encoding: str


def head_case(
    seed: int = 0,
    *,
    phase_encoding: str = "j",
    largest_shift_mm: float = 10.0,
    voxel_mm: tuple[float, float, float] = (2.5, 2.5, 3.0),
    reference_voxel_mm: tuple[float, float, float] = (1.8, 1.8, 3.0),
    rotation_deg: float = 0.0,
    noise: float = 0.02,
    pile_up: bool = True,
) -> PhantomCase:
    """A head of about 150 × 190 × 130 mm.

    phase_encoding: voxel axis of b0 (i, j, k); '-' reverses the shifts, as reversing the polarity does.
    voxel_mm: x, y, z of the b = 0. rotation_deg: both stacks turned about patient z. noise: SD over the
    brightest tissue. pile_up: intensity follows the compression, as in EPI. Deterministic in `seed`.
    """
    random = np.random.default_rng(seed)
    head = _Head.drawn(random)
    epi = _stack(voxel_mm, (190.0, 215.0, 132.0), rotation_deg)
    anatomical = _stack(reference_voxel_mm, (190.0, 215.0, 138.0), rotation_deg)
    axis = AXIS_OF_LETTER[phase_encoding.rstrip("-")]
    sign = -1.0 if phase_encoding.endswith("-") else 1.0
    points = _points(*epi)
    shift_mm = sign * _limited(head.shift(points) * largest_shift_mm, _spacing(epi[0])[axis], axis)
    true_b0 = _drawn(head, epi, 1)
    distorted = _distort(true_b0, shift_mm / _spacing(epi[0])[axis], axis, pile_up)
    distorted = _with_noise(distorted, noise, random)
    unit = epi[0][:3, 2 - axis] / np.linalg.norm(epi[0][:3, 2 - axis])
    return PhantomCase(
        reference=Volume.from_numpy(_with_noise(_drawn(head, anatomical, 0), noise, random), anatomical[0]),
        b0=Volume.from_numpy(distorted, epi[0]),
        undistorted=Volume.from_numpy(true_b0 * SCANNER_UNITS, epi[0]),
        displacement_mm=torch.from_numpy((unit[:, None, None, None] * shift_mm).astype(np.float32)),
        tissue=torch.from_numpy(head.brain(points)),
        phase_encoding=phase_encoding,
    )


def warped(
    image: Volume, phase_encoding: str, largest_shift_mm: float, smoothness_mm: float, seed: int,
    *, pile_up: bool = False,
) -> tuple[Volume, Tensor]:  # fmt: skip
    """A real, undistorted image made EPI-like by a smooth random shift along one voxel axis.

    largest_shift_mm: signed, reached somewhere in the volume. smoothness_mm: SD of the Gaussian that makes
    the field from white noise. Scaled down where it would fold. Returns the distorted image and the true
    displacement (3, Z, Y, X), LPS mm: image(x) = distorted(x + u(x)), divided by J with pile_up.
    """
    axis = AXIS_OF_LETTER[phase_encoding.rstrip("-")]
    spacing = _spacing(image.affine)
    random = np.random.default_rng(seed)
    # periodic: repeating the edge instead would give the corners most of the amplitude
    field = ndimage.gaussian_filter(
        random.standard_normal(image.shape), [smoothness_mm / s for s in spacing], mode="wrap"
    )
    shift_mm = _limited(field / np.abs(field).max() * largest_shift_mm, spacing[axis], axis)
    distorted = _distort(image.data.double().numpy(), shift_mm / spacing[axis], axis, pile_up)
    unit = image.axes[:, 2 - axis]
    displacement = torch.from_numpy((unit[:, None, None, None] * shift_mm).astype(np.float32))
    return Volume.from_numpy(distorted, image.affine), displacement


@dataclass(frozen=True, slots=True)
class _Head:
    """Anatomy as a function of head-centred LPS points (..., 3)."""

    folds: Array  # lattice of smooth noise, 4 mm, that folds the cortex
    texture: Array
    sources: tuple[tuple[tuple[float, float, float], float, float], ...]

    @classmethod
    def drawn(cls, random: np.random.Generator) -> _Head:
        folds = ndimage.gaussian_filter(random.standard_normal((64, 64, 64)), 1.6)
        texture = ndimage.gaussian_filter(random.standard_normal((64, 64, 64)), 0.8)
        moved = tuple(
            (
                (x + random.normal(0, 3), y + random.normal(0, 3), z + random.normal(0, 3)),
                radius * random.uniform(0.9, 1.15),
                share * random.uniform(0.8, 1.1),
            )
            for (x, y, z), radius, share in _SOURCES
        )
        return cls(folds / folds.std(), texture / texture.std(), moved)

    def tissue_signal(self, points: Array, weighting: int) -> Array:
        """Signal in [0, 1.1]; weighting 0 is the reference's contrast, 1 the b = 0's."""
        level = {name: both[weighting] for name, both in _SIGNAL.items()}
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        depth = _depth(points)
        # sulci run where the noise changes sign, down to 18 mm below the surface
        sulcus = np.exp(-((_lattice(self.folds, points) / 0.22) ** 2)) * np.clip(1.4 - depth / 15, 0, 1)
        folded = depth - 9.0 * sulcus
        signal = np.full(depth.shape, level["air"])
        signal = np.where(depth > -14, level["scalp"], signal)
        signal = np.where(depth > -9, level["skull"], signal)
        signal = np.where(depth > -4, level["fluid"], signal)
        brain = np.where(folded > 4.5, level["white"], level["grey"])
        brain = brain * (1 + 0.06 * _lattice(self.texture, points))
        signal = np.where(folded > 0, brain, signal)
        horns = ((np.abs(x) - 11 - 0.12 * np.abs(y)) / 6) ** 2 + (y / 34) ** 2 + ((z - 6) / 10) ** 2 < 1
        nuclei = ((np.abs(x) - 24) / 9) ** 2 + ((y + 2) / 18) ** 2 + ((z - 2) / 11) ** 2 < 1
        signal = np.where(nuclei, level["grey"] * 0.93, signal)
        signal = np.where(horns, level["fluid"], signal)
        return np.where(_cavities(points), level["air"], signal)

    def brain(self, points: Array) -> npt.NDArray[np.bool_]:
        return (_depth(points) > -2) & ~_cavities(points)

    def shift(self, points: Array) -> Array:
        """Largest about 1; positive along the increasing voxel index."""
        total = np.zeros(points.shape[:-1])
        for centre, radius, share in self.sources:
            total += share * np.exp(-((points - np.asarray(centre)) ** 2).sum(-1) / (2 * radius**2))
        return total


def _depth(points: Array) -> Array:
    """About the distance below the brain's surface, mm, negative outside."""
    scaled = points / np.array([62.0, 80.0, 58.0])
    return np.asarray((1.0 - np.sqrt((scaled**2).sum(-1))) * 66.0)


def _cavities(points: Array) -> npt.NDArray[np.bool_]:
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    sinus = (x / 14) ** 2 + ((y + 76) / 11) ** 2 + ((z + 34) / 15) ** 2 < 1
    ears = ((np.abs(x) - 62) / 13) ** 2 + ((y - 8) / 7) ** 2 + ((z + 36) / 7) ** 2 < 1
    return sinus | ears


def _lattice(noise: Array, points: Array) -> Array:
    """Smooth noise of a 4 mm lattice at points, repeated in space."""
    index = np.moveaxis(points / 4.0 + 32.0, -1, 0)
    return np.asarray(ndimage.map_coordinates(noise, index, order=1, mode="grid-wrap"))


def _stack(
    voxel_mm: tuple[float, float, float], extent_mm: tuple[float, float, float], rotation_deg: float
) -> tuple[Array, tuple[int, int, int]]:
    """Affine and (Z, Y, X) of a stack centred on the head, turned about patient z."""
    shape_xyz = [max(2, round(e / v)) for e, v in zip(extent_mm, voxel_mm, strict=True)]
    angle = np.deg2rad(rotation_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(voxel_mm)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape_xyz) - 1) / 2)
    return affine, (shape_xyz[2], shape_xyz[1], shape_xyz[0])


def _spacing(affine: Array) -> tuple[float, float, float]:
    """Voxel edges in tensor order (z, y, x)."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(z), float(y), float(x)


def _points(affine: Array, shape: tuple[int, int, int], fraction: Array | None = None) -> Array:
    """(Z, Y, X, 3) LPS; `fraction` offsets all of them by part of a voxel (x, y, z)."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    index = np.stack([x, y, z], axis=-1).astype(np.float64)
    return (index if fraction is None else index + fraction) @ affine[:3, :3].T + affine[:3, 3]


def _drawn(head: _Head, stack: tuple[Array, tuple[int, int, int]], weighting: int) -> Array:
    """The head on a grid, each voxel the mean of four points inside it (partial volume)."""
    parts = [np.array(part) / 4 for part in ((-1, -1, -1), (1, 1, -1), (1, -1, 1), (-1, 1, 1))]
    return np.asarray(
        np.mean([head.tissue_signal(_points(*stack, part), weighting) for part in parts], axis=0)
    )


def _limited(shift_mm: Array, spacing_mm: float, axis: int) -> Array:
    """The shift scaled down until nothing folds (J ≥ 0.2 for either polarity)."""
    steepest = float(np.abs(np.gradient(shift_mm, axis=axis)).max() / spacing_mm)
    return shift_mm * min(1.0, 0.8 / steepest) if steepest > 0 else shift_mm


def _distort(image: Array, shift_voxels: Array, axis: int, pile_up: bool) -> Array:
    """distorted(x + u(x)) = image(x), divided by J where intensity follows the compression."""
    lines = np.moveaxis(image, axis, -1)
    moved = np.moveaxis(shift_voxels, axis, -1)
    index = np.arange(lines.shape[-1], dtype=np.float64)
    out = np.empty_like(lines)
    for where in np.ndindex(*lines.shape[:-1]):
        origin = np.interp(index, index + moved[where], index)  # of each distorted voxel
        stretch = np.gradient(origin) if pile_up else 1.0
        out[where] = np.interp(origin, index, lines[where]) * stretch
    return np.moveaxis(out, -1, axis)


def _with_noise(image: Array, level: float, random: np.random.Generator) -> Array:
    """Magnitude of the image with complex Gaussian noise (Rician)."""
    noise = random.standard_normal((2, *image.shape)) * level
    return np.asarray(np.hypot(image + noise[0], noise[1]) * SCANNER_UNITS)

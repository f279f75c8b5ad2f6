"""An EPI b = 0 of a real head, with the distortion that the head's own air makes.

The susceptibility of tissue (−9 ppm) against air (+0.4 ppm), convolved with a dipole along patient z, less a
second-order shim in the brain, scaled to a given RMS shift. The image is drawn on half the voxel size and
moved along phase encode so that signal is conserved (it piles up), then averaged into voxels: no
interpolation that a registration could undo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from benchmarks.heads import Head, sampled
from correction import Volume
from correction.grid import AXIS_OF_LETTER

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Shape = tuple[int, int, int]

AIR_LESS_TISSUE_PPM = 9.4
LEAST_JACOBIAN = 0.12
FINER = 2  # drawn at voxel / FINER


@dataclass(frozen=True)
class Protocol:
    """How the head is scanned. rms_mm: of the shift in the brain. tilt_deg: about patient x, y, z.

    noise: SD over the brain's median signal. shim_error_mm: RMS of what a poor second-order shim leaves.
    """

    phase_encoding: str
    seed: int
    rms_mm: float
    tilt_deg: tuple[float, float, float] = (10.0, 2.0, 3.0)
    voxel_mm: float = 2.0
    matrix: int = 112
    noise: float = 0.035
    shim_error_mm: float = 1.5
    stripped: bool = False


@dataclass(frozen=True)
class Scan:
    """b0: with distortion and noise. undistorted: without either, same grid. displacement_mm: (3, Z, Y, X)
    LPS, undistorted(x) = b0(x + u(x)) · J. brain: (Z, Y, X) bool, undistorted space."""

    b0: Volume
    undistorted: Volume
    displacement_mm: npt.NDArray[np.float32]
    brain: Mask


def scan(head: Head, protocol: Protocol) -> Scan:
    """The b = 0 of `head`; deterministic in protocol.seed."""
    random = np.random.default_rng(protocol.seed)
    affine, shape = _stack(head, protocol)
    fine_affine, fine_shape = _finer(affine, shape)
    axis = AXIS_OF_LETTER[protocol.phase_encoding[0]]
    inside = sampled(head.inside, fine_affine, fine_shape) > 0.5
    fine_mm = protocol.voxel_mm / FINER
    shift = _shift(head, protocol, affine, shape, random)
    shift = _without_folds(shift, protocol.voxel_mm, axis)
    shift = sampled(Volume.from_numpy(shift, affine), fine_affine, fine_shape, mode="nearest")
    signal = _signal(head, protocol, fine_affine, inside, random)
    gradient = np.sqrt(sum(g**2 for g in np.gradient(shift, fine_mm)))
    signal = signal * np.exp(-((gradient / 0.9) ** 2))  # dephasing within the voxel
    if protocol.stripped:
        signal = signal * inside
    if protocol.phase_encoding.endswith("-"):
        shift = -shift
    undistorted = _acquired(signal, np.zeros_like(shift), axis)
    distorted = _acquired(signal, shift / fine_mm, axis)
    brain = _pooled(inside.astype(float)) > 0.5
    level = protocol.noise * float(np.median(undistorted[brain]))
    noise = random.standard_normal((2, *shape)) * level
    if protocol.stripped:  # a stripped image has no noise outside
        noise = noise * (distorted > 0.02 * distorted.max())
    unit = affine[:3, 2 - axis] / np.linalg.norm(affine[:3, 2 - axis])
    truth = unit[:, None, None, None] * _pooled(shift)
    return Scan(
        Volume.from_numpy(1000 * np.hypot(distorted + noise[0], noise[1]), affine),
        Volume.from_numpy(1000 * undistorted, affine),
        truth.astype(np.float32),
        brain,
    )


def moved(volume: Volume, shift_mm: Array, turn_deg: Array) -> Volume:
    """The volume displaced rigidly in the patient: its affine changes, its voxels do not."""
    centre = volume.affine @ np.array([*(np.array(volume.shape[::-1]) / 2), 1.0])
    rigid = np.eye(4)
    rigid[:3, :3] = _rotation(turn_deg)
    rigid[:3, 3] = centre[:3] - rigid[:3, :3] @ centre[:3] + shift_mm
    return Volume(volume.data, rigid @ volume.affine)


def _stack(head: Head, protocol: Protocol) -> tuple[Array, Shape]:
    """Oblique grid, centred on the brain, its slices from below the brain to the vertex."""
    turn = _rotation(np.array(protocol.tilt_deg))
    points = _points_of(head.inside)
    middle = (points.max(0) + points.min(0)) / 2
    height = (points - middle) @ turn[:, 2]
    low, high = height.min() - 4.0, height.max() + 8.0
    slices = int(np.ceil((high - low) / protocol.voxel_mm))
    shape = (slices, protocol.matrix, protocol.matrix)
    affine = np.eye(4)
    affine[:3, :3] = turn * protocol.voxel_mm
    centre = middle + turn[:, 2] * (low + high) / 2
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return affine, shape


def _rotation(degrees: Array) -> Array:
    x, y, z = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _points_of(mask: Volume) -> Array:
    z, y, x = np.nonzero(mask.data.numpy() > 0.5)
    return np.stack([x, y, z], axis=1) @ mask.affine[:3, :3].T + mask.affine[:3, 3]


def _finer(affine: Array, shape: Shape) -> tuple[Array, Shape]:
    fine = affine.copy()
    fine[:3, :3] /= FINER
    first = np.full(3, (1 / FINER - 1) / 2)
    fine[:3, 3] = affine[:3, :3] @ first + affine[:3, 3]
    return fine, (shape[0] * FINER, shape[1] * FINER, shape[2] * FINER)


def _shift(head: Head, protocol: Protocol, affine: Array, shape: Shape, random: np.random.Generator) -> Array:
    """Shift in mm on the b = 0's grid, positive along the voxel index for a positive field."""
    field = _continued(_dipole_field(head.tissue), head.tissue)
    skull = head.inside.data.numpy() > 0.5
    terms = _second_order(head.inside.affine, head.inside.shape)
    kept = terms[:, skull][:, ::7]
    weights, *_ = np.linalg.lstsq(kept.T, field[skull][::7], rcond=None)
    field -= np.tensordot(weights, terms, 1)
    error = np.tensordot(random.standard_normal(len(terms) - 1), terms[1:], 1)
    field /= np.sqrt(np.mean(field[skull] ** 2))
    field += protocol.shim_error_mm / protocol.rms_mm * error / np.sqrt(np.mean(error[skull] ** 2))
    shift = sampled(Volume.from_numpy(field, head.tissue.affine), affine, shape, mode="nearest")
    inside = sampled(head.inside, affine, shape) > 0.5
    return np.asarray(shift * protocol.rms_mm / np.sqrt(np.mean(shift[inside] ** 2)))


def _dipole_field(tissue: Volume) -> Array:
    """Field along z in ppm of a susceptibility map; the lowest slice goes on below the map."""
    air = 1.0 - (tissue.data.numpy() > 0.5)
    below = 60  # the body goes on
    air = np.pad(air, [(below, 0), (0, 0), (0, 0)], mode="edge")
    size = [fft.next_fast_len(int(1.4 * n), real=True) for n in air.shape]
    # air beyond the map, so that only its own shape counts
    chi = np.pad(air - 1.0, [(0, s - n) for s, n in zip(size, air.shape, strict=True)]).astype(np.float32)
    kz, ky, kx = (fft.fftfreq(size[0]), fft.fftfreq(size[1]), fft.rfftfreq(size[2]))
    square = kz[:, None, None] ** 2 + ky[None, :, None] ** 2 + kx[None, None, :] ** 2
    square[0, 0, 0] = 1.0
    kernel = (1 / 3 - kz[:, None, None] ** 2 / square).astype(np.float32)
    kernel[0, 0, 0] = 0.0
    spectrum = fft.rfftn(AIR_LESS_TISSUE_PPM * chi)
    field = fft.irfftn(spectrum * kernel, s=size)
    return np.asarray(field[below : air.shape[0], : air.shape[1], : air.shape[2]], dtype=np.float64)


def _continued(field: Array, tissue: Volume) -> Array:
    """The field of tissue, continued into air: what it is there moves no signal, and jumps at the border."""
    solid = ndimage.binary_erosion(tissue.data.numpy() > 0.5)
    nearest = ndimage.distance_transform_edt(~solid, return_distances=False, return_indices=True)
    outward = ndimage.gaussian_filter(field[tuple(nearest)], 3.0)
    near = ndimage.gaussian_filter(solid.astype(float), 1.0)
    return ndimage.gaussian_filter(np.where(solid, field, outward), 1.0) * near + outward * (1 - near)


def _second_order(affine: Array, shape: Shape) -> Array:
    """(10, Z, Y, X): the polynomials up to degree two in patient coordinates, about ± 1 over the grid."""
    z, y, x = (
        np.linspace(-1, 1, n).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, n in enumerate(shape)
    )
    one = np.ones(shape)
    terms = (one, x * one, y * one, z * one, x * y * one, y * z * one, x * z * one)
    return np.stack([*terms, x * x * one, y * y * one, z * z * one])


def _without_folds(shift: Array, step_mm: float, axis: int) -> Array:
    """Smoothed where either polarity would compress below LEAST_JACOBIAN, until nothing does."""
    for _ in range(60):
        steep = np.abs(np.diff(shift, axis=axis, append=np.take(shift, [-1], axis))) / step_mm
        bad = steep > 1.0 - LEAST_JACOBIAN
        if not bad.any():
            return shift
        share = np.clip(3.0 * ndimage.gaussian_filter(bad.astype(np.float32), 1.5), 0, 1)
        share = np.maximum(share, ndimage.gaussian_filter((share > 0.02).astype(np.float32), 1.0))
        shift = (1 - share) * shift + share * ndimage.gaussian_filter(shift, 1.0)
    return shift * (1.0 - LEAST_JACOBIAN) / float(steep.max())


def _signal(
    head: Head, protocol: Protocol, affine: Array, inside: Mask, random: np.random.Generator
) -> Array:
    """The b = 0's contrast on the fine grid: not a function of any reference's intensity alone."""
    signal = sampled(head.t2, affine, inside.shape)
    spread = protocol.voxel_mm / FINER
    contrast = 1 + 0.25 * _smooth_noise(inside.shape, 15.0 / spread, random)
    level = float(np.median(signal[inside]))
    varied = level + contrast.clip(0.4, 1.6) * (signal - level)
    local = 1 + 0.10 * _smooth_noise(inside.shape, 8.0 / spread, random)
    texture = 1 + 0.05 * _smooth_noise(inside.shape, 1.2 / spread, random)
    signal = np.where(inside, varied.clip(0.03) * local * texture, signal * texture)
    coil = np.exp(0.22 * _smooth_noise(inside.shape, 45.0 / spread, random))
    return np.asarray(signal * coil)


def _smooth_noise(shape: Shape, sigma: float, random: np.random.Generator) -> Array:
    """Unit-variance Gaussian noise; drawn coarsely where it is smooth."""
    step = max(1, int(sigma / 2))
    coarse = tuple(n // step + 3 for n in shape)
    noise = ndimage.gaussian_filter(random.standard_normal(coarse), sigma / step, mode="wrap")
    if step > 1:
        noise = ndimage.zoom(noise, step, order=1)
    noise = noise[: shape[0], : shape[1], : shape[2]]
    return np.asarray((noise - noise.mean()) / noise.std())


def _acquired(signal: Array, shift_voxels: Array, axis: int) -> Array:
    """Signal moved along one axis, conserved, and averaged into voxels of FINER³ of the fine grid's.

    What lies at index y comes to y + shift: the cumulative signal at an edge is that at the edge's origin.
    """
    lines = np.moveaxis(signal, axis, -1)
    moves = np.moveaxis(shift_voxels, axis, -1)
    count = lines.shape[-1]
    edges = np.arange(count + 1) - 0.5
    wanted = edges[::FINER]
    total = np.concatenate([np.zeros((*lines.shape[:-1], 1)), np.cumsum(lines, axis=-1)], axis=-1)
    at_edges = np.pad((moves[..., 1:] + moves[..., :-1]) / 2, [(0, 0), (0, 0), (1, 1)], mode="edge")
    out = np.empty((*lines.shape[:-1], len(wanted) - 1))
    for where in np.ndindex(*lines.shape[:-1]):
        out[where] = np.diff(np.interp(wanted, edges + at_edges[where], total[where])) / FINER
    a, b, c = out.shape
    out = out.reshape(a // FINER, FINER, b // FINER, FINER, c).mean(axis=(1, 3))
    return np.moveaxis(out, -1, axis)


def _pooled(fine: Array) -> Array:
    """Mean over each voxel."""
    z, y, x = (n // FINER for n in fine.shape)
    return np.asarray(fine.reshape(z, FINER, y, FINER, x, FINER).mean(axis=(1, 3, 5)))

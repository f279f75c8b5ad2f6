"""Pairs made wrong on purpose, for the tests and the benchmark of the verdict.

Each function returns a volume that looks like one from a scanner and breaks one assumption of the engine.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from correction.grid import Frame, Grid, resample
from correction.volume import Volume


def shifted(volume: Volume, by_lps_mm: tuple[float, float, float]) -> Volume:
    """The same picture elsewhere: the patient moved, or the header's position is wrong."""
    affine = volume.affine.copy()
    affine[:3, 3] += by_lps_mm
    return Volume(volume.data, affine)


def swapped(volume: Volume) -> Volume:
    """Rows and columns exchanged, the header as it was."""
    return Volume(volume.data.transpose(1, 2).contiguous(), volume.affine)


def mirrored(volume: Volume, axis: str) -> Volume:
    """Turned over along i, j or k, the header as it was."""
    return volume.with_data(volume.data.flip("kji".index(axis)).contiguous())


def noise(volume: Volume, seed: int = 0) -> Volume:
    """Rician noise of the volume's own level in its place."""
    generator = torch.Generator().manual_seed(seed)
    level = float(volume.data.mean())
    parts = torch.randn(2, *volume.shape, generator=generator)
    return volume.with_data(torch.hypot(parts[0], parts[1]) * level)


def halved(volume: Volume, axis: str, upper: bool = True) -> Volume:
    """Half of the field of view along i, j or k: the other half was not scanned."""
    dimension = "kji".index(axis)
    size = volume.data.shape[dimension]
    first = size // 2 if upper else 0
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2 - dimension] * first
    return Volume(volume.data.narrow(dimension, first, size - size // 2).contiguous(), affine)


def foreign(reference: Volume, b0: Volume) -> Volume:
    """Another patient's reference, laid where its head covers that of the b = 0 best.

    Translations up to 60 mm from centre on centre, by 6 mm; a reference that merely lies elsewhere would be
    too easy to tell.
    """
    frame = Frame.of(b0, None)
    reach, step = 10, 6.0
    low, high = np.zeros(3), np.asarray([frame.grid().last_mm(axis) for axis in range(3)])
    centre = b0.affine[:3, :3] @ ((np.asarray(b0.shape[::-1]) - 1) / 2) + b0.affine[:3, 3]
    own = reference.affine[:3, :3] @ ((np.asarray(reference.shape[::-1]) - 1) / 2) + reference.affine[:3, 3]
    reference = shifted(reference, _triple(centre - own))
    inner = Grid.between(_triple(low), _triple(high), (step, step, step))
    outer = Grid(
        _triple(np.asarray(inner.first_mm) - reach * step), inner.spacing_mm,
        (inner.shape[0] + 2 * reach, inner.shape[1] + 2 * reach, inner.shape[2] + 2 * reach),
    )  # fmt: skip
    there, inside = resample(reference, frame, outer)
    head = (_bright(there) & inside).float()
    here = _bright(resample(b0, frame, inner)[0]).float()
    best, offset = -1.0, (0, 0, 0)
    for move in itertools.product(range(2 * reach + 1), repeat=3):
        a, b, c = (slice(m, m + n) for m, n in zip(move, inner.shape, strict=True))
        part = head[a, b, c]
        dice = float(2 * (part * here).sum() / (part.sum() + here.sum()))
        if dice > best:
            best, offset = dice, (move[0] - reach, move[1] - reach, move[2] - reach)
    return shifted(reference, _triple(-step * (frame.directions @ np.asarray(offset, dtype=np.float64))))


def with_lesion(
    volume: Volume, centre_lps: tuple[float, float, float], radius_mm: float, gain: float
) -> tuple[Volume, torch.Tensor]:
    """A ball of `gain` times its signal, the rim one voxel soft; and where it is, (Z, Y, X) bool."""
    z, y, x = (torch.arange(n, dtype=torch.float64) for n in volume.shape)
    index = torch.stack(torch.meshgrid(x, y, z, indexing="ij")).permute(0, 3, 2, 1)
    points = torch.einsum("ij,j...->i...", torch.from_numpy(volume.affine[:3, :3].copy()), index)
    away = points + torch.from_numpy(volume.affine[:3, 3] - np.asarray(centre_lps))[:, None, None, None]
    distance = torch.linalg.vector_norm(away, dim=0)
    edge_mm = min(volume.spacing_mm)
    share = ((radius_mm - distance) / edge_mm + 0.5).clamp(0, 1).float()
    return volume.with_data(volume.data * (1 + (gain - 1) * share)), distance < radius_mm


def _bright(image: torch.Tensor) -> torch.Tensor:
    return image > 0.15 * float(image.flatten().quantile(0.95))


def _triple(vector: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float, float]:
    return float(vector[0]), float(vector[1]), float(vector[2])

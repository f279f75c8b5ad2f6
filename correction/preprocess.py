"""What is done to the images before they are compared: masks that need no brain, shading, normalisation."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from correction import smooth
from correction.errors import UnusableImage
from correction.grid import Triple


def finite(name: str, data: Tensor) -> Tensor:
    """float32 data without NaN or infinities; raises UnusableImage when nothing is left to register."""
    data = data.to(torch.float32)
    good = torch.isfinite(data)
    if not bool(good.any()):
        raise UnusableImage(f"The {name} has no finite voxel; check the file it was read from.")
    data = torch.where(good, data, torch.zeros_like(data))
    if float(data.max() - data.min()) <= 0:
        raise UnusableImage(f"The {name} is constant: there is nothing to register.")
    return data


def head_mask(image: Tensor, spacing_mm: Triple, threshold: float, closing_mm: float) -> Tensor:
    """Whatever gives signal (head, leg, abdomen), without air.

    image: (a, b, p), magnitude. threshold: share of the 98th percentile of the smoothed image.
    Closed by closing_mm and filled slice by slice in all three planes. Returns (a, b, p) bool.
    """
    smoothed = smooth.gaussian(image, [2.0 / s for s in spacing_mm])
    mask = (smoothed > threshold * bright(image, spacing_mm)).cpu().numpy()
    radius = [max(0, round(closing_mm / s)) for s in spacing_mm]
    mask = np.pad(mask, [(r + 1, r + 1) for r in radius])
    near = ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= closing_mm
    mask = ndimage.distance_transform_edt(near, sampling=spacing_mm) > closing_mm
    mask = mask[tuple(slice(r + 1, n - r - 1) for r, n in zip(radius, mask.shape, strict=True))]
    for axis in range(3):
        for index in range(mask.shape[axis]):
            plane = (slice(None),) * axis + (index,)
            mask[plane] = ndimage.binary_fill_holes(mask[plane])
    return torch.from_numpy(_largest(mask)).to(image.device)


def bright(image: Tensor, spacing_mm: Triple) -> Tensor:
    """The signal of bright tissue, scalar: the 98th percentile of the image smoothed by 2 mm."""
    return torch.quantile(_thinned(smooth.gaussian(image, [2.0 / s for s in spacing_mm])), 0.98)


def debiased_log(image: Tensor, mask: Tensor, spacing_mm: Triple, sigma_mm: float, offset: float) -> Tensor:
    """log(image / local mean inside the mask + offset): contrasts free of coil shading.

    image: (a, b, p), mask: (a, b, p) bool. Air becomes log(offset).
    """
    weight = mask.to(image.dtype)
    sigma = [sigma_mm / s for s in spacing_mm]
    both = smooth.gaussian(torch.stack([image.clamp(min=0) * weight, weight]), sigma, truncate=2.5)
    mean = both[0] / both[1].clamp(min=1e-3)
    floor = 0.05 * (image.clamp(min=0) * weight).sum() / weight.sum().clamp(min=1)
    return torch.log((image.clamp(min=0) / mean.clamp(min=float(floor))).clamp(max=20.0) + offset)


def z_score(image: Tensor) -> Tensor:
    """(image − mean) / SD over the whole image, as the paper."""
    return (image - image.mean()) / image.std().clamp(min=1e-12)


def bounding_box(mask: Tensor) -> tuple[tuple[int, int], ...]:
    """First and last index of the mask along each axis; the whole extent when it is empty."""
    out = []
    for axis in range(3):
        others = [k for k in range(3) if k != axis]
        hit = torch.nonzero(mask.any(dim=others[1]).any(dim=others[0])).flatten()
        out.append((int(hit[0]), int(hit[-1])) if len(hit) else (0, mask.shape[axis] - 1))
    return tuple(out)


def _largest(
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """The components that hold at least a tenth of the largest one's voxels (two legs are two)."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.isin(labels, np.flatnonzero(sizes >= 0.1 * sizes.max()))


def _thinned(image: Tensor, most: int = 2_000_000) -> Tensor:
    """Every n-th voxel, so that torch.quantile's limit on size holds."""
    flat = image.flatten()
    return flat[:: max(1, len(flat) // most)]

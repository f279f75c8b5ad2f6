"""Real heads with good anatomical images, and what a simulated EPI needs to know of them.

From each head: its references on their own grids, a T2-weighted image to draw the b = 0 from, what lies
inside the skull, and where there is tissue and where air. Sources (folders of the unpacked studies):
open_ms_long01 (T1, T2, FLAIR of 3–4 mm slices), siemens-xa30-enhanced (T1 2 mm), philips-classic (T1 1 mm)
and uih (T1 0.5 × 0.5 × 2 mm). Where only a T1 exists, the T2-weighted image and a FLAIR-like reference are
functions of it and of the tissue, so their contrast is not the scanner's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from correction import Volume
from dicom_node.headers import files_below, read_series
from dicom_node.load import load_reference

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

STEP_MM = 1.5  # of the masks
# signal of a T2-weighted, fat-suppressed b = 0 inside the skull, by T1 signal over that of white matter
_T2_OF_T1 = ((0.0, 0.25, 0.45, 0.68, 0.95, 1.15, 1.6), (1.0, 1.0, 0.80, 0.52, 0.36, 0.30, 0.20))
_FLAIR_OF_T1 = ((0.0, 0.30, 0.50, 0.68, 0.95, 1.15, 1.6), (0.05, 0.08, 0.60, 0.90, 0.66, 0.60, 0.50))
# outside it: muscle gives some signal, suppressed fat hardly any
_OUTSIDE_OF_T1 = ((0.0, 0.15, 0.5, 0.9, 1.5), (0.0, 0.08, 0.20, 0.10, 0.06))


@dataclass(frozen=True)
class Head:
    """One head. images: references by contrast, own grids. t2: (Z, Y, X), brightest fluid about 1.

    inside: 1 within the skull, else 0. tissue: 1 where there is tissue or bone, 0 in air. Both on an
    axis-aligned LPS grid of STEP_MM.
    """

    name: str
    images: dict[str, Volume]
    t2: Volume
    inside: Volume
    tissue: Volume


def head(name: str, data: Path) -> Head:
    """One of "ms", "xa30", "philips", "uih"; `data` is the folder of the unpacked studies."""
    return _SOURCES[name](data)


def nifti(path: Path) -> Volume:
    """(X, Y, Z) RAS → (Z, Y, X) LPS."""
    image = nibabel.load(path)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    return Volume.from_numpy(np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0), affine)


def sampled(
    volume: Volume, affine: Array, shape: tuple[int, int, int], order: int = 1, mode: str = "constant"
) -> Array:
    """`volume` at the voxels of another grid, (Z, Y, X); 0 outside with mode "constant"."""
    matrix = np.linalg.inv(volume.affine) @ affine
    turned = matrix[:3, :3][::-1, ::-1]  # index order z, y, x
    return np.asarray(
        ndimage.affine_transform(
            volume.data.numpy(), turned, matrix[:3, 3][::-1], shape, order=order, mode=mode
        )
    )


def box_around(volume: Volume, step_mm: float) -> tuple[Array, tuple[int, int, int]]:
    """Affine and (Z, Y, X) of the axis-aligned LPS grid that holds all of `volume`."""
    last = np.array(volume.shape[::-1]) - 0.5
    corners = np.array([[x, y, z] for x in (-0.5, last[0]) for y in (-0.5, last[1]) for z in (-0.5, last[2])])
    points = corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    x, y, z = (int(n) for n in np.ceil(np.ptp(points, axis=0) / step_mm))
    affine = np.diag([step_mm, step_mm, step_mm, 1.0])
    affine[:3, 3] = points.min(0) + step_mm / 2
    return affine, (z, y, x)


def grown(mask: Mask, mm: float) -> Mask:
    found: Mask = ndimage.distance_transform_edt(~mask) * STEP_MM <= mm
    return found


def shrunk(mask: Mask, mm: float) -> Mask:
    found: Mask = ndimage.distance_transform_edt(mask) * STEP_MM > mm
    return found


def closed(mask: Mask, mm: float, mode: str = "constant") -> Mask:
    """Gaps up to 2 · mm wide filled; mode "edge" goes on beyond the faces of the grid."""
    width = int(np.ceil(mm / STEP_MM)) + 1
    padded = np.pad(mask, width, mode=mode)  # type: ignore[call-overload]
    inner = (slice(width, -width),) * 3
    found: Mask = shrunk(grown(padded, mm), mm)[inner]
    return found


def largest(mask: Mask) -> Mask:
    """The largest connected part."""
    labels, _ = ndimage.label(mask)
    found: Mask = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return found


def _from_t1(name: str, t1: Volume, depth_mm: float, erosion_mm: float) -> Head:
    """depth_mm: from the vertex to the base of the brain. erosion_mm: what parts brain and scalp."""
    affine, shape = box_around(t1, STEP_MM)
    signal = sampled(t1, affine, shape)
    smooth = ndimage.gaussian_filter(signal, 0.7)
    level = float(np.median(smooth[smooth > 0.1 * np.percentile(smooth, 98)]))
    filled = shrunk(closed(smooth > 0.25 * level, 15.0), 18.0)
    shading = _shading(signal / level, filled) * level
    ratio = ndimage.gaussian_filter(signal / shading, 0.5)
    matter = (ratio > 0.5) & (ratio < 1.3)
    vertex = np.flatnonzero((smooth > 0.25 * level).any((1, 2))).max()
    matter[: max(0, int(vertex - depth_mm / STEP_MM))] = False
    core = largest(shrunk(matter, erosion_mm))
    brain = largest(ndimage.binary_opening(grown(core, erosion_mm + 1.5) & matter))
    inside = closed(brain, 9.0)
    inside = np.stack([ndimage.binary_fill_holes(plane) for plane in inside])
    within = Volume.from_numpy(inside, affine)
    # on the T1's own grid, so that no resolution is lost
    own = t1.data.numpy() / np.maximum(
        sampled(Volume.from_numpy(shading, affine), t1.affine, t1.shape, mode="nearest"), 1e-6
    )
    in_skull = np.clip(sampled(within, t1.affine, t1.shape), 0, 1)
    outer = np.interp(own, *_OUTSIDE_OF_T1)
    flair = in_skull * np.interp(own, *_FLAIR_OF_T1) + (1 - in_skull) * 0.5 * own.clip(0, 1.5)
    t2 = in_skull * np.interp(own, *_T2_OF_T1) + (1 - in_skull) * outer
    return Head(
        name,
        {"T1": t1, "FLAIR-like": Volume.from_numpy(1000 * flair, t1.affine)},
        Volume.from_numpy(t2, t1.affine),
        within,
        Volume.from_numpy(_tissue(smooth, inside, 0.25 * level), affine),
    )


def _ms(data: Path) -> Head:
    folder = data / "open_ms_long01"
    t1, t2, flair, brain = (nifti(folder / f"{n}.nii.gz") for n in ("t1", "t2", "flair", "brainmask"))
    affine, shape = box_around(flair, STEP_MM)
    inside = closed(sampled(brain, affine, shape, mode="nearest") > 0.5, 4.0)
    # T1 and T2 together: bone is dark in both, fat and fluid each bright in one
    both = sum(
        sampled(v, affine, shape) / np.percentile(v.data.numpy()[v.data.numpy() > 0], 90) for v in (t1, t2)
    )
    smooth = ndimage.gaussian_filter(np.asarray(both), 0.7)
    tissue = _tissue(smooth, inside, 0.15 * float(np.median(smooth[inside])))
    fluid = float(np.percentile(t2.data.numpy(), 99.7))
    in_skull = np.clip(sampled(Volume.from_numpy(inside, affine), t2.affine, t2.shape, mode="nearest"), 0, 1)
    signal = t2.data.numpy() / fluid
    drawn = in_skull * signal.clip(0, 1.2) + (1 - in_skull) * 0.15 * np.sqrt(signal.clip(0, 1))
    return Head(
        "ms",
        {"T1": t1, "T2": t2, "FLAIR": flair},
        Volume.from_numpy(drawn, t2.affine),
        Volume.from_numpy(inside, affine),
        Volume.from_numpy(tissue, affine),
    )


def _shading(signal: Array, inside: Mask) -> Array:
    """Local level of white matter, 25 mm Gaussian."""
    sigma = 25.0 / STEP_MM
    weight = (inside & (signal > 0.4)).astype(float)
    level = np.ones_like(signal)
    for _ in range(4):
        share = ndimage.gaussian_filter(weight, sigma)
        level = ndimage.gaussian_filter(signal * weight, sigma) / np.maximum(share, 1e-3)
        weight = (inside & (signal > 0.75 * level) & (signal < 1.35 * level)).astype(float)
    typical = float(np.median(level[weight > 0]))
    return np.where(share > 0.02, level, typical).clip(0.2 * typical)


def _tissue(smooth: Array, inside: Mask, level: float) -> Mask:
    """Whatever gives signal, and the bone between; cavities wider than 8 mm stay air."""
    return closed((smooth > level) | inside, 4.0, mode="edge")


def _series(data: Path, study: str, number: int) -> Volume:
    read = read_series(list(files_below([data / study]))).series.values()
    return next(load_reference(one) for one in read if one[0].series.series_number == number)


_SOURCES: dict[str, Callable[[Path], Head]] = {
    "ms": _ms,
    "xa30": lambda data: _from_t1("xa30", _series(data, "siemens-xa30-enhanced", 6), 140.0, 4.5),
    "philips": lambda data: _from_t1("philips", _series(data, "philips-classic", 1301), 138.0, 3.5),
    "uih": lambda data: _from_t1("uih", _series(data, "uih", 2), 160.0, 3.5),
}

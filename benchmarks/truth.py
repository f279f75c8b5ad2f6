"""Real truths: a study's own gradient-echo field map as shifts along the phase encode of its DWI.

A field map has errors of its own: on the siemens-xa30-enhanced study it differs by about 0.8–1.2 mm from a
reversed-polarity estimate, so nothing below that can be told apart there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.restoration import unwrap_phase

from correction import Volume
from dicom_node.headers import InstanceFacts, files_below, read_series
from dicom_node.load import LoadedSeries, load, load_reference

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Parts = Mapping[int, list[InstanceFacts]]  # a study's instances by SeriesNumber

SIEMENS_PHASE_FULL_SCALE = 4096.0  # the stored phase runs from −4096 to 4095 for −π to π
LARGE_MM = 4.0


@dataclass(frozen=True, slots=True)
class Numbers:
    """Which SeriesNumbers of a study are what; `phase` is None where one series holds both echoes.

    corrected_by_scanner: the DWI was exported without the distortion that the map describes.
    """

    dwi: int
    reference: int
    magnitude: int
    phase: int | None = None
    echo_difference_s: float = 0.00246
    corrected_by_scanner: bool = False


STUDIES = {
    "siemens-xa30-enhanced": Numbers(17, 6, 8, 9),
    "siemens-xa30-classic": Numbers(11001, 6001, 9001, 10001),
    # "EPI geometry correction = yes" in the scanner's protocol of this series (published with it, in
    # dcm_qa_philips_enh); and turbinates, eyes and sinus walls lie on the T1's at every off-resonance
    "philips-classic": Numbers(2201, 1301, 2001, corrected_by_scanner=True),
}


@dataclass(frozen=True, slots=True)
class FieldMap:
    """hz: (Z, Y, X) off-resonance on the map's grid, continued outside the head. head: where it was seen."""

    hz: Array
    head: Mask
    grid: Volume


def series(study: Path) -> Parts:
    read = read_series(list(files_below([study]))).series.values()
    return {instances[0].series.series_number or 0: instances for instances in read}


def mean_b0(dwi: LoadedSeries) -> Volume:
    """The mean of the lowest shell."""
    return Volume.from_numpy(dwi.voxels[list(dwi.lowest_b())].mean(axis=0), dwi.affine)


def field_map(parts: Parts, numbers: Numbers) -> FieldMap:
    """The study's map in Hz: one stored phase difference (Siemens), or two echoes with phase in mrad."""
    if numbers.phase is not None:
        phase = load(parts[numbers.phase]).volume(0)
        wrapped = phase.data.numpy().astype(np.float64) / SIEMENS_PHASE_FULL_SCALE * np.pi
        return _unwrapped(wrapped, load_reference(parts[numbers.magnitude]), numbers.echo_difference_s, phase)
    both = load(parts[numbers.magnitude])
    echoes: dict[str, list[int]] = {"MAGNITUDE": [], "PHASE": []}
    kinds = both.arrangement.volumes
    for index in sorted(range(len(kinds)), key=lambda index: kinds[index].echo_time_ms or 0.0):
        echoes[kinds[index].component].append(index)
    first, second = echoes["PHASE"]
    turned = np.exp(1j * (both.voxels[second].astype(np.float64) - both.voxels[first]) / 1000.0)
    times_ms = [kinds[index].echo_time_ms or 0.0 for index in (first, second)]
    magnitude = both.volume(echoes["MAGNITUDE"][0])
    return _unwrapped(np.angle(turned), magnitude, (times_ms[1] - times_ms[0]) / 1000.0, magnitude)


def _unwrapped(wrapped: Array, magnitude: Volume, echo_difference_s: float, grid: Volume) -> FieldMap:
    """Radians in (−π, π] → Hz, smoothed by half a voxel inside the head and continued from its rim."""
    smooth = ndimage.gaussian_filter(magnitude.data.numpy(), 0.7)
    head = largest(ndimage.binary_opening(smooth > 0.15 * np.percentile(smooth, 98)))
    unwrapped = np.asarray(unwrap_phase(np.ma.array(wrapped, mask=~head)).filled(0.0))
    turns = np.round(np.median(unwrapped[head]) / (2 * np.pi))
    hz = (unwrapped / (2 * np.pi) - turns) / echo_difference_s
    weight = ndimage.gaussian_filter(head.astype(float), 0.6)
    hz = np.where(head, ndimage.gaussian_filter(hz * head, 0.6) / np.maximum(weight, 1e-3), 0.0)
    nearest = ndimage.distance_transform_edt(~head, return_distances=False, return_indices=True)
    return FieldMap(hz[tuple(nearest)], head, grid)


def largest(mask: Mask) -> Mask:
    """The largest connected part."""
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    found: Mask = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return found


def sampled(values: Array, source: Volume, target: Volume, order: int = 1) -> Array:
    """`values` on source's grid, at target's voxels."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in target.shape), indexing="ij")
    points = target.affine @ np.stack([x.ravel(), y.ravel(), z.ravel(), np.ones(x.size)])
    index = np.linalg.inv(source.affine) @ points
    at = [index[2], index[1], index[0]]
    return np.asarray(ndimage.map_coordinates(values, at, order=order, mode="nearest")).reshape(target.shape)


def pulled(image: Array, shift_mm: Array, step_mm: float, modulate: bool = False) -> Array:
    """image(…, y + u/step) along rows (axis 1), linearly; modulate: times 1 + ∂u/∂y, at least zero."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij")
    out = np.asarray(ndimage.map_coordinates(image, [z, y + shift_mm / step_mm, x], order=1, mode="nearest"))
    if modulate:
        out = out * np.clip(1.0 + np.gradient(shift_mm, step_mm, axis=1), 0.0, None)
    return out


def brain_of(b0: Volume, shift_mm: Array, seen: Mask, step_mm: float) -> Mask:
    """A rough brain mask: what is bright in the b = 0 once it is corrected with `shift_mm`."""
    smooth = ndimage.gaussian_filter(pulled(b0.data.numpy().astype(np.float64), shift_mm, step_mm), 0.5)
    cross = ndimage.generate_binary_structure(3, 1)
    inside = ndimage.binary_erosion(seen, cross, border_value=1)
    bright = (smooth > 0.33 * np.percentile(smooth[seen], 90)) & inside
    core = largest(ndimage.binary_erosion(bright, ndimage.iterate_structure(cross, 2), border_value=1))
    brain = ndimage.binary_dilation(core, ndimage.iterate_structure(cross, 2)) & bright
    brain = ndimage.binary_closing(np.pad(brain, 3), iterations=2)[3:-3, 3:-3, 3:-3] & inside
    return np.stack([ndimage.binary_fill_holes(plane) for plane in brain])


def figures(error: Array, truth: Array, brain: Mask) -> dict[str, float]:
    """RMSE, p95, RMSE without the mean, and RMSE where the shift is large; mm."""
    inside = error[brain]
    far = error[brain & (np.abs(truth) > LARGE_MM)]
    return {
        "rmse_mm": float(np.sqrt((inside**2).mean())),
        "p95_mm": float(np.percentile(np.abs(inside), 95)),
        "demeaned_rmse_mm": float(inside.std()),
        "large_shift_rmse_mm": float(np.sqrt((far**2).mean())) if far.size else 0.0,
    }


def normalised_correlation(first: Array, second: Array, inside: Mask) -> float:
    """NCC of two images over a mask."""
    return float(np.corrcoef(first[inside], second[inside])[0, 1])

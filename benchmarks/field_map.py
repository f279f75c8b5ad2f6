"""The engine against a measured field: data/siemens-xa30-enhanced, AP b = 0 to T1, truth its GRE field map.

    python -m benchmarks.field_map STUDY [--method NAME] [--matcher NAME] [--set key=value] [--json FILE]

STUDY is the unpacked folder. The truth: phase difference of the echoes at 10.00 and 12.46 ms, unwrapped
(skimage), in Hz, times the effective readout. A field map has errors of its own: on this study it differs by
about 0.8–1.2 mm from a reversed-polarity estimate, so nothing below that can be told apart here.
Prints RMSE and p95 in the brain before and after, also without the mean, and the device.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.restoration import unwrap_phase

from correction import Volume, correct, methods
from correction.landmarks import find_landmarks
from dicom_node.headers import InstanceFacts, files_below, read_series
from dicom_node.load import load, load_reference

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

DWI, T1, MAGNITUDE, PHASE = 17, 6, 8, 9  # SeriesNumbers
ECHO_DIFFERENCE_S = 0.00246
PHASE_FULL_SCALE = 4096.0  # the stored phase runs from −4096 to 4095 for −π to π
LARGE_MM = 4.0


def series(study: Path) -> dict[int, list[InstanceFacts]]:
    """The study's instances by SeriesNumber."""
    read = read_series(list(files_below([study]))).series.values()
    return {instances[0].series.series_number or 0: instances for instances in read}


def field_hz(phase: Volume, magnitude: Volume) -> tuple[Array, Mask]:
    """The field on the map's grid, continued outside the head, and where the head is."""
    smooth = ndimage.gaussian_filter(magnitude.data.numpy(), 0.7)
    head = largest(ndimage.binary_opening(smooth > 0.15 * np.percentile(smooth, 98)))
    wrapped = phase.data.numpy().astype(np.float64) / PHASE_FULL_SCALE * np.pi
    unwrapped = np.asarray(unwrap_phase(np.ma.array(wrapped, mask=~head)).filled(0.0))
    turns = np.round(np.median(unwrapped[head]) / (2 * np.pi))
    hz = (unwrapped / (2 * np.pi) - turns) / ECHO_DIFFERENCE_S
    weight = ndimage.gaussian_filter(head.astype(float), 0.6)
    hz = np.where(head, ndimage.gaussian_filter(hz * head, 0.6) / np.maximum(weight, 1e-3), 0.0)
    nearest = ndimage.distance_transform_edt(~head, return_distances=False, return_indices=True)
    return hz[tuple(nearest)], head


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


def brain_of(b0: Volume, shift_mm: Array, seen: Mask, step_mm: float) -> Mask:
    """A rough brain mask: what is bright in the b = 0 once it is corrected with the truth."""
    rows = np.arange(b0.shape[1])
    image = b0.data.numpy()
    warped = np.zeros_like(image)
    for z in range(b0.shape[0]):
        for x in range(b0.shape[2]):
            warped[z, :, x] = np.interp(rows + shift_mm[z, :, x] / step_mm, rows, image[z, :, x])
    smooth = ndimage.gaussian_filter(warped, 0.5)
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
    return {
        "rmse_mm": float(np.sqrt((inside**2).mean())),
        "p95_mm": float(np.percentile(np.abs(inside), 95)),
        "demeaned_rmse_mm": float(inside.std()),
        "large_shift_rmse_mm": float(np.sqrt((error[brain & (np.abs(truth) > LARGE_MM)] ** 2).mean())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--method", choices=["clinical", "paper"], default="clinical")
    parser.add_argument("--matcher", default="none", help="as correction.landmarks.find_landmarks takes it")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    parts = series(arguments.study)
    dwi = load(parts[DWI])
    b0, t1 = dwi.volume(dwi.lowest_b()[0]), load_reference(parts[T1])
    phase = load(parts[PHASE]).volume(0)
    hz, head = field_hz(phase, load_reference(parts[MAGNITUDE]))
    encoding, readout_s = dwi.facts.phase_encoding, dwi.facts.total_readout_s or 0.0
    if encoding is None:
        raise SystemExit("the DWI does not say its phase-encode axis")
    lines, step_mm = b0.shape[1], b0.spacing_mm[1]
    voxels_per_hz = readout_s * lines / (lines - 1)
    # increasing row index is posterior here; a positive field moves the image along phase encode
    sign = 1.0 if encoding.increasing else -1.0
    truth = sign * sampled(hz, phase, b0) * voxels_per_hz * step_mm
    seen = sampled(head.astype(float), phase, b0) > 0.5
    brain = brain_of(b0, truth, seen, step_mm)
    chosen = methods.clinical() if arguments.method == "clinical" else methods.paper()
    axis, landmarks = encoding.voxel_axis, None
    if arguments.matcher != "none":
        landmarks = find_landmarks(b0, t1, axis, arguments.matcher)
    result = correct(
        b0, t1, phase_encoding=axis, settings=chosen.override(arguments.changes),
        landmarks=landmarks, readout_s=readout_s,
    )  # fmt: skip
    found = np.tensordot(b0.axes[:, 1], result.displacement.numpy(), 1)
    document = {
        "device": f"{platform.machine()}, {result.device}",
        "method": arguments.method,
        "matcher": result.landmarks.matcher,
        "brain_ml": float(brain.sum() * np.prod(b0.spacing_mm) / 1000),
        "before": figures(-truth, truth, brain),
        "after": figures(found - truth, truth, brain),
        "verdict": str(result.verdict.level),
        "seconds": result.seconds,
    }
    print(json.dumps(document, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Opposite polarities of one head, each corrected by itself against the T1: do they agree?

    python -m benchmarks.polarity STUDY [--matcher NAME] [--set key=value] [--export FOLDER]
                                        [--third FILE] [--json FILE] [--picture FILE]

STUDY is data/uih, which holds A→P and P→A of the same protocol. The right fields are each other's negative:
the RMS of their sum (mm, in the brain) is what both are wrong by together, the RMS of half their difference
is the distortion. A mean of the sum is no distortion but the head's motion since the T1. NCC of the two
b = 0 is taken as they are, and after correction with Jacobian modulation.

A third opinion uses both polarities at once, which neither correction may: --export writes ap.nii.gz and
pa.nii.gz, PyHySCO (`pyhysco ap.nii.gz pa.nii.gz 2 --output_dir FOLDER/`) makes a field of them, and --third
reads its -EstFieldMap.nii.gz (mm on the faces between rows; its sign is found by correlation).
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import matplotlib
import nibabel
import numpy as np
from matplotlib.figure import Figure

from benchmarks.truth import Array, Mask, brain_of, mean_b0, normalised_correlation, pulled, series
from correction import Volume, correct, methods
from correction.engine import Correction
from correction.landmarks import find_landmarks
from dicom_node.load import load, load_reference

matplotlib.use("Agg")

AP, PA, REFERENCE = 9, 6, 2  # SeriesNumbers of data/uih


def rms(values: Array, inside: Mask) -> float:
    return float(np.sqrt((values[inside] ** 2).mean()))


def corrected(b0: Volume, reference: Volume, matcher: str, changes: list[str]) -> tuple[Array, Correction]:
    """Shift in mm along increasing row index, (Z, Y, X)."""
    landmarks = None if matcher == "none" else find_landmarks(b0, reference, "j", matcher)
    result = correct(b0, reference, "j", methods.clinical().override(changes), landmarks)
    return np.tensordot(b0.axes[:, 1], result.displacement.numpy(), 1), result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--matcher", default="auto", help="as correction.landmarks.find_landmarks takes it")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--export", type=Path)
    parser.add_argument("--third", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    parts = series(arguments.study)
    ap, pa = (mean_b0(load(parts[number])) for number in (AP, PA))
    if not np.allclose(ap.affine, pa.affine, atol=1e-3) or ap.shape != pa.shape:
        raise SystemExit("the two polarities do not share one grid")
    if arguments.export:
        export(arguments.export, {"ap": ap, "pa": pa})
        return
    reference, step_mm = load_reference(parts[REFERENCE]), ap.spacing_mm[1]
    runs = [corrected(b0, reference, arguments.matcher, arguments.changes) for b0 in (ap, pa)]
    first, second = (shift for shift, _ in runs)
    seen = (runs[0][1].mask & runs[1][1].mask).numpy()
    brain = brain_of(ap, 0.5 * (first - second), seen, step_mm)
    images = [b0.data.numpy().astype(np.float64) for b0 in (ap, pa)]

    def agreement(one: Array, other: Array) -> float:
        """NCC of the two modulated images under shifts of their own."""
        moved = [
            pulled(image, shift, step_mm, True) for image, shift in zip(images, (one, other), strict=True)
        ]
        return normalised_correlation(moved[0], moved[1], brain)

    document: dict[str, object] = {
        "device": f"{platform.machine()}, {runs[0][1].device}",
        "matcher": runs[0][1].landmarks.matcher,
        "chosen": [result.quality.chosen for _, result in runs],
        "verdicts": [str(result.verdict.level) for _, result in runs],
        "brain_ml": float(brain.sum() * np.prod(ap.spacing_mm) / 1000),
        "ncc_before": normalised_correlation(images[0], images[1], brain),
        "ncc_after": agreement(first, second),
        "ncc_after_common_field": agreement(0.5 * (first - second), 0.5 * (second - first)),
        "distortion_rms_mm": rms(0.5 * (first - second), brain),
        "sum_of_fields_rms_mm": rms(first + second, brain),
        "sum_of_fields_mean_mm": float((first + second)[brain].mean()),
        "sum_of_fields_demeaned_rms_mm": float((first + second)[brain].std()),
    }
    third = None
    if arguments.third:
        faces = np.asarray(nibabel.load(arguments.third).dataobj, dtype=np.float64).transpose(2, 1, 0)
        third = 0.5 * (faces[:, 1:] + faces[:, :-1])
        third *= np.sign(((first - second) * third)[brain].sum())
        document["against_third"] = {
            "before_rms_mm": rms(third, brain),
            "ap_rms_mm": rms(first - third, brain),
            "pa_rms_mm": rms(second + third, brain),
            "ap_demeaned_rms_mm": float((first - third)[brain].std()),
            "pa_demeaned_rms_mm": float((second + third)[brain].std()),
            "both_rms_mm": rms(0.5 * (first - second) - third, brain),
            "ncc_of_third": agreement(third, -third),
        }
    print(json.dumps(document, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if arguments.picture:
        draw(arguments.picture, images, [first, second], third, brain, step_mm)


def export(folder: Path, volumes: dict[str, Volume]) -> None:
    """Both images for a peer, arrays as they are (X, Y, Z), with an affine that holds their spacing only."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, volume in volumes.items():
        image = nibabel.Nifti1Image(
            volume.data.numpy().transpose(2, 1, 0), np.diag([*volume.spacing_mm, 1.0])
        )
        image.to_filename(folder / f"{name}.nii.gz")


def draw(
    path: Path, images: list[Array], shifts: list[Array], third: Array | None, brain: Mask, step_mm: float
) -> None:
    """Both polarities before and after, and the fields, on three slices; the brain outlined."""
    levels = np.quantile(np.flatnonzero(brain.any(axis=(1, 2))), (0.2, 0.5, 0.75)).astype(int)
    names = ["A→P", "P→A", "A→P corrected", "P→A corrected", "field A→P", "−field P→A", "third opinion"]
    moved = [pulled(image, shift, step_mm, True) for image, shift in zip(images, shifts, strict=True)]
    columns = [*images, *moved, shifts[0], -shifts[1], *([] if third is None else [third])]
    limit = float(np.percentile(np.abs(shifts[0][brain]), 99))
    figure = Figure(figsize=(2.4 * len(columns), 7.5), layout="constrained")
    cells = figure.subplots(3, len(columns))
    for row, z in enumerate(levels):
        for column, values in enumerate(columns):
            cell = cells[row, column]
            if column < 4:
                cell.imshow(values[z], cmap="gray", vmin=0, vmax=np.percentile(values[brain], 99.5))
            else:
                cell.imshow(values[z], cmap="RdBu_r", vmin=-limit, vmax=limit)
            cell.contour(brain[z], [0.5], colors="gold", linewidths=0.7)
            cell.set_title(names[column], fontsize=9)
            cell.set_axis_off()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

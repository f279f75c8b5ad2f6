"""The engine against a measured field: b = 0 to T1, truth the study's own gradient-echo field map.

    python -m benchmarks.field_map STUDY [--method NAME] [--matcher NAME] [--set key=value]
                                         [--peers [--peer NAME] [--cache FOLDER]]
                                         [--json FILE] [--picture FILE] [--case FILE]

STUDY is an unpacked folder named in benchmarks.truth.STUDIES. Where the scanner writes readout and polarity
(Siemens XA), the map's shifts follow from them. A DWI that the scanner has corrected (philips-classic) has no
distortion left: its truth is no shift, but for motion between the series, which looks like a constant and a
slope; what the found field has beyond them is printed, with the scale on the map that would fit it, and the
errors if the map counted after all, at the ends of the range that the header lets one estimate.
Prints RMSE and p95 in the brain before and after, also without the mean, and the device.
--peers: instead of the engine, the programs of benchmarks.peers, on the same b = 0 and reference; of free
fields the part along phase encode counts. Theirs are kept in --cache. --case: nothing is corrected, images
and truth are saved for other benchmarks.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import accuracy, peers
from benchmarks.cases import Case, save_case
from benchmarks.truth import (
    STUDIES,
    Array,
    Mask,
    brain_of,
    field_map,
    figures,
    mean_b0,
    sampled,
    series,
)
from correction import Volume, correct, methods
from correction.landmarks import find_landmarks
from dicom_node.load import load, load_reference

matplotlib.use("Agg")

PLAUSIBLE = (0.030, 0.039)  # voxels per Hz of philips-classic, as it was acquired


@dataclass(frozen=True, slots=True)
class Truth:
    """hz, shift_mm, brain: on b0's grid; voxels_per_hz: signed, 0 where the scanner has corrected the DWI."""

    hz: Array
    shift_mm: Array
    brain: Mask
    voxels_per_hz: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--method", choices=["clinical", "paper"], default="clinical")
    parser.add_argument("--matcher", default="auto", help="as correction.landmarks.find_landmarks takes it")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--peers", action="store_true", help="other programs, not the engine")
    parser.add_argument("--peer", action="append", help="with --peers: only this one; may be repeated")
    parser.add_argument("--cache", type=Path, help="peers' fields are kept here")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--case", type=Path, help="save the pair and its truth here, and end")
    arguments = parser.parse_args()
    numbers = STUDIES[arguments.study.name]
    parts = series(arguments.study)
    dwi = load(parts[numbers.dwi])
    b0, reference = mean_b0(dwi), load_reference(parts[numbers.reference])
    encoding, readout_s = dwi.facts.phase_encoding, dwi.facts.total_readout_s or 0.0
    if encoding is None or encoding.voxel_axis[0] != "j":
        raise SystemExit("the DWI is not phase-encoded along its columns")
    found_map = field_map(parts, numbers)
    truth = shifts(
        found_map.hz, found_map.head, found_map.grid, b0, encoding.increasing,
        0.0 if numbers.corrected_by_scanner else readout_s,
    )  # fmt: skip
    case = as_case(arguments.study.name, b0, reference, encoding.voxel_axis, truth)
    if arguments.case:
        save_case(case, arguments.case)
        return
    if arguments.peers:
        document = by_peers(case, truth, arguments.peer or list(peers.PEERS), arguments.cache)
        print(json.dumps(document, indent=2))
        if arguments.json:
            arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        return
    chosen = methods.clinical() if arguments.method == "clinical" else methods.paper()
    landmarks = None
    if arguments.matcher != "none":
        landmarks = find_landmarks(b0, reference, encoding.voxel_axis, arguments.matcher)
    result = correct(
        b0, reference, phase_encoding=encoding.voxel_axis, settings=chosen.override(arguments.changes),
        landmarks=landmarks, readout_s=readout_s,
    )  # fmt: skip
    found = np.tensordot(b0.axes[:, 1], result.displacement.numpy(), 1)
    document = {
        "device": f"{platform.machine()}, {result.device}",
        "study": arguments.study.name,
        "method": arguments.method,
        "matcher": result.landmarks.matcher,
        "chosen": result.quality.chosen,
        "reference_moved_mm": result.pose.shift_mm,
        "brain_ml": float(truth.brain.sum() * np.prod(b0.spacing_mm) / 1000),
        "voxels_per_hz": truth.voxels_per_hz,
        "before": figures(-truth.shift_mm, truth.shift_mm, truth.brain),
        "after": figures(found - truth.shift_mm, truth.shift_mm, truth.brain),
        "verdict": str(result.verdict.level),
        "reasons": [reason.text for reason in result.verdict.reasons],
        "seconds": result.seconds,
    }
    if numbers.corrected_by_scanner:
        document |= of_an_undistorted(found, truth, b0)
    print(json.dumps(document, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if arguments.picture:
        draw(arguments.picture, b0, truth, found)


def as_case(name: str, b0: Volume, reference: Volume, phase_encoding: str, truth: Truth) -> Case:
    """The study as the simulated cases are given to peers; undistorted is not known and holds the b = 0."""
    along = torch.from_numpy(b0.axes[:, 1]).float()
    displacement = along[:, None, None, None] * torch.from_numpy(truth.shift_mm).float()
    return Case(
        name, "epi", b0, reference, phase_encoding, displacement, torch.from_numpy(truth.brain), b0, True
    )


def by_peers(case: Case, truth: Truth, names: Sequence[str], store: Path | None) -> dict[str, object]:
    """Errors along phase encode by peer, and processor seconds; or why it failed."""
    document: dict[str, object] = {
        "device": f"{platform.machine()}, cpu",
        "study": case.name,
        "missing": peers.missing(),
        "before": figures(-truth.shift_mm, truth.shift_mm, truth.brain),
    }
    for name in names:
        if name in peers.missing():
            continue
        found = accuracy.run(case, name, partial(accuracy.by_peer, peer=peers.PEERS[name]), store)
        if found.displacement_mm is None:
            document[name] = {"failed": found.failed}
            continue
        error = np.tensordot(case.b0.axes[:, 1], found.displacement_mm.numpy(), 1) - truth.shift_mm
        document[name] = {**figures(error, truth.shift_mm, truth.brain), "cpu_s": found.cpu_s}
    return document


def shifts(
    hz: Array, head: Mask, grid: Volume, b0: Volume, increasing: bool | None, readout_s: float
) -> Truth:
    """The map on b0's grid, in mm along increasing row index; none for a readout of 0.

    It stays where its own magnitude image lies, whatever the reference has to be moved by.
    """
    on_b0, lines, step_mm = sampled(hz, grid, b0), b0.shape[1], b0.spacing_mm[1]
    if increasing is None and readout_s:
        raise SystemExit("the DWI's polarity is not known: its field map has no sign")
    # a positive field moves the image along phase encode
    scale = (1.0 if increasing or not readout_s else -1.0) * readout_s * lines / (lines - 1)
    shift_mm = on_b0 * scale * step_mm
    seen = sampled(head.astype(float), grid, b0) > 0.5
    return Truth(on_b0, shift_mm, brain_of(b0, shift_mm, seen, step_mm), scale)


def of_an_undistorted(found: Array, truth: Truth, b0: Volume) -> dict[str, Any]:
    """What a field has beyond motion where nothing is distorted, and how it would stand if the map counted.

    found: (Z, Y, X) mm. Motion: the constant and the three slopes that fit it best in the brain.
    """
    step_mm = b0.spacing_mm[1]
    voxels = np.argwhere(truth.brain).astype(float)
    terms = np.column_stack([np.ones(len(voxels)), voxels - voxels.mean(axis=0)])
    inside, hz = found[truth.brain], truth.hz[truth.brain]
    beyond = inside - terms @ np.linalg.lstsq(terms, inside, rcond=None)[0]
    uneven = hz - hz.mean()
    at = {}
    for scale in PLAUSIBLE:
        shift_mm = truth.hz * scale * step_mm
        at[f"{scale:g}"] = {
            "before": figures(-shift_mm, shift_mm, truth.brain),
            "after": figures(found - shift_mm, shift_mm, truth.brain),
        }
    return {
        "mean_mm": float(inside.mean()),
        "beyond_motion_mm": float(np.sqrt((beyond**2).mean())),
        "voxels_per_hz_of_found": float((uneven @ (inside - inside.mean())) / (uneven @ uneven) / step_mm),
        "if_the_map_counted": at,
    }


def draw(path: Path, b0: Volume, truth: Truth, found: Array) -> None:
    """Truth, found and difference (mm) on an axial and a sagittal slice, the brain outlined."""
    z, x = (int(truth.brain.sum(axis=axes).argmax()) for axes in ((1, 2), (0, 1)))
    low = int(np.flatnonzero(truth.brain.any(axis=(1, 2)))[0] + 0.25 * truth.brain.any(axis=(1, 2)).sum())
    limit = max(1.0, float(np.percentile(np.abs(truth.shift_mm[truth.brain]), 99)))
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    cells = figure.subplots(3, 4)
    columns = (
        ("b = 0", None),
        ("map", truth.shift_mm),
        ("found", found),
        ("difference", found - truth.shift_mm),
    )
    step_z, step_y, step_x = b0.spacing_mm[::-1]
    for row, (cut, aspect, upside_down) in enumerate(
        ((np.s_[z], step_y / step_x, False), (np.s_[low], step_y / step_x, False),
         (np.s_[:, :, x], step_z / step_y, True))
    ):  # fmt: skip
        for column, (name, values) in enumerate(columns):
            cell, origin = cells[row, column], "lower" if upside_down else "upper"
            if values is None:
                cell.imshow(b0.data.numpy()[cut], cmap="gray", aspect=aspect, origin=origin)
            else:
                shown = cell.imshow(
                    values[cut], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect=aspect, origin=origin
                )
            cell.contour(truth.brain[cut], [0.5], colors="gold", linewidths=0.8)
            cell.set_title(name)
            cell.set_axis_off()
    figure.colorbar(shown, ax=cells, label="shift along phase encode, mm", shrink=0.6)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

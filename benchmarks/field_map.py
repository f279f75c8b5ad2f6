"""The engine against a measured field: b = 0 to T1, truth the study's own gradient-echo field map.

    python -m benchmarks.field_map STUDY [--method NAME] [--matcher NAME] [--set key=value]
                                         [--peers [--peer NAME] [--cache FOLDER]]
                                         [--json FILE] [--picture FILE]

STUDY is an unpacked folder named in benchmarks.truth.STUDIES. Where the scanner writes readout and polarity
(Siemens XA), the map's shifts follow from them. Where it does not (Philips), the scale from Hz to shift is
the one at which the map itself explains the images best, sign included; the errors at the ends of the
plausible range are printed beside it, and the scale that would fit the found field.
Prints RMSE and p95 in the brain before and after, also without the mean, and the device.
--peers: instead of the engine, the programs of benchmarks.peers, on the same b = 0 and reference; of free
fields the part along phase encode counts. Theirs are kept in --cache.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import accuracy, peers
from benchmarks.cases import Case
from benchmarks.truth import (
    STUDIES,
    Array,
    DenseShift,
    Mask,
    brain_of,
    field_map,
    figures,
    mean_b0,
    sampled,
    series,
)
from correction import Volume, correct, estimate, methods
from correction.estimate import Candidate
from correction.grid import Frame
from correction.landmarks import find_landmarks
from correction.signals import Judge
from dicom_node.load import load, load_reference

matplotlib.use("Agg")

SCALES = np.arange(-0.060, 0.0601, 0.005)  # voxels per Hz: readouts up to 60 ms, both polarities
PLAUSIBLE = (0.030, 0.039)  # voxels per Hz of philips-classic, by what its header lets one estimate


@dataclass(frozen=True, slots=True)
class Truth:
    """shift_mm, brain: on b0's grid; voxels_per_hz: signed; measured: False where the scale was fitted."""

    hz: Array
    shift_mm: Array
    brain: Mask
    voxels_per_hz: float
    measured: bool


def explaining_scale(hz: Array, b0: Volume, reference: Volume, axis: str) -> float:
    """Voxels per Hz at which the map's shifts make the b = 0 follow from the reference best."""
    frame, settings = Frame.of(b0, axis), methods.clinical()
    view = estimate.scene(estimate.Pair.of(frame, b0, reference, settings), settings.judge_voxel_mm, settings)
    judge = Judge(view, frame, settings)
    step_mm = frame.spacing_mm[2]
    explains = np.array(
        [judge.signals(Candidate(f"{s:g}", DenseShift(hz * s * step_mm))).agreement for s in SCALES]
    )
    top = int(np.clip(np.argmax(explains), 1, len(SCALES) - 2))
    below, at, above = explains[top - 1 : top + 2]
    return float(SCALES[top] + 0.5 * (below - above) / (below - 2 * at + above) * (SCALES[1] - SCALES[0]))


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
        found_map.hz, found_map.head, found_map.grid, b0, reference, encoding.increasing, readout_s
    )
    if arguments.peers:
        case = as_case(arguments.study.name, b0, reference, encoding.voxel_axis, truth)
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
    if not result.pose.identity:
        # the map is of where the reference is: it goes with it
        grid, placed = result.pose.volume(found_map.grid), result.pose.volume(reference)
        truth = shifts(found_map.hz, found_map.head, grid, b0, placed, encoding.increasing, readout_s)
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
    if not truth.measured:
        document |= other_scales(found, truth, b0.spacing_mm[1])
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
    hz: Array, head: Mask, grid: Volume, b0: Volume, reference: Volume, increasing: bool | None,
    readout_s: float,
) -> Truth:  # fmt: skip
    """The map on b0's grid, in mm along increasing row index."""
    on_b0, lines, step_mm = sampled(hz, grid, b0), b0.shape[1], b0.spacing_mm[1]
    if increasing is None:
        scale = explaining_scale(on_b0, b0, reference, "j")
    else:
        # a positive field moves the image along phase encode
        scale = (1.0 if increasing else -1.0) * readout_s * lines / (lines - 1)
    shift_mm = on_b0 * scale * step_mm
    seen = sampled(head.astype(float), grid, b0) > 0.5
    return Truth(on_b0, shift_mm, brain_of(b0, shift_mm, seen, step_mm), scale, increasing is not None)


def other_scales(found: Array, truth: Truth, step_mm: float) -> dict[str, object]:
    """Errors where the map's scale is taken from the plausible range, and the scale that fits `found`."""
    sign = float(np.sign(truth.voxels_per_hz))
    at = {}
    for scale in PLAUSIBLE:
        shift_mm = truth.hz * sign * scale * step_mm
        at[f"{scale:g}"] = {
            "before": figures(-shift_mm, shift_mm, truth.brain),
            "after": figures(found - shift_mm, shift_mm, truth.brain),
        }
    hz, mm = (values[truth.brain] - values[truth.brain].mean() for values in (truth.hz, found))
    return {"scale_of_found": float((hz @ mm) / (hz @ hz) / step_mm), "at_plausible_scales": at}


def draw(path: Path, b0: Volume, truth: Truth, found: Array) -> None:
    """Truth, found and difference (mm) on an axial and a sagittal slice, the brain outlined."""
    z, x = (int(truth.brain.sum(axis=axes).argmax()) for axes in ((1, 2), (0, 1)))
    low = int(np.flatnonzero(truth.brain.any(axis=(1, 2)))[0] + 0.25 * truth.brain.any(axis=(1, 2)).sum())
    limit = float(np.percentile(np.abs(truth.shift_mm[truth.brain]), 99))
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

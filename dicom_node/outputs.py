"""The files of one correction, as contracted: images, field, report, picture."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from correction import Correction, Volume
from dicom_node import __version__
from dicom_node.nifti import write_volumes
from dicom_node.qc import QcImages, write_qc

Array = npt.NDArray[np.float32]

REPORT_SCHEMA = "dicom-node/report/1"


@dataclass(frozen=True, slots=True)
class Described:
    """What the report says beyond the correction itself.

    inputs: file names or UIDs by role. phase_encoding: axis in BIDS letters of the written NIfTI files,
    polarity '+', '-' or None, and where they came from.
    """

    inputs: Mapping[str, str | Sequence[str]]
    method: str
    seed: int
    phase_encoding: Mapping[str, str | None]
    seconds: Mapping[str, float]
    modulated: bool


def figures(correction: Correction) -> dict[str, Any]:
    """The measures of a correction: displacement, Jacobian, landmarks, quality, verdict; JSON-able."""
    shift = _length_mm(correction)[correction.mask.cpu().numpy()]
    jacobian = correction.jacobian.cpu().numpy()
    return {
        "landmarks": {
            "matcher": correction.landmarks.matcher,
            "found": correction.landmarks.found,
            "kept": correction.landmarks.count,
            "dropped": dict(correction.landmarks.dropped),
            "trust": correction.landmarks.trust,
            "common_error_mm": correction.landmarks.common_error_mm,
            "weights_sha256": dict(correction.landmarks.weight_files),
        },
        "displacement_mm": {
            "rms": float(np.sqrt(np.mean(shift**2))) if shift.size else 0.0,
            "p95": float(np.percentile(shift, 95)) if shift.size else 0.0,
            "max": float(shift.max()) if shift.size else 0.0,
        },
        "jacobian": {
            "min": float(jacobian.min()),
            "max": float(jacobian.max()),
            "folded_fraction": float(np.mean(jacobian <= 0)),
        },
        "quality": asdict(correction.quality),
        "verdict": {
            "level": str(correction.verdict.level),
            "reasons": [asdict(reason) for reason in correction.verdict.reasons],
        },
    }


def report(correction: Correction, described: Described) -> dict[str, Any]:
    """The document of report.json."""
    seconds = dict(described.seconds)
    document: dict[str, Any] = _finite(
        {
            "schema": REPORT_SCHEMA,
            "version": __version__,
            "method": described.method,
            "settings": asdict(correction.settings) | {"modulate": described.modulated},
            "seed": described.seed,
            "device": str(correction.device),
            "inputs": {role: _plain(value) for role, value in described.inputs.items()},
            "phase_encoding": dict(described.phase_encoding),
            **figures(correction),
            "seconds": seconds | {"total": sum(seconds.values())},
            "peak_memory_bytes": peak_memory_bytes(),
        }
    )
    return document


def write_images(
    out: Path, correction: Correction, corrected: Array, affine: npt.NDArray[np.float64], *, flip_rows: bool
) -> None:
    """corrected.nii.gz and jacobian.nii.gz. corrected: (V, Z, Y, X)."""
    write_volumes(out / "corrected.nii.gz", corrected, affine, flip_rows=flip_rows)
    jacobian = correction.jacobian.cpu().numpy().astype(np.float32)
    write_volumes(out / "jacobian.nii.gz", jacobian[np.newaxis], affine, flip_rows=flip_rows)


def write_report(out: Path, document: Mapping[str, Any]) -> None:
    """report.json."""
    (out / "report.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def write_picture(
    out: Path, correction: Correction, before: Volume, document: Mapping[str, Any], notice: str
) -> None:
    """qc.png: edges of the reference over the b = 0 before and after, with verdict, reasons and millimetres.

    notice: what stands above it all. No patient data: the picture goes into the archive as it is.
    """
    shift = document["displacement_mm"]
    verdict = document["verdict"]
    images = QcImages(
        reference=correction.reference,
        seen=correction.seen.cpu().numpy(),
        before=before,
        after=correction.apply(before),
        shift_mm=_length_mm(correction),
        mask=correction.mask.cpu().numpy(),
    )
    write_qc(
        out / "qc.png",
        images,
        title=(
            f"{notice}\nEdges of the anatomical series over the EPI b = 0   ·   verdict: {verdict['level']}"
        ),
        reasons=[reason["text"] for reason in verdict["reasons"]],
        footnote=(
            f"displacement: typical {shift['rms']:.1f} mm, largest {shift['max']:.1f} mm   ·   "
            f"dicom-node {__version__}, {document['method']}"
        ),
    )


def peak_memory_bytes() -> int:
    """The largest resident memory that this process has had (getrusage: KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _length_mm(correction: Correction) -> Array:
    length: Array = correction.displacement.norm(dim=0).cpu().numpy()
    return length


def _plain(value: str | Sequence[str]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)


def _finite(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

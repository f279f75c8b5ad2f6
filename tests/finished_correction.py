"""A correction with a known field, finished on the phantom study: for the tests of the companions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import torch
from derived_series import NOW, made_by
from pydicom import Dataset

from correction.apply import warp
from dicom_node.companions import Finished, write_companions
from dicom_node.derive import CompanionPolicy, DerivePolicy, OutputGrid, derive, on_reference_grid
from dicom_node.headers import InstanceFacts
from dicom_node.load import LoadedSeries, load_reference
from dicom_node.qc import QcImages, write_qc

ALL = CompanionPolicy(qc=True, registration=True, adc=True, quality_record=True)
REPORT = {
    "method": "clinical",
    "displacement_mm": {"rms": 1.2345678, "p95": 3.0, "max": 4.5},
    "jacobian": {"min": 0.8, "max": 1.25, "folded_fraction": 0.0},
    "quality": {
        "agreement_before": 0.7,
        "agreement_after": 0.8,
        "structure_before": 0.3,
        "structure_after": None,
        "covered_fraction": 1.0,
        "strained_fraction": 0.0,
    },
    "verdict": {"level": "pass", "reasons": []},
}


def known_field(source: LoadedSeries) -> np.ndarray:
    """(3, Z, Y, X) LPS mm: a smooth shift of up to two voxels along the image columns, nothing at the rim."""
    z, y, x = (np.linspace(-1, 1, n) for n in source.arrangement.shape)
    bump = np.cos(z * 1.2)[:, None, None] * np.cos(y * np.pi / 2)[:, None] * np.cos(x * np.pi / 2)
    return (2.0 * source.affine[:3, 1])[:, None, None, None] * bump.astype(np.float32)


def warped(source: LoadedSeries, displacement_mm: np.ndarray) -> np.ndarray:
    """The volumes of `source`, corrected by a field, as the engine does it."""
    field = torch.from_numpy(displacement_mm.astype(np.float32))
    volumes = [warp(source.volume(index), field).data.numpy() for index in range(len(source.voxels))]
    return np.stack(volumes)


def finished(
    source: LoadedSeries,
    reference: Sequence[InstanceFacts],
    out: Path,
    policy: DerivePolicy | None = None,
    **changes: object,
) -> Finished:
    """The known field applied and the derived series written; `changes` are of its provenance."""
    policy = policy or DerivePolicy(companions=ALL)
    provenance = made_by(reference, **changes)
    displacement_mm = known_field(source)
    out.mkdir(parents=True, exist_ok=True)
    corrected = warped(source, displacement_mm)
    if policy.grid is OutputGrid.REFERENCE:
        target = load_reference(reference)
        corrected = on_reference_grid(source, displacement_mm, None, target.affine, target.shape, out)
    written = derive(source, corrected, provenance, policy, out, NOW)
    picture = out.parent / "qc.png"
    b0 = source.volume(0)
    length = np.linalg.norm(displacement_mm, axis=0).astype(np.float32)
    tissue = b0.data.numpy() > 10
    images = QcImages(b0, np.ones_like(tissue), b0, b0, length, tissue)
    write_qc(picture, images, title="title", footnote=policy.companions.notice)
    return Finished.of(
        source,
        corrected,
        displacement_mm.astype(np.float32),
        provenance,
        policy,
        written,
        REPORT,
        picture,
        NOW,
    )


def companions(done: Finished, **switches: bool) -> list[Dataset]:
    """The companions of a finished correction, read back; only those switched on, if any are named."""
    if switches:
        done = replace(done, policy=replace(done.policy, companions=CompanionPolicy(**switches)))
    out = done.written[0].path.parent
    return [pydicom.dcmread(one.path) for one in write_companions(done, out)]

"""Where a derived series comes from: its UIDs, its text, and the references back to source and reference.

No text here carries patient data or free text of the source.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt
from highdicom.base_content import ContributingEquipment
from highdicom.sr import CodedConcept
from pydicom import Dataset

from dicom_node.derive.instance_file import put, put_given
from dicom_node.derive.policy import OutputGrid
from dicom_node.headers import FrameFacts, InstanceFacts
from dicom_node.headers.scan import PRODUCT
from rules.facts import SeriesFacts

Point = npt.NDArray[np.float64]

# Fixed for ever: every UID that this project mints is a UUIDv5 in this namespace (PS3.5 B.2 root 2.25).
NAMESPACE = uuid.UUID("abbd45b2-8ff4-4183-9ba7-57d2778d39e6")

QUALITY = {"pass": "PASS", "review": "WARN", "reject": "FAIL"}

PROCESSING_EQUIPMENT = CodedConcept("109102", "DCM", "Processing Equipment")
SPATIAL_RESAMPLING = CodedConcept("113085", "DCM", "Spatial resampling")
DEFORMED = CodedConcept("125027", "DCM", "Deformed for Registration")
DIFFUSION_ANALYSIS = CodedConcept("129105", "DCM", "Diffusion image analysis")
SOURCE_IMAGE = CodedConcept("121322", "DCM", "Source image for image processing operation")
STRUCTURAL_IMAGE = CodedConcept("128250", "DCM", "Structural image for image processing")
ANATOMIC_IMAGE = CodedConcept("121338", "DCM", "Anatomic image")
SOURCE_SERIES = CodedConcept("121323", "DCM", "Source series for image processing operation")
SAME_ANATOMY = CodedConcept("122401", "DCM", "Same Anatomy")


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a derived series came to be.

    reference: the instances of the anatomical series. contrast: its kind ("T2"). settings_digest: of every
    setting that can change the output, its labels included. phase_axis: `i`, `j` or `k` with its sign;
    anything else: free in 3-D. verdict: pass | review | reject. figures: displacement in mm (rms, p95, max).
    taken_numbers: SeriesNumbers in use by other series of the study (not by an earlier run of this one).
    input_digest: of the input bytes, so that a revised instance gives new UIDs; empty: only UIDs are known.
    """

    reference: Sequence[InstanceFacts]
    reference_facts: SeriesFacts
    contrast: str
    version: str
    settings_digest: str
    modulated: bool
    phase_axis: str
    verdict: str
    figures: Mapping[str, float] = field(default_factory=dict)
    taken_numbers: frozenset[int] = frozenset()
    input_digest: str = ""

    @property
    def free(self) -> bool:
        """Corrected in three dimensions, because the phase-encode axis is not known."""
        return self.phase_axis.removesuffix("-") not in ("i", "j", "k")


def uid_of(text: str) -> str:
    """The UID that stands for `text`: the same text gives the same UID, anywhere and for ever."""
    return f"2.25.{uuid.uuid5(NAMESPACE, text).int}"


def series_uid(source_uid: str, source_sops: Iterable[str], provenance: Provenance, part: str = "") -> str:
    """SeriesInstanceUID of the derived series: new when an input, the program or a setting is new.

    part: which of several series of one correction; empty where all b-values are in one.
    """
    inputs = hashlib.sha256()
    for sops in (source_sops, (instance.sop_instance_uid for instance in provenance.reference)):
        for sop in sorted(set(sops)):
            inputs.update(sop.encode() + b"\n")
        inputs.update(b"\n")
    inputs.update(provenance.input_digest.encode())
    parts = (
        "series",
        source_uid,
        provenance.reference_facts.series_uid,
        provenance.version,
        provenance.settings_digest,
        inputs.hexdigest(),
        *((part,) if part else ()),
    )
    return uid_of("|".join(parts))


def instance_uid(new_series_uid: str, key: str) -> str:
    """SOPInstanceUID of the derived object that `key` tells apart in its series."""
    return uid_of(f"sop|{new_series_uid}|{key}")


def frame_of_reference(dwi: SeriesFacts, provenance: Provenance, grid: OutputGrid) -> str:
    """FrameOfReferenceUID of the output.

    A correction along the phase-encode axis leaves the anatomy in the DWI's frame; a free 3-D one takes over
    whatever rigid offset there is, so the anatomy then agrees with the reference's frame. Images on the
    reference's grid have its coordinates, so its frame.
    """
    own, other = source_frame_of_reference(dwi), provenance.reference_facts.frame_of_reference_uid
    if (provenance.free or grid is OutputGrid.REFERENCE) and other:
        return other
    return own


def source_frame_of_reference(dwi: SeriesFacts) -> str:
    """FrameOfReferenceUID of the distorted images; ours, where the scanner gave none."""
    return dwi.frame_of_reference_uid or uid_of(f"frame|{dwi.series_uid}")


def derivation_description(
    dwi: SeriesFacts, provenance: Provenance, grid: OutputGrid, clipped: int, computed: str = ""
) -> str:
    """DerivationDescription: product token first, at most 1024 characters of ASCII.

    computed: what was made of the corrected images; empty where it is these themselves.
    """
    reference = provenance.reference_facts
    parts = [
        f"{PRODUCT} {provenance.version}: EPI susceptibility distortion corrected to {provenance.contrast} "
        f"reference, series no. {_number(reference.series_number)}",
        "free 3-D deformation" if provenance.free else f"along phase-encode axis {provenance.phase_axis}",
        f"Jacobian modulation {'yes' if provenance.modulated else 'no'}",
    ]
    if computed:
        parts.append(computed)
    if grid is OutputGrid.REFERENCE:
        parts.append("resampled on the voxels of the reference")
    if dwi.frame_of_reference_uid != reference.frame_of_reference_uid:
        moved = frame_of_reference(dwi, provenance, grid) == reference.frame_of_reference_uid
        parts.append(f"frame of reference of the {'reference' if moved else 'diffusion series'}")
    if clipped:
        parts.append(f"{clipped} voxels clipped")
    if provenance.figures:
        shifts = ", ".join(f"{name} {value:.4g}" for name, value in provenance.figures.items())
        parts.append(f"displacement (mm): {shifts}")
    return _ascii("; ".join(parts), 1024)


def image_comments(dwi: SeriesFacts, provenance: Provenance) -> str:
    """ImageComments: what a reader of the image has to know."""
    return _ascii(
        f"Processed: EPI distortion correction {PRODUCT} {provenance.version}; "
        f"QC={QUALITY[provenance.verdict]}; see original series no. {_number(dwi.series_number)}",
        1024,
    )


def _number(series_number: int | None) -> str:
    return "?" if series_number is None else str(series_number)


def _ascii(text: str, limit: int) -> str:
    return text.encode("ascii", "replace").decode().replace("\\", "/")[:limit]


def equipment(version: str, now: datetime) -> Dataset:
    """Our item of ContributingEquipmentSequence."""
    return ContributingEquipment(
        PRODUCT,
        PROCESSING_EQUIPMENT,
        manufacturer_model_name=PRODUCT,
        software_versions=version,
        contribution_datetime=now.strftime("%Y%m%d%H%M%S.%f"),
        contribution_description="Correction of EPI susceptibility distortion",
    )


def related_series(dwi: SeriesFacts, provenance: Provenance) -> list[Dataset]:
    """Items of RelatedSeriesSequence: the source series and the reference series."""
    return [
        _related(dwi, SOURCE_SERIES),
        _related(provenance.reference_facts, SAME_ANATOMY),
    ]


def _related(series: SeriesFacts, purpose: CodedConcept) -> Dataset:
    item = Dataset()
    put_given(item, "StudyInstanceUID", series.study_uid)
    put_given(item, "SeriesInstanceUID", series.series_uid)
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def image_reference(class_uid: str, sop_uid: str, frame: int | None, purpose: CodedConcept | None) -> Dataset:
    """Image SOP Instance Reference Macro with its purpose; `frame` is 0-based, None for single-frame."""
    item = Dataset()
    put_given(item, "ReferencedSOPClassUID", class_uid)
    put_given(item, "ReferencedSOPInstanceUID", sop_uid)
    if frame is not None:
        put(item, "ReferencedFrameNumber", frame + 1)
    if purpose is not None:
        item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def source_reference(class_uid: str, frame: FrameFacts) -> Dataset:
    """First item of SourceImageSequence; the pixels moved, so locations are not preserved."""
    item = image_reference(class_uid, frame.sop_instance_uid, frame.frame, SOURCE_IMAGE)
    put(item, "SpatialLocationsPreserved", "NO")
    return item


@dataclass(frozen=True, slots=True)
class ReferenceSlices:
    """The slices of the reference by where their centres lie, to name the nearest one to a DWI slice."""

    class_uids: Mapping[str, str]  # SOP Class UID of each instance
    frames: tuple[FrameFacts, ...]
    centres_mm: Point  # (N, 3) patient LPS
    study_uid: str
    series_uid: str

    @classmethod
    def of(cls, provenance: Provenance) -> ReferenceSlices:
        """The slices of `provenance.reference` that have a position."""
        facts = provenance.reference_facts
        pairs = [
            (frame, centre)
            for instance in provenance.reference
            for frame in instance.frames
            if (centre := slice_centre(frame)) is not None
        ]
        class_uids = {instance.sop_instance_uid: instance.sop_class_uid for instance in provenance.reference}
        centres = np.asarray([centre for _, centre in pairs]).reshape(-1, 3)
        return cls(class_uids, tuple(frame for frame, _ in pairs), centres, facts.study_uid, facts.series_uid)

    def nearest(self, centre_mm: Point) -> FrameFacts | None:
        """The slice whose centre is nearest to a point in patient LPS; None when no slice has a position."""
        if not self.frames:
            return None
        return self.frames[int(np.argmin(np.linalg.norm(self.centres_mm - centre_mm, axis=1)))]

    def reference(self, frame: FrameFacts, purpose: CodedConcept) -> Dataset:
        """A reference to one of these slices."""
        return image_reference(
            self.class_uids[frame.sop_instance_uid], frame.sop_instance_uid, frame.frame, purpose
        )

    def in_other_study(self, frame: FrameFacts) -> Dataset:
        """Item of StudiesContainingOtherReferencedInstancesSequence for a slice of a reference elsewhere."""
        series, study = Dataset(), Dataset()
        put_given(series, "SeriesInstanceUID", self.series_uid)
        class_uid = self.class_uids[frame.sop_instance_uid]
        series.ReferencedInstanceSequence = [image_reference(class_uid, frame.sop_instance_uid, None, None)]
        put_given(study, "StudyInstanceUID", self.study_uid)
        study.ReferencedSeriesSequence = [series]
        return study


def slice_centre(frame: FrameFacts) -> Point | None:
    """Patient LPS point in the middle of a slice; None when the header does not place it."""
    if frame.position_mm is None or frame.row is None or frame.column is None or frame.spacing_mm is None:
        return None
    row_spacing, column_spacing = frame.spacing_mm
    along_row = np.asarray(frame.row) * column_spacing * (frame.columns - 1) / 2
    along_column = np.asarray(frame.column) * row_spacing * (frame.rows - 1) / 2
    centre: Point = np.asarray(frame.position_mm) + along_row + along_column
    return centre

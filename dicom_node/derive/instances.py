"""Classic MR instances, one for each slice of each corrected volume.

The template of an instance is the header of the source slice whose place it takes: a classic file, the
mosaic it was a tile of, or the functional groups of an enhanced frame. Values that did not change keep
their text. Files are written plainly; making them durable is the spool's work.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.tag import Tag
from pydicom.uid import MRImageStorage
from pydicom.valuerep import format_number_as_ds

from dicom_node.derive import functional_groups, pixels, provenance, template
from dicom_node.derive.instance_file import put, read_header, write_instance
from dicom_node.derive.pixels import Array, Scale, Stored
from dicom_node.derive.provenance import Provenance, ReferenceSlices
from dicom_node.derive.series_header import DerivePolicy, series_header
from dicom_node.derive.template import Elements
from dicom_node.headers import FrameFacts, Unreadable, VolumeFacts
from dicom_node.headers.scan import OWN_IMAGE_TYPE
from dicom_node.load import LoadedSeries
from rules.facts import Directionality, Vendor

TRACE = "TRACEW"  # ImageType value by which scanners mark trace-weighted images
B0_MAX = 20.0  # s/mm²: scanners write small numbers for b = 0
HEADERS_KEPT = 4  # parsed source files: a volume of a multi-frame object rarely lies in more
LOSSY_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 203))

# Type 1 and type 2 attributes of the MR Image IOD that some scanners leave out: written with this value.
REQUIRED = {
    "Modality": "MR",
    "ScanningSequence": "EP",
    "SequenceVariant": "NONE",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
}
NAMES_THE_BODY_PART = ("BodyPartExamined", "AnatomicRegionSequence", "Laterality")
REQUIRED_EMPTY_IF_UNKNOWN = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "Manufacturer", "PatientPosition"),
    *("PositionReferenceIndicator", "ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime"),
    *("EchoTrainLength", "SliceThickness"),
)


def derived_series_uid(source: LoadedSeries, made_by: Provenance) -> str:
    """SeriesInstanceUID of the output: the same for the same inputs, program and settings."""
    sops = (frame.sop_instance_uid for volume in source.arrangement.volumes for frame in volume.frames)
    return provenance.series_uid(source.facts.series_uid, sops, made_by)


def derive(
    source: LoadedSeries,
    corrected: Array,
    made_by: Provenance,
    policy: DerivePolicy,
    out: Path,
    now: datetime,
) -> list[Path]:
    """Write the derived series into the folder `out` and return its files in InstanceNumber order.

    corrected: (V, Z, Y, X) real-world values on the grid of `source`. InstanceNumbers run through the volumes
    in source order, within a volume along +s. Raises headers.Unreadable when a source file has gone or a
    volume has no b-value, ValueError when the shapes differ.
    """
    if corrected.shape != source.voxels.shape:
        raise ValueError(f"derive() got {corrected.shape} for a series of {source.voxels.shape}")
    series = _Series.of(source, corrected, made_by, policy, now)
    b_values = [_b_value(volume, source) for volume in source.arrangement.volumes]
    windows = pixels.windows(corrected, b_values)
    files: list[Path] = []
    for index, volume in enumerate(source.arrangement.volumes):
        stored = series.scale.stored(corrected[index])
        for frame, slice_pixels in zip(volume.frames, stored, strict=True):
            number = len(files) + 1
            instance = series.instance(volume, frame, number)
            _put_window(instance, windows[index])
            _put_pixels(instance, slice_pixels, series.scale)
            files.append(out / f"{number:05d}.dcm")
            write_instance(instance, files[-1])
    return files


def _b_value(volume: VolumeFacts, source: LoadedSeries) -> float:
    if volume.b_value is None:
        raise Unreadable(f"Series {source.facts.series_number}: one of its volumes carries no b-value.")
    return volume.b_value


@dataclass(slots=True)
class _Headers:
    """Source headers by file, the last few kept: an enhanced file serves many slices."""

    kept: OrderedDict[Path, Dataset] = field(default_factory=OrderedDict)

    def __call__(self, path: Path) -> Dataset:
        if path not in self.kept:
            try:
                self.kept[path] = read_header(path)
            except (OSError, pydicom.errors.InvalidDicomError) as error:
                raise Unreadable(f"{path.name} can no longer be read ({type(error).__name__}).") from error
            if len(self.kept) > HEADERS_KEPT:
                self.kept.popitem(last=False)
        return self.kept[path]


@dataclass(frozen=True, slots=True)
class _Series:
    """What all instances of the derived series share, made once."""

    source: LoadedSeries
    uid: str
    scale: Scale
    elements: Dataset
    charset: object
    reference: ReferenceSlices
    headers: _Headers

    @classmethod
    def of(
        cls, source: LoadedSeries, corrected: Array, made_by: Provenance, policy: DerivePolicy, now: datetime
    ) -> _Series:
        headers = _Headers()
        first = headers(source.arrangement.volumes[0].frames[0].path)
        scale = _scale(source, corrected, first)
        uid = derived_series_uid(source, made_by)
        clipped = sum(scale.clipped(volume) for volume in corrected)
        elements = series_header(first, source.facts, made_by, policy, uid, clipped, now)
        return cls(
            source, uid, scale, elements, first.original_character_set, ReferenceSlices.of(made_by), headers
        )

    def instance(self, volume: VolumeFacts, frame: FrameFacts, number: int) -> Dataset:
        """The instance that takes the place of `frame`, without window and pixels."""
        header = self.headers(frame.path)
        instance = Dataset()
        for tag, element in _image_elements(header, frame, self.source.facts.vendor, self.scale).items():
            if not template.belongs_to_series(tag):
                instance[tag] = element
        for tag in self.elements.keys():  # noqa: SIM118  # iterating a Dataset would decode its raw text
            instance[tag] = self.elements.get_item(tag)
        put(instance, "SOPClassUID", MRImageStorage)
        put(instance, "SOPInstanceUID", provenance.instance_uid(self.uid, frame))
        put(instance, "InstanceNumber", number)
        _put_image_type(instance, volume)
        _put_place(instance, frame)
        _put_diffusion(instance, volume, self.source.facts.vendor)
        if "QualityControlImage" in header:
            put(instance, "QualityControlImage", "NO")
        if header.file_meta.TransferSyntaxUID in LOSSY_SYNTAXES:
            put(instance, "LossyImageCompression", "01")
        self._put_references(instance, header, frame)
        _supply_missing(instance)
        instance.set_original_encoding(False, True, self.charset)
        return instance

    def _put_references(self, instance: Dataset, header: Dataset, frame: FrameFacts) -> None:
        sources = [provenance.source_reference(header.SOPClassUID, frame)]
        centre = provenance.slice_centre(frame)
        nearest = None if centre is None else self.reference.nearest(centre)
        if nearest is not None:
            sources.append(self.reference.reference(nearest, provenance.STRUCTURAL_IMAGE))
            put(
                instance,
                "ReferencedImageSequence",
                [self.reference.reference(nearest, provenance.ANATOMIC_IMAGE)],
            )
            if self.reference.study_uid != self.source.facts.study_uid:
                put(
                    instance,
                    "StudiesContainingOtherReferencedInstancesSequence",
                    [self.reference.in_other_study(nearest)],
                )
        put(instance, "SourceImageSequence", sources)


def _scale(source: LoadedSeries, corrected: Array, header: Dataset) -> Scale:
    scales = [
        (frame.slope, frame.intercept) for volume in source.arrangement.volumes for frame in volume.frames
    ]
    signed = header.get("PixelRepresentation", 0) == 1
    return pixels.scale_for(source.voxels, corrected, scales, int(header.get("BitsStored", 16)), signed)


def _image_elements(header: Dataset, frame: FrameFacts, vendor: Vendor, scale: Scale) -> Elements:
    """What the source says of one slice: its own file, or the functional groups of its frame."""
    elements = template.public_elements(header)
    elements.update(template.private_elements(header, vendor, scale.as_source))
    rescale: Mapping[int, template.Element] = {}
    if frame.frame is not None:
        elements.update(functional_groups.classic_elements(header, frame.frame))
        rescale = functional_groups.rescale_elements(header, frame.frame)
    else:
        rescale = template.rescale_elements(header)
    if not scale.trivial:
        elements.update(rescale if scale.as_source and rescale else _rescale(scale))
    return elements


def _rescale(scale: Scale) -> Elements:
    dataset = Dataset()
    put(dataset, "RescaleIntercept", format_number_as_ds(scale.intercept))
    put(dataset, "RescaleSlope", format_number_as_ds(scale.slope))
    put(dataset, "RescaleType", "US")
    return {element.tag: element for element in dataset}


def _put_image_type(instance: Dataset, volume: VolumeFacts) -> None:
    kind = TRACE if _is_trace(volume) else "DIFFUSION"
    put(instance, "ImageType", ["DERIVED", "SECONDARY", "OTHER", kind, OWN_IMAGE_TYPE])


def _is_trace(volume: VolumeFacts) -> bool:
    return volume.directionality is Directionality.ISOTROPIC or TRACE in volume.image_type


def _put_place(instance: Dataset, frame: FrameFacts) -> None:
    """The Image Plane attributes, computed where the source's are not those of this slice."""
    for keyword, value in (
        ("PixelSpacing", frame.spacing_mm),
        ("ImageOrientationPatient", (*frame.row, *frame.column) if frame.row and frame.column else None),
        ("ImagePositionPatient", frame.position_mm),
    ):
        of_tile = frame.tile is not None and keyword == "ImagePositionPatient"
        if value is not None and (of_tile or keyword not in instance):
            put(instance, keyword, [format_number_as_ds(float(number)) for number in value])
    if frame.tile is not None:
        instance.pop(Tag("SliceLocation"), None)
        if frame.position_mm is not None and frame.normal is not None:
            location = float(np.dot(frame.position_mm, frame.normal))
            put(instance, "SliceLocation", format_number_as_ds(location))


def _put_diffusion(instance: Dataset, volume: VolumeFacts, vendor: Vendor) -> None:
    """b always; a direction only where the reader has validated one (DICOM.md §6.5)."""
    b_value = float(volume.b_value or 0.0)
    put(instance, "DiffusionBValue", b_value)
    if volume.direction is not None and b_value > 0.0:
        direction = [float(component) for component in volume.direction]
        item = Dataset()
        put(item, "DiffusionGradientOrientation", direction)
        put(instance, "DiffusionDirectionality", "DIRECTIONAL")
        put(instance, "DiffusionGradientOrientation", direction)
        put(instance, "DiffusionGradientDirectionSequence", [item])
    elif volume.directionality is Directionality.NONE or b_value <= B0_MAX:
        put(instance, "DiffusionDirectionality", "NONE")
        if vendor is Vendor.CANON:
            # as Canon's own b = 0: dcm2niix takes a series that begins without a vector for the old exports
            # of this vendor, whose vectors are in the image frame
            put(instance, "DiffusionGradientOrientation", [0.0, 0.0, 0.0])
    elif _is_trace(volume):
        put(instance, "DiffusionDirectionality", "ISOTROPIC")


def _supply_missing(instance: Dataset) -> None:
    """Type 1 and 2 attributes that the source lacks; Laterality is required where no body part is named."""
    if not any(keyword in instance for keyword in NAMES_THE_BODY_PART):
        put(instance, "Laterality", "")
    for keyword, value in REQUIRED.items():
        if keyword not in instance:
            put(instance, keyword, value)
    for keyword in REQUIRED_EMPTY_IF_UNKNOWN:
        tag = Tag(tag_for_keyword(keyword))
        if tag not in instance:
            instance[tag] = DataElement(tag, dictionary_VR(tag), "")


def _put_window(instance: Dataset, window: tuple[float, float]) -> None:
    centre, width = window
    put(instance, "WindowCenter", format_number_as_ds(centre))
    put(instance, "WindowWidth", format_number_as_ds(width))


def _put_pixels(instance: Dataset, stored: Stored, scale: Scale) -> None:
    rows, columns = stored.shape
    for keyword, value in (
        ("Rows", rows),
        ("Columns", columns),
        ("BitsAllocated", 16),
        ("BitsStored", scale.bits_stored),
        ("HighBit", scale.bits_stored - 1),
        ("PixelRepresentation", int(scale.signed)),
    ):
        put(instance, keyword, value)
    vr = "SS" if scale.signed else "US"
    for keyword, extreme in (
        ("SmallestImagePixelValue", stored.min()),
        ("LargestImagePixelValue", stored.max()),
    ):
        instance.add_new(keyword, vr, int(extreme))
    instance.add_new("PixelData", "OW", stored.astype("<i2" if scale.signed else "<u2").tobytes())

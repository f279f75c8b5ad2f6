"""Classic MR instances, one for each slice of an output volume.

The template of an instance is the header of the source slice whose place it takes: a classic file, the
mosaic it was a tile of, or the functional groups of an enhanced frame. Values that did not change keep
their text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.tag import Tag
from pydicom.uid import MRImageStorage
from pydicom.valuerep import format_number_as_ds

from dicom_node.derive import functional_groups, pixels, provenance, template
from dicom_node.derive.instance_file import encoded_item, put, put_items, read_header
from dicom_node.derive.pixels import Array, Scale, Stored
from dicom_node.derive.places import Place, source_key
from dicom_node.derive.provenance import ReferenceSlices
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


@dataclass(slots=True)
class Headers:
    """Source headers by file, the last few kept: an enhanced file serves many slices.

    first: the header of the series' first slice.
    """

    first: Dataset
    kept: OrderedDict[Path, Dataset] = field(default_factory=OrderedDict)
    class_uids: dict[Path, str] = field(default_factory=dict)

    @classmethod
    def of(cls, source: LoadedSeries) -> Headers:
        """Raises Unreadable when the first source file has gone."""
        return cls(_read(source.arrangement.volumes[0].frames[0].path))

    def __call__(self, path: Path) -> Dataset:
        if path not in self.kept:
            self.kept[path] = _read(path)
            if len(self.kept) > HEADERS_KEPT:
                self.kept.popitem(last=False)
        return self.kept[path]

    def sop_class_of(self, path: Path) -> str:
        """SOPClassUID of a source file: one series may hold several classes."""
        if path not in self.class_uids:
            header = self.kept.get(path) or _read(path, ["SOPClassUID"])
            self.class_uids[path] = str(header.SOPClassUID)
        return self.class_uids[path]


def _read(path: Path, only: list[str] | None = None) -> Dataset:
    try:
        return read_header(path, only)
    except (OSError, pydicom.errors.InvalidDicomError) as error:
        raise Unreadable(f"{path.name} can no longer be read ({type(error).__name__}).") from error


@dataclass(frozen=True, slots=True)
class Images:
    """What the images of one derived series share, made once.

    elements: raw, as `series_header` gives them. items, planes: what was encoded or read for one image and
    is needed for others.
    """

    source: LoadedSeries
    uid: str
    scale: Scale
    elements: Dataset
    reference: ReferenceSlices
    headers: Headers
    items: dict[str, bytes] = field(default_factory=dict)
    planes: dict[str, Elements] = field(default_factory=dict)

    def image(self, place: Place, number: int, image_type: Sequence[str]) -> Dataset:
        """The image at `place`, still without diffusion, window and pixels."""
        header = self.headers(place.source.path)
        instance = Dataset()
        for tag, element in self._image_elements(header, place).items():
            if not template.belongs_to_series(tag):
                instance[tag] = element
        for tag in self.elements.keys():  # noqa: SIM118  # iterating a Dataset would decode its raw text
            instance[tag] = self.elements.get_item(tag)
        put(instance, "SOPClassUID", MRImageStorage)
        put(instance, "SOPInstanceUID", provenance.instance_uid(self.uid, place.key))
        put(instance, "InstanceNumber", number)
        put(instance, "ImageType", list(image_type))
        _put_place(instance, place.plane or place.source)
        if "QualityControlImage" in header:
            put(instance, "QualityControlImage", "NO")
        if header.file_meta.TransferSyntaxUID in LOSSY_SYNTAXES:
            put(instance, "LossyImageCompression", "01")
        self._put_references(instance, place)
        _supply_missing(instance)
        instance.set_original_encoding(False, True, self.headers.first.original_character_set)
        return instance

    def _image_elements(self, header: Dataset, place: Place) -> Elements:
        """What the source says of one slice, with the plane of the reference where that is asked for."""
        elements = template.public_elements(header)
        vendor = self.source.facts.vendor
        elements.update(template.private_elements(header, vendor, self.scale.as_source, place.plane is None))
        elements.update(_of_frame(header, place.source))
        rescale: Elements = {}
        if not self.scale.trivial:
            rescale = _rescale_of(header, place.source) if self.scale.as_source else {}
            rescale = rescale or _rescale(self.scale)
        if place.plane is not None:
            for tag in template.OF_THE_SAMPLING:
                elements.pop(Tag(tag), None)
            elements.update(self._plane(place.plane))
        return elements | rescale

    def _put_references(self, instance: Dataset, place: Place) -> None:
        sources = [self._item(source_key(frame), self._source, frame) for frame in place.sources]
        centre = provenance.slice_centre(place.plane or place.source)
        nearest = None if centre is None else self.reference.nearest(centre)
        if nearest is not None:
            key = source_key(nearest)
            sources.append(self._item(f"structural|{key}", self._structural, nearest))
            anatomic = self._item(f"anatomic|{key}", self._anatomic, nearest)
            put_items(instance, "ReferencedImageSequence", [anatomic])
            if self.reference.study_uid != self.source.facts.study_uid:
                elsewhere = self._item(f"elsewhere|{key}", self.reference.in_other_study, nearest)
                put_items(instance, "StudiesContainingOtherReferencedInstancesSequence", [elsewhere])
        put_items(instance, "SourceImageSequence", sources)

    def _item(self, key: str, make: Callable[[FrameFacts], Dataset], frame: FrameFacts) -> bytes:
        """A reference, encoded once: an oblique plane cuts every slice, and an ADC map has all of them."""
        if key not in self.items:
            self.items[key] = encoded_item(make(frame))
        return self.items[key]

    def _source(self, frame: FrameFacts) -> Dataset:
        return provenance.source_reference(self.headers.sop_class_of(frame.path), frame)

    def _structural(self, frame: FrameFacts) -> Dataset:
        return self.reference.reference(frame, provenance.STRUCTURAL_IMAGE)

    def _anatomic(self, frame: FrameFacts) -> Dataset:
        return self.reference.reference(frame, provenance.ANATOMIC_IMAGE)

    def _plane(self, plane: FrameFacts) -> Elements:
        key = source_key(plane)
        if key not in self.planes:
            self.planes[key] = _plane_elements(self.headers(plane.path), plane)
        return self.planes[key]


def scale_of(source: LoadedSeries, corrected: Array, header: Dataset) -> Scale:
    """How the corrected values are stored: as the source's, where all of its slices agree."""
    scales = [
        (frame.slope, frame.intercept) for volume in source.arrangement.volumes for frame in volume.frames
    ]
    signed = header.get("PixelRepresentation", 0) == 1
    values = source.voxels
    if source.lowest_value is not None:  # the voxels may have been corrected in their place
        values = np.asarray([source.lowest_value], dtype=np.float32)
    return pixels.scale_for(values, corrected, scales, int(header.get("BitsStored", 16)), signed)


def _of_frame(header: Dataset, frame: FrameFacts) -> Elements:
    """What the functional groups say of a frame; nothing for a classic image."""
    return {} if frame.frame is None else functional_groups.classic_elements(header, frame.frame)


def _rescale_of(header: Dataset, frame: FrameFacts) -> Elements:
    if frame.frame is None:
        return template.rescale_elements(header)
    return functional_groups.rescale_elements(header, frame.frame)


def _plane_elements(header: Dataset, plane: FrameFacts) -> Elements:
    """The Image Plane attributes of the reference's slice, as their text stands."""
    elements = template.public_elements(header) | _of_frame(header, plane)
    return {tag: element for tag, element in elements.items() if tag in template.IMAGE_PLANE}


def _rescale(scale: Scale) -> Elements:
    dataset = Dataset()
    put(dataset, "RescaleIntercept", format_number_as_ds(scale.intercept))
    put(dataset, "RescaleSlope", format_number_as_ds(scale.slope))
    put(dataset, "RescaleType", "US")
    return {element.tag: element for element in dataset}


def image_type_of(volume: VolumeFacts) -> tuple[str, ...]:
    """ImageType of the images of a corrected volume."""
    return ("DERIVED", "SECONDARY", "OTHER", TRACE if _is_trace(volume) else "DIFFUSION", OWN_IMAGE_TYPE)


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


def put_diffusion(instance: Dataset, volume: VolumeFacts, vendor: Vendor) -> None:
    """b always; a direction only where the reader has validated one."""
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


def put_window(instance: Dataset, window: tuple[float, float]) -> None:
    centre, width = window
    put(instance, "WindowCenter", format_number_as_ds(centre))
    put(instance, "WindowWidth", format_number_as_ds(width))


def put_pixels(instance: Dataset, stored: Stored, scale: Scale) -> None:
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

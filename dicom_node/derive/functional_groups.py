"""Functional groups of an Enhanced MR frame as the attributes of a classic MR image.

PS3.3 C.7.6.16 and C.8.13 on one side, C.8.3.1 on the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.tag import Tag
from pydicom.valuerep import format_number_as_ds

from dicom_node.derive import template
from dicom_node.derive.instance_file import put
from dicom_node.derive.template import Elements, carried, private_elements
from rules.facts import Vendor

# The same attribute in both: its text is kept.
SAME: dict[str, tuple[str, ...]] = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "MRTimingAndRelatedParametersSequence": ("RepetitionTime", "EchoTrainLength", "FlipAngle"),
    "MRAveragesSequence": ("NumberOfAverages",),
    "MRImagingModifierSequence": ("PixelBandwidth",),
    "MRReceiveCoilSequence": ("ReceiveCoilName",),
    "MRTransmitCoilSequence": ("TransmitCoilName",),
    "MRFOVGeometrySequence": ("PercentSampling", "PercentPhaseFieldOfView"),
    "FrameAnatomySequence": ("AnatomicRegionSequence",),
}
# Legacy Converted objects keep here, as they were, the classic attributes that no functional group has.
UNASSIGNED = (
    "UnassignedSharedConvertedAttributesSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
)
SIEMENS_FRAME = Tag(0x0021, 0x11FE)  # private sequence of each frame that holds what the white list wants
SEQUENCE_NAME_MAX = 16  # SH


class FrameGroups:
    """The functional groups of one frame, its own before the shared ones."""

    def __init__(self, header: Dataset, frame: int) -> None:
        """`frame` is 0-based."""
        shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
        self.header = header
        self.levels: tuple[Dataset, Dataset] = (header.PerFrameFunctionalGroupsSequence[frame], shared[0])

    def item(self, sequence: str) -> Dataset:
        """The item of a functional group; an empty data set where the frame has no such group."""
        for level in self.levels:
            if items := level.get(sequence):
                return items[0]
        return Dataset()

    def value(self, sequence: str, keyword: str) -> object:
        """A value of a group, the first of several; None when absent or empty."""
        return _first(self.item(sequence).get(keyword))

    def root(self, keyword: str) -> str:
        """Text of an attribute outside of the groups; empty when absent."""
        return str(_first(self.header.get(keyword)) or "").strip()


def _first(value: object) -> object:
    if value is None or isinstance(value, str):
        return value or None
    try:
        return next(iter(value), None)  # type: ignore[call-overload]
    except TypeError:
        return value


def classic_elements(header: Dataset, frame: int) -> Elements:
    """What the functional groups of a 0-based frame say, as elements of a classic MR image."""
    groups = FrameGroups(header, frame)
    elements: Elements = {}
    for sequence, keywords in SAME.items():
        item = groups.item(sequence)
        for tag in (tag_for_keyword(keyword) for keyword in keywords):
            if tag is not None and (element := carried(item, Tag(tag))) is not None:
                elements[Tag(tag)] = element
    for level in groups.levels:
        nested = level.get(SIEMENS_FRAME)
        for item in nested.value if nested is not None else ():
            elements.update(private_elements(item, Vendor.SIEMENS, scale_is_kept=False))
    converted = Dataset()
    for keyword, value in (*_timing(groups), *_geometry(groups), *_sequence_kind(groups)):
        if value is not None:
            with suppress(ValueError):  # what the frame says wrongly is not said again
                put(converted, keyword, value)
    elements.update({element.tag: element for element in converted})
    for sequence in UNASSIGNED:
        elements.update(template.public_elements(groups.item(sequence)))
    return elements


def rescale_elements(header: Dataset, frame: int) -> Elements:
    """Slope, intercept and type of a 0-based frame as their text stands."""
    return template.rescale_elements(FrameGroups(header, frame).item("PixelValueTransformationSequence"))


def _timing(groups: FrameGroups) -> Iterator[tuple[str, object]]:
    """When and how often: echo, inversion, frequency, acquisition time and number."""
    yield "EchoTime", _ds(groups.value("MREchoSequence", "EffectiveEchoTime"))
    if groups.value("MRModifierSequence", "InversionRecovery") == "YES":
        yield "InversionTime", _ds(groups.value("MRModifierSequence", "InversionTimes"))
    yield "ImagingFrequency", _ds(groups.value("MRImagingModifierSequence", "TransmitterFrequency"))
    acquired = str(
        groups.value("FrameContentSequence", "FrameAcquisitionDateTime") or groups.root("AcquisitionDateTime")
    ).strip()
    if len(acquired) >= 8:
        yield "AcquisitionDateTime", acquired
        yield "AcquisitionDate", acquired[:8]
    if len(acquired) >= 14:
        yield "AcquisitionTime", acquired[8:].split("+")[0].split("-")[0]
    yield "AcquisitionNumber", _whole(groups.value("FrameContentSequence", "FrameAcquisitionNumber"))
    yield "TemporalPositionIdentifier", _whole(groups.value("FrameContentSequence", "TemporalPositionIndex"))


def _geometry(groups: FrameGroups) -> Iterator[tuple[str, object]]:
    """Phase encoding and the acquired matrix, in the order that scanners write: COL is [f, 0, 0, p]."""
    axis = groups.value("MRFOVGeometrySequence", "InPlanePhaseEncodingDirection")
    frequency = _whole(groups.value("MRFOVGeometrySequence", "MRAcquisitionFrequencyEncodingSteps"))
    phase = _whole(groups.value("MRFOVGeometrySequence", "MRAcquisitionPhaseEncodingStepsInPlane"))
    yield "NumberOfPhaseEncodingSteps", phase
    if axis in ("ROW", "COLUMN"):
        yield "InPlanePhaseEncodingDirection", "ROW" if axis == "ROW" else "COL"
        if frequency is not None and phase is not None:
            matrix = [0, frequency, phase, 0] if axis == "ROW" else [frequency, 0, 0, phase]
            yield "AcquisitionMatrix", matrix


def _sequence_kind(groups: FrameGroups) -> Iterator[tuple[str, object]]:
    """ScanningSequence, SequenceVariant, ScanOptions and the names of pulse sequence and nucleus."""
    echo = groups.root("EchoPulseSequence")
    inverted = groups.value("MRModifierSequence", "InversionRecovery") == "YES"
    scanning = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}.get(echo, [])
    scanning += ["IR"] if inverted else []
    scanning += ["EP"] if groups.root("EchoPlanarPulseSequence") == "YES" else []
    yield "ScanningSequence", scanning or ["RM"]
    variant = {"PARTIAL": ["SK"]}.get(groups.root("SegmentedKSpaceTraversal"), [])
    variant += ["SS"] if groups.root("SteadyStatePulseSequence") not in ("", "NONE") else []
    spoiling = str(groups.value("MRModifierSequence", "Spoiling") or "NONE")
    variant += ["SP"] if spoiling != "NONE" else []
    transfer = str(groups.value("MRImagingModifierSequence", "MagnetizationTransfer") or "NONE")
    variant += ["MTC"] if transfer != "NONE" else []
    yield "SequenceVariant", variant or ["NONE"]
    options = []
    if groups.value("MRModifierSequence", "PartialFourier") == "YES":
        direction = groups.value("MRModifierSequence", "PartialFourierDirection")
        options.append("PFF" if direction == "FREQUENCY" else "PFP")
    if groups.root("SpectrallySelectedSuppression") in ("FAT", "FAT_AND_WATER", "SILICON_GEL"):
        options.append("FS")
    if str(groups.value("MRModifierSequence", "SpatialPresaturation") or "NONE") != "NONE":
        options.append("SP")
    yield "ScanOptions", options
    if name := groups.root("PulseSequenceName"):
        yield "SequenceName", name[:SEQUENCE_NAME_MAX]
    if nucleus := groups.root("ResonantNucleus"):
        yield "ImagedNucleus", nucleus
    yield "AngioFlag", "Y" if groups.root("TimeOfFlightContrast") == "YES" else "N"


def _ds(value: object) -> str | None:
    """A number as DS; None when it is none."""
    try:
        return str(format_number_as_ds(float(str(value))))
    except ValueError:
        return None


def _whole(value: object) -> int | None:
    """A whole number; None when it is none."""
    try:
        return int(str(value))
    except ValueError:
        return None

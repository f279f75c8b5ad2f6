"""What a derived classic MR instance takes over from its source: header elements, byte for byte if unchanged.

The source is read again without its pixels and nothing of it is copied deeply: scanners put 150 kB of private
data into a header. Elements stay raw bytes, so that text in any character set leaves as it came. Private
elements are taken by a white list.
"""

from __future__ import annotations

from itertools import product
from typing import TypeAlias

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag

from rules.facts import Vendor

Element: TypeAlias = DataElement | RawDataElement
Elements: TypeAlias = dict[BaseTag, Element]

# VRs whose bytes are the same in explicit and implicit little endian; sequences and ambiguous ones are not.
_PLAIN = "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UC UI UL UR US UT"
PLAIN_VRS = frozenset(_PLAIN.split())
ENHANCED_FROM = 0x9000  # element numbers of the multi-frame attributes in groups 0008, 0018, 0020, 0028
ENHANCED_GROUPS = frozenset((0x0008, 0x0018, 0x0020, 0x0028))
DRAWN_ON_PIXELS = frozenset((0x5000, 0x6000))  # curves and overlays lie on the distorted anatomy


def _tags(keywords: str) -> frozenset[int]:
    tags = {keyword: tag_for_keyword(keyword) for keyword in keywords.split()}
    unknown = [keyword for keyword, tag in tags.items() if tag is None]
    if unknown:
        raise KeyError(f"not in the DICOM dictionary: {unknown}")
    return frozenset(tag for tag in tags.values() if tag is not None)


# The same in every instance of a series, so taken from its first one: patient, study, series, frame of
# reference and equipment. Whole groups, and the tags of the others.
SERIES_GROUPS = frozenset((0x0010, 0x0012, 0x0032, 0x0038))
SERIES_TAGS = _tags(
    """
    SpecificCharacterSet TimezoneOffsetFromUTC Modality ProtocolName BodyPartExamined Laterality
    StudyInstanceUID StudyID StudyDate StudyTime AccessionNumber StudyDescription
    IssuerOfAccessionNumberSequence ProcedureCodeSequence ReferencedStudySequence ReferencedPatientSequence
    ReferringPhysicianName ReferringPhysicianIdentificationSequence ConsultingPhysicianName
    PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy
    PhysiciansReadingStudyIdentificationSequence OperatorsName OperatorIdentificationSequence
    PerformingPhysicianName PerformingPhysicianIdentificationSequence RequestingService
    ReasonForPerformedProcedureCodeSequence AdmittingDiagnosesDescription
    ReferencedPerformedProcedureStepSequence RequestAttributesSequence PatientPosition
    PerformedProcedureStepID PerformedProcedureStepDescription PerformedProtocolCodeSequence
    PerformedProcedureStepStartDate PerformedProcedureStepStartTime PerformedProcedureStepEndDate
    PerformedProcedureStepEndTime PerformedStationAETitle PerformedStationName PerformedLocation
    Manufacturer ManufacturerModelName DeviceSerialNumber SoftwareVersions StationName InstitutionName
    InstitutionAddress InstitutionalDepartmentName DeviceUID GantryID SpatialResolution
    DateOfLastCalibration TimeOfLastCalibration PositionReferenceIndicator
    """
)

# Of these, what is told in every object of the study, whatever it is.
STUDY_GROUPS = frozenset((0x0010, 0x0012, 0x0038))
STUDY_TAGS = _tags(
    """
    SpecificCharacterSet TimezoneOffsetFromUTC StudyInstanceUID StudyID StudyDate StudyTime AccessionNumber
    StudyDescription IssuerOfAccessionNumberSequence ProcedureCodeSequence ReferencedStudySequence
    ReferringPhysicianName ReferringPhysicianIdentificationSequence ConsultingPhysicianName
    PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy
    PhysiciansReadingStudyIdentificationSequence RequestingService AdmittingDiagnosesDescription
    """
)

# About the source's own pixels, identity or references: replaced by ours or no longer true.
NEVER_GROUPS = frozenset((0x0002, 0x0004, 0x4FFE, 0x5200, 0x7FE0, 0xFFFA, 0xFFFC))
NEVER_TAGS = _tags(
    """
    InstanceCreatorUID ConversionType CodeValue CodingSchemeDesignator CodeMeaning
    ReferencedImageSequence SourceImageSequence DerivationDescription DerivationCodeSequence
    ReferencedSeriesSequence StudiesContainingOtherReferencedInstancesSequence RelatedSeriesSequence
    ReferencedImageEvidenceSequence SourceImageEvidenceSequence ConversionSourceAttributesSequence
    DiffusionDirectionality DiffusionBValue DiffusionGradientOrientation MRDiffusionSequence
    DiffusionGradientDirectionSequence DiffusionAnisotropyType StackID InStackPositionNumber
    DimensionIndexSequence DimensionOrganizationSequence DimensionIndexValues ContributingEquipmentSequence
    NumberOfFrames NumberOfSlices FrameIncrementPointer ImagesInAcquisition
    SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries LargestPixelValueInSeries
    SmallestImagePixelValueInPlane LargestImagePixelValueInPlane PixelPaddingValue PixelPaddingRangeLimit
    IconImageSequence PixelAspectRatio RescaleSlope RescaleIntercept RescaleType ModalityLUTSequence
    VOILUTSequence WindowCenter WindowWidth WindowCenterWidthExplanation VOILUTFunction
    AcquisitionContextSequence RealWorldValueMappingSequence ModifiedAttributesSequence
    EncryptedAttributesSequence
    """
)

IMAGE_PLANE = _tags(
    """
    PixelSpacing ImageOrientationPatient ImagePositionPatient
    SliceThickness SpacingBetweenSlices SliceLocation
    """
)
# What describes the source's sampling: untrue of images on another grid.
OF_THE_SAMPLING = IMAGE_PLANE | _tags(
    """
    AcquisitionMatrix InPlanePhaseEncodingDirection PercentSampling PercentPhaseFieldOfView
    NumberOfPhaseEncodingSteps PixelBandwidth ReconstructionDiameter
    """
)
RESCALE_TAGS = _tags("RescaleSlope RescaleIntercept RescaleType")

# Private elements by creator: (group, element within the creator's block). Older workstations read b-values,
# directions and phase-encoding facts only from here. Nothing that describes a mosaic or the source's scaling.
# Not Philips' b-value index (2005,1412): dcm2niix splits series by it where SeriesNumber is above 99999.
WHITE_LIST: dict[str, frozenset[tuple[int, int]]] = {
    "SIEMENS MR HEADER": frozenset((0x0019, e) for e in (0x0C, 0x0D, 0x0E, 0x27, 0x28)),
    "SIEMENS MR SDI 02": frozenset((0x0021, e) for e in (0x1C, 0x53)),
    "GEMS_PARM_01": frozenset((0x0043, e) for e in (0x2C, 0x30, 0x39, 0x83)),
    "GEMS_ACQU_01": frozenset((0x0019, e) for e in (0xBB, 0xBC, 0xBD)),
    "Philips Imaging DD 001": frozenset((0x2001, e) for e in (0x03, 0x04, 0x13, 0x22)),
    "Philips MR Imaging DD 001": frozenset((0x2005, e) for e in (0xB0, 0xB1, 0xB2)),
    "Philips MR Imaging DD 005": frozenset((0x2005, e) for e in (0x13,)),
    "Image Private Header": frozenset((0x0065, e) for e in (0x09, 0x37)),
}
# Of the white list, what is told in rows, columns and pixels of the source: vectors in the image frame (GE,
# UIH), bandwidths and shifts per pixel.
IN_SOURCE_PIXELS: dict[str, frozenset[tuple[int, int]]] = {
    "SIEMENS MR HEADER": frozenset(((0x0019, 0x28),)),
    "SIEMENS MR SDI 02": frozenset((0x0021, e) for e in (0x1C, 0x53)),
    "GEMS_PARM_01": frozenset(((0x0043, 0x2C),)),
    "GEMS_ACQU_01": frozenset((0x0019, e) for e in (0xBB, 0xBC, 0xBD)),
    "Philips Imaging DD 001": frozenset(((0x2001, 0x22),)),
    "Image Private Header": frozenset(((0x0065, 0x37),)),
}
CREATOR_PREFIX = {
    Vendor.SIEMENS: "SIEMENS",
    Vendor.GE: "GEMS",
    Vendor.PHILIPS: "Philips",
    Vendor.UIH: "Image Private Header",
}
FIRST_BLOCK = 0x10
# True only while stored values keep the source's scaling.
SCALE_LIST = {"Philips MR Imaging DD 001": frozenset(((0x2005, 0x0E),))}


def carried(dataset: Dataset, tag: int) -> Element | None:
    """The element as it is to be written in Explicit VR Little Endian; None when absent or an empty sequence.

    Bytes stay as they are wherever the encoding allows: from explicit little endian always, from implicit
    little endian and UN for every VR but sequences. Everything else is left to pydicom's own conversion.
    """
    if tag not in dataset:
        return None
    element: Element = dataset.get_item(tag)
    if isinstance(element, RawDataElement):
        element = _explicit(dataset, element)
    if element.VR == "SQ" and not element.value:
        return None
    return element


def _explicit(dataset: Dataset, raw: RawDataElement) -> Element:
    implicit, little = dataset.original_encoding
    if not little:
        return dataset[raw.tag]
    vr = "UN" if implicit else raw.VR
    if vr == "UN" and not raw.tag.is_private and dictionary_has_tag(raw.tag):
        vr = dictionary_VR(raw.tag)
        if vr not in PLAIN_VRS:
            return dataset[raw.tag]
    elif implicit:
        return dataset[raw.tag]
    value = raw.value or b""
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "UN", "OB") else b" "
    return raw._replace(VR=vr, value=value, length=len(value), is_implicit_VR=False)


def public_elements(header: Dataset) -> Elements:
    """Every public element of a source header that still holds for the corrected image."""
    multi_frame = "PerFrameFunctionalGroupsSequence" in header
    elements: Elements = {}
    for tag in sorted(header.keys()):
        if tag.is_private or tag.element == 0 or tag.group in NEVER_GROUPS or tag in NEVER_TAGS:
            continue
        if tag.group & 0xFF00 in DRAWN_ON_PIXELS:
            continue
        if multi_frame and tag.group in ENHANCED_GROUPS and tag.element >= ENHANCED_FROM:
            continue
        element = carried(header, tag)
        if element is not None:
            elements[tag] = element
    return elements


def rescale_elements(dataset: Dataset) -> Elements:
    """RescaleSlope, RescaleIntercept and RescaleType as their text stands."""
    elements: Elements = {}
    for tag in sorted(RESCALE_TAGS):
        if (element := carried(dataset, tag)) is not None:
            elements[Tag(tag)] = element
    return elements


def belongs_to_series(tag: BaseTag) -> bool:
    """Whether an element must be the same in every instance of the series."""
    return tag.group in SERIES_GROUPS or tag in SERIES_TAGS


def belongs_to_study(tag: BaseTag) -> bool:
    """Whether an element must be the same in every object of the study."""
    return tag.group in STUDY_GROUPS or tag in STUDY_TAGS


def private_elements(
    header: Dataset, vendor: Vendor, scale_is_kept: bool, grid_is_kept: bool = True
) -> Elements:
    """The white-listed private elements of a data set with their creators, in the blocks where they lie.

    Where a PACS has removed every creator of a group, the vendor's first block is taken and gets its creator
    back: without one the elements would not be legal, and no workstation would read them.
    """
    elements: Elements = {}
    present = {tag.group for tag in header.keys() if tag.is_private_creator}  # noqa: SIM118
    for creator, wanted in WHITE_LIST.items():
        if scale_is_kept:
            wanted |= SCALE_LIST.get(creator, frozenset())
        if not grid_is_kept:
            wanted -= IN_SOURCE_PIXELS.get(creator, frozenset())
        if not wanted:
            continue
        group = next(iter(wanted))[0]
        if group in present:
            blocks = _blocks(header, group, creator)
        else:
            blocks = [FIRST_BLOCK] if creator.startswith(CREATOR_PREFIX.get(vendor, "?")) else []
        for block, (_, offset) in product(blocks, sorted(wanted)):
            element = carried(header, Tag(group, (block << 8) + offset))
            if element is not None:
                elements[Tag(group, block)] = DataElement(Tag(group, block), "LO", creator)
                elements[element.tag] = element
    return elements


def _blocks(header: Dataset, group: int, creator: str) -> list[int]:
    """The blocks of a group that a creator has reserved."""
    tags = sorted(tag for tag in header.keys() if tag.group == group and tag.is_private_creator)  # noqa: SIM118
    return [tag.element for tag in tags if _text(header.get_item(tag).value) == creator]


def _text(value: object) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.strip(" \0")

"""What each series is, and why: one test after the other, first hit wins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from rules import evidence
from rules.contrast import Contrast, contrast
from rules.evidence import Evidence, token, words
from rules.facts import SeriesFacts
from rules.reasons import Code, Reason, reason
from rules.sentences import clause, left_out, name
from rules.site import Override, Then, matching


class SeriesClass(StrEnum):
    """What a series is."""

    DWI = "dwi"
    TRACE_DWI = "trace-dwi"  # trace-weighted: distorted as its EPI is, so correctable
    BY_PRODUCT = "by-product"  # a trace or motion-corrected copy of a DWI that is here as well
    COMPUTED_DWI = "computed-dwi"  # a b-value that nobody acquired
    DWI_NON_EPI = "dwi-non-epi"
    B0_ONLY = "b0-only"  # EPI without weighting, such as the reversed-polarity helper of topup
    DERIVED_MAP = "derived-map"
    ANATOMICAL = "anatomical"
    FIELD_MAP = "field-map"
    LOCALIZER = "localizer"
    EPI_OTHER = "epi-other"  # BOLD, ASL, perfusion
    SCREENSAVE = "screensave"
    OWN_OUTPUT = "own-output"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Classification:
    """What a series is, with the sentence and the attribute that decided."""

    series_class: SeriesClass
    reason: str  # one sentence, for a technologist
    decided_by: str  # the DICOM attribute, or "site rule"
    corrects: bool = False  # a DWI that the node takes on; `obstacle` may still forbid it
    contrast: Contrast | None = None  # of anatomical series
    parent_uid: str = ""  # of copies made by the scanner: the DWI that they come from
    site: Then | None = None  # what a rule of the site said


MIN_DWI_SLICES = 3  # two slices give a registration nothing to hold on to along the stack
MAX_LOWEST_B = 200.0  # s/mm²: up to here the lowest shell still shows anatomy as b = 0 does

_MR_IMAGES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4", "4.1", "4.3", "4.4")
)  # MR, enhanced MR, enhanced MR colour, legacy converted enhanced MR
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LOCALIZER_WORDS = frozenset({"loc", "scout", "aahead", "survey", "topogram", "3plane", "reperage"})
_LOCALIZER_TEXT = re.compile(r"lo[ck]ali[sz]|3[ _-]pl|定位")
_FEW_SLICES = 12  # to a direction: more is a rotating stack, not a localizer
_FIELD_MAP_TEXT = re.compile(r"field[ _-]?map|b0[ _-]?map|gre_field", re.IGNORECASE)
_COARSE_MM = 2.0  # field maps are coarser than this in plane, Dixon images with the same echo times finer
_PERFUSION = ("ASL", "PERFUSION", "M0")
_FAT_ONLY = ("F", "FAT", "OPP_PHASE")


def classify(facts: SeriesFacts, overrides: Sequence[Override] = ()) -> Classification:
    """What this series is, looked at alone. `classify_study` also looks at its siblings."""
    if facts.own_output:
        return _of(SeriesClass.OWN_OUTPUT, f"this node made it ({facts.own_output})", "own output")
    rule = matching(facts, overrides)
    if rule is None:
        return _by_header(facts)
    because = f"a rule of this site says so ({rule})"
    match rule.then:
        case Then.REFERENCE:
            kind, _ = contrast(facts)
            return Classification(SeriesClass.ANATOMICAL, because, "site rule", contrast=kind, site=rule.then)
        case Then.DWI:
            return Classification(SeriesClass.DWI, because, "site rule", corrects=True, site=rule.then)
        case Then.EXCLUDE | Then.NOT_DWI:
            found = _by_header(facts)
            return replace(found, corrects=False, site=rule.then, reason=f"{found.reason}; {because}")
        case Then.NOT_REFERENCE:
            return replace(_by_header(facts), site=rule.then)


def classify_study(
    series: Sequence[SeriesFacts], overrides: Sequence[Override] = ()
) -> dict[str, Classification]:
    """What each series is, by SeriesInstanceUID, now that its siblings are known.

    A trace-weighted series is a by-product where the DWI that it was computed from is in the same study and
    holds its b-values; so is the motion-corrected copy (MOCO) of a DWI. Correcting both would give the same
    images twice. One exception: where that DWI can itself never be corrected (say, a mosaic whose tiles
    cannot be told apart) and the copy can, the copy stays a series of its own.
    """
    alone = {facts.series_uid: classify(facts, overrides) for facts in series}
    sources = [f for f in series if _is_source(f, alone[f.series_uid])]
    together = dict(alone)
    for facts in series:
        found = alone[facts.series_uid]
        if not found.corrects or found.site is not None or _is_source(facts, found):
            continue
        parent = _parent(facts, sources)
        if parent is None:
            continue
        if _hopeless(parent, alone[parent.series_uid]) and not obstacle(facts, found):
            together[facts.series_uid] = replace(found, parent_uid=parent.series_uid)
            continue
        what = "a motion-corrected copy" if "MOCO" in facts.image_type else "trace-weighted images"
        said = token(facts, "MOCO", "TRACEW", "TRACE")
        because = f"{what} made by the scanner from {name(parent)}"
        if said:
            because = f"ImageType says {said}: {because}"
        together[facts.series_uid] = replace(
            _of(SeriesClass.BY_PRODUCT, because, "ImageType"), parent_uid=parent.series_uid
        )
    return together


# The clock of a by-product: the start of its DWI, or up to the end of the acquisition where it holds only the
# b-values acquired last (prostatex-0218: 1.7 s before the first volume; an ADC 16 s after it).
_BEFORE_S, _AFTER_S = 10.0, 20 * 60.0


def _is_source(facts: SeriesFacts, found: Classification) -> bool:
    """A directional DWI as it was acquired."""
    return found.series_class is SeriesClass.DWI and found.site is None and "MOCO" not in facts.image_type


def _hopeless(facts: SeriesFacts, found: Classification) -> bool:
    """Whether nothing that may still arrive makes this DWI correctable."""
    stopped = obstacle(facts, found)
    return stopped is not None and stopped.code is not Code.INCOMPLETE


def _parent(copy: SeriesFacts, sources: Sequence[SeriesFacts]) -> SeriesFacts | None:
    """The DWI that `copy` was made from: of several runs of one protocol, the last one begun before it."""
    fitting = [s for s in sources if _same_acquisition(copy, s) and _holds_b_values(s, copy)]
    return max(fitting, key=lambda s: (s.acquired is not None, s.acquired, s.series_uid), default=None)


def _same_acquisition(copy: SeriesFacts, source: SeriesFacts) -> bool:
    """Same study, same protocol (without one: the same beginning of the description), times that agree.

    Geometry is not compared: that of the source may be what cannot be read. AcquisitionNumber does not
    help (XA leaves it out of the trace), nor does FrameOfReferenceUID.
    """
    if copy.study_uid != source.study_uid:
        return False
    if copy.protocol_name and source.protocol_name:
        named = copy.protocol_name.casefold() == source.protocol_name.casefold()
    else:
        named = bool(source.description) and copy.description.startswith(source.description)
    if copy.acquired is None or source.acquired is None:
        return named
    apart_s = (copy.acquired - source.acquired).total_seconds()
    return named and -_BEFORE_S <= apart_s <= _AFTER_S


def _holds_b_values(source: SeriesFacts, copy: SeriesFacts) -> bool:
    """Whether every weighting of the copy was acquired in the source; scanners round by up to 5 %."""
    acquired = [b for b in source.b_values if b is not None]
    return not acquired or all(
        any(abs(b - a) <= max(25.0, 0.05 * b) for a in acquired) for b in evidence.weighted(copy)
    )


def obstacle(
    facts: SeriesFacts,
    found: Classification,
    *,
    max_lowest_b: float = MAX_LOWEST_B,
    min_slices: int = MIN_DWI_SLICES,
) -> Reason | None:
    """Why this diffusion series cannot be corrected whatever the reference; None when nothing forbids it.

    Also None for series that are no diffusion series: those need no reason. `max_lowest_b`: s/mm².
    """
    if found.site in (Then.EXCLUDE, Then.NOT_DWI) and found.series_class in _DIFFUSION:
        return reason(Code.EXCLUDED_BY_SITE, found.reason)
    if found.series_class is SeriesClass.DWI_NON_EPI:
        return reason(Code.NOT_EPI, found.reason)
    if not found.corrects:
        return None
    stopped = _geometry_obstacle(facts, min_slices) or _b_value_obstacle(facts, max_lowest_b)
    if stopped is not None and stopped.code in _LACKING:
        return replace(stopped, text=stopped.text + left_out(facts))
    return stopped


_DIFFUSION = frozenset({SeriesClass.DWI, SeriesClass.TRACE_DWI, SeriesClass.DWI_NON_EPI})
# What the images that are missing may cure
_LACKING = frozenset({Code.INCOMPLETE, Code.TOO_FEW_SLICES, Code.NO_LOW_B})


def _geometry_obstacle(facts: SeriesFacts, min_slices: int) -> Reason | None:
    if facts.geometry_problem:
        return reason(Code.INCOMPLETE if facts.incomplete else Code.GEOMETRY, clause(facts.geometry_problem))
    if facts.box is None:
        return reason(Code.GEOMETRY, "the images carry no position")
    if facts.slices < min_slices:
        plural = "" if facts.slices == 1 else "s"
        return reason(
            Code.TOO_FEW_SLICES, f"it has {facts.slices} slice{plural}, at least {min_slices} are needed"
        )
    return None


def _b_value_obstacle(facts: SeriesFacts, max_lowest_b: float) -> Reason | None:
    known = [b for b in facts.b_values if b is not None]
    missing = len(facts.b_values) - len(known)
    if not known:
        return reason(Code.NO_B_VALUES, "no volume carries one")
    if missing:
        return reason(Code.NO_B_VALUES, f"{missing} of {len(facts.b_values)} volumes carry none")
    if min(known) > max_lowest_b:
        return reason(Code.NO_LOW_B, f"{min(known):g}")
    return None


def _by_header(facts: SeriesFacts) -> Classification:
    """The tests of §4.1 in their order; each returns None where it does not apply."""
    return (
        _not_acquired(facts)
        or _localizer(facts)
        or _diffusion(facts)
        or _field_map(facts)
        or _not_magnitude(facts)
        or _anatomical(facts)
    )


def _of(series_class: SeriesClass, because: str, attribute: str, corrects: bool = False) -> Classification:
    return Classification(series_class, because, attribute, corrects)


def _not_acquired(facts: SeriesFacts) -> Classification | None:
    """Maps, screen captures and objects without pixels: made, not measured."""
    if "LOCALIZER" in facts.image_type:
        return _of(SeriesClass.LOCALIZER, "ImageType says LOCALIZER", "ImageType")
    made = evidence.derived_map(facts)
    if made.holds:
        return _of(SeriesClass.DERIVED_MAP, made.because, made.attribute)
    if facts.sop_class_uid.startswith(_SECONDARY_CAPTURE):
        because = "it is a Secondary Capture: a picture, not a measurement"
        return _of(SeriesClass.SCREENSAVE, because, "SOPClassUID")
    if facts.colour:
        return _of(SeriesClass.SCREENSAVE, "it is in colour: a picture, not a measurement", "SamplesPerPixel")
    if facts.sop_class_uid and facts.sop_class_uid not in _MR_IMAGES:
        return _of(SeriesClass.OTHER, f"it is no MR image{_but(facts.modality)}", "SOPClassUID")
    if facts.modality not in ("MR", ""):
        return _of(SeriesClass.OTHER, f"it is no MR image{_but(facts.modality)}", "Modality")
    made = evidence.computed(facts)
    if made.holds:
        because = f"{made.because}: the scanner computed this b-value, nobody acquired it"
        return _of(SeriesClass.COMPUTED_DWI, because, made.attribute)
    return None


# PS3.3 C.7.3.1.1.1, in words where the code is none that people say
_MODALITIES = {
    "PR": "a presentation state",
    "SR": "a structured report",
    "KO": "a key object selection",
    "SEG": "a segmentation",
    "REG": "a registration",
    "DOC": "a document",
    "OT": "another kind of image",
    "CR": "an X-ray image",
    "DX": "an X-ray image",
    "XA": "an angiogram",
    "US": "an ultrasound image",
    "ECG": "an electrocardiogram",
    "RTDOSE": "a radiotherapy dose",
    "RTPLAN": "a radiotherapy plan",
    "RTSTRUCT": "a radiotherapy structure set",
}


def _but(modality: str) -> str:
    if modality in ("MR", ""):
        return ""
    words = _MODALITIES.get(modality)
    return f" but {words} ({modality})" if words else f" but {modality}"


def _names(facts: SeriesFacts) -> tuple[tuple[str, str], ...]:
    """What people called the series, by attribute; a sentence quotes only the word that was looked for."""
    return ("SeriesDescription", facts.description), ("ProtocolName", facts.protocol_name)


def _localizer(facts: SeriesFacts) -> Classification | None:
    """By its name or its directions. Never an EPI: those are told apart by their weighting."""
    if evidence.epi(facts).holds:
        return None
    for attribute, text in _names(facts):
        hits = sorted(words(text) & _LOCALIZER_WORDS) or _LOCALIZER_TEXT.findall(text.casefold())
        if hits:
            return _of(SeriesClass.LOCALIZER, f"{attribute} holds '{hits[0]}'", attribute)
    if facts.orientations > 1:
        slices = facts.instances if facts.instances > facts.orientations else facts.slices  # multi-frame
        if slices / facts.orientations <= _FEW_SLICES:
            because = f"it has slices in {facts.orientations} directions and few of each"
            return _of(SeriesClass.LOCALIZER, because, "ImageOrientationPatient")
        because = f"its slices lie in {facts.orientations} directions, so they form no volume"
        return _of(SeriesClass.OTHER, because, "ImageOrientationPatient")
    return None


def _diffusion(facts: SeriesFacts) -> Classification | None:
    """EPI and diffusion in one go: what was acquired as EPI, weighted or not."""
    epi, diffusion = evidence.epi(facts), evidence.diffusion(facts)
    if not diffusion.holds:
        return _epi_other(facts, epi) if epi.holds else None
    if epi.holds is False:
        because = f"{diffusion.because}, but {epi.because}"
        return _of(SeriesClass.DWI_NON_EPI, because, epi.attribute)
    known = [b for b in facts.b_values if b is not None]
    if known and len(known) == len(facts.b_values) and not evidence.weighted(facts):
        because = (
            f"{diffusion.because}, but its highest b-value is {max(known):g}: nothing is diffusion-weighted"
        )
        return _of(SeriesClass.B0_ONLY, because, "DiffusionBValue")
    because = f"{epi.because}, and {diffusion.because}" if epi.holds else diffusion.because
    if epi.holds is None:
        because += "; the header does not say how it was acquired, and nothing denies EPI"
    trace = evidence.trace(facts)
    if trace.holds:
        because = f"{trace.because}: trace-weighted images, as distorted as the EPI they come from"
        return _of(SeriesClass.TRACE_DWI, because, trace.attribute, corrects=True)
    return _of(SeriesClass.DWI, because, diffusion.attribute, corrects=True)


def _epi_other(facts: SeriesFacts, epi: Evidence) -> Classification:
    perfusion = token(facts, *_PERFUSION)
    if perfusion:
        return _of(SeriesClass.EPI_OTHER, f"{epi.because}, and ImageType says {perfusion}", "ImageType")
    return _of(SeriesClass.EPI_OTHER, f"{epi.because}, and nothing says diffusion", epi.attribute)


def _field_map(facts: SeriesFacts) -> Classification | None:
    """Gradient echoes acquired to measure the field."""
    for attribute, text in _names(facts):
        hit = _FIELD_MAP_TEXT.search(text)
        if hit:
            return _of(SeriesClass.FIELD_MAP, f"{attribute} holds '{hit.group()}'", attribute)
    if facts.sequence_name.lstrip("*").startswith("fm2d"):
        return _of(SeriesClass.FIELD_MAP, f"SequenceName is {facts.sequence_name}", "SequenceName")
    if facts.rescale_type.upper() == "HZ":
        return _of(SeriesClass.FIELD_MAP, "its values are in Hz", "RescaleType")
    echoes = facts.echo_times_ms
    if len(echoes) != 2 or "GR" not in facts.scanning_sequence:
        return None
    coarse = facts.voxel_mm is not None and max(facts.voxel_mm[:2]) > _COARSE_MM
    if 0.5 <= echoes[1] - echoes[0] <= 6 and (coarse or "PHASE" in facts.complex_components):
        because = f"it is a gradient echo with two echo times, {echoes[0]:g} and {echoes[1]:g} ms"
        return _of(SeriesClass.FIELD_MAP, f"{because}, as for a field map", "EchoTime")
    return None


def _not_magnitude(facts: SeriesFacts) -> Classification | None:
    """Images that show phase, fat alone or labelled blood instead of anatomy."""
    parts = facts.complex_components
    if parts and "MAGNITUDE" not in parts:
        because = f"ComplexImageComponent says {', '.join(parts)}: no magnitude image"
        return _of(SeriesClass.OTHER, because, "ComplexImageComponent")
    fat = token(facts, *_FAT_ONLY)
    if fat:
        because = f"ImageType says {fat}: a fat or opposed-phase image of a Dixon series"
        return _of(SeriesClass.OTHER, because, "ImageType")
    perfusion = token(facts, *_PERFUSION)
    if perfusion:
        return _of(SeriesClass.OTHER, f"ImageType says {perfusion}", "ImageType")
    return None


def _anatomical(facts: SeriesFacts) -> Classification:
    """Everything that is left, if it is an image at all."""
    if not facts.rows:
        return _of(SeriesClass.OTHER, "it has no image", "Rows")
    kind, shown = contrast(facts)
    if kind is Contrast.UNKNOWN:
        because = f"neither EPI nor a map; its contrast is unknown: {shown.because}"
    else:
        because = f"neither EPI nor a map; {kind} by {shown.because}"
    return Classification(SeriesClass.ANATOMICAL, because, shown.attribute, contrast=kind)

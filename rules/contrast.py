"""What an anatomical series shows: T2, FLAIR, T1 … from its timing.

Timing decides; the name of the series is asked only where the timing is missing or cannot tell.
"""

from __future__ import annotations

from enum import StrEnum

from rules.evidence import Evidence, token, words
from rules.facts import SeriesFacts


class Contrast(StrEnum):
    """The kind of an anatomical image; the values are what `rules.reference_order` lists."""

    T2 = "T2"
    T2_FS = "T2-FS"
    FLAIR = "FLAIR"
    STIR = "STIR"
    PD = "PD"
    T1 = "T1"
    T2_STAR = "T2*"
    UNKNOWN = "unknown"


# Best first. EPI b = 0 images are T2-weighted, so a T2 resembles them most; in the body, fat is suppressed in
# the DWI and bright in a plain T2. T2* (SWI, TOF) is itself distorted near air and comes last.
BRAIN_ORDER = tuple(Contrast[n] for n in ("T2", "T2_FS", "FLAIR", "PD", "T1", "STIR", "T2_STAR"))
BODY_ORDER = tuple(Contrast[n] for n in ("T2_FS", "T2", "STIR", "T1", "PD", "FLAIR", "T2_STAR"))

_FLAIR_WORDS = frozenset({"flair", "tirm", "fluid"})
_WORDS = (
    (Contrast.FLAIR, _FLAIR_WORDS),
    (Contrast.STIR, frozenset({"stir"})),
    (Contrast.T2_STAR, frozenset({"swi", "swan", "swip", "tof", "mra", "hemo", "t2star"})),
    (Contrast.T2, frozenset({"t2", "t2w"})),
    (Contrast.PD, frozenset({"pd", "pdw"})),
    (Contrast.T1, frozenset({"t1", "t1w", "mprage", "mp2rage", "bravo", "spgr", "tfl", "vibe"})),
)


def contrast(facts: SeriesFacts) -> tuple[Contrast, Evidence]:
    """The contrast of an anatomical (not EPI, magnitude) series and what showed it.

    Of a multi-echo series the first echo counts: it is the one that is loaded as reference. The limits are
    the usual ones but for three, widened where no other reading exists: a T2 may have TR from 1000 ms
    (single-shot and 3-D T2 of the body), TE from 50 ms (the gap between PD and T2), a T1 TR to 1500 ms.
    """
    flow = token(facts, "SWI", "MNIP", "SWI_IMAGES", "TOF", "ANGIO")
    if flow or facts.angio:
        attribute = "ImageType" if flow else "AngioFlag"
        return Contrast.T2_STAR, Evidence(True, f"{attribute} says {flow or 'Y'}", attribute)
    te = facts.echo_times_ms[0] if facts.echo_times_ms else None
    tr = facts.repetition_time_ms
    if te is None or tr is None:
        return _from_text(facts, "EchoTime or RepetitionTime is missing")
    kind = _from_timing(facts, te, tr)
    if kind is None:
        return _from_text(facts, f"{_timing(facts, te, tr)} fit no usual contrast")
    timing = _timing(facts, te, tr)
    if kind is Contrast.T2_FS:
        timing += ", fat suppressed"
    return kind, Evidence(True, timing, "EchoTime")


def _timing(facts: SeriesFacts, te: float, tr: float) -> str:
    inversion = f", TI {facts.inversion_time_ms:g} ms" if facts.inversion_time_ms else ""
    return f"TE {te:g} ms, TR {tr:g} ms{inversion}"


def _from_timing(facts: SeriesFacts, te: float, tr: float) -> Contrast | None:
    """Contrast from TE, TR and TI (ms); None where they leave it open."""
    ti = facts.inversion_time_ms or None
    gradient_echo = "GR" in facts.scanning_sequence
    if ti is not None or "IR" in facts.scanning_sequence:
        return _inversion_recovery(facts, te, tr, ti)
    if gradient_echo and te > 12:
        return Contrast.T2_STAR
    if gradient_echo:
        # without inversion and flip angle, TR cannot tell PD from T1; a name that says PD is believed
        return Contrast.PD if "pd" in words(facts.description) else Contrast.T1
    if te >= 50 and tr >= 1000:
        return Contrast.T2_FS if facts.fat_suppressed else Contrast.T2
    if te < 50 and tr > 1500:
        return Contrast.PD
    if te < 30 and tr <= 1500:
        return Contrast.T1
    return None


def _inversion_recovery(facts: SeriesFacts, te: float, tr: float, ti: float | None) -> Contrast | None:
    """Contrast after an inversion pulse; `ti` None: the header has IR without InversionTime."""
    if ti is None:
        named_flair = bool(words(facts.description, facts.protocol_name) & _FLAIR_WORDS)
        return Contrast.FLAIR if named_flair and te >= 70 else None
    if 100 <= ti <= 260:
        return Contrast.STIR
    if ti >= 1500 and te >= 70 and tr > 4000:
        return Contrast.FLAIR
    if 500 <= ti <= 1300 and te < 30:
        return Contrast.T1  # MPRAGE and its kin, and T1-FLAIR
    return None


def _from_text(facts: SeriesFacts, why: str) -> tuple[Contrast, Evidence]:
    """The last resort: the words of description and protocol."""
    said = words(facts.description, facts.protocol_name, facts.sequence_name)
    for kind, names in _WORDS:
        for word in sorted(said & names):
            fat = kind is Contrast.T2 and facts.fat_suppressed
            return (
                Contrast.T2_FS if fat else kind,
                Evidence(True, f"{why}, but its name says {word.upper()}", "SeriesDescription"),
            )
    return Contrast.UNKNOWN, Evidence(None, why, "EchoTime")

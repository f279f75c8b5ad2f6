"""Which series take over the field of another: images of one EPI acquisition are distorted alike.

Scanners store what they compute from an EPI beside it: trace-weighted images as a series of their own. Their
distortion is that of the EPI, so its field corrects them; estimating it again would give the same anatomy
two slightly different shapes. Maps (ADC, FA) are not among them: they are computed from corrected images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rules import evidence
from rules.classify import Classification, SeriesClass, obstacle
from rules.facts import PhaseEncoding, SeriesFacts
from rules.reasons import Code
from rules.sentences import name


@dataclass(frozen=True, slots=True)
class Sibling:
    """A series that is corrected with the field of another, or why it is not (`obstacle`, empty: it is)."""

    series_uid: str
    lead_uid: str  # the series on which the field is estimated
    obstacle: str = ""


def siblings(
    series: Sequence[SeriesFacts], classifications: Mapping[str, Classification]
) -> dict[str, Sibling]:
    """Of each acquisition in a study the series beside its lead, by SeriesInstanceUID.

    The lead is the series with the lowest b-value: the directional one, unless only the trace-weighted one
    holds images with little weighting.
    """
    by_uid = {facts.series_uid: facts for facts in series}
    found: dict[str, Sibling] = {}
    for facts in sorted(series, key=lambda one: one.series_uid):
        said = classifications[facts.series_uid]
        parent = by_uid.get(said.parent_uid)
        if parent is None or not evidence.trace(facts).holds:
            continue
        if said.series_class is SeriesClass.BY_PRODUCT:
            found[facts.series_uid] = _sibling(facts, parent)
        elif _lacks_low_b(parent, classifications[parent.series_uid]):
            found.setdefault(parent.series_uid, _sibling(parent, facts))
    return found


def _lacks_low_b(facts: SeriesFacts, found: Classification) -> bool:
    stopped = obstacle(facts, found)
    return stopped is not None and stopped.code is Code.NO_LOW_B


def _sibling(facts: SeriesFacts, lead: SeriesFacts) -> Sibling:
    return Sibling(facts.series_uid, lead.series_uid, _why_not(facts, lead))


def _why_not(facts: SeriesFacts, lead: SeriesFacts) -> str:
    """Why the field of `lead` does not fit; empty when it does."""
    if facts.geometry_problem:
        return "its slices form no regular volumes"
    if not facts.b_values or None in facts.b_values:
        return "not all of its volumes carry a b-value"
    if not same_grid(facts, lead):
        return f"its slices do not lie where those of {name(lead)} lie"
    if _contradict(facts.phase_encoding, lead.phase_encoding):
        return f"its phase encoding is not that of {name(lead)}"
    return ""


_SAME_PLACE_MM = 0.1  # DS text rounds below this, and a tenth of a voxel would not be seen
_SAME_DIRECTION = 1e-3


def same_grid(one: SeriesFacts, other: SeriesFacts) -> bool:
    """Whether voxel (x, y, z) of both lies at the same place in the patient."""
    if (one.rows, one.columns, one.slices) != (other.rows, other.columns, other.slices):
        return False
    if one.box is None or other.box is None:
        return False
    lengths = math.dist(one.box.extent_mm, other.box.extent_mm)
    turned = max(math.dist(u, v) for u, v in zip(one.box.axes, other.box.axes, strict=True))
    apart_mm = math.dist(one.box.centre, other.box.centre)
    return lengths <= _SAME_PLACE_MM and apart_mm <= _SAME_PLACE_MM and turned <= _SAME_DIRECTION


def _contradict(one: PhaseEncoding | None, other: PhaseEncoding | None) -> bool:
    """Whether both name an axis or polarity and do not agree; what is silent contradicts nothing."""
    if one is None or other is None:
        return False
    if one.axis is not other.axis:
        return True
    return None not in (one.increasing, other.increasing) and one.increasing != other.increasing

"""The ranking of references that passed every filter, by one key after the other.

Each key knows its value and the words for having lost by it, so that the order and its explanation cannot
drift apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rules import geometry
from rules.classify import Classification
from rules.contrast import BODY_ORDER, BRAIN_ORDER, Contrast
from rules.evidence import words
from rules.facts import Box, SeriesFacts
from rules.sentences import name
from rules.site import Then


@dataclass(frozen=True, slots=True)
class Standing:
    """One candidate measured against the DWI: what the ranking looks at."""

    facts: SeriesFacts
    site: Then | None
    order: tuple[str, ...]
    contrast: str
    agent: bool  # ranks as enhanced by contrast agent
    gradient: int  # state of gradient-nonlinearity correction, 0: as the DWI's; 1: unknown; 2: different
    same_frame: bool
    overlap: float
    tilt_deg: float
    minutes_apart: float | None


_HEAD_WORDS = frozenset({"brain", "head", "skull", "neuro", "kopf", "schadel", "hirn", "crane", "cerveau"})
_BODY_WORDS = frozenset(
    {"prostate", "prostata", "pelvis", "becken", "abdomen", "liver", "leber", "kidney", "niere", "uterus"}
    | {"rectum", "rektum", "breast", "mamma", "heart", "spine", "neck", "hals", "knee", "wholebody", "wb"}
)


def default_order(dwi: SeriesFacts) -> tuple[str, ...]:
    """The reference order for the examined body part: what BodyPartExamined says, else the name of the
    series; a header that tells neither means the head."""
    if dwi.body_part:
        return BRAIN_ORDER if words(dwi.body_part) & _HEAD_WORDS else BODY_ORDER
    return BODY_ORDER if words(dwi.description, dwi.protocol_name) & _BODY_WORDS else BRAIN_ORDER


def standing(
    dwi: SeriesFacts,
    facts: SeriesFacts,
    found: Classification,
    order: tuple[str, ...],
    allow_contrast_agent: bool,
) -> Standing:
    """Measure one candidate; both series must have a box."""
    stack, by = boxes(dwi, facts)
    return Standing(
        facts=facts,
        site=found.site,
        order=order,
        contrast=str(found.contrast or Contrast.UNKNOWN),
        agent=_enhanced(facts) and not allow_contrast_agent,
        gradient=_gradient(dwi, facts),
        same_frame=same_frame(dwi, facts),
        overlap=geometry.covered(stack, by),
        tilt_deg=geometry.tilt_deg(stack, by),
        minutes_apart=minutes_apart(dwi, facts),
    )


_AGENT_WORDS = frozenset({"gd", "gad", "gado", "gadolinium", "km"})
_WITHOUT_WORDS = frozenset({"pre", "nativ", "native", "ohne", "sans", "sin", "senza", "without", "no", "non"})
_DOUBT_WORDS = frozenset({"motion", "moved", "bewegt", "bewegung", "repeat", "artefact", "artifact"})


def _enhanced(facts: SeriesFacts) -> bool:
    said = words(facts.description)
    named = bool(said & _AGENT_WORDS) or "+c" in facts.description.casefold()
    return facts.contrast_agent or (named and not said & _WITHOUT_WORDS)


def _gradient(dwi: SeriesFacts, facts: SeriesFacts) -> int:
    """State of gradient-nonlinearity correction against the DWI's; DIS2D and DIS3D count as equal.

    It matters because an ND DWI pulled towards a DIS2D reference takes up the gradient warp as well.
    """
    own, other = (f.gradient_nonlinearity[:3] for f in (dwi, facts))
    if not own or not other:
        return 1
    return 0 if own == other else 2


def boxes(dwi: SeriesFacts, facts: SeriesFacts) -> tuple[Box, Box]:
    """The boxes of both; series without one are stopped earlier (`obstacle`, and the filters of `pair`)."""
    if dwi.box is None or facts.box is None:
        raise ValueError("a series without a position cannot be paired")
    return dwi.box, facts.box


def same_frame(dwi: SeriesFacts, facts: SeriesFacts) -> bool:
    """Whether both name the same FrameOfReferenceUID."""
    return bool(dwi.frame_of_reference_uid) and dwi.frame_of_reference_uid == facts.frame_of_reference_uid


def minutes_apart(dwi: SeriesFacts, facts: SeriesFacts) -> float | None:
    """Minutes between the first acquisitions of both; None where a clock is missing."""
    if dwi.acquired is None or facts.acquired is None:
        return None
    return abs((dwi.acquired - facts.acquired).total_seconds()) / 60


def _place(s: Standing) -> int:
    """Place in the reference order; a name that speaks of motion or a repeat costs one place."""
    place = s.order.index(s.contrast) if s.contrast in s.order else len(s.order)
    return place + bool(words(s.facts.description) & _DOUBT_WORDS)


def _volume_mm3(s: Standing) -> float:
    column_mm, row_mm, step_mm = s.facts.voxel_mm or (0.0, 0.0, 0.0)
    return round(column_mm * row_mm * step_mm, 2)


@dataclass(frozen=True, slots=True)
class Key:
    """One place of the ranking: its value (smaller is better) and what to say when it decided against `s`."""

    name: str
    value: Callable[[Standing], float | str]
    lost: Callable[[Standing, Standing], str]  # (loser, winner) → half a sentence after "lost to X: "


RANKING: tuple[Key, ...] = (
    Key("site", lambda s: s.site is not Then.REFERENCE, lambda s, w: "a rule of this site names the other"),
    Key("contrast agent", lambda s: s.agent, lambda s, w: "it was acquired with contrast agent"),
    Key("contrast", _place, lambda s, w: _contrast_lost(s, w)),
    Key("gradient correction", lambda s: s.gradient, lambda s, w: _gradient_lost(s, w)),
    Key("frame of reference", lambda s: not s.same_frame, lambda s, w: "it has another frame of reference"),
    Key(
        "overlap",
        lambda s: -int(s.overlap * 20 + 1e-9),
        lambda s, w: (
            f"it covers {s.overlap * 100:.0f} % of the diffusion images, the other {w.overlap * 100:.0f} %"
        ),
    ),
    Key(
        "tilt",
        lambda s: int(s.tilt_deg // 5),
        lambda s, w: f"its slices are tilted by {s.tilt_deg:.0f}° against the DWI's",
    ),
    Key(
        "time",
        lambda s: 1e6 if s.minutes_apart is None else int(s.minutes_apart // 5),
        lambda s, w: (
            "it was acquired at an unknown time"
            if s.minutes_apart is None
            else f"acquired {s.minutes_apart:.0f} minutes from the DWI, the other {w.minutes_apart:.0f}"
        ),
    ),
    Key("voxel", _volume_mm3, lambda s, w: f"its voxels are larger ({_volume_mm3(s):g} mm³)"),
    Key("3-D", lambda s: s.facts.acquisition_type != "3D", lambda s, w: "it is 2-D, the other 3-D"),
    Key(
        "normalised",
        lambda s: not s.facts.prescan_normalised,
        lambda s, w: "it is the copy without prescan normalisation",
    ),
    Key(
        "repeat",
        lambda s: -(s.facts.series_number or 0),
        lambda s, w: "it is the earlier of two equals, and a repeat usually has its reason",
    ),
    Key(
        "uid", lambda s: s.facts.series_uid, lambda s, w: "nothing tells them apart but the SeriesInstanceUID"
    ),
)


def rank(s: Standing) -> tuple[float | str, ...]:
    """The vector of RANKING; the smallest is the best reference."""
    return tuple(v if isinstance(v, str) else float(v) for v in (key.value(s) for key in RANKING))


def _contrast_lost(s: Standing, w: Standing) -> str:
    if s.contrast == w.contrast:
        return "its name speaks of motion or a repeat"
    return f"{s.contrast} stands behind {w.contrast} in the reference order"


def _gradient_lost(s: Standing, w: Standing) -> str:
    if s.gradient == 1:
        return "whether it is corrected for gradient nonlinearity is unknown"
    state = "not corrected" if s.facts.gradient_nonlinearity == "ND" else "corrected"
    return f"it is {state} for gradient nonlinearity, unlike the DWI"


def lost(s: Standing, winner: Standing) -> str:
    """Why `s` is not the reference: the first key in which `winner` is better."""
    deciding = next(key for key in RANKING if key.value(s) != key.value(winner))
    return f"lost to {name(winner.facts)}: {deciding.lost(s, winner)}"


def _tilt_of(s: Standing) -> str:
    if s.tilt_deg < 1:
        return "slices parallel to the DWI's"
    if s.facts.acquisition_type == "3D":
        return "3-D, so the direction of its slices does not matter"
    return f"slices tilted by {s.tilt_deg:.0f}° against the DWI's"


def won(s: Standing, *, alone: bool) -> str:
    """What speaks for the chosen reference; `alone`: nothing else passed the filters."""
    facts = [
        s.contrast if s.contrast in s.order else "named by a rule of this site",
        "same frame of reference" if s.same_frame else "another frame of reference",
        f"covers {s.overlap * 100:.0f} % of the diffusion images",
        _tilt_of(s),
    ]
    if s.minutes_apart is not None:
        facts.append(f"acquired {s.minutes_apart:.0f} minutes apart")
    return f"{'the only suitable series' if alone else 'chosen'}: {', '.join(facts)}"

"""What a site says about its own series, as data: `when` these facts match, `then` this holds.

Values are compared, nothing is evaluated:

- when: {description: "*MPRAGE*", model: "Skyra"}
  then: reference
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rules.facts import SeriesFacts


class Then(StrEnum):
    """What a matching rule makes of the series."""

    EXCLUDE = "exclude"  # neither corrected nor used as a reference
    REFERENCE = "reference"  # an anatomical series, taken before all others
    NOT_REFERENCE = "not-reference"  # whatever it is, never a reference
    DWI = "dwi"  # a diffusion EPI to be corrected, whatever the header says
    NOT_DWI = "not-dwi"  # never corrected


Matchable = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Override:
    """One rule of a site. All facts in `when` must match; texts compare as globs without regard to case."""

    when: Mapping[str, Matchable]
    then: Then

    def __str__(self) -> str:
        facts = ", ".join(f"{name} = {value}" for name, value in self.when.items())
        return f"when {facts} then {self.then}"


# Identity is not for matching (a rule about one patient does not belong in a configuration file), and the
# structured facts (box, phase encoding, time) have no single value to compare with.
_TEXTS = (
    *("modality", "sop_class_uid", "description", "protocol_name", "sequence_name", "vendor", "manufacturer"),
    *("model", "software", "station", "patient_position", "body_part", "image_type", "scanning_sequence"),
    *("sequence_variant", "scan_options", "acquisition_type", "complex_components", "rescale_type"),
    *("gradient_nonlinearity", "directionalities"),
)
_NUMBERS = (
    *(
        "series_number",
        "instances",
        "acquisition_number",
        "epi_factor",
        "echo_times_ms",
        "repetition_time_ms",
    ),
    *("inversion_time_ms", "rows", "columns", "slices", "orientations", "mosaic_tiles", "b_values"),
)
_SWITCHES = ("echo_planar", "contrast_agent", "fat_suppressed", "angio", "colour", "prescan_normalised")
_KINDS = (
    dict.fromkeys(_TEXTS, "text")
    | dict.fromkeys(_NUMBERS, "a number")
    | dict.fromkeys(_SWITCHES, "true or false")
)

FACT_NAMES = tuple(_KINDS)


def problems(when: Mapping[str, object]) -> tuple[str, ...]:
    """What is wrong with the facts of a rule, one sentence each; empty when it can be used."""
    found = [] if when else ["`when` names no fact, so the rule would match every series"]
    for name, value in when.items():
        if name not in _KINDS:
            near = difflib.get_close_matches(name, FACT_NAMES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "known are: " + ", ".join(FACT_NAMES)
            found.append(f"unknown fact '{name}'; {hint}")
        elif not _comparable(value, _KINDS[name]):
            found.append(f"'{name}' compares with {_KINDS[name]}, not with {value!r}")
    return tuple(found)


def matching(facts: SeriesFacts, overrides: Sequence[Override]) -> Override | None:
    """The first rule whose facts all match this series."""
    return next((rule for rule in overrides if _matches(facts, rule.when)), None)


def _comparable(value: object, kind: str) -> bool:
    if isinstance(value, bool):  # before the numbers: True is an int
        return kind == "true or false"
    return isinstance(value, {"text": str, "a number": int | float}.get(kind, ()))


def _matches(facts: SeriesFacts, when: Mapping[str, Matchable]) -> bool:
    return bool(when) and all(_equal(getattr(facts, name), value) for name, value in when.items())


def _equal(fact: object, wanted: Matchable) -> bool:
    """One fact against one value; of a fact with several values any may match, an absent fact never does."""
    if isinstance(fact, tuple):
        return any(_equal(item, wanted) for item in fact)
    if fact is None:
        return False
    if isinstance(fact, str):
        return fnmatch.fnmatchcase(fact.casefold(), str(wanted).casefold())
    return fact == wanted

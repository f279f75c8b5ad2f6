"""DIMSE statuses as data: those we answer a C-STORE with, and what those we receive mean for the sender.

Sources: PS3.7 Annex C, PS3.4 Annex B.2.3; PS3.8 §9.3.4 for rejected associations.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum, auto
from typing import NamedTuple


class Answer(IntEnum):
    """What our storage SCP answers."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    INVALID_SOP_INSTANCE = 0x0117
    OUT_OF_RESOURCES = 0xA700
    MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


class Outcome(StrEnum):
    """What became of one instance that we sent."""

    STORED = auto()
    STORED_WITH_WARNING = auto()
    DUPLICATE = auto()  # the peer says that it has this instance already
    TRANSIENT = auto()  # not stored; worth another try later
    PERMANENT = auto()  # refused for what it is; sending the same again will not help

    @property
    def arrived(self) -> bool:
        """Whether the peer has the instance."""
        return self in (Outcome.STORED, Outcome.STORED_WITH_WARNING, Outcome.DUPLICATE)


class Treatment(NamedTuple):
    """How we treat a range of received statuses."""

    first: int
    last: int
    outcome: Outcome
    meaning: str


TREATMENTS: tuple[Treatment, ...] = (
    Treatment(0x0000, 0x0000, Outcome.STORED, "stored"),
    Treatment(0x0001, 0x0001, Outcome.STORED_WITH_WARNING, "stored, some attributes were left out"),
    Treatment(0x0105, 0x0106, Outcome.PERMANENT, "an attribute or its value is not acceptable"),
    Treatment(0x0107, 0x0107, Outcome.STORED_WITH_WARNING, "stored, the attribute list had an error"),
    Treatment(0x0110, 0x0110, Outcome.TRANSIENT, "processing failure"),
    Treatment(0x0111, 0x0111, Outcome.DUPLICATE, "duplicate SOP instance"),
    Treatment(0x0112, 0x0112, Outcome.PERMANENT, "no such SOP instance"),
    Treatment(0x0116, 0x0116, Outcome.STORED_WITH_WARNING, "stored, an attribute value was out of range"),
    Treatment(0x0117, 0x0117, Outcome.PERMANENT, "invalid SOP instance"),
    Treatment(0x0118, 0x0118, Outcome.PERMANENT, "no such SOP class"),
    Treatment(0x0122, 0x0122, Outcome.PERMANENT, "SOP class not supported"),
    Treatment(0x0124, 0x0124, Outcome.PERMANENT, "not authorised to store here"),
    Treatment(0x0210, 0x0210, Outcome.PERMANENT, "duplicate invocation"),
    Treatment(0x0211, 0x0211, Outcome.PERMANENT, "unrecognised operation"),
    Treatment(0x0212, 0x0212, Outcome.PERMANENT, "mistyped argument"),
    Treatment(0x0213, 0x0213, Outcome.TRANSIENT, "resource limitation"),
    Treatment(0xA700, 0xA7FF, Outcome.TRANSIENT, "out of resources"),
    Treatment(0xA800, 0xA8FF, Outcome.PERMANENT, "SOP class not supported"),
    Treatment(0xA900, 0xA9FF, Outcome.PERMANENT, "data set does not match its SOP class"),
    Treatment(0xB000, 0xBFFF, Outcome.STORED_WITH_WARNING, "stored with a warning"),
    Treatment(0xC000, 0xCFFF, Outcome.PERMANENT, "cannot understand the data set"),
    Treatment(0xFE00, 0xFE00, Outcome.TRANSIENT, "cancelled by the peer"),
)


def treat(status: int) -> Treatment:
    """How a C-STORE response with `status` is treated; a status outside the tables is permanent."""
    for treatment in TREATMENTS:
        if treatment.first <= status <= treatment.last:
            return treatment
    return Treatment(status, status, Outcome.PERMANENT, "a status that the standard does not know")


# (result source, reason) of an A-ASSOCIATE-RJ, PS3.8 table 9-21, in words that name the remedy.
REJECTIONS: dict[tuple[int, int], str] = {
    (1, 1): "it gives no reason",
    (1, 2): "it does not support the DICOM application context",
    (1, 3): "it does not know our AE title {calling} (calling AE title not recognised); "
    "enter it in the peer's list of known nodes",
    (1, 7): "its AE title is not {called} (called AE title not recognised)",
    (2, 1): "it gives no reason",
    (2, 2): "it does not support this version of the protocol",
    (3, 1): "it is congested for the moment",
    (3, 2): "it has too many open associations",
}

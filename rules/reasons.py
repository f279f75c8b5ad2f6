"""The closed list of reasons: every way in which a series can end, with the sentence a technologist reads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """A reason's code: stable, for scripts; its sentence is in `SENTENCES`."""

    # a DWI series that cannot or need not be corrected
    NO_REFERENCE = "no-reference"
    NO_B_VALUES = "no-b-values"
    NO_LOW_B = "no-low-b"
    NOT_EPI = "not-epi"
    BY_PRODUCT = "by-product"
    UNREADABLE = "unreadable"
    INCOMPLETE = "incomplete"
    GEOMETRY = "geometry"
    TOO_FEW_SLICES = "too-few-slices"
    EXCLUDED_BY_SITE = "excluded-by-site"
    PATIENT_MISMATCH = "patient-mismatch"
    # a correction that ran
    VERDICT = "verdict"
    WITHHELD_BY_PERSON = "withheld-by-person"
    WITHDRAWN_BY_PERSON = "withdrawn-by-person"
    RELEASED_BY_PERSON = "released-by-person"
    RETRIED_BY_PERSON = "retried-by-person"
    # a correction that broke
    CORRECTION_FAILED = "correction-failed"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker-lost"
    # delivery
    NO_DESTINATION = "no-destination"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    GAVE_UP = "gave-up"
    COMPANION_REFUSED = "companion-refused"
    NOT_COMMITTED = "not-committed"
    DESTINATION_GONE = "destination-gone"
    # change of circumstances
    NEW_REVISION = "new-revision"
    NEW_REFERENCE = "new-reference"
    RESTARTED = "restarted"
    RESULT_LOST = "result-lost"
    LEDGER_LOST = "ledger-lost"
    DELETED = "deleted"


SENTENCES: dict[Code, str] = {
    Code.NO_REFERENCE: "no suitable anatomical series in this study: {detail}",
    Code.NO_B_VALUES: (
        "b-values are missing in the images, as after anonymising: {detail}; send the scanner's own images"
    ),
    Code.NO_LOW_B: (
        "the lowest b-value is {detail} s/mm², but registration needs an image with little diffusion "
        "weighting; acquire a b = 0 in the same series"
    ),
    Code.NOT_EPI: (
        "this diffusion series was not acquired with EPI, so it has no EPI distortion to correct: {detail}"
    ),
    Code.BY_PRODUCT: (
        "this series was computed by the scanner from {detail}; it is not corrected by itself, but along "
        "with that series where its slices lie in the same places"
    ),
    Code.UNREADABLE: "the images could not be read: {detail}",
    Code.INCOMPLETE: "the series is incomplete: {detail}",
    Code.GEOMETRY: "the slices do not form regular volumes: {detail}",
    Code.TOO_FEW_SLICES: "the slab is too thin to be registered with an anatomical series: {detail}",
    Code.EXCLUDED_BY_SITE: "excluded by a rule of this site: {detail}",
    Code.PATIENT_MISMATCH: "the images of this study do not agree on the patient: {detail}",
    Code.VERDICT: "the correction was judged not good enough to send: {detail}",
    Code.WITHHELD_BY_PERSON: "withheld by {detail}",
    Code.WITHDRAWN_BY_PERSON: "withdrawn by {detail}; who has the images is told to reject them",
    Code.RELEASED_BY_PERSON: "released by {detail}",
    Code.RETRIED_BY_PERSON: "tried again by {detail}",
    Code.CORRECTION_FAILED: "the correction stopped with an error: {detail}",
    Code.TIMEOUT: "the correction took longer than {detail} (correction.timeout_s) and was stopped",
    Code.WORKER_LOST: "the compute worker stopped while correcting: {detail}",
    Code.NO_DESTINATION: "no destination is configured (delivery.to), so the result stays on this node",
    Code.UNREACHABLE: "the images did not arrive: {detail}",
    Code.REFUSED: "the destination refused the images: {detail}",
    Code.GAVE_UP: "the destination did not take the images within {detail}",
    Code.COMPANION_REFUSED: (
        "the destination has every corrected image, but did not take all that goes with them: {detail}"
    ),
    Code.NOT_COMMITTED: "the destination does not confirm that it keeps the images: {detail}",
    Code.DESTINATION_GONE: "the destination {detail} is no longer in delivery.to",
    Code.NEW_REVISION: "more images of this series arrived: {detail}",
    Code.NEW_REFERENCE: "a new anatomical series arrived: {detail}",
    Code.RESTARTED: "the node was restarted during this step",
    Code.RESULT_LOST: "the result was no longer on disk and is computed again",
    Code.LEDGER_LOST: (
        "the ledger was lost or is older than the disk: the result was found on disk, and what the "
        "destination may have of it already is asked or sent again, which changes nothing there"
    ),
    Code.DELETED: "images and results were deleted from this node: {detail}",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something is so: a code for scripts and one sentence for people, free of patient data."""

    code: Code
    text: str


def reason(code: Code, detail: str = "") -> Reason:
    """The reason `code` with its sentence filled in; `detail` is the part that differs from case to case."""
    return Reason(code, SENTENCES[code].format(detail=detail))

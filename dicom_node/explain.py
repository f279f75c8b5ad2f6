"""What the node would make of a folder: each series with its class and reason, each DWI with its reference.

The same `summarise` and `decide_study` as in the daemon decide; here they are only told. No patient data:
series are called by number and description.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

from dicom_node.headers import Progress, UnreadableFile, files_below, read_series
from rules.classify import SeriesClass
from rules.contrast import Contrast
from rules.facts import PhaseAxis, SeriesFacts, Vec3
from rules.pair import Candidate, Filter, NoPairing, Pairing, PairingPolicy
from rules.rank import RANKING
from rules.reasons import Code, Reason
from rules.sentences import clause
from rules.study import Outcome, StudyDecision, decide_study


@dataclass(frozen=True, slots=True)
class ExplainedCandidate:
    """A series that might have been the reference. `rank` by the names of the ranking, smaller is better."""

    series_uid: str
    series_number: int | None
    description: str
    chosen: bool
    accepted: bool
    why: str
    filter_code: str
    rank: dict[str, float | str]


@dataclass(frozen=True, slots=True)
class ExplainedSeries:
    """One series: what it is, and for a diffusion series what becomes of it.

    action: `correct`, `sibling` (corrected with the field of series `field_from_uid`), `skip` (with
    reason_code and reason_text), or `none` for what triggers nothing.
    """

    series_uid: str
    study_uid: str
    series_number: int | None
    description: str
    instances: int
    images: str  # matrix, slices and voxel size, for people
    b_values: tuple[tuple[float | None, int], ...]  # s/mm² and how many volumes have it
    phase_encoding: str  # BIDS, rows as dcm2niix writes them
    phase_encoding_in_patient: str  # such as A→P; A–P where the header does not tell the direction
    series_class: str
    contrast: str
    because: str
    decided_by: str
    action: str
    reason_code: str
    reason_text: str
    reference_uid: str
    field_from_uid: str
    candidates: tuple[ExplainedCandidate, ...]


@dataclass(frozen=True, slots=True)
class ExplainedStudy:
    """The series of one study, by number."""

    study_uid: str
    series: tuple[ExplainedSeries, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A folder explained; plain values throughout, so `dataclasses.asdict` makes it JSON."""

    studies: tuple[ExplainedStudy, ...]
    unreadable: tuple[UnreadableFile, ...]
    copies: int  # files that repeat an image

    @property
    def series(self) -> tuple[ExplainedSeries, ...]:
        """The series of all studies."""
        return tuple(series for study in self.studies for series in study.series)


def explain(
    paths: Sequence[Path], policy: PairingPolicy | None = None, progress: Progress | None = None
) -> Explanation:
    """Read every file below `paths` and tell what the node would do with it."""
    reading = read_series(list(files_below(paths)), progress)
    facts = reading.facts()
    decision = decide_study(facts, policy)
    told = [_explained(one, decision) for one in sorted(facts, key=_by_number)]
    studies = tuple(ExplainedStudy(uid, tuple(group)) for uid, group in groupby(told, lambda s: s.study_uid))
    return Explanation(studies, reading.unreadable, reading.copies)


def _by_number(facts: SeriesFacts) -> tuple[str, int, str]:
    return facts.study_uid, facts.series_number or 0, facts.series_uid


def _explained(facts: SeriesFacts, decision: StudyDecision) -> ExplainedSeries:
    found = decision.classifications[facts.series_uid]
    sibling = decision.siblings.get(facts.series_uid)
    outcome = decision.outcomes.get(facts.series_uid)
    stopped, because = _reason(outcome), found.reason
    action = "none" if outcome is None else "skip"
    if sibling is not None and sibling.obstacle and outcome is None:
        because += f"; it is not corrected along with it, because {sibling.obstacle}"
    elif sibling is not None and isinstance(decision.outcomes.get(sibling.lead_uid), Pairing):
        action = "sibling"
    if isinstance(outcome, Pairing):
        action = "correct"
    candidates = outcome.candidates if isinstance(outcome, Pairing | NoPairing) else ()
    reference_uid = outcome.reference.series_uid if isinstance(outcome, Pairing) else ""
    counted = Counter(facts.b_values)
    return ExplainedSeries(
        series_uid=facts.series_uid,
        study_uid=facts.study_uid,
        series_number=facts.series_number,
        description=facts.description,
        instances=facts.instances,
        images=_images(facts),
        b_values=tuple(sorted(counted.items(), key=lambda item: (item[0] is None, item[0] or 0.0))),
        phase_encoding=_phase_encoding(facts),
        phase_encoding_in_patient=_in_patient(facts),
        series_class=found.series_class,
        contrast=found.contrast or "",
        because=because,
        decided_by=found.decided_by,
        action=action,
        reason_code=stopped.code if stopped else "",
        reason_text=stopped.text if stopped else "",
        reference_uid=reference_uid,
        field_from_uid=sibling.lead_uid if sibling is not None and action == "sibling" else "",
        candidates=tuple(_candidate(c, c.series_uid == reference_uid) for c in candidates),
    )


def _reason(outcome: Outcome | None) -> Reason | None:
    if isinstance(outcome, NoPairing):
        return outcome.reason
    return outcome if isinstance(outcome, Reason) else None


def _candidate(candidate: Candidate, chosen: bool) -> ExplainedCandidate:
    return ExplainedCandidate(
        candidate.series_uid,
        candidate.series_number,
        candidate.description,
        chosen,
        candidate.accepted,
        candidate.why,
        candidate.filter_code,
        {key.name: value for key, value in zip(RANKING, candidate.rank, strict=False)},
    )


def _images(facts: SeriesFacts) -> str:
    if not facts.rows:
        return "no image"
    parts = [f"{facts.columns} × {facts.rows}"]
    if facts.slices:
        parts.append(f"{facts.slices} slice" + ("" if facts.slices == 1 else "s"))
    if facts.voxel_mm:
        parts.append(" × ".join(f"{length:.3g}" for length in facts.voxel_mm) + " mm")
    return ", ".join(parts)


def _phase_encoding(facts: SeriesFacts) -> str:
    encoding = facts.phase_encoding
    if encoding is None:
        return ""
    return encoding.bids if encoding.increasing is not None else f"{encoding.bids}, polarity unknown"


_ENDS = (("R", "L"), ("A", "P"), ("F", "H"))  # where the axes of LPS begin and end


def _in_patient(facts: SeriesFacts) -> str:
    """The phase-encode direction as the console shows it; of oblique slices the nearest patient axis."""
    encoding = facts.phase_encoding
    if encoding is None or facts.box is None:
        return ""
    along: Vec3 = facts.box.axes[0 if encoding.axis is PhaseAxis.ROW else 1]
    axis = max(range(3), key=lambda one: abs(along[one]))
    start, end = _ENDS[axis]
    if encoding.increasing is None:
        return f"{start}–{end}"
    return f"{start}→{end}" if (along[axis] > 0) == encoding.increasing else f"{end}→{start}"


# --- words for a person -----------------------------------------------------------------------------------

KINDS = {
    SeriesClass.DWI: "diffusion",
    SeriesClass.TRACE_DWI: "trace-weighted diffusion",
    SeriesClass.BY_PRODUCT: "by-product of a diffusion series",
    SeriesClass.COMPUTED_DWI: "computed diffusion image",
    SeriesClass.DWI_NON_EPI: "diffusion without EPI",
    SeriesClass.B0_ONLY: "EPI without diffusion weighting",
    SeriesClass.DERIVED_MAP: "made by the scanner",
    SeriesClass.ANATOMICAL: "anatomical",
    SeriesClass.FIELD_MAP: "field map",
    SeriesClass.LOCALIZER: "localizer",
    SeriesClass.EPI_OTHER: "EPI, but not diffusion",
    SeriesClass.SCREENSAVE: "picture",
    SeriesClass.OWN_OUTPUT: "corrected by this node before",
    SeriesClass.OTHER: "something else",
}


def render(explanation: Explanation) -> Group:
    """The explanation as text for a terminal; printed to a plain file it is plain text."""
    return Group(*_lines(explanation))


@dataclass(frozen=True, slots=True)
class _Line:
    """A paragraph, indented; without the blanks behind it that a padded one has in a file."""

    text: str
    indent: int
    style: str = ""
    above: int = 0  # empty lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from (Text("") for _ in range(self.above))
        width = max(20, options.max_width - self.indent)
        for line in Text(self.text, self.style).wrap(console, width):
            line.rstrip()
            line.pad_left(self.indent)
            yield line


def _lines(explanation: Explanation) -> Iterator[_Line]:
    count = len(explanation.studies)
    for number, study in enumerate(explanation.studies, start=1):
        yield _Line(f"Study {number} of {count}: {len(study.series)} series", 0, "bold", above=1)
        yield from _part("Will be corrected", study, "correct", "sibling")
        yield from _part("Diffusion series that will not be corrected", study, "skip")
        yield from _part("Everything else", study, "none")
    if not explanation.studies:
        yield _Line("No DICOM series here.", 0, "bold", above=1)
    if explanation.copies:
        yield _Line(f"{explanation.copies} files are copies of images read before.", 0, above=1)
    if explanation.unreadable:
        yield _Line("Files that were left out", 0, "bold", above=1)
        for file in explanation.unreadable:
            yield _Line(file.why, 2)


def _part(title: str, study: ExplainedStudy, *actions: str) -> Iterator[_Line]:
    wanted = [series for series in study.series if series.action in actions]
    names = {series.series_uid: _name(series, "series") for series in study.series}
    if wanted:
        yield _Line(title, 2, "bold", above=1)
    for series in wanted:
        yield from _series_lines(series, names)


def _series_lines(series: ExplainedSeries, names: Mapping[str, str]) -> Iterator[_Line]:
    kind = KINDS[SeriesClass(series.series_class)]
    if series.series_class == SeriesClass.ANATOMICAL and series.contrast:
        kind += ", contrast unknown" if series.contrast == Contrast.UNKNOWN else f" {series.contrast}"
    yield _Line(f"{_name(series)}: {kind}", 4)
    if series.action == "none":
        yield _Line(_sentence(series.because), 8, "dim")
        return
    yield _Line(f"{_content(series)}. {_sentence(series.because)}", 8, "dim")
    if series.field_from_uid:
        lead = names.get(series.field_from_uid, "another series")
        yield _Line(f"Corrected together with {lead}: same acquisition, same distortion.", 8, "green")
    listed = [c for c in series.candidates if c.filter_code not in _ASIDE]
    if series.reason_code == Code.NO_REFERENCE and listed:
        yield _Line("Not corrected: no suitable anatomical series. These were considered:", 8, "yellow")
    elif series.reason_text:
        yield _Line(f"Not corrected: {_sentence(clause(series.reason_text), capital=False)}", 8, "yellow")
    for candidate in listed:
        if candidate.chosen:
            yield _Line(f"Reference is {_name(candidate, 'series')}, {candidate.why}.", 8, "green")
        else:
            yield _Line(f"Not {_name(candidate, 'series')}: {candidate.why}.", 8)
    if series.candidates and all(c.filter_code == Filter.NOT_ANATOMICAL for c in series.candidates):
        return  # the reason has said that there is no anatomical series at all
    for codes, told in _ASIDE_TOLD:
        aside = sum(candidate.filter_code in codes for candidate in series.candidates)
        if aside:
            yield _Line(
                told.format(count=aside, series="series is" if aside == 1 else "series are"), 8, "dim"
            )


_OTHER_VISITS = frozenset({Filter.OTHER_SESSION, Filter.OTHER_PATIENT})
_ASIDE_TOLD = (
    (frozenset({Filter.NOT_ANATOMICAL}), "{count} other {series} not anatomical."),
    (_OTHER_VISITS, "{count} other {series} of another visit or patient, and never used."),
)
_ASIDE = frozenset({Filter.NOT_ANATOMICAL}) | _OTHER_VISITS


def _content(series: ExplainedSeries) -> str:
    parts = [series.images[:1].upper() + series.images[1:]]
    if series.b_values:
        parts.append(
            ", ".join(f"{n} × b {'unknown' if b is None else f'{b:.4g}'}" for b, n in series.b_values)
        )
    encoding = series.phase_encoding
    if series.phase_encoding_in_patient:
        encoding = f"{series.phase_encoding_in_patient} ({series.phase_encoding})"
    parts.append(f"phase encoding {encoding or 'not in the header'}")
    return "; ".join(parts)


def _name(series: ExplainedSeries | ExplainedCandidate, noun: str = "Series") -> str:
    number = "without number" if series.series_number is None else str(series.series_number)
    return f"{noun} {number}" + (f" '{series.description}'" if series.description else "")


def _sentence(text: str, *, capital: bool = True) -> str:
    return (text[:1].upper() + text[1:] if capital else text) + ("" if text.endswith(".") else ".")

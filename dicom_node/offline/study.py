"""A folder of DICOM files: classified and paired as the daemon would, each diffusion series corrected."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from correction.errors import CorrectionError
from dicom_node.compute import SiblingSeries, correct_series, refusal
from dicom_node.distortion import PhaseEncodingChoice, phase_encoding_of
from dicom_node.explain import KINDS
from dicom_node.headers import (
    HeaderError,
    InstanceFacts,
    Unreadable,
    UnreadableFile,
    files_below,
    read_instance,
    read_series,
    summarise,
)
from dicom_node.offline.request import (
    NIFTI_ENDINGS,
    InputProblem,
    Report,
    Request,
    Result,
    SeriesProgress,
    Skipped,
    WrongOption,
    output_folder,
)
from rules.classify import classify
from rules.facts import SeriesFacts
from rules.pair import NoPairing, Pairing
from rules.reasons import Code, Reason
from rules.sentences import clause
from rules.study import Outcome, StudyDecision, decide_study

_MOST_NAMED = 8  # series or files in a sentence


def correct_study(request: Request, progress: SeriesProgress) -> Report:
    """Correct every diffusion series of the folders. Raises InputProblem and WrongOption."""
    reading = read_series(list(files_below(request.inputs)))
    series = reading.series
    if not series:
        raise InputProblem(
            _only_nifti(request.inputs, reading.unreadable)
            or _nothing_readable(request.inputs, reading.unreadable)
        )
    facts = {one.series_uid: one for one in reading.facts()}
    decision = decide_study(tuple(facts.values()), request.pairing)
    if not decision.outcomes:
        raise InputProblem(_nothing_to_correct(decision, facts))
    given = _given_reference(request.reference)
    folders = _folders(facts[uid] for uid in decision.outcomes)
    results, skipped = [], []
    for uid in sorted(decision.outcomes, key=lambda uid: (facts[uid].series_number or 0, uid)):
        outcome = decision.outcomes[uid]
        name = _name(facts[uid])
        reference = _reference_of(outcome, given, series)
        if reference is None:
            why = outcome.reason if isinstance(outcome, NoPairing) else outcome
            assert isinstance(why, Reason)  # a Pairing has a reference
            skipped.append(Skipped(name, why.code, why.text))
            continue
        out = request.out if len(folders) == 1 else request.out / folders[uid]
        try:
            beside = [SiblingSeries(series[one]) for one in decision.carried(uid)]
            results.append(_correct_one(name, series[uid], reference, beside, out, request, facts, progress))
        except (HeaderError, CorrectionError) as error:  # the other series can do nothing for it
            refused = refusal(error)
            skipped.append(Skipped(name, refused.code, refused.text))
    if not results:
        raise InputProblem(_nothing_corrected(skipped, reading.unreadable))
    return Report(tuple(results), tuple(skipped), tuple(file.why for file in reading.unreadable))


def _reference_of(
    outcome: Outcome, given: list[InstanceFacts] | None, series: dict[str, list[InstanceFacts]]
) -> list[InstanceFacts] | None:
    """What a DWI is corrected with: the named reference, else the chosen one; None where there is none."""
    match outcome:
        case Pairing():
            return given or series[outcome.reference.series_uid]
        case NoPairing():
            return given
    return None


def _given_reference(path: Path | None) -> list[InstanceFacts] | None:
    if path is None:
        return None
    if path.name.endswith(NIFTI_ENDINGS):
        raise InputProblem(
            f"The input is DICOM and the reference {path} is NIfTI; give the folder of a DICOM series, "
            "so that the derived series can name what it was corrected with."
        )
    reading = read_series(list(files_below([path])))
    series = reading.series
    if not series:
        raise InputProblem(_nothing_readable([path], reading.unreadable))
    if len(series) > 1:
        raise InputProblem(f"The reference {path} holds {len(series)} DICOM series; give a folder with one.")
    return next(iter(series.values()))


def _correct_one(
    name: str,
    source: Sequence[InstanceFacts],
    reference: Sequence[InstanceFacts],
    beside: Sequence[SiblingSeries],
    out: Path,
    request: Request,
    facts: dict[str, SeriesFacts],
    progress: SeriesProgress,
) -> Result:
    _remove_earlier(output_folder(out) / "derived")
    reference_facts = summarise(reference)
    contrast = classify(reference_facts, request.pairing.overrides).contrast
    started = time.monotonic()
    outcome = correct_series(
        source,
        reference,
        contrast=str(contrast or "anatomical"),
        recipe=request.recipe,
        policy=request.derive,
        taken_numbers=frozenset(
            item.series_number for item in facts.values() if item.series_number and not item.own_output
        ),
        out=out,
        phase_encoding=_asked_phase_encoding(request, source),
        images=True,
        progress=lambda stage, fraction: progress(name, stage, fraction),
        siblings=beside,
    )
    shift = outcome.figures["displacement_mm"]
    return Result(
        name,
        out,
        _name(reference_facts),
        outcome.verdict,
        outcome.verdict_text,
        shift["rms"],
        shift["max"],
        time.monotonic() - started,
    )


def _remove_earlier(derived: Path) -> None:
    """Delete what an earlier run left in derived/: with other settings, two series would mix.

    Nothing else is deleted; raises WrongOption when there is something that this program did not make.
    """
    earlier = sorted(derived.iterdir()) if derived.is_dir() else []
    for path in earlier:
        try:
            ours = bool(read_instance(path).series.own_output)
        except Unreadable:
            ours = False
        if not ours:
            raise WrongOption(f"{path} is in the way and was not made by dicom-node; give another --out.")
    for path in earlier:
        path.unlink()


def _asked_phase_encoding(request: Request, source: Sequence[InstanceFacts]) -> PhaseEncodingChoice | None:
    """The user's axis in the array's own terms: files are written with rows flipped, so `j` turns round."""
    asked, readout_s = request.phase_encoding, request.total_readout_s
    if asked is None and readout_s is None:
        return None
    if asked is None:
        header = phase_encoding_of(summarise(source))
        return PhaseEncodingChoice(header.axis, header.bids, header.source, header.polarity_known, readout_s)
    if asked == "none":
        return PhaseEncodingChoice(None, None, "--phase-encoding", False, readout_s)
    axis = asked
    if asked[0] == "j":
        axis = "j" if asked.endswith("-") else "j-"
    return PhaseEncodingChoice(axis, asked, "--phase-encoding", True, readout_s)


def _nothing_to_correct(decision: StudyDecision, facts: dict[str, SeriesFacts]) -> str:
    found = decision.classifications
    kinds = [f"{_name(facts[uid])} ({KINDS[one.series_class]})" for uid, one in found.items()]
    return (
        f"There is no diffusion series to correct, but {_listed(kinds)}; give the folder of the whole study "
        "(`dicom-node explain` tells why each series is what it is)."
    )


def _only_nifti(places: Sequence[Path], unreadable: Sequence[UnreadableFile]) -> str:
    """What to write where a folder holds NIfTI and no DICOM images; empty where it holds none of them."""
    images = [Path(file.path).name for file in unreadable if file.path.endswith(NIFTI_ENDINGS)]
    if not images:
        return ""
    return (
        f"There is no DICOM image in {', '.join(map(str, places))}, but {_listed(images)}; name the NIfTI "
        "images themselves: `dicom-node correct DWI.nii.gz --reference T1.nii.gz --out DIR`, with --bval "
        "FILE where the DWI has no .bval beside it."
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _nothing_readable(places: Sequence[Path], unreadable: Sequence[UnreadableFile]) -> str:
    where = ", ".join(map(str, places))
    if not unreadable:
        return f"There is no file in {where}; give the folder with the DICOM files of a study."
    return f"There is no readable DICOM image in {where}; {_left_out(unreadable)}."


def _nothing_corrected(skipped: Sequence[Skipped], unreadable: Sequence[UnreadableFile]) -> str:
    told = [f"{item.name}: {clause(item.text)}" for item in skipped]
    if any(item.code == Code.NO_REFERENCE for item in skipped):
        told.append("give the folder of the whole study, or the anatomical series with --reference FOLDER")
    if unreadable:
        told.append(_left_out(unreadable))
    return f"Nothing was corrected: {'; '.join(told)}."


def _left_out(unreadable: Sequence[UnreadableFile]) -> str:
    first = clause(unreadable[0].why)
    return first if len(unreadable) == 1 else f"{len(unreadable)} files were left out, the first: {first}"


def _name(facts: SeriesFacts) -> str:
    number = "without number" if facts.series_number is None else str(facts.series_number)
    return f"series {number}" + (f" '{facts.description}'" if facts.description else "")


def _folders(series: Iterable[SeriesFacts]) -> dict[str, str]:
    """Sub-folders by SeriesNumber; a digest of the UID tells apart those without one, or with the same."""
    series = list(series)
    times = Counter(item.series_number for item in series)
    folders = {}
    for item in series:
        digest = hashlib.sha256(item.series_uid.encode()).hexdigest()[:8]
        number = "series" if item.series_number is None else str(item.series_number)
        alone = item.series_number is not None and times[item.series_number] == 1
        folders[item.series_uid] = number if alone else f"{number}-{digest}"
    return folders

"""`dicom-node correct`: the same correction without a network, from a DICOM folder or NIfTI files."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from correction import Volume
from correction.errors import CorrectionError
from dicom_node.compute import (
    Distorted,
    PhaseEncodingChoice,
    Recipe,
    SiblingSeries,
    correct_series,
    correct_volumes,
    phase_encoding_of,
    refusal,
)
from dicom_node.derive import DerivePolicy
from dicom_node.headers import (
    HeaderError,
    InstanceFacts,
    Unreadable,
    files_below,
    read_instance,
    read_series,
    summarise,
)
from dicom_node.nifti import NiftiProblem, lowest_shell, read_b_values, read_nifti, write_displacement
from dicom_node.outputs import Described, report, write_images, write_picture, write_report
from rules.classify import classify
from rules.facts import SeriesFacts
from rules.pair import NoPairing, Pairing, PairingPolicy
from rules.reasons import Reason
from rules.study import Outcome, StudyDecision, decide_study

NIFTI_ENDINGS = (".nii", ".nii.gz")
AXES = ("i", "i-", "j", "j-", "k", "k-", "none")
_DEVICE = re.compile(r"auto|cpu|cuda(:(?P<number>\d+))?")

SeriesProgress = Callable[[str, str, float], None]  # which series, stage, fraction


class InputProblem(Exception):
    """Input that cannot be corrected; the message says what it is and what to do."""


class WrongOption(Exception):
    """An option that cannot be followed; the message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. phase_encoding: BIDS letter, or None: as the header says."""

    inputs: tuple[Path, ...]
    out: Path
    reference: Path | None = None
    recipe: Recipe = field(default_factory=Recipe)
    phase_encoding: str | None = None
    total_readout_s: float | None = None
    b_values: Path | None = None
    b_vectors: Path | None = None
    pairing: PairingPolicy = field(default_factory=PairingPolicy)
    derive: DerivePolicy = field(default_factory=DerivePolicy)


@dataclass(frozen=True, slots=True)
class Result:
    """One correction and where its files are."""

    name: str
    out: Path
    reference: str
    verdict: str
    verdict_text: str
    rms_mm: float
    max_mm: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A DWI series that was not corrected, and why."""

    name: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that became of the input."""

    results: tuple[Result, ...]
    skipped: tuple[Skipped, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def rejected(self) -> bool:
        """Whether a verdict is `reject`."""
        return any(result.verdict == "reject" for result in self.results)


def correct_input(request: Request, progress: SeriesProgress) -> Report:
    """Correct what `request` names.

    Raises WrongOption, InputProblem, NiftiProblem, headers.HeaderError and correction.errors.CorrectionError,
    each with a sentence for people. Options are looked at first: reading a study takes its time.
    """
    _check_options(request)
    named = (*request.inputs, request.reference, request.b_values, request.b_vectors)
    missing = [path for path in named if path and not path.exists()]
    if missing:
        raise InputProblem(f"{missing[0]} does not exist.")
    nifti = [path for path in request.inputs if path.name.endswith(NIFTI_ENDINGS)]
    if not nifti:
        return _correct_study(request, progress)
    if len(request.inputs) > 1:
        raise InputProblem(
            "Give one NIfTI file, or DICOM folders, not several inputs with a NIfTI among them."
        )
    return Report((_correct_nifti(nifti[0], request, progress),))


def _check_options(request: Request) -> None:
    """Raises WrongOption, or SettingsError for what the method does not know."""
    request.recipe.settings()
    if request.phase_encoding is not None and request.phase_encoding not in AXES:
        raise WrongOption(
            f"'{request.phase_encoding}' is no phase-encoding axis; write one of: {', '.join(AXES)}."
        )
    if request.total_readout_s is not None and not 0 < request.total_readout_s < 10:
        raise WrongOption(
            f"{request.total_readout_s:g} is no total readout time; write seconds, such as 0.05."
        )
    device = request.recipe.device
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise WrongOption(f"'{device}' is no device; write auto, cpu or cuda:N.")
    if device.startswith("cuda") and int(match["number"] or 0) >= torch.cuda.device_count():
        raise WrongOption(f"There is no GPU '{device}' that torch can use; write auto or cpu.")


def _output_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongOption(
            f"The folder {path} cannot be made ({error.strerror}); give another --out."
        ) from error
    return path


# --------------------------------------------------------------------------------------------- DICOM


def _correct_study(request: Request, progress: SeriesProgress) -> Report:
    reading = read_series(list(files_below(request.inputs)))
    series = reading.series
    if not series:
        raise InputProblem(f"There is no readable DICOM image in {', '.join(map(str, request.inputs))}.")
    facts = {uid: summarise(instances) for uid, instances in series.items()}
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
        told = "; ".join(f"{item.name}: {item.text}" for item in skipped)
        raise InputProblem(f"Nothing was corrected. {told}")
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
    series = read_series(list(files_below([path]))).series
    if len(series) != 1:
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
    _remove_earlier(_output_folder(out) / "derived")
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
    kinds = "; ".join(
        f"{_name(facts[uid])} is {found.series_class}" for uid, found in decision.classifications.items()
    )
    return f"There is no diffusion series to correct: {kinds}. `dicom-node explain` tells why."


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


# --------------------------------------------------------------------------------------------- NIfTI


def _correct_nifti(path: Path, request: Request, progress: SeriesProgress) -> Result:
    if request.reference is None:
        raise InputProblem("A NIfTI input needs --reference, the undistorted anatomical image.")
    if not request.reference.name.endswith(NIFTI_ENDINGS):
        raise InputProblem(f"The input is NIfTI, so the reference must be too; {request.reference} is not.")
    started = time.monotonic()
    image = read_nifti(path)
    reference_image = read_nifti(request.reference)
    if len(reference_image.voxels) != 1:
        raise NiftiProblem(
            f"{request.reference} has {len(reference_image.voxels)} volumes; give one with one."
        )
    b_values = _b_values(path, len(image.voxels), request)
    encoding = _nifti_phase_encoding(path, request)
    distorted = Distorted(image.voxels, image.affine, lowest_shell(b_values), encoding)
    reference = Volume.from_numpy(reference_image.voxels[0], reference_image.affine)
    _output_folder(request.out)
    read_s = time.monotonic() - started
    name = path.name
    corrected = correct_volumes(
        distorted, reference, request.recipe, lambda stage, fraction: progress(name, stage, fraction)
    )
    document = report(
        corrected.correction,
        Described(
            inputs={"dwi": path.name, "reference": request.reference.name},
            method=request.recipe.method,
            seed=request.recipe.seed,
            phase_encoding=encoding.described(),
            seconds={"read": read_s, **corrected.seconds},
            modulated=request.recipe.modulate,
        ),
    )
    write_displacement(
        request.out / "displacement.nii.gz", corrected.correction.displacement, image.affine, flip_rows=False
    )
    write_images(request.out, corrected.correction, corrected.voxels, image.affine, flip_rows=False)
    notice = request.derive.companions.notice
    write_picture(request.out, corrected.correction, distorted.b0(), document, notice)
    write_report(request.out, document)
    _copy_gradients(path, request)
    return Result(
        name,
        request.out,
        request.reference.name,
        document["verdict"]["level"],
        "; ".join(reason["text"] for reason in document["verdict"]["reasons"]),
        document["displacement_mm"]["rms"],
        document["displacement_mm"]["max"],
        time.monotonic() - started,
    )


def _sidecar(path: Path, ending: str) -> Path:
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ending)


def _b_values(path: Path, volumes: int, request: Request) -> tuple[float, ...]:
    """From --bval, else the .bval beside the image; a 3-D image is taken as b = 0."""
    beside = _sidecar(path, ".bval")
    if request.b_values is not None:
        return read_b_values(request.b_values, volumes)
    if volumes == 1:
        return (0.0,)
    if not beside.exists():
        raise NiftiProblem(f"{path} has {volumes} volumes and no b-values; give them with --bval FILE.")
    return read_b_values(beside, volumes)


def _nifti_phase_encoding(path: Path, request: Request) -> PhaseEncodingChoice:
    """From the option, else from the JSON sidecar that dcm2niix writes."""
    asked, readout_s = request.phase_encoding, request.total_readout_s
    if asked == "none":
        return PhaseEncodingChoice(None, None, "--phase-encoding", False, readout_s)
    if asked is not None:
        return PhaseEncodingChoice(asked, asked, "--phase-encoding", True, readout_s)
    sidecar = _sidecar(path, ".json")
    said: dict[str, Any] = {}
    if sidecar.exists():
        try:
            said = json.loads(sidecar.read_text(encoding="utf-8"))
        except ValueError as error:
            raise NiftiProblem(f"{sidecar} is not JSON; mend it, or give --phase-encoding.") from error
        if not isinstance(said, dict):
            raise NiftiProblem(f"{sidecar} is no JSON object; mend it, or give --phase-encoding.")
    if readout_s is None and isinstance(said.get("TotalReadoutTime"), int | float):
        readout_s = float(said["TotalReadoutTime"])
    for key, polarity_known in (("PhaseEncodingDirection", True), ("PhaseEncodingAxis", False)):
        if said.get(key) in AXES[:-1]:
            return PhaseEncodingChoice(said[key], said[key], sidecar.name, polarity_known, readout_s)
    return PhaseEncodingChoice(None, None, "not given", False, readout_s)


def _copy_gradients(path: Path, request: Request) -> None:
    """b-values and vectors beside the corrected image: what is along phase encode only, turns no gradient."""
    for given, ending in ((request.b_values, ".bval"), (request.b_vectors, ".bvec")):
        source = given or _sidecar(path, ending)
        if source.exists():
            shutil.copyfile(source, request.out / f"corrected{ending}")

"""`dicom-node correct`: the same correction without a network, from a DICOM folder or NIfTI files."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from correction import Volume
from dicom_node.compute import (
    Distorted,
    PhaseEncodingChoice,
    Recipe,
    correct_series,
    correct_volumes,
    phase_encoding_of,
)
from dicom_node.derive import DerivePolicy
from dicom_node.headers import InstanceFacts, files_below, read_series, summarise
from dicom_node.nifti import NiftiProblem, lowest_shell, read_b_values, read_nifti, write_displacement
from dicom_node.outputs import Described, report, write_images, write_picture, write_report
from rules.facts import SeriesFacts
from rules.pair import NoPairing, Pairing, PairingPolicy
from rules.study import StudyDecision, decide_study

NIFTI_ENDINGS = (".nii", ".nii.gz")
AXES = ("i", "i-", "j", "j-", "k", "k-", "none")

SeriesProgress = Callable[[str, str, float], None]  # which series, stage, fraction


class InputProblem(Exception):
    """Input that cannot be corrected; the message says what it is and what to do."""


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

    Raises InputProblem, NiftiProblem, headers.HeaderError and correction.errors.CorrectionError, each
    with a sentence for people.
    """
    if request.phase_encoding is not None and request.phase_encoding not in AXES:
        raise InputProblem(
            f"'{request.phase_encoding}' is no phase-encoding axis; write one of: {', '.join(AXES)}."
        )
    missing = [path for path in (*request.inputs, request.reference) if path and not path.exists()]
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
    results, skipped = [], []
    for uid in sorted(decision.outcomes, key=lambda uid: (facts[uid].series_number or 0, uid)):
        outcome = decision.outcomes[uid]
        name = _name(facts[uid])
        if isinstance(outcome, Pairing) or (isinstance(outcome, NoPairing) and given):
            reference = given or series[outcome.reference.series_uid]  # type: ignore[union-attr]
            out = request.out if len(decision.outcomes) == 1 else request.out / _folder(facts[uid])
            results.append(
                _correct_one(name, series[uid], reference, out, request, decision, facts, progress)
            )
        else:
            why = outcome.reason if isinstance(outcome, NoPairing) else outcome
            skipped.append(Skipped(name, why.code, why.text))
    if not results:
        told = "; ".join(f"{item.name}: {item.text}" for item in skipped)
        raise InputProblem(f"Nothing was corrected. {told}")
    return Report(tuple(results), tuple(skipped), tuple(file.why for file in reading.unreadable))


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
    out: Path,
    request: Request,
    decision: StudyDecision,
    facts: dict[str, SeriesFacts],
    progress: SeriesProgress,
) -> Result:
    out.mkdir(parents=True, exist_ok=True)
    # derived/ of an earlier run with other settings would mix two series
    shutil.rmtree(out / "derived", ignore_errors=True)
    reference_facts = summarise(reference)
    found = decision.classifications.get(reference_facts.series_uid)
    started = time.monotonic()
    outcome = correct_series(
        source,
        reference,
        contrast=str(found.contrast if found and found.contrast else "anatomical"),
        recipe=request.recipe,
        policy=request.derive,
        taken_numbers=frozenset(
            item.series_number for item in facts.values() if item.series_number and not item.own_output
        ),
        out=out,
        phase_encoding=_asked_phase_encoding(request, source),
        images=True,
        progress=lambda stage, fraction: progress(name, stage, fraction),
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


def _folder(facts: SeriesFacts) -> str:
    """A sub-folder by SeriesNumber; the UID tells apart what has none."""
    return str(facts.series_number) if facts.series_number is not None else facts.series_uid[-12:]


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
    read_s = time.monotonic() - started
    name = path.name
    corrected = correct_volumes(
        distorted, reference, request.recipe, lambda stage, fraction: progress(name, stage, fraction)
    )
    request.out.mkdir(parents=True, exist_ok=True)
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
    write_picture(request.out, corrected.correction, distorted.b0(), document)
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
    readout_s = readout_s or said.get("TotalReadoutTime")
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

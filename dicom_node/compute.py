"""One correction from instances on disk to a published result: load → correct → derive → publish.

Runs in a worker process of the daemon, and in the foreground for `dicom-node correct`. A task says
everything that decides its result, so that doing it twice gives the same bytes under the same name.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import torch

from correction import Correction, Volume, correct, methods
from correction.errors import CorrectionError, SettingsError
from correction.landmarks import find_landmarks
from correction.methods import Settings as EngineSettings
from dicom_node import __version__
from dicom_node.derive import DerivePolicy, Provenance, derive
from dicom_node.headers import (
    GeometryProblem,
    HeaderError,
    InstanceFacts,
    Unreadable,
    read_instance,
    summarise,
)
from dicom_node.load import load, load_reference
from dicom_node.nifti import write_displacement
from dicom_node.outputs import Described, figures, report, write_images, write_picture, write_report
from dicom_node.spool import Spool
from rules.facts import SeriesFacts
from rules.reasons import Code

NO_MATCHER = "none"

Array = npt.NDArray[np.float32]
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to correct: everything beside the images that decides the result.

    matcher: none, or as correction.landmarks.find_landmarks takes it; weights_dir: where its weights are.
    overrides: (setting, value) pairs over the method's defaults. device: auto, cpu or cuda[:N].
    """

    method: str = "clinical"
    overrides: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    device: str = "auto"
    modulate: bool = False
    matcher: str = NO_MATCHER
    weights_dir: str = ""

    def settings(self) -> EngineSettings:
        """The engine's settings. Raises correction.errors.SettingsError."""
        changes = [f"{key}={value}" for key, value in self.overrides]
        match self.method:
            case "clinical":
                return methods.clinical().override(changes)
            case "paper":
                return methods.paper().override(changes)
        raise SettingsError(f"'{self.method}' is no method; write clinical or paper.")

    def resolved_device(self) -> str:
        """The device that `auto` stands for on this machine."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True)
class PhaseEncodingChoice:
    """The phase-encode axis as the engine takes it (voxel axes of the array), and as the report tells it.

    axis: `i`, `j`, `k`, with `-` when decreasing; None: unknown, the correction is free in 3-D.
    """

    axis: str | None
    bids: str | None
    source: str
    polarity_known: bool
    readout_s: float | None = None

    def described(self) -> dict[str, str | None]:
        """For report.json."""
        if self.bids is None:
            return {"axis": None, "polarity": None, "source": self.source}
        polarity = ("-" if self.bids.endswith("-") else "+") if self.polarity_known else None
        return {"axis": self.bids[0], "polarity": polarity, "source": self.source}


@dataclass(frozen=True, slots=True)
class Distorted:
    """What is corrected. voxels: (V, Z, Y, X), real-world values. lowest: the volumes to register."""

    voxels: Array
    affine: npt.NDArray[np.float64]
    lowest: tuple[int, ...]
    phase_encoding: PhaseEncodingChoice

    def b0(self) -> Volume:
        """The mean of the volumes of the lowest shell."""
        return Volume.from_numpy(self.voxels[list(self.lowest)].mean(axis=0), self.affine)


@dataclass(frozen=True, slots=True)
class Corrected:
    """A correction with the corrected voxels (V, Z, Y, X) and the seconds of each stage."""

    correction: Correction
    voxels: Array
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CorrectionTask:
    """One job for a worker. Paths are relative to `root`."""

    name: str
    root: Path
    source: tuple[Path, ...]
    reference: tuple[Path, ...]
    contrast: str
    recipe: Recipe
    derive: DerivePolicy
    taken_numbers: frozenset[int] = frozenset()
    input_digest: str = ""  # of the bytes of all inputs: a revised instance gives new UIDs
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished correction says of itself; lies as outcome.json in the published result."""

    verdict: str
    verdict_text: str
    output_series_uid: str
    sop_uids: tuple[str, ...]
    figures: Mapping[str, Any]
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Input that cannot be corrected however often it is tried."""

    code: Code
    text: str


def run(task: CorrectionTask) -> Outcome | Refusal:
    """The whole job on a worker; publishes and returns its outcome.

    Raises spool.SpoolError and OSError: trouble of this machine, worth another try.
    """
    spool = Spool(task.root, 0)
    if (done := read_outcome(spool.result_dir(task.name))) is not None:
        return done
    if task.threads:
        torch.set_num_threads(task.threads)
    work = spool.work_dir(task.name)
    try:
        return _run(task, spool, work)
    except (HeaderError, CorrectionError) as error:
        return refusal(error)
    finally:
        spool.discard(work)  # nothing is left of it once it is published


def refusal(error: HeaderError | CorrectionError) -> Refusal:
    """Why input cannot be corrected, for whoever asked."""
    match error:
        case Unreadable():
            return Refusal(Code.UNREADABLE, str(error))
        case GeometryProblem():
            return Refusal(Code.GEOMETRY, str(error))
    return Refusal(Code.CORRECTION_FAILED, str(error))


def _run(task: CorrectionTask, spool: Spool, work: Path) -> Outcome:
    started = time.monotonic()
    source_instances = [read_instance(task.root / path) for path in task.source]
    reference_instances = [read_instance(task.root / path) for path in task.reference]
    outcome = correct_series(
        source_instances,
        reference_instances,
        contrast=task.contrast,
        recipe=task.recipe,
        policy=task.derive,
        taken_numbers=task.taken_numbers,
        out=work,
        input_digest=task.input_digest,
        headers_s=time.monotonic() - started,
    )
    (work / "outcome.json").write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    published = spool.publish(work, task.name)
    # another worker may have been first: what is published is what counts
    return read_outcome(published) or outcome


def read_outcome(result: Path) -> Outcome | None:
    """The outcome of a published result, or None when there is no such result."""
    try:
        document = json.loads((result / "outcome.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Outcome(**(document | {"sop_uids": tuple(document["sop_uids"])}))


def correct_series(
    source_instances: Sequence[InstanceFacts],
    reference_instances: Sequence[InstanceFacts],
    *,
    contrast: str,
    recipe: Recipe,
    policy: DerivePolicy,
    taken_numbers: frozenset[int],
    out: Path,
    input_digest: str = "",
    headers_s: float = 0.0,
    phase_encoding: PhaseEncodingChoice | None = None,
    images: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Correct one DWI series against its reference and write everything into `out`.

    `phase_encoding` overrides the header's. `images`: the corrected images and the Jacobian as
    NIfTI too, not only the field, the report, the picture and `derived/`.
    """
    started = time.monotonic()
    source = load(source_instances)
    reference = load_reference(reference_instances)
    load_s = time.monotonic() - started
    distorted = Distorted(
        source.voxels,
        source.affine,
        source.lowest_b(),
        phase_encoding or phase_encoding_of(source.facts),
    )
    corrected = correct_volumes(distorted, reference, recipe, progress)

    started = time.monotonic()
    _tell(progress, "derive", 0.0)
    files = derive(
        source,
        corrected.voxels,
        Provenance(
            reference=reference_instances,
            reference_facts=summarise(reference_instances),
            contrast=contrast,
            version=__version__,
            settings_digest=settings_digest(recipe, policy),
            modulated=recipe.modulate,
            phase_axis=distorted.phase_encoding.bids or "none",
            verdict=corrected.correction.verdict.level,
            figures=figures(corrected.correction)["displacement_mm"],
            taken_numbers=taken_numbers,
            input_digest=input_digest,
        ),
        policy,
        _folder(out / "derived"),
        datetime.now(UTC),
    )
    seconds = {"read": headers_s + load_s, **corrected.seconds, "derive": time.monotonic() - started}
    document = report(
        corrected.correction,
        Described(
            inputs={
                "dwi_series_uid": source.facts.series_uid,
                "reference_series_uid": summarise(reference_instances).series_uid,
            },
            method=recipe.method,
            seed=recipe.seed,
            phase_encoding=distorted.phase_encoding.described(),
            seconds=seconds,
            modulated=recipe.modulate,
        ),
    )
    write_displacement(
        out / "displacement.nii.gz", corrected.correction.displacement, source.affine, flip_rows=True
    )
    if images:
        write_images(out, corrected.correction, corrected.voxels, source.affine, flip_rows=True)
    write_picture(out, corrected.correction, distorted.b0(), document)
    write_report(out, document)
    series_uid, sop_uids = _issued(files)
    return Outcome(
        verdict=document["verdict"]["level"],
        verdict_text="; ".join(reason["text"] for reason in document["verdict"]["reasons"]),
        output_series_uid=series_uid,
        sop_uids=sop_uids,
        figures={
            key: document[key] for key in ("displacement_mm", "jacobian", "quality", "landmarks", "verdict")
        },
        seconds=document["seconds"],
    )


def correct_volumes(
    distorted: Distorted, reference: Volume, recipe: Recipe, progress: Progress | None = None
) -> Corrected:
    """Estimate on the lowest shell, apply to every volume. Raises correction.errors.CorrectionError."""
    axis, device, b0 = distorted.phase_encoding.axis, recipe.resolved_device(), distorted.b0()
    started = time.monotonic()
    landmarks = None
    if recipe.matcher != NO_MATCHER:
        _tell(progress, "landmarks", 0.0)
        weights_dir = Path(recipe.weights_dir) if recipe.weights_dir else None
        landmarks = find_landmarks(b0, reference, axis, recipe.matcher, weights_dir, device)
    found_s = time.monotonic() - started
    correction = correct(
        b0,
        reference,
        phase_encoding=axis,
        settings=recipe.settings(),
        landmarks=landmarks,
        readout_s=distorted.phase_encoding.readout_s,
        seed=recipe.seed,
        device=device,
        progress=progress,
    )
    started = time.monotonic()
    voxels = np.empty_like(distorted.voxels)
    for index, volume in enumerate(distorted.voxels):
        _tell(progress, "apply", index / len(distorted.voxels))
        moved = correction.apply(Volume.from_numpy(volume, distorted.affine), modulate=recipe.modulate)
        voxels[index] = moved.data.cpu().numpy()
    seconds = {"landmarks": found_s, **correction.seconds, "apply": time.monotonic() - started}
    return Corrected(correction, voxels, seconds)


def phase_encoding_of(facts: SeriesFacts) -> PhaseEncodingChoice:
    """What the header says of phase encoding."""
    encoding, readout_s = facts.phase_encoding, facts.total_readout_s
    if encoding is None:
        return PhaseEncodingChoice(None, None, "the header does not say", False, readout_s)
    polarity_known = encoding.increasing is not None
    return PhaseEncodingChoice(encoding.voxel_axis, encoding.bids, encoding.source, polarity_known, readout_s)


def settings_digest(recipe: Recipe, policy: DerivePolicy) -> str:
    """Of everything a site can set that decides what is in the output files."""
    settings = [asdict(recipe), asdict(recipe.settings()), asdict(policy)]
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _issued(files: Sequence[Path]) -> tuple[str, tuple[str, ...]]:
    """The SeriesInstanceUID and SOPInstanceUIDs of the files we wrote."""
    sop_uids = []
    series_uid = ""
    for path in files:
        header = pydicom.dcmread(path, specific_tags=["SOPInstanceUID", "SeriesInstanceUID"])
        sop_uids.append(str(header.SOPInstanceUID))
        series_uid = str(header.SeriesInstanceUID)
    return series_uid, tuple(sop_uids)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _tell(progress: Progress | None, stage: str, fraction: float) -> None:
    if progress is not None:
        progress(stage, fraction)

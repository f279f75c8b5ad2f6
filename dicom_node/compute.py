"""One correction from instances on disk to a published result: load → correct → derive → publish.

Runs in a worker process of the daemon, and in the foreground for `dicom-node correct`. A task says
everything that decides its result, so that doing it twice gives the same bytes under the same name.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from correction import Correction, Volume, correct, methods
from correction.errors import CorrectionError, SettingsError
from correction.landmarks import find_landmarks
from correction.methods import Settings as EngineSettings
from dicom_node import __version__
from dicom_node.companions import Finished, write_companions
from dicom_node.derive import (
    CompanionPolicy,
    DerivePolicy,
    OutputGrid,
    Provenance,
    derive,
    on_reference_grid,
)
from dicom_node.headers import (
    GeometryProblem,
    HeaderError,
    InstanceFacts,
    Unreadable,
    read_instance,
    summarise,
)
from dicom_node.load import LoadedSeries, load, load_reference
from dicom_node.nifti import write_displacement
from dicom_node.outputs import Described, figures, report, write_images, write_picture, write_report
from dicom_node.spool import Spool
from rules.facts import SeriesFacts
from rules.reasons import Code

NO_MATCHER = "none"
# Positions are decimal text: what is nearer than this is the same place, and the same step between voxels
SAME_PLACE_MM, SAME_STEP_MM = 0.1, 1e-3

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
    matcher: str = "auto"
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
class SiblingFiles:
    """A series of the same EPI that takes over the field. Paths are relative to the task's `root`."""

    source: tuple[Path, ...]
    input_digest: str = ""


@dataclass(frozen=True, slots=True)
class CorrectionTask:
    """One job for a worker. Paths are relative to `root`.

    siblings: corrected with the same field. field_from: the series to estimate the field on, where that is
    not the source (a sibling that arrived after its lead was corrected); empty: the source itself.
    """

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
    siblings: tuple[SiblingFiles, ...] = ()
    field_from: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished correction says of itself; lies as outcome.json in the published result.

    sop_uids, series_uids: of everything that was written. siblings: (source, derived) SeriesInstanceUIDs of
    the series that took over the field.
    """

    verdict: str
    verdict_text: str
    output_series_uid: str
    sop_uids: tuple[str, ...]
    figures: Mapping[str, Any]
    seconds: Mapping[str, float]
    siblings: tuple[tuple[str, str], ...] = ()
    series_uids: tuple[str, ...] = ()


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
    source_instances = _read(task.root, task.source)
    reference_instances = _read(task.root, task.reference)
    outcome = correct_series(
        source_instances,
        reference_instances,
        siblings=[
            SiblingSeries(_read(task.root, sibling.source), sibling.input_digest) for sibling in task.siblings
        ],
        field_from=_read(task.root, task.field_from),
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


def _read(root: Path, paths: Sequence[Path]) -> list[InstanceFacts]:
    return [read_instance(root / path) for path in paths]


def read_outcome(result: Path) -> Outcome | None:
    """The outcome of a published result, or None when there is no such result."""
    try:
        document = json.loads((result / "outcome.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    siblings = tuple((source, derived) for source, derived in document.get("siblings", ()))
    uids = {key: tuple(document.get(key, ())) for key in ("sop_uids", "series_uids")}
    return Outcome(**(document | uids | {"siblings": siblings}))


@dataclass(frozen=True, slots=True)
class SiblingSeries:
    """A series of the same EPI that takes over the field."""

    instances: Sequence[InstanceFacts]
    input_digest: str = ""


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
    siblings: Sequence[SiblingSeries] = (),
    field_from: Sequence[InstanceFacts] = (),
) -> Outcome:
    """Correct one DWI series against its reference and write everything into `out`.

    `phase_encoding` overrides the header's. `images`: the corrected images and the Jacobian as
    NIfTI too, not only the field, the report, the picture and `derived/`. `siblings` are corrected with the
    same field. `field_from`: the series to estimate it on, empty: the source itself.
    """
    started = time.monotonic()
    source = load(source_instances)
    lead = load(field_from) if field_from else source
    _check_same_grid(source, lead)
    reference = load_reference(reference_instances)
    reference_facts = summarise(reference_instances)
    load_s = time.monotonic() - started
    distorted = Distorted(
        lead.voxels,
        lead.affine,
        lead.lowest_b(),
        phase_encoding or phase_encoding_of(lead.facts),
    )
    before = distorted.b0()
    correction, seconds = estimate_field(distorted, reference, recipe, progress)
    started = time.monotonic()
    # a long series twice would not fit: each volume gives its place to its correction, where nobody needs it
    place = source.voxels if policy.grid is OutputGrid.DWI else np.empty_like(source.voxels)
    moved = apply_field(correction, source.voxels, source.affine, recipe, progress, place)
    corrected = Corrected(correction, moved)
    seconds["apply"] = time.monotonic() - started

    started = time.monotonic()
    _tell(progress, "derive", 0.0)
    made_by = Provenance(
        reference=reference_instances,
        reference_facts=reference_facts,
        contrast=contrast,
        version=__version__,
        settings_digest=settings_digest(recipe, policy),
        modulated=recipe.modulate,
        phase_axis=distorted.phase_encoding.bids or "none",
        verdict=corrected.correction.verdict.level,
        figures=figures(corrected.correction)["displacement_mm"],
        taken_numbers=taken_numbers,
        input_digest=input_digest,
    )
    folder, now = _folder(out / "derived"), datetime.now(UTC)
    voxels = on_output_grid(source, corrected.voxels, correction, reference, recipe, policy, out)
    written = derive(source, voxels, made_by, policy, folder, now)
    seconds = {"read": headers_s + load_s, **seconds, "derive": time.monotonic() - started}
    document = report(
        corrected.correction,
        Described(
            inputs={
                "dwi_series_uid": source.facts.series_uid,
                "reference_series_uid": reference_facts.series_uid,
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
    write_picture(out, corrected.correction, before, document, policy.companions.notice)
    write_report(out, document)
    output_series_uid, taken_over = written[0].series_uid, []
    if not field_from:  # a sibling that came late: the series with the field has its companions already
        displacement_mm = correction.displacement.cpu().numpy()
        companions = Finished.of(
            source, voxels, displacement_mm, made_by, policy, written, document, out / "qc.png", now
        )
        written += write_companions(companions, folder)
    for sibling in siblings:
        beside = load(sibling.instances)
        _check_same_grid(beside, source)
        place = beside.voxels if policy.grid is OutputGrid.DWI else np.empty_like(beside.voxels)
        moved = apply_field(correction, beside.voxels, beside.affine, recipe, out=place)
        its_own = replace(made_by, input_digest=sibling.input_digest)
        moved = on_output_grid(beside, moved, correction, reference, recipe, policy, out)
        made = derive(beside, moved, its_own, policy, folder, now)
        taken_over.append((beside.facts.series_uid, made[0].series_uid))
        written += made
    return Outcome(
        verdict=document["verdict"]["level"],
        verdict_text="; ".join(reason["text"] for reason in document["verdict"]["reasons"]),
        output_series_uid=output_series_uid,
        sop_uids=tuple(one.sop_uid for one in written),
        series_uids=tuple(dict.fromkeys(one.series_uid for one in written)),
        figures={
            key: document[key] for key in ("displacement_mm", "jacobian", "quality", "landmarks", "verdict")
        },
        seconds=document["seconds"],
        siblings=tuple(taken_over),
    )


def _check_same_grid(source: LoadedSeries, lead: LoadedSeries) -> None:
    """A field fits the voxels that it was estimated on, and no others."""
    apart_mm = np.abs(source.affine - lead.affine)
    same = source.arrangement.shape == lead.arrangement.shape
    if not same or apart_mm[:, 3].max() > SAME_PLACE_MM or apart_mm[:, :3].max() > SAME_STEP_MM:
        raise GeometryProblem(
            f"Series {source.facts.series_number} does not lie on the grid of series "
            f"{lead.facts.series_number}, so its field does not fit."
        )


def correct_volumes(
    distorted: Distorted, reference: Volume, recipe: Recipe, progress: Progress | None = None
) -> Corrected:
    """Estimate on the lowest shell, apply to every volume. Raises correction.errors.CorrectionError."""
    correction, seconds = estimate_field(distorted, reference, recipe, progress)
    started = time.monotonic()
    voxels = apply_field(correction, distorted.voxels, distorted.affine, recipe, progress)
    return Corrected(correction, voxels, {**seconds, "apply": time.monotonic() - started})


def estimate_field(
    distorted: Distorted, reference: Volume, recipe: Recipe, progress: Progress | None = None
) -> tuple[Correction, dict[str, float]]:
    """The field of the lowest shell, and the seconds that each stage took.

    Raises correction.errors.CorrectionError.
    """
    axis, device, b0 = distorted.phase_encoding.axis, recipe.resolved_device(), distorted.b0()
    started = time.monotonic()
    landmarks = None
    # the free field of the clinical method takes no landmarks
    if recipe.matcher != NO_MATCHER and (axis is not None or recipe.method == "paper"):
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
    return correction, {"landmarks": found_s, **correction.seconds}


def apply_field(
    correction: Correction,
    voxels: Array,
    affine: npt.NDArray[np.float64],
    recipe: Recipe,
    progress: Progress | None = None,
    out: Array | None = None,
) -> Array:
    """Every volume of `voxels` (V, Z, Y, X), which lie on the grid of the field, corrected.

    out: where they go, which may be `voxels` itself.
    """
    moved = np.empty_like(voxels) if out is None else out
    for index, volume in enumerate(voxels):
        _tell(progress, "apply", index / len(voxels))
        shifted = correction.apply(Volume.from_numpy(volume, affine), modulate=recipe.modulate)
        moved[index] = shifted.data.cpu().numpy()
    return moved


def on_output_grid(
    source: LoadedSeries,
    moved: Array,
    correction: Correction,
    reference: Volume,
    recipe: Recipe,
    policy: DerivePolicy,
    scratch: Path,
) -> Array:
    """The corrected volumes on the grid that is asked for. moved: (V, Z, Y, X) on that of `source`."""
    if policy.grid is OutputGrid.DWI:
        return moved
    displacement_mm = correction.displacement.cpu().numpy()
    modulation = correction.jacobian.cpu().numpy() if recipe.modulate else None
    return on_reference_grid(source, displacement_mm, modulation, reference.affine, reference.shape, scratch)


def phase_encoding_of(facts: SeriesFacts) -> PhaseEncodingChoice:
    """What the header says of phase encoding."""
    encoding, readout_s = facts.phase_encoding, facts.total_readout_s
    if encoding is None:
        return PhaseEncodingChoice(None, None, "the header does not say", False, readout_s)
    polarity_known = encoding.increasing is not None
    return PhaseEncodingChoice(encoding.voxel_axis, encoding.bids, encoding.source, polarity_known, readout_s)


def settings_digest(recipe: Recipe, policy: DerivePolicy) -> str:
    """Of everything a site can set that decides what is in the corrected images.

    Companions go beside them: to switch one on must not give all images new UIDs.
    """
    images = replace(policy, companions=CompanionPolicy())
    settings = [asdict(recipe), asdict(recipe.settings()), asdict(images)]
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _tell(progress: Progress | None, stage: str, fraction: float) -> None:
    if progress is not None:
        progress(stage, fraction)

"""One correction from instances on disk to a published result: load → correct → derive → publish.

Runs in a worker process of the daemon, and in the foreground for `dicom-node correct`. A task says
everything that decides its result, so that doing it twice gives the same bytes under the same name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from correction import Correction, Volume
from correction.errors import CorrectionError
from dicom_node import __version__
from dicom_node.companions import Finished, write_companions
from dicom_node.derive import DerivePolicy, OutputGrid, Provenance, Written, derive
from dicom_node.distortion import (
    Distorted,
    PhaseEncodingChoice,
    Progress,
    apply_field,
    estimate_field,
    on_output_grid,
    phase_encoding_of,
    tell,
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
from dicom_node.recipe import Recipe, settings_digest
from dicom_node.spool import Spool
from rules.reasons import Code

# Positions are decimal text: what is nearer than this is the same place, and the same step between voxels
SAME_PLACE_MM, SAME_STEP_MM = 0.1, 1e-3

Array = npt.NDArray[np.float32]


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
    encoding = phase_encoding or phase_encoding_of(lead.facts)
    distorted = Distorted(lead.voxels, lead.affine, lead.lowest_b(), encoding)
    before = distorted.b0()
    load_s = time.monotonic() - started
    correction, seconds = estimate_field(distorted, reference, recipe, progress)

    started = time.monotonic()
    found = _FoundField(correction, reference, recipe, policy, out, datetime.now(UTC))
    moved = found.applied_to(source, progress)
    seconds["apply"] = time.monotonic() - started

    started = time.monotonic()
    tell(progress, "derive", 0.0)
    made_by = Provenance(
        reference=reference_instances,
        reference_facts=summarise(reference_instances),
        contrast=contrast,
        version=__version__,
        settings_digest=settings_digest(recipe, policy),
        modulated=recipe.modulate,
        phase_axis=encoding.bids or "none",
        verdict=correction.verdict.level,
        figures=figures(correction)["displacement_mm"],
        taken_numbers=taken_numbers,
        input_digest=input_digest,
    )
    voxels, written = found.derived(source, moved, made_by)
    seconds = {"read": headers_s + load_s, **seconds, "derive": time.monotonic() - started}
    document = found.report(source, made_by, encoding, seconds)
    write_displacement(out / "displacement.nii.gz", correction.displacement, source.affine, flip_rows=True)
    if images:
        write_images(out, correction, moved, source.affine, flip_rows=True)
    write_picture(out, correction, before, document, policy.companions.notice)
    write_report(out, document)
    output_series_uid = written[0].series_uid
    if not field_from:  # a sibling that came late: the series with the field has its companions already
        displacement_mm = correction.displacement.cpu().numpy()
        companions = Finished.of(
            source, voxels, displacement_mm, made_by, policy, written, document, out / "qc.png", found.now
        )
        written += write_companions(companions, out / "derived")
    taken_over = found.derived_siblings(source, siblings, made_by)
    written += chain.from_iterable(taken_over.values())
    pairs = tuple((source_uid, made[0].series_uid) for source_uid, made in taken_over.items())
    return _outcome(document, output_series_uid, written, pairs)


def _outcome(
    document: Mapping[str, Any],
    output_series_uid: str,
    written: Sequence[Written],
    siblings: tuple[tuple[str, str], ...],
) -> Outcome:
    """What the report, and what was written, say of a correction."""
    told = ("displacement_mm", "jacobian", "quality", "landmarks", "verdict")
    return Outcome(
        verdict=document["verdict"]["level"],
        verdict_text=" ".join(reason["text"] for reason in document["verdict"]["reasons"]),
        output_series_uid=output_series_uid,
        sop_uids=tuple(one.sop_uid for one in written),
        series_uids=tuple(dict.fromkeys(one.series_uid for one in written)),
        figures={key: document[key] for key in told},
        seconds=document["seconds"],
        siblings=siblings,
    )


@dataclass(frozen=True, slots=True)
class _FoundField:
    """A field that was found, and how the series that share it are corrected. out: the result's folder."""

    correction: Correction
    reference: Volume
    recipe: Recipe
    policy: DerivePolicy
    out: Path
    now: datetime

    def applied_to(self, series: LoadedSeries, progress: Progress | None = None) -> Array:
        """Its volumes (V, Z, Y, X), corrected on their own grid; the distorted ones may be gone then.

        A long series twice would not fit: each volume gives its place to its correction, where nobody
        needs it.
        """
        place = series.voxels if self.policy.grid is OutputGrid.DWI else np.empty_like(series.voxels)
        return apply_field(self.correction, series.voxels, series.affine, self.recipe, progress, place)

    def derived(self, series: LoadedSeries, moved: Array, made_by: Provenance) -> tuple[Array, list[Written]]:
        """The corrected volumes on the grid that is asked for, and the series written from them."""
        folder = self.out / "derived"
        folder.mkdir(parents=True, exist_ok=True)
        voxels = on_output_grid(
            series, moved, self.correction, self.reference, self.recipe, self.policy, self.out
        )
        return voxels, derive(series, voxels, made_by, self.policy, folder, self.now)

    def derived_siblings(
        self, source: LoadedSeries, siblings: Sequence[SiblingSeries], made_by: Provenance
    ) -> dict[str, list[Written]]:
        """Series of the same EPI, corrected too: what was written, by the sibling's SeriesInstanceUID."""
        written = {}
        for sibling in siblings:
            beside = load(sibling.instances)
            _check_same_grid(beside, source)
            its_own = replace(made_by, input_digest=sibling.input_digest)
            _, made = self.derived(beside, self.applied_to(beside), its_own)
            written[beside.facts.series_uid] = made
        return written

    def report(
        self,
        source: LoadedSeries,
        made_by: Provenance,
        encoding: PhaseEncodingChoice,
        seconds: Mapping[str, float],
    ) -> dict[str, Any]:
        """The document of report.json."""
        described = Described(
            inputs={
                "dwi_series_uid": source.facts.series_uid,
                "reference_series_uid": made_by.reference_facts.series_uid,
            },
            method=self.recipe.method,
            seed=self.recipe.seed,
            phase_encoding=encoding.described(),
            seconds=seconds,
            modulated=self.recipe.modulate,
        )
        return report(self.correction, described)


def _check_same_grid(source: LoadedSeries, lead: LoadedSeries) -> None:
    """A field fits the voxels that it was estimated on, and no others."""
    apart_mm = np.abs(source.affine - lead.affine)
    same = source.arrangement.shape == lead.arrangement.shape
    if not same or apart_mm[:, 3].max() > SAME_PLACE_MM or apart_mm[:, :3].max() > SAME_STEP_MM:
        raise GeometryProblem(
            f"Series {source.facts.series_number} does not lie on the grid of series "
            f"{lead.facts.series_number}, so its field does not fit."
        )

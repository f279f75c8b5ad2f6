"""The whole chain on loopback: a scanner sends, the node corrects, an archive receives.

Everything is real but the scanner and the archive, which are two small DICOM peers in this process.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification

from correction.phantom import PhantomCase, head_case
from dicom_node.association import Peer
from dicom_node.config import Settings
from dicom_node.headers import files_below
from dicom_node.ledger import Ledger, path_below
from dicom_node.log import configure
from dicom_node.node import Node
from dicom_node.phantom_study import weighted, write_phantom_study
from dicom_node.records import Job
from dicom_node.scu import store
from dicom_node.sending import dicom_files
from dicom_node.states import JobState

NODE_AE, ARCHIVE_AE, SCANNER_AE = "DICOMNODE", "ARCHIVE", "SCANNER"
QUIET_S, STUDY_WAIT_S = (
    1.5,
    3.0,
)  # nobody acquires anything more, so the demo need not wait as a hospital does
MIN_FREE = "100 MiB"
LIMIT_S = 1200.0
PARTS = ("node", "archive", "scanner")  # the folders that a demo makes
SEED = 1
POLL_S = 0.3

Progress = Callable[[str, str, float], None]


class DemoFailed(Exception):
    """The chain did not come to its end; the message says where it stopped."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """One series in the archive."""

    number: int
    description: str
    instances: int
    b_values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Corrected:
    """One job. error_mm: RMSE in tissue (before, after); None where no truth is known."""

    job: Job
    picture: Path | None
    error_mm: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Shown:
    """What the demo has shown."""

    sent: int
    arrived: tuple[Arrived, ...]
    jobs: tuple[Corrected, ...]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether every job ended well and, where the truth is known, the error is smaller than before."""
        ended = all(item.job.state in (JobState.SENT, JobState.SKIPPED) for item in self.jobs)
        return ended and all(
            item.error_mm is None or item.error_mm[1] < item.error_mm[0] for item in self.jobs
        )

    def lines(self) -> Iterator[str]:
        """The story, for people."""
        yield f"The scanner sent {self.sent} images; the whole chain took {self.seconds:.0f} s."
        if not self.jobs:
            yield "There was no diffusion series among them, so nothing was corrected."
        for item in self.jobs:
            why = f" ({item.job.reason_text})" if item.job.reason_text else ""
            verdict = f", verdict {item.job.verdict}" if item.job.verdict else ""
            yield f"Series {item.job.series_number}: {item.job.state}{why}{verdict}."
            if item.error_mm:
                before, after = item.error_mm
                yield f"  Error of position in the brain: {before:.2f} mm before, {after:.2f} mm after."
            if item.picture:
                yield f"  Picture: {item.picture}"
        for series in self.arrived:
            b_values = ", ".join(f"{b:g}" for b in series.b_values)
            yield (
                f"The archive received series {series.number} '{series.description}': "
                f"{series.instances} images, b = {b_values} s/mm²."
            )


def run_demo(study: Path | None, keep: Path | None, progress: Progress) -> Shown:
    """Run the chain; raises DemoFailed.

    study: a DICOM folder; None: a synthetic head whose true distortion is known. keep: where everything
    that was made stays; None: only the pictures stay, in a folder for temporary files.
    """
    folder = keep or Path(tempfile.mkdtemp(prefix="dicom-node-demo."))
    folder.mkdir(parents=True, exist_ok=True)
    _clear_earlier(folder)
    started = time.monotonic()
    case = None
    if study is None:
        progress("demo", "drawing a synthetic head", 0.05)
        case, study = _draw_study(folder / "scanner")
    files, _ = dicom_files(files_below([study]))
    if not files:
        raise DemoFailed(f"There is no DICOM file in {study}.")
    shown = _run_chain(files, folder, case, progress, started)
    if keep is None:
        _clear_earlier(folder)
    return shown


def _clear_earlier(folder: Path) -> None:
    """Remove what a demo made in `folder`, and nothing that was there before any demo; raises DemoFailed."""
    mark = folder / ".dicom-node-demo"
    there = [folder / part for part in PARTS if (folder / part).exists()]
    if there and not mark.exists():
        raise DemoFailed(f"{there[0]} was not made by a demo; name another folder with --keep.")
    mark.touch()
    for part in there:
        shutil.rmtree(part, ignore_errors=True)


def _run_chain(
    files: Sequence[Path], folder: Path, case: PhantomCase | None, progress: Progress, started: float
) -> Shown:
    archive_port, node_port, web_port = _free_ports(3)
    settings = _settings(folder / "node", node_port, archive_port, web_port)
    configure(settings.log)
    with _archive(folder / "archive", archive_port) as archive, _running(settings, progress):
        progress("demo", f"the scanner sends {len(files)} images", 0.2)
        sent = store(Peer(NODE_AE, "127.0.0.1", node_port, SCANNER_AE), files)
        if not sent.complete:
            raise DemoFailed(f"The node did not take the study: {sent.problem or sent.refused[0].text}")
        ledger = Ledger(path_below(settings.storage.root))
        jobs = _wait_for_end(ledger, progress)
        ledger.close()
        return Shown(
            len(files),
            archive.arrived(),
            tuple(_corrected(job, settings.storage.root, folder, case) for job in jobs),
            time.monotonic() - started,
        )


def _settings(root: Path, port: int, archive_port: int, web_port: int) -> Settings:
    return Settings.model_validate(
        {
            "node": {"ae_title": NODE_AE, "bind": "127.0.0.1", "port": port},
            "destinations": {"archive": {"ae_title": ARCHIVE_AE, "host": "127.0.0.1", "port": archive_port}},
            "storage": {"root": str(root), "min_free_bytes": MIN_FREE},
            "assembly": {"series_quiet_s": QUIET_S, "study_wait_s": STUDY_WAIT_S},
            "web": {"port": web_port},
            "log": {"level": "error"},
        }
    )


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; held together, so that they differ."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def _draw_study(folder: Path) -> tuple[PhantomCase, Path]:
    case = head_case(SEED)
    write_phantom_study(folder, case.reference, weighted(case.b0), SEED)
    return case, folder


@contextmanager
def _running(settings: Settings, progress: Progress) -> Iterator[None]:
    progress("demo", "starting the node and an archive", 0.1)
    node = Node(settings)
    node.start()
    stop = threading.Event()
    loop = threading.Thread(target=node.run, args=(stop,), name="reconcile", daemon=True)
    loop.start()
    try:
        yield
    finally:
        stop.set()
        loop.join()
        node.stop()


def _wait_for_end(ledger: Ledger, progress: Progress) -> list[Job]:
    """Wait until nothing in the ledger can move any more."""
    began = time.monotonic()
    fractions = dict(zip(JobState, (0.3, 0.35, 0.5, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0), strict=True))
    ends = {JobState.SENT, JobState.SKIPPED, JobState.WITHHELD, JobState.FAILED, JobState.SUPERSEDED}
    while time.monotonic() - began < LIMIT_S:
        jobs = ledger.jobs(limit=10_000)
        if jobs:
            slowest = min(jobs, key=lambda job: fractions[job.state])
            progress("demo", f"series {slowest.series_number} is {slowest.state}", fractions[slowest.state])
        else:
            progress("demo", "the node waits for the study to be complete", 0.25)
        settled = not ledger.unsettled_studies() and all(job.state in ends for job in jobs)
        if settled:
            return jobs
        time.sleep(POLL_S)
    raise DemoFailed(
        f"The node did not finish within {LIMIT_S:g} s; `dicom-node jobs` would tell where it is."
    )


def _corrected(job: Job, root: Path, folder: Path, case: PhantomCase | None) -> Corrected:
    result = root / "results" / job.result if job.result else None
    if result is None or not (result / "qc.png").exists():
        return Corrected(job, None, None)
    picture = folder / f"qc-series-{job.series_number}.png"
    shutil.copyfile(result / "qc.png", picture)
    return Corrected(job, picture, _error_mm(case, result) if case else None)


def _error_mm(case: PhantomCase, result: Path) -> tuple[float, float]:
    """RMSE of the field in tissue without and with correction."""
    image = nibabel.load(result / "displacement.nii.gz")
    # (X, Y, Z, 1, 3) with flipped rows → (3, Z, Y, X) as in memory
    found = np.asarray(image.dataobj)[:, ::-1, :, 0, :].transpose(3, 2, 1, 0)
    truth, tissue = case.displacement_mm.numpy(), case.tissue.numpy()

    def rmse(field: npt.NDArray[np.float32]) -> float:
        return float(np.sqrt((field**2).sum(axis=0)[tissue].mean()))

    return rmse(truth), rmse(found - truth)


@dataclass(slots=True)
class _Archive:
    """What a PACS is to the demo: it takes everything and remembers it."""

    folder: Path
    files: list[Path] = field(default_factory=list)

    def on_store(self, event: evt.Event) -> int:
        path = self.folder / f"{event.request.AffectedSOPInstanceUID}.dcm"
        path.write_bytes(event.encoded_dataset())
        if path not in self.files:
            self.files.append(path)
        return 0x0000

    def arrived(self) -> tuple[Arrived, ...]:
        series: dict[str, list[tuple[int, str, float]]] = {}
        for path in self.files:
            header = dcmread(path, stop_before_pixels=True)
            series.setdefault(header.SeriesInstanceUID, []).append(
                (int(header.SeriesNumber), str(header.SeriesDescription), float(header.DiffusionBValue))
            )
        return tuple(
            Arrived(rows[0][0], rows[0][1], len(rows), tuple(sorted({b for _, _, b in rows})))
            for rows in series.values()
        )


@contextmanager
def _archive(folder: Path, port: int) -> Iterator[_Archive]:
    folder.mkdir(parents=True, exist_ok=True)
    archive = _Archive(folder)
    entity = AE(ARCHIVE_AE)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax)
    entity.add_supported_context(Verification)
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, archive.on_store)]
    )
    try:
        yield archive
    finally:
        server.shutdown()

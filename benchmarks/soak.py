"""A bounded soak: studies stream in while node, listener, workers and archive are killed at random.

    python -m benchmarks.soak [--minutes 20] [--every 8] [--json FILE]

Ends by proving that nothing was lost: each study that the scanner got rid of ended as a derived series that
the archive holds in full, or with a named reason; and that memory, threads and descriptors stay flat.
The load: a busy scanner is taken as 20,000 images in a day of ten hours with 3 diffusion studies an hour;
a study of 67 images every 8 s is 15 times its images and 150 times its diffusion studies.
In the last third of the time the node itself is left alone (archive and workers are not), so that one and
the same process is watched.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pydicom

from benchmarks.networks import free_port, machine, save
from benchmarks.soak_processes import (
    NODE_AE,
    SCANNER_AE,
    Killer,
    Sample,
    Service,
    archive,
    node,
    samples,
)
from correction.phantom import head_case
from dicom_node.association import Peer, Timeouts
from dicom_node.phantom_study import weighted, write_phantom_study
from dicom_node.scu import store

ENDS = {"sent", "committed", "skipped", "withheld", "failed", "superseded"}
DELIVERED = {"sent", "committed"}
SETTLE_S = 600.0
WARM_UP_S = 20.0  # of a process that was just started again: it still grows
COURSE_S = 20.0
KINDS = ("whole", "whole", "whole", "whole", "no reference", "slice missing")
FLAT = {"rss_bytes": 1.15, "threads": 1.1, "descriptors": 1.1}  # last quarter of the calm time over its first


# -------------------------------------------------------------------- the scanner


@dataclass(frozen=True)
class Study:
    """One that is sent: which kind, its DWI series, its files."""

    kind: str
    dwi_series_uid: str
    files: tuple[Path, ...]


class Modality:
    """Makes studies from one phantom under ever new UIDs and patients."""

    def __init__(self, folder: Path) -> None:
        case = head_case(1, voxel_mm=(5.0, 5.0, 6.0), reference_voxel_mm=(2.0, 2.0, 6.0))
        made = write_phantom_study(
            folder / "template", case.reference, weighted(case.b0, (1000.0,), ((0.0, 0.0, 1.0),)), 1
        )
        self._folder = folder
        self._dwi_uid = made.dwi_series_uid
        self._reference = [pydicom.dcmread(path) for path in made.reference_files]
        self._dwi = [pydicom.dcmread(path) for path in made.dwi_files]

    def study(self, number: int) -> Study:
        """The study with this number, on disk until it is sent."""
        kind = KINDS[number % len(KINDS)]
        sets = list(self._dwi)
        if kind == "slice missing":
            del sets[len(sets) // 2]
        if kind != "no reference":
            sets = [*self._reference, *sets]
        folder = self._folder / f"study{number}"
        folder.mkdir()
        paths = []
        for index, dataset in enumerate(sets):
            copy = pydicom.dcmread(dataset.filename)
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
                setattr(copy, keyword, f"{getattr(copy, keyword)[:50]}.{number}")
            copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
            copy.PatientID = f"SOAK-{number}"
            paths.append(folder / f"{index:04d}.dcm")
            copy.save_as(paths[-1], enforce_file_format=True)
        return Study(kind, f"{self._dwi_uid[:50]}.{number}", tuple(paths))


@dataclass
class Scanner:
    """Sends studies until told to stop, and each of them until every image was answered with Success."""

    modality: Modality
    peer: Peer
    every_s: float
    sent: list[Study] = field(default_factory=list)
    images: int = 0
    retries: int = 0

    def run(self, stop: threading.Event) -> None:
        """Until `stop`: a study that was begun is still sent to its end."""
        number = 0
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            due += self.every_s
            study = self.modality.study(number)
            number += 1
            self._send(study)
            self.sent.append(study)
            shutil.rmtree(study.files[0].parent)

    def _send(self, study: Study) -> None:
        left = list(study.files)
        while left:
            result = store(self.peer, left)
            arrived = {status.path for status in result.statuses if status.outcome.arrived}
            self.images += len(arrived)
            left = [path for path in left if path not in arrived]
            if left:
                self.retries += 1
                time.sleep(1.0)


# -------------------------------------------------------------------- the proof


@dataclass
class Account:
    """What became of everything that was sent."""

    studies: int
    derived: int
    reasons: dict[str, int]
    lost: list[str]
    in_archive: int
    unexplained: int


def account(sent: list[Study], jobs: list[dict[str, Any]], pacs: httpx.Client) -> Account:
    """Each DWI series ends once: as a derived series that the archive has in full, or with a reason."""
    latest: dict[str, dict[str, Any]] = {}
    for job in jobs:
        if job["state"] != "superseded":
            latest[job["series_uid"]] = job
    held = {
        series["MainDicomTags"]["SeriesInstanceUID"]: len(series["Instances"])
        for series in pacs.get("/series", params={"expand": ""}).json()
    }
    reasons: Counter[str] = Counter()
    lost, derived = [], 0
    outputs = {job["output_series_uid"] for job in jobs}
    for study in sent:
        job = latest.get(study.dwi_series_uid)
        if job is None or job["state"] not in ENDS:
            lost.append(f"{study.kind}: {job['state'] if job else 'no job'}")
        elif job["state"] in DELIVERED:
            derived += 1
            images = held.get(job["output_series_uid"], 0)
            if images != job["images"]:
                lost.append(f"{study.kind}: the archive has {images} of {job['images']} images")
        elif job["reason"] is None:
            lost.append(f"{study.kind}: {job['state']} without a reason")
        else:
            reasons[job["reason"]["code"]] += 1
    return Account(len(sent), derived, dict(reasons), lost, len(held), len(set(held) - outputs))


def all_jobs(api: httpx.Client, root: Path) -> list[dict[str, Any]]:
    """Every job with its output series and the number of images in its result."""
    found = []
    for job in _pages(lambda after: api.get("/api/jobs", params={"limit": 1000, "after": after}).json()):
        detail = api.get(f"/api/jobs/{job['id']}").json()
        result = _result(root, detail["output_series_uid"])
        found.append(job | {"output_series_uid": detail["output_series_uid"], "images": result})
    return found


def _pages(page: Callable[[int], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    after: int | None = 0
    while after is not None:
        document = page(after)
        yield from document["jobs"]
        after = document["next"]


def _result(root: Path, series_uid: str | None) -> int:
    """How many images of this series the node has made."""
    for outcome in (root / "results").glob("*/outcome.json"):
        if series_uid and json.loads(outcome.read_text())["output_series_uid"] == series_uid:
            return len(list((outcome.parent / "derived").glob("*.dcm")))
    return 0


def settled(api: httpx.Client, sent: list[Study]) -> bool:
    """Whether every DWI series that was sent has a job, and every job an end."""
    try:
        jobs = list(_pages(lambda after: api.get("/api/jobs", params={"limit": 1000, "after": after}).json()))
    except (httpx.HTTPError, ValueError, KeyError):
        return False
    latest = {job["series_uid"]: job for job in jobs}
    promised = all(job["state"] != "sent" for job in latest.values())
    return (
        promised
        and {study.dwi_series_uid for study in sent} <= set(latest)
        and all(job["state"] in ENDS for job in jobs)
    )


def flatness(found: list[Sample]) -> dict[str, dict[str, float]]:
    """For the daemon and the listener that lived longest: medians of first and last quarter."""
    told: dict[str, dict[str, float]] = {}
    for name in ("daemon", "listener"):
        by_pid: dict[int, list[Sample]] = {}
        for sample in found:
            if sample.process == name:
                by_pid.setdefault(sample.pid, []).append(sample)
        if not by_pid:
            continue
        longest = max(by_pid.values(), key=len)
        longest = [one for one in longest if one.at - longest[0].at >= WARM_UP_S] or longest
        quarter = max(1, len(longest) // 4)
        told[name] = {"seconds": longest[-1].at - longest[0].at}
        for what in FLAT:
            first = statistics.median(getattr(sample, what) for sample in longest[:quarter])
            last = statistics.median(getattr(sample, what) for sample in longest[-quarter:])
            told[name] |= {f"{what}_first": first, f"{what}_last": last}
    return told


def course(found: list[Sample]) -> list[dict[str, Any]]:
    """Each process over its life, a row every COURSE_S: what the medians of `flatness` leave out."""
    rows: list[dict[str, Any]] = []
    due: dict[tuple[str, int], float] = {}
    for sample in found:
        key = sample.process, sample.pid
        if sample.at >= due.get(key, 0.0):
            due[key] = sample.at + COURSE_S
            figures = {what: getattr(sample, what) for what in FLAT}
            passed = {"process": sample.process, "pid": sample.pid, "at_s": round(sample.at - found[0].at)}
            rows.append(passed | figures)
    return rows


# -------------------------------------------------------------------- the run


def run(folder: Path, minutes: float, every_s: float, seed: int) -> dict[str, Any]:
    """The soak; what it found."""
    port = free_port()
    pacs_service, pacs_port, pacs = archive(folder / "pacs", port)
    node_service, api = node(folder / "node", port, pacs_port)
    # a scanner gives up a silent node soon and tries again
    scanner = Scanner(
        Modality(folder), Peer(NODE_AE, "127.0.0.1", port, SCANNER_AE, Timeouts(5, 10, 30, 30)), every_s
    )
    killer = Killer(node_service, pacs_service, port, (8.0, 20.0), random.Random(seed))
    stop = threading.Event()
    sending = threading.Thread(target=scanner.run, args=(stop,))
    began = time.monotonic()
    sending.start()
    watched: list[Sample] = []
    try:
        calm_from = began + minutes * 60 * 2 / 3
        next_kill = began + 20.0
        calm: list[Sample] = []
        while (now := time.monotonic()) < began + minutes * 60:
            in_calm = now > calm_from
            if now > next_kill:
                rough = ("daemon", "daemon", "listener", "worker", "archive")
                killer.strike(("worker", "archive") if in_calm else rough)
                next_kill = now + killer.pause_s()
            if (pid := node_service.pid) is not None:
                watched += (taken := samples(pid, port))
                calm += taken if in_calm else []
            time.sleep(1.0)
            _progress(now - began, minutes, scanner, killer)
        stop.set()
        sending.join()
        found = _finish(folder, api, pacs, scanner, killer, calm, began, pacs_service)
        return found | {"course": course(watched)}
    finally:
        stop.set()
        node_service.stop()
        pacs_service.stop()


def _finish(
    folder: Path,
    api: httpx.Client,
    pacs: httpx.Client,
    scanner: Scanner,
    killer: Killer,
    calm: list[Sample],
    began: float,
    pacs_service: Service,
) -> dict[str, Any]:
    """Wait until everything has ended, and draw up the account."""
    sent_s = time.monotonic() - began
    end = time.monotonic() + SETTLE_S
    while not settled(api, scanner.sent) and time.monotonic() < end:
        time.sleep(2.0)
    while pacs_service.pid is None:
        time.sleep(1.0)
    books = account(scanner.sent, all_jobs(api, folder / "node" / "spool"), pacs)
    return {
        "device": machine(),
        "minutes": sent_s / 60,
        "settled_after_s": time.monotonic() - began - sent_s,
        "studies_in": books.studies,
        "images_in": scanner.images,
        "images_per_s": scanner.images / sent_s,
        "scanner_retries": scanner.retries,
        "kills": killer.kills,
        "derived_out": books.derived,
        "reasons": books.reasons,
        "lost": books.lost,
        "series_in_archive": books.in_archive,
        "unexplained_in_archive": books.unexplained,
        "flat": flatness(calm),
    }


def _progress(passed_s: float, minutes: float, scanner: Scanner, killer: Killer) -> None:
    if sys.stderr.isatty() or int(passed_s) % 30 == 0:
        kills = sum(killer.kills.values())
        told = f"{passed_s:.0f} of {minutes * 60:.0f} s: {len(scanner.sent)} studies, {kills} kills"
        print(told, file=sys.stderr)


def verdict(found: dict[str, Any]) -> list[str]:
    """What is wrong, in sentences; nothing when all holds."""
    wrong = [f"lost: {what}" for what in found["lost"]]
    if found["studies_in"] != found["derived_out"] + sum(found["reasons"].values()) + len(found["lost"]):
        wrong.append("studies in are not derived series out and reasons")
    if found["unexplained_in_archive"]:
        wrong.append(f"{found['unexplained_in_archive']} series in the archive come from no job")
    for name, figures in found["flat"].items():
        for what, factor in FLAT.items():
            first, last = figures[f"{what}_first"], figures[f"{what}_last"]
            if last > first * factor + (0 if what == "rss_bytes" else 3):
                wrong.append(f"{what} of the {name} grew from {first:g} to {last:g}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--every", type=float, default=8.0, help="seconds between studies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep everything, logs too, in this new folder")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "soak.json")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        found = run(options.keep or Path(temporary), options.minutes, options.every, options.seed)
    print(json.dumps({name: what for name, what in found.items() if name != "course"}, indent=2))
    save(options.json, [found])
    if wrong := verdict(found):
        sys.exit("\n".join(wrong))
    print("lost: 0")


if __name__ == "__main__":
    main()

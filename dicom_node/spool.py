"""Durable files: received instances, published results, scratch space, quarantine.

The only module that fsyncs, renames or deletes. What it has handed back survives a power cut: the bytes
are written under a temporary name, fsynced, renamed once, and the directory is fsynced.

    incoming/    instances while they are written
    instances/   xx/<digest>.<revision>.dcm, xx the first two digits of the digest
    results/     one folder for each published correction
    work/        scratch folders of running corrections
    quarantine/  what could not be read as DICOM, each with a note saying why; bounded
"""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

QUARANTINE_MAX_FILES = 200
QUARANTINE_MAX_BYTES = 512 * 1024 * 1024

Bytes = bytes | bytearray | memoryview

_FOLDERS = ("incoming", "instances", "results", "work", "quarantine")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_INSTANCE = re.compile(r"[0-9a-f]{2}/[0-9a-f]{32}\.[0-9]+\.dcm")  # below instances/
DECISION = "decision.json"  # in a result's folder: what a person decided about it


class SpoolError(Exception):
    """The disk did not take or give something; the message says what and why."""


class NoRoom(SpoolError):
    """The disk is full, or free space is below the reserve."""


class Occupied(SpoolError):
    """Other bytes are stored under this SOP Instance UID and revision."""


def instance_path(sop_uid: str, revision: int) -> Path:
    """Where an instance lies, relative to the storage root.

    The only place that turns a UID into a path. The UID itself is never part of it: it comes from the
    network and may hold anything.
    """
    digest = hashlib.sha256(sop_uid.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return Path("instances", digest[:2], f"{digest}.{revision}.dcm")


def create_file(path: Path) -> BinaryIO:
    """A new file for writing that only we may read; raises FileExistsError when there is one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "wb")


class Part:
    """An instance while it arrives: a file below incoming/ until it is placed, quarantined or discarded."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = 0  # bytes written
        self.placed = False  # among the instances: nothing is left below incoming/
        self._file = file

    def write(self, piece: Bytes) -> None:
        """Append bytes; raises NoRoom when the disk is full, SpoolError when it fails otherwise."""
        with _as_spool_error("the instance could not be stored"):
            self._file.write(piece)
        self.size += memoryview(piece).nbytes

    def read_back(self, offset: int, size: int) -> bytes:
        """At most `size` of the bytes written so far, from `offset` on."""
        with _as_spool_error("the instance could not be read back"):
            self._file.flush()
            with self.path.open("rb") as file:
                file.seek(offset)
                return file.read(size)

    def sync(self, at_most: int | None = None) -> None:
        """Make its content durable, cut to `at_most` bytes; nothing can be written afterwards."""
        with _as_spool_error("the instance could not be stored"), self._file:
            self._file.flush()
            if at_most is not None and self.size > at_most:
                os.ftruncate(self._file.fileno(), at_most)
            os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Close and delete it; no error when it is gone or has been placed."""
        with suppress(OSError):
            self._file.close()
        if self.placed:
            return
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


class Spool:
    """The files below the storage root."""

    def __init__(
        self, root: Path, min_free_bytes: int, *, opener: Callable[[Path], BinaryIO] = create_file
    ) -> None:
        """Create what is missing of the folders. `opener` is replaced by tests to fail as disks do."""
        self.root = root
        self._min_free_bytes = min_free_bytes
        self._open = opener
        with _as_spool_error(f"the storage root {root} cannot be set up"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in _FOLDERS:
                (root / folder).mkdir(mode=0o700, exist_ok=True)
            for first in range(256):
                (root / "instances" / f"{first:02x}").mkdir(mode=0o700, exist_ok=True)
            _sync_directory(root / "instances")
            _sync_directory(root)

    # ---------------------------------------------------------------- space

    def free_bytes(self) -> int:
        """What the file system still has for us."""
        with _as_spool_error(f"the free space of {self.root} is unknown"):
            state = os.statvfs(self.root)
            return state.f_bavail * state.f_frsize

    def has_room(self, size: int = 0) -> bool:
        """Whether `size` bytes more leave the reserve untouched."""
        return self.free_bytes() - size >= self._min_free_bytes

    # ---------------------------------------------------------------- received instances

    def open_part(self) -> Part:
        """A new file below incoming/ for an instance that is about to arrive; raises NoRoom, SpoolError."""
        path = self.root / "incoming" / f"{secrets.token_hex(16)}.part"
        with _as_spool_error("the instance could not be stored"):
            return Part(path, self._open(path))

    def place(self, part: Part, sop_uid: str, revision: int) -> Path:
        """Give a synced part its place among the instances, and return that relative to the root.

        Durable only after `settle`. When the same bytes lie there already the part is discarded: left by a
        crash between rename and ledger, or by a ledger older than the disk. Raises Occupied when others do.
        """
        relative = instance_path(sop_uid, revision)
        target = self.root / relative
        with _as_spool_error("the instance could not be stored"):
            if not target.exists():
                part.path.rename(target)
                part.placed = True
            elif filecmp.cmp(part.path, target, shallow=False):
                part.discard()
            else:
                raise Occupied(f"{relative} holds another version of this instance")
        return relative

    def settle(self, paths: Iterable[Path]) -> None:
        """Make the places of these instances durable: each folder is fsynced once, however many lie in it."""
        with _as_spool_error("the instance could not be stored"):
            for folder in {self.root / path.parent for path in paths}:
                _sync_directory(folder)

    def receive(self, sop_uid: str, revision: int, *content: Bytes) -> Path:
        """Store one instance durably and return its path relative to the root.

        `content` is written as it is, piece after piece (file meta, then the data set as received).
        Receiving the same bytes again changes nothing. Raises Occupied when other bytes are stored under
        this revision, NoRoom when the disk is full, SpoolError when it fails otherwise; nothing is left
        behind then.
        """
        part = self.open_part()
        try:
            for piece in content:
                part.write(piece)
            part.sync()
            relative = self.place(part, sop_uid, revision)
        except BaseException:
            part.discard()
            raise
        self.settle([relative])
        return relative

    def quarantine(self, part: Part, why: str) -> Path:
        """Keep what could not be read as DICOM, with a note; the oldest make room for it."""
        folder = self.root / "quarantine"
        stem = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}"
        with _as_spool_error("the unreadable instance could not be kept"):
            size = part.size
            _make_quarantine_room(folder, min(size, QUARANTINE_MAX_BYTES))
            part.sync(at_most=QUARANTINE_MAX_BYTES)
            part.path.rename(folder / f"{stem}.bin")
            with self._open(folder / f"{stem}.txt") as note:
                note.write(f"{why}\n{size} bytes\n".encode())
                note.flush()
                os.fsync(note.fileno())
            _sync_directory(folder)
        return Path("quarantine", f"{stem}.bin")

    # ---------------------------------------------------------------- results

    def work_dir(self, name: str) -> Path:
        """A fresh scratch folder for a correction."""
        _check_name(name)
        with _as_spool_error("no scratch folder could be made"):
            return Path(tempfile.mkdtemp(prefix=f"{name}.", dir=self.root / "work"))

    def discard(self, work_dir: Path) -> None:
        """Delete a scratch folder; no error when it is gone, published or swept."""
        shutil.rmtree(work_dir, ignore_errors=True)

    def publish(self, work_dir: Path, name: str) -> Path:
        """Make everything in `work_dir` durable and rename it to results/`name`; returns that folder.

        When that result exists already (another worker, an earlier attempt) it stays as it is and
        `work_dir` is discarded.
        """
        target = self.result_dir(name)
        with _as_spool_error(f"the result {name} could not be published"):
            if not target.exists():
                _make_durable(work_dir)
                try:
                    work_dir.rename(target)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
            _sync_directory(target.parent)
            if work_dir.exists():
                shutil.rmtree(work_dir)
        return target

    def result_dir(self, name: str) -> Path:
        """Where the result `name` lies, or will lie once it is published."""
        _check_name(name)
        return self.root / "results" / name

    def remove_result(self, name: str) -> None:
        """Delete a published result; no error when there is none."""
        target = self.result_dir(name)
        with _as_spool_error(f"the result {name} could not be deleted"):
            # renamed first: a crash half-way must not leave half a result under its name
            doomed = Path(tempfile.mkdtemp(prefix="removed.", dir=self.root / "work"))
            with suppress(FileNotFoundError):
                target.rename(doomed / name)
                _sync_directory(target.parent)
            shutil.rmtree(doomed)

    def result_names(self) -> list[str]:
        """The results that are published here."""
        with _as_spool_error("the results could not be listed"):
            return [entry.name for entry in os.scandir(self.root / "results") if _NAME.fullmatch(entry.name)]

    def note_decision(self, name: str, decision: Mapping[str, str]) -> None:
        """Keep what a person decided about a result beside it: the ledger that has it too may be lost."""
        folder = self.result_dir(name)
        if not folder.is_dir():
            return
        part = folder / f".{DECISION}.{secrets.token_hex(4)}"
        with _as_spool_error("the decision could not be kept"):
            with self._open(part) as file:
                file.write(json.dumps(dict(decision)).encode())
                file.flush()
                os.fsync(file.fileno())
            part.rename(folder / DECISION)
            _sync_directory(folder)

    def decision(self, name: str) -> dict[str, str] | None:
        """What a person decided last about a result, or None."""
        try:
            found = json.loads((self.result_dir(name) / DECISION).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return dict(found) if isinstance(found, dict) else None

    # ---------------------------------------------------------------- what is here, and its end

    def instance_files(self) -> Iterator[tuple[str, int]]:
        """(path relative to the root, bytes) of every stored instance."""
        with _as_spool_error("the stored instances could not be listed"):
            for folder in sorted((self.root / "instances").iterdir()):
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if _INSTANCE.fullmatch(f"{folder.name}/{entry.name}"):
                            yield f"instances/{folder.name}/{entry.name}", entry.stat().st_size

    def quarantine_instance(self, relative: str, why: str) -> None:
        """Take a stored file that cannot be used out of the way; it is kept for a person to look at."""
        with _as_spool_error("an unusable instance could not be put aside"):
            path = self.root / relative
            part = Part(path, path.open("r+b"))
            part.size = path.stat().st_size
        self.quarantine(part, why)

    def remove(self, paths: Iterable[str]) -> None:
        """Delete instances and results by their paths relative to the root; those that are gone are no error.

        Durable when it returns. Raises ValueError for any other path.
        """
        folders = set()
        for relative in paths:
            kind, *rest = PurePosixPath(relative).parts
            if kind == "results" and len(rest) == 1:
                self.remove_result(rest[0])
            elif kind == "instances" and _INSTANCE.fullmatch("/".join(rest)):
                with _as_spool_error(f"{relative} could not be deleted"):
                    (self.root / relative).unlink(missing_ok=True)
                folders.add((self.root / relative).parent)
            else:
                raise ValueError(f"{relative!r} is neither an instance nor a result")
        with _as_spool_error("a deletion could not be made durable"):
            for folder in folders:
                _sync_directory(folder)

    def set_aside(self, path: Path) -> Path:
        """Give a file that is of no more use another name beside it, with the time in it; that path."""
        kept = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
        with _as_spool_error(f"{path} could not be put aside"):
            path.rename(kept)
            _sync_directory(path.parent)
        return kept

    # ---------------------------------------------------------------- start

    def sweep(self) -> None:
        """When the node starts: delete what an earlier run left unfinished."""
        self.sweep_incoming()
        self.sweep_work()

    def sweep_incoming(self) -> None:
        """Delete instances that were never completely written; none was answered with Success."""
        with _as_spool_error("unfinished instances could not be deleted"):
            for part in (self.root / "incoming").iterdir():
                part.unlink(missing_ok=True)

    def sweep_work(self) -> None:
        """Delete the scratch folders of corrections that were not published.

        A worker that outlived its node by a moment may still write there; it publishes whole or not at all,
        and what it leaves is deleted at the next start.
        """
        with _as_spool_error("unfinished corrections could not be deleted"):
            for folder in (self.root / "work").iterdir():
                shutil.rmtree(folder, ignore_errors=True)

    def discard_work_of(self, name: str) -> None:
        """Delete the scratch folders that attempts at the result `name` left behind: their worker is dead."""
        _check_name(name)
        for folder in (self.root / "work").glob(f"{name}.*"):
            self.discard(folder)


@contextmanager
def _as_spool_error(what: str) -> Iterator[None]:
    """An OSError becomes NoRoom or SpoolError, with a sentence that says what did not work."""
    try:
        yield
    except OSError as error:
        kind = NoRoom if error.errno in _NO_SPACE else SpoolError
        raise kind(f"{what}: {error.strerror or error}") from error


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or PurePosixPath(name).name != name:
        raise ValueError(f"{name!r} cannot be the name of a folder")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_durable(folder: Path) -> None:
    """fsync every file and folder below `folder`, and let only us read them."""
    for parent, _folders, files in os.walk(folder):
        for name in files:
            path = Path(parent, name)
            path.chmod(0o600)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        Path(parent).chmod(0o700)
        _sync_directory(Path(parent))


def _make_quarantine_room(folder: Path, size: int) -> None:
    """Delete the oldest (names start with the time) until one more of `size` bytes is within the bounds."""
    kept = sorted(folder.glob("*.bin"))
    total = sum(path.stat().st_size for path in kept)
    while kept and (len(kept) >= QUARANTINE_MAX_FILES or total + size > QUARANTINE_MAX_BYTES):
        oldest = kept.pop(0)
        total -= oldest.stat().st_size
        oldest.unlink()
        oldest.with_suffix(".txt").unlink(missing_ok=True)

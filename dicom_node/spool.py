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
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
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

    def receive(self, sop_uid: str, revision: int, *content: Bytes) -> Path:
        """Store one instance durably and return its path relative to the root.

        `content` is written as it is, piece after piece (file meta, then the data set as received).
        Receiving the same bytes again changes nothing. Raises Occupied when other bytes are stored under
        this revision, NoRoom when the disk is full, SpoolError when it fails otherwise; nothing is left
        behind then.
        """
        relative = instance_path(sop_uid, revision)
        target = self.root / relative
        part = self.root / "incoming" / f"{relative.stem}.{secrets.token_hex(4)}.part"
        with _as_spool_error("the instance could not be stored"):
            if target.exists():
                # left by a crash between rename and ledger, or by a ledger older than the disk
                if not _holds(target, content):
                    raise Occupied(f"{relative} holds another version of this instance")
                _sync_directory(target.parent)
                return relative
            try:
                self._write(part, content)
                part.rename(target)
            except BaseException:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                raise
            _sync_directory(target.parent)
        return relative

    def _write(self, path: Path, content: tuple[Bytes, ...]) -> None:
        """A new durable file; its directory entry is the caller's to make durable."""
        with self._open(path) as file:
            for piece in content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def quarantine(self, content: Bytes, why: str) -> Path:
        """Keep bytes that could not be read as DICOM, with a note; the oldest make room for new ones."""
        folder = self.root / "quarantine"
        stem = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}"
        with _as_spool_error("the unreadable instance could not be kept"):
            size = memoryview(content).nbytes
            _make_quarantine_room(folder, min(size, QUARANTINE_MAX_BYTES))
            kept = memoryview(content).cast("B")[:QUARANTINE_MAX_BYTES]
            self._write(folder / f"{stem}.bin", (kept,))
            self._write(folder / f"{stem}.txt", (f"{why}\n{size} bytes\n".encode(),))
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
        """Delete the scratch folders of corrections that were not published. No worker may be running."""
        with _as_spool_error("unfinished corrections could not be deleted"):
            for folder in (self.root / "work").iterdir():
                shutil.rmtree(folder)


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


def _holds(path: Path, content: tuple[Bytes, ...]) -> bool:
    """Whether the file consists of exactly these pieces."""
    pieces = [memoryview(piece).cast("B") for piece in content]
    if path.stat().st_size != sum(piece.nbytes for piece in pieces):
        return False
    with path.open("rb") as file:
        return all(file.read(piece.nbytes) == piece for piece in pieces)


def _make_quarantine_room(folder: Path, size: int) -> None:
    """Delete the oldest (names start with the time) until one more of `size` bytes is within the bounds."""
    kept = sorted(folder.glob("*.bin"))
    total = sum(path.stat().st_size for path in kept)
    while kept and (len(kept) >= QUARANTINE_MAX_FILES or total + size > QUARANTINE_MAX_BYTES):
        oldest = kept.pop(0)
        total -= oldest.stat().st_size
        oldest.unlink()
        oldest.with_suffix(".txt").unlink(missing_ok=True)

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import spool as spool_module
from dicom_node.spool import NoRoom, Occupied, Part, Spool, SpoolError, create_file, instance_path

UID = "1.2.826.0.1.3680043.10.7"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "root", 0)


class FailingFile(io.BytesIO):
    """A file on a disk that takes `room` bytes and then fails with `code`."""

    def __init__(self, code: int, room: int) -> None:
        super().__init__()
        self.code, self.room = code, room

    def write(self, piece: object) -> int:
        self.room -= memoryview(piece).nbytes  # type: ignore[arg-type]
        if self.room < 0:
            raise OSError(self.code, os.strerror(self.code))
        return 0


def failing(code: int, room: int = 10) -> object:
    def opener(path: Path) -> BinaryIO:
        create_file(path).close()  # the entry exists, as on a real disk
        return FailingFile(code, room)

    return opener


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_received_bytes_lie_where_the_uid_says_and_only_we_may_read_them(spool: Spool) -> None:
    path = spool.receive(UID, 1, b"meta", memoryview(b"data"))
    assert path == instance_path(UID, 1)
    stored = spool.root / path
    assert stored.read_bytes() == b"metadata"
    assert stored.stat().st_mode & 0o777 == 0o600
    assert stored.parent.stat().st_mode & 0o777 == 0o700
    assert files_below(spool.root / "incoming") == []


def test_file_and_directory_are_fsynced_before_receive_returns(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        synced.append("rename")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    path = spool.receive(UID, 1, b"data")
    assert len(synced) == 3
    assert synced[0].endswith(".part")
    assert synced[1] == "rename"
    assert synced[2] == str((spool.root / path).parent)


def test_a_part_that_was_placed_is_not_discarded_any_more(spool: Spool) -> None:
    part = spool.open_part()
    part.write(b"image")
    part.sync()
    placed = spool.place(part, UID, 1)
    part.discard()
    assert (spool.root / placed).read_bytes() == b"image"
    assert not list((spool.root / "incoming").iterdir())


def test_receiving_the_same_bytes_again_changes_nothing(spool: Spool) -> None:
    first = spool.receive(UID, 1, b"meta", b"data")
    written = (spool.root / first).stat().st_mtime_ns
    assert spool.receive(UID, 1, b"metadata") == first
    assert (spool.root / first).stat().st_mtime_ns == written


def test_other_bytes_never_replace_a_stored_revision(spool: Spool) -> None:
    path = spool.receive(UID, 1, b"data")
    with pytest.raises(Occupied):
        spool.receive(UID, 1, b"atad")
    assert (spool.root / path).read_bytes() == b"data"
    assert spool.receive(UID, 2, b"atad") != path


@given(st.text(max_size=80), st.integers(1, 9))
def test_no_uid_leads_out_of_its_folder(uid: str, revision: int) -> None:
    path = instance_path(uid, revision)
    assert path.parts[0] == "instances"
    assert len(path.parts) == 3
    assert path.parts[1] == path.name[:2]
    assert set(path.name) <= set("0123456789abcdef.dcm")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_writing_leaves_nothing_behind(tmp_path: Path, code: int) -> None:
    spool = Spool(tmp_path, 0, opener=failing(code))  # type: ignore[arg-type]
    with pytest.raises(NoRoom, match="could not be stored"):
        spool.receive(UID, 1, b"x" * 8, b"y" * 8)
    assert files_below(tmp_path) == []


def test_a_disk_that_breaks_is_told_from_one_that_is_full(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0, opener=failing(errno.EIO))  # type: ignore[arg-type]
    with pytest.raises(SpoolError) as caught:
        spool.receive(UID, 1, b"x" * 80)
    assert not isinstance(caught.value, NoRoom)
    assert files_below(tmp_path) == []


def test_there_is_room_only_above_the_reserve(tmp_path: Path) -> None:
    free = Spool(tmp_path, 0).free_bytes()
    assert Spool(tmp_path, 0).has_room(1000)
    assert not Spool(tmp_path, 0).has_room(free * 2)
    assert not Spool(tmp_path, free * 2).has_room()


def test_a_result_is_published_once_and_the_first_one_stays(spool: Spool) -> None:
    first, second = spool.work_dir("job-1"), spool.work_dir("job-1")
    assert first != second
    (first / "derived").mkdir()
    (first / "derived" / "1.dcm").write_bytes(b"first")
    (second / "other").write_bytes(b"second")
    published = spool.publish(first, "job-1")
    assert spool.publish(second, "job-1") == published == spool.result_dir("job-1")
    assert [path.relative_to(published).as_posix() for path in files_below(published)] == ["derived/1.dcm"]
    assert (published / "derived" / "1.dcm").stat().st_mode & 0o777 == 0o600
    assert list((spool.root / "work").iterdir()) == []


def test_two_workers_that_publish_at_the_same_moment_leave_one_result(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = spool.work_dir("job-1"), spool.work_dir("job-1")
    (mine / "a").write_bytes(b"mine")
    (theirs / "a").write_bytes(b"theirs")
    real = spool_module._make_durable

    def overtaken(folder: Path) -> None:
        real(folder)
        if folder == mine:
            spool.publish(theirs, "job-1")

    monkeypatch.setattr(spool_module, "_make_durable", overtaken)
    assert (spool.publish(mine, "job-1") / "a").read_bytes() == b"theirs"
    assert list((spool.root / "work").iterdir()) == []


def test_a_removed_result_is_gone_and_removing_it_again_is_no_error(spool: Spool) -> None:
    work = spool.work_dir("job-2")
    (work / "a").write_bytes(b"a")
    published = spool.publish(work, "job-2")
    spool.remove_result("job-2")
    assert not published.exists()
    spool.remove_result("job-2")
    assert list((spool.root / "work").iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "/etc", "a\0b", "x" * 200])
def test_a_name_that_is_no_folder_name_is_refused(spool: Spool, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        spool.result_dir(name)
    with pytest.raises(ValueError, match="cannot be the name"):
        spool.work_dir(name)


def test_the_sweep_deletes_what_was_unfinished_and_keeps_what_was_answered(spool: Spool) -> None:
    path = spool.receive(UID, 1, b"data")
    (spool.root / "incoming" / "left.1.part").write_bytes(b"trunc")
    (spool.work_dir("job-1") / "half").write_bytes(b"half")
    published = spool.publish(spool.work_dir("job-3"), "job-3")
    Spool(spool.root, 0).sweep()
    assert (spool.root / path).exists()
    assert published.exists()
    assert files_below(spool.root / "incoming") == files_below(spool.root / "work") == []


def test_quarantine_keeps_the_bytes_with_the_reason_and_never_grows_beyond_its_bounds(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "QUARANTINE_MAX_FILES", 3)
    monkeypatch.setattr(spool_module, "QUARANTINE_MAX_BYTES", 100)

    def part(content: bytes) -> Part:
        arriving = spool.open_part()
        arriving.write(content)
        return arriving

    kept = [spool.quarantine(part(b"%d" % number * 10), "not DICOM") for number in range(5)]
    folder = spool.root / "quarantine"
    assert len(list(folder.glob("*.bin"))) == len(list(folder.glob("*.txt"))) == 3
    assert not (spool.root / kept[0]).exists()
    assert (spool.root / kept[4]).read_bytes() == b"4" * 10
    assert "not DICOM" in (spool.root / kept[4]).with_suffix(".txt").read_text()
    spool.quarantine(part(b"z" * 1000), "too large")
    assert files_below(spool.root / "incoming") == []
    assert sum(path.stat().st_size for path in folder.glob("*.bin")) <= 100

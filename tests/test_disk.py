"""A disk that fills for real: a small file system of its own below the storage root.

Mounting needs privileges; where there are none the same is done with a limit on the size of files.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from instances import encoded, mr_dataset
from listening import UID, Node, Scu, starting

from dicom_node.spool import create_file, instance_path

DISK_BYTES = 6 << 20
SIZE = 256  # pixels a side: 128 KiB an instance


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of a few megabytes; skipped where nobody may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    yield from starting(tmp_path)


def uids(count: int) -> list[str]:
    return [f"{UID}.{number}" for number in range(count)]


def send_all(node: Node, names: list[str]) -> dict[str, int]:
    """The status of each instance, on one association."""
    with Scu(node.port) as scu:
        return {uid: scu.send(encoded(mr_dataset(sop_uid=uid, size=SIZE)), uid)[0] for uid in names}


def assert_sound(node: Node, answers: dict[str, int]) -> None:
    """What was answered with Success is on disk whole and in the ledger, and nothing else is."""
    accepted = {uid for uid, status in answers.items() if status == 0x0000}
    assert {uid for (uid,) in node.rows("SELECT sop_uid FROM instances")} == accepted
    for uid in accepted:
        stored = (node.settings.root / instance_path(uid, 1)).read_bytes()
        assert stored.endswith(encoded(mr_dataset(sop_uid=uid, size=SIZE)))
    assert list((node.settings.root / "incoming").iterdir()) == []
    assert node.rows("PRAGMA integrity_check") == [("ok",)]


def test_a_disk_that_fills_refuses_what_it_cannot_keep_and_recovers_without_restart(
    start: Callable[..., Node], small_disk: Path
) -> None:
    node = start(root=small_disk / "root")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    answers = send_all(node, uids(60))  # 7.5 MB on what is left of 6
    assert set(answers.values()) == {0x0000, 0xA700}
    assert_sound(node, answers)
    ballast.unlink()
    refused = [uid for uid, status in answers.items() if status == 0xA700]
    again = send_all(node, refused[:8])
    assert set(again.values()) == {0x0000}
    assert_sound(node, answers | again)


def test_four_associations_on_a_disk_that_fills_lose_nothing_that_was_accepted(
    start: Callable[..., Node], small_disk: Path
) -> None:
    node = start(root=small_disk / "root")
    parts = [uids(64)[number::4] for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = {
            uid: status
            for part in pool.map(lambda p: send_all(node, p), parts)
            for uid, status in part.items()
        }
    assert set(answers.values()) == {0x0000, 0xA700}
    assert_sound(node, answers)


def test_above_the_watermark_the_disk_never_fills(start: Callable[..., Node], small_disk: Path) -> None:
    node = start(root=small_disk / "root", min_free_bytes=2 << 20)
    answers = send_all(node, uids(60))
    assert set(answers.values()) == {0x0000, 0xA700}
    assert node.spool.free_bytes() >= (2 << 20) - (256 << 10)  # less the instance that crossed it
    assert_sound(node, answers)


class Failing:
    """A file that takes `room` bytes and then fails with `code`; the rest is the real file."""

    def __init__(self, file: BinaryIO, code: int, room: int) -> None:
        self._file, self._code, self._room = file, code, room

    def write(self, piece: Any) -> int:
        self._room -= memoryview(piece).nbytes
        if self._room < 0:
            raise OSError(self._code, os.strerror(self._code))
        return self._file.write(piece)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("room", [0, 100_000])
def test_a_disk_that_fails_in_the_middle_of_an_instance_costs_that_instance_only(
    start: Callable[..., Node], code: int, room: int
) -> None:
    failing = [False]

    def opener(path: Path) -> BinaryIO:
        file = create_file(path)
        return Failing(file, code, room) if failing[0] else file  # type: ignore[return-value]

    node = start(opener)
    before = send_all(node, uids(1))
    failing[0] = True
    refused = send_all(node, [f"{UID}.7", f"{UID}.8"])
    assert set(refused.values()) == {0xA700}
    failing[0] = False
    after = send_all(node, [f"{UID}.7", f"{UID}.8"])
    assert set((before | after).values()) == {0x0000}
    assert_sound(node, before | refused | after)


def test_an_fsync_that_fails_is_never_answered_with_success(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    real = os.fsync

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Scu(node.port) as scu:
        data = encoded(mr_dataset(sop_uid=UID, size=SIZE))
        monkeypatch.setattr(os, "fsync", broken)
        assert scu.send(data)[0] == 0xA700
        monkeypatch.setattr(os, "fsync", real)
        assert node.rows("SELECT COUNT(*) FROM instances") == [(0,)]
        assert scu.send(data)[0] == 0x0000
    assert_sound(node, {UID: 0x0000})

"""An archive on disk through the same path, as often as it takes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from instances import write_series
from pydicom import dcmread

from dicom_node.intake import read_file
from dicom_node.ledger import Ledger, path_below
from dicom_node.reprocess import Reprocessed, WrongUser, reprocess
from dicom_node.spool import NoRoom, Spool


class Root:
    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder, 0)
        self.ledger = Ledger(path_below(folder))

    def take(self, files: list[Path]) -> Reprocessed:
        return reprocess(self.ledger, self.spool, files)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


def test_files_are_stored_as_if_they_had_come_over_the_network(root: Root, tmp_path: Path) -> None:
    files = write_series(tmp_path / "archive", 3)
    assert root.take(files) == Reprocessed(taken=3)
    (growth,) = root.ledger.growing()
    for record in root.ledger.instances_of(growth.series_uid):
        stored = root.spool.root / record.path
        assert dcmread(stored).SOPInstanceUID == record.sop_uid
        assert (stored.stat().st_size, read_file(stored).sha256) == (record.size, record.sha256)
    assert not growth.open_associations


def test_run_again_it_goes_on_where_it_stopped(root: Root, tmp_path: Path) -> None:
    files = write_series(tmp_path / "archive", 4)
    root.take(files[:2])
    assert root.take(files) == Reprocessed(taken=2, known=2)
    assert root.take(files) == Reprocessed(known=4)


def test_the_same_instance_from_a_scanner_and_from_the_archive_is_one(root: Root, tmp_path: Path) -> None:
    (path,) = write_series(tmp_path / "archive", 1)
    root.take([path])
    found = read_file(path)
    content = path.read_bytes()[found.offset :]
    assert found.sha256 == hashlib.sha256(content).hexdigest()  # as the listener hashes the data set
    assert root.ledger.instance(found.identity.sop_uid) is not None


def test_what_is_no_dicom_file_is_counted_and_passed_over(root: Root, tmp_path: Path) -> None:
    files = write_series(tmp_path / "archive", 1)
    (tmp_path / "readme.txt").write_text("nothing to see")
    (tmp_path / "empty").touch()
    assert root.take([tmp_path / "readme.txt", tmp_path / "empty", *files]) == Reprocessed(
        taken=1, unusable=2
    )


def test_a_full_disk_keeps_what_was_taken_and_closes_the_association(root: Root, tmp_path: Path) -> None:
    files = write_series(tmp_path / "archive", 2)
    root.take(files[:1])
    full = Spool(root.spool.root, 1 << 60)
    with pytest.raises(NoRoom, match="run this again later"):
        reprocess(root.ledger, full, files)
    (growth,) = root.ledger.growing()
    assert not growth.open_associations
    assert root.take(files) == Reprocessed(taken=1, known=1)


def test_another_user_than_the_services_is_refused(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = root.spool.root.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(WrongUser, match="run this as that user"):
        root.take(write_series(tmp_path / "archive", 1))

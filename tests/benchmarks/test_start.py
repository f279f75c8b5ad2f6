"""The benchmark of a start makes a spool and a ledger that a node takes for its own."""

from __future__ import annotations

from pathlib import Path

from benchmarks.start import OF_A_STUDY, fill, lose_last_hundredth, rows_of, start
from dicom_node.ledger import path_below

INSTANCES = 2 * OF_A_STUDY


def test_disk_and_ledger_agree_and_what_the_ledger_lost_is_counted_in_again(tmp_path: Path) -> None:
    fill(tmp_path, INSTANCES, 4)
    start(tmp_path)
    assert rows_of(tmp_path) == INSTANCES
    lose_last_hundredth(tmp_path)
    assert rows_of(tmp_path) < INSTANCES
    start(tmp_path)
    assert rows_of(tmp_path) == INSTANCES
    path_below(tmp_path).unlink()
    start(tmp_path)
    assert rows_of(tmp_path) == INSTANCES

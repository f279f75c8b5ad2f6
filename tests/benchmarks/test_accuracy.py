"""A run of the accuracy benchmark that is cut short goes on where it stopped, and reports what it found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import accuracy, plots
from benchmarks.accuracy import Found, kept_at, line, row_of, run
from benchmarks.cases import Case
from correction import Volume
from correction.landmarks import Landmarks


@pytest.fixture
def case() -> Case:
    """A ramp of twelve voxels a side whose true shift is 2 mm everywhere."""
    image = np.arange(12.0**3).reshape(12, 12, 12)
    volume = Volume.from_numpy(image, np.eye(4))
    truth = torch.zeros(3, 12, 12, 12)
    truth[1] = 2.0
    brain = torch.zeros(12, 12, 12, dtype=torch.bool)
    brain[3:9, 3:9, 3:9] = True
    return Case("ramp", "epi", volume, volume, "j", truth, brain, volume, False)


class _Counted:
    """An estimator that knows the truth, and how often it was asked."""

    def __init__(self, fails: bool = False) -> None:
        self.asked, self.fails = 0, fails

    def __call__(self, case: Case) -> Found:
        self.asked += 1
        if self.fails:
            raise ValueError("no overlap")
        return Found(case.displacement_mm, 1.5, "pass")


def test_what_is_kept_is_not_computed_again(case: Case, tmp_path: Path) -> None:
    estimator = _Counted()
    first, second = (run(case, "a, b", estimator, tmp_path) for _ in range(2))
    assert estimator.asked == 1
    assert first.displacement_mm is not None
    assert second.displacement_mm is not None
    assert torch.equal(first.displacement_mm, second.displacement_mm)
    assert (second.cpu_s, second.verdict) == (1.5, "pass")
    run(case, "a, b", estimator, tmp_path, again=True)
    assert estimator.asked == 2


def test_a_method_that_fails_is_a_result_and_is_kept(case: Case, tmp_path: Path) -> None:
    estimator = _Counted(fails=True)
    found = [run(case, "peer", estimator, tmp_path) for _ in range(2)][1]
    assert estimator.asked == 1
    row = row_of(case, "peer", found)
    assert row["failed"] == "ValueError: no overlap"
    assert "ValueError: no overlap" in line(row)
    assert "| ramp | 2.00 | – |" in plots.tables([row_of(case, "nothing", accuracy.nothing(case)), row])


def test_a_run_that_was_stopped_while_writing_leaves_nothing_to_read(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(what: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(case, "peer", _Counted(), tmp_path)
    assert not kept_at(tmp_path, case, "peer").exists()


def test_landmarks_found_before_cost_what_they_did(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = np.zeros((4, 3))
    asked = []

    def find(*_: object, **__: object) -> Landmarks:
        asked.append(1)
        sum(range(10**7))  # some time
        return Landmarks(points, points + 1.0, np.ones(4), "drawn by hand")

    monkeypatch.setattr(accuracy, "find_landmarks", find)
    (_, cost_s), (again, kept_s) = (accuracy.landmarks(case, "auto", "cpu", tmp_path) for _ in range(2))
    assert len(asked) == 1
    assert kept_s == cost_s > 0.05
    assert again.matcher == "drawn by hand"
    np.testing.assert_array_equal(again.moving_mm, points + 1.0)


def test_the_right_field_has_no_error_and_none_has_all_of_it(case: Case) -> None:
    right = row_of(case, "right", Found(case.displacement_mm, 0.0))
    none = row_of(case, "nothing", accuracy.nothing(case))
    assert right["rmse_mm"] == pytest.approx(0.0)
    assert none["rmse_mm"] == pytest.approx(2.0)
    assert none["demeaned_rmse_mm"] == pytest.approx(0.0, abs=1e-6)
    assert none["off_axis_rmse_mm"] == pytest.approx(0.0, abs=1e-6)


def test_tables_say_who_is_worse_than_nothing_and_how_sure(case: Case) -> None:
    figures = {"off_axis_rmse_mm": 0.0, "demeaned_rmse_mm": 0.0, "p95_mm": 0.0, "psnr_db": 20.0, "ncc": 0.9}
    figures |= {"ssim": 0.9, "cpu_s": 1.0, "folded": 0.0}
    errors = {"nothing": 2.0, "clinical": 0.5, "bad peer": 3.0}
    rows: list[dict[str, object]] = [
        {"case": f"case-{n}", "kind": "epi", "method": m, "rmse_mm": e + n / 10, **figures}
        for n in range(6)
        for m, e in errors.items()
    ]
    table = plots.tables(rows)
    told = {cells[1].strip(): cells[-3:-1] for r in table.splitlines() if len(cells := r.split("|")) > 10}
    assert [c.strip() for c in told["bad peer"]] == ["6", "0.031"]  # the least p that six cases allow
    assert [c.strip() for c in told["clinical"]] == ["0", "–"]


def test_pictures_are_drawn_for_the_kinds_there_are(case: Case, tmp_path: Path) -> None:
    rows = [row_of(case, "nothing", accuracy.nothing(case)), row_of(case, "peer", accuracy.nothing(case))]
    plots.draw(rows, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy-epi.png"]

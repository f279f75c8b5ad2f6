"""The ablations of the published method run to their end, keep what they found and draw it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablations
from benchmarks.accuracy import phantom
from correction import Landmarks, methods
from correction.phantom import head_case

SHOWN = ("as published", "spacing 40 voxels", "as published, seed 1")
QUICK = tuple(
    variant._replace(changes=(*variant.changes, "iterations=2", "hidden=8"))
    for variant in ablations.VARIANTS
    if variant.title in SHOWN
)


@pytest.mark.parametrize("variant", ablations.VARIANTS, ids=lambda variant: variant.title)
def test_a_variant_is_one_the_method_takes(variant: ablations.Variant) -> None:
    assert methods.paper().override(["samples=100", *variant.changes]) != methods.paper()


def test_they_end_with_a_table_a_document_and_a_picture_and_go_on_where_they_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = head_case(0, voxel_mm=(5.0, 5.0, 6.0), reference_voxel_mm=(5.0, 5.0, 6.0))
    case = phantom("phantom", made)
    points = np.array([[0.0, 0.0, 0.0], [20.0, 10.0, 5.0]])
    drawn = Landmarks(points, points + np.array([0.0, 2.0, 0.0]), np.ones(2), "drawn by hand")
    monkeypatch.setattr(ablations, "gathered", lambda *_: iter([case]))
    monkeypatch.setattr(ablations, "landmarks", lambda *_: (drawn, 0.0))
    monkeypatch.setattr(ablations, "VARIANTS", QUICK)
    arguments = [
        "ablations", "--samples", "200", "--cache", str(tmp_path / "fields"), "--plots", str(tmp_path),
        "--json", str(tmp_path / "rows.json"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    ablations.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["method"] for row in rows] == list(SHOWN)
    assert rows[0]["rmse_mm"] != rows[2]["rmse_mm"], "other random numbers make another field"
    assert (tmp_path / "ablations.png").stat().st_size > 5000
    said = capsys.readouterr().out
    assert "### phantom" in said
    assert f"| as published | {rows[0]['rmse_mm']:.2f} |" in said

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(ablations, "fitted", never)
    ablations.main()
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows

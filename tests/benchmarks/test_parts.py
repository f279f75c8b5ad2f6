"""The clinical method's parts are taken away one at a time, and the table tells them apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import parts
from benchmarks.accuracy import phantom
from benchmarks.cases import save_case
from correction import methods
from correction.phantom import head_case
from tests.quick_correction import SETTINGS

COARSE = tuple(f"{key}={value}" for key, value in SETTINGS)
QUICK = (
    parts.Variant("clinical", COARSE, matcher=None),
    parts.Variant("stiff", (*COARSE, "near_bending=100000"), matcher=None),
)


@pytest.mark.parametrize("variant", parts.VARIANTS[1:], ids=lambda variant: variant.title)
def test_each_variant_changes_something(variant: parts.Variant) -> None:
    assert (
        variant.matcher != parts.MATCHER or methods.clinical().override(variant.changes) != methods.clinical()
    )


def test_a_table_of_cases_and_variants_comes_out_and_nothing_is_computed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = head_case(1, voxel_mm=(5.0, 5.0, 6.0), reference_voxel_mm=(5.0, 5.0, 6.0))
    case = phantom("phantom", made)
    save_case(case, tmp_path / "phantom.pt")
    monkeypatch.setattr(parts, "VARIANTS", QUICK)
    arguments = [
        str(tmp_path / "phantom.pt"),
        "--cache",
        str(tmp_path),
        "--json",
        str(tmp_path / "rows.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["parts", *arguments])
    parts.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["nothing", "clinical", "stiff"]
    assert rows[1]["rmse_mm"] != rows[2]["rmse_mm"]
    found = f"{rows[1]['rmse_mm']:.2f}"
    assert f"| clinical | {found} | {found} |" in capsys.readouterr().out

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(parts, "engine", never)
    parts.main()
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows

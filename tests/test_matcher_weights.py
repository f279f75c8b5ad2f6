"""`dicom-node weights`: what is found, where, under which licence, and the exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from correction.landmarks import matchers
from correction.landmarks.weights import DISK, XFEAT
from dicom_node import cli
from dicom_node.matcher_weights import survey


@pytest.fixture(autouse=True)
def _nothing_cached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", Path("/nonexistent/config.yaml"))
    monkeypatch.delenv("DICOM_NODE_CONFIG", raising=False)
    matchers.built.cache_clear()
    yield
    matchers.built.cache_clear()


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["dicom-node", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().out


def config_with(folder: Path, **correction: str) -> str:
    path = folder / "config.yaml"
    path.write_text(
        json.dumps(
            {
                "node": {"ae_title": "NODE"},
                "storage": {"root": str(folder / "root")},
                "correction": correction,
            }
        )
    )
    return str(path)


def test_installed_weights_are_listed_with_path_hash_and_licence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(monkeypatch, capsys, "weights", "--json")
    assert code == 0
    document = json.loads(said)
    assert document["configured"] == "auto"
    by_name: dict[str, Any] = {item["matcher"]: item for item in document["matchers"]}
    assert set(by_name) == set(matchers.FILES)
    first = by_name["xfeat-lighterglue"]
    assert first["auto"]
    assert first["problem"] == ""
    (xfeat,) = (file for file in first["files"] if file["name"] == XFEAT.name)
    assert xfeat["sha256"] == XFEAT.sha256
    assert xfeat["measured"]
    assert xfeat["licence"] == "Apache-2.0"
    assert Path(xfeat["path"]).is_file()
    absent = by_name["minima-lightglue"]
    assert "weights_dir" in absent["problem"]
    assert any("non-commercial" in file["licence"] for file in absent["files"])


def test_a_configured_matcher_without_weights_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = config_with(tmp_path, matcher="minima-loftr", weights_dir=str(tmp_path))
    code, said = run(monkeypatch, capsys, "--config", config, "weights")
    assert code == 1
    assert "minima_loftr.ckpt: not found" in said
    assert "✓ xfeat-lighterglue (auto takes it)" in said


def test_a_file_that_is_not_the_measured_one_is_said_to_be_unusable(tmp_path: Path) -> None:
    (tmp_path / DISK.name).write_bytes(b"something else")
    (disk,) = (item for item in survey(tmp_path) if item.matcher == "disk-lightglue")
    assert not disk.usable
    assert "SHA-256" in disk.problem
    assert disk.files[0].path == str(tmp_path / DISK.name)
    assert not disk.files[0].measured

"""The unit, judged by systemd's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parent.parent / "systemd"
MAX_EXPOSURE = 1.6


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here, which is all that verification asks of it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    text = (UNITS / "dicom-node.service").read_text(encoding="utf-8")
    path = tmp_path / "dicom-node.service"
    path.write_text(text.replace("/opt/dicom-node/bin/dicom-node", sys.executable), encoding="utf-8")
    return path


def analyze(*arguments: str) -> str:
    ended = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.peers
def test_systemd_finds_nothing_to_remark_in_the_unit(unit: Path) -> None:
    remarks = [line for line in analyze("verify", "--man=no", str(unit)).splitlines() if unit.name in line]
    assert not remarks


@pytest.mark.peers
def test_the_service_is_hardly_exposed(unit: Path) -> None:
    told = analyze("security", "--offline=yes", "--no-pager", str(unit))
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", told)
    assert exposure, told
    assert float(exposure[1]) <= MAX_EXPOSURE


def test_the_unit_is_watched_and_never_given_up() -> None:
    text = (UNITS / "dicom-node.service").read_text(encoding="utf-8")
    for line in ("Type=notify", "Restart=always", "StartLimitIntervalSec=0", "OOMPolicy=continue"):
        assert re.search(rf"^{line}$", text, flags=re.MULTILINE), line
    assert re.search(r"^WatchdogSec=\d+$", text, flags=re.MULTILINE)

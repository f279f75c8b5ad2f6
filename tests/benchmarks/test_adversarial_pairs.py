"""The verdict's benchmark goes on where it was stopped, in parts, and counts what passed and should not."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy, adversarial
from benchmarks.adversarial import Outcome, Pair, summary
from correction import Volume
from correction.errors import UnusableImage
from correction.landmarks import Landmarks

DATA = ["adversarial", "--data", "no-folder"]


class _Engine:
    """Refuses every pair, and counts what it was asked for."""

    def __init__(self) -> None:
        self.corrected: list[Landmarks | None] = []
        self.searched = 0

    def correct(self, *given: object) -> None:
        found = given[4]
        assert found is None or isinstance(found, Landmarks)
        self.corrected.append(found)
        raise UnusableImage("nothing to be seen")

    def find_landmarks(self, *_: object, **__: object) -> Landmarks:
        self.searched += 1
        points = np.zeros((3, 3))
        return Landmarks(points, points + 1.0, np.ones(3), "drawn by hand")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> _Engine:
    """Four pairs of two voxels a side instead of the studies, two of them wrong."""
    volume = Volume.from_numpy(np.arange(8.0).reshape(2, 2, 2), np.eye(4))

    def drawn(*_: object) -> Iterator[Pair]:
        for name, right in (("a", True), ("b, 20 mm", False), ("c", True), ("d", False)):
            yield Pair(name, volume, volume, "j", right)

    made = _Engine()
    monkeypatch.setattr(adversarial, "pairs", drawn)
    monkeypatch.setattr(adversarial, "correct", made.correct)
    monkeypatch.setattr(accuracy, "find_landmarks", made.find_landmarks)
    return made


def _ran(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> list[str]:
    """Names of the pairs in the document of a run with these options."""
    document = folder / "rows.json"
    document.unlink(missing_ok=True)
    monkeypatch.setattr(
        sys, "argv", [*DATA, "--cache", str(folder / "kept"), "--json", str(document), *options]
    )
    adversarial.main()
    return [row["name"] for row in json.loads(document.read_text())] if document.exists() else []


def test_pairs_are_corrected_once_and_their_landmarks_found_once(
    engine: _Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _ran(monkeypatch, tmp_path, "--part", "1/2") == ["a", "c"]
    assert _ran(monkeypatch, tmp_path, "--kept") == ["a", "c"]
    assert _ran(monkeypatch, tmp_path) == ["a", "b, 20 mm", "c", "d"]
    assert (len(engine.corrected), engine.searched) == (4, 4)
    _ran(monkeypatch, tmp_path, "--again")
    assert (len(engine.corrected), engine.searched) == (8, 4)
    assert all(found is not None and found.matcher == "drawn by hand" for found in engine.corrected)


def test_landmarks_can_be_found_before_anything_is_corrected(
    engine: _Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _ran(monkeypatch, tmp_path, "--landmarks") == []
    assert (len(engine.corrected), engine.searched) == (0, 4)
    _ran(monkeypatch, tmp_path)
    assert (len(engine.corrected), engine.searched) == (4, 4)


def test_what_other_settings_found_is_not_taken_for_these(
    engine: _Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ran(monkeypatch, tmp_path)
    _ran(monkeypatch, tmp_path, "--set", "iterations=3")
    _ran(monkeypatch, tmp_path, "--matcher", "none")
    assert len(engine.corrected) == 12
    assert engine.corrected[8:] == [None] * 4


def test_a_refused_pair_is_as_good_as_a_rejected_one(
    engine: _Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _ran(monkeypatch, tmp_path)
    said = capsys.readouterr().out
    assert "right pairs: {'refused': 2}" in said
    assert "wrong or harmful, and passed: []" in said


def test_a_wrong_pair_and_a_harmful_correction_that_pass_are_named() -> None:
    outcomes = [
        Outcome("right", True, "pass", (), "air", 3.0, 1.0, {}),
        Outcome("made worse", True, "pass", (), "air", 1.0, 1.2, {}),
        Outcome("another patient", False, "pass", (), "air", None, None, {}),
        Outcome("noise", False, "reject", ("structure",), "nothing", None, None, {}),
    ]
    said = summary(outcomes)
    assert "right pairs: {'pass': 1}" in said
    assert "wrong pairs: {'pass': 1, 'reject': 1}" in said
    assert "wrong or harmful, and passed: ['made worse', 'another patient']" in said


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/-2"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="i/n"):
        adversarial._part(text)

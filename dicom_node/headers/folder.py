"""The DICOM instances of a folder, between whatever else lies there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dicom_node.headers.instance import InstanceFacts
from dicom_node.headers.problems import NoImage, Unreadable
from dicom_node.headers.read import read_instance
from dicom_node.headers.series import summarise
from rules.facts import SeriesFacts

Progress = Callable[[int, int], None]  # files read, files in all


@dataclass(frozen=True, slots=True)
class UnreadableFile:
    """A file between the images that is none, or is damaged: then it may be an image that is missing."""

    path: str
    why: str
    may_be_image: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """The instances of some folders by SeriesInstanceUID, each SOP instance once."""

    series: dict[str, list[InstanceFacts]]
    unreadable: tuple[UnreadableFile, ...]
    copies: int  # files that repeat a SOPInstanceUID

    def facts(self) -> list[SeriesFacts]:
        """What each series says. Which one a damaged file belongs to is not known: it may be each."""
        damaged = sum(file.may_be_image for file in self.unreadable)
        return [replace(summarise(instances), unreadable=damaged) for instances in self.series.values()]


def files_below(paths: Iterable[Path]) -> Iterator[Path]:
    """Every regular file of `paths` (files, or folders with all their sub-folders), in order of name.

    Hidden files and folders are left out: they are what other programs keep for themselves.
    """
    for path in paths:
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
            yield from files_below(inside)
        elif path.is_file():
            yield path


def read_series(files: Sequence[Path], progress: Progress | None = None) -> Reading:
    """Read the header of each file once; of files with one SOPInstanceUID the first counts."""
    series: dict[str, list[InstanceFacts]] = {}
    unreadable = []
    seen: set[str] = set()
    copies = 0
    for done, path in enumerate(files, start=1):
        try:
            instance = read_instance(path)
        except Unreadable as problem:
            unreadable.append(UnreadableFile(str(path), str(problem), not isinstance(problem, NoImage)))
        else:
            if instance.sop_instance_uid in seen:
                copies += 1
            else:
                seen.add(instance.sop_instance_uid)
                series.setdefault(instance.series_uid, []).append(instance)
        if progress is not None:
            progress(done, len(files))
    return Reading(series, tuple(unreadable), copies)

"""The files of a folder, whatever they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path


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

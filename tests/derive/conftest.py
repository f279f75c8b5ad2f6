"""Benches on which tests derive from the phantom study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from derived_series import Bench, edited, load_files
from phantom_fixtures import reference, source, study
from pydicom import Dataset

from dicom_node.headers import InstanceFacts
from dicom_node.load import LoadedSeries
from dicom_node.phantom_study import PhantomStudy

__all__ = ["reference", "source", "study"]  # fixtures are found by their names here


@pytest.fixture
def bench(source: LoadedSeries, reference: list[InstanceFacts], tmp_path: Path) -> Bench:
    return Bench(source, reference, tmp_path / "derived")


@pytest.fixture
def bench_of(
    study: PhantomStudy, reference: list[InstanceFacts], tmp_path: Path
) -> Callable[[Callable[[Dataset, int], None]], Bench]:
    """A bench whose DWI files were changed by a function of (data set, index)."""

    def made(edit: Callable[[Dataset, int], None]) -> Bench:
        files = edited(study.dwi_files, tmp_path / "edited", edit)
        return Bench(load_files(files), reference, tmp_path / "derived")

    return made

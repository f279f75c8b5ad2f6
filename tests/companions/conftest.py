"""A phantom study with a correction of it finished, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from derived_series import instances_of, load_files, write_study
from finished_correction import finished

from dicom_node.companions import Finished
from dicom_node.headers import InstanceFacts
from dicom_node.load import LoadedSeries
from dicom_node.phantom_study import PhantomStudy


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    return write_study(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="session")
def source(study: PhantomStudy) -> LoadedSeries:
    return load_files(study.dwi_files)


@pytest.fixture(scope="session")
def reference(study: PhantomStudy) -> list[InstanceFacts]:
    return instances_of(study.reference_files)


@pytest.fixture
def done(source: LoadedSeries, reference: list[InstanceFacts], tmp_path: Path) -> Finished:
    return finished(source, reference, tmp_path / "derived")

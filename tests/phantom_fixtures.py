"""A phantom study, written and read once: fixtures for the tests of derive and of the companions."""

from __future__ import annotations

import pytest
from derived_series import instances_of, load_files, write_study

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

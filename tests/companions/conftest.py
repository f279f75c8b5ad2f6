"""A phantom study with a correction of it finished, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from finished_correction import finished
from phantom_fixtures import reference, source, study

from dicom_node.companions import Finished
from dicom_node.headers import InstanceFacts
from dicom_node.load import LoadedSeries

__all__ = ["reference", "source", "study"]  # fixtures are found by their names here


@pytest.fixture
def done(source: LoadedSeries, reference: list[InstanceFacts], tmp_path: Path) -> Finished:
    return finished(source, reference, tmp_path / "derived")

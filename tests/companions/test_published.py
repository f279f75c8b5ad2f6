"""Companions as a worker publishes them: with the derived series, and counted among what was issued."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
import torch
from quick_correction import RECIPE, write_head_study

from dicom_node.companions.quality_record import FIGURES
from dicom_node.compute import CorrectionTask, Outcome, read_outcome, run
from dicom_node.derive import CompanionPolicy, DerivePolicy, OutputGrid
from dicom_node.phantom_study import PhantomStudy

ALL = CompanionPolicy(qc=True, registration=True, adc=True, quality_record=True)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    return write_head_study(tmp_path_factory.mktemp("study"))


def published(study: PhantomStudy, root: Path, policy: DerivePolicy) -> tuple[Outcome, list[Path]]:
    task = CorrectionTask(
        name="result",
        root=root,
        source=tuple(study.dwi_files),
        reference=tuple(study.reference_files),
        contrast="T2",
        recipe=RECIPE,
        derive=policy,
        threads=1,
    )
    outcome = run(task)
    assert isinstance(outcome, Outcome)
    return outcome, sorted((root / "results" / "result" / "derived").glob("*.dcm"))


@pytest.mark.parametrize("grid", OutputGrid)
def test_everything_that_was_asked_for_is_published_and_every_uid_is_told(
    study: PhantomStudy, tmp_path: Path, grid: OutputGrid
) -> None:
    policy = DerivePolicy(grid=grid, one_series_per_b_value=True, companions=ALL)

    outcome, files = published(study, tmp_path, policy)

    made = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    slices = len(study.dwi_files) // 2 if grid is OutputGrid.DWI else len(study.reference_files)
    assert len(made) == 2 * slices + slices + 3  # two b-values, the ADC map, and three objects more
    assert {one.SOPInstanceUID for one in made} == set(outcome.sop_uids)
    assert {one.SeriesInstanceUID for one in made} == set(outcome.series_uids)
    assert len(outcome.series_uids) == 6
    assert outcome.output_series_uid == made[0].SeriesInstanceUID
    assert read_outcome(tmp_path / "results" / "result") == outcome
    assert list((tmp_path / "work").iterdir()) == []
    report = json.loads((tmp_path / "results" / "result" / "report.json").read_text())
    assert all(key in report[part] for part, key in FIGURES)

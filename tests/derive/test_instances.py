from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from derived_series import (
    Bench,
    by_source,
    instances_of,
    load_files,
    raw,
)
from pydicom import Dataset

from dicom_node.headers import Unreadable, arrange, summarise
from dicom_node.load import LoadedSeries, load
from dicom_node.phantom_study import PhantomStudy

BenchOf = Callable[[Callable[[Dataset, int], None]], Bench]


def test_unchanged_attributes_keep_their_bytes(bench: Bench) -> None:
    for source, derived in by_source(bench.source, bench.derive()):
        for keyword in (
            *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
            *("SpacingBetweenSlices", "SliceLocation", "EchoTime", "RepetitionTime", "SequenceName"),
            *("PatientName", "PatientID", "StudyInstanceUID", "StudyTime", "AccessionNumber"),
            *("AcquisitionTime", "FrameOfReferenceUID", "Manufacturer", "InPlanePhaseEncodingDirection"),
        ):
            assert raw(derived, keyword) == raw(source, keyword), keyword


def test_the_derived_series_lies_where_its_source_lies(bench: Bench) -> None:
    bench.derive()
    again = load_files(bench.out.glob("*.dcm"))

    assert np.array_equal(again.affine, bench.source.affine)
    assert np.array_equal(again.voxels, bench.source.voxels)
    assert [v.b_value for v in again.arrangement.volumes] == [0.0, 1000.0, 1000.0, 1000.0]


def test_directions_stand_at_the_root_and_in_the_sequence(bench: Bench) -> None:
    derived = bench.derive()

    for instance, volume in zip(derived[::4], bench.source.arrangement.volumes, strict=True):
        assert instance.DiffusionBValue == volume.b_value
        if volume.b_value == 0:
            assert instance.DiffusionDirectionality == "NONE"
            assert "DiffusionGradientOrientation" not in instance
            assert "DiffusionGradientDirectionSequence" not in instance
        else:
            assert instance.DiffusionDirectionality == "DIRECTIONAL"
            assert tuple(instance.DiffusionGradientOrientation) == volume.direction
            item = instance.DiffusionGradientDirectionSequence[0]
            assert tuple(item.DiffusionGradientOrientation) == volume.direction


def test_a_direction_that_is_not_validated_is_not_written(bench: Bench) -> None:
    arrangement = bench.source.arrangement
    unknown = tuple(replace(volume, direction=None) for volume in arrangement.volumes)
    bench.source = replace(bench.source, arrangement=replace(arrangement, volumes=unknown))

    for instance in bench.derive():
        assert "DiffusionBValue" in instance
        assert "DiffusionGradientOrientation" not in instance
        assert instance.get("DiffusionDirectionality", "NONE") == "NONE"


def test_a_volume_without_b_value_is_refused(bench: Bench) -> None:
    arrangement = bench.source.arrangement
    volumes = (replace(arrangement.volumes[0], b_value=None), *arrangement.volumes[1:])
    bench.source = replace(bench.source, arrangement=replace(arrangement, volumes=volumes))

    with pytest.raises(Unreadable, match="no b-value"):
        bench.derive()


def test_a_source_file_that_has_gone_is_named(bench_of: BenchOf) -> None:
    bench = bench_of(lambda dataset, index: None)
    gone = bench.source.arrangement.volumes[1].frames[0].path
    gone.unlink()

    with pytest.raises(Unreadable, match=gone.name):
        bench.derive()


def test_volumes_of_another_shape_are_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match=r"\(4, 4, 12, 13\)"):
        bench.derive(bench.source.voxels[..., :-1])


def test_instance_numbers_run_through_volumes_and_along_the_slice_normal(bench: Bench) -> None:
    derived = bench.derive()

    assert [instance.InstanceNumber for instance in derived] == list(range(1, 17))
    assert [path.name for path in sorted(bench.out.iterdir())][:2] == ["00001.dcm", "00002.dcm"]
    normal = np.cross(derived[0].ImageOrientationPatient[:3], derived[0].ImageOrientationPatient[3:])
    heights = [float(np.dot(instance.ImagePositionPatient, normal)) for instance in derived]
    for start in range(0, 16, 4):
        assert heights[start : start + 4] == sorted(heights[start : start + 4])


@pytest.mark.parametrize(
    ("counted", "numbers"),
    [
        (lambda volume, z: 4 * volume + 4 - z, [4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13]),
        (lambda volume, z: 100 + 10 * z + volume, [1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 4, 8, 12, 16]),
        (lambda volume, z: 4 * volume + (0, 2, 1, 3)[z], list(range(1, 17))),
        (lambda volume, z: z, list(range(1, 17))),
    ],
    ids=["head to feet", "slice by slice, with gaps", "order of excitation", "repeating"],
)
def test_derived_and_source_scroll_in_step_where_the_source_counts_in_space(
    bench_of: BenchOf, counted: Callable[[int, int], int], numbers: list[int]
) -> None:
    def count(dataset: Dataset, index: int) -> None:
        dataset.InstanceNumber = counted(*divmod(index, 4))

    derived = bench_of(count).derive()

    assert [instance.InstanceNumber for instance in derived] == numbers


def test_the_node_knows_the_derived_series_as_its_own(bench: Bench) -> None:
    bench.derive()

    assert summarise(instances_of(bench.out.iterdir())).own_output != ""


def volumes_of(paths: Iterable[Path], count: int) -> LoadedSeries:
    """The first `count` volumes of a series, so that a test reads a part of it only."""
    instances = instances_of(paths)
    frames = [frame for volume in arrange(instances).volumes[:count] for frame in volume.frames]
    wanted = {frame.path for frame in frames}
    return load([instance for instance in instances if instance.path in wanted])


REAL = {
    "xa30-enhanced": ("siemens-xa30-enhanced", "17_*/*", 2),
    "xa30-classic": ("siemens-xa30-classic", "11001_*/*", 2),
    "e11-mosaic": ("siemens-e11-mosaic", "4_*/*", 2),
    "prostatex": ("prostatex-0218", "8.*/*", 4),
    "ge": ("ge-phantom", "04_*/*", 2),
    "uih": ("uih", "DTI_134434/dti_tra_dir16_AP*/*", 2),
    "philips-enhanced": ("vendor-mini", "philips_enhanced/dti/001/*", 4),
    "philips-implicit": ("vendor-mini", "philips_enhanced/dti/001_implicit/*", 4),
}


@pytest.fixture
def real(
    request: pytest.FixtureRequest, data_set: Callable[[str], Path], study: PhantomStudy, tmp_path: Path
) -> Bench:
    name, pattern, volumes = REAL[request.param]
    files = list(data_set(name).glob(pattern))
    if request.param == "xa30-classic":
        files = sorted(files)[:78]
    elif request.param in ("xa30-enhanced", "e11-mosaic", "uih"):
        files = sorted(files)[:volumes]
    return Bench(volumes_of(files, volumes), instances_of(study.reference_files), tmp_path / "derived")


@pytest.mark.parametrize("real", REAL, indirect=True)
def test_a_real_series_keeps_voxels_place_and_diffusion(real: Bench) -> None:
    derived = real.derive()
    again = load_files(real.out.glob("*.dcm"))

    assert len(derived) == np.prod(real.source.voxels.shape[:2])
    assert np.array_equal(again.voxels, real.source.voxels)
    assert np.abs(again.affine - real.source.affine).max() < 1e-6
    for before, after in zip(real.source.arrangement.volumes, again.arrangement.volumes, strict=True):
        assert after.b_value == before.b_value
        if before.direction is None:
            assert after.direction is None
        else:
            assert after.direction == pytest.approx(before.direction, abs=1e-6)


@pytest.mark.parametrize("real", ["e11-mosaic"], indirect=True)
def test_tiles_of_a_mosaic_become_images_at_their_own_place(real: Bench) -> None:
    derived = real.derive()

    frames = [frame for volume in real.source.arrangement.volumes for frame in volume.frames]
    for frame, instance in zip(frames, derived, strict=True):
        assert (instance.Rows, instance.Columns) == (82, 82)
        assert [float(v) for v in instance.ImagePositionPatient] == pytest.approx(frame.position_mm, abs=1e-9)
        assert not [tag for tag in instance.keys() if tag.group == 0x0029]  # noqa: SIM118
        assert 0x0019100A not in instance
    assert len({instance.SOPInstanceUID for instance in derived}) == len(frames)


@pytest.mark.parametrize("real", ["prostatex"], indirect=True)
def test_a_trace_series_stays_one(real: Bench) -> None:
    derived = real.derive()

    assert {tuple(i.ImageType) for i in derived} == {("DERIVED", "SECONDARY", "OTHER", "TRACEW", "DISTCORR")}
    for instance in derived:
        directionality = "NONE" if instance.DiffusionBValue == 0 else "ISOTROPIC"
        assert instance.DiffusionDirectionality == directionality
        assert "DiffusionGradientOrientation" not in instance

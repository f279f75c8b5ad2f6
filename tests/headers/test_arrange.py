"""Slices become volumes by where they lie, whatever their names, numbers and order are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_headers import AXIAL, stack
from pydicom.uid import EnhancedMRImageStorage, SecondaryCaptureImageStorage

from dicom_node.headers import GeometryProblem, InstanceFacts, arrange
from rules.facts import Vec3, Vendor

CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
DIRECTIONS: tuple[Vec3, ...] = ((1.0, 0.0, 0.0), (0.0, 0.6, 0.8), (-0.6, 0.0, 0.8))


def _scheme() -> list[InstanceFacts]:
    """b = 0, then three directions at b = 1000, four slices each."""
    instances = stack(b_value=0.0)
    for number, direction in enumerate(DIRECTIONS, start=1):
        instances += stack(b_value=1000.0, direction=direction, first_number=1 + 4 * number, minute=number)
    return instances


def _with(instance: InstanceFacts, **changed: object) -> InstanceFacts:
    return replace(instance, frames=tuple(replace(frame, **changed) for frame in instance.frames))


def _uids(instances: Sequence[InstanceFacts]) -> list[list[str]]:
    return [[frame.sop_instance_uid for frame in volume.frames] for volume in arrange(instances).volumes]


@given(st.permutations(_scheme()))
def test_any_order_of_the_instances_gives_the_same_volumes(shuffled: list[InstanceFacts]) -> None:
    assert _uids(shuffled) == _uids(_scheme())


def test_volumes_come_in_the_order_they_were_measured() -> None:
    arranged = arrange(_scheme())
    assert [volume.b_value for volume in arranged.volumes] == [0, 1000, 1000, 1000]
    assert [volume.direction for volume in arranged.volumes] == [None, *DIRECTIONS]
    assert arranged.shape == (4, 8, 10)


@given(
    angles=st.tuples(*[st.floats(-3.0, 3.0)] * 3),
    origin=st.tuples(*[st.floats(-200, 200)] * 3),
    step_mm=st.floats(0.5, 10.0),
)
def test_the_affine_puts_every_voxel_where_its_slice_lies(
    angles: tuple[float, ...], origin: Vec3, step_mm: float
) -> None:
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    turn = (
        np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
        @ np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
        @ np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    )
    arranged = arrange(stack(5, orientation=(*turn[:, 0], *turn[:, 1]), origin=origin, step_mm=step_mm)[::-1])
    for index, frame in enumerate(arranged.volumes[0].frames):
        np.testing.assert_allclose((arranged.affine @ (0, 0, index, 1))[:3], frame.position_mm, atol=1e-6)
    np.testing.assert_allclose(arranged.affine[:3, :3], turn * (2.5, 1.5, step_mm), atol=1e-6)


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL])
def test_slices_ascend_along_row_cross_column_in_every_orientation(orientation: tuple[float, ...]) -> None:
    arranged = arrange(stack(3, orientation=orientation))
    assert np.linalg.det(arranged.affine[:3, :3]) > 0
    assert [frame.instance_number for frame in arranged.volumes[0].frames] == [1, 2, 3]


def test_numbers_that_run_slice_by_slice_still_give_volumes() -> None:
    instances = [
        _with(instance, instance_number=number % 4 * 20 + number // 4 + 17, acquired=None)
        for number, instance in enumerate(_scheme())
    ]
    assert _uids(instances) == _uids(_scheme())


def test_meaningless_numbers_leave_the_order_to_the_clock() -> None:
    numbers = np.random.default_rng(0).permutation(16)
    instances = [_with(one, instance_number=int(n)) for one, n in zip(_scheme(), numbers, strict=True)]
    assert _uids(instances) == _uids(_scheme())


def test_the_vendors_own_index_of_a_volume_goes_before_its_number() -> None:
    first = stack(b_value=1000.0, volume_order=(2.0, 1.0))
    second = stack(b_value=0.0, first_number=5, volume_order=(1.0, 17.0))
    assert [volume.b_value for volume in arrange(first + second).volumes] == [0, 1000]


def test_a_missing_slice_is_named() -> None:
    instances = [one for one in _scheme() if one.instance_number != 10]
    with pytest.raises(GeometryProblem, match=r"^Volume 3 \(b=1000\) lacks the slice at 3\.0 mm\.$"):
        arrange(instances)


def test_a_slice_missing_from_every_volume_is_seen_as_a_gap() -> None:
    with pytest.raises(GeometryProblem, match=r"not evenly spaced: 6\.0 mm between 3\.0 and 9\.0 mm"):
        arrange([one for one in stack(6) if one.instance_number != 3])


def test_an_interrupted_series_is_refused_with_the_number_of_missing_slices() -> None:
    with pytest.raises(GeometryProblem, match="and 2 more"):
        arrange(stack(20, b_value=0.0) + stack(15, b_value=700.0, first_number=21))


def test_repeats_are_volumes_of_their_own() -> None:
    once = stack(b_value=0.0, acquisition_number=1)
    again = stack(b_value=0.0, first_number=5, minute=1, acquisition_number=2)
    assert _uids(again[::-1] + once) == [[one.sop_instance_uid for one in part] for part in (once, again)]


def test_repeats_without_any_number_are_told_apart_by_time() -> None:
    once = [_with(one, instance_number=None) for one in stack(b_value=0.0)]
    again = [_with(one, instance_number=None) for one in stack(b_value=0.0, first_number=5, minute=1)]
    assert _uids(again + once) == [[one.sop_instance_uid for one in part] for part in (once, again)]


def test_repeats_measured_in_interleaved_packages_are_whole() -> None:
    """Two packages of slices a repeat, each with an acquisition number of its own."""
    repeats = [stack(b_value=0.0), stack(b_value=0.0, first_number=5, minute=1)]
    instances = [
        _with(one, acquisition_number=2 * repeat + index % 2)
        for repeat, part in enumerate(repeats)
        for index, one in enumerate(part)
    ]
    assert _uids(instances) == [[one.sop_instance_uid for one in part] for part in repeats]


def test_a_slice_missing_from_one_repeat_is_named() -> None:
    once = stack(b_value=0.0, acquisition_number=1)
    again = stack(b_value=0.0, first_number=5, minute=1, acquisition_number=2)
    with pytest.raises(GeometryProblem, match=r"Volume 2 \(b=0\) lacks the slice at 6\.0 mm"):
        arrange(once + again[:2] + again[3:])


def test_a_trace_image_inside_the_series_is_its_own_volume() -> None:
    trace = stack(b_value=1000.0, first_number=17, minute=9)
    assert [volume.direction for volume in arrange(_scheme() + trace).volumes] == [None, *DIRECTIONS, None]


def test_echoes_and_components_are_volumes_of_their_own() -> None:
    instances = []
    for number, (echo, component) in enumerate([(4.0, "MAGNITUDE"), (4.0, "PHASE"), (6.0, "MAGNITUDE")]):
        instances += stack(first_number=1 + 4 * number, echo_time_ms=echo, component=component)
    volumes = arrange(instances).volumes
    assert [(volume.echo_time_ms, volume.component) for volume in volumes] == [
        (4.0, "MAGNITUDE"),
        (4.0, "PHASE"),
        (6.0, "MAGNITUDE"),
    ]


@pytest.mark.parametrize("vendor", [Vendor.CANON, Vendor.GE])
def test_an_unwritten_b_value_beside_weighted_volumes_is_0(vendor: Vendor) -> None:
    instances = stack(vendor=vendor) + stack(b_value=1500.0, first_number=5, vendor=vendor)
    assert [volume.b_value for volume in arrange(instances).volumes] == [0, 1500]


def test_a_map_inside_the_series_is_not_taken_for_b_0() -> None:
    map_ = stack(vendor=Vendor.CANON, image_type=("DERIVED", "PRIMARY", "ADC"), first_number=9)
    instances = stack(b_value=0.0, vendor=Vendor.CANON)
    instances += stack(b_value=1500.0, first_number=5, vendor=Vendor.CANON) + map_
    assert [volume.b_value for volume in arrange(instances).volumes] == [0, 1500, None]


def test_an_unwritten_b_value_of_another_vendor_stays_unknown() -> None:
    instances = stack(vendor=Vendor.SIEMENS) + stack(b_value=1500.0, first_number=5, vendor=Vendor.SIEMENS)
    assert [volume.b_value for volume in arrange(instances).volumes] == [None, 1500]


def test_a_file_that_came_twice_counts_once() -> None:
    assert _uids(_scheme() + _scheme()) == _uids(_scheme())


def test_rounded_orientation_and_position_text_does_not_split_a_stack() -> None:
    instances = stack(6)
    frame = instances[2].frames[0]
    assert frame.position_mm
    x, y, z = frame.position_mm
    instances[2] = _with(instances[2], position_mm=(x + 0.004, y, z - 0.004), row=(0.99999995, 0.0003, 0.0))
    assert arrange(instances).shape == (6, 8, 10)


@pytest.mark.parametrize(
    ("instances", "reason"),
    [
        (stack(3) + stack(3, orientation=SAGITTAL, first_number=4), "mixes 2 slice orientations"),
        (stack(3) + stack(3, first_number=4, rows=16), "different matrix"),
        (stack(3)[:2] + stack(3, origin=(0.0, 4.0, 0.0), first_number=3)[2:], "shifted within their plane"),
        (stack(3, position_mm=None), "no position"),
        (stack(3, spacing_mm=None), "no pixel spacing"),
        ([], "no image"),
        ([replace(stack(1)[0], frames=())], "no image"),
        ([replace(stack(1)[0], problem="The mosaic does not say.")], "The mosaic does not say"),
    ],
)
def test_images_that_form_no_volumes_are_refused_with_a_reason(
    instances: list[InstanceFacts], reason: str
) -> None:
    with pytest.raises(GeometryProblem, match=reason):
        arrange(instances)


def test_a_series_exported_twice_is_taken_from_the_multi_frame_copy() -> None:
    frames = [one.frames[0] for one in _scheme()]
    path, uid = frames[0].path.with_name("enhanced.dcm"), "1.2.826.0.1.3680043.10.2.1.99"
    enhanced = replace(
        _scheme()[0],
        path=path,
        sop_instance_uid=uid,
        series=replace(_scheme()[0].series, sop_class_uid=EnhancedMRImageStorage),
        frames=tuple(replace(f, path=path, sop_instance_uid=uid, frame=n) for n, f in enumerate(frames)),
    )
    arranged = arrange([*_scheme(), enhanced])
    assert len(arranged.volumes) == 4
    assert {frame.path for volume in arranged.volumes for frame in volume.frames} == {path}


def test_a_screen_shot_in_the_series_is_left_out() -> None:
    shot = stack(1, first_number=50, position_mm=None)[0]
    shot = replace(shot, series=replace(shot.series, sop_class_uid=SecondaryCaptureImageStorage))
    assert _uids([shot, *_scheme()]) == _uids(_scheme())


def test_a_single_slice_has_its_thickness_as_step() -> None:
    arranged = arrange(stack(1, step_mm=5.0))
    assert arranged.shape == (1, 8, 10)
    assert np.linalg.norm(arranged.affine[:3, 2]) == pytest.approx(5.0)

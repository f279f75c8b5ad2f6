"""Whole small series of the systems that no public collection has, from files to facts (docs/scanners.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_headers import add_private, csa_header, mr_image, write
from pydicom.dataset import Dataset

from dicom_node.headers import arrange, read_instance, summarise
from rules.classify import SeriesClass, classify, obstacle
from rules.facts import Directionality, PhaseAxis
from rules.reasons import Code

SLICES = 4
# b-value in s/mm² and direction in patient LPS of three volumes
VOLUMES = ((0.0, None), (1000.0, (0.6, 0.0, 0.8)), (1000.0, (0.0, 1.0, 0.0)))
GE_ACQUISITION, GE_PARAMETERS = "GEMS_ACQU_01", "GEMS_PARM_01"
Direction = tuple[float, float, float] | None


def siemens_text(image: Dataset, b_value: float, direction: Direction) -> None:
    """Siemens V as a de-identification left it: numbers as text, doubles as bytes, all of them OB."""
    image.Manufacturer = "SIEMENS"
    values = {0x0C: ("OB", f"{b_value:g} ".encode()), 0x28: ("OB", struct.pack("<d", 20.0))}
    if direction:
        values[0x0E] = ("OB", struct.pack("<3d", *direction))
    add_private(image, 0x0019, "SIEMENS MR HEADER", values)


def siemens_csa(image: Dataset, b_value: float, direction: Direction) -> None:
    """Siemens V from before the 0019 elements: everything in the CSA header."""
    image.Manufacturer = "SIEMENS"
    fields = {
        "B_value": [b_value],
        "PhaseEncodingDirectionPositive": [1.0],
        "BandwidthPerPixelPhaseEncode": [20.0],
    }
    if direction:
        fields["DiffusionGradientDirection"] = list(direction)
    add_private(image, 0x0029, "SIEMENS CSA HEADER", {0x10: ("OB", csa_header(fields))})


def siemens_name(image: Dataset, b_value: float, direction: Direction) -> None:
    """Siemens V without private elements, as strict de-identification leaves it: a name with the b-value."""
    image.Manufacturer = "SIEMENS"
    image.SequenceName = f"*ep_b{b_value:g}" + ("#1" if direction else "")
    if direction:
        image.DiffusionGradientOrientation = list(direction)


def siemens_xa(image: Dataset, b_value: float, direction: Direction) -> None:
    """Siemens XA, one image a file, with the private elements of the V line alone."""
    image.Manufacturer = "Siemens Healthineers"
    values = {0x0C: ("IS", str(int(b_value)))}
    if direction:
        values[0x0E] = ("FD", list(direction))
    add_private(image, 0x0019, "SIEMENS MR HEADER", values)
    add_private(image, 0x0021, "SIEMENS MR SDI 02", {0x1C: ("IS", "1"), 0x53: ("FD", 20.0)})


def ge(image: Dataset, b_value: float, direction: Direction) -> None:
    """GE: image frame, where phase encoding runs along columns of a transverse slice."""
    image.Manufacturer = "GE MEDICAL SYSTEMS"
    vector = (0.0, 0.0, 0.0) if direction is None else (-direction[0], -direction[1], direction[2])
    add_private(image, 0x0043, GE_PARAMETERS, {0x39: ("IS", [1_000_000_000 + int(b_value), 8, 0, 0])})
    offsets = zip((0xBB, 0xBC, 0xBD), vector, strict=True)
    add_private(image, 0x0019, GE_ACQUISITION, {offset: ("DS", value) for offset, value in offsets})
    image.RectilinearPhaseEncodeReordering = "REVERSE_LINEAR"


def ge_rx27(image: Dataset, b_value: float, direction: Direction) -> None:
    """GE from release RX27: the public b-value too."""
    ge(image, b_value, direction)
    image.DiffusionBValue = b_value


def philips(image: Dataset, b_value: float, direction: Direction) -> None:
    """Philips with nothing but private elements, as an old release or a stripping PACS leaves them."""
    image.Manufacturer = "Philips Medical Systems"
    imaging = {0x03: ("FL", b_value), 0x13: ("SL", 63), 0x04: ("CS", "N" if direction is None else "O")}
    add_private(image, 0x2001, "Philips Imaging DD 001", imaging)
    offsets = zip((0xB0, 0xB1, 0xB2), direction or (0.0, 0.0, 0.0), strict=True)
    add_private(image, 0x2005, "Philips MR Imaging DD 001", {o: ("FL", value) for o, value in offsets})
    image.ScanningSequence = "SE"


def toshiba(image: Dataset, b_value: float, direction: Direction) -> None:
    """Toshiba: at b = 0 there is no element at all."""
    image.Manufacturer = "TOSHIBA_MEC"
    if direction:
        image.DiffusionBValue, image.DiffusionGradientOrientation = b_value, list(direction)


def canon_60(image: Dataset, b_value: float, direction: Direction) -> None:
    """Canon 6.0: the direction is a comment in the frame of the image, (column, row, slice)."""
    image.Manufacturer = "CANON_MEC"
    if direction:
        image.DiffusionBValue = b_value
        x, y, z = direction
        image.ImageComments = f"b={b_value:g}({-y:.3f},{-x:.3f},{z:.3f})"


def uih(image: Dataset, b_value: float, direction: Direction) -> None:
    """United Imaging, one image a file; the public direction is the one before the slice was tilted."""
    image.Manufacturer = "UIH"
    values = {0x09: ("FD", b_value or 1.25), 0x37: ("FD", list(direction or (0.0, 0.0, 0.0)))}
    add_private(image, 0x0065, "Image Private Header", {**values, 0x58: ("IS", "0")})
    image.DiffusionGradientOrientation = [1.0, 0.0, 0.0]


def public(manufacturer: str) -> Callable[[Dataset, float, Direction], None]:
    """A vendor that writes the public elements."""

    def put(image: Dataset, b_value: float, direction: Direction) -> None:
        image.Manufacturer = manufacturer
        image.DiffusionBValue = b_value
        image.DiffusionDirectionality = "DIRECTIONAL" if direction else "NONE"
        if direction:
            image.DiffusionGradientOrientation = list(direction)

    return put


SYSTEMS = {
    "siemens-v-text": siemens_text,
    "siemens-v-csa": siemens_csa,
    "siemens-v-name": siemens_name,
    "siemens-xa-private": siemens_xa,
    "ge": ge,
    "ge-rx27": ge_rx27,
    "philips-private": philips,
    "toshiba": toshiba,
    "canon-6.0": canon_60,
    "uih-classic": uih,
    "hitachi": public("Hitachi Medical Corporation"),
    "fujifilm": public("FUJIFILM Healthcare Corporation"),
}
POLARITY = {
    "siemens-v-csa": True,
    "siemens-xa-private": True,
    "ge": True,
    "ge-rx27": True,
    "uih-classic": True,
}
READOUT_S = dict.fromkeys(("siemens-v-text", "siemens-v-csa", "siemens-xa-private"), 7 / (20 * 8))


def series(system: str, phase: str = "COL", **elements: object) -> list[Dataset]:
    """Three volumes of four slices, an image a file; the numbers run slice by slice."""
    images = []
    for index, (b_value, direction) in enumerate(VOLUMES):
        for place in range(SLICES):
            made: dict[str, object] = {
                "ImagePositionPatient": [-7.0, -7.0, 2.0 * place],
                "InPlanePhaseEncodingDirection": phase,
                "PatientPosition": "HFS",
                "ScanningSequence": ["SE", "EP"],
                "AcquisitionTime": f"1200{index:02d}.{place}",
                "AcquisitionDate": "20240101",
                "InstanceNumber": 1 + place * len(VOLUMES) + index,
            }
            image = mr_image(1 + index * SLICES + place, **(made | elements))
            SYSTEMS[system](image, b_value, direction)
            images.append(image)
    return images


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_series_of_each_system_becomes_volumes_with_their_weighting(system: str, tmp_path: Path) -> None:
    instances = [read_instance(path) for path in write(tmp_path, *series(system))]
    arranged, facts = arrange(instances), summarise(instances)
    assert arranged.shape == (SLICES, 8, 8)
    assert [round(volume.b_value or 0, -1) for volume in arranged.volumes] == [0, 1000, 1000]
    assert [volume.directionality for volume in arranged.volumes[1:]] == [Directionality.DIRECTIONAL] * 2
    assert arranged.volumes[0].direction is None
    for volume, (_, direction) in zip(arranged.volumes[1:], VOLUMES[1:], strict=True):
        np.testing.assert_allclose(volume.direction, direction, atol=1e-3)
    assert facts.phase_encoding is not None
    assert facts.phase_encoding.axis is PhaseAxis.COLUMN
    assert facts.phase_encoding.increasing is POLARITY.get(system)
    assert facts.total_readout_s == (pytest.approx(READOUT_S[system]) if system in READOUT_S else None)
    assert classify(facts).series_class is SeriesClass.DWI


def test_a_siemens_xa_series_whose_b_values_were_lost_is_refused_with_that_reason(tmp_path: Path) -> None:
    """XA10 wrote none into its classic files; a console that de-identifies removes those of later ones."""
    images = series("siemens-xa-private", ImageType=["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"])
    for image in images:
        image.remove_private_tags()
    facts = summarise([read_instance(path) for path in write(tmp_path, *images)])
    found = classify(facts)
    assert found.series_class is SeriesClass.DWI
    stopped = obstacle(facts, found)
    assert stopped is not None
    assert stopped.code is Code.NO_B_VALUES


@pytest.mark.parametrize("system", ["ge", "ge-rx27", "canon-6.0"])
@pytest.mark.parametrize(
    "changed", [{"phase": "ROW"}, {"PatientPosition": "FFP"}, {"PatientPosition": "HFDR"}]
)
def test_where_a_conversion_is_not_checked_there_is_a_b_value_and_no_direction(
    system: str, changed: dict[str, str], tmp_path: Path
) -> None:
    instances = [read_instance(path) for path in write(tmp_path, *series(system, **changed))]
    facts = summarise(instances)
    frames = [frame for instance in instances for frame in instance.frames]
    assert {frame.direction for frame in frames} == {None}
    assert facts.geometry_problem == ""
    assert sorted(b or 0 for b in facts.b_values) == [0, 1000, 1000]


@pytest.mark.parametrize("position", ["HFS", "HFP", "FFS", "FFP", "HFDR", "HFDL", "FFDR", "FFDL"])
@pytest.mark.parametrize(
    "orientation",
    [
        (1, 0, 0, 0, 1, 0),
        (1, 0, 0, 0, 0, -1),
        (0, 1, 0, 0, 0, -1),
        (0.8, 0.6, 0, 0, 0, -1),
        (-1, 0, 0, 0, -1, 0),
    ],
)
def test_the_patients_position_turns_nothing(
    position: str, orientation: tuple[float, ...], tmp_path: Path
) -> None:
    """Positions and orientations are in the patient's frame already (PS3.3 C.7.6.2.1.1)."""
    normal = np.cross(orientation[:3], orientation[3:])
    images = [
        mr_image(
            n,
            PatientPosition=position,
            ImageOrientationPatient=list(orientation),
            ImagePositionPatient=list(np.array([4.0, 5.0, 6.0]) + 2.0 * n * normal),
        )
        for n in (1, 2, 3)
    ]
    arranged = arrange([read_instance(path) for path in write(tmp_path, *images)])
    np.testing.assert_allclose(arranged.affine[:3, 0], 2.0 * np.array(orientation[:3]), atol=1e-9)
    np.testing.assert_allclose(arranged.affine[:3, 1], 2.0 * np.array(orientation[3:]), atol=1e-9)
    np.testing.assert_allclose(arranged.affine[:3, 2], 2.0 * normal, atol=1e-9)


def test_two_acquisitions_in_one_series_are_repeats_where_they_lie_on_one_grid(tmp_path: Path) -> None:
    first, second = series("hitachi", AcquisitionNumber=1), series("hitachi", AcquisitionNumber=2)
    for image in second:
        image.SOPInstanceUID += ".2"
    instances = [read_instance(path) for path in write(tmp_path, *first, *second)]
    assert len(arrange(instances).volumes) == 2 * len(VOLUMES)
    for image in second:  # planned anew after the patient moved
        image.ImagePositionPatient[0] += 10
    moved = summarise([read_instance(path) for path in write(tmp_path, *first, *second)])
    assert "shifted within their plane" in moved.geometry_problem
    assert not moved.incomplete

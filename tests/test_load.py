"""Pixels become real-world values in the voxel where the patient has them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from made_headers import add_private, csa_header, mr_image, write
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from dicom_node.headers import GeometryProblem, HeaderError, InstanceFacts, Unreadable, read_instance
from dicom_node.load import load, load_reference


def _read(paths: list[Path]) -> list[InstanceFacts]:
    return [read_instance(path) for path in paths]


def _weighted(number: int, b_value: float, **elements: object) -> Dataset:
    """Slice 1 or 2 of the volume with this b-value."""
    position = [-7.0, -7.0, 2.0 * (1 + (number - 1) % 2)]
    return mr_image(number, DiffusionBValue=b_value, ImagePositionPatient=position, **elements)


def _scheme(folder: Path, *b_values: float) -> list[InstanceFacts]:
    """Two slices of each b-value."""
    images = [
        _weighted(1 + 2 * index + slice_, b_value)
        for index, b_value in enumerate(b_values)
        for slice_ in (0, 1)
    ]
    return _read(write(folder, *images))


def test_slope_and_intercept_are_those_of_the_slice(tmp_path: Path) -> None:
    images = [mr_image(n, RescaleSlope=float(n), RescaleIntercept=-float(n)) for n in (1, 2, 3)]
    loaded = load(_read(write(tmp_path, *images)))
    stored = np.arange(64, dtype=np.float32).reshape(8, 8)
    for n in (1, 2, 3):
        np.testing.assert_array_equal(loaded.voxels[0, n - 1], (stored + 100 * n) * n - n)
    assert loaded.voxels.dtype == np.float32


@pytest.mark.parametrize(("signed", "value"), [(1, -32768), (1, 32767), (0, 65535)])
def test_the_whole_range_of_16_bits_is_kept(signed: int, value: int, tmp_path: Path) -> None:
    dtype = np.int16 if signed else np.uint16
    images = [
        mr_image(n, PixelRepresentation=signed, PixelData=np.full((8, 8), value, dtype).tobytes())
        for n in (1, 2)
    ]
    assert np.all(load(_read(write(tmp_path, *images))).voxels == value)


def test_the_order_of_the_files_changes_nothing(tmp_path: Path) -> None:
    instances = _scheme(tmp_path, 0.0, 500.0, 1000.0)
    loaded, reversed_ = load(instances), load(instances[::-1])
    np.testing.assert_array_equal(loaded.voxels, reversed_.voxels)
    np.testing.assert_array_equal(loaded.affine, reversed_.affine)
    assert loaded.facts == reversed_.facts
    assert loaded.facts.b_values == (0, 500, 1000)


def test_a_volume_is_given_to_the_engine_with_its_grid(tmp_path: Path) -> None:
    loaded = load(_scheme(tmp_path, 0.0, 500.0))
    volume = loaded.volume(1)
    assert volume.shape == (2, 8, 8)
    assert volume.spacing_mm == pytest.approx((2.0, 2.0, 2.0))
    np.testing.assert_array_equal(volume.data.numpy(), loaded.voxels[1])


@pytest.mark.parametrize(
    ("b_values", "lowest"),
    [
        ((0.0, 1000.0, 0.0), (0, 2)),
        ((5.0, 0.0, 20.0, 50.0), (0, 1, 2)),
        ((50.0, 800.0, 52.0), (0, 2)),
        ((1000.0,), (0,)),
    ],
)
def test_the_lowest_shell(b_values: tuple[float, ...], lowest: tuple[int, ...], tmp_path: Path) -> None:
    assert load(_scheme(tmp_path, *b_values)).lowest_b() == lowest


def test_a_map_is_never_in_the_lowest_shell(tmp_path: Path) -> None:
    images = [_weighted(n, 800.0) for n in (1, 2)]
    images += [_weighted(n, 0.0, ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]) for n in (3, 4)]
    assert load(_read(write(tmp_path, *images))).lowest_b() == (0,)


def test_without_b_values_every_magnitude_volume_is_the_lowest_shell(tmp_path: Path) -> None:
    images = [
        mr_image(
            2 * echo + n,
            EchoTime=4.0,
            ImageType=["ORIGINAL", "PRIMARY", kind],
            ImagePositionPatient=[0, 0, n],
        )
        for echo, kind in enumerate("MP")
        for n in (1, 2)
    ]
    assert load(_read(write(tmp_path, *images))).lowest_b() == (0,)


def test_a_reference_is_the_first_magnitude_echo(tmp_path: Path) -> None:
    images = []
    for index, (echo, kind) in enumerate([(9.0, "M"), (4.0, "P"), (4.0, "M")]):
        for n in (1, 2):
            place = [0.0, 0.0, float(n)]
            number = 2 * index + n
            image_type = ["ORIGINAL", "PRIMARY", kind]
            images.append(mr_image(number, EchoTime=echo, ImageType=image_type, ImagePositionPatient=place))
    volume = load_reference(_read(write(tmp_path, *images)))
    assert volume.data[0, 0, 0] == 500  # mr_image writes 100 × its number into the first voxel
    assert volume.data[1, 0, 0] == 600


def test_a_series_of_phase_images_is_no_reference(tmp_path: Path) -> None:
    images = [mr_image(n, ImageType=["ORIGINAL", "PRIMARY", "P"]) for n in (1, 2)]
    with pytest.raises(GeometryProblem, match="no magnitude"):
        load_reference(_read(write(tmp_path, *images)))


def test_tiles_of_a_mosaic_become_slices(tmp_path: Path) -> None:
    tiles = np.arange(4 * 4 * 4, dtype=np.uint16).reshape(4, 4, 4)
    picture = np.block([[tiles[0], tiles[1]], [tiles[2], tiles[3]]])
    image = mr_image(Manufacturer="SIEMENS", ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    image.PixelData = picture.tobytes()
    add_private(image, 0x0019, "SIEMENS MR HEADER", {0x0A: ("US", 3)})
    csa = csa_header({"SliceNormalVector": (0.0, 0.0, -1.0)})
    add_private(image, 0x0029, "SIEMENS CSA HEADER", {0x10: ("OB", csa)})
    loaded = load(_read(write(tmp_path, image)))
    np.testing.assert_array_equal(loaded.voxels[0], tiles[2::-1])  # stacked against row × column
    np.testing.assert_allclose(loaded.affine @ (0, 0, 2, 1), (-3.0, -3.0, 2.0, 1.0))


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(2, 11),
    rows=st.integers(2, 5),
    columns=st.integers(2, 5),
    backwards=st.booleans(),
    turn=st.floats(-0.6, 0.6),
)
def test_a_mosaic_and_the_stack_of_its_slices_are_one_volume(
    count: int, rows: int, columns: int, backwards: bool, turn: float
) -> None:
    """Any number of slices, any tile, any tilt, stacked with or against row × column."""
    row = np.array([1.0, 0.0, 0.0])
    column = np.array([0.0, np.cos(turn), np.sin(turn)])
    normal = np.cross(row, column) * (-1 if backwards else 1)
    origin, step_mm, spacing = np.array([-5.0, 7.0, 3.0]), 3.0, (2.0, 1.5)
    slices = np.random.default_rng(count).integers(1, 4096, (count, rows, columns), dtype=np.uint16)
    across = int(np.ceil(np.sqrt(count)))
    picture = np.zeros((across * rows, across * columns), dtype=np.uint16)
    for k, one in enumerate(slices):
        top, left = (k // across) * rows, (k % across) * columns
        picture[top : top + rows, left : left + columns] = one
    shift = spacing[1] * columns * (across - 1) / 2 * row + spacing[0] * rows * (across - 1) / 2 * column
    plane = {
        "ImageOrientationPatient": [*row, *column],
        "PixelSpacing": list(spacing),
        "SpacingBetweenSlices": step_mm,
    }
    mosaic = mr_image(
        1,
        Rows=across * rows,
        Columns=across * columns,
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        Manufacturer="SIEMENS",
        ImagePositionPatient=list(origin - shift),
        PixelData=picture.tobytes(),
        **plane,
    )
    add_private(mosaic, 0x0019, "SIEMENS MR HEADER", {0x0A: ("US", count)})
    csa = csa_header({"SliceNormalVector": tuple(normal)})
    add_private(mosaic, 0x0029, "SIEMENS CSA HEADER", {0x10: ("OB", csa)})
    stack = [
        mr_image(
            k + 1,
            Rows=rows,
            Columns=columns,
            ImagePositionPatient=list(origin + k * step_mm * normal),
            PixelData=one.tobytes(),
            **plane,
        )
        for k, one in enumerate(slices)
    ]
    with tempfile.TemporaryDirectory() as folder:
        one = load(_read(write(Path(folder), mosaic)))
        other = load(_read(write(Path(folder), *stack)))
    np.testing.assert_array_equal(one.voxels, other.voxels)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-6)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
    ],
)
def test_every_transfer_syntax_gives_the_same_values(syntax: UID, tmp_path: Path) -> None:
    images = [mr_image(n) for n in (1, 2)]
    plain = load(_read(write(tmp_path, *images)))
    for image in images:
        if syntax == RLELossless:
            image.compress(syntax)
        elif not syntax.is_little_endian:
            image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
        image.file_meta.TransferSyntaxUID = syntax
        buffer = BytesIO()
        pydicom.dcmwrite(
            buffer,
            image,
            enforce_file_format=True,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
        )
        (tmp_path / f"{image.InstanceNumber:05d}.dcm").write_bytes(buffer.getvalue())
    instances = _read(sorted(tmp_path.iterdir()))
    assert {instance.transfer_syntax_uid for instance in instances} == {syntax}
    np.testing.assert_array_equal(load(instances).voxels, plain.voxels)


@pytest.mark.parametrize(("name", "refused"), [("parser-fixtures", "Unreadable"), ("vendor-mini", "NoImage")])
def test_no_strange_file_escapes_with_a_traceback(
    name: str, refused: str, data_set: Callable[[str], Path]
) -> None:
    outcomes = Counter[str]()
    for path in sorted(path for path in data_set(name).rglob("*") if path.is_file()):
        try:
            load([read_instance(path)])
        except HeaderError as refusal:
            outcomes[type(refusal).__name__] += 1
        else:
            outcomes["loaded"] += 1
    assert outcomes["loaded"] > 10
    assert outcomes[refused] >= 1


def test_the_same_series_in_classic_and_enhanced_files_is_loaded_once(
    data_set: Callable[[str], Path],
) -> None:
    classic = sorted((data_set("canon-classic") / "3000").iterdir())
    enhanced = sorted((data_set("canon-enhanced") / "3000").iterdir())
    both = load(_read(classic + enhanced))
    assert both.voxels.shape == (13, 40, 80, 80)
    np.testing.assert_array_equal(both.voxels, load(_read(classic)).voxels)


def test_pixels_cut_short_are_unreadable(tmp_path: Path) -> None:
    image = mr_image(1)
    (path,) = write(tmp_path, image)
    path.write_bytes(path.read_bytes()[:-40])
    instance = read_instance(path)
    with pytest.raises(Unreadable, match=r"^00001\.dcm is cut short"):
        load([instance])


@pytest.mark.parametrize("name", ["parser-fixtures", "philips-dwi-noref", "siemens-xa61-noref", "ge-phantom"])
def test_pixels_read_where_they_lie_are_those_that_pydicom_decodes(
    name: str, data_set: Callable[[str], Path]
) -> None:
    """Signed and unsigned, 12 of 16 bits, classic and multi-frame, implicit and explicit VR."""
    compared = 0
    files = sorted(path for path in data_set(name).rglob("*") if path.is_file())
    for path in files[:: 1 + len(files) // 60]:
        try:
            instance = read_instance(path)
            if instance.stored is None or not instance.frames:
                continue
            theirs = next(iter_pixels(path, indices=[instance.stored.frames - 1]))
        except (HeaderError, ValueError):  # some of the fixtures are broken on purpose
            continue
        np.testing.assert_array_equal(instance.stored.frame(path, instance.stored.frames - 1), theirs)
        compared += 1
    assert compared > 5


@pytest.mark.parametrize(("signed", "bits"), [(0, 12), (1, 12), (0, 16), (1, 16)])
def test_bits_that_are_no_part_of_the_value_are_left_out(signed: int, bits: int, tmp_path: Path) -> None:
    image = mr_image(1, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed)
    words = np.arange(64, dtype=np.uint16) * 1021
    image.PixelData = words.tobytes()
    loaded = load(_read(write(tmp_path, image)))
    values = words.astype(np.int64) % 2**bits
    if signed:
        values -= 2**bits * (values >= 2 ** (bits - 1))
    np.testing.assert_array_equal(loaded.voxels.ravel(), values)


def test_a_file_that_vanished_is_unreadable(tmp_path: Path) -> None:
    (path,) = write(tmp_path, mr_image(1))
    instance = read_instance(path)
    path.unlink()
    with pytest.raises(Unreadable, match="cannot be opened"):
        load([instance])


def test_colour_carries_no_values(tmp_path: Path) -> None:
    image = mr_image(1, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    image.PixelData = bytes(8 * 8 * 3 * 2)
    instances = _read(write(tmp_path, image))
    for loader in (load, load_reference):
        with pytest.raises(GeometryProblem, match="colour"):
            loader(instances)


def test_a_missing_slice_is_never_filled(tmp_path: Path) -> None:
    with pytest.raises(GeometryProblem, match=r"Volume 2 \(b=500\) lacks the slice at 4\.0 mm"):
        load(_scheme(tmp_path, 0.0, 500.0)[:-1])


@pytest.mark.parametrize(
    ("study", "folder"),
    [
        ("prostatex-0000", "3.000000-t2tsesag-87368"),
        ("prostatex-0000", "5.000000-t2tsecor-03471"),
        ("prostatex-0218", "5.000000-t2tsetra320p2-09906"),
        ("siemens-xa30-classic", "6001_anat-T1w_acq-tfl"),
        ("ge-phantom", "05_3D_Ax_T1_MP_RAGE_R22"),
    ],
)
def test_simpleitk_reads_the_same_value_at_every_voxel_centre(
    study: str, folder: str, data_set: Callable[[str], Path]
) -> None:
    paths = sorted((data_set(study) / folder).iterdir())
    ours = load(_read(paths))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(paths[0].parent))
    theirs = sitk.ReadImage(names, sitk.sitkFloat32)
    grid = sitk.GetImageFromArray(ours.voxels[0])
    spacing = np.linalg.norm(ours.affine[:3, :3], axis=0)
    grid.SetSpacing(spacing.tolist())
    grid.SetOrigin(ours.affine[:3, 3].tolist())
    grid.SetDirection((ours.affine[:3, :3] / spacing).ravel().tolist())
    resampled = sitk.GetArrayFromImage(
        sitk.Resample(theirs, grid, sitk.Transform(), sitk.sitkNearestNeighbor)
    )
    np.testing.assert_array_equal(resampled, ours.voxels[0])


def test_an_enhanced_series_is_decoded_frame_by_frame(data_set: Callable[[str], Path]) -> None:
    (path,) = (data_set("canon-enhanced") / "3000").iterdir()
    loaded = load(_read([path]))
    assert loaded.voxels.shape == (13, 40, 80, 80)
    assert loaded.lowest_b() == (0,)
    assert loaded.arrangement.volumes[3].frames[5].frame == 3 * 40 + 5

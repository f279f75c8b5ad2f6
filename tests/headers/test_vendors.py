"""Each vendor's way of writing b-value, direction, phase encoding, readout and mosaic."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from made_headers import AXIAL, add_private, csa_header, dataset_of, header, oriented
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node.headers import GeometryProblem
from dicom_node.headers.public import Diffusion, Plane
from dicom_node.headers.vendors import READERS, vendor_of
from rules.facts import Directionality, PhaseAxis, PhaseEncoding, Vendor

MR_HEADER = "SIEMENS MR HEADER"
XA_IMAGE = "SIEMENS MR SDI 02"
CSA = "SIEMENS CSA HEADER"
GE_PARAMETERS = "GEMS_PARM_01"
GE_ACQUISITION = "GEMS_ACQU_01"
UIH_IMAGE = "Image Private Header"
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
TILTED = (1.0, 0.0, 0.0, 0.0, 0.8, 0.6)


def _diffusion(
    vendor: Vendor, made: Dataset, plane: Plane | None = None, implicit: bool = False
) -> Diffusion:
    return READERS[vendor].diffusion(header(made, implicit), plane or oriented())


def _phase_encoding(vendor: Vendor, made: Dataset) -> PhaseEncoding | None:
    return READERS[vendor].phase_encoding(header(made))


@pytest.mark.parametrize(
    ("manufacturer", "vendor"),
    [
        ("SIEMENS", Vendor.SIEMENS),
        ("Siemens Healthineers", Vendor.SIEMENS),
        ("GE MEDICAL SYSTEMS", Vendor.GE),
        ("Philips Medical Systems", Vendor.PHILIPS),
        ("TOSHIBA_MEC", Vendor.CANON),
        ("CANON_MEC", Vendor.CANON),
        ("UIH", Vendor.UIH),
        ("Hitachi Medical Corporation", Vendor.HITACHI),
        ("FUJIFILM Healthcare Corporation", Vendor.HITACHI),
        ("Hyperfine Research", Vendor.OTHER),
        ("", Vendor.OTHER),
    ],
)
def test_the_vendor_is_known_by_the_beginning_of_its_name(manufacturer: str, vendor: Vendor) -> None:
    assert vendor_of(manufacturer) is vendor


# -- public


def test_public_diffusion_elements_are_enough() -> None:
    made = dataset_of({"DiffusionBValue": 700.0, "DiffusionGradientOrientation": [0.0, 0.0, 2.0]})
    assert _diffusion(Vendor.OTHER, made) == Diffusion(
        700.0, (0.0, 0.0, 1.0), Directionality.DIRECTIONAL, "DiffusionBValue (0018,9087)"
    )


def test_a_direction_beside_b_0_is_no_direction() -> None:
    """Philips writes (0.577, 0.577, 0.577) beside b = 0.001."""
    made = dataset_of({"DiffusionBValue": 0.001, "DiffusionGradientOrientation": [0.577, 0.577, 0.577]})
    found = _diffusion(Vendor.PHILIPS, made)
    assert (found.direction, found.directionality) == (None, Directionality.NONE)


def test_a_weighted_image_with_a_zero_vector_is_a_trace_image() -> None:
    made = dataset_of({"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": [0.0, 0.0, 0.0]})
    assert _diffusion(Vendor.PHILIPS, made).directionality is Directionality.ISOTROPIC


@pytest.mark.parametrize(
    ("written", "axis"),
    [("ROW", PhaseAxis.ROW), ("COL", PhaseAxis.COLUMN), ("COLUMN", PhaseAxis.COLUMN), ("OTHER", None)],
)
def test_the_phase_axis_is_row_or_column_in_either_spelling(written: str, axis: PhaseAxis | None) -> None:
    found = _phase_encoding(Vendor.PHILIPS, dataset_of({"InPlanePhaseEncodingDirection": written}))
    assert (found.axis if found else None) is axis
    assert found is None or found.increasing is None  # Philips does not tell the polarity


# -- Siemens


def test_siemens_v_keeps_diffusion_in_group_0019() -> None:
    made = add_private(
        Dataset(),
        0x0019,
        MR_HEADER,
        {0x0C: ("IS", 1000), 0x0D: ("CS", "DIRECTIONAL"), 0x0E: ("FD", [0.0, 0.6, -0.8])},
    )
    found = _diffusion(Vendor.SIEMENS, made)
    assert found.b_value == 1000
    assert found.direction == pytest.approx((0.0, 0.6, -0.8))
    assert found.source == "Siemens (0019,100C)"


def test_de_identified_siemens_elements_in_ob_are_read() -> None:
    values = {0x0C: ("OB", b"400 "), 0x0D: ("OB", b"ISOTROPIC "), 0x0E: ("OB", struct.pack("<3d", 1, 0, 0))}
    found = _diffusion(Vendor.SIEMENS, add_private(Dataset(), 0x0019, MR_HEADER, values))
    assert (found.b_value, found.directionality, found.direction) == (400, Directionality.ISOTROPIC, None)


def test_the_public_b_value_wins_unless_it_is_0() -> None:
    private = {0x0C: ("IS", 990)}
    for public, expected in ((1000.0, 1000), (0.0, 990)):
        made = add_private(dataset_of({"DiffusionBValue": public}), 0x0019, MR_HEADER, private)
        assert _diffusion(Vendor.SIEMENS, made).b_value == expected


def test_a_siemens_trace_image_has_no_direction_whatever_its_header_copies() -> None:
    values = {0x0C: ("IS", 800), 0x0D: ("CS", "DIRECTIONAL"), 0x0E: ("FD", [1.0, 0.0, 0.0])}
    made = add_private(
        dataset_of({"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]}), 0x0019, MR_HEADER, values
    )
    found = _diffusion(Vendor.SIEMENS, made)
    assert (found.direction, found.directionality) == (None, Directionality.ISOTROPIC)


@pytest.mark.parametrize(
    ("name", "b_value"),
    [("*ep_b1000#12", 1000), ("ep_b50t", 50), ("re_b0", 0), ("ep_b0_800", None), ("ep2d", None)],
)
def test_the_sequence_name_is_the_last_resort_for_a_siemens_b_value(name: str, b_value: float | None) -> None:
    assert _diffusion(Vendor.SIEMENS, dataset_of({"SequenceName": name})).b_value == b_value


@pytest.mark.parametrize(("written", "increasing", "bids"), [(1, True, "j-"), (0, False, "j")])
def test_siemens_polarity_xa_and_csa(written: int, increasing: bool, bids: str) -> None:
    xa = add_private(
        dataset_of({"InPlanePhaseEncodingDirection": "COL"}), 0x0021, XA_IMAGE, {0x1C: ("IS", written)}
    )
    csa = csa_header({"PhaseEncodingDirectionPositive": [written]})
    v = add_private(dataset_of({"InPlanePhaseEncodingDirection": "COL"}), 0x0029, CSA, {0x10: ("OB", csa)})
    for made in (xa, v):
        found = _phase_encoding(Vendor.SIEMENS, made)
        assert found is not None
        assert (found.increasing, found.bids) == (increasing, bids)


def test_siemens_readout_from_the_bandwidth_per_pixel() -> None:
    made = add_private(Dataset(), 0x0019, MR_HEADER, {0x28: ("FD", 20.0)})
    readout = READERS[Vendor.SIEMENS].readout(header(made), lines=100)
    assert readout is not None
    assert readout.seconds == pytest.approx(99 / (20.0 * 100))


def _mosaic(normal: tuple[float, ...] | None, orientation: tuple[float, ...] = AXIAL) -> Dataset:
    """A 2 × 2 mosaic of 4-line, 6-column tiles that holds three slices."""
    made = dataset_of(
        {
            "ImageType": ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE", "ND", "MOSAIC"],
            "Rows": 8,
            "Columns": 12,
            "PixelSpacing": [2.0, 3.0],
            "SpacingBetweenSlices": 5.0,
            "ImagePositionPatient": [10.0, 20.0, 30.0],
            "ImageOrientationPatient": list(orientation),
        }
    )
    add_private(made, 0x0019, MR_HEADER, {0x0A: ("US", 3)})
    if normal:
        add_private(made, 0x0029, CSA, {0x10: ("OB", csa_header({"SliceNormalVector": normal}))})
    return made


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_mosaic_slices_follow_the_slice_normal(sign: float) -> None:
    tiling = READERS[Vendor.SIEMENS].tiling(header(_mosaic((0.0, 0.0, sign))), ("MOSAIC",), oriented())
    assert tiling is not None
    assert (tiling.rows, tiling.columns, tiling.tiles_across) == (4, 6, 2)
    first = np.array([10.0 + 3.0 * (12 - 6) / 2, 20.0 + 2.0 * (8 - 4) / 2, 30.0])
    expected = [first + np.array([0.0, 0.0, sign * 5.0 * k]) for k in range(3)]
    np.testing.assert_allclose(tiling.positions_mm, expected)


def test_a_transverse_mosaic_without_csa_is_stacked_along_row_cross_column() -> None:
    tiling = READERS[Vendor.SIEMENS].tiling(header(_mosaic(None)), ("MOSAIC",), oriented())
    assert tiling is not None
    assert [position[2] for position in tiling.positions_mm] == [30.0, 35.0, 40.0]


def test_a_sagittal_mosaic_without_csa_is_refused() -> None:
    with pytest.raises(GeometryProblem, match="in which order its slices lie"):
        READERS[Vendor.SIEMENS].tiling(header(_mosaic(None, SAGITTAL)), ("MOSAIC",), oriented(SAGITTAL))


def test_a_mosaic_that_does_not_tell_its_slices_is_refused() -> None:
    made = _mosaic((0.0, 0.0, 1.0))
    del made[0x0019100A]
    with pytest.raises(GeometryProblem, match="how many slices"):
        READERS[Vendor.SIEMENS].tiling(header(made), ("MOSAIC",), oriented())


def _stripped(matrix: str = "3p*6 ", percent: float = 66.7, **elements: object) -> Dataset:
    """A mosaic of 2 × 2 tiles of 4 × 6 that de-identification left without CSA header and slice number."""
    made = _mosaic(None)
    del made[0x0019100A]
    made.InPlanePhaseEncodingDirection = "COL"
    made.PercentPhaseFieldOfView = percent
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return add_private(made, 0x0051, MR_HEADER, {0x0B: ("OB", matrix.encode())})


def _picture(tiles: int) -> np.ndarray:
    picture = np.zeros((8, 12), dtype=np.uint16)
    for tile in range(tiles):
        picture[4 * (tile // 2) + 1, 6 * (tile % 2) + 2] = 1
    return picture


@pytest.mark.parametrize("tiles", [2, 3, 4])
def test_the_slices_of_a_stripped_mosaic_are_counted_in_its_picture(tiles: int) -> None:
    tiling = READERS[Vendor.SIEMENS].tiling(
        header(_stripped()), ("MOSAIC",), oriented(), lambda: _picture(tiles)
    )
    assert tiling is not None
    assert (tiling.rows, tiling.columns, len(tiling.positions_mm)) == (4, 6, tiles)


@pytest.mark.parametrize(
    ("made", "tiles"),
    [
        (_stripped(), 1),  # one slice would need no mosaic of four
        (_stripped(), 0),
        (_stripped("3p*5 "), 4),  # 12 columns are not tiles of 5
        (_stripped("3p*12 "), 4),  # one tile across, and two down
        (_stripped(percent=100.0), 4),
        (_stripped("6*3"), 4),
        (_stripped(InPlanePhaseEncodingDirection=""), 4),
    ],
)
def test_a_stripped_mosaic_whose_parts_do_not_agree_is_refused(made: Dataset, tiles: int) -> None:
    with pytest.raises(GeometryProblem, match="does not prove its layout"):
        READERS[Vendor.SIEMENS].tiling(header(made), ("MOSAIC",), oriented(), lambda: _picture(tiles))


def test_a_mosaic_that_does_not_divide_into_tiles_is_refused() -> None:
    made = _mosaic((0.0, 0.0, 1.0))
    made.Rows = 9
    with pytest.raises(GeometryProblem, match="12 × 9"):
        READERS[Vendor.SIEMENS].tiling(header(made), ("MOSAIC",), oriented())


def test_a_damaged_csa_header_is_a_missing_one() -> None:
    damaged = csa_header({"PhaseEncodingDirectionPositive": [1.0]})[:40]
    made = add_private(
        dataset_of({"InPlanePhaseEncodingDirection": "ROW"}), 0x0029, CSA, {0x10: ("OB", damaged)}
    )
    found = _phase_encoding(Vendor.SIEMENS, made)
    assert found is not None
    assert found.increasing is None


# -- GE


def _ge(
    b_values: object, vector: tuple[float, ...] = (1.0, 0.0, 0.0), vr: str = "IS", **elements: object
) -> Dataset:
    made = dataset_of({"PatientPosition": "HFS", "InPlanePhaseEncodingDirection": "COL", **elements})
    add_private(made, 0x0043, GE_PARAMETERS, {0x39: (vr, b_values)})
    offsets = (0xBB, 0xBC, 0xBD)
    return add_private(
        made, 0x0019, GE_ACQUISITION, {o: ("DS", v) for o, v in zip(offsets, vector, strict=True)}
    )


@pytest.mark.parametrize(
    ("vr", "stored"),
    [
        ("IS", [1000001000, 8, 0, 0]),
        ("IS", [1000, 8, 0, 0]),
        ("UN", b"1000\\8\\0\\0"),
        ("OB", b"1000001000\\8\\0\\0 "),
    ],
)
def test_ge_b_values_lose_the_offset_of_10_to_the_9(vr: str, stored: object) -> None:
    assert _diffusion(Vendor.GE, _ge(stored, vr=vr)).b_value == 1000


def test_a_ge_direction_turns_from_the_image_into_the_patient() -> None:
    plane = oriented(TILTED)
    found = _diffusion(Vendor.GE, _ge([1000, 8, 0, 0], (0.0, 1.0, 0.0)), plane)
    assert found.direction is not None
    assert abs(np.dot(found.direction, plane.column)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "changed",
    [{"PatientPosition": "FFS"}, {"PatientPosition": ""}, {"InPlanePhaseEncodingDirection": "ROW"}],
)
def test_a_ge_direction_that_nobody_validated_is_not_given(changed: dict[str, str]) -> None:
    found = _diffusion(Vendor.GE, _ge([1000, 8, 0, 0], **changed))
    assert (found.b_value, found.direction, found.directionality) == (1000, None, Directionality.DIRECTIONAL)


def test_a_sagittal_ge_direction_is_not_given() -> None:
    assert _diffusion(Vendor.GE, _ge([1000, 8, 0, 0]), oriented(SAGITTAL)).direction is None


def test_shorter_ge_gradients_mean_smaller_b_values() -> None:
    found = _diffusion(Vendor.GE, _ge([2000, 8, 0, 0], (0.0, 0.0, np.sqrt(0.5))))
    assert found.b_value == 1000
    assert found.direction == pytest.approx((0.0, 0.0, 1.0))


def test_from_rx27_on_ge_writes_the_public_b_value_and_it_wins() -> None:
    public = _ge([1000001000, 8, 0, 0], (0.0, 0.0, 1.0), DiffusionBValue=1000.0)
    found = _diffusion(Vendor.GE, public)
    assert (found.b_value, found.source) == (1000, "DiffusionBValue (0018,9087)")
    empty = _ge([1000000800, 8, 0, 0], (0.0, 0.0, 1.0), DiffusionBValue=0.0)
    assert (_diffusion(Vendor.GE, empty).b_value, _diffusion(Vendor.GE, empty).source) == (
        800,
        "GE (0043,1039)",
    )
    b0 = _ge([1000000000, 8, 0, 0], (0.0, 0.0, 0.0), DiffusionBValue=0.0)
    assert _diffusion(Vendor.GE, b0).b_value == 0


def test_a_ge_tensor_image_without_gradient_is_b_0() -> None:
    made = add_private(_ge([1000, 8, 0, 0], (0.0, 0.0, 0.0)), 0x0021, "GEMS_RELA_01", {0x5A: ("SL", 16)})
    assert _diffusion(Vendor.GE, made).b_value == 0


def test_ge_names_its_t2_and_trace_images() -> None:
    t2 = _ge([1000, 8, 0, 0])
    trace = _ge([1000, 8, 0, 0], (0.0, 0.0, 0.0))
    for made, code in ((t2, 14), (trace, 19)):
        add_private(made, 0x0043, GE_PARAMETERS, {0x30: ("SS", code)})
    assert _diffusion(Vendor.GE, t2).b_value == 0
    found = _diffusion(Vendor.GE, trace)
    assert (found.b_value, found.directionality) == (1000, Directionality.ISOTROPIC)


@pytest.mark.parametrize(
    ("order", "increasing"), [("REVERSE_LINEAR", True), ("LINEAR", False), ("CENTRIC", None), ("", None)]
)
def test_ge_polarity_from_the_reordering_of_an_epi(order: str, increasing: bool | None) -> None:
    made = _ge([0, 0, 0, 0], ScanningSequence=["EP", "SE"], RectilinearPhaseEncodeReordering=order)
    found = _phase_encoding(Vendor.GE, made)
    assert found is not None
    assert found.increasing is increasing


def test_ge_readout_undoes_acceleration_and_partial_fourier() -> None:
    """128 lines, R = 1.5, partial Fourier, 636 µs."""
    made = dataset_of({"AcquisitionMatrix": [128, 0, 0, 128], "ScanOptions": ["EPI_GEMS", "PFF"]})
    add_private(made, 0x0043, GE_PARAMETERS, {0x2C: ("SS", 636), 0x83: ("DS", [0.666667, 1.0])})
    readout = READERS[Vendor.GE].readout(header(made), lines=128)
    assert readout is not None
    assert readout.seconds == pytest.approx(0.055332, abs=1e-6)


# -- Philips


def test_philips_names_isotropic_images_by_a_letter() -> None:
    values = {0x03: ("FL", 1000.0), 0x04: ("CS", "I")}
    found = _diffusion(Vendor.PHILIPS, add_private(Dataset(), 0x2001, "Philips Imaging DD 001", values))
    assert (found.b_value, found.directionality) == (1000, Directionality.ISOTROPIC)


def test_a_philips_direction_that_only_the_private_elements_have() -> None:
    private = {0xB0: ("FL", 0.6), 0xB1: ("FL", 0.0), 0xB2: ("FL", -0.8)}
    made = add_private(dataset_of({"DiffusionBValue": 1000.0}), 0x2005, "Philips MR Imaging DD 001", private)
    for implicit in (False, True):
        found = _diffusion(Vendor.PHILIPS, made, implicit=implicit)
        assert found.direction == pytest.approx((0.6, 0.0, -0.8))
    made.DiffusionGradientOrientation = [0.0, 1.0, 0.0]
    assert _diffusion(Vendor.PHILIPS, made).direction == (0.0, 1.0, 0.0)


def test_the_order_of_philips_volumes() -> None:
    made = add_private(Dataset(), 0x2005, "Philips MR Imaging DD 005", {0x12: ("IS", 2), 0x13: ("IS", 14)})
    assert READERS[Vendor.PHILIPS].volume_order(header(made)) == (2, 14)
    add_private(made, 0x2005, "Philips MR Imaging DD 006", {0x96: ("IS", 9)})
    assert READERS[Vendor.PHILIPS].volume_order(header(made)) == (9,)


def test_a_philips_epi_calls_itself_se_and_has_an_epi_factor() -> None:
    made = add_private(
        dataset_of({"ScanningSequence": "SE"}), 0x2001, "Philips Imaging DD 001", {0x13: ("SL", 63)}
    )
    reader = READERS[Vendor.PHILIPS]
    assert reader.echo_planar(header(made)) is True
    assert reader.epi_factor(header(made)) == 63
    assert reader.echo_planar(header(dataset_of({"ScanningSequence": "SE"}))) is False


# -- Canon, UIH, Hitachi


def test_old_canon_releases_write_the_b_value_as_a_comment() -> None:
    found = _diffusion(Vendor.CANON, dataset_of({"ImageComments": "b=1500(0.445,0.000,0.895)"}))
    assert (found.b_value, found.direction) == (1500, None)  # that direction's frame is not validated
    public = dataset_of({"ImageComments": "b=1500(1,0,0)", "DiffusionBValue": 700.0})
    assert _diffusion(Vendor.CANON, public).b_value == 700


def _canon(comment: str, **elements: object) -> Dataset:
    made = {"PatientPosition": "HFS", "InPlanePhaseEncodingDirection": "COL", "DiffusionBValue": 1500.0}
    return dataset_of({**made, "ImageComments": comment, **elements})


def test_a_canon_direction_in_the_comment_turns_from_the_image_into_the_patient() -> None:
    """Order and signs are those that dcm2niix gives for such a file (tests/peers/test_load_dcm2niix.py)."""
    plane = oriented(TILTED)
    found = _diffusion(Vendor.CANON, _canon("b=1500(0.000,1.000,0.000)"), plane)
    assert found.direction == pytest.approx(np.negative(plane.row))
    found = _diffusion(Vendor.CANON, _canon("b=1500(0.600,0.000,-0.800)"), plane)
    assert found.direction == pytest.approx(np.dot(-0.6, plane.column) + np.dot(-0.8, plane.normal), abs=1e-6)
    assert found.source == "DiffusionBValue (0018,9087)"


@pytest.mark.parametrize(
    "changed", [{"PatientPosition": "FFS"}, {"InPlanePhaseEncodingDirection": "ROW"}, {"PatientPosition": ""}]
)
def test_a_canon_comment_that_nobody_validated_gives_no_direction(changed: dict[str, str]) -> None:
    found = _diffusion(Vendor.CANON, _canon("b=1500(0.000,1.000,0.000)", **changed))
    assert (found.b_value, found.direction) == (1500, None)


def test_the_public_canon_direction_wins_and_a_trace_comment_has_none() -> None:
    both = _canon("b=1500(0.000,1.000,0.000)", DiffusionGradientOrientation=[0.0, 0.0, 1.0])
    assert _diffusion(Vendor.CANON, both).direction == (0.0, 0.0, 1.0)
    trace = _diffusion(Vendor.CANON, _canon("b=1500(0.000,0.000,0.000)", PatientPosition="FFS"))
    assert (trace.direction, trace.directionality) == (None, Directionality.ISOTROPIC)


def test_canon_gradient_correction() -> None:
    assert (
        READERS[Vendor.CANON].gradient_nonlinearity(header(Dataset()), ("ORIGINAL", "PRIMARY", "GDC"))
        == "DIS2D"
    )


def test_a_uih_direction_is_private_and_in_the_frame_of_the_image() -> None:
    plane = oriented(TILTED)
    made = dataset_of({"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": [1.0, 0.0, 0.0]})
    add_private(made, 0x0065, UIH_IMAGE, {0x09: ("FD", 929.75), 0x37: ("FD", [0.0, 0.0, 1.0])})
    for implicit in (False, True):
        found = _diffusion(Vendor.UIH, made, plane, implicit)
        assert found.b_value == 929.75
        assert found.direction == pytest.approx(plane.normal)


def test_the_b_0_of_uih_is_not_quite_0() -> None:
    made = add_private(Dataset(), 0x0065, UIH_IMAGE, {0x09: ("FD", 1.25), 0x37: ("FD", [0.0, 0.0, 0.0])})
    found = _diffusion(Vendor.UIH, made)
    assert (found.b_value, found.directionality) == (1.25, Directionality.NONE)


@pytest.mark.parametrize(("written", "increasing"), [(1, False), (0, True)])
def test_uih_polarity_has_the_inverse_sense(written: int, increasing: bool) -> None:
    made = add_private(
        dataset_of({"InPlanePhaseEncodingDirection": "COL"}), 0x0065, UIH_IMAGE, {0x58: ("IS", written)}
    )
    found = _phase_encoding(Vendor.UIH, made)
    assert found is not None
    assert found.increasing is increasing


@pytest.mark.parametrize("implicit", [False, True])
def test_a_uih_grid_says_where_each_slice_lies(implicit: bool) -> None:
    places = [(1.0, 2.0, 3.0 * k) for k in range(5)]
    items = [dataset_of({"ImagePositionPatient": list(place)}) for place in places]
    made = add_private(
        dataset_of({"Rows": 8, "Columns": 12}), 0x0065, UIH_IMAGE, {0x51: ("SQ", Sequence(items))}
    )
    tiling = READERS[Vendor.UIH].tiling(
        header(made, implicit), ("ORIGINAL", "PRIMARY", "M", "VFRAME"), oriented()
    )
    assert tiling is not None
    assert (tiling.rows, tiling.columns, tiling.tiles_across) == (4, 4, 3)
    assert tiling.positions_mm == tuple(places)


def test_a_uih_grid_without_its_positions_is_refused() -> None:
    with pytest.raises(GeometryProblem, match="0065,1051"):
        READERS[Vendor.UIH].tiling(header(dataset_of({"Rows": 8, "Columns": 12})), ("VFRAME",), oriented())


def test_a_weighted_hitachi_image_called_se_may_still_be_an_epi() -> None:
    reader = READERS[Vendor.HITACHI]
    assert (
        reader.echo_planar(header(dataset_of({"ScanningSequence": "SE", "DiffusionBValue": 1000.0}))) is None
    )
    assert reader.echo_planar(header(dataset_of({"ScanningSequence": "SE"}))) is False
    assert reader.echo_planar(header(dataset_of({"ScanningSequence": ["SE", "EP"]}))) is True

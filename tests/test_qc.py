from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from quick_correction import coarse_head

from correction import Volume
from correction.phantom import PhantomCase
from dicom_node.qc import EDGE_COLOUR, QcImages, reason_lines, write_qc


@pytest.fixture(scope="module")
def case() -> PhantomCase:
    return coarse_head()


def images_of(case: PhantomCase, reference: Volume | None = None) -> QcImages:
    after = case.undistorted
    return QcImages(
        reference=reference or after,
        seen=np.ones_like(case.tissue.numpy()),
        before=case.b0,
        after=after,
        shift_mm=case.displacement_mm.norm(dim=0).numpy(),
        mask=case.tissue.numpy(),
    )


def written(images: QcImages, path: Path, reasons: Sequence[str] = ()) -> np.ndarray:
    write_qc(path, images, title="title", reasons=reasons, footnote="footnote")
    return imread(path)[..., :3]


def yellow(picture: np.ndarray) -> np.ndarray:
    """Pixels in which the colour of the edges prevails."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    return (red > 0.6) & (green > 0.45) & (blue < 0.5 * red)


def six(picture: np.ndarray) -> list[list[np.ndarray]]:
    """The picture in its two rows (before, after) and three columns (axial, coronal, sagittal)."""
    return [np.array_split(row, 3, axis=1) for row in np.array_split(picture, 2, axis=0)]


def test_the_picture_has_edges_over_three_views_before_and_after(case: PhantomCase, tmp_path: Path) -> None:
    picture = written(images_of(case), tmp_path / "qc.png")
    assert min(picture.shape[:2]) > 600
    for row in six(picture):
        for view in row:
            assert yellow(view).mean() > 0.005
            grey = view[~yellow(view)]
            assert grey.std() > 0.05  # an image below the edges
    assert EDGE_COLOUR[2] < 0.5 * EDGE_COLOUR[0]


def test_the_edges_are_the_reference_s_and_so_the_same_before_and_after(
    case: PhantomCase, tmp_path: Path
) -> None:
    before, after = six(written(images_of(case), tmp_path / "qc.png"))
    for above, below in zip(before, after, strict=True):
        assert yellow(above).sum() == pytest.approx(yellow(below).sum(), rel=0.1)


def test_before_and_after_show_different_images(case: PhantomCase, tmp_path: Path) -> None:
    images = images_of(case)
    same = replace(images, after=images.before)
    assert not np.array_equal(written(images, tmp_path / "a.png"), written(same, tmp_path / "b.png"))


def test_a_reference_without_structure_gives_a_picture_without_edges(
    case: PhantomCase, tmp_path: Path
) -> None:
    flat = case.undistorted.with_data(case.undistorted.data * 0)
    assert yellow(written(images_of(case, flat), tmp_path / "qc.png")).sum() == 0


def test_the_views_do_not_depend_on_how_the_stack_was_acquired(case: PhantomCase, tmp_path: Path) -> None:
    """A stack stored feet to head and right to left shows the same patient as one stored otherwise."""

    def turned(volume: Volume) -> Volume:
        data = volume.data.flip(0, 2)
        flip = np.eye(4)
        for axis, size in ((0, data.shape[2]), (2, data.shape[0])):
            flip[axis, axis], flip[axis, 3] = -1, size - 1
        return Volume(data.contiguous(), volume.affine @ flip)

    images = images_of(case)
    other = QcImages(
        turned(images.reference),
        images.seen,
        turned(images.before),
        turned(images.after),
        images.shift_mm[::-1, :, ::-1].copy(),
        images.mask[::-1, :, ::-1].copy(),
    )
    straight, flipped = written(images, tmp_path / "a.png"), written(other, tmp_path / "b.png")
    assert np.abs(straight - flipped).mean() < 0.01


def test_no_view_shows_the_black_rim_of_the_field_of_view(case: PhantomCase, tmp_path: Path) -> None:
    """The largest shift may lie where a body leaves the field of view and the coil hears nothing."""
    images = images_of(case)
    z, y, x = images.before.data.shape
    dark = torch.ones((z, y, x))
    dark[:, :, : x // 3] = 0.01
    before, after = (volume.with_data(volume.data * dark) for volume in (images.before, images.after))
    shift = images.shift_mm.copy()
    shift[:, :, : x // 3] += 20
    edge = replace(images, before=before, after=after, shift_mm=shift)
    for row in six(written(edge, tmp_path / "qc.png")):
        grey = row[2][~yellow(row[2])]  # sagittal
        assert grey.std() > 0.05


def test_the_end_of_the_reference_s_field_of_view_is_no_edge(case: PhantomCase, tmp_path: Path) -> None:
    """Outside it the reference is 0, which would be drawn as a straight contour across the head."""
    images = images_of(case)
    seen = images.seen.copy()
    seen[:, : seen.shape[1] // 2] = False  # the front half
    half = images.reference.with_data(images.reference.data * torch.from_numpy(seen))
    cut = replace(images, reference=half, seen=seen)
    known, told = (
        written(cut, tmp_path / "a.png"),
        written(replace(cut, seen=images.seen), tmp_path / "b.png"),
    )
    for column in (0, 2):  # axial, where the end is a row; sagittal, where it is a column
        straight = [
            yellow(six(picture)[1][column]).sum(axis=1 - column // 2).max() for picture in (known, told)
        ]
        assert straight[0] < 0.5 * straight[1]
        assert yellow(six(known)[1][column]).sum() > 0  # the back half keeps its edges


def test_an_empty_image_still_gives_a_picture(tmp_path: Path) -> None:
    empty = Volume.from_numpy(np.zeros((4, 8, 8)), np.diag([3.0, 3.0, 4.0, 1.0]))
    nothing = np.zeros((4, 8, 8), dtype=np.float32)
    images = QcImages(empty, nothing == 0, empty, empty, nothing, nothing > 0)
    assert written(images, tmp_path / "qc.png").size > 0


LONG = (
    "Across phase encode, where EPI does not distort, half of the image lies 4.4 mm or more from the "
    "reference, expected below 2.4 mm. The patient moved between the two series, or they do not show the "
    "same region or patient."
)


def test_of_many_reasons_three_are_told_and_the_others_counted() -> None:
    assert reason_lines(()) == []
    assert reason_lines(["It folds."]) == ["• It folds."]
    assert reason_lines(["a", "b", "c"]) == ["• a", "• b", "• c"]
    assert reason_lines(["a", "b", "c", "d", "e"]) == ["• a", "• b", "• c", "and 2 more"]
    first, second = reason_lines([LONG])
    assert second.startswith("  ")
    assert f"{first} {second.strip()}" == f"• {LONG}"


def test_reasons_stand_between_title_and_views_and_cover_neither(case: PhantomCase, tmp_path: Path) -> None:
    without = written(images_of(case), tmp_path / "a.png")
    told = written(images_of(case), tmp_path / "b.png", [LONG] * 5)
    added = len(told) - len(without)
    assert added > 50
    title = 30  # rows with the title, of one line here
    assert np.abs(told[:title] - without[:title]).mean() < 0.005  # letters may lie between two pixels
    assert np.abs(told[title + added :] - without[title:]).mean() < 0.005
    text = told[title : title + added].max(axis=2) > 0.5
    assert text.any(axis=1).mean() > 0.5  # most rows of the new space hold letters
    assert not text[-4:].any()
    assert not text[:, :20].any()
    assert not text[:, -20:].any()

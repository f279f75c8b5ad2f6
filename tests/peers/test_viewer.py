"""Source and derived series side by side in a viewer: Orthanc with its web viewer (Debian orthanc-webviewer).

The correction is the identity, so that both must look alike wherever one scrolls to.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from derived_series import Bench, instances_of, load_files, write_study
from finished_correction import finished
from hospital import Orthanc, orthanc
from matplotlib.image import imread
from pydicom import Dataset
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage

from dicom_node.companions import write_companions
from dicom_node.headers import Arrangement

pytestmark = pytest.mark.peers

PICTURES = (MRImageStorage, SecondaryCaptureImageStorage)
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancWebViewer.so")


@dataclass(frozen=True)
class Case:
    """A DWI series in the data, its reference, and which of its files are enough for a test."""

    data: str
    dwi: str
    reference: str
    keep: Callable[[Dataset], bool] = lambda header: True


CASES = {
    # numbers run slice by slice through all volumes
    "philips": Case(
        "philips-classic", "2201", "1301", lambda header: int(header[0x20051413].value) in (1, 17)
    ),
    # numbers run from head to feet; no b = 0
    "siemens-trace": Case("prostatex-0000", "6.*", "4.*"),
    "siemens-xa": Case(
        "siemens-xa30-classic", "11001_*", "6001_*", lambda header: header.InstanceNumber <= 117
    ),
    "siemens-xa-enhanced": Case(
        "siemens-xa30-enhanced", "17_*", "6_*", lambda header: header.InstanceNumber <= 3
    ),
    "canon": Case("canon-classic", "3000", "4000", lambda header: header.InstanceNumber <= 120),
}
MOSAIC = "siemens-mosaic"  # one picture a volume: the viewer cannot scroll through the slices of the source
CASES[MOSAIC] = Case("siemens-e11-mosaic", "4_*", "2_*", lambda header: header.InstanceNumber <= 3)


@dataclass(frozen=True)
class Stored:
    """Source and derived of a case by Orthanc's names, and the volumes that they hold."""

    arrangement: Arrangement
    source: str
    derived: str


@dataclass(frozen=True)
class Viewer:
    """Orthanc with its web viewer, through the interface that its page uses."""

    pacs: Orthanc
    folder: Path
    stored: dict[str, Stored] = field(default_factory=dict)

    def load(self, name: str, data: Path) -> Stored:
        """Store source and derived of a case, once."""
        if name not in self.stored:
            case, out = CASES[name], self.folder / name
            files = [
                path
                for path in sorted(next(data.glob(case.dwi)).rglob("*"))
                if pydicom.misc.is_dicom(path) and case.keep(pydicom.dcmread(path, stop_before_pixels=True))
            ]
            bench = Bench(load_files(files), instances_of(next(data.glob(case.reference)).rglob("*")), out)
            derived = bench.derive()
            self.pacs.store([*files, *sorted(out.iterdir())])
            names = {one["MainDicomTags"]["SeriesInstanceUID"]: one["ID"] for one in self.pacs.series()}
            uids = bench.source.facts.series_uid, derived[0].SeriesInstanceUID
            self.stored[name] = Stored(bench.source.arrangement, *(names[uid] for uid in uids))
        return self.stored[name]

    def slices(self, series: str) -> list[str]:
        """What the viewer scrolls through, in its order: instance and frame."""
        found: list[str] = self.pacs.http.get(f"/web-viewer/series/{series}").json()["Slices"]
        return found

    def header(self, one: str) -> Dataset:
        content = self.pacs.http.get(f"/instances/{one.rsplit('_', 1)[0]}/file").content
        return pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)

    def shown(self, one: str) -> dict[str, Any]:
        """The rendered picture, with the window that the viewer opens it in."""
        document: dict[str, Any] = self.pacs.http.get(f"/web-viewer/instances/jpeg95-{one}").json()
        return document

    def picture(self, one: str) -> np.ndarray:
        jpeg = base64.b64decode(self.shown(one)["Orthanc"]["PixelData"])
        return np.asarray(imread(io.BytesIO(jpeg), format="jpeg"), dtype=float)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    if not PLUGIN.exists():
        pytest.skip("the web viewer is not installed (Debian package orthanc-webviewer)")
    with orthanc(tmp_path_factory.mktemp("viewer") / "orthanc", plugins=[PLUGIN]) as pacs:
        yield Viewer(pacs, tmp_path_factory.mktemp("derived"))


def spread(items: list[str], count: int = 9) -> list[int]:
    """Some places in a list, the first and the last among them."""
    return sorted(set(np.linspace(0, len(items) - 1, count).round().astype(int).tolist()))


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two pictures; of two that are empty, 1."""
    if not one.std() and not other.std():
        return 1.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.mark.parametrize("name", sorted(CASES.keys() - {MOSAIC}))
def test_source_and_derived_scroll_in_step(
    name: str, viewer: Viewer, data_set: Callable[[str], Path]
) -> None:
    stored = viewer.load(name, data_set(CASES[name].data))
    before, after = viewer.slices(stored.source), viewer.slices(stored.derived)
    assert len(before) == len(after)
    for index in spread(before):
        assert alike(viewer.picture(before[index]), viewer.picture(after[index])) > 0.98, index
        header = viewer.header(before[index])
        if "ImagePositionPatient" in header:  # a multi-frame object has it in each frame
            assert viewer.header(after[index]).ImagePositionPatient == header.ImagePositionPatient


@pytest.mark.parametrize("name", CASES)
def test_every_b_value_can_be_looked_at(name: str, viewer: Viewer, data_set: Callable[[str], Path]) -> None:
    stored = viewer.load(name, data_set(CASES[name].data))
    volumes = stored.arrangement.volumes
    slices = viewer.slices(stored.derived)
    assert len(slices) == len(volumes) * stored.arrangement.shape[0]
    headers = {one: viewer.header(one) for one in slices}
    normal = np.asarray(volumes[0].frames[0].normal)
    depths = {one: float(normal @ np.array(header.ImagePositionPatient)) for one, header in headers.items()}
    middle = min(depths.values(), key=lambda depth: abs(depth - np.median(list(depths.values()))))
    reached = {}
    for one, header in headers.items():
        if abs(depths[one] - middle) < 0.01:
            reached[float(header.DiffusionBValue)] = viewer.shown(one)
            picture = viewer.picture(one)
            assert picture.std() > 5, "an empty picture"
    assert set(reached) == {volume.b_value for volume in volumes}
    for b_value, document in reached.items():
        # the window opens from black to what is bright, so that tissue lies in between
        top = document["windowCenter"] + document["windowWidth"] / 2
        assert document["windowCenter"] == pytest.approx(document["windowWidth"] / 2, abs=1), b_value
        assert 0.2 * document["maxPixelValue"] < top < 4 * document["maxPixelValue"], b_value


def test_the_picture_and_the_adc_map_can_be_looked_at(viewer: Viewer, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    study = write_study(tmp_path / "study")
    out = tmp_path / "derived"
    done = finished(load_files(study.dwi_files), instances_of(study.reference_files), out)
    written = [one for one in write_companions(done, out) if one.sop_class_uid in PICTURES]
    viewer.pacs.store(one.path for one in written)
    names = {one["MainDicomTags"]["SeriesInstanceUID"]: one["ID"] for one in viewer.pacs.series()}
    for one in {one.series_uid: one for one in written}.values():
        slices = viewer.slices(names[one.series_uid])
        assert len(slices) == (1 if one.sop_class_uid == SecondaryCaptureImageStorage else 4)
        assert viewer.shown(slices[0])["color"] is (one.sop_class_uid == SecondaryCaptureImageStorage)
        assert viewer.picture(slices[0]).std() > 5

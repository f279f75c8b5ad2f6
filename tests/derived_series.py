"""A small phantom study, loaded, and the provenance of a correction of it: for the tests of derive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from correction.volume import Volume
from dicom_node.derive import DerivePolicy, Provenance, derive
from dicom_node.headers import HeaderError, InstanceFacts, read_instance, summarise
from dicom_node.load import LoadedSeries, load
from dicom_node.phantom_study import PhantomStudy, weighted, write_phantom_study

NOW = datetime(2026, 2, 3, 4, 5, 6)
OBLIQUE = np.array(
    [[2.9, 0.3, 0.2, -20.0], [-0.3, 2.9, -0.3, -25.0], [-0.23, 0.28, 3.9, -6.0], [0.0, 0.0, 0.0, 1.0]]
)


# SpecificCharacterSet and PatientName, and a SeriesDescription, as scanners write them.
NAMES = {
    "ISO 2022 IR 87": (b"ISO 2022 IR 6\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B="),
    "ISO 2022 IR 149": (b"\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7="),
    "GB18030": (b"GB18030", "Wang^XiaoDong=王^小东=".encode("gb18030")),
    "UTF-8": (b"ISO_IR 192", "Núñez^José=Δ^Ж=".encode()),
    "Latin-1": (b"ISO_IR 100", "Müller^Jürgen".encode("latin-1")),
    "undeclared": (None, "Müller^Jürgen".encode("latin-1")),
}
DESCRIPTIONS = {
    "ISO 2022 IR 87": b"DWI \x1b$B3H;6\x1b(B",
    "ISO 2022 IR 149": b"DWI \x1b$)C" + "확산".encode("euc_kr"),
    "GB18030": "DWI 弥散加权成像".encode("gb18030"),
    "UTF-8": "DWI диффузия".encode(),
    "Latin-1": "DWI Schädel".encode("latin-1"),
    "undeclared": "DWI Schädel".encode("latin-1"),
}


def ball(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    """A soft ball with a ripple, so that no two voxels look alike, on any grid."""
    z, y, x = (np.linspace(-1.0, 1.0, n) for n in shape)
    radius = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2
    ripple = 1.0 + 0.2 * np.sin(7 * x[None, None, :] + 5 * y[None, :, None])
    return Volume.from_numpy(100.0 * np.exp(-2.0 * radius) * ripple, affine)


def orthogonal(affine: np.ndarray) -> np.ndarray:
    """`affine` with its axes made exactly orthogonal, lengths kept."""
    q, r = np.linalg.qr(affine[:3, :3])
    straight = affine.copy()
    straight[:3, :3] = q * np.diag(r)
    return straight


def write_study(folder: Path) -> PhantomStudy:
    """T2 of 12 slices at 2 mm and DWI of 4 slices (b = 0, and 1000 in three directions), oblique."""
    dwi_affine = orthogonal(OBLIQUE)
    t2_affine = dwi_affine.copy()
    t2_affine[:3, :3] *= 0.5
    return write_phantom_study(
        folder, ball((12, 20, 24), t2_affine), weighted(ball((4, 12, 14), dwi_affine), (1000.0,))
    )


def instances_of(paths: Iterable[Path]) -> list[InstanceFacts]:
    """The facts of those files that are images."""
    found = []
    for path in sorted(path for path in paths if path.is_file()):
        try:
            instance = read_instance(path)
        except HeaderError:
            continue
        if instance.frames:
            found.append(instance)
    return found


def load_files(paths: Iterable[Path]) -> LoadedSeries:
    """The series that those files are."""
    return load(instances_of(paths))


def made_by(reference: Sequence[InstanceFacts], **changes: object) -> Provenance:
    """A provenance in which everything went well, with `changes`."""
    fields: dict[str, object] = {
        "reference": reference,
        "reference_facts": summarise(reference),
        "contrast": "T2",
        "version": "1.2.3",
        "settings_digest": "digest",
        "modulated": False,
        "phase_axis": "j",
        "verdict": "pass",
        "figures": {"rms": 1.5, "p95": 3.25},
    }
    return Provenance(**(fields | changes))  # type: ignore[arg-type]


@dataclass
class Bench:
    """A source series, its reference, and a folder for what derive writes."""

    source: LoadedSeries
    reference: list[InstanceFacts]
    out: Path

    def derive(self, corrected: np.ndarray | None = None, **changes: object) -> list[Dataset]:
        """The derived instances of a correction (the identity, if none is given), read back."""
        policy = changes.pop("policy", DerivePolicy())
        assert isinstance(policy, DerivePolicy)
        self.out.mkdir(exist_ok=True)
        files = derive(
            self.source,
            self.source.voxels if corrected is None else corrected,
            made_by(self.reference, **changes),
            policy,
            self.out,
            NOW,
        )
        return [pydicom.dcmread(one.path) for one in files]


def edited(files: Sequence[Path], folder: Path, edit: Callable[[Dataset, int], None]) -> list[Path]:
    """Copies of `files` in `folder`, each changed by `edit(data set, index)`."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for index, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        edit(dataset, index)
        copies.append(folder / path.name)
        dataset.save_as(copies[-1], enforce_file_format=True)
    return copies


def put_raw(dataset: Dataset, keyword: str, vr: str, value: bytes | None) -> None:
    """Set the bytes of an element, whatever the data set thinks of them."""
    tag = Tag(tag_for_keyword(keyword))
    dataset.pop(tag, None)
    if value is not None:
        value += b" " * (len(value) % 2)
        dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def stored_of(source: LoadedSeries) -> np.ndarray:
    """(V, Z, Y, X) stored pixels of a classic single-frame source, in the order of its arrangement."""
    return np.stack(
        [
            np.stack([pydicom.dcmread(frame.path).pixel_array for frame in volume.frames])
            for volume in source.arrangement.volumes
        ]
    )


def pixels_of(derived: Iterable[Dataset], shape: tuple[int, ...]) -> np.ndarray:
    """Stored pixels of derived instances as (V, Z, Y, X)."""
    return np.stack([instance.pixel_array for instance in derived]).reshape(shape)


def raw(dataset: Dataset, keyword: str) -> bytes:
    """The bytes of an element as they lie in the file; only of a data set whose element was not touched."""
    element = dataset.get_item(Tag(keyword))
    assert isinstance(element, RawDataElement)
    return element.value or b""


def by_source(source: LoadedSeries, derived: list[Dataset]) -> Iterator[tuple[Dataset, Dataset]]:
    """(source header, derived instance) for each slice of a classic source."""
    frames = [frame for volume in source.arrangement.volumes for frame in volume.frames]
    for frame, instance in zip(frames, derived, strict=True):
        yield pydicom.dcmread(frame.path, stop_before_pixels=True), instance


def code(item: Dataset) -> str:
    """The code of a purpose or derivation."""
    sequence = item.get("PurposeOfReferenceCodeSequence")
    return str((sequence[0] if sequence else item).CodeValue)

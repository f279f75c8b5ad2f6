"""Field error of the engine's methods on cases with a known field: RMSE and p95 in mm, folds, seconds.

    python -m benchmarks.accuracy [--data FOLDER] [--method NAME] [--matcher NAME] [--set key=value]

Cases: the synthetic head, and (with --data, the folder of the unpacked studies) smooth warps of the
open_ms FLAIR against its T2 and T1. Prints the device and one line a case; writes all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

from correction import Volume, correct, methods
from correction.landmarks import find_landmarks
from correction.methods import Settings
from correction.phantom import head_case, warped


@dataclass(frozen=True)
class Case:
    """One pair with its truth; displacement (3, Z, Y, X) LPS mm on b0's grid, tissue (Z, Y, X)."""

    name: str
    b0: Volume
    reference: Volume
    phase_encoding: str
    displacement_mm: Tensor
    tissue: Tensor


def phantoms() -> Iterator[Case]:
    for seed in range(3):
        made = head_case(seed)
        yield Case(
            f"phantom {seed}", made.b0, made.reference, made.phase_encoding, made.displacement_mm, made.tissue
        )


def warps(folder: Path) -> Iterator[Case]:
    """The FLAIR under smooth shifts of at most 20 of its voxels, as the paper's simulation."""
    flair, t1, t2, brain = (nifti(folder / f"{name}.nii.gz") for name in ("flair", "t1", "t2", "brainmask"))
    voxel = flair.spacing_mm[1]
    for seed, voxels, smoothness_mm, name, reference in (
        (0, 20, 30.0, "T2", t2), (1, -20, 60.0, "T2", t2), (2, 15, 50.0, "T1", t1), (3, 8, 25.0, "T2", t2),
    ):  # fmt: skip
        distorted, truth = warped(flair, "j", voxels * voxel, smoothness_mm, seed)
        title = f"FLAIR to {name}, {voxels} voxels, {smoothness_mm:g} mm"
        yield Case(title, distorted, reference, "j", truth, brain.data > 0.5)


def nifti(path: Path) -> Volume:
    """(X, Y, Z) RAS → (Z, Y, X) LPS."""
    image = nibabel.load(path)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    return Volume.from_numpy(np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0), affine)


def measure(case: Case, settings: Settings, matcher: str, device: str) -> dict[str, object]:
    begun, cpu = time.perf_counter(), time.process_time()
    landmarks = None
    if matcher != "none":
        landmarks = find_landmarks(case.b0, case.reference, case.phase_encoding, matcher, device=device)
    result = correct(case.b0, case.reference, case.phase_encoding, settings, landmarks, device=device)
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    errors = {
        "before": torch.linalg.vector_norm(case.displacement_mm[:, case.tissue], dim=0),
        "after": torch.linalg.vector_norm(
            (result.displacement.cpu() - case.displacement_mm)[:, case.tissue], dim=0
        ),
    }
    figures: dict[str, object] = {"case": case.name, "method": settings.name}
    for when, error in errors.items():
        figures[f"rmse_{when}_mm"] = float(error.square().mean().sqrt())
        figures[f"p95_{when}_mm"] = float(np.percentile(error.numpy(), 95))
    figures |= {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "seconds": result.seconds,
        "quality": asdict(result.quality),
    }
    figures["verdict"] = result.verdict.level
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the unpacked studies")
    parser.add_argument("--method", choices=("clinical", "paper"), default="clinical")
    parser.add_argument("--matcher", default="none", help="as correction.landmarks.find_landmarks takes it")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="key=value")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    chosen = parser.parse_args()
    settings: Settings = methods.clinical() if chosen.method == "clinical" else methods.paper()
    settings = settings.override(chosen.changes)
    name = (
        torch.cuda.get_device_name(chosen.device) if chosen.device.startswith("cuda") else platform.machine()
    )
    print(f"device {chosen.device} ({name}), torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'case':36}  before  after  p95   folded  verdict  CPU s")
    rows = []
    for case in (*phantoms(), *(warps(chosen.data / "open_ms_long01") if chosen.data else ())):
        row = measure(case, settings, chosen.matcher, chosen.device)
        rows.append(row)
        quality = row["quality"]
        assert isinstance(quality, dict)
        print(
            f"{case.name:36}  {row['rmse_before_mm']:6.2f} {row['rmse_after_mm']:6.2f}"
            f" {row['p95_after_mm']:5.2f}"
            f"  {quality['folded_fraction']:6.4f}  {row['verdict']!s:7}  {row['cpu_s']:5.1f}",
            flush=True,
        )
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"device": name, "settings": asdict(settings), "cases": rows}, indent=1)
        )


if __name__ == "__main__":
    main()

"""Peak memory and header reads of one correction of a long classic series: load, correct, derive.

    python -m benchmarks.memory [--volumes 100] [--slices 60] [--size 192] [--coarse]

The series is made by one process and corrected by another, whose peak is then its own. The engine runs as the
node runs it; with --coarse only the images cost anything, for a quick look.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from torch.nn.functional import interpolate

from benchmarks.seconds import RESULTS, device_name
from correction import Volume
from correction.phantom import head_case
from dicom_node import compute
from dicom_node.derive import DerivePolicy
from dicom_node.outputs import peak_memory_bytes
from dicom_node.phantom_study import weighted, write_phantom_study
from dicom_node.recipe import NO_MATCHER, Recipe

LIMIT_BYTES = 2_500_000_000
COARSE = (
    ("coarse_voxel_mm", "6"),
    ("judge_voxel_mm", "6"),
    ("wide_voxel_mm", "8"),
    ("spacings_mm", "40,20"),
    ("near_spacing_mm", "20"),
    ("near_step_mm", "2"),
    ("iterations", "4"),
)


def finer(volume: Volume, slices: int, size: int) -> Volume:
    """The same place on a grid of (slices, size, size) voxels."""
    data = interpolate(volume.data[None, None], (slices, size, size), mode="trilinear")[0, 0]
    ratio = np.array([old / new for old, new in zip(volume.data.shape, data.shape, strict=True)])[::-1]
    affine = volume.affine @ np.diag([*ratio, 1.0])
    affine[:3, 3] += volume.affine[:3, :3] @ ((ratio - 1) / 2)
    return Volume(data, affine)


def make(folder: str, volumes: int, slices: int, size: int) -> None:
    """Write the study: a T2, and a DWI of `volumes` volumes."""
    case = head_case(1, voxel_mm=(5.0, 5.0, 6.0), reference_voxel_mm=(2.0, 2.0, 6.0))
    directions = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    b_values = tuple(100.0 * (1 + number) for number in range(-(-(volumes - 1) // 3)))
    weightings = weighted(finer(case.b0, slices, size), b_values, directions)[:volumes]
    write_phantom_study(Path(folder), case.reference, weightings, 1)


def correct(folder: str, coarse: bool, results: Any) -> None:
    """Correct the study as a worker does, and tell what it took."""
    torch.set_num_threads(1)
    root = Path(folder)
    dwi, reference = (sorted((root / name).glob("*.dcm")) for name in ("3_DWI", "2_T2w"))
    facts: Counter[str] = Counter()
    parsed: Counter[str] = Counter()
    _count(compute, "read_instance", facts)
    _count(pydicom, "dcmread", parsed)
    started = time.monotonic()
    outcome = compute.run(
        compute.CorrectionTask(
            name="result",
            root=root,
            source=tuple(path.relative_to(root) for path in dwi),
            reference=tuple(path.relative_to(root) for path in reference),
            contrast="T2",
            recipe=Recipe(device="cpu", overrides=COARSE, matcher=NO_MATCHER)
            if coarse
            else Recipe(device="cpu"),
            derive=DerivePolicy(),
            threads=1,
        )
    )
    results.put(
        {
            "instances": len(dwi),
            "wall_s": time.monotonic() - started,
            "seconds": dict(getattr(outcome, "seconds", {})),
            "peak_memory_bytes": peak_memory_bytes(),
            "headers_read": {"fewest": _per_file(facts, dwi)[0], "most": _per_file(facts, dwi)[1]},
            "parses": {"fewest": _per_file(parsed, dwi)[0], "most": _per_file(parsed, dwi)[1]},
            "written": len(getattr(outcome, "sop_uids", ())),
        }
    )


def _count(module: Any, name: str, counter: Counter[str]) -> None:
    """Count the calls of a function by the file that it is given."""
    original = getattr(module, name)

    def counted(source: Any, *arguments: Any, **options: Any) -> Any:
        counter[str(getattr(source, "name", source)) if not isinstance(source, Path) else str(source)] += 1
        return original(source, *arguments, **options)

    setattr(module, name, counted)


def _per_file(counter: Counter[str], files: list[Path]) -> tuple[int, int]:
    counts = [counter[str(path)] for path in files]
    return min(counts), max(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("volumes", 100), ("slices", 60), ("size", 192)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--coarse", action="store_true")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        shape = (arguments.volumes, arguments.slices, arguments.size)
        maker = spawn.Process(target=make, args=(folder, *shape))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("The study could not be made.")
        results = spawn.Queue()
        worker = spawn.Process(target=correct, args=(folder, arguments.coarse, results))
        worker.start()
        worker.join()
        if worker.exitcode:
            raise SystemExit("The correction did not end.")
        found = results.get()
    document = {"device": device_name("cpu"), "size": arguments.size, "coarse": arguments.coarse, **found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(document, indent=2) + "\n")
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in found["seconds"].items())
    print(f"{found['instances']} instances of {arguments.size} × {arguments.size}, on {document['device']}")
    print(f"{found['wall_s']:.0f} s ({stages}); {found['written']} objects written")
    facts, parses = found["headers_read"], found["parses"]
    print(f"facts read {facts['fewest']} to {facts['most']} times an instance")
    print(f"files parsed {parses['fewest']} to {parses['most']} times: for facts, and as templates")
    verdict = "below" if found["peak_memory_bytes"] < LIMIT_BYTES else "ABOVE"
    print(f"peak {found['peak_memory_bytes'] / 1e9:.2f} GB, {verdict} the limit of {LIMIT_BYTES / 1e9:g} GB")


if __name__ == "__main__":
    main()

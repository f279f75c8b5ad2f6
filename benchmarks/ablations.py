"""The published method taken apart, as its authors did: no landmarks, no spline, λ and spacing swept.

    python -m benchmarks.ablations [--cases FOLDER --only NAME] [--samples N] [--json FILE] [--plots FOLDER]

One case (a synthetic head, or a stored one of benchmarks.cases), one setting of `methods.paper` changed at a
time; mutual information of --samples voxels of the reference, drawn anew in every iteration, instead of all.
`--every-voxel` runs the published setting alone, to the letter, and says how long it takes.
Prints a Markdown table: field RMSE in the brain, PSNR of the corrected b = 0, folded voxels, CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from benchmarks import metrics
from benchmarks.accuracy import MATCHER, gathered, landmarks
from benchmarks.cases import Case
from benchmarks.networks import machine
from correction import Landmarks, correct, methods

Variant = tuple[str, tuple[str, ...], bool]  # title, changed settings, with landmarks

WEIGHTS = (0.1, 0.5, 1.0, 2.0, 5.0)  # 2 and 30 are the published ones
SPACINGS = (5, 10, 20, 30, 40)
VARIANTS: tuple[Variant, ...] = (
    ("as published", (), True),
    ("no landmarks", (), False),
    ("no B-spline: the network at every point", ("parameterisation=dense",), True),
    ("no network: free control points", ("parameterisation=control_points", "learning_rate=0.004"), True),
    ("Fourier features σ = 1", ("fourier_sigma=1",), True),
    ("along phase encode only", ("phase_encode_only=true",), True),
    *((f"λ = {w:g}", (f"landmark_weight={w}",), True) for w in WEIGHTS if w != 2.0),
    *((f"spacing {s} voxels", (f"spacing_voxels={s}",), True) for s in SPACINGS if s != 30),
)


def measure(case: Case, variant: Variant, found: Landmarks | None, samples: int) -> dict[str, object]:
    title, changes, with_landmarks = variant
    settings = methods.paper().override([f"samples={samples}", *changes])
    cpu = sum(os.times()[:4])
    result = correct(
        case.b0, case.reference, case.phase_encoding, settings, found if with_landmarks else None
    )
    spent = sum(os.times()[:4]) - cpu
    return {"variant": title, **metrics.figures(case, result.displacement), "cpu_s": spent}


def line(row: dict[str, object]) -> str:
    return (
        f"| {row['variant']} | {row['rmse_mm']:.2f} | {row['psnr_db']:.2f} | {row['ssim']:.3f} | "
        f"{1000 * float(str(row['folded'])):.1f} | {row['cpu_s']:.0f} |"
    )


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """λ and spacing against the field's RMSE."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_title = {str(row["variant"]): float(str(row["rmse_mm"])) for row in rows}
    published = by_title["as published"]
    figure, panels = pyplot.subplots(1, 2, figsize=(7.5, 3), sharey=True)
    for panel, values, title, name in (
        (panels[0], WEIGHTS, "λ = {:g}", "weight of landmarks λ"),
        (panels[1], SPACINGS, "spacing {:g} voxels", "control spacing, voxels"),
    ):
        panel.plot(values, [by_title.get(title.format(v), published) for v in values], "o-", color="C0")
        panel.axhline(by_title["no landmarks"], color="0.5", linestyle="--", label="no landmarks")
        panel.set_xlabel(name)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("field RMSE, mm")
    panels[0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=Path, help="where benchmarks.cases saved them")
    parser.add_argument("--split", choices=("tune", "test"), default="tune")
    parser.add_argument("--only", default="", help="part of the case's name; the first that fits")
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--every-voxel", action="store_true")
    parser.add_argument("--cache", type=Path, help="landmarks are kept here")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="folder for ablations.png")
    chosen = parser.parse_args()
    case = next(c for c in gathered(None, chosen.cases, chosen.split) if chosen.only in c.name)
    found = landmarks(case, MATCHER, "cpu", chosen.cache)
    print(f"{machine()}; case {case.name}, {len(found)} landmarks found, {chosen.samples} samples")
    print("| | RMSE mm | PSNR dB | SSIM | folded ‰ | CPU s |\n|---|---|---|---|---|---|", flush=True)
    rows = []
    variants = (("every voxel", (), True),) if chosen.every_voxel else VARIANTS
    for variant in variants:
        rows.append(measure(case, variant, found, 0 if chosen.every_voxel else chosen.samples))
        print(line(rows[-1]), flush=True)
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine(), "case": case.name, "samples": chosen.samples, "rows": rows}
        chosen.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if chosen.plots and not chosen.every_voxel:
        draw(rows, chosen.plots / "ablations.png")


if __name__ == "__main__":
    main()

"""The published method taken apart, as its authors did: no landmarks, no spline, λ and spacing swept.

    python -m benchmarks.ablations [--cases FOLDER --split NAME --only NAME] [--cache FOLDER] [--samples N]
                                   [--json FILE] [--plots FOLDER]

The paper-like cases that --only fits (or one synthetic head), one setting of `methods.paper` changed at a
time; mutual information of --samples voxels of the reference, drawn anew in every iteration, instead of all.
`--every-voxel` runs the published setting alone, to the letter, and says how long it takes.
Fields are kept in --cache, so that a run which was cut short goes on where it stopped.
Prints a Markdown table: field RMSE in the brain, PSNR, NCC and SSIM of the corrected b = 0, folded voxels,
processor seconds (with the landmarks', where they are used); means where there is more than one case.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.accuracy import (
    MATCHER,
    PAPER_SAMPLES,
    Clock,
    Found,
    gathered,
    kept_at,
    landmarks,
    line,
    row_of,
    run,
)
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


# what benchmarks.accuracy runs as well: kept by its names, so that neither computes the other's again
SHARED = {"as published": "paper", "no landmarks": "paper, no landmarks"}


def fitted(
    case: Case, changes: Sequence[str], samples: int, found: Landmarks | None, before_s: float
) -> Found:
    """The published method with some settings changed; before_s: what the landmarks cost."""
    settings = methods.paper().override([f"samples={samples}", *changes])
    clock = Clock()
    result = correct(case.b0, case.reference, case.phase_encoding, settings, found)
    return Found(result.displacement, before_s + clock.cpu_s(), str(result.verdict.level))


def measured(
    case: Case, variants: Sequence[Variant], samples: int, store: Path | None, kept_only: bool
) -> list[dict[str, object]]:
    """A row a variant; printed as they come."""
    found, cost_s = landmarks(case, MATCHER, "cpu", store)
    print(f"{case.name}: {len(found)} landmarks found", flush=True)
    rows = []
    for title, changes, with_landmarks in variants:
        name = f"ablation {samples} {title}"
        if samples == PAPER_SAMPLES:
            name = SHARED.get(title, name)
        if kept_only and not (store and kept_at(store, case, name).exists()):
            continue
        given = (found, cost_s) if with_landmarks else (None, 0.0)
        estimator = partial(fitted, changes=changes, samples=samples, found=given[0], before_s=given[1])
        rows.append(row_of(case, title, run(case, name, estimator, store)))
        print(line(rows[-1]), flush=True)
    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    """Means over the cases."""
    shown = {"rmse_mm": ".2f", "psnr_db": ".2f", "ncc": ".3f", "ssim": ".3f"}
    lines = [
        "| | cases | RMSE mm | PSNR dB | NCC | SSIM | folded ‰ | CPU s |",
        "|---" * 8 + "|",
    ]
    for title in dict.fromkeys(str(row["method"]) for row in rows):
        some = [row for row in rows if row["method"] == title and "failed" not in row]
        if some:
            values = " | ".join(format(_mean(some, figure), how) for figure, how in shown.items())
            folded, cpu_s = 1000 * _mean(some, "folded"), _mean(some, "cpu_s")
            lines.append(f"| {title} | {len(some)} | {values} | {folded:.1f} | {cpu_s:.0f} |")
    return "\n".join(lines)


def _mean(rows: Sequence[dict[str, object]], figure: str) -> float:
    return float(np.mean([value for row in rows if isinstance(value := row[figure], float)]))


def draw(rows: Sequence[dict[str, object]], path: Path) -> None:
    """λ and spacing against the field's RMSE, a line a case; dashed: without landmarks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for case, (colour, marker) in zip(
        dict.fromkeys(str(row["case"]) for row in rows), (("#0072B2", "o"), ("#D55E00", "s")), strict=False
    ):
        by_title = {str(row["method"]): row.get("rmse_mm") for row in rows if row["case"] == case}
        published = by_title.get("as published")
        for panel, values, title, usual, name in (
            (panels[0], WEIGHTS, "λ = {:g}", 2.0, "weight of landmarks λ"),
            (panels[1], SPACINGS, "spacing {:g} voxels", 30, "spacing of control points, voxels"),
        ):
            found = [published if v == usual else by_title.get(title.format(v)) for v in values]
            there = [(v, f) for v, f in zip(values, found, strict=True) if f is not None]
            panel.plot(*zip(*there, strict=True), marker=marker, color=colour, label=case)
            if (without := by_title.get("no landmarks")) is not None:
                panel.axhline(without, color=colour, linestyle="--", linewidth=1)
            panel.set_xlabel(name)
            panel.grid(alpha=0.3)
    panels[0].set_xscale("log")
    panels[0].set_xticks(WEIGHTS, [f"{w:g}" for w in WEIGHTS])
    panels[0].minorticks_off()
    panels[0].set_ylabel("field RMSE, mm")
    panels[0].set_ylim(bottom=0)
    panels[1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the unpacked studies")
    parser.add_argument("--cases", type=Path, help="where benchmarks.cases saved them")
    parser.add_argument("--split", choices=("tune", "test"), default="test")
    parser.add_argument("--only", default="paper-", help="part of the cases' names")
    parser.add_argument("--variant", action="append", help="only this one; may be repeated")
    parser.add_argument("--samples", type=int, default=PAPER_SAMPLES)
    parser.add_argument("--every-voxel", action="store_true")
    parser.add_argument("--cache", type=Path, help="landmarks and fields are kept here")
    parser.add_argument("--kept", action="store_true", help="run nothing: what the cache has")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="folder for ablations.png")
    chosen = parser.parse_args()
    samples = 0 if chosen.every_voxel else chosen.samples
    variants = [v for v in VARIANTS if v[0] in (chosen.variant or [v[0]])]
    if chosen.every_voxel:
        variants = list(VARIANTS[:1])
    print(f"{machine()}; mutual information of {samples or 'all'} voxels")
    rows = []
    for case in gathered(chosen.data, chosen.cases, chosen.split):
        if (chosen.data or chosen.cases) and chosen.only not in case.name:
            continue
        rows += measured(case, variants, samples, chosen.cache, chosen.kept)
        if not (chosen.data or chosen.cases):
            break  # one synthetic head is as good as three
    print(table(rows))
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine(), "samples": samples, "rows": rows}
        chosen.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if chosen.plots and not chosen.every_voxel:
        draw(rows, chosen.plots / "ablations.png")


if __name__ == "__main__":
    main()

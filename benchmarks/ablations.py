"""The published method taken apart, as its authors did: no landmarks, no spline, λ and spacing swept.

    python -m benchmarks.ablations [--cases FOLDER --split NAME --only NAME] [--cache FOLDER] [--samples N]
                                   [--json FILE] [--plots FOLDER]

The paper-like cases that --only fits (or one synthetic head), one setting of `methods.paper` changed at a
time; mutual information of --samples voxels of the reference, drawn anew in every iteration, instead of all.
`--every-voxel` runs the published setting alone, to the letter, and says how long it takes.
The published setting and its like without landmarks run with other random numbers, too (network, samples):
differences below theirs say nothing. Fields are kept in --cache, so that a run which was cut short goes on
where it stopped. Prints a Markdown table a case: field RMSE in the brain, PSNR, NCC and SSIM of the corrected
b = 0, folded voxels, processor seconds (with the landmarks', where they are used) and our own verdict.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

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


class Variant(NamedTuple):
    """One thing changed; changes: of the settings, as text."""

    title: str
    changes: tuple[str, ...] = ()
    with_landmarks: bool = True
    seed: int = 0


WEIGHTS = (0.1, 0.5, 1.0, 2.0, 5.0)  # 2 and 30 are the published ones
SPACINGS = (5, 10, 20, 30, 40)
PUBLISHED, WITHOUT = "as published", "no landmarks"
SEEDS = (1, 2)
VARIANTS: tuple[Variant, ...] = (
    Variant(PUBLISHED),
    Variant(WITHOUT, with_landmarks=False),
    Variant("no B-spline: the network at every point", ("parameterisation=dense",)),
    Variant("no network: free control points", ("parameterisation=control_points", "learning_rate=0.004")),
    Variant("Fourier features σ = 1", ("fourier_sigma=1",)),
    Variant("along phase encode only", ("phase_encode_only=true",)),
    *(Variant(f"λ = {w:g}", (f"landmark_weight={w}",)) for w in WEIGHTS if w != 2.0),
    *(Variant(f"spacing {s} voxels", (f"spacing_voxels={s}",)) for s in SPACINGS if s != 30),
    *(Variant(f"{PUBLISHED}, seed {n}", seed=n) for n in SEEDS),
    *(Variant(f"{WITHOUT}, seed {n}", with_landmarks=False, seed=n) for n in SEEDS),
)


# what benchmarks.accuracy runs as well: kept by its names, so that neither computes the other's again
SHARED = {PUBLISHED: "paper", WITHOUT: "paper, no landmarks"}


def fitted(case: Case, variant: Variant, samples: int, found: Landmarks | None, before_s: float) -> Found:
    """The published method with something changed; before_s: what the landmarks cost."""
    settings = methods.paper().override([f"samples={samples}", *variant.changes])
    clock = Clock()
    result = correct(case.b0, case.reference, case.phase_encoding, settings, found, seed=variant.seed)
    return Found(result.displacement, before_s + clock.cpu_s(), str(result.verdict.level))


def measured(
    case: Case, variants: Sequence[Variant], samples: int, store: Path | None, kept_only: bool
) -> list[dict[str, object]]:
    """A row a variant; printed as they come."""
    found, cost_s = landmarks(case, MATCHER, "cpu", store)
    print(f"{case.name}: {len(found)} landmarks found", flush=True)
    rows = []
    for variant in variants:
        name = f"ablation {samples} {variant.title}"
        if samples == PAPER_SAMPLES:
            name = SHARED.get(variant.title, name)
        if kept_only and not (store and kept_at(store, case, name).exists()):
            continue
        given = (found, cost_s) if variant.with_landmarks else (None, 0.0)
        estimator = partial(fitted, variant=variant, samples=samples, found=given[0], before_s=given[1])
        rows.append(row_of(case, variant.title, run(case, name, estimator, store)))
        print(line(rows[-1]), flush=True)
    return rows


def tables(rows: Sequence[dict[str, object]]) -> str:
    """One a case: means over cases would hide that not every variant was run on each."""
    shown = {"rmse_mm": "RMSE mm", "p95_mm": "p95", "psnr_db": "PSNR dB", "ncc": "NCC", "ssim": "SSIM"}
    head = ["", *shown.values(), "folded ‰", "CPU s", "verdict"]
    lines: list[str] = []
    for case in dict.fromkeys(str(row["case"]) for row in rows):
        lines += [f"\n### {case}\n", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for row in rows:
            if row["case"] == case and "failed" not in row:
                values = [f"{_figure(row, name):.{3 if name in ('ncc', 'ssim') else 2}f}" for name in shown]
                rest = [f"{1000 * _figure(row, 'folded'):.1f}", f"{_figure(row, 'cpu_s'):.0f}"]
                lines.append(
                    "| " + " | ".join([str(row["method"]), *values, *rest, str(row["verdict"])]) + " |"
                )
    return "\n".join(lines)


def _figure(row: dict[str, object], name: str) -> float:
    value = row[name]
    assert isinstance(value, float)
    return value


def draw(rows: Sequence[dict[str, object]], path: Path) -> None:
    """λ and spacing against the field's RMSE and PSNR, a colour a case.

    Small symbols at the published setting: other random numbers. Dashed: without landmarks, all its seeds.
    """
    from matplotlib.figure import Figure

    sweeps = (
        (WEIGHTS, "λ = {:g}", 2.0, "weight of landmarks λ"),
        (SPACINGS, "spacing {:g} voxels", 30, "spacing of control points, voxels"),
    )
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    cases = dict.fromkeys(str(row["case"]) for row in rows)
    for case, (colour, marker) in zip(cases, (("#0072B2", "o"), ("#D55E00", "s")), strict=False):
        for upper, name in ((0, "rmse_mm"), (1, "psnr_db")):
            values = {
                str(row["method"]): _figure(row, name)
                for row in rows
                if row["case"] == case and "failed" not in row
            }
            others, without = _seeds(values, PUBLISHED), _seeds(values, WITHOUT)
            for panel, (settings, title, usual, _) in zip(panels[upper], sweeps, strict=True):
                titles = {s: PUBLISHED if s == usual else title.format(s) for s in settings}
                found = {s: values[t] for s, t in titles.items() if t in values}
                panel.plot(list(found), list(found.values()), marker=marker, color=colour, label=case)
                panel.plot([usual] * len(others), others, marker=marker, color=colour, markersize=3.5, ls="")
                for level in without:
                    panel.axhline(level, color=colour, linestyle="--", linewidth=0.8)
    for panel, (settings, _, _, label) in zip(panels[1], sweeps, strict=True):
        panel.set_xscale("log")
        panel.set_xticks(settings, [f"{s:g}" for s in settings])
        panel.minorticks_off()
        panel.set_xlabel(label)
    for panel in panels.flat:
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("field RMSE, mm")
    panels[0, 0].set_ylim(bottom=0)
    panels[1, 0].set_ylabel("PSNR, dB")
    panels[0, 1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _seeds(values: dict[str, float], title: str) -> list[float]:
    """What a setting found with every seed it was run with, the first included."""
    return [values[t] for t in (title, *(f"{title}, seed {n}" for n in SEEDS)) if t in values]


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
    variants = [v for v in VARIANTS if v.title in (chosen.variant or [v.title])]
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
    print(tables(rows))
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine(), "samples": samples, "rows": rows}
        chosen.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if chosen.plots and not chosen.every_voxel:
        draw(rows, chosen.plots / "ablations.png")


if __name__ == "__main__":
    main()

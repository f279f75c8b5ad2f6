"""Tables (Markdown) and pictures of `benchmarks.accuracy`'s rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.metrics import signed_rank

Rows = Sequence[dict[str, object]]
TITLES = {"epi": "EPI-like", "paper": "paper-like"}


def tables(rows: Rows) -> str:
    """Per kind of case: every case's RMSE by method, then the methods' means with the signed-rank p."""
    out = []
    for kind, title in TITLES.items():
        some = [row for row in rows if row["kind"] == kind]
        if some:
            out += [f"\n### {title}: field RMSE, mm\n", _by_case(some), "", _by_method(some)]
    return "\n".join(out)


def _names(rows: Rows) -> tuple[list[str], list[str]]:
    cases = list(dict.fromkeys(str(row["case"]) for row in rows))
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    return cases, methods


def _value(rows: Rows, case: str, method: str, figure: str) -> float | None:
    for row in rows:
        if row["case"] == case and row["method"] == method and figure in row:
            value = row[figure]
            return float(value) if isinstance(value, int | float) else None
    return None


def _by_case(rows: Rows) -> str:
    cases, methods = _names(rows)
    lines = ["| case | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for case in cases:
        values = [_value(rows, case, method, "rmse_mm") for method in methods]
        lines.append(f"| {case} | " + " | ".join("–" if v is None else f"{v:.2f}" for v in values) + " |")
    return "\n".join(lines)


def _by_method(rows: Rows) -> str:
    cases, methods = _names(rows)
    shown = {
        "rmse_mm": "RMSE", "off_axis_rmse_mm": "of it across", "demeaned_rmse_mm": "without the mean",
        "p95_mm": "p95", "psnr_db": "PSNR dB", "ncc": "NCC", "ssim": "SSIM", "cpu_s": "CPU s",
    }  # fmt: skip
    head = ["method", "cases", *shown.values(), "folded ‰", "worse than nothing", "p against clinical"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method in methods:
        there = [case for case in cases if _value(rows, case, method, "rmse_mm") is not None]
        if not there:
            continue
        means = [_mean(rows, there, method, figure) for figure in shown]
        rmse = {c: _value(rows, c, method, "rmse_mm") or 0.0 for c in there}
        before = {c: _value(rows, c, "nothing", "rmse_mm") for c in there}
        worse = sum(b is not None and rmse[c] > b for c, b in before.items())
        ours = {c: v for c in there if (v := _value(rows, c, "clinical", "rmse_mm")) is not None}
        p = signed_rank(list(ours.values()), [rmse[c] for c in ours]) if method != "clinical" else None
        lines.append(
            f"| {method} | {len(there)} | " + " | ".join(f"{m:.2f}" if m >= 1 else f"{m:.3f}" for m in means)
            + f" | {1000 * _mean(rows, there, method, 'folded'):.1f} | {worse} | "
            + ("–" if p is None else f"{p:.3f}") + " |"
        )  # fmt: skip
    return "\n".join(lines)


def _mean(rows: Rows, cases: Sequence[str], method: str, figure: str) -> float:
    return float(np.mean([_value(rows, case, method, figure) or 0.0 for case in cases]))


def draw(rows: Rows, folder: Path) -> None:
    """accuracy-epi.png and accuracy-paper.png: RMSE of every case by method, on a logarithmic axis.

    Grey band: the errors without a correction. Colours by Okabe and Ito, symbols of their own.
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    for kind, title in TITLES.items():
        some = [row for row in rows if row["kind"] == kind]
        if not some:
            continue
        cases, methods = _names(some)
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.set_yscale("log")
        for number, method in enumerate(methods):
            values = [v for c in cases if (v := _value(some, c, method, "rmse_mm")) is not None]
            if not values:
                continue
            colour, marker = _look(method)
            if method == "nothing":
                axes.axhspan(min(values), max(values), color="0.9", zorder=0)
            axes.plot([number] * len(values), values, marker, color=colour, alpha=0.7, markersize=6)
            axes.plot([number - 0.3, number + 0.3], [np.median(values)] * 2, color=colour, linewidth=2)
        ticks = (0.2, 0.5, 1, 2, 5, 10, 20)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylabel("field RMSE in the brain, mm")
        axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
        axes.grid(axis="y", alpha=0.4)
        axes.set_title(f"{len(cases)} {title} cases; line: median; grey: without a correction", fontsize=10)
        figure.savefig(folder / f"accuracy-{kind}.png", dpi=90)


def _look(method: str) -> tuple[str, str]:
    """Colour and symbol."""
    if method == "nothing":
        return "0", "_"
    if method.startswith("clinical"):
        return "#D55E00", "D"
    return ("#0072B2", "s") if method.startswith("paper") else ("0.45", "o")

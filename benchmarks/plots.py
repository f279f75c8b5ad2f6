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
        "rmse_mm": "RMSE", "p95_mm": "p95", "demeaned_rmse_mm": "demeaned", "psnr_db": "PSNR dB",
        "ncc": "NCC", "ssim": "SSIM", "cpu_s": "CPU s",
    }  # fmt: skip
    head = ["method", "cases", *shown.values(), "folded ‰", "worse than nothing", "p against clinical"]
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|---" * (len(shown) + 5) + "|")
    for method in methods:
        there = [case for case in cases if _value(rows, case, method, "rmse_mm") is not None]
        means = [np.mean([_value(rows, case, method, figure) or 0.0 for case in there]) for figure in shown]
        folded = 1000 * np.mean([_value(rows, case, method, "folded") or 0.0 for case in there])
        pairs = [
            (_value(rows, c, method, "rmse_mm"), _value(rows, c, "nothing", "rmse_mm"),
             _value(rows, c, "clinical", "rmse_mm"))
            for c in there
        ]  # fmt: skip
        worse = sum(a > b for a, b, _ in pairs if a is not None and b is not None)
        both = [(a, c) for a, _, c in pairs if a is not None and c is not None]
        p = signed_rank([c for _, c in both], [a for a, _ in both]) if method != "clinical" else None
        lines.append(
            f"| {method} | {len(there)} | " + " | ".join(f"{m:.2f}" if m >= 1 else f"{m:.3f}" for m in means)
            + f" | {folded:.1f} | {worse} | " + ("–" if p is None else f"{p:.3f}") + " |"
        )  # fmt: skip
    return "\n".join(lines)


def draw(rows: Rows, folder: Path) -> None:
    """accuracy-epi.png and accuracy-paper.png: RMSE of every case by method, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for kind, title in TITLES.items():
        some = [row for row in rows if row["kind"] == kind]
        if not some:
            continue
        cases, methods = _names(some)
        figure, axes = pyplot.subplots(figsize=(8, 4.2))
        for number, method in enumerate(methods):
            values = [v for c in cases if (v := _value(some, c, method, "rmse_mm")) is not None]
            colour = "C3" if method.startswith("clinical") else "C0" if method.startswith("paper") else "0.5"
            axes.plot([number] * len(values), values, "o", color=colour, alpha=0.6, markersize=5)
            if values:
                axes.plot([number - 0.3, number + 0.3], [np.median(values)] * 2, color=colour, linewidth=2)
        axes.set_yscale("log")
        axes.set_yticks([0.3, 0.5, 1, 2, 4, 8], ["0.3", "0.5", "1", "2", "4", "8"])
        axes.minorticks_off()
        axes.set_ylabel("field RMSE in the brain, mm")
        axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
        axes.grid(axis="y", alpha=0.3)
        axes.set_title(f"{title} cases, line: median")
        figure.tight_layout()
        figure.savefig(folder / f"accuracy-{kind}.png", dpi=90)
        pyplot.close(figure)

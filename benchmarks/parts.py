"""The clinical method taken apart: what each part of it is worth, one changed at a time.

    python -m benchmarks.parts [CASE.pt…] [--data FOLDER] [--variant TITLE] [--cache FOLDER] [--kept]
                               [--json FILE]

Cases are files that `benchmarks.cases --save` or `benchmarks.field_map --case` wrote, or with --data, the
folder of the unpacked studies, the EPI-like ones of the split "tune": settings were chosen there, so that is
where to look at them. Prints a Markdown table of field RMSE in the brain, mm.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.accuracy import MATCHER, Found, engine, gathered, kept_at, line, nothing, row_of, run
from benchmarks.cases import Case, load_case
from benchmarks.networks import machine
from correction import methods


class Variant(NamedTuple):
    """One part changed; changes: of the settings, as text."""

    title: str
    changes: tuple[str, ...] = ()
    matcher: str | None = MATCHER


UNCORRECTED = "nothing"
VARIANTS = (
    Variant("clinical"),
    Variant("no landmarks", matcher=None),
    Variant("landmarks say as much near the field", ("landmark_weight_near=3", "landmark_weight_air=3")),
    Variant("landmarks that contradict the air keep their weight", ("landmark_doubt_mm=1000",)),
    Variant("no field of air", ("air=false",)),
    Variant("air at a quarter of the bending", ("air_bending=500",)),
    Variant("air at four times the bending", ("air_bending=8000",)),
    Variant("coarse field at a third of the bending", ("coarse_bending=50",)),
    Variant("shading of 75 mm divided out, not of 25", ("shading_mm=75",)),
    Variant("descriptors of voxels two apart", ("mind_dilation=2",)),
    Variant("costs of each voxel by itself", ("aggregation_mm=0.5", "near_aggregation_mm=0.5")),
    Variant("costs averaged twice as far", ("aggregation_mm=6", "near_aggregation_mm=4")),
    Variant("working voxels of 3 mm", ("coarse_voxel_mm=3",)),
)  # fmt: skip


def measured(
    case: Case, variants: Sequence[Variant], store: Path | None, kept_only: bool
) -> list[dict[str, object]]:
    """A row a variant, the uncorrected image first; printed as they come."""
    rows = [row_of(case, UNCORRECTED, nothing(case))]
    for variant in variants:
        name = f"part {variant.title}"
        if kept_only and not (store and kept_at(store, case, name).exists()):
            continue
        found = run(case, name, partial(_corrected, variant=variant, store=store), store)
        rows.append(row_of(case, variant.title, found))
        print(line(rows[-1]), flush=True)
    return rows


def _corrected(case: Case, variant: Variant, store: Path | None) -> Found:
    kept = store if variant.matcher == MATCHER else None  # what is kept by case are that matcher's landmarks
    return engine(case, methods.clinical().override(variant.changes), variant.matcher, "cpu", kept)


def table(rows: Sequence[dict[str, object]]) -> str:
    """RMSE by variant and case, and the mean of those that every case has."""
    cases = list(dict.fromkeys(str(row["case"]) for row in rows))
    titles = list(dict.fromkeys(str(row["method"]) for row in rows))
    values = {(row["method"], row["case"]): row["rmse_mm"] for row in rows if "failed" not in row}
    lines = ["| | " + " | ".join([*cases, "mean"]) + " |", "|---" * (len(cases) + 2) + "|"]
    for title in titles:
        found = [values.get((title, case)) for case in cases]
        numbers = [value for value in found if isinstance(value, float)]
        mean = f"{sum(numbers) / len(numbers):.2f}" if len(numbers) == len(cases) else "–"
        shown = [f"{value:.2f}" if isinstance(value, float) else "–" for value in found]
        lines.append("| " + " | ".join([title, *shown, mean]) + " |")
    return "\n".join(lines)


def _cases(files: Sequence[Path], data: Path | None) -> Iterator[Case]:
    yield from map(load_case, files)
    if data:
        yield from (case for case in gathered(data, None, "tune") if case.kind == "epi")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", type=Path, nargs="*")
    parser.add_argument("--data", type=Path, help="folder of the unpacked studies")
    parser.add_argument("--variant", action="append", help="only this one; may be repeated")
    parser.add_argument("--cache", type=Path, help="landmarks and fields are kept here")
    parser.add_argument("--kept", action="store_true", help="run nothing: what the cache has")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if not (chosen.cases or chosen.data):
        parser.error("give files of cases, or --data")
    print(machine())
    variants = [variant for variant in VARIANTS if variant.title in (chosen.variant or [variant.title])]
    rows: list[dict[str, object]] = []
    for case in _cases(chosen.cases, chosen.data):
        rows += measured(case, variants, chosen.cache, chosen.kept)
    print(table(rows))
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine(), "rows": rows}
        chosen.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Field error of the engine, of the published method and of other programs, on cases with a known field.

    python -m benchmarks.accuracy --data FOLDER [--split tune|test] [--method NAME] [--cache FOLDER]
                                  [--json FILE] [--plots FOLDER]

Cases: `benchmarks.cases`, made from the unpacked studies in --data (or read from --cases, where that
program saved them); without either, three synthetic heads. Methods: "nothing", "clinical" (default settings
and matcher), "paper" (published settings and the same landmarks; mutual information of a sample instead of
all voxels), both also without landmarks, and every peer of `benchmarks.peers`; all unless some are named.
Fields and failures are kept in --cache, by case and method, so that a run which was cut short goes on where
it stopped; --again NAME computes it anew, --kept computes nothing. Seconds are those of one processor, and
hold the landmarks' even where these were found before. Prints the device, a line a run and the tables.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from benchmarks import metrics, peers, plots
from benchmarks.cases import RECIPES, Case, Split, load_case
from benchmarks.heads import head
from benchmarks.networks import machine
from correction import Volume, correct, methods
from correction.landmarks import Landmarks, find_landmarks
from correction.phantom import PhantomCase, head_case

PAPER_SAMPLES = 16384  # of the reference's voxels, drawn anew in each of the 150 iterations
MATCHER = "auto"


@dataclass(frozen=True)
class Found:
    """A field (3, Z, Y, X) LPS mm, what it cost, and our own verdict if it is ours; or why there is none."""

    displacement_mm: Tensor | None
    cpu_s: float
    verdict: str | None = None
    failed: str | None = None


class Clock:
    """Processor seconds of this process and its children since it was made."""

    def __init__(self) -> None:
        self._begun = sum(os.times()[:4])

    def cpu_s(self) -> float:
        return sum(os.times()[:4]) - self._begun


Estimator = Callable[[Case], Found]


def nothing(case: Case) -> Found:
    return Found(torch.zeros_like(case.displacement_mm), 0.0)


def by_peer(case: Case, peer: peers.Peer) -> Found:
    clock = Clock()
    return Found(peers.displacement_lps(case, peer), clock.cpu_s())


def engine(
    case: Case, settings: methods.Settings, matcher: str | None, device: str, store: Path | None
) -> Found:
    """The engine as the node runs it: landmarks first, if there is a matcher."""
    found, before_s = landmarks(case, matcher, device, store) if matcher else (None, 0.0)
    clock = Clock()
    result = correct(case.b0, case.reference, case.phase_encoding, settings, found, device=device)
    return Found(result.displacement.cpu(), before_s + clock.cpu_s(), str(result.verdict.level))


class Images(Protocol):
    """What landmarks are found between; of a case, or of a pair without a truth."""

    @property
    def name(self) -> str: ...
    @property
    def b0(self) -> Volume: ...
    @property
    def reference(self) -> Volume: ...
    @property
    def phase_encoding(self) -> str: ...


def landmarks(case: Images, matcher: str, device: str, store: Path | None) -> tuple[Landmarks, float]:
    """Landmarks and the seconds they cost; found once for a case and kept: several methods ask for them."""
    kept = store / case.name / "landmarks.pt" if store else None
    if kept and kept.exists():
        fixed, moving, confidence, name, cpu_s = torch.load(kept, weights_only=True)
        return Landmarks(fixed.numpy(), moving.numpy(), confidence.numpy(), name), cpu_s
    clock = Clock()
    found = find_landmarks(case.b0, case.reference, case.phase_encoding, matcher, device=device)
    cpu_s = clock.cpu_s()
    if kept:
        arrays = (found.fixed_mm, found.moving_mm, found.confidence)
        _keep([*(torch.from_numpy(a) for a in arrays), found.matcher, cpu_s], kept)
    return found, cpu_s


def _keep(what: object, path: Path) -> None:
    """Whole or not at all: a run may be stopped at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(what, part)
    part.replace(path)


def estimators(device: str, store: Path | None) -> dict[str, Estimator]:
    """Every method by name, ours first."""

    def ours(settings: methods.Settings, matcher: str | None) -> Estimator:
        return partial(engine, settings=settings, matcher=matcher, device=device, store=store)

    published = methods.paper().override([f"samples={PAPER_SAMPLES}"])
    own: dict[str, Estimator] = {
        "nothing": nothing,
        "clinical": ours(methods.clinical(), MATCHER),
        "clinical, no landmarks": ours(methods.clinical(), None),
        "paper": ours(published, MATCHER),
        "paper, no landmarks": ours(published, None),
    }
    absent = peers.missing()
    return own | {n: partial(by_peer, peer=p) for n, p in peers.PEERS.items() if n not in absent}


def kept_at(store: Path, case: Case, name: str) -> Path:
    """Where the field of a method on a case is kept."""
    return store / case.name / f"{name.replace(' ', '_').replace(',', '')}.pt"


def run(case: Case, name: str, estimator: Estimator, store: Path | None, again: bool = False) -> Found:
    """One method on one case, from the cache if it is there. A method that fails is a result too."""
    kept = kept_at(store, case, name) if store else None
    if kept and kept.exists() and not again:
        return Found(**torch.load(kept, weights_only=True))
    clock = Clock()
    try:
        found = estimator(case)
    except Exception as error:
        found = Found(None, clock.cpu_s(), failed=f"{type(error).__name__}: {error}")
    if kept:
        _keep({f.name: getattr(found, f.name) for f in fields(found)}, kept)
    return found


def row_of(case: Case, name: str, found: Found) -> dict[str, object]:
    """What is reported of one run."""
    row: dict[str, object] = {"case": case.name, "kind": case.kind, "method": name, "cpu_s": found.cpu_s}
    if found.displacement_mm is None:
        return row | {"failed": found.failed}
    return row | {"verdict": found.verdict} | metrics.figures(case, found.displacement_mm)


def line(row: dict[str, object]) -> str:
    head = f"{row['case']:34} {row['method']:22} "
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    return (
        f"{head} RMSE {row['rmse_mm']:6.2f}  p95 {row['p95_mm']:6.2f}  PSNR {row['psnr_db']:5.2f}  "
        f"folded {row['folded']:.4f}  {row['cpu_s']:6.1f} s  {row['verdict'] or ''}"
    )


def phantom(name: str, made: PhantomCase) -> Case:
    """A synthetic head as a case."""
    return Case(
        name, "epi", made.b0, made.reference, made.phase_encoding, made.displacement_mm,
        made.tissue, made.undistorted, True,
    )  # fmt: skip


def phantoms() -> Iterator[Case]:
    for seed in range(3):
        yield phantom(f"phantom-{seed}", head_case(seed))


def gathered(data: Path | None, saved: Path | None, split: Split) -> Iterator[Case]:
    """The cases of a split: read, made, or the synthetic heads."""
    if saved:
        for path in sorted((saved / split).glob("*.pt")):
            yield load_case(path)
    elif data:
        heads = cache(lambda name: head(name, data))
        for recipe in RECIPES[split]:
            yield recipe.make(heads(recipe.head))
    else:
        yield from phantoms()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the unpacked studies")
    parser.add_argument("--cases", type=Path, help="where benchmarks.cases saved them")
    parser.add_argument("--split", choices=("tune", "test"), default="test")
    parser.add_argument("--method", action="append", help="only this one; may be repeated")
    parser.add_argument("--only", help="part of a case's name")
    parser.add_argument("--cache", type=Path, help="keep fields here and take them from here")
    parser.add_argument("--again", action="append", default=[], help="a method to run although it is kept")
    parser.add_argument("--kept", action="store_true", help="run nothing: what the cache has")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="folder for PNG files")
    chosen = parser.parse_args()
    if chosen.kept and not chosen.cache:
        parser.error("--kept needs --cache")
    print(f"{machine()}; engine on {chosen.device}, torch {torch.__version__}")
    for name, why in peers.missing().items():
        print(f"missing peer {name}: {why}")
    known = estimators(chosen.device, chosen.cache)
    rows: list[dict[str, object]] = []
    for case in gathered(chosen.data, chosen.cases, chosen.split):
        if chosen.only and chosen.only not in case.name:
            continue
        for name in chosen.method or known:
            if chosen.kept and name != "nothing" and not kept_at(chosen.cache, case, name).exists():
                continue
            rows.append(row_of(case, name, run(case, name, known[name], chosen.cache, name in chosen.again)))
            print(line(rows[-1]), flush=True)
    document = {"machine": machine(), "split": chosen.split, "missing": peers.missing(), "rows": rows}
    print(plots.tables(rows))
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if chosen.plots:
        plots.draw(rows, chosen.plots)


if __name__ == "__main__":
    main()

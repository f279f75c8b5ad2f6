"""Field error of the engine, of the published method and of other programs, on cases with a known field.

    python -m benchmarks.accuracy --data FOLDER [--split tune|test] [--method NAME] [--cache FOLDER]
                                  [--json FILE] [--plots FOLDER]

Cases: `benchmarks.cases`, made from the unpacked studies in --data (or read from --cases, where that
program saved them); without either, three synthetic heads. Methods: "nothing", "clinical" (default settings
and matcher), "paper" (published settings and the same landmarks; mutual information of a sample instead of
all voxels), both also without landmarks, and every peer of `benchmarks.peers`; all unless some are named.
Fields are kept in --cache, by case and method: peers do not change, so only what is missing is computed;
--again NAME computes it anew. Prints the device, a line a run and the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import metrics, peers, plots
from benchmarks.cases import RECIPES, Case, load_case
from benchmarks.heads import head
from benchmarks.networks import machine
from correction import correct, methods
from correction.landmarks import Landmarks, find_landmarks
from correction.phantom import head_case

PAPER_SAMPLES = 16384  # of the reference's voxels, drawn anew in each of the 150 iterations
MATCHER = "auto"


@dataclass(frozen=True)
class Found:
    """A field (3, Z, Y, X) LPS mm, what it cost, and our own verdict if it is ours."""

    displacement_mm: Tensor
    cpu_s: float
    wall_s: float
    verdict: str | None = None


Estimator = Callable[[Case], tuple[Tensor, str | None]]


def nothing(case: Case) -> tuple[Tensor, str | None]:
    return torch.zeros_like(case.displacement_mm), None


def engine(
    case: Case, settings: methods.Settings, matcher: str | None, device: str, store: Path | None
) -> tuple[Tensor, str | None]:
    """The engine as the node runs it: landmarks first, if there is a matcher."""
    found = landmarks(case, matcher, device, store) if matcher else None
    result = correct(case.b0, case.reference, case.phase_encoding, settings, found, device=device)
    return result.displacement.cpu(), str(result.verdict.level)


def landmarks(case: Case, matcher: str, device: str, store: Path | None) -> Landmarks:
    """Found once for a case and kept: several methods ask for the same."""
    kept = store / case.name / "landmarks.pt" if store else None
    if kept and kept.exists():
        fixed, moving, confidence, name = torch.load(kept, weights_only=True)
        return Landmarks(fixed.numpy(), moving.numpy(), confidence.numpy(), name)
    found = find_landmarks(case.b0, case.reference, case.phase_encoding, matcher, device=device)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        arrays = (found.fixed_mm, found.moving_mm, found.confidence)
        torch.save([*(torch.from_numpy(a) for a in arrays), found.matcher], kept)
    return found


def estimators(device: str, store: Path | None) -> dict[str, Estimator]:
    """Every method by name, ours first."""

    def by_peer(case: Case, peer: peers.Peer) -> tuple[Tensor, str | None]:
        return peers.displacement_lps(case, peer), None

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


def run(case: Case, name: str, estimator: Estimator, store: Path | None, again: bool) -> Found:
    """One method on one case, from the cache if it is there."""
    kept = store / case.name / f"{name.replace(' ', '_').replace(',', '')}.pt" if store else None
    if kept and kept.exists() and not again:
        return Found(**torch.load(kept, weights_only=True))
    begun, cpu = time.perf_counter(), sum(os.times()[:4])
    displacement, verdict = estimator(case)
    found = Found(displacement, sum(os.times()[:4]) - cpu, time.perf_counter() - begun, verdict)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({f: getattr(found, f) for f in ("displacement_mm", "cpu_s", "wall_s", "verdict")}, kept)
    return found


def phantoms() -> Iterator[Case]:
    for seed in range(3):
        made = head_case(seed)
        yield Case(
            f"phantom-{seed}", "epi", made.b0, made.reference, made.phase_encoding, made.displacement_mm,
            made.tissue, made.undistorted, True,
        )  # fmt: skip


def gathered(data: Path | None, saved: Path | None, split: str) -> Iterator[Case]:
    """The cases of a split: read, made, or the synthetic heads."""
    if saved:
        for path in sorted((saved / split).glob("*.pt")):
            yield load_case(path)
    elif data:
        heads = cache(lambda name: head(name, data))
        for recipe in RECIPES[split]:  # type: ignore[index]
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
    print(f"{machine()}; engine on {chosen.device}, torch {torch.__version__}")
    for name, why in peers.missing().items():
        print(f"missing peer {name}: {why}")
    known = estimators(chosen.device, chosen.cache)
    rows: list[dict[str, object]] = []
    for case in gathered(chosen.data, chosen.cases, chosen.split):
        if chosen.only and chosen.only not in case.name:
            continue
        for name in chosen.method or known:
            if chosen.kept and name != "nothing":
                file = f"{name.replace(' ', '_').replace(',', '')}.pt"
                if not (chosen.cache and (chosen.cache / case.name / file).exists()):
                    continue
            try:
                found = run(case, name, known[name], chosen.cache, name in chosen.again)
            except Exception as error:  # a peer that fails is a result
                print(f"{case.name:34} {name:22} failed: {type(error).__name__}: {error}", flush=True)
                rows.append({"case": case.name, "kind": case.kind, "method": name, "failed": str(error)})
                continue
            row = {"case": case.name, "kind": case.kind, "method": name, "verdict": found.verdict}
            row |= metrics.figures(case, found.displacement_mm)
            row |= {"cpu_s": found.cpu_s, "wall_s": found.wall_s}
            rows.append(row)
            print(
                f"{case.name:34} {name:22} RMSE {row['rmse_mm']:6.2f}  p95 {row['p95_mm']:6.2f}  "
                f"PSNR {row['psnr_db']:5.2f}  folded {row['folded']:.4f}  {row['cpu_s']:6.1f} s  "
                f"{found.verdict or ''}",
                flush=True,
            )
    document = {"machine": machine(), "split": chosen.split, "missing": peers.missing(), "rows": rows}
    print(plots.tables(rows))
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if chosen.plots:
        plots.draw(rows, chosen.plots)


if __name__ == "__main__":
    main()

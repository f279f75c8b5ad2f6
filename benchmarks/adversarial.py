"""The verdict on right pairs and on pairs made wrong on purpose.

    python -m benchmarks.adversarial --data FOLDER [--cases FOLDER] [--matcher NAME] [--only WORD]
                                     [--part 1/2] [--cache FOLDER [--landmarks | --again | --kept]]
                                     [--set key=value] [--json FILE]

FOLDER holds the unpacked studies; --cases a folder of simulated cases that benchmarks.cases saved. Wanted:
no wrong pair and no harmful correction (its error above the uncorrected one) ends `pass`, nine of ten right
pairs do. One line a pair, all figures as JSON.
About fifty pairs take most of an hour on one core, so each is kept in --cache as soon as it is there, its
landmarks by themselves: --landmarks stops at these, --again corrects anew with them (they do not depend on
the method's settings), --kept computes nothing. --part takes every n-th pair.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import accuracy
from benchmarks.cases import load_case
from benchmarks.field_map import shifts
from benchmarks.heads import nifti, sampled
from benchmarks.truth import STUDIES, field_map, mean_b0, series
from correction import Volume, correct, disturbed, methods
from correction.engine import Correction
from correction.errors import CorrectionError
from correction.landmarks import Landmarks
from correction.phantom import head_case, warped
from dicom_node.load import load, load_reference


@dataclass(frozen=True, slots=True)
class Pair:
    """right: a correction of this pair may pass. truth: (3, Z, Y, X) mm LPS and tissue, or None."""

    name: str
    b0: Volume
    reference: Volume
    phase_encoding: str
    right: bool
    truth: Tensor | None = None
    tissue: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    name: str
    right: bool
    verdict: str
    reasons: tuple[str, ...]
    chosen: str
    before_mm: float | None
    after_mm: float | None
    quality: dict[str, object]

    @property
    def harmful(self) -> bool:
        return (
            self.before_mm is not None and self.after_mm is not None and self.after_mm > self.before_mm + 0.05
        )


_nifti = cache(nifti)


@cache
def _dicom(study: Path, dwi: int, reference: int) -> tuple[Volume, Volume, str]:
    """Mean b = 0, reference and phase-encode axis."""
    parts = series(study)
    loaded = load(parts[dwi])
    encoding = loaded.facts.phase_encoding
    assert encoding is not None
    return mean_b0(loaded), load_reference(parts[reference]), encoding.voxel_axis


class Studies:
    """The heads and bodies that pairs are made of, each read once."""

    def __init__(self, data: Path, cases: Path | None) -> None:
        self._data, self._cases = data, cases

    def dicom(self, study: str, dwi: int, reference: int) -> tuple[Volume, Volume, str]:
        return _dicom(self._data / study, dwi, reference)

    def ms(self, name: str) -> Volume:
        return _nifti(self._data / "open_ms_long01" / f"{name}.nii.gz")

    def simulated(self) -> Iterator[Pair]:
        for seed in range(2):
            made = head_case(seed)
            yield Pair(
                f"phantom {seed}", made.b0, made.reference, "j", True, made.displacement_mm, made.tissue
            )
            yield Pair(
                f"phantom {seed}, undistorted", made.undistorted, made.reference, "j", True,
                torch.zeros_like(made.displacement_mm), made.tissue,
            )  # fmt: skip
        for seed, b0, reference, largest_mm, smooth_mm in (
            (11, "flair", "t1", 9.0, 22.0), (13, "t2", "flair", 10.0, 22.0), (14, "t2", "t1", -12.0, 30.0),
            (15, "t2", "t1", 2.5, 30.0),
        ):  # fmt: skip
            yield self._warp(
                f"{b0} to {reference}, {largest_mm:g} mm", seed, b0, reference, largest_mm, smooth_mm
            )
        for path in sorted(self._cases.glob("*.pt")) if self._cases else ():
            case = load_case(path)
            yield Pair(
                case.name,
                case.b0,
                case.reference,
                case.phase_encoding,
                True,
                case.displacement_mm,
                case.brain,
            )

    def _warp(
        self, name: str, seed: int, b0: str, reference: str, largest_mm: float, smoothness_mm: float
    ) -> Pair:
        image = thinned(self.ms(b0), 3)
        brain = torch.from_numpy(sampled(self.ms("brainmask"), image.affine, image.shape) > 0.5)
        distorted, truth = warped(image, "j", largest_mm, smoothness_mm, seed, pile_up=True)
        generator = torch.Generator().manual_seed(seed)
        level = 0.02 * float(np.percentile(distorted.data.numpy(), 98))
        parts = level * torch.randn(2, *distorted.shape, generator=generator)
        noisy = distorted.with_data(torch.hypot(distorted.data + parts[0], parts[1]))
        return Pair(name, noisy, self.ms(reference), "j", True, truth, brain)

    def real(self) -> Iterator[Pair]:
        numbers = STUDIES["siemens-xa30-enhanced"]
        b0, reference, axis = self.dicom("siemens-xa30-enhanced", numbers.dwi, numbers.reference)
        parts = series(self._data / "siemens-xa30-enhanced")
        loaded = load(parts[numbers.dwi])
        made = field_map(parts, numbers)
        assert loaded.facts.phase_encoding is not None
        truth = shifts(
            made.hz, made.head, made.grid, b0, loaded.facts.phase_encoding.increasing,
            loaded.facts.total_readout_s or 0.0,
        )  # fmt: skip
        vectors = torch.from_numpy((b0.axes[:, 1][:, None, None, None] * truth.shift_mm).astype(np.float32))
        yield Pair("xa30", b0, reference, axis, True, vectors, torch.from_numpy(truth.brain))
        for name, study, dwi, anatomy in (
            ("philips", "philips-classic", 2201, 1301), ("uih ap", "uih", 9, 2), ("uih pa", "uih", 6, 2),
            ("prostate 0218, series 8", "prostatex-0218", 8, 5),
            ("prostate 0000, series 6", "prostatex-0000", 6, 4),
        ):  # fmt: skip
            yield Pair(name, *self.dicom(study, dwi, anatomy), True)
        folder = self._data / "isles22_0009"
        yield Pair("stroke", nifti(folder / "dwi.nii.gz"), nifti(folder / "flair.nii.gz"), "j", True)

    def wrong(self) -> Iterator[Pair]:
        """Every way to be wrong, on more than one kind of image."""
        xa30, xa30_t1, axis = self.dicom("siemens-xa30-enhanced", 17, 6)
        _, philips_t1, _ = self.dicom("philips-classic", 2201, 1301)
        uih, uih_t1, _ = self.dicom("uih", 9, 2)
        prostate, prostate_t2, _ = self.dicom("prostatex-0218", 8, 5)
        other, other_t2, other_axis = self.dicom("prostatex-0000", 6, 4)
        warp = self._warp("", 14, "t2", "t1", -12.0, 30.0)
        phantom = head_case(0)
        truths = {
            "ms T2 to T1": (warp.truth, warp.tissue),
            "phantom": (phantom.displacement_mm, phantom.tissue),
        }
        for name, b0, reference, pe in (
            ("xa30, philips' T1", xa30, philips_t1, axis), ("xa30, uih's T1", xa30, uih_t1, axis),
            ("xa30, the ms head's T1", xa30, self.ms("t1"), axis), ("uih, xa30's T1", uih, xa30_t1, "j"),
            ("ms T2, xa30's T1", warp.b0, xa30_t1, "j"), ("ms T2, philips' T1", warp.b0, philips_t1, "j"),
            ("phantom, ms head's T2", phantom.b0, self.ms("t2"), "j"),
            ("prostate 0218, 0000's T2", prostate, other_t2, "j"),
            ("prostate 0000, 0218's T2", other, prostate_t2, other_axis),
        ):  # fmt: skip
            yield Pair(name, b0, disturbed.foreign(reference, b0), pe, False)
        for name, b0, reference, pe in (
            ("xa30", xa30, xa30_t1, axis), ("ms T2 to T1", warp.b0, warp.reference, "j"),
            ("phantom", phantom.b0, phantom.reference, "j"), ("prostate", prostate, prostate_t2, "j"),
        ):  # fmt: skip
            truth, tissue = truths.get(name, (None, None))
            for how, reference_now, axis_now in _disturbances(reference, pe):
                yield Pair(f"{name}, {how}", b0, reference_now, axis_now, False, truth, tissue)


def _disturbances(reference: Volume, axis: str) -> Iterator[tuple[str, Volume, str]]:
    yield "20 mm along phase encode", disturbed.shifted(reference, (0.0, 20.0, 0.0)), axis
    yield "20 mm along the body", disturbed.shifted(reference, (0.0, 0.0, 20.0)), axis
    yield "20 mm to the left", disturbed.shifted(reference, (20.0, 0.0, 0.0)), axis
    yield "swapped axes", disturbed.swapped(reference), axis
    yield "upside down", disturbed.mirrored(reference, _axis_along(reference, 1)), axis
    yield "noise", disturbed.noise(reference), axis
    yield "half a field of view", disturbed.halved(reference, _axis_along(reference, 2)), axis
    yield "wrong phase-encode axis", reference, "i" if axis[0] == "j" else "j"


def _axis_along(volume: Volume, patient_axis: int) -> str:
    """The voxel axis nearest to L, P or S."""
    return "ijk"[int(np.argmax(np.abs(volume.axes[patient_axis])))]


def thinned(volume: Volume, step: int) -> Volume:
    """In-plane means of step × step voxels."""
    data = torch.nn.functional.avg_pool2d(volume.data[:, None], step)[:, 0]
    affine = volume.affine.copy()
    affine[:3, 3] += (affine[:3, 0] + affine[:3, 1]) * (step - 1) / 2
    affine[:3, :2] *= step
    return Volume(data, affine)


@dataclass(frozen=True, slots=True)
class Run:
    """How pairs are corrected, and where what was found is kept. store: None keeps nothing."""

    matcher: str
    changes: tuple[str, ...]
    store: Path | None
    again: bool = False

    def landmarks(self, pair: Pair) -> Landmarks | None:
        if self.matcher == "none":
            return None
        return accuracy.landmarks(pair, self.matcher, "cpu", self._folder)[0]

    def kept(self, pair: Pair) -> Outcome | None:
        """What an earlier run found of the pair."""
        path = self._path(pair)
        if path is None or not path.exists():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(**{**stored, "reasons": tuple(stored["reasons"])})

    def outcome(self, pair: Pair) -> Outcome:
        """From the cache if it is there, else computed and kept."""
        if not self.again and (kept := self.kept(pair)):
            return kept
        found, path = self._corrected(pair), self._path(pair)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")  # whole or not at all: a run may be stopped at any time
            part.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
            part.replace(path)
        return found

    @property
    def _folder(self) -> Path | None:
        return self.store / self.matcher if self.store else None

    def _path(self, pair: Pair) -> Path | None:
        return (
            self._folder / pair.name / f"{'-'.join(('outcome', *self.changes))}.json"
            if self._folder
            else None
        )

    def _corrected(self, pair: Pair) -> Outcome:
        """One correction, its verdict, and its error where there is a truth."""
        settings = methods.clinical().override(self.changes)
        try:
            result = correct(pair.b0, pair.reference, pair.phase_encoding, settings, self.landmarks(pair))
        except CorrectionError as error:  # refused: as good as a rejection
            return Outcome(pair.name, pair.right, "refused", (type(error).__name__,), "", None, None, {})
        before, after = _errors(pair, result)
        figures = {k: v for k, v in asdict(result.quality).items() if k != "candidates"}
        return Outcome(
            pair.name, pair.right, str(result.verdict.level), tuple(r.code for r in result.verdict.reasons),
            result.quality.chosen, before, after, figures,
        )  # fmt: skip


def _errors(pair: Pair, result: Correction) -> tuple[float | None, float | None]:
    if pair.truth is None or pair.tissue is None:
        return None, None
    error = (result.displacement - pair.truth)[:, pair.tissue].square().sum(0).mean().sqrt()
    return float(pair.truth[:, pair.tissue].square().sum(0).mean().sqrt()), float(error)


def line(outcome: Outcome) -> str:
    error = "" if outcome.after_mm is None else f"{outcome.before_mm:5.2f} → {outcome.after_mm:5.2f} mm"
    return (
        f"{outcome.name:42} {outcome.verdict:8} {error:16} {outcome.chosen:24} {', '.join(outcome.reasons)}"
    )


def summary(outcomes: Sequence[Outcome]) -> str:
    """Verdicts of right, wrong and harmful pairs; a harmful correction counts as such alone."""
    lines = []
    for kind, chosen in (
        ("right", [o for o in outcomes if o.right and not o.harmful]),
        ("wrong", [o for o in outcomes if not o.right and not o.harmful]),
        ("harmful", [o for o in outcomes if o.harmful]),
    ):
        lines.append(f"{kind} pairs: {dict(Counter(o.verdict for o in chosen))}")
    passed = [o.name for o in outcomes if o.verdict == "pass" and (o.harmful or not o.right)]
    return "\n".join([*lines, f"wrong or harmful, and passed: {passed}"])


def pairs(data: Path, cases: Path | None, only: str) -> Iterator[Pair]:
    studies = Studies(data, cases)
    for pair in chain(studies.real(), studies.simulated(), studies.wrong()):
        if only in pair.name:
            yield pair


def _landmarks_of(how: Run, pair: Pair) -> int:
    try:
        found = how.landmarks(pair)
    except CorrectionError:  # the correction will be refused for the same reason
        return 0
    return 0 if found is None else len(found)


def _part(text: str) -> tuple[int, int]:
    first, _, step = text.partition("/")
    if not (first.isdigit() and step.isdigit() and 1 <= int(first) <= int(step)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 1 to n")
    return int(first), int(step)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--matcher", default="auto", help="as correction.landmarks.find_landmarks takes it")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--only", default="", help="pairs whose name holds this word")
    parser.add_argument("--part", type=_part, default=(1, 1), help="i/n: every n-th pair, from the i-th on")
    parser.add_argument("--cache", type=Path, help="landmarks and outcomes are kept here")
    parser.add_argument("--landmarks", action="store_true", help="find and keep landmarks, correct nothing")
    parser.add_argument("--again", action="store_true", help="correct anew what the cache has")
    parser.add_argument("--kept", action="store_true", help="run nothing: what the cache has")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if (arguments.landmarks or arguments.again or arguments.kept) and not arguments.cache:
        parser.error("--landmarks, --again and --kept need --cache")
    how = Run(arguments.matcher, tuple(arguments.changes), arguments.cache, arguments.again)
    first, step = arguments.part
    outcomes: list[Outcome] = []
    for pair in islice(pairs(arguments.data, arguments.cases, arguments.only), first - 1, None, step):
        if arguments.landmarks:
            found = _landmarks_of(how, pair)
            print(f"{pair.name:42} {found} landmarks", flush=True)
            continue
        outcome = how.kept(pair) if arguments.kept else how.outcome(pair)
        if outcome is None:
            continue
        outcomes.append(outcome)
        print(line(outcome), flush=True)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    print(summary(outcomes))


if __name__ == "__main__":
    main()

"""`correct`: one b = 0 and one reference in, a field with its figures and verdict out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from correction import apply, choice, estimate, freeform, preprocess, quality, rigid
from correction.errors import NoOverlap
from correction.estimate import Candidate, Pair, Scene
from correction.grid import Frame, resample
from correction.landmarks import Consensus, FrameLandmarks, Landmarks, agree, mind_blocks, nobody
from correction.methods import Clinical, Paper, Settings
from correction.quality import Evidence, Quality, Verdict
from correction.signals import Judge
from correction.volume import Volume

Progress = Callable[[str, float], None]

SECOND_LOOK_MM = 3.0  # voxels of the estimate that only the verdict sees


@dataclass(frozen=True, slots=True)
class Correction:
    """Everything that one correction found.

    displacement: (3, Z, Y, X) float32, patient LPS mm on b0's grid: corrected(x) = distorted(x + u(x)).
    jacobian: (Z, Y, X), determinant of x + u(x). reference: resampled on b0's grid, at its pose, 0 outside
    its field of view. seen: (Z, Y, X) bool, inside that field of view. mask: (Z, Y, X) bool, the reference's
    head inside both fields of view, where the figures were taken. landmarks: what was given, kept and
    dropped. pose: where the rigid step laid the reference. seconds: wall time of each stage.
    """

    displacement: Tensor
    jacobian: Tensor
    quality: Quality
    verdict: Verdict
    settings: Settings
    phase_encoding: str | None
    seed: int
    device: str
    b0: Volume
    reference: Volume
    seen: Tensor
    mask: Tensor
    landmarks: Consensus
    pose: rigid.Pose
    seconds: dict[str, float]

    def apply(self, volume: Volume, modulate: bool = False) -> Volume:
        """Any volume on b0's grid, corrected; modulate multiplies by the Jacobian, as EPI physics asks.

        Raises ShapeError when the grids differ.
        """
        warped = apply.warp(volume, self.displacement)
        if not modulate:
            return warped
        return warped.with_data(warped.data * self.jacobian.clamp(min=0).to(warped.data.device))


def correct(
    b0: Volume,
    reference: Volume,
    phase_encoding: str | None = "j",
    settings: Settings | None = None,
    landmarks: Landmarks | None = None,
    readout_s: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Correction:
    """Estimate the EPI distortion of `b0` against an undistorted `reference` of the same session.

    phase_encoding: voxel axis i, j, k of b0's array, '-' for decreasing (only Hz depend on the sign); None
    or "none" estimates free 3-D. settings: methods.clinical() (default) or methods.paper(). readout_s:
    total readout time (FSL's definition), for figures in Hz. The same inputs, settings and seed give the
    same field on the same machine.

    Raises UnusableImage, NoOverlap, ShapeError or SettingsError for input that cannot be used; a poor
    result is not an error but a verdict.
    """
    settings = settings if settings is not None else Clinical()
    phase_encoding = None if phase_encoding in (None, "none", "") else phase_encoding
    clock = _Clock(progress)
    frame = Frame.of(b0, phase_encoding)
    b0 = Volume(preprocess.finite("b = 0", b0.data.to(device)), b0.affine)
    reference = Volume(preprocess.finite("reference", reference.data.to(device)), reference.affine)
    # the paper's field is judged by the same eye
    looking = settings if isinstance(settings, Clinical) else Clinical()
    with clock("prepare"):
        pair = estimate.Pair.of(frame, b0, reference, looking)
        view = estimate.scene(pair, looking.judge_voxel_mm, looking)
        covered = _covered(view)
        heads = (view.reference_mask | view.b0_mask) & view.seen
        given = (
            nobody()
            if landmarks is None
            else agree(landmarks, frame, view.grid, heads, phase_encoding is not None)
        )
        # a free field follows motion by itself
        pose = rigid.Pose() if isinstance(settings, Paper) else rigid.pose(given, frame)
        if not pose.identity:
            reference, given = pose.volume(reference), pose.landmarks(given, frame)
            pair = estimate.Pair.of(frame, b0, reference, looking)
            view = estimate.scene(pair, looking.judge_voxel_mm, looking)
            covered = _covered(view)
    in_frame = None if given.in_frame is None else given.in_frame.to(device)
    if landmarks is not None and landmarks.matcher.startswith(mind_blocks.NAME):
        # they see what the method itself sees: they may judge, but would only make its mistakes twice
        used, held_out = None, in_frame
    else:
        # a sixth of the landmarks takes no part in the field, so that it can speak about it
        used, held_out = choice.hold_out(in_frame)
    judge = Judge(view, frame, looking)
    with clock("estimate"):
        if isinstance(settings, Paper):
            candidates = _by_paper(pair, settings, phase_encoding, given, seed, clock)
        elif phase_encoding is None:
            candidates = _free(pair, settings, clock)
        else:
            candidates = _along_phase_encode(pair, settings, used, clock)
    with clock("judge"):
        signals = [judge.signals(candidate) for candidate in candidates]
        # the paper offers one field and no choice
        chosen = 1 if isinstance(settings, Paper) else choice.choose(signals, settings)
        evidence = Evidence(
            before=judge.inspect(quality.NOTHING, held_out),
            after=judge.inspect(candidates[chosen], held_out),
            inliers=quality.inlier_fraction(given),
            two_estimates_mm=None if in_frame is None else _apart(pair, looking, in_frame),
        )
    with clock("apply"):
        vectors, jacobian = candidates[chosen].field.vectors(frame, frame.grid())
        directions = torch.from_numpy(frame.directions).to(device, torch.float32)
        displacement = frame.to_image(
            torch.einsum("ij,j...->i...", directions, vectors.to(device))
        ).contiguous()
        jacobian = frame.to_image(jacobian.to(device)).contiguous()
        on_b0, seen = resample(reference, frame, frame.grid())
        on_b0, seen = frame.to_image(on_b0 * seen).contiguous(), frame.to_image(seen).contiguous()
        mask = frame.to_image(estimate.on_grid(view.reference_mask, view.grid, frame.grid())).contiguous()
    axis_lps = None if phase_encoding is None else tuple(frame.directions[:, 2])
    figures = quality.measure(
        chosen, signals, evidence, displacement, jacobian, mask, covered, axis_lps,
        _hz_per_mm(frame, phase_encoding, readout_s), pose,
    )  # fmt: skip
    return Correction(
        displacement=displacement, jacobian=jacobian, quality=figures, verdict=quality.judge(figures),
        settings=settings, phase_encoding=phase_encoding, seed=seed, device=str(device), b0=b0,
        reference=b0.with_data(on_b0), seen=seen, mask=mask, landmarks=given, pose=pose,
        seconds=clock.seconds,
    )  # fmt: skip


def _along_phase_encode(
    pair: Pair, settings: Clinical, landmarks: FrameLandmarks | None, clock: _Clock
) -> list[Candidate]:
    """The coarse field and those near it; these alone where they follow the air."""
    coarse = estimate.coarse_search(pair, settings, landmarks)
    clock.report("estimate", 0.5)
    near = [Candidate(*each) for each in estimate.near_search(pair, coarse, settings, landmarks)]
    if near[0].name.startswith(estimate.AIR):
        return [quality.NOTHING, *near]
    return [quality.NOTHING, Candidate("coarse", coarse.fit.field), *near]


def _apart(pair: Pair, settings: Clinical, landmarks: FrameLandmarks) -> float:
    """Median distance between the landmarks and a coarse search that knows none of them, mm."""
    # a third of the seconds of a full search, and on XA30 the same answer within 0.01 mm
    alone = replace(
        settings, coarse_voxel_mm=SECOND_LOOK_MM, label_step_mm=1.0, iterations=15,
        spacings_mm=settings.spacings_mm[:1], wide_spacings_mm=settings.wide_spacings_mm[:1],
    )  # fmt: skip
    field = estimate.coarse_search(pair, alone, None).fit.field
    return float((field.at(landmarks.fixed_mm) - landmarks.shift_mm).abs().median())


def _free(pair: Pair, settings: Clinical, clock: _Clock) -> list[Candidate]:
    fields = freeform.clinical(pair, settings, lambda done: clock.report("estimate", done))
    names = [f"free at {spacing:g} mm" for spacing in settings.free_spacings_mm]
    return [quality.NOTHING, *(Candidate(name, field) for name, field in zip(names, fields, strict=True))]


def _by_paper(
    pair: Pair, settings: Paper, phase_encoding: str | None, given: Consensus,
    seed: int, clock: _Clock,
) -> list[Candidate]:  # fmt: skip
    confined = phase_encoding is not None and settings.phase_encode_only
    field = freeform.paper(
        pair.b0, pair.reference, pair.frame.directions[:, 2] if confined else None, settings, given.kept,
        torch.Generator().manual_seed(seed), lambda done: clock.report("estimate", done),
    )  # fmt: skip
    return [quality.NOTHING, Candidate("paper", field)]


def _covered(view: Scene) -> float:
    """Share of the b = 0's head inside the reference's field of view; raises NoOverlap below a tenth."""
    head = view.b0_mask
    covered = float((head & view.seen).sum() / head.sum().clamp(min=1))
    if covered < 0.1:
        raise NoOverlap(
            f"The reference shows {100 * covered:.0f} % of what the b = 0 shows; "
            "choose a reference of the same region and session."
        )
    return covered


def _hz_per_mm(frame: Frame, phase_encoding: str | None, readout_s: float | None) -> float | None:
    """Off-resonance per mm of shift; readout_s is effective echo spacing × (lines − 1)."""
    if phase_encoding is None or not readout_s:
        return None
    lines = frame.shape[2]
    return (lines - 1) / lines / (readout_s * frame.spacing_mm[2])


class _Clock:
    """Wall seconds of each stage, and progress for whoever watches."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    def report(self, stage: str, fraction: float) -> None:
        if self._progress is not None:
            self._progress(stage, fraction)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.report(stage, 0.0)
        begun = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - begun
        self.report(stage, 1.0)

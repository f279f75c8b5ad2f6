"""Named settings: `clinical`, the default, and `paper`, the published method to the letter.

Every number of a method is a field here. `override("key=value")` changes one by name; what is unknown or
of the wrong type is a SettingsError that says what would have been right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Literal, Self, get_args, get_origin, get_type_hints

from correction.errors import SettingsError


class _Overridable:
    """What both settings share: changing fields by name from text."""

    def override(self, changes: Iterable[str]) -> Self:
        """A copy with "key=value" texts applied; raises SettingsError for an unknown key or a bad value."""
        hints = get_type_hints(type(self))
        # the name is the method: another one has other settings
        known = {field.name for field in fields(self) if field.init} - {"name"}  # type: ignore[arg-type]
        values: dict[str, object] = {}
        for change in changes:
            key, equals, text = change.partition("=")
            key = key.strip()
            if not equals or key not in known:
                raise SettingsError(f"Unknown setting {change!r}; write key=value {_with_key(key, known)}")
            values[key] = _parse(key, text.strip(), hints[key])
        return replace(self, **values)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class Clinical(_Overridable):
    """Phase-encode-only search on a MIND cost volume, then a B-spline with bending energy.

    Lengths are millimetres. Values come from measurements (docs/accuracy.md), not from theory.
    """

    name: Literal["clinical"] = "clinical"

    # images
    mask_threshold: float = 0.12  # share of the smoothed 98th percentile
    mask_closing_mm: float = 7.0
    margin_mm: float = 14.0  # around the head along phase encode; other axes take a third
    shading_mm: float = 25.0  # Gaussian of the local mean that is divided out
    log_offset: float = 0.1

    # descriptor and cost
    coarse_voxel_mm: float = 2.0
    mind_radius: int = 1
    mind_dilation: int = 1
    reach_mm: float = 12.0  # labels to either side; widened when the search finds more
    most_reach_mm: float = 48.0
    label_step_mm: float = 0.5
    aggregation_mm: float = 3.0
    pooled_mm: float = 4.0
    wide_voxel_mm: float = 4.0  # grid of the first, wide search
    wide_step_mm: float = 1.5
    wide_spacings_mm: tuple[float, ...] = (60.0, 30.0)

    # field
    spacings_mm: tuple[float, ...] = (20.0, 12.0)
    wide_bending: float = 50.0
    coarse_bending: float = 150.0  # where all starts meet, and what air is compared at
    least_jacobian: float = 0.1
    fold_weight: float = 10.0
    iterations: int = 100  # at most; with 30, air was found where there is none, or not, by rounding

    # air: the part of the field that is not smooth
    air: bool = True  # whether it is looked for
    air_bending: float = 2000.0  # of the rest, where air explains what is steep
    # energy that air must save; measured: 0.0018 to 0.025 where it is the cause, else at most 0.0002
    air_least_gain: float = 0.001
    air_voxel_mm: float = 4.0
    air_margin_mm: float = 40.0  # around the b = 0's field of view
    air_signal: tuple[float, ...] = (0.02, 0.3)  # share of bright tissue: all air, no air
    air_b0_signal: float = 0.25  # below it, within air_shift_mm along phase encode, b = 0 may show air
    air_shift_mm: float = 8.0
    air_piece_mm: float = 30.0
    air_pieces: int = 36
    air_least_ml: float = 0.5
    air_spacing_mm: float = 5.0  # of the spline that holds these fields
    air_ridge: float = 1e-5  # on strengths, (mm per ppm)^−2
    cost_curvature: float = 0.02  # scales the search only: cost per mm², standard deviations

    # costs are taken anew close to the field that was found
    near_reach_mm: float = 4.0
    near_step_mm: float = 1.0
    near_aggregation_mm: float = 2.0
    near_bending: tuple[float, ...] = (50.0, 500.0)  # without air
    near_spacing_mm: float = 8.0

    # landmarks; weights are those of a set that is fully believed
    landmark_weight: float = 3.0  # in the coarse field, which they hold together
    landmark_weight_near: float = 0.6
    landmark_weight_air: float = 1.5
    landmark_doubt_mm: float = 3.0  # contradicting a field with air by more costs them their weight
    landmark_huber_mm: float = 1.5

    # choice among candidates: a field must beat "nothing" by this much
    least_gain: float = 0.03  # explained by agreement and structure together, see choice.choose
    most_agreement_loss: float = 0.01  # of what it leaves unexplained
    most_structure_ratio: float = 1.0
    judge_voxel_mm: float = 2.0
    synthesis_bins: int = 24
    synthesis_mm: float = 20.0

    # free 3-D, when the phase-encode axis is unknown
    free_spacings_mm: tuple[float, ...] = (40.0, 20.0)
    free_bending: float = 100.0
    free_voxel_mm: float = 3.0
    free_iterations: int = 30  # further on, noise is fitted in three directions at once

    def __post_init__(self) -> None:
        _require(0 < self.least_jacobian < 1, "least_jacobian must lie between 0 and 1")
        _require(self.label_step_mm > 0 and self.reach_mm >= 2 * self.label_step_mm, "reach_mm is too small")
        _require(
            all((self.spacings_mm, self.wide_spacings_mm, self.free_spacings_mm, self.near_bending)),
            "spacings_mm, wide_spacings_mm, free_spacings_mm and near_bending need a value",
        )
        voxels = (self.coarse_voxel_mm, self.wide_voxel_mm, self.free_voxel_mm)
        _require(min(voxels) > 0.3, "working voxels must be above 0.3 mm")


@dataclass(frozen=True, slots=True)
class Paper(_Overridable):
    """LMBS-INR as published: every default is the paper's, or says where it comes from."""

    name: Literal["paper"] = "paper"

    # what is optimised: the network for control points, the points themselves, or the network for every point
    parameterisation: Literal["inr", "control_points", "dense"] = "inr"
    spacing_voxels: float = 30.0  # of control points, voxels of the reference
    layers: int = 5
    hidden: int = 512
    fourier_rows: int = 128  # not in the paper; the authors' program
    fourier_sigma: float = 10.0  # not in the paper; the authors' program, positions in [−1, 1]
    bins: int = 64  # not in the paper; the authors' program
    samples: int = 0  # 0: every voxel, as the paper; else that many, drawn anew each iteration
    landmark_weight: float = 2.0  # λ, in half extents of the reference grid (the unit in which 2 balances)
    bending: float = 0.0  # the paper has no regulariser
    learning_rate: float = 1e-4
    iterations: int = 150
    phase_encode_only: bool = False  # the paper's field is free in three dimensions

    def __post_init__(self) -> None:
        _require(self.spacing_voxels >= 1, "spacing_voxels must be at least 1")
        _require(self.layers >= 2 and self.hidden >= 1 and self.fourier_rows >= 1, "the network needs layers")
        _require(self.bins >= 8, "bins must be at least 8")
        _require(self.samples >= 0 and self.iterations >= 0, "samples and iterations cannot be negative")
        sampled = self.samples > 0 and self.bending == 0
        _require(self.parameterisation != "dense" or sampled, "dense needs samples and has no bending")


Settings = Clinical | Paper


def clinical() -> Clinical:
    """The default method."""
    return Clinical()


def paper() -> Paper:
    """Landmark matching and B-spline implicit neural representations, as published."""
    return Paper()


def _with_key(key: str, known: set[str]) -> str:
    """Which key may have been meant; all of them only where none is like it."""
    close = get_close_matches(key, sorted(known))
    return f"with {' or '.join(close)}." if close else f"with one of: {', '.join(sorted(known))}."


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SettingsError(f"Unusable settings: {message}.")


def _parse(key: str, text: str, hint: object) -> object:
    """`text` as the type of a field: number, truth, choice or comma-separated numbers."""
    try:
        if get_origin(hint) is Literal:
            if text not in get_args(hint):
                raise ValueError
            return text
        if get_origin(hint) is tuple:
            return tuple(float(part) for part in text.split(",") if part)
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        return int(text) if hint is int else float(text)
    except (ValueError, KeyError) as error:
        raise SettingsError(f"Setting {key}: {text!r} is not {_expected(hint)}.") from error


def _expected(hint: object) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of numbers, like 20,12"
    return {bool: "true or false", int: "a whole number"}.get(hint, "a number")  # type: ignore[call-overload, no-any-return]

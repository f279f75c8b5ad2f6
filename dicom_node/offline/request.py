"""What is asked of `dicom-node correct`, and what becomes of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from correction.landmarks import matchers, mind_blocks
from dicom_node.derive import DerivePolicy
from dicom_node.recipe import NO_MATCHER, Recipe
from rules.pair import PairingPolicy

NIFTI_ENDINGS = (".nii", ".nii.gz")
MATCHERS = (NO_MATCHER, "auto", *matchers.FILES, mind_blocks.NAME)
AXES = ("i", "i-", "j", "j-", "k", "k-", "none")
_DEVICE = re.compile(r"auto|cpu|cuda(:(?P<number>\d+))?")

SeriesProgress = Callable[[str, str, float], None]  # which series, stage, fraction


class InputProblem(Exception):
    """Input that cannot be corrected; the message says what it is and what to do."""


class WrongOption(Exception):
    """An option that cannot be followed; the message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. phase_encoding: BIDS letter, or None: as the header says."""

    inputs: tuple[Path, ...]
    out: Path
    reference: Path | None = None
    recipe: Recipe = field(default_factory=Recipe)
    phase_encoding: str | None = None
    total_readout_s: float | None = None
    b_values: Path | None = None
    b_vectors: Path | None = None
    pairing: PairingPolicy = field(default_factory=PairingPolicy)
    derive: DerivePolicy = field(default_factory=DerivePolicy)


@dataclass(frozen=True, slots=True)
class Result:
    """One correction and where its files are."""

    name: str
    out: Path
    reference: str
    verdict: str
    verdict_text: str
    rms_mm: float
    max_mm: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A DWI series that was not corrected, and why."""

    name: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that became of the input."""

    results: tuple[Result, ...]
    skipped: tuple[Skipped, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def rejected(self) -> bool:
        """Whether a verdict is `reject`."""
        return any(result.verdict == "reject" for result in self.results)


def check_options(request: Request) -> None:
    """Raises WrongOption, or SettingsError for what the method does not know."""
    request.recipe.settings()
    if request.phase_encoding is not None and request.phase_encoding not in AXES:
        raise WrongOption(
            f"'{request.phase_encoding}' is no phase-encoding axis; write one of: {', '.join(AXES)}."
        )
    if request.total_readout_s is not None and not 0 < request.total_readout_s < 10:
        raise WrongOption(
            f"{request.total_readout_s:g} is no total readout time; write seconds, such as 0.05."
        )
    matcher = request.recipe.matcher
    if matcher not in MATCHERS:
        raise WrongOption(f"'{matcher}' is no matcher; write one of: {', '.join(MATCHERS)}.")
    device = request.recipe.device
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise WrongOption(f"'{device}' is no device; write auto, cpu or cuda:N.")
    if device.startswith("cuda") and int(match["number"] or 0) >= torch.cuda.device_count():
        raise WrongOption(f"There is no GPU '{device}' that torch can use; write auto or cpu.")
    there = next(place for place in (request.out, *request.out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise WrongOption(f"{there} is a file, so no results can go into {request.out}; give another --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise WrongOption(f"{there} cannot be written by this user; give another --out.")


def output_folder(path: Path) -> Path:
    """`path`, made where it is not there yet; raises WrongOption."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongOption(
            f"The folder {path} cannot be made ({error.strerror}); give another --out."
        ) from error
    return path

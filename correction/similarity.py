"""How alike two images are, across contrasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from correction import smooth

# six-neighbourhood and its twelve pairs that are √2 apart (self-similarity context, Heinrich 2013)
_NEIGHBOURS = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
_PAIRS = tuple(
    (a, b)
    for i, a in enumerate(_NEIGHBOURS)
    for b in _NEIGHBOURS[i + 1 :]
    if sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) == 2
)


def mind_ssc(image: Tensor, radius: int, dilation: int) -> Tensor:
    """MIND-SSC descriptor: what a patch's neighbours look like to one another.

    image: (A, B, C). radius: of the cubic patch, voxels. dilation: distance of the neighbours, voxels.
    Returns (12, A, B, C) in (0, 1]; unchanged by local affine intensity changes, inversion included.
    """
    padded = functional.pad(image[None, None], [dilation] * 6, mode="replicate")[0, 0]
    shifted = {n: _view(padded, n, image.shape, dilation) for n in _NEIGHBOURS}
    distance = torch.stack([(shifted[a] - shifted[b]) ** 2 for a, b in _PAIRS])
    distance = smooth.box(distance, radius)
    variance = distance.mean(0)
    centre = variance.mean()
    variance = variance.clamp(min=1e-3 * float(centre), max=1e3 * float(centre)).clamp(min=1e-12)
    return torch.exp(-(distance - distance.min(0).values) / variance)


def correlation(first: Tensor, second: Tensor, weight: Tensor) -> float:
    """Weighted Pearson correlation over all voxels; 0 when either is constant."""
    total = weight.sum().clamp(min=1e-12)
    a = first - (first * weight).sum() / total
    b = second - (second * weight).sum() / total
    scale = torch.sqrt((a * a * weight).sum() * (b * b * weight).sum())
    return float((a * b * weight).sum() / scale) if float(scale) > 0 else 0.0


def edge_agreement(first: Tensor, second: Tensor, weight: Tensor, spacing_mm: Sequence[float]) -> float:
    """How parallel the edges of two images run, blind to their sign: 1 parallel, 1/3 by chance.

    first, second, weight: (A, B, C). The squared cosine of the angle between the gradients at a Gaussian of
    2 mm, averaged with the weight where both images have an edge that stands out of their mean gradient
    (normalised gradient fields, Haber & Modersitzki 2006). 0 when either is constant.
    """
    sigma = [2.0 / s for s in spacing_mm]
    gradients = [
        torch.stack(torch.gradient(smooth.gaussian(image, sigma), spacing=[float(s) for s in spacing_mm]))
        for image in (first, second)
    ]
    squared = [(gradient**2).sum(0) for gradient in gradients]
    noise = [((s.sqrt() * weight).sum() / weight.sum().clamp(min=1e-12)) ** 2 for s in squared]
    outstanding = weight / ((squared[0] + noise[0]) * (squared[1] + noise[1])).clamp(min=1e-24)
    both = (squared[0] * squared[1] * outstanding).sum()
    parallel = ((gradients[0] * gradients[1]).sum(0) ** 2 * outstanding).sum()
    return float(parallel / both) if float(both) > 0 else 0.0


def local_synthesis(
    target: Tensor, source: Tensor, weight: Tensor, bins: int, sigma_voxels: Sequence[float]
) -> Tensor:
    """What `target` would look like as a local function of `source`: E[target | source] near each voxel.

    target, source, weight: (A, B, C). The source's range inside the weight is cut into `bins` soft bins;
    each bin's mean of the target is taken under a Gaussian of sigma_voxels (computed on a grid of half
    that distance, which such a Gaussian does not notice). Returns (A, B, C).
    """
    inside = source[weight > 0.5]
    if len(inside) < bins:
        return torch.zeros_like(target)
    inside = inside[:: max(1, len(inside) // 1_000_000)]
    low, high = (float(torch.quantile(inside, q)) for q in (0.01, 0.99))
    position = ((source - low) / max(high - low, 1e-12) * (bins - 1)).clamp(0, bins - 1)
    factors = [max(1, min(n, round(s / 2))) for s, n in zip(sigma_voxels, target.shape, strict=True)]
    sigma = [s / f for s, f in zip(sigma_voxels, factors, strict=True)]
    # whole blocks only: what is left over at the far faces is padded with nothing
    missing = [(-n) % f for n, f in zip(target.shape, factors, strict=True)]
    padding = [0, missing[2], 0, missing[1], 0, missing[0]]
    predicted = torch.zeros_like(target)
    for centre in range(bins):
        soft = torch.relu(1.0 - (position - centre).abs())
        share = soft * weight
        sums = smooth.pool(functional.pad(torch.stack([share * target, share]), padding), factors)
        sums = smooth.gaussian(sums, sigma)
        mean = sums[0] / sums[1].clamp(min=1e-6)
        predicted += soft * _spread(mean, factors)[: target.shape[0], : target.shape[1], : target.shape[2]]
    return predicted


def _spread(coarse: Tensor, factors: Sequence[int]) -> Tensor:
    """Linear interpolation from block centres back to voxels, (a, b, c) → (a·fa, b·fb, c·fc)."""
    size = [n * f for n, f in zip(coarse.shape, factors, strict=True)]
    return functional.interpolate(coarse[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]


class JointHistogram(Function):
    """Σ_n β³(f_n − i)·β³(m_n − j) over samples, differentiable in m; chunked, and the same on every run."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, fixed: Tensor, moving: Tensor, bins: int) -> Tensor:
        """fixed, moving: (N,) bin positions in [2, bins − 3]. Returns (bins, bins)."""
        ctx.save_for_backward(fixed, moving)
        ctx.bins = bins  # type: ignore[attr-defined]
        joint = fixed.new_zeros(bins, bins)
        for f, m in _chunks(fixed, moving):
            joint += _windows(f, bins).T @ _windows(m, bins)
        return joint

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, slope: Tensor) -> tuple[None, Tensor, None]:
        fixed, moving = ctx.saved_tensors  # type: ignore[attr-defined]
        parts = []
        for f, m in _chunks(fixed, moving):
            first, t = _first_bin(m)
            wanted = (_windows(f, ctx.bins) @ slope).gather(1, first[:, None] + _steps(m))  # type: ignore[attr-defined]
            parts.append((wanted * _cubic_slope(t)).sum(1))
        return None, torch.cat(parts), None


def mutual_information(
    fixed: Tensor, moving: Tensor, ranges: tuple[tuple[float, float], ...], bins: int
) -> Tensor:
    """Parzen-window mutual information, nats (Thévenaz & Unser 2000): cubic windows on both images.

    fixed, moving: (N,) samples, any unit. ranges: (low, high) of each image, fixed for the whole run;
    samples beyond are clamped. Two bins at each end stay empty for the windows' tails.
    """
    positions = [
        2.0 + (x.clamp(low, high) - low) / max(high - low, 1e-12) * (bins - 5)
        for x, (low, high) in zip((fixed, moving), ranges, strict=True)
    ]
    joint: Tensor = JointHistogram.apply(positions[0], positions[1], bins)  # type: ignore[no-untyped-call]
    p = joint / joint.sum()
    p_fixed, p_moving = p.sum(1, keepdim=True), p.sum(0, keepdim=True)
    tiny = 1e-12
    ratio = torch.log(p + tiny) - torch.log(p_fixed + tiny) - torch.log(p_moving + tiny)
    return (p * ratio).sum()


_CHUNK = 1 << 18  # samples at a time, so that windows of 64 bins stay small


def _chunks(fixed: Tensor, moving: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(fixed), _CHUNK):
        yield fixed[start : start + _CHUNK], moving[start : start + _CHUNK]


def _view(padded: Tensor, shift: tuple[int, int, int], shape: torch.Size, dilation: int) -> Tensor:
    start = [dilation * (1 + s) for s in shift]
    a, b, c = (slice(o, o + n) for o, n in zip(start, shape, strict=True))
    return padded[a, b, c]


def _steps(like: Tensor) -> Tensor:
    return torch.arange(4, device=like.device)


def _first_bin(position: Tensor) -> tuple[Tensor, Tensor]:
    below = position.floor()
    return below.long() - 1, position - below


def _windows(position: Tensor, bins: int) -> Tensor:
    """(N,) → (N, bins) cubic B-spline weights; rows sum to one."""
    first, t = _first_bin(position)
    s = 1 - t
    weights = torch.stack(
        [s**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * s**2 + 3 * s**3, t**3], dim=1
    ) / 6  # fmt: skip
    out = position.new_zeros(len(position), bins)
    return out.scatter_(1, first[:, None] + _steps(position), weights)


def _cubic_slope(t: Tensor) -> Tensor:
    s = 1 - t
    return torch.stack([-(s**2), 3 * t**2 - 4 * t, 4 * s - 3 * s**2, t**2], dim=1) / 2

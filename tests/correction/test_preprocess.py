"""Masks and shading without a brain."""

import torch

from correction import preprocess, similarity


def _ball(radius: float = 14.0, size: int = 44) -> torch.Tensor:
    steps = torch.arange(size) - size / 2
    z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
    return (x**2 + y**2 + z**2).sqrt() < radius


def test_the_mask_holds_the_dark_inside_and_not_the_noise_around() -> None:
    body = _ball()
    hollow = _ball(7.0)
    image = torch.where(body & ~hollow, 1.0, 0.0) + 0.02 * torch.rand(body.shape)
    mask = preprocess.head_mask(image, (2.0, 2.0, 2.0), 0.12, 7.0)
    assert float((mask & body).sum() / body.sum()) > 0.99
    assert not bool((mask & ~_ball(14.0 + 2.5)).any())  # a rim of two voxels comes from the smoothing


def test_shading_is_divided_out() -> None:
    body = _ball()
    texture = 1 + 0.3 * torch.rand(body.shape, generator=torch.Generator().manual_seed(0))
    shading = torch.linspace(0.4, 1.6, body.shape[2]).expand(body.shape)
    plain = preprocess.debiased_log(texture * body, body, (6.0, 6.0, 6.0), 25.0, 0.1)
    shaded = preprocess.debiased_log(texture * shading * body, body, (6.0, 6.0, 6.0), 25.0, 0.1)
    weight = body.float()
    raw = similarity.correlation((texture * shading * body).clamp(min=1e-3).log(), plain, weight)
    assert similarity.correlation(shaded, plain, weight) > max(0.8, raw + 0.1)


def test_z_scores_have_mean_zero_and_unit_deviation() -> None:
    score = preprocess.z_score(torch.rand(5, 6, 7) * 40 + 3)
    assert abs(float(score.mean())) < 1e-5
    assert abs(float(score.std()) - 1) < 1e-5

"""Similarities against theory and finite differences."""

import numpy as np
import pytest
import torch

from correction import similarity


def _pair(correlation: float, count: int = 40_000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=generator)
    y = correlation * x + (1 - correlation**2) ** 0.5 * torch.randn(count, generator=generator)
    return x, y


def _range(x: torch.Tensor) -> tuple[float, float]:
    return float(x.min()), float(x.max())


@pytest.mark.parametrize("correlation", [0.5, 0.8, 0.95])
def test_mutual_information_of_gaussians_comes_near_its_theory(correlation: float) -> None:
    x, y = _pair(correlation)
    found = float(similarity.mutual_information(x, y, (_range(x), _range(y)), 64))
    # Parzen windows blur: the estimate lies a little below for strong dependence
    assert found == pytest.approx(-0.5 * np.log(1 - correlation**2), rel=0.15)


def test_mutual_information_does_not_care_for_inversion() -> None:
    x, y = _pair(0.8)
    plain = similarity.mutual_information(x, y, (_range(x), _range(y)), 32)
    inverted = similarity.mutual_information(x, -y, (_range(x), _range(-y)), 32)
    assert float(plain) == pytest.approx(float(inverted), rel=1e-3)


def test_the_gradient_of_mutual_information_is_its_slope() -> None:
    x, y = _pair(0.8, 500)
    ranges = (_range(x), _range(y))
    y.requires_grad_(True)
    similarity.mutual_information(x, y, ranges, 32).backward()
    for index in (3, 77, 210):
        step = torch.zeros_like(y)
        step[index] = 0.02
        with torch.no_grad():
            up = similarity.mutual_information(x, y + step, ranges, 32)
            down = similarity.mutual_information(x, y - step, ranges, 32)
        assert float(y.grad[index]) == pytest.approx(float((up - down) / 0.04), rel=0.05, abs=1e-6)


def test_mind_is_blind_to_shading_and_inversion_but_not_to_anatomy() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(12, 14, 16, generator=generator)
    other = torch.rand(12, 14, 16, generator=generator)
    descriptor = similarity.mind_ssc(image, 1, 1)
    assert descriptor.shape == (12, 12, 14, 16)
    inverted = similarity.mind_ssc(3.0 - 2.0 * image, 1, 1)
    assert float((descriptor - inverted).abs().max()) < 1e-4
    assert float(((descriptor - similarity.mind_ssc(other, 1, 1)) ** 2).mean()) > 0.01


def test_a_local_function_of_the_source_is_reproduced() -> None:
    generator = torch.Generator().manual_seed(2)
    source = torch.rand(20, 22, 24, generator=generator)
    target = (source - 0.4) ** 2 + 0.1 * source
    weight = torch.ones_like(source)
    predicted = similarity.local_synthesis(target, source, weight, 24, (5.0, 5.0, 5.0))
    assert similarity.correlation(predicted, target, weight) > 0.97
    unrelated = torch.rand(20, 22, 24, generator=generator)
    predicted = similarity.local_synthesis(unrelated, source, weight, 24, (5.0, 5.0, 5.0))
    assert similarity.correlation(predicted, unrelated, weight) < 0.5


def test_correlation_with_a_constant_is_zero() -> None:
    image = torch.rand(4, 4, 4)
    assert similarity.correlation(image, torch.ones_like(image), torch.ones_like(image)) == 0.0

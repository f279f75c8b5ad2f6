"""What landmarks that had no part in a field say about it."""

import pytest
import torch

from correction.signals import share_of_field


@pytest.fixture(scope="module")
def true_mm() -> torch.Tensor:
    return 3.0 * torch.randn(600, generator=torch.Generator().manual_seed(1)) + 1.0


@pytest.fixture(scope="module")
def told_mm(true_mm: torch.Tensor) -> torch.Tensor:
    """Landmarks with their usual noise, one in ten of them plainly wrong."""
    random = torch.Generator().manual_seed(2)
    told = true_mm + 0.8 * torch.randn(600, generator=random)
    told[::10] = 12.0 * torch.randn(60, generator=random)
    return told


@pytest.mark.parametrize(
    ("strength", "share"), [(1.0, 1.0), (1.5, 0.67), (2.0, 0.5), (0.5, 2.0), (-1.0, -1.0)]
)
def test_a_field_that_is_too_strong_is_seen_through_the_noise_of_the_landmarks(
    true_mm: torch.Tensor, told_mm: torch.Tensor, strength: float, share: float
) -> None:
    assert share_of_field(strength * true_mm, told_mm) == pytest.approx(share, abs=0.08)


def test_a_field_with_noise_or_an_offset_of_its_own_goes_too_far(
    true_mm: torch.Tensor, told_mm: torch.Tensor
) -> None:
    noise = 2.5 * torch.randn(600, generator=torch.Generator().manual_seed(3))
    for wrong in (true_mm + noise, true_mm + 3.0):
        found = share_of_field(wrong, told_mm)
        assert found is not None
        assert found < 0.75


def test_a_field_that_moves_hardly_anything_is_not_judged_by_its_slope(told_mm: torch.Tensor) -> None:
    assert share_of_field(torch.full((600,), 0.5), told_mm) is None

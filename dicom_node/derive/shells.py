"""Volumes of one diffusion weighting: what scanners write as 990, 1000 and 1005 s/mm² is one b-value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

B0_UP_TO = 20.0  # s/mm²: scanners write small numbers for b = 0
LOW_B = 100.0  # below, protocols step by ten (IVIM), so that only jitter may merge
LOW_JITTER, JITTER = 5.0, 25.0  # s/mm²: how far the exact values of one shell may lie from its lowest


@dataclass(frozen=True, slots=True)
class Shell:
    """The volumes (indices) of one b-value; b_value is the mean of their exact ones, s/mm²."""

    b_value: float
    volumes: tuple[int, ...]

    @property
    def label(self) -> str:
        """The b-value as people say it: 990 and 1005 are 1000."""
        if self.b_value <= B0_UP_TO:
            return "0"
        return str(50 * round(self.b_value / 50) if self.b_value >= LOW_B else round(self.b_value))


def shells_of(b_values: Mapping[int, float]) -> list[Shell]:
    """Shells in ascending order, from the b-value of each volume; volumes keep their order within one."""
    groups: list[list[tuple[int, float]]] = []
    for index, b_value in sorted(b_values.items(), key=lambda pair: pair[1]):
        if groups and _joins(groups[-1][0][1], b_value):
            groups[-1].append((index, b_value))
        else:
            groups.append([(index, b_value)])
    return [
        Shell(sum(b for _, b in group) / len(group), tuple(sorted(index for index, _ in group)))
        for group in groups
    ]


def _joins(lowest: float, b_value: float) -> bool:
    if lowest <= B0_UP_TO:
        return b_value <= B0_UP_TO
    return b_value - lowest <= (LOW_JITTER if lowest < LOW_B else JITTER)

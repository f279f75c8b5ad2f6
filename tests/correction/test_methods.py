"""Settings: the paper's values, and overrides by name."""

from dataclasses import fields

import pytest

from correction import SettingsError, methods


def test_paper_has_the_published_numbers() -> None:
    paper = methods.paper()
    assert (paper.spacing_voxels, paper.layers, paper.hidden) == (30.0, 5, 512)
    assert (paper.landmark_weight, paper.learning_rate, paper.iterations) == (2.0, 1e-4, 150)
    assert (paper.bins, paper.samples, paper.bending) == (64, 0, 0.0)
    assert not paper.phase_encode_only


def test_overrides_change_only_what_they_name() -> None:
    changed = methods.clinical().override(["reach_mm=20", "spacings_mm=24,12", "iterations=5"])
    assert (changed.reach_mm, changed.spacings_mm, changed.iterations) == (20.0, (24.0, 12.0), 5)
    assert (
        changed.override([f"{k}={v}" for k, v in (("reach_mm", 12.0), ("iterations", 30))]).reach_mm == 12.0
    )
    assert methods.paper().override(["parameterisation=control_points", "phase_encode_only=true"]) == (
        methods.Paper(parameterisation="control_points", phase_encode_only=True)
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("bends=3", "Unknown setting"),
        ("reach_mm", "Unknown setting"),
        ("reach_mm=far", "a number"),
        ("iterations=1.5", "a whole number"),
        ("spacings_mm=20;12", "a list of numbers"),
        ("reach=3", "with reach_mm"),
        ("name=paper", "Unknown setting"),
        ("least_jacobian=2", "between 0 and 1"),
        ("spacings_mm=", "need a value"),
    ],
)
def test_a_bad_override_says_what_would_be_right(change: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        methods.clinical().override([change])


@pytest.mark.parametrize("settings", [methods.clinical(), methods.paper()])
def test_the_settings_that_are_listed_are_those_that_can_be_changed(
    settings: methods.Clinical | methods.Paper,
) -> None:
    with pytest.raises(SettingsError) as error:
        settings.override(["qqq=1"])
    listed = str(error.value).partition("one of: ")[2].removesuffix(".").split(", ")
    assert set(listed) == {field.name for field in fields(settings)} - {"name"}


def test_a_bad_choice_lists_the_choices() -> None:
    with pytest.raises(SettingsError, match="inr, control_points"):
        methods.paper().override(["parameterisation=spline"])

from __future__ import annotations

import pytest

from dicom_node.derive.shells import shells_of


@pytest.mark.parametrize(
    ("b_values", "labels"),
    [
        ((0.0, 990.0, 1000.0, 1005.0), ["0", "1000"]),
        ((5.0, 0.0, 50.0, 400.0, 800.0), ["0", "50", "400", "800"]),
        ((0.0, 30.0, 40.0, 50.0), ["0", "30", "40", "50"]),
        ((0.0, 1.25, 698.75, 701.25), ["0", "700"]),
        ((50.0, 800.0), ["50", "800"]),
        ((0.0, 1000.0, 1050.0), ["0", "1000", "1050"]),
    ],
)
def test_what_one_protocol_calls_a_b_value_is_one_shell(
    b_values: tuple[float, ...], labels: list[str]
) -> None:
    assert [shell.label for shell in shells_of(dict(enumerate(b_values)))] == labels


def test_a_shell_has_the_mean_of_its_exact_b_values_and_its_volumes_in_order() -> None:
    b0, weighted = shells_of({0: 1000.0, 1: 0.0, 2: 990.0, 3: 1010.0})

    assert (b0.b_value, b0.volumes) == (0.0, (1,))
    assert (weighted.b_value, weighted.volumes) == (1000.0, (0, 2, 3))

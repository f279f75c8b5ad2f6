"""The one word for the whole node, and what it is made of."""

from dataclasses import replace

import pytest

from dicom_node.health import Parts, health_document

WELL = Parts(started=True, listener=True, ledger=True, room=True, workers=1, destinations={"PACS": None})


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        (WELL, "ok"),
        (replace(WELL, room=False), "degraded"),
        (replace(WELL, destinations={"PACS": "nothing listens there"}), "degraded"),
        (replace(WELL, workers=0), "failing"),
        (replace(WELL, listener=False), "failing"),
        (replace(WELL, ledger=False), "failing"),
        (replace(WELL, started=False, workers=0), "starting"),
        (replace(WELL, started=False, listener=False), "failing"),
    ],
)
def test_the_worst_part_decides(parts: Parts, status: str) -> None:
    assert health_document(parts)["status"] == status


def test_each_part_says_what_is_wrong_with_it() -> None:
    parts = Parts(
        started=True, listener=False, ledger=False, room=False, workers=0, destinations={"A": "gone"}
    )
    assert health_document(parts)["checks"] == {
        "listener": "not running",
        "ledger": "cannot be read",
        "disk": "below storage.min_free_bytes: new images are refused",
        "workers": "none is running",
        "destinations": {"A": "gone"},
    }


def test_while_the_node_starts_it_does_not_call_its_workers_missing() -> None:
    assert health_document(replace(WELL, started=False, workers=0))["checks"]["workers"] == "starting"

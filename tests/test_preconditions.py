"""What keeps the node from starting is one sentence with the way out."""

import socket
from pathlib import Path

import pytest

from dicom_node import preconditions
from dicom_node.preconditions import NodeError


def test_a_port_that_is_free_is_left_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    preconditions.check_port("The node", "node", "127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_that_is_taken_names_the_key_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = f"The status page cannot listen on 127.0.0.1:{port}: another program uses it; .*web.port"
        with pytest.raises(NodeError, match=told):
            preconditions.check_port("The status page", "web", "127.0.0.1", port)


def test_an_address_of_another_machine_names_the_key_to_change() -> None:
    with pytest.raises(NodeError, match=r"no such address; set node\.bind"):
        preconditions.check_port("The node", "node", "192.0.2.1", 11112)


def test_a_storage_root_that_cannot_be_made_names_the_key_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError, match=r"^The storage root .*; set storage\.root to a folder"):
        preconditions.storage(tmp_path / "file" / "root", 0)


def test_a_storage_root_has_one_node(tmp_path: Path) -> None:
    with preconditions.lock(tmp_path), pytest.raises(NodeError, match="Another dicom-node is running"):
        preconditions.lock(tmp_path)

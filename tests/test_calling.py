"""The requestor's side: answers to C-STORE are heard without pynetdicom, everything else by it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import write_series
from listening import Node, starting
from pydicom.uid import MRImageStorage
from pynetdicom.dimse import DIMSEServiceProvider

from dicom_node.calling import CallingSocket, store_answer
from dicom_node.dimse import (
    COMMAND,
    DATA_SET,
    LAST,
    command_set,
    pdus,
    us_value,
)
from dicom_node.dimse import (
    COMMAND_DATA_SET_TYPE as TYPE,
)
from dicom_node.scu import echo, store
from dicom_node.sockets import PromptSocket
from dicom_node.statuses import Answer
from dicom_node.store_scp import StoreAnswer, StoreRequest, response

REQUEST = StoreRequest(7, MRImageStorage, "1.2.3", MRImageStorage, "1.2.840.10008.1.2.1")
ANSWER = response(REQUEST, StoreAnswer(Answer.OUT_OF_RESOURCES, "no room"))


def body(command: bytes, control: int = COMMAND, max_pdu: int = 0) -> bytes:
    """Of the first PDU that carries a command."""
    return next(pdus(5, control, command, max_pdu))[6:]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    yield from starting(tmp_path)


def test_the_calling_socket_is_a_prompt_socket_too() -> None:
    assert issubclass(CallingSocket, PromptSocket)


def test_an_answer_has_its_context_its_message_and_its_status() -> None:
    heard = store_answer(body(ANSWER))
    assert heard is not None
    context_id, answer = heard
    assert (context_id, answer.MessageIDBeingRespondedTo, answer.Status) == (5, 7, 0xA700)
    assert answer.is_valid_response


@pytest.mark.parametrize(
    "content",
    [
        b"",
        body(ANSWER, max_pdu=64),  # the rest comes in the next PDU
        body(ANSWER) + body(ANSWER),
        body(ANSWER, control=0),  # a data set
        body(command_set({0x0100: us_value(0x8030), 0x0120: us_value(7), TYPE: us_value(0x0101)})),  # C-ECHO
        body(command_set({0x0100: us_value(0x8001), TYPE: us_value(DATA_SET)})),
        body(command_set({0x0100: us_value(0x8001), TYPE: us_value(0x0101)})),  # without a status
        struct.pack(">LBB", 2, 5, COMMAND | LAST) + b"noise",
    ],
)
def test_anything_else_is_left_to_pynetdicom(content: bytes) -> None:
    assert store_answer(content) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_none(content: bytes) -> None:
    heard = store_answer(content)
    assert heard is None or heard[1].is_valid_response


def test_a_series_is_sent_without_pynetdicoms_decoder_and_an_echo_with_it(
    start: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start()
    decoded: list[Any] = []
    receive = DIMSEServiceProvider.receive_primitive

    def counted(self: DIMSEServiceProvider, primitive: Any) -> None:
        decoded.append(primitive)
        receive(self, primitive)

    monkeypatch.setattr(DIMSEServiceProvider, "receive_primitive", counted)
    assert store(node.peer(), write_series(tmp_path / "series", 20)).complete
    assert not decoded
    assert echo(node.peer()).answered
    assert decoded

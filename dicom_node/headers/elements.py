"""Tolerant, typed reading of header elements: a wrong value is a missing value.

Scanners, PACS and de-identification write numbers as text in OB, doubles in UN and vendors' elements
without their creators. Elements are decoded here from their stored bytes; pydicom decodes
what is left: text in its character set, and sequences.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from io import BytesIO
from typing import TypeAlias

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence
from pydicom.tag import BaseTag

Element: TypeAlias = DataElement | RawDataElement

_BINARY = {"FD": ("d", 8), "FL": ("f", 4), "US": ("H", 2), "SS": ("h", 2), "UL": ("I", 4), "SL": ("i", 4)}
_UNDECLARED = {None, "", "UN", "OB", "OW"}
_NUMBER_TEXT = re.compile(rb"^[0-9+\-.eE\\ \x00]*$")
_TEXT_PADDING = " \x00\t\r\n"
_FIRST_BLOCK, _LAST_BLOCK = 0x10, 0xFF


class Layer:
    """One data set, and where in it each vendor's private block lies."""

    __slots__ = ("_blocks", "dataset")

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._blocks: dict[int, dict[str, int]] = {}

    def private(self, group: int, creator: str, offset: int) -> Element | None:
        """Element (group, xx`offset`) of the block that `creator` reserved.

        Where no creator is left in that group at all (some PACS strip them), the first block is tried.
        """
        blocks = self._blocks.get(group)
        if blocks is None:
            blocks = self._blocks[group] = self._find_blocks(group)
        block = blocks.get(creator.casefold()) if blocks else _FIRST_BLOCK
        return None if block is None else self.dataset.get_item(BaseTag(group << 16 | block << 8 | offset))

    def _find_blocks(self, group: int) -> dict[str, int]:
        blocks: dict[str, int] = {}
        for tag in self.dataset.keys():  # noqa: SIM118  # iterating a Dataset would decode every element
            if tag.group == group and _FIRST_BLOCK <= tag.element <= _LAST_BLOCK:
                name = _decode_text(self.dataset, self.dataset.get_item(tag))
                blocks.setdefault("".join(name[:1]).casefold(), tag.element)
        return blocks


class Header:
    """The elements that describe one image or frame: layers of data sets, of which the first to know wins."""

    __slots__ = ("layers",)

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)

    def under(self, datasets: Sequence[Dataset]) -> Header:
        """This header with more specific data sets before it."""
        return Header((*(Layer(dataset) for dataset in datasets), *self.layers))

    # -- public elements

    def has(self, tag: int) -> bool:
        """Whether the element is there with a value."""
        _, element = self._find(tag)
        return element is not None

    def numbers(self, tag: int) -> tuple[float, ...]:
        """All values of a numeric element; empty when absent or not numbers."""
        _, element = self._find(tag)
        return () if element is None else _decode_numbers(element, _public_vr(tag))

    def number(self, tag: int) -> float | None:
        """The first value of a numeric element."""
        return next(iter(self.numbers(tag)), None)

    def integer(self, tag: int) -> int | None:
        """The first value, as a whole number."""
        return _whole(self.number(tag))

    def texts(self, tag: int) -> tuple[str, ...]:
        """All values of a text element, without padding."""
        dataset, element = self._find(tag)
        return () if dataset is None else _decode_text(dataset, element)

    def text(self, tag: int) -> str:
        """The first value of a text element, or an empty string."""
        return next(iter(self.texts(tag)), "")

    def tokens(self, tag: int) -> tuple[str, ...]:
        """All values of a code element in upper case."""
        return tuple(value.upper() for value in self.texts(tag))

    def items(self, tag: int) -> list[Dataset]:
        """The items of a sequence."""
        dataset, element = self._find(tag)
        return [] if dataset is None else _decode_items(dataset, element)

    # -- private elements

    def private_numbers(self, group: int, creator: str, offset: int, vr: str) -> tuple[float, ...]:
        """Values of a vendor's element, whose true value representation is `vr`."""
        for layer in self.layers:
            element = layer.private(group, creator, offset)
            if element is not None and (values := _decode_numbers(element, vr)):
                return values
        return ()

    def private_number(self, group: int, creator: str, offset: int, vr: str) -> float | None:
        """The first value of a vendor's numeric element."""
        return next(iter(self.private_numbers(group, creator, offset, vr)), None)

    def private_texts(self, group: int, creator: str, offset: int) -> tuple[str, ...]:
        """Values of a vendor's text element."""
        for layer in self.layers:
            element = layer.private(group, creator, offset)
            if element is not None and (values := _decode_text(layer.dataset, element)):
                return values
        return ()

    def private_text(self, group: int, creator: str, offset: int) -> str:
        """The first value of a vendor's text element, or an empty string."""
        return next(iter(self.private_texts(group, creator, offset)), "")

    def private_bytes(self, group: int, creator: str, offset: int) -> bytes:
        """The stored bytes of a vendor's element."""
        for layer in self.layers:
            element = layer.private(group, creator, offset)
            if element is not None and isinstance(element.value, bytes):
                return element.value
        return b""

    def private_items(self, group: int, creator: str, offset: int) -> list[Dataset]:
        """The items of a vendor's sequence, also where it hides as UN."""
        for layer in self.layers:
            element = layer.private(group, creator, offset)
            if element is not None and (found := _decode_items(layer.dataset, element)):
                return found
        return []

    def _find(self, tag: int) -> tuple[Dataset | None, Element | None]:
        """The first layer's element that has a value."""
        key = BaseTag(tag)
        for layer in self.layers:
            element = layer.dataset.get_item(key)
            if element is not None and element.value not in (None, b"", ""):
                return layer.dataset, element
        return None, None


def moment(date: str, time: str = "") -> datetime | None:
    """DICOM DA and TM, or DT alone, as a naive time; None when either is unreadable."""
    digits = re.sub(r"[^0-9.+\-].*$", "", date + time)
    match = re.fullmatch(r"(\d{4})(\d\d)(\d\d)(\d\d)?(\d\d)?(\d\d)?(?:\.(\d{1,6})\d*)?(?:[+-]\d{4})?", digits)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction = match.groups()
    try:
        whole = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0))
    except ValueError:
        return None
    # a leap second is legal in DICOM and not in datetime
    return whole + timedelta(seconds=int(second or 0), microseconds=int((fraction or "0").ljust(6, "0")))


def _public_vr(tag: int) -> str:
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return "DS"


def _decode_numbers(element: Element, vr: str) -> tuple[float, ...]:
    value = element.value
    if value is None:
        return ()
    if not isinstance(value, bytes):
        return _finite(_converted(value))
    declared = getattr(element, "VR", None)
    if declared not in _UNDECLARED:
        vr = str(declared)
    elif vr in _BINARY and value.strip(b"\x00 ") and _NUMBER_TEXT.match(value):
        vr = "DS"  # de-identification wrote the number as text into OB
    layout = _BINARY.get(vr)
    if layout is None:
        return _finite(_parsed(value))
    letter, size = layout
    if not value or len(value) % size:
        return ()
    order = "<" if getattr(element, "is_little_endian", True) else ">"
    return _finite(struct.unpack(f"{order}{len(value) // size}{letter}", value))


def _converted(value: object) -> Iterator[float]:
    """Numbers of a value that pydicom has already converted."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    for one in values:
        try:
            yield float(one)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            yield math.nan


def _parsed(value: bytes) -> Iterator[float]:
    """Numbers written as text, as DS and IS are."""
    text = value.decode("latin-1").strip(_TEXT_PADDING)
    for part in text.split("\\") if text else ():
        try:
            yield float(part.strip(_TEXT_PADDING))
        except ValueError:
            yield math.nan


def _finite(values: Iterator[float] | Sequence[float]) -> tuple[float, ...]:
    """The values, or nothing at all when one of them is no finite number."""
    found = tuple(float(value) for value in values)
    return found if all(map(math.isfinite, found)) else ()


def _decode_text(dataset: Dataset, element: Element | None) -> tuple[str, ...]:
    value = None if element is None else element.value
    if value is None:
        return ()
    if isinstance(value, bytes):
        if value.isascii() and b"\x1b" not in value:
            value = value.decode("ascii")
        else:
            value = _decode_charset(dataset, element, value)
    parts = value.split("\\") if isinstance(value, str) else value
    texts = (
        [str(part).strip(_TEXT_PADDING) for part in parts] if isinstance(parts, Sequence) else [str(parts)]
    )
    return tuple(texts) if any(texts) else ()


def _decode_charset(dataset: Dataset, element: Element | None, value: bytes) -> str:
    if isinstance(element, RawDataElement) and element.VR not in _UNDECLARED:
        try:
            converted = convert_raw_data_element(element, encoding=dataset.original_character_set, ds=dataset)
            return "\\".join(map(str, converted.value if converted.VM > 1 else [converted.value]))
        except (ValueError, LookupError, UnicodeError, TypeError, AttributeError):
            pass
    return value.decode("latin-1")  # for display only


def _decode_items(dataset: Dataset, element: Element | None) -> list[Dataset]:
    value = None if element is None else element.value
    if isinstance(value, bytes):
        value = _parse_items(dataset, element, value)
    return [item for item in value if isinstance(item, Dataset)] if isinstance(value, Sequence) else []


def _parse_items(dataset: Dataset, element: Element | None, value: bytes) -> Sequence[Dataset]:
    """Items of a sequence that pydicom left as bytes; none when the bytes only look like items."""
    little_endian = bool(getattr(element, "is_little_endian", True))
    if not value.startswith(b"\xfe\xff\x00\xe0" if little_endian else b"\xff\xfe\xe0\x00"):
        return ()
    # PS3.5 §6.2.2: a sequence that became UN on its way is encoded as implicit VR little endian
    explicit = isinstance(element, RawDataElement) and element.VR == "SQ" and not element.is_implicit_VR
    charset = dataset.original_character_set or "iso8859"
    try:
        return list(read_sequence(BytesIO(value), not explicit, little_endian, len(value), charset))
    except (ValueError, LookupError, OSError, EOFError, struct.error, TypeError, AttributeError):
        return ()


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)

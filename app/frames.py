"""Frames: the strict decoding of what a client sends into a typed request, and the encoding of what it is sent."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import msgspec
import orjson
from msgspec import Meta, Struct

from app.messages import DEFAULT_TIMEOUT_MS, END, KINDS, MAX_PASSWORD_BYTES, PASSWORDS, Code, Kind, Request, Text64

MAX_DEPTH = 8


class BadFrame(Exception):
    """A frame that is no request: `error` with this code, and with the id where there is a usable one."""

    def __init__(self, code: Code, id: str | None = None, field: str | None = None) -> None:
        super().__init__(code)
        self.code, self.id, self.field = code, id, field


KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")


class Envelope(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    event: Text64
    id: Text64
    key: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{16,64}" + END)] | None = None
    data: dict[str, Any] = {}
    timeout_ms: Annotated[int, Meta(ge=100, le=30_000)] = DEFAULT_TIMEOUT_MS


@dataclass(frozen=True)
class Frame:
    """A decoded request; `data` is of the type that `kind` names."""

    id: str
    kind: Kind
    data: Request
    key: str | None = field(repr=False)  # never logged
    timeout_ms: int


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"(\s*:)?')


def decode(frame: bytes) -> Frame:
    """One text frame → a typed request. Raises BadFrame; never anything else.

    bad_json: what strict JSON parsers may differ on (duplicate names, NaN, lone surrogates, a BOM, nesting
    past 8). bad_request: a known event whose data does not fit, with the field's name.
    """
    value = parse_json(frame)
    if not isinstance(value, dict):
        raise BadFrame(Code.BAD_REQUEST)
    raw_id = value.get("id")
    id = raw_id if isinstance(raw_id, str) and 1 <= len(raw_id) <= 64 else None
    try:
        envelope = msgspec.convert(value, Envelope)
    except msgspec.ValidationError as error:
        raise BadFrame(Code.BAD_REQUEST, id, field_of(error)) from None
    return typed(envelope.event, envelope.data, id, envelope.key, envelope.timeout_ms)


def typed(
    event: str, data: object, id: str | None, key: str | None = None, timeout_ms: int = DEFAULT_TIMEOUT_MS
) -> Frame:
    """A request by its name and its parsed data. Raises BadFrame."""
    kind = KINDS.get(event)
    if kind is None:
        raise BadFrame(Code.UNKNOWN_EVENT, id)
    for name in PASSWORDS.values():
        raw = data.get(name) if isinstance(data, dict) else None
        if isinstance(raw, str) and len(raw.encode()) > MAX_PASSWORD_BYTES:  # as sent: NFKC can make it longer
            raise BadFrame(Code.BAD_REQUEST, id, name)
    try:
        return Frame(id or "", kind, msgspec.convert(data, kind.data), key, timeout_ms)
    except msgspec.ValidationError as error:
        raise BadFrame(Code.BAD_REQUEST, id, field_of(error)) from None


def parse_json(text: bytes) -> object:
    """Strict JSON (RFC 8259, I-JSON's unique names), at most 8 deep. Raises BadFrame bad_json."""
    try:
        value = orjson.loads(text)  # refuses NaN, lone surrogates, a BOM, bad UTF-8
    except orjson.JSONDecodeError:
        raise BadFrame(Code.BAD_JSON) from None
    names = sum(1 for colon in _STRING.findall(text) if colon)
    if _count_names(value, 1) != names:  # a parser that keeps the last of two equal names counts one less
        raise BadFrame(Code.BAD_JSON)
    return cast(object, value)


def _count_names(value: object, depth: int) -> int:
    if isinstance(value, dict):
        inner: list[object] = list(value.values())
        names = len(value)
    elif isinstance(value, list):
        inner, names = value, 0
    else:
        return 0
    if depth > MAX_DEPTH:
        raise BadFrame(Code.BAD_JSON)
    return names + sum(_count_names(item, depth + 1) for item in inner)


def field_of(error: msgspec.ValidationError) -> str | None:
    """The wire name of the field that msgspec complains about: ``… - at `$.email` ``."""
    text = str(error)
    found = re.search(r"(?:field `([^`]*)`)|`\$\.([A-Za-z0-9_]+)", text)
    return (found[1] or found[2]) if found else None


def canonical(data: Request) -> bytes:
    """The same bytes for the same request data, however a client wrote it."""
    return orjson.dumps(msgspec.to_builtins(data), option=orjson.OPT_SORT_KEYS)


def code_of(data: bytes) -> str | None:
    """The code in the data of a terminal event; None for a success."""
    value = orjson.loads(data)
    return value.get("code") if isinstance(value, dict) else None


def encode(event: str, id: str | None, data: bytes) -> bytes:
    """A frame to a client around data that is JSON already."""
    return orjson.dumps({"event": event, "id": id, "data": orjson.Fragment(data)})


def push(event: str, data: bytes) -> bytes:
    """A frame that nobody asked for: it has no id."""
    return orjson.dumps({"event": event, "data": orjson.Fragment(data)})


def encode_data(data: Struct) -> bytes:
    """The JSON of an event's data."""
    return msgspec.json.encode(data)

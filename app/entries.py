"""What travels between gateway, worker and mailer: packing, sealing and signing, and their strict undoing."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from app.messages import KINDS, Code, Frame, Kind, Lane, Reply, Request, encode_data
from app.ports import Entry, Sealed, SealedMail, Signed
from app.records import Identity, Mail, Notice, Origin, Outcome
from app.sealing import Envelope, Opener, Unreadable, associated
from app.settings import Secrets

# --- requests: gateway → worker ------------------------------------------------------------------------------


class _RequestBody(Struct, frozen=True):
    data: dict[str, Any]
    origin: Origin


def pack_request(envelope: Envelope, rid: str, frame: Frame, origin: Origin, deadline: int) -> Entry:
    kind = frame.kind
    body = orjson.dumps({"data": orjson.Fragment(encode_data(frame.data)), "origin": origin})
    box = envelope.seal(body, _bound(rid, origin.node, kind.event, kind.lane, deadline, envelope.wrapped))
    return Entry(rid, origin.node, kind.event, kind.lane, deadline, envelope.wrapped, box)


def open_request(opener: Opener, entry: Entry) -> tuple[Envelope, Kind, Request, Origin]:
    """Unreadable for what no gateway of this deployment can have written, or no request of this version is."""
    envelope = opener.envelope(entry.wrapped)
    bound = _bound(entry.rid, entry.node, entry.event, entry.lane, entry.deadline, entry.wrapped)
    body = envelope.open(entry.box, bound)
    kind = KINDS.get(entry.event)
    if kind is None:
        raise Unreadable(f"no request {entry.event[:64]!r}")
    try:
        opened = msgspec.json.decode(body, type=_RequestBody)
        return envelope, kind, msgspec.convert(opened.data, kind.data), opened.origin
    except msgspec.MsgspecError as error:
        raise Unreadable(f"not a request: {error}") from None


def _bound(rid: str, node: str, event: str, lane: Lane, deadline: int, wrapped: bytes) -> bytes:
    return associated(rid, node, event, lane, deadline, wrapped)


# --- replies: worker → the gateway that asked ---------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedReply:
    event: str
    data: bytes = field(repr=False)  # JSON
    code: str
    identity: Identity | None
    forget: bool


class _ReplyBody(Struct, frozen=True):
    event: str
    data: msgspec.Raw
    code: str
    identity: Identity | None = None
    forget: bool = False


def pack_reply(envelope: Envelope, rid: str, outcome: Outcome) -> Sealed:
    data = msgspec.Raw(encode_data(outcome.data))
    body = _ReplyBody(outcome.event, data, outcome.code, outcome.identity, outcome.forget)
    return Sealed(rid, envelope.seal_back(msgspec.json.encode(body), associated("reply", rid)))


def open_reply(envelope: Envelope, reply: Sealed) -> OpenedReply:
    """Unreadable unless a worker of this deployment sealed it for this envelope and this request."""
    try:
        text = envelope.open_back(reply.box, associated("reply", reply.rid))
        body = msgspec.json.decode(text, type=_ReplyBody)
    except msgspec.MsgspecError as error:
        raise Unreadable(f"not a reply: {error}") from None
    return OpenedReply(body.event, bytes(body.data), body.code, body.identity, body.forget)


# --- pushes and failures: signed, nothing secret in them ------------------------------------------------------------


@dataclass(frozen=True)
class OpenedNotice:
    user_id: str
    session_id: str
    event: str
    data: bytes
    spare: tuple[str, str]
    close: bool


@dataclass(frozen=True)
class OpenedFailure:
    """A request that could not be worked on: its client is told `error` with this code."""

    rid: str
    code: Code


class _NoticeBody(Struct, frozen=True, tag="notice"):
    user_id: str
    session_id: str
    event: str
    data: msgspec.Raw
    spare: tuple[str, str]
    close: bool


class _FailureBody(Struct, frozen=True, tag="failure"):
    rid: str
    code: Code


def sign_notice(edge: Secrets, notice: Notice) -> Signed:
    event: Reply = notice.event
    data = msgspec.Raw(encode_data(event))
    return _sign(edge, _NoticeBody(notice.user_id, notice.session_id, event.event, data, notice.spare, notice.close))


def sign_failure(edge: Secrets, rid: str, code: Code) -> Signed:
    return _sign(edge, _FailureBody(rid, code))


def open_signed(edge: Secrets, signed: Signed) -> OpenedNotice | OpenedFailure:
    """Unreadable unless somebody with the edge secret wrote it."""
    kid, _, mac = signed.mac.partition(b":")
    secret = edge.find(kid.decode(errors="replace"))
    if secret is None or not hmac.compare_digest(hmac.digest(secret.value, b"signed\0" + signed.body, "sha256"), mac):
        raise Unreadable("the signature does not hold")
    try:
        body = msgspec.json.decode(signed.body, type=_NoticeBody | _FailureBody)
    except msgspec.MsgspecError as error:
        raise Unreadable(f"not a push: {error}") from None
    if isinstance(body, _FailureBody):
        return OpenedFailure(body.rid, body.code)
    return OpenedNotice(body.user_id, body.session_id, body.event, bytes(body.data), body.spare, body.close)


def _sign(edge: Secrets, body: _NoticeBody | _FailureBody) -> Signed:
    text, secret = msgspec.json.encode(body), edge.current
    return Signed(text, secret.kid.encode() + b":" + hmac.digest(secret.value, b"signed\0" + text, "sha256"))


# --- mails: worker → mailer -----------------------------------------------------------------------------------------


def pack_mail(envelope: Envelope, id: str, mail: Mail) -> SealedMail:
    box = envelope.seal(msgspec.json.encode(mail), associated("mail", id, envelope.wrapped))
    return SealedMail(id, envelope.wrapped, box)


def open_mail(opener: Opener, sealed: SealedMail) -> Mail:
    text = opener.envelope(sealed.wrapped).open(sealed.box, associated("mail", sealed.id, sealed.wrapped))
    try:
        return msgspec.json.decode(text, type=Mail)
    except msgspec.MsgspecError as error:
        raise Unreadable(f"not a mail: {error}") from None

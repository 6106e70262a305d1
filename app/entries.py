"""What travels between gateway, worker and mailer: packing, sealing and signing, and their strict undoing."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from app.frames import Frame, canonical, encode_data
from app.messages import KINDS, Code, Kind, Lane, Reply, Request
from app.ports import Entry, Sealed, SealedMail, Signed
from app.records import Identity, Mail, Notice, Origin, Outcome
from app.sealing import Envelope, Opener, Unreadable, associated, open_kept, seal_kept
from app.settings import Secret, Secrets

# --- requests: gateway → worker ------------------------------------------------------------------------------


class _RequestBody(Struct, frozen=True):
    data: dict[str, Any]
    origin: Origin


def sameness(edge: Secrets, frame: Frame, session_id: str) -> str:
    """What makes a request with a key the same request: its key, event and data, and the session it needs."""
    return _sameness(edge.current, frame, session_id)


def former_sameness(edge: Secrets, frame: Frame, session_id: str) -> tuple[str, ...]:
    """What it is on gateways that have another version of the edge secret as their current one, or had it."""
    return tuple(_sameness(secret, frame, session_id) for secret in edge.versions[1:])


def _sameness(secret: Secret, frame: Frame, session_id: str) -> str:
    about = associated(frame.key or "", frame.kind.event, canonical(frame.data), session_id)
    return hmac.new(secret.value, b"same\0" + about, "sha256").hexdigest()


def pack_request(
    envelope: Envelope,
    rid: str,
    frame: Frame,
    origin: Origin,
    deadline: int,
    lane: Lane,
    same: str = "",
    *,
    replay: bool = False,
) -> Entry:
    """`replay`: ask for what became of the same request; that never hashes, whatever the request and its lane."""
    body = orjson.dumps({"data": orjson.Fragment(encode_data(frame.data)), "origin": origin})
    lane = Lane.FAST if replay else lane
    entry = Entry(rid, origin.node, frame.kind.event, lane, deadline, envelope.wrapped, b"", same, replay)
    return replace(entry, box=envelope.seal(body, _bound(entry)))


def open_request(opener: Opener, entry: Entry) -> tuple[Envelope, Kind, Request, Origin]:
    """Unreadable for what no gateway of this deployment can have written, or no request of this version is."""
    envelope = opener.envelope(entry.wrapped)
    body = envelope.open(entry.box, _bound(entry))
    kind = KINDS.get(entry.event)
    if kind is None:
        raise Unreadable(f"no request {entry.event[:64]!r}")
    try:
        opened = msgspec.json.decode(body, type=_RequestBody)
        return envelope, kind, msgspec.convert(opened.data, kind.data), opened.origin
    except msgspec.MsgspecError as error:
        raise Unreadable(f"not a request: {error}") from None


def _bound(entry: Entry) -> bytes:
    e = entry
    return associated(e.rid, e.node, e.event, e.lane, e.deadline, e.wrapped, e.same, int(e.replay))


# --- replies: worker → the gateway that asked ---------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedReply:
    event: str
    data: bytes = field(repr=False)  # JSON
    code: str
    identity: Identity | None = None
    forget: bool = False
    even: bool = False
    spent_ms: float = 0.0
    progress: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)  # events and their JSON, to be told before


# A worker's word to the gateway, never to a client: nothing is recorded that may be given again; admit it anew.
ANEW = OpenedReply("", b"null", "")


class _ReplyBody(Struct, frozen=True):
    event: str
    data: msgspec.Raw
    code: str
    identity: Identity | None = None
    forget: bool = False
    even: bool = False
    spent_ms: float = 0.0
    progress: tuple[tuple[str, msgspec.Raw], ...] = ()


def reply_of(outcome: Outcome) -> OpenedReply:
    data = encode_data(outcome.data)
    progress = tuple((reply.event, encode_data(reply)) for reply in outcome.progress)
    how = (outcome.identity, outcome.forget, outcome.even, outcome.spent_ms)
    return OpenedReply(outcome.event, data, outcome.code, *how, progress)


def pack_reply(envelope: Envelope, rid: str, reply: OpenedReply) -> Sealed:
    return Sealed(rid, envelope.seal_back(_reply_text(reply), associated("reply", rid)))


def open_reply(envelope: Envelope, reply: Sealed) -> OpenedReply:
    """Unreadable unless a worker of this deployment sealed it for this envelope and this request."""
    return _read_reply(envelope.open_back(reply.box, associated("reply", reply.rid)))


def _reply_text(reply: OpenedReply) -> bytes:
    data, progress = msgspec.Raw(reply.data), tuple((event, msgspec.Raw(text)) for event, text in reply.progress)
    how = (reply.identity, reply.forget, reply.even, reply.spent_ms)
    body = _ReplyBody(reply.event, data, reply.code, *how, progress)
    return msgspec.json.encode(body)


def _read_reply(text: bytes) -> OpenedReply:
    try:
        body = msgspec.json.decode(text, type=_ReplyBody)
    except msgspec.MsgspecError as error:
        raise Unreadable(f"not a reply: {error}") from None
    progress = tuple((event, bytes(text)) for event, text in body.progress)
    how = (body.identity, body.forget, body.even, body.spent_ms)
    return OpenedReply(body.event, bytes(body.data), body.code, *how, progress)


# --- outcomes kept for a request that is sent again: worker → any worker --------------------------------------------


@dataclass(frozen=True)
class OpenedRecord:
    """`session_id`: the session the outcome speaks for; it is given again only while that lives.

    `challenge_id`: the challenge it asks to be answered, which who gets it again may answer too.
    """

    reply: OpenedReply
    session_id: str
    challenge_id: str


class _RecordBody(Struct, frozen=True):
    reply: msgspec.Raw
    session_id: str
    challenge_id: str = ""


def pack_record(secret: Secrets, same: str, reply: OpenedReply, session_id: str, challenge_id: str = "") -> bytes:
    body = _RecordBody(msgspec.Raw(_reply_text(reply)), session_id, challenge_id)
    return secret.current.kid.encode() + b"." + seal_kept(secret.current, msgspec.json.encode(body), same.encode())


def open_record(secret: Secrets, same: str, box: bytes) -> OpenedRecord:
    """Unreadable unless a worker of this deployment kept it for this very request."""
    kid, _, sealed = box.partition(b".")
    kept_under = secret.find(kid.decode(errors="replace"))
    if kept_under is None:
        raise Unreadable("kept under a worker secret that is not here")
    try:
        body = msgspec.json.decode(open_kept(kept_under, sealed, same.encode()), type=_RecordBody)
    except msgspec.MsgspecError as error:
        raise Unreadable(f"not an outcome: {error}") from None
    return OpenedRecord(_read_reply(bytes(body.reply)), body.session_id, body.challenge_id)


# --- pushes and failures: signed, nothing secret in them ------------------------------------------------------------


@dataclass(frozen=True)
class OpenedNotice:
    user_id: str
    session_id: str
    event: str
    data: bytes
    spare: tuple[str, str]
    close: bool
    devices: tuple[str, ...] | None
    only: tuple[str, str] | None
    ends_others: str = ""


@dataclass(frozen=True)
class OpenedFailure:
    """A request that could not be worked on: its client is told `error` with this code."""

    rid: str
    code: Code


@dataclass(frozen=True)
class OpenedWord:
    """The request that `same` names has ended: who joined it is told the error `code`, or asks what became of it."""

    same: str
    code: Code | None
    retry_after_ms: int | None


class _WordBody(Struct, frozen=True, tag="word"):
    same: str
    code: Code | None = None
    retry_after_ms: int | None = None


class _NoticeBody(Struct, frozen=True, tag="notice"):
    user_id: str
    session_id: str
    event: str
    data: msgspec.Raw
    spare: tuple[str, str]
    close: bool
    devices: tuple[str, ...] | None = None
    only: tuple[str, str] | None = None
    ends_others: str = ""


class _FailureBody(Struct, frozen=True, tag="failure"):
    rid: str
    code: Code


def sign_notice(edge: Secrets, notice: Notice) -> Signed:
    event: Reply = notice.event
    data = msgspec.Raw(encode_data(event))
    about = (notice.user_id, notice.session_id, event.event, data)
    body = _NoticeBody(*about, notice.spare, notice.close, notice.devices, notice.only, notice.ends_others)
    return _sign(edge, body)


def sign_failure(edge: Secrets, rid: str, code: Code) -> Signed:
    return _sign(edge, _FailureBody(rid, code))


def sign_word(edge: Secrets, same: str, code: Code | None, retry_after_ms: int | None) -> Signed:
    return _sign(edge, _WordBody(same, code, retry_after_ms))


def open_signed(edge: Secrets, signed: Signed) -> OpenedNotice | OpenedFailure | OpenedWord:
    """Unreadable unless somebody with the edge secret wrote it."""
    kid, _, mac = signed.mac.partition(b":")
    secret = edge.find(kid.decode(errors="replace"))
    if secret is None or not hmac.compare_digest(hmac.digest(secret.value, b"signed\0" + signed.body, "sha256"), mac):
        raise Unreadable("the signature does not hold")
    try:
        body = msgspec.json.decode(signed.body, type=_NoticeBody | _FailureBody | _WordBody)
    except msgspec.MsgspecError as error:
        raise Unreadable(f"not a push: {error}") from None
    if isinstance(body, _FailureBody):
        return OpenedFailure(body.rid, body.code)
    if isinstance(body, _WordBody):
        return OpenedWord(body.same, body.code, body.retry_after_ms)
    about = (body.user_id, body.session_id, body.event, bytes(body.data))
    return OpenedNotice(*about, body.spare, body.close, body.devices, body.only, body.ends_others)


def _sign(edge: Secrets, body: _NoticeBody | _FailureBody | _WordBody) -> Signed:
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

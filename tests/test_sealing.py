"""Sealing: what travels is readable by whom it is for and was written by one of us, or it is Unreadable."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from app import entries, sealing
from app.entries import ANEW, OpenedFailure, OpenedNotice, OpenedRecord, OpenedWord
from app.frames import decode, typed
from app.keys import SealKeys
from app.messages import (
    KINDS,
    Code,
    DeviceVerified,
    Lane,
    LoginSuccess,
    Reply,
    SecondFactorVerified,
    SessionEnded,
    refusal,
)
from app.ports import Entry, Sealed, SealedMail, Signed
from app.records import Identity, Mail, Notice, Origin, Outcome
from app.sealing import Envelope, Opener, Unreadable, associated
from app.settings import Secrets
from tests.making import EDGE, IDENTITY, NOW, ORIGIN, WORKER, secret, secrets_of
from tests.test_messages import DATA, TEXTS_OF, data_of, text_of

many = settings(max_examples=200, deadline=None, database=None)

KEY, OTHER_KEY = X25519PrivateKey.generate(), X25519PrivateKey.generate()
SECRETS = ("correct horse battery staple", "header.payload.signature", "wrk1.0wrk1-session.4.mac", "12345678")


def envelope(purpose: str = "request") -> Envelope:
    return Envelope.to("key1", KEY.public_key(), EDGE.current, purpose)


def opener(purpose: str = "request") -> Opener:
    return Opener(SealKeys({}, {"key1": KEY}), EDGE, purpose)


ENVELOPE = envelope()


def pack(
    event: str = "login",
    origin: Origin = ORIGIN,
    box: Envelope = ENVELOPE,
    same: str = "",
    replay: bool = False,
    lane: Lane | None = None,
) -> Entry:
    frame = decode(text_of(event))
    return entries.pack_request(box, "0edg1-rid", frame, origin, NOW, lane or frame.kind.lane, same, replay=replay)


# --- envelopes ----------------------------------------------------------------------------------------------------


def test_what_is_sealed_opens_on_the_other_side_in_both_directions() -> None:
    here, there = ENVELOPE, opener().envelope(ENVELOPE.wrapped)
    assert there.open(here.seal(b"forth", b"bound"), b"bound") == b"forth"
    assert here.open_back(there.seal_back(b"back", b"bound"), b"bound") == b"back"
    assert there.open(here.seal(b"", b""), b"") == b""


def test_one_direction_does_not_open_the_other() -> None:
    there = opener().envelope(ENVELOPE.wrapped)
    with pytest.raises(Unreadable):
        ENVELOPE.open_back(ENVELOPE.seal(b"text", b""), b"")
    with pytest.raises(Unreadable):
        there.open(there.seal_back(b"text", b""), b"")


def test_a_box_bound_to_one_thing_does_not_open_for_another() -> None:
    with pytest.raises(Unreadable):
        ENVELOPE.open(ENVELOPE.seal(b"text", b"bound"), b"other")


def test_no_byte_of_a_box_can_be_altered_added_or_left_out() -> None:
    box = ENVELOPE.seal(b"text", b"bound")
    altered = [box[:n] + bytes([box[n] ^ 1]) + box[n + 1 :] for n in range(len(box))]
    for wrong in (*altered, *(box[:n] for n in range(len(box))), box + b"\0", b"\0" + box):
        with pytest.raises(Unreadable):
            ENVELOPE.open(wrong, b"bound")


def test_no_byte_of_an_envelope_can_be_altered_added_or_left_out() -> None:
    wrapped = ENVELOPE.wrapped
    altered = [wrapped[:n] + bytes([wrapped[n] ^ 1]) + wrapped[n + 1 :] for n in range(len(wrapped))]
    for wrong in (*altered, *(wrapped[:n] for n in range(len(wrapped))), wrapped + b"\0"):
        with pytest.raises(Unreadable):
            opener().envelope(wrong)


@given(st.binary(max_size=120), st.booleans())
@many
def test_any_bytes_for_an_envelope_are_unreadable_and_raise_nothing_else(text: bytes, headed: bool) -> None:
    with pytest.raises(Unreadable):
        opener().envelope(b"key1.edg1." + text if headed else text)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Opener(SealKeys({}, {"key1": OTHER_KEY}), EDGE, "request"), id="another private key"),
        pytest.param(Opener(SealKeys({}, {"key2": KEY}), EDGE, "request"), id="a key under another id"),
        pytest.param(Opener(SealKeys({}), EDGE, "request"), id="no private key"),
        pytest.param(Opener(SealKeys({}, {"key1": KEY}), secrets_of("edg2"), "request"), id="without the edge secret"),
        pytest.param(Opener(SealKeys({}, {"key1": KEY}), EDGE, "mail"), id="for another purpose"),
    ],
)
def test_an_envelope_opens_only_with_its_key_its_edge_secret_and_for_its_purpose(other: Opener) -> None:
    with pytest.raises(Unreadable):
        other.envelope(ENVELOPE.wrapped)


def test_who_has_the_private_key_but_another_edge_secret_under_the_same_id_neither_reads_nor_writes() -> None:
    forged = replace(secret("evil"), kid="edg1")
    thief = Opener(SealKeys({}, {"key1": KEY}), Secrets((forged,)), "request").envelope(ENVELOPE.wrapped)
    with pytest.raises(Unreadable):
        thief.open(ENVELOPE.seal(b"text", b""), b"")
    stranger = Envelope.to("key1", KEY.public_key(), forged, "request")
    with pytest.raises(Unreadable):
        opener().envelope(stranger.wrapped).open(stranger.seal(b"text", b""), b"")
    with pytest.raises(Unreadable):
        ENVELOPE.open_back(thief.seal_back(b"text", b""), b"")


def test_one_gateway_cannot_read_anothers_boxes() -> None:
    one, other = envelope(), envelope()
    for opening, box in ((other.open, one.seal(b"text", b"")), (other.open_back, one.seal_back(b"text", b""))):
        with pytest.raises(Unreadable):
            opening(box, b"")


def test_retired_keys_and_secrets_still_open_what_is_under_way() -> None:
    rotated = Opener(SealKeys({}, {"key2": OTHER_KEY, "key1": KEY}), secrets_of("edg2", "edg1"), "request")
    assert rotated.envelope(ENVELOPE.wrapped).open(ENVELOPE.seal(b"text", b""), b"") == b"text"


def test_the_same_text_is_never_sealed_to_the_same_bytes() -> None:
    assert len({ENVELOPE.seal(b"text", b"") for _ in range(100)}) == 100
    assert envelope().wrapped != envelope().wrapped


def test_an_opener_keeps_the_envelopes_used_last_and_opens_the_others_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_OPENED_ENVELOPES", 3)
    receiver, boxes = opener(), [envelope() for _ in range(4)]
    for n in (0, 1, 2, 0, 3):
        receiver.envelope(boxes[n].wrapped)
    assert list(receiver._opened) == [boxes[n].wrapped for n in (2, 0, 3)]
    for box in boxes:
        assert receiver.envelope(box.wrapped).open(box.seal(b"text", b""), b"") == b"text"
    assert len(receiver._opened) == 3


field = st.one_of(st.text(max_size=4), st.binary(max_size=4), st.integers(0, 999))
encoded = st.lists(field, max_size=4)


@given(encoded, encoded)
@many
def test_no_two_lists_of_fields_are_bound_to_the_same_bytes(one: list[Any], other: list[Any]) -> None:
    def plain(fields: list[Any]) -> list[bytes]:
        return [item if isinstance(item, bytes) else str(item).encode() for item in fields]

    assert (associated(*one) == associated(*other)) == (plain(one) == plain(other))


def test_fields_cannot_be_shifted_into_each_other() -> None:
    assert associated("ab", "c") != associated("a", "bc") != associated("abc")


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", [None, IDENTITY], ids=["nobody", "somebody"])
@pytest.mark.parametrize("event", KINDS)
def test_a_request_arrives_as_it_was_sent(event: str, identity: Identity | None) -> None:
    origin = replace(ORIGIN, identity=identity)
    entry = pack(event, origin)
    assert (entry.rid, entry.node, entry.event, entry.deadline) == ("0edg1-rid", "0-node", event, NOW)
    assert entry.lane is KINDS[event].lane
    assert (entry.same, entry.replay) == ("", False)
    _, kind, request, found = entries.open_request(opener(), entry)
    assert (kind, request, found) == (KINDS[event], decode(text_of(event)).data, origin)


def test_what_a_rest_caller_brings_arrives_with_the_request_and_is_not_shown() -> None:
    origin = replace(ORIGIN, connection="", bearer="header.payload.signature", refresh_token="wrk1.s.4.mac")
    entry = pack("account", origin)
    assert entries.open_request(opener(), entry)[3] == origin
    shown = f"{origin!r} {entry!r} {entry.wrapped!r} {entry.box!r}"
    assert origin.bearer not in shown
    assert origin.refresh_token not in shown


@pytest.mark.parametrize("event", KINDS)
def test_a_question_for_what_became_of_a_request_waits_where_nothing_is_hashed(event: str) -> None:
    sent, asks = pack(event, same="mac"), pack(event, same="mac", replay=True)
    assert (sent.lane, sent.same, sent.replay) == (KINDS[event].lane, "mac", False)
    assert (asks.lane, asks.same, asks.replay) == (Lane.FAST, "mac", True)
    assert entries.open_request(opener(), asks)[1:] == entries.open_request(opener(), sent)[1:]


def test_a_request_arrives_in_the_slow_lane_where_that_was_decided_and_a_question_for_a_replay_does_not() -> None:
    slow, asks = pack(lane=Lane.SLOW), pack(lane=Lane.SLOW, same="mac", replay=True)
    assert (slow.lane, asks.lane) == (Lane.SLOW, Lane.FAST)
    assert entries.open_request(opener(), slow)[1:] == entries.open_request(opener(), asks)[1:]


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda e: replace(e, rid="0edg1-other"), id="request id"),
        pytest.param(lambda e: replace(e, node="0-other"), id="node"),
        pytest.param(lambda e: replace(e, event="register"), id="event"),
        pytest.param(lambda e: replace(e, event="no_such_event"), id="unknown event"),
        pytest.param(lambda e: replace(e, lane=Lane.FAST), id="lane"),
        pytest.param(lambda e: replace(e, lane=Lane.SLOW), id="the slow lane"),
        pytest.param(lambda e: replace(e, deadline=NOW + 1), id="deadline"),
        pytest.param(lambda e: replace(e, wrapped=envelope().wrapped), id="envelope"),
        pytest.param(lambda e: replace(e, box=e.box[:-1] + bytes([e.box[-1] ^ 1])), id="box"),
        pytest.param(lambda e: replace(e, box=pack("register").box), id="another request's box"),
        pytest.param(lambda e: replace(e, box=b""), id="no box"),
        pytest.param(lambda e: replace(e, rid="0edg1-rid0", node="-node"), id="shifted fields"),
        pytest.param(lambda e: replace(e, same="cam"), id="what it is the same as"),
        pytest.param(lambda e: replace(e, same=""), id="the same as nothing"),
        pytest.param(lambda e: replace(e, replay=True), id="made a question for a replay"),
        pytest.param(lambda e: replace(e, same="mac1", replay=False), id="shifted into the replay"),
    ],
)
def test_an_entry_with_anything_altered_is_unreadable(alter: Callable[[Entry], Entry]) -> None:
    entry = pack(same="mac")
    entries.open_request(opener(), entry)
    with pytest.raises(Unreadable):
        entries.open_request(opener(), alter(entry))


def test_a_question_for_a_replay_cannot_be_made_the_request_itself() -> None:
    asks = pack("refresh", same="mac", replay=True)
    with pytest.raises(Unreadable):
        entries.open_request(opener(), replace(asks, replay=False))


def sealed_body(body: object, event: str = "login") -> Entry:
    """An entry whose seal holds, around anything."""
    text = body if isinstance(body, bytes) else orjson.dumps(body)
    kind = KINDS.get(event)
    lane = kind.lane if kind else Lane.HASH
    bound = associated("0edg1-rid", "0-node", event, lane, NOW, ENVELOPE.wrapped, "", 0)
    return Entry("0edg1-rid", "0-node", event, lane, NOW, ENVELOPE.wrapped, ENVELOPE.seal(text, bound))


GOOD_BODY = {"data": DATA["login"], "origin": msgspec.to_builtins(ORIGIN)}


@pytest.mark.parametrize(
    ("body", "event"),
    [
        pytest.param(b"", "login", id="nothing"),
        pytest.param(b"\xff", "login", id="bad UTF-8"),
        pytest.param([], "login", id="an array"),
        pytest.param({}, "login", id="an empty object"),
        pytest.param(GOOD_BODY | {"origin": {}}, "login", id="no origin"),
        pytest.param(GOOD_BODY | {"data": {}}, "login", id="data that does not fit"),
        pytest.param(GOOD_BODY | {"data": DATA["login"] | {"userId": "x"}}, "login", id="a field too many"),
        pytest.param(GOOD_BODY, "refresh", id="another request's data"),
        pytest.param(GOOD_BODY, "from_the_future", id="a request of another version"),
    ],
)
def test_a_sealed_entry_of_another_version_is_unreadable(body: object, event: str) -> None:
    entries.open_request(opener(), sealed_body(GOOD_BODY))
    with pytest.raises(Unreadable):
        entries.open_request(opener(), sealed_body(body, event))


@pytest.mark.parametrize("event", [event for event, texts in TEXTS_OF.items() if texts])
def test_nothing_of_a_requests_data_is_readable_in_its_entry(event: str) -> None:
    entry = pack(event)
    shown = repr(entry).encode() + entry.wrapped + entry.box
    for value in TEXTS_OF[event]:
        assert value.encode() not in shown


# --- the same request ---------------------------------------------------------------------------------------------

KEYED, SESSION_ID = "k" * 16, "0wrk1-session"


def same(frame: bytes, session_id: str = SESSION_ID, edge: Secrets = EDGE) -> str:
    return entries.sameness(edge, decode(frame), session_id)


def test_what_makes_a_request_the_same_tells_nothing_of_it() -> None:
    found = same(text_of("login", key=KEYED))
    assert len(found) == 64 and int(found, 16)
    assert KEYED not in found


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(text_of("login", key=KEYED), id="sent again"),
        pytest.param(text_of("login", key=KEYED, id="another"), id="under another id"),
        pytest.param(text_of("login", key=KEYED, timeoutMs=500), id="with another deadline"),
        pytest.param(
            text_of("login", key=KEYED, data=dict(reversed(DATA["login"].items()))), id="its data in another order"
        ),
        pytest.param(data_of("login", email=" ANA@example.com").replace(b'"id"', b'"key":"%s","id"' % KEYED.encode()),
                     id="the address written otherwise"),
        pytest.param(text_of("login", key=KEYED, data=DATA["login"] | {"deviceToken": None, "deviceName": None}),
                     id="defaults given"),
        pytest.param(text_of("login", key=KEYED).replace(b"ana@", b"\\u0061na@"), id="escaped"),
    ],
)  # fmt: skip
def test_a_request_is_the_same_however_it_is_written(frame: bytes) -> None:
    assert same(frame) == same(text_of("login", key=KEYED))


def test_a_request_over_rest_is_the_same_as_in_a_frame() -> None:
    frame = typed("login", DATA["login"], "1", KEYED)
    assert entries.sameness(EDGE, frame, SESSION_ID) == same(text_of("login", key=KEYED))


def test_what_a_request_is_for_gateways_with_another_current_edge_secret_is_a_former_name_of_it() -> None:
    frame = decode(text_of("login", key=KEYED))
    before, meanwhile, after = secrets_of("edg1"), secrets_of("edg1", "edg2"), secrets_of("edg2", "edg1")
    old, new = (entries.sameness(edge, frame, "") for edge in (before, after))
    assert old != new
    assert entries.former_sameness(before, frame, "") == ()
    assert (entries.sameness(meanwhile, frame, ""), entries.former_sameness(meanwhile, frame, "")) == (old, (new,))
    assert entries.former_sameness(after, frame, "") == (old,)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: same(text_of("login", key="l" * 16)), id="another key"),
        pytest.param(lambda: same(text_of("login", key=KEYED + "k")), id="a longer key"),
        pytest.param(lambda: same(text_of("login", key=KEYED.upper())), id="a key of other case"),
        pytest.param(lambda: same(text_of("register", key=KEYED, data=DATA["login"])), id="another event"),
        pytest.param(
            lambda: same(text_of("login", key=KEYED, data=DATA["login"] | {"password": "x"})), id="another password"
        ),
        pytest.param(
            lambda: same(text_of("login", key=KEYED, data=DATA["login"] | {"deviceName": "x"})), id="a name besides"
        ),
        pytest.param(lambda: same(text_of("login", key=KEYED), "0wrk1-other"), id="another session"),
        pytest.param(lambda: same(text_of("login", key=KEYED), ""), id="no session"),
        pytest.param(lambda: same(text_of("login", key=KEYED), edge=secrets_of("edg2")), id="another edge secret"),
    ],
)
def test_a_request_with_anything_else_is_another(other: Callable[[], str]) -> None:
    assert other() != same(text_of("login", key=KEYED))


# --- replies ------------------------------------------------------------------------------------------------------

TOKENS = LoginSuccess(
    access_token="header.payload.signature",
    token_type="Bearer",
    expires_in=600,
    refresh_token="wrk1.0wrk1-session.4.mac",
    refresh_expires_in=604_800,
    session_id="0wrk1-session",
    user_id="0wrk1-user",
)
SUCCESS = Outcome("login_success", TOKENS, identity=IDENTITY)
REFUSED = Outcome("login_failure", refusal(Code.TOO_MANY_ATTEMPTS, retry_after_ms=30_000))


def reply(outcome: Outcome = SUCCESS, box: Envelope = ENVELOPE) -> Sealed:
    return entries.pack_reply(box, "0edg1-rid", entries.reply_of(outcome))


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (SUCCESS, "ok"),
        (REFUSED, "too_many_attempts"),
        (replace(REFUSED, forget=True), "too_many_attempts"),
        (replace(REFUSED, even=True, spent_ms=26.5), "too_many_attempts"),
    ],
    ids=["a success", "a refusal", "one that forgets", "one that leaves on the grid"],
)
def test_a_reply_arrives_as_it_was_decided(outcome: Outcome, code: str) -> None:
    opened = entries.open_reply(ENVELOPE, reply(outcome, opener().envelope(ENVELOPE.wrapped)))
    assert opened == entries.reply_of(outcome)
    assert (opened.event, opened.code) == (outcome.event, code)
    assert (opened.identity, opened.forget, opened.even) == (outcome.identity, outcome.forget, outcome.even)
    assert msgspec.json.decode(opened.data, type=type(outcome.data)) == outcome.data


STEPS = (DeviceVerified(device_token="0wrk1.t0psecret"), SecondFactorVerified())


@pytest.mark.parametrize("progress", [(), STEPS[:1], STEPS[1:], STEPS], ids=["none", "a token", "no data", "two"])
def test_what_is_told_before_the_answer_arrives_with_it_in_its_order(progress: tuple[Reply, ...]) -> None:
    outcome = replace(SUCCESS, progress=progress)
    opened = entries.open_reply(ENVELOPE, reply(outcome, opener().envelope(ENVELOPE.wrapped)))
    assert opened == entries.reply_of(outcome)
    assert [event for event, _ in opened.progress] == [step.event for step in progress]
    for (_, text), step in zip(opened.progress, progress, strict=True):
        assert msgspec.json.decode(text, type=type(step)) == step


def test_neither_a_reply_nor_its_box_shows_the_device_token_that_is_told_before() -> None:
    outcome = replace(SUCCESS, progress=STEPS)
    sealed = reply(outcome)
    shown = f"{outcome!r} {sealed!r} {sealed.box!r} {entries.open_reply(ENVELOPE, sealed)!r}"
    assert "t0psecret" not in shown


@pytest.mark.parametrize("progress", ["null", "{}", '["device_verified"]', '[["device_verified"]]', "[[1,{}]]"])
def test_a_reply_whose_progress_is_none_is_unreadable(progress: str) -> None:
    text = f'{{"event":"login_success","data":{{}},"code":"ok","progress":{progress}}}'
    box = ENVELOPE.seal_back(text.encode(), associated("reply", "0edg1-rid"))
    with pytest.raises(Unreadable):
        entries.open_reply(ENVELOPE, Sealed("0edg1-rid", box))


def test_word_to_admit_it_anew_arrives_as_such_and_is_no_reply_that_an_outcome_could_be() -> None:
    assert entries.open_reply(ENVELOPE, entries.pack_reply(ENVELOPE, "0edg1-rid", ANEW)) == ANEW
    assert ANEW.event == ""


def test_a_reply_opens_only_for_its_request_and_its_gateway() -> None:
    sealed = reply()
    for asking, altered in (
        (ENVELOPE, replace(sealed, rid="0edg1-other")),
        (ENVELOPE, replace(sealed, box=sealed.box[:-1] + bytes([sealed.box[-1] ^ 1]))),
        (ENVELOPE, replace(sealed, box=b"")),
        (ENVELOPE, replace(sealed, box=pack().box)),
        (envelope(), sealed),
    ):
        with pytest.raises(Unreadable):
            entries.open_reply(asking, altered)


def test_a_reply_that_holds_but_is_none_is_unreadable() -> None:
    for text in (b"", b"[]", b"{}", b'{"event":1,"data":{},"code":"ok"}'):
        box = ENVELOPE.seal_back(text, associated("reply", "0edg1-rid"))
        with pytest.raises(Unreadable):
            entries.open_reply(ENVELOPE, Sealed("0edg1-rid", box))


def test_neither_a_sealed_nor_an_opened_reply_shows_its_tokens() -> None:
    sealed = reply()
    shown = f"{sealed!r} {sealed.box!r} {SUCCESS!r} {entries.open_reply(ENVELOPE, sealed)!r}"
    for token in (TOKENS.access_token, TOKENS.refresh_token):
        assert token not in shown


# --- outcomes kept for a request that is sent again ---------------------------------------------------------------

ONE_SAME, OTHER_SAME = "a" * 64, "b" * 64


def record(secrets: Secrets = WORKER, outcome: Outcome = SUCCESS) -> bytes:
    return entries.pack_record(secrets, ONE_SAME, entries.reply_of(outcome), "0wrk1-session")


@pytest.mark.parametrize(
    "outcome", [SUCCESS, REFUSED, replace(REFUSED, forget=True)], ids=["a success", "a refusal", "one that forgets"]
)
def test_an_outcome_is_given_again_as_it_was_kept(outcome: Outcome) -> None:
    kept = entries.open_record(WORKER, ONE_SAME, record(outcome=outcome))
    assert kept == OpenedRecord(entries.reply_of(outcome), "0wrk1-session", "")


def test_what_is_told_before_an_answer_and_the_challenge_it_asks_for_are_kept_with_it() -> None:
    opened = entries.reply_of(replace(SUCCESS, progress=STEPS))
    box = entries.pack_record(WORKER, ONE_SAME, opened, "", "0wrk1-challenge.0wrk1-user")
    assert entries.open_record(WORKER, ONE_SAME, box) == OpenedRecord(opened, "", "0wrk1-challenge.0wrk1-user")
    assert b"t0psecret" not in box + repr(entries.open_record(WORKER, ONE_SAME, box)).encode()


def test_an_outcome_that_was_kept_before_there_were_challenges_asks_for_none() -> None:
    text = b'{"reply":{"event":"login_success","data":{},"code":"ok"},"session_id":"s"}'
    box = b"wrk1." + sealing.seal_kept(WORKER.current, text, ONE_SAME.encode())
    found = entries.open_record(WORKER, ONE_SAME, box)
    assert (found.session_id, found.challenge_id, found.reply.progress) == ("s", "", ())


@pytest.mark.parametrize(
    ("secrets", "asked", "alter"),
    [
        pytest.param(WORKER, OTHER_SAME, lambda box: box, id="for another request"),
        pytest.param(WORKER, "", lambda box: box, id="for no request"),
        pytest.param(secrets_of("wrk2"), ONE_SAME, lambda box: box, id="another worker secret"),
        pytest.param(
            secrets_of("wrk2"), ONE_SAME, lambda box: b"wrk2" + box[4:], id="said to be under another worker secret"
        ),
        pytest.param(secrets_of("wrk1", "wrk2"), ONE_SAME, lambda box: b"wrk2" + box[4:], id="under the wrong version"),
        pytest.param(EDGE, ONE_SAME, lambda box: b"edg1" + box[4:], id="the edge secret"),
        pytest.param(WORKER, ONE_SAME, lambda box: b"", id="nothing"),
        pytest.param(WORKER, ONE_SAME, lambda box: b"wrk1.", id="nothing but the key's id"),
        pytest.param(WORKER, ONE_SAME, lambda box: box[5:], id="without the key's id"),
        pytest.param(WORKER, ONE_SAME, lambda box: b"\xff" + box, id="a key's id that is no text"),
        pytest.param(WORKER, ONE_SAME, lambda box: box + b"\0", id="a byte added"),
        pytest.param(WORKER, ONE_SAME, lambda box: b"wrk1." + reply().box, id="a reply in its place"),
    ],
)
def test_a_kept_outcome_is_unreadable_for_anything_else(
    secrets: Secrets, asked: str, alter: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(Unreadable):
        entries.open_record(secrets, asked, alter(record()))


def test_no_byte_of_a_kept_outcome_can_be_altered_or_left_out() -> None:
    box = record()
    for n in range(len(box)):
        for wrong in (box[:n] + bytes([box[n] ^ 1]) + box[n + 1 :], box[:n]):
            with pytest.raises(Unreadable):
                entries.open_record(WORKER, ONE_SAME, wrong)


def test_a_kept_outcome_survives_a_new_worker_secret_and_new_ones_are_kept_under_it() -> None:
    rotated = secrets_of("wrk2", "wrk1")
    assert entries.open_record(rotated, ONE_SAME, record()) == entries.open_record(WORKER, ONE_SAME, record())
    assert record(rotated).startswith(b"wrk2.")
    assert record().startswith(b"wrk1.")
    with pytest.raises(Unreadable):
        entries.open_record(WORKER, ONE_SAME, record(rotated))


def test_what_was_kept_but_is_no_outcome_is_unreadable() -> None:
    for text in (b"", b"[]", b"{}", b'{"reply":{},"session_id":""}', b'{"reply":{"event":1},"session_id":""}'):
        box = b"wrk1." + sealing.seal_kept(WORKER.current, text, ONE_SAME.encode())
        with pytest.raises(Unreadable):
            entries.open_record(WORKER, ONE_SAME, box)


def test_nothing_of_a_kept_outcome_is_readable_in_its_box_or_its_repr() -> None:
    box = record()
    shown = box + repr(entries.open_record(WORKER, ONE_SAME, box)).encode()
    for token in (TOKENS.access_token, TOKENS.refresh_token):
        assert token.encode() not in shown
    assert b"login_success" not in box
    assert len({record() for _ in range(100)}) == 100


# --- pushes and failures ------------------------------------------------------------------------------------------

NOTICE = Notice(
    "0wrk1-user", "0wrk1-session", SessionEnded(session_id="0wrk1-session", reason="logout"), ("n", "c"), close=True
)


def test_a_notice_arrives_as_it_was_signed() -> None:
    assert entries.open_signed(EDGE, entries.sign_notice(EDGE, NOTICE)) == OpenedNotice(
        user_id="0wrk1-user",
        session_id="0wrk1-session",
        event="session_ended",
        data=b'{"sessionId":"0wrk1-session","reason":"logout"}',
        spare=("n", "c"),
        close=True,
        devices=None,
        only=None,
    )


@pytest.mark.parametrize("devices", [None, (), ("0wrk1-device",), ("0wrk1-a", "0wrk1-b")], ids=str)
@pytest.mark.parametrize("only", [None, ("0-node", "connection"), ("", "")], ids=str)
def test_whom_a_notice_is_for_arrives_with_it(devices: tuple[str, ...] | None, only: tuple[str, str] | None) -> None:
    """No devices at all and no matter which are two things."""
    opened = entries.open_signed(EDGE, entries.sign_notice(EDGE, replace(NOTICE, devices=devices, only=only)))
    assert isinstance(opened, OpenedNotice)
    assert (opened.devices, opened.only) == (devices, only)


def test_a_notice_of_before_there_were_devices_is_for_all() -> None:
    text = b'{"type":"notice","user_id":"u","session_id":"","event":"e","data":{},"spare":["",""],"close":false}'
    mac = b"edg1:" + hmac.digest(EDGE.current.value, b"signed\0" + text, "sha256")
    opened = entries.open_signed(EDGE, Signed(text, mac))
    assert isinstance(opened, OpenedNotice)
    assert (opened.devices, opened.only) == (None, None)


def test_word_of_a_failure_arrives_as_it_was_signed() -> None:
    signed = entries.sign_failure(EDGE, "0edg1-rid", Code.INTERNAL)
    assert entries.open_signed(EDGE, signed) == OpenedFailure("0edg1-rid", Code.INTERNAL)


@pytest.mark.parametrize(
    ("code", "retry_after_ms"),
    [(None, None), (Code.RATE_LIMITED, 5000), (Code.UNAVAILABLE, None), (Code.RATE_LIMITED, 0)],
    ids=["recorded", "an error and when to come again", "an error", "an error to try again at once"],
)
def test_word_of_the_end_of_a_request_arrives_as_it_was_signed(code: Code | None, retry_after_ms: int | None) -> None:
    signed = entries.sign_word(EDGE, ONE_SAME, code, retry_after_ms)
    assert entries.open_signed(EDGE, signed) == OpenedWord(ONE_SAME, code, retry_after_ms)
    for_one_who_joined = replace(signed, rid="0edg1-rid")  # one word serves all who joined: whom, is not in it
    assert entries.open_signed(EDGE, for_one_who_joined) == OpenedWord(ONE_SAME, code, retry_after_ms)


@pytest.mark.parametrize(
    "signed",
    [
        entries.sign_notice(EDGE, NOTICE),
        entries.sign_failure(EDGE, "0edg1-rid", Code.INTERNAL),
        entries.sign_word(EDGE, ONE_SAME, Code.RATE_LIMITED, 5000),
    ],
    ids=["a notice", "a failure", "word"],
)
def test_a_push_with_anything_altered_is_unreadable(signed: Signed) -> None:
    wrong = [
        *(replace(signed, body=signed.body[:n] + b"x" + signed.body[n + 1 :]) for n in range(len(signed.body))
          if signed.body[n : n + 1] != b"x"),
        *(replace(signed, mac=signed.mac[:n] + bytes([signed.mac[n] ^ 1]) + signed.mac[n + 1 :])
          for n in range(len(signed.mac))),
        replace(signed, mac=b""),
        replace(signed, mac=b"edg1:"),
        replace(signed, mac=signed.mac.partition(b":")[2]),
        replace(signed, mac=signed.mac[:-1]),
        replace(signed, body=b""),
        replace(signed, mac=entries.sign_failure(EDGE, "rid", Code.INTERNAL).mac),
        replace(signed, mac=signed.mac.replace(b"edg1", b"edg2")),
    ]  # fmt: skip
    for other in wrong:
        with pytest.raises(Unreadable):
            entries.open_signed(EDGE, other)


def test_a_push_of_who_has_another_edge_secret_is_unreadable() -> None:
    stranger, thief = secrets_of("edg2"), Secrets((replace(secret("evil"), kid="edg1"),))
    for edge in (stranger, thief):
        for signed in (
            entries.sign_notice(edge, NOTICE),
            entries.sign_failure(edge, "0edg1-rid", Code.INTERNAL),
            entries.sign_word(edge, ONE_SAME, None, None),
        ):
            with pytest.raises(Unreadable):
                entries.open_signed(EDGE, signed)


def test_a_push_that_is_signed_but_none_is_unreadable() -> None:
    for body in (
        b"",
        b"{}",
        b'{"type":"other"}',
        b'{"type":"failure","rid":"r","code":"no_such_code"}',
        b'{"type":"word"}',
        b'{"type":"word","same":"s","code":"no_such_code"}',
        b'{"type":"word","same":"s","retry_after_ms":"soon"}',
    ):
        mac = b"edg1:" + hmac.digest(EDGE.current.value, b"signed\0" + body, "sha256")
        with pytest.raises(Unreadable):
            entries.open_signed(EDGE, Signed(body, mac))


def test_a_push_survives_a_new_edge_secret() -> None:
    signed = entries.sign_notice(EDGE, NOTICE)
    assert isinstance(entries.open_signed(secrets_of("edg2", "edg1"), signed), OpenedNotice)


# --- mails --------------------------------------------------------------------------------------------------------

MAIL = Mail("confirmation", "ana@example.com", "pt-BR", "12345678")


def mailed() -> SealedMail:
    return entries.pack_mail(envelope("mail"), "0wrk1-mail", MAIL)


def test_a_mail_arrives_as_it_was_written() -> None:
    assert entries.open_mail(opener("mail"), mailed()) == MAIL


@pytest.mark.parametrize(
    "mail",
    [
        Mail("new_device", "ana@example.com", code="1", device="\u2028<b>", ip="::1", at=NOW, tell=("n", "c")),
        Mail("second_factor_changed", "ana@example.com", "en", ip="192.0.2.7", at=NOW, change="recovery_codes"),
        Mail("reset", "ana@example.com", "en", "0wrk1-challenge.secret"),
        Mail("decoy", "0wrk1-challenge"),
    ],
    ids=lambda mail: mail.kind,
)
def test_a_mail_of_any_kind_arrives_with_all_it_tells(mail: Mail) -> None:
    assert entries.open_mail(opener("mail"), entries.pack_mail(envelope("mail"), "0wrk1-mail", mail)) == mail


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda mail: replace(mail, id="0wrk1-other"), id="id"),
        pytest.param(lambda mail: replace(mail, wrapped=mailed().wrapped), id="envelope"),
        pytest.param(lambda mail: replace(mail, box=mail.box[:-1] + bytes([mail.box[-1] ^ 1])), id="box"),
        pytest.param(lambda mail: replace(mail, box=os.urandom(len(mail.box))), id="a box of noise"),
        pytest.param(lambda mail: SealedMail(mail.id, pack().wrapped, pack().box), id="a request in its place"),
    ],
)
def test_a_mail_with_anything_altered_is_unreadable(alter: Callable[[SealedMail], SealedMail]) -> None:
    with pytest.raises(Unreadable):
        entries.open_mail(opener("mail"), alter(mailed()))


def test_the_keys_of_requests_do_not_open_mails_nor_those_of_mails_requests() -> None:
    with pytest.raises(Unreadable):
        entries.open_mail(opener("request"), mailed())
    with pytest.raises(Unreadable):
        entries.open_request(opener("mail"), pack())


def test_a_mail_that_holds_but_is_none_is_unreadable() -> None:
    box = envelope("mail")
    for text in (b"", b"{}", b'{"kind":"newsletter","to":"a@b.c"}'):
        sealed = SealedMail("id", box.wrapped, box.seal(text, associated("mail", "id", box.wrapped)))
        with pytest.raises(Unreadable):
            entries.open_mail(opener("mail"), sealed)


def test_neither_the_code_nor_the_address_is_readable_in_a_sealed_mail_nor_the_code_in_a_repr() -> None:
    sealed = mailed()
    shown = repr(sealed).encode() + sealed.wrapped + sealed.box
    assert MAIL.code.encode() not in shown
    assert MAIL.to.encode() not in shown
    assert MAIL.code not in repr(MAIL)

"""The wire: what is decoded, what is refused and how, and that the table of requests is whole."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import frames, messages
from app.frames import KEY, BadFrame, Frame, canonical, decode, parse_json, typed
from app.messages import EVENTS, KINDS, RETRYABLE, STATUSES, TEXTS, Code, Lane, Refusal, Reply, canonical_email, refusal

many = settings(max_examples=300, deadline=None, database=None)

DATA: dict[str, dict[str, Any]] = {
    "register": {"email": "ana@example.com", "password": "password-of-ana"},
    "confirm_email": {"challenge": "0wrk1-challenge", "code": "12345678"},
    "resend_confirmation": {"challenge": "0wrk1-challenge"},
    "login": {"email": "ana@example.com", "password": "password-of-ana"},
    "verify_device": {"challenge": "0wrk1-challenge"},
    "verify_2fa": {"challenge": "0wrk1-challenge.0wrk1-user", "code": "287082"},
    "refresh": {"refreshToken": "wrk1.0wrk1-session.4.mac"},
    "authenticate": {"accessToken": "header.payload.signature"},
    "logout": {},
    "sessions": {},
    "revoke_session": {"sessionId": "0wrk1-session"},
    "revoke_other_sessions": {},
    "request_password_reset": {"email": "ana@example.com"},
    "reset_password": {"email": "ana@example.com", "code": "0wrk1-reset.secret", "newPassword": "password-of-ana"},
    "change_password": {"currentPassword": "password-of-ana", "newPassword": "another-of-ana"},
    "enroll_2fa": {"password": "password-of-ana"},
    "confirm_2fa": {"code": "287082"},
    "disable_2fa": {"password": "password-of-ana", "code": "287082"},
    "account": {},
    "forget_device": {"deviceRef": "0wrk1-device"},
    "new_recovery_codes": {"password": "password-of-ana", "code": "287082"},
    "approve_login": {"loginId": "0wrk1-attempt", "approve": True, "matchNumber": 42},
}
TEXTS_OF = {event: [value for value in data.values() if isinstance(value, str)] for event, data in DATA.items()}


def text_of(event: str, /, **fields: Any) -> bytes:
    """A frame that is right but for `fields`."""
    return orjson.dumps({"event": event, "id": "1", "data": DATA[event], **fields})


def data_of(event: str, /, **fields: Any) -> bytes:
    """A frame that is right but for `fields` of its data."""
    return text_of(event, data=DATA[event] | fields)


def refused(frame: bytes) -> tuple[Code, str | None, str | None]:
    with pytest.raises(BadFrame) as caught:
        decode(frame)
    return caught.value.code, caught.value.id, caught.value.field


def of(value: Any, name: str) -> Any:
    """A field that only some requests have."""
    return getattr(value, name)


# --- strict JSON --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b'{"event":"logout","event":"logout","id":"1"}', id="a name twice"),
        pytest.param(b'{"event":"logout","id":"1","\\u0069d":"2"}', id="a name twice, once escaped"),
        pytest.param(
            b'{"event":"login","id":"1","data":{"email":"a@b.c","password":"x","\\u0065mail":"d@e.f"}}',
            id="a name twice in the data, once escaped",
        ),
        pytest.param(
            b'{"event":"login","id":"1","data":{"email" : "a@b.c","password":"x","email"\t\n: "a@b.c"}}',
            id="a name twice with the same value",
        ),
        pytest.param(b'{"event":"logout","id":"1","data":{},"data":{"a":1,"b":2}}', id="a name twice, objects"),
        pytest.param(b'{"event":"logout","id":"1","data":{"":1,"":2}}', id="the empty name twice"),
        pytest.param(b'{"event":"logout","id":"1","data":[{"a":1,"a":1}]}', id="a name twice inside an array"),
        pytest.param(b'{"event":"logout","id":"1","timeoutMs":NaN}', id="NaN"),
        pytest.param(b'{"event":"logout","id":"1","timeoutMs":-Infinity}', id="Infinity"),
        pytest.param(b'{"event":"logout","id":"1","timeoutMs":1e400}', id="a number no double holds"),
        pytest.param(b'{"event":"logout","id":"1","timeoutMs":01000}', id="a leading zero"),
        pytest.param(b'{"event":"logout","id":"\\ud800"}', id="a lone high surrogate"),
        pytest.param(b'{"event":"logout","id":"\\udc00\\ud800"}', id="surrogates in the wrong order"),
        pytest.param(b'{"event":"logout","id":"1","\\udfff":1}', id="a lone surrogate in a name"),
        pytest.param(b'{"event":"logout","id":"\xed\xa0\x80"}', id="a surrogate in UTF-8"),
        pytest.param(b'{"event":"logout","id":"\xff"}', id="bad UTF-8"),
        pytest.param(b'\xef\xbb\xbf{"event":"logout","id":"1"}', id="a BOM"),
        pytest.param('{"event":"logout","id":"1"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"event":"logout","id":"1\n"}', id="a raw line break in a string"),
        pytest.param(b'{"event":"logout","id":"1",}', id="a trailing comma"),
        pytest.param(b'{"event":"logout","id":"1"} {}', id="two values"),
        pytest.param(b'{"event":"logout" /* */,"id":"1"}', id="a comment"),
        pytest.param(b"{'event':'logout','id':'1'}", id="single quotes"),
        pytest.param(b'{"event":"logout","id":"1"', id="cut off"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"logout", id="no JSON at all"),
        pytest.param(b'{"event":"logout","id":"1","data":' + b"[" * 8 + b"]" * 8 + b"}", id="nine deep, arrays"),
        pytest.param(b'{"a":' * 9 + b"1" + b"}" * 9, id="nine deep, objects"),
        pytest.param(b"[" * 8000 + b"]" * 8000, id="deeper than any stack"),
        pytest.param(b'{"a":' * 2700 + b"1" + b"}" * 2700, id="objects deeper than any stack"),
    ],
)
def test_what_parsers_differ_on_is_bad_json_and_answered_without_an_id(frame: bytes) -> None:
    assert refused(frame) == (Code.BAD_JSON, None, None)


@pytest.mark.parametrize(
    ("frame", "value"),
    [
        pytest.param(b"[" * 8 + b"]" * 8, [[[[[[[[]]]]]]]], id="eight arrays deep"),
        pytest.param(
            b'{"a":' * 7 + b"{}" + b"}" * 7, {"a": {"a": {"a": {"a": {"a": {"a": {"a": {}}}}}}}}, id="eight deep"
        ),
        pytest.param(b'{"a":{"a":1},"b":{"a":1}}', {"a": {"a": 1}, "b": {"a": 1}}, id="a name in several objects"),
        pytest.param(b'{"a":"b\\":","c":"\\\\"}', {"a": 'b":', "c": "\\"}, id="texts that look like names"),
        pytest.param(b'["a",":","\\":1"]', ["a", ":", '":1'], id="an array of texts with colons"),
        pytest.param(b'{"a":1,"A":2,"a\\u0000":3}', {"a": 1, "A": 2, "a\0": 3}, id="names that are only alike"),
        pytest.param(b'"\\ud83d\\ude00"', "😀", id="an escaped surrogate pair"),
        pytest.param(b' \t\r\n{"a" : 1}\n', {"a": 1}, id="white space"),
    ],
)
def test_what_strict_json_allows_is_read_as_it_is(frame: bytes, value: object) -> None:
    assert parse_json(frame) == value


# --- the envelope -------------------------------------------------------------------------------------------------


def test_a_request_with_nothing_optional_has_the_defaults() -> None:
    assert decode(b'{"event":"logout","id":"1"}') == Frame("1", KINDS["logout"], messages.Logout(), None, 10_000)


@pytest.mark.parametrize("event", KINDS)
def test_every_request_is_decoded_to_its_own_type(event: str) -> None:
    frame = decode(text_of(event, key="k" * 16, timeoutMs=500))
    assert (frame.id, frame.key, frame.timeout_ms) == ("1", "k" * 16, 500)
    assert frame.kind is KINDS[event]
    assert type(frame.data) is frame.kind.data
    assert msgspec.to_builtins(frame.data) == DATA[event]


@pytest.mark.parametrize("frame", [b"[]", b"null", b"1", b'"login"', b"true"])
def test_json_that_is_no_object_is_a_bad_request_without_an_id(frame: bytes) -> None:
    assert refused(frame) == (Code.BAD_REQUEST, None, None)


@pytest.mark.parametrize(
    ("id", "given_back"),
    [
        pytest.param("", None, id="empty"),
        pytest.param("x", "x", id="one character"),
        pytest.param("x" * 64, "x" * 64, id="64 characters"),
        pytest.param("😀" * 64, "😀" * 64, id="64 characters of four bytes"),
        pytest.param("x" * 65, None, id="65 characters"),
        pytest.param(1, None, id="a number"),
        pytest.param(None, None, id="null"),
        pytest.param(["1"], None, id="an array"),
    ],
)
def test_a_refusal_carries_the_id_only_where_it_is_usable(id: object, given_back: str | None) -> None:
    code, shown, _ = refused(orjson.dumps({"event": "logout", "id": id, "unknown": 1}))
    assert (code, shown) == (Code.BAD_REQUEST, given_back)
    frame = orjson.dumps({"event": "logout", "id": id})
    if given_back is None:
        assert refused(frame) == (Code.BAD_REQUEST, None, "id")
    else:
        assert decode(frame).id == id


def test_an_unknown_event_is_said_to_be_one_and_keeps_its_id() -> None:
    assert refused(b'{"event":"drop_tables","id":"7","data":{"a":1}}') == (Code.UNKNOWN_EVENT, "7", None)
    assert refused(b'{"event":"LOGIN","id":"7"}') == (Code.UNKNOWN_EVENT, "7", None)
    assert refused(b'{"event":"connected","id":"7"}') == (Code.UNKNOWN_EVENT, "7", None)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"event": ""}, "event", id="no event"),
        pytest.param({"event": "x" * 65}, "event", id="a long event"),
        pytest.param({"event": 5}, "event", id="a number for the event"),
        pytest.param({"data": None}, "data", id="null data"),
        pytest.param({"data": []}, "data", id="an array for the data"),
        pytest.param({"userId": "u"}, "userId", id="an unknown field"),
        pytest.param({"timeout_ms": 500}, "timeout_ms", id="a field in another spelling"),
        pytest.param({"timeoutMs": 99}, "timeoutMs", id="too short a time-out"),
        pytest.param({"timeoutMs": 30_001}, "timeoutMs", id="too long a time-out"),
        pytest.param({"timeoutMs": -1000}, "timeoutMs", id="a negative time-out"),
        pytest.param({"timeoutMs": 1000.0}, "timeoutMs", id="a float for the time-out"),
        pytest.param({"timeoutMs": True}, "timeoutMs", id="a bool for the time-out"),
        pytest.param({"timeoutMs": "1000"}, "timeoutMs", id="a text for the time-out"),
        pytest.param({"timeoutMs": None}, "timeoutMs", id="null for the time-out"),
        pytest.param({"timeoutMs": 2**63}, "timeoutMs", id="a time-out past 63 bits"),
        pytest.param({"key": 1234567890123456}, "key", id="a number for the key"),
    ],
)
def test_an_envelope_that_does_not_fit_is_a_bad_request_that_names_the_field(
    fields: dict[str, object], field: str
) -> None:
    assert refused(text_of("logout", **fields)) == (Code.BAD_REQUEST, "1", field)


def test_a_number_too_large_for_any_integer_type_is_a_bad_request() -> None:
    frame = b'{"event":"logout","id":"1","timeoutMs":1' + b"0" * 5000 + b"}"
    assert refused(frame)[0] in (Code.BAD_REQUEST, Code.BAD_JSON)
    assert refused(b'{"event":"logout","id":"1","timeoutMs":' + b"9" * 30 + b"}") == (
        Code.BAD_REQUEST,
        "1",
        "timeoutMs",
    )


@pytest.mark.parametrize("timeout", [100, 101, 29_999, 30_000])
def test_a_time_out_within_its_bounds_is_taken(timeout: int) -> None:
    assert decode(text_of("logout", timeoutMs=timeout)).timeout_ms == timeout


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        pytest.param("k" * 16, True, id="16 characters"),
        pytest.param("k" * 64, True, id="64 characters"),
        pytest.param("AZaz09_-AZaz09_-", True, id="all of its alphabet"),
        pytest.param("", False, id="an empty key"),
        pytest.param("k" * 15, False, id="a short key"),
        pytest.param("k" * 65, False, id="a long key"),
        pytest.param("k" * 16 + "\n", False, id="a key and a line break"),
        pytest.param("k" * 15 + "é", False, id="a key outside its alphabet"),
        pytest.param("k" * 15 + "+", False, id="a key of the other base64"),
        pytest.param("k" * 15 + "\uff11", False, id="a digit of another script"),
    ],
)
def test_a_key_is_taken_or_refused_in_a_frame_and_in_a_header_alike(key: str, taken: bool) -> None:
    assert (KEY.fullmatch(key) is not None) is taken
    if taken:
        assert decode(text_of("logout", key=key)).key == key
    else:
        assert refused(text_of("logout", key=key)) == (Code.BAD_REQUEST, "1", "key")


# --- a request without a frame: REST ------------------------------------------------------------------------------


@pytest.mark.parametrize("event", KINDS)
def test_a_request_by_its_name_and_data_is_the_one_of_a_frame(event: str) -> None:
    assert typed(event, DATA[event], "1", "k" * 16, 500) == decode(text_of(event, key="k" * 16, timeoutMs=500))
    assert typed(event, DATA[event], "1") == decode(text_of(event))
    assert typed(event, DATA[event], None).id == ""


@pytest.mark.parametrize(
    ("event", "data", "expected"),
    [
        pytest.param("drop_tables", {}, (Code.UNKNOWN_EVENT, "7", None), id="an unknown request"),
        pytest.param("", {}, (Code.UNKNOWN_EVENT, "7", None), id="no name"),
        pytest.param("login", [], (Code.BAD_REQUEST, "7", None), id="an array"),
        pytest.param("login", None, (Code.BAD_REQUEST, "7", None), id="null"),
        pytest.param("login", "ana@example.com", (Code.BAD_REQUEST, "7", None), id="a text"),
        pytest.param("login", {}, (Code.BAD_REQUEST, "7", "email"), id="nothing"),
        pytest.param("login", DATA["login"] | {"email": "x"}, (Code.BAD_REQUEST, "7", "email"), id="no address"),
        pytest.param("logout", {"userId": "x"}, (Code.BAD_REQUEST, "7", "userId"), id="a field too many"),
    ],
)
def test_a_request_by_its_name_is_refused_as_in_a_frame(
    event: str, data: object, expected: tuple[Code, str, str | None]
) -> None:
    with pytest.raises(BadFrame) as caught:
        typed(event, data, "7")
    assert (caught.value.code, caught.value.id, caught.value.field) == expected


# --- the data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (event, name)
        for event in KINDS
        for name in ("userId", "sessionId", "connectionId", "tenantId", "extra")
        if (event, name) != ("revoke_session", "sessionId")  # one of the caller's own: a handler's test has another's
    ],
)
def test_no_request_takes_a_field_that_names_somebody_to_act_for(event: str, name: str) -> None:
    assert refused(data_of(event, **{name: "0wrk1-somebody"})) == (Code.BAD_REQUEST, "1", name)


@pytest.mark.parametrize(("event", "name"), [(event, name) for event, data in DATA.items() for name in data])
def test_every_required_field_has_to_be_there_and_to_be_of_its_type(event: str, name: str) -> None:
    without = {key: value for key, value in DATA[event].items() if key != name}
    assert refused(text_of(event, data=without)) == (Code.BAD_REQUEST, "1", name)
    for wrong in (None, 1, True, "x", 1.5, ["a"], {"a": "b"}):
        if type(wrong) is not type(DATA[event][name]):
            assert refused(data_of(event, **{name: wrong})) == (Code.BAD_REQUEST, "1", name)


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        pytest.param("register", {"locale": "x"}, id="a locale of one letter"),
        pytest.param("register", {"locale": "x" * 36}, id="a long locale"),
        pytest.param("register", {"locale": "pt_BR"}, id="a locale with an underscore"),
        pytest.param("register", {"locale": "pt-BR\n"}, id="a locale and a line break"),
        pytest.param("register", {"terms": ""}, id="no version of the terms"),
        pytest.param("register", {"terms": "x" * 65}, id="a long version of the terms"),
        pytest.param("confirm_email", {"challenge": ""}, id="no challenge"),
        pytest.param("confirm_email", {"challenge": "x" * 513}, id="a long challenge"),
        pytest.param("confirm_email", {"challenge": "a:b"}, id="a challenge that names another key"),
        pytest.param("confirm_email", {"challenge": "abc\n"}, id="a challenge and a line break"),
        pytest.param("confirm_email", {"code": ""}, id="no code"),
        pytest.param("confirm_email", {"code": "1" * 65}, id="a long code"),
        pytest.param("confirm_email", {"code": 12345678}, id="a number for the code"),
        pytest.param("login", {"deviceToken": "x" * 129}, id="a long device token"),
        pytest.param("login", {"deviceToken": "a/b"}, id="a device token outside its alphabet"),
        pytest.param("login", {"deviceToken": "abc\n"}, id="a device token and a line break"),
        pytest.param("refresh", {"refreshToken": "x" * 513}, id="a long refresh token"),
        pytest.param("refresh", {"refreshToken": "a b"}, id="a refresh token with a space"),
        pytest.param("authenticate", {"accessToken": "x" * 4097}, id="a long access token"),
        pytest.param("authenticate", {"accessToken": "a.b.c\n"}, id="an access token and a line break"),
    ],
)
def test_every_field_is_bounded(event: str, fields: dict[str, object]) -> None:
    assert refused(data_of(event, **fields)) == (Code.BAD_REQUEST, "1", next(iter(fields)))


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        pytest.param("register", {"locale": "pt-BR", "terms": "t" * 64}, id="register"),
        pytest.param("register", {"locale": None, "terms": None}, id="register, null for what is optional"),
        pytest.param("confirm_email", {"challenge": "A-z_0.~" + "x" * 505, "code": "1" * 64}, id="confirm_email"),
        pytest.param("login", {"deviceToken": "A-z_0." + "x" * 122, "deviceName": "n" * 100}, id="login"),
        pytest.param("refresh", {"refreshToken": "x" * 512}, id="refresh"),
        pytest.param("authenticate", {"accessToken": "x" * 4096}, id="authenticate"),
    ],
)
def test_a_field_at_its_bounds_is_taken(event: str, fields: dict[str, object]) -> None:
    decoded = msgspec.structs.asdict(decode(data_of(event, **fields)).data)
    assert set(fields.values()) <= set(decoded.values())


@pytest.mark.parametrize(
    ("given_", "canonical"),
    [
        pytest.param("ana@example.com", "ana@example.com", id="as it is"),
        pytest.param(" \t\r\nAna@Example.COM\n", "ana@example.com", id="trimmed and lower-cased"),
        pytest.param("ana+tag@example.com", "ana+tag@example.com", id="a tag is kept"),
        pytest.param("a.n.a@example.com", "a.n.a@example.com", id="dots are kept"),
        pytest.param("o'brien@example.com", "o'brien@example.com", id="an apostrophe"),
        pytest.param("ana@localhost", "ana@localhost", id="a host without a dot"),
        pytest.param("ana@xn--bcher-kva.example", "ana@xn--bcher-kva.example", id="punycode"),
        pytest.param("a" * 64 + "@example.com", "a" * 64 + "@example.com", id="a local part of 64"),
        pytest.param("a@" + "b" * 63 + ".com", "a@" + "b" * 63 + ".com", id="a label of 63"),
        pytest.param("a@" + "b." * 126, None, id="a dot at the end"),
        pytest.param("a@" + "b." * 125 + "bb", "a@" + "b." * 125 + "bb", id="254 characters"),
        pytest.param("a@" + "b." * 125 + "bbb", None, id="255 characters"),
        pytest.param("a" * 65 + "@example.com", None, id="a local part of 65"),
        pytest.param("a@" + "b" * 64 + ".com", None, id="a label of 64"),
        pytest.param("", None, id="nothing"),
        pytest.param("ana", None, id="no @"),
        pytest.param("@example.com", None, id="no local part"),
        pytest.param("ana@", None, id="no host"),
        pytest.param("a@b@c", None, id="two @"),
        pytest.param("a@b,c@d", None, id="two addresses"),
        pytest.param("a@-b", None, id="a label that begins with a hyphen"),
        pytest.param("a@b-", None, id="a label that ends with a hyphen"),
        pytest.param("a@b..c", None, id="an empty label"),
        pytest.param("an a@example.com", None, id="a space inside"),
        pytest.param('"ana"@example.com', None, id="quotes"),
        pytest.param("ana@example.com\nBcc: eve@example.com", None, id="a header of its own"),
        pytest.param("ana@example.com\0", None, id="NUL"),
        pytest.param("ana|1.2.3.4@example.com", "ana|1.2.3.4@example.com", id="a vertical bar"),
        pytest.param("\u0131na@example.com", None, id="dotless i"),
        pytest.param("\u0130na@example.com", None, id="I with a dot, which lower-cases to two characters"),
        pytest.param("\u212aim@example.com", None, id="Kelvin sign, which lower-cases to k"),
        pytest.param("kim@\u212aey.example", None, id="Kelvin sign in the host"),
        pytest.param("\uff41na@example.com", None, id="fullwidth a"),
        pytest.param("ana\uff20example.com", None, id="fullwidth @"),
        pytest.param("\u0430na@example.com", None, id="Cyrillic a"),
        pytest.param("ana@b\u00fccher.example", None, id="an umlaut in the host"),
        pytest.param("\u00a0ana@example.com", None, id="a no-break space is not trimmed"),
        pytest.param("ana@example.com\u200b", None, id="a zero-width space"),
        pytest.param("\x0bana@example.com", None, id="a vertical tab is not trimmed"),
    ],
)
@pytest.mark.parametrize("event", ["register", "login"])
def test_an_address_is_trimmed_and_lower_cased_or_refused(event: str, given_: str, canonical: str | None) -> None:
    frame = data_of(event, email=given_)
    if canonical is None:
        assert refused(frame) == (Code.BAD_REQUEST, "1", "email")
    else:
        assert of(decode(frame).data, "email") == canonical


@given(st.text(st.characters(exclude_categories=())))
@many
def test_a_canonical_address_is_ascii_and_its_own_canonical_form(raw: str) -> None:
    for text in (raw, f"{raw}@example.com", f"a@{raw}.com"):
        try:
            found = canonical_email(text)
        except ValueError:
            continue
        assert found.isascii()
        assert found == found.lower() == found.strip() == canonical_email(found)


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        pytest.param(" Päss  word ", " Päss  word ", id="spaces and case are kept"),
        pytest.param("", "", id="an empty one is evaluated like any other"),
        pytest.param("pa\u0301ss", "p\u00e1ss", id="composed"),
        pytest.param("\ufb01nance", "finance", id="a ligature"),
        pytest.param("\uff21\uff11", "A1", id="fullwidth"),
        pytest.param("a\u00a0b", "a b", id="a no-break space"),
        pytest.param("\0\n\u2028\U0001f511", "\0\n\u2028\U0001f511", id="anything else"),
        pytest.param("x" * 1024, "x" * 1024, id="1,024 bytes"),
        pytest.param("é" * 512, "é" * 512, id="1,024 bytes of 512 characters"),
        pytest.param("x" * 1025, None, id="1,025 bytes"),
        pytest.param("é" * 512 + "x", None, id="1,025 bytes of 513 characters"),
        pytest.param("\U0001f511" * 257, None, id="1,028 bytes of 257 characters"),
        pytest.param("\ufdfa" * 341, unicodedata.normalize("NFKC", "\ufdfa") * 341, id="what grows is not cut"),
    ],
)
@pytest.mark.parametrize("event", ["register", "login"])
def test_a_password_is_nfkc_normalised_and_never_cut(event: str, given_: str, kept: str | None) -> None:
    frame = data_of(event, password=given_)
    if kept is None:
        assert refused(frame) == (Code.BAD_REQUEST, "1", "password")
    else:
        assert of(decode(frame).data, "password") == kept


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        pytest.param("Ana’s phone 📱", True, id="any script and picture"),
        pytest.param("n" * 100, True, id="100 characters"),
        pytest.param("", False, id="nothing"),
        pytest.param("n" * 101, False, id="101 characters"),
        pytest.param("a\0b", False, id="NUL"),
        pytest.param("a\x1b[31m", False, id="a terminal's colours"),
        pytest.param("a\r\nb", False, id="a line break"),
        pytest.param("phone\n", False, id="a line break at the end"),
        pytest.param("a\x7f", False, id="DEL"),
        pytest.param("a\x85b", False, id="a C1 control"),
        pytest.param("a\x9bb", False, id="a C1 control that begins a sequence"),
        pytest.param("a\u2028b", False, id="a line separator"),
        pytest.param("a\u2029", False, id="a paragraph separator"),
    ],
)
def test_a_device_name_has_no_control_characters(name: str, taken: bool) -> None:
    frame = data_of("login", deviceName=name)
    if taken:
        assert of(decode(frame).data, "device_name") == name
    else:
        assert refused(frame) == (Code.BAD_REQUEST, "1", "deviceName")


# --- the same data, however it is written -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(b'{"email":"a@b.c","password":"x"}', b' { "password" : "x",\n"email":"a@b.c" }', id="order"),
        pytest.param(
            b'{"email":"a@b.c","password":"x"}', b'{"\\u0065mail":"\\u0061@b.c","password":"x"}', id="escapes"
        ),
        pytest.param(
            b'{"email":"a@b.c","password":"x"}',
            b'{"email":"a@b.c","password":"x","deviceToken":null,"deviceName":null}',
            id="defaults given",
        ),
        pytest.param(b'{"email":"a@b.c","password":"x"}', b'{"email":" A@B.C\\n","password":"x"}', id="the address"),
        pytest.param(
            '{"email":"a@b.c","password":"p\u00e1ss"}'.encode(),
            '{"email":"a@b.c","password":"pa\u0301ss"}'.encode(),
            id="the password composed",
        ),
    ],
)
def test_the_same_data_is_the_same_however_it_is_written(one: bytes, other: bytes) -> None:
    def found(data: bytes) -> bytes:
        return canonical(decode(b'{"event":"login","id":"1","data":' + data + b"}").data)

    assert one != other
    assert found(one) == found(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"email": "ana@example.org"},
        {"password": "Password-of-ana"},
        {"password": "password-of-ana "},
        {"deviceName": "a"},
        {"deviceToken": "a"},
    ],
    ids=lambda changes: repr(next(iter(changes.items()))),
)
def test_other_data_is_other_bytes(changes: dict[str, str]) -> None:
    assert canonical(decode(data_of("login", **changes)).data) != canonical(decode(text_of("login")).data)


words = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=5)


@given(st.lists(st.tuples(words, st.none() | words), min_size=2, max_size=2))
@many
def test_two_data_are_the_same_bytes_only_where_they_are_equal(fields: list[tuple[str, str | None]]) -> None:
    made = [messages.Login("a@b.c", password, device_name=name) for password, name in fields]
    assert (canonical(made[0]) == canonical(made[1])) == (made[0] == made[1])


# --- anything at all ----------------------------------------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates too
names_ = st.one_of(st.sampled_from(sorted({name for data in DATA.values() for name in data})), any_text)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names_, inner, max_size=4)),
    max_leaves=12,
)
envelopes = st.fixed_dictionaries(
    {},
    optional={
        "event": st.one_of(st.sampled_from(sorted(KINDS)), anything),
        "id": st.one_of(st.just("1"), anything),
        "key": anything,
        "timeoutMs": st.one_of(st.integers(0, 40_000), anything),
        "data": st.one_of(st.sampled_from(list(DATA.values())), anything),
        "other": anything,
    },
)


def decode_or_refuse(frame: bytes) -> None:
    """Anything but a Frame or a BadFrame fails the test."""
    try:
        assert isinstance(decode(frame), Frame)
    except BadFrame as bad:
        assert bad.id is None or 1 <= len(bad.id) <= 64
        refusal(bad.code, field=bad.field)


@given(st.binary(max_size=200))
@many
def test_any_bytes_are_decoded_or_refused(frame: bytes) -> None:
    decode_or_refuse(frame)


@given(st.one_of(envelopes, anything), st.booleans())
@many
def test_any_json_is_decoded_or_refused(value: object, ascii_only: bool) -> None:
    decode_or_refuse(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@given(st.data())
@many
def test_a_frame_that_was_damaged_anywhere_is_decoded_or_refused(data: st.DataObject) -> None:
    frame = bytearray(text_of(data.draw(st.sampled_from(sorted(DATA)))))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(frame))


plain_text = st.text(max_size=20)
plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        plain_text,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(plain_text, inner, max_size=4)),
    max_leaves=12,
)


def depth_of(value: object) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(plain, st.booleans(), st.sampled_from([None, 1, "\t"]))
@many
def test_json_that_is_not_too_deep_is_read_as_any_parser_reads_it(
    value: object, ascii_only: bool, indent: int | str | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    if depth_of(value) <= 8:
        assert parse_json(text) == value
    else:
        with pytest.raises(BadFrame):
            parse_json(text)


@given(st.text(max_size=8), plain, plain, st.booleans())
@many
def test_a_name_twice_is_found_however_it_is_written(name: str, one: object, other: object, both: bool) -> None:
    units = name.encode("utf-16-be")
    escaped = '"' + "".join(f"\\u{units[n : n + 2].hex()}" for n in range(0, len(units), 2)) + '"'
    plain_name = json.dumps(name, ensure_ascii=False)
    text = f"{{{escaped if both else plain_name} : {json.dumps(one)}, {escaped}:{json.dumps(other)}}}"
    with pytest.raises(BadFrame) as caught:
        parse_json(text.encode())
    assert caught.value.code is Code.BAD_JSON


# --- the table and its events -------------------------------------------------------------------------------------


def test_the_table_has_the_requests_of_this_version_with_their_lanes() -> None:
    assert set(KINDS) == set(DATA)
    hashing = "register login reset_password change_password enroll_2fa disable_2fa new_recovery_codes"
    assert {event for event, kind in KINDS.items() if kind.lane is Lane.HASH} == set(hashing.split())
    of_a_session = "logout sessions account revoke_session revoke_other_sessions change_password enroll_2fa"
    of_a_session += " confirm_2fa disable_2fa new_recovery_codes forget_device approve_login"
    assert {event for event, kind in KINDS.items() if kind.needs_session} == set(of_a_session.split())


def test_what_is_still_to_be_done_and_what_is_told_before_are_the_contracts() -> None:
    assert {event: [reply.event for reply in kind.steps] for event, kind in KINDS.items() if kind.steps} == {
        "login": ["new_device_detected", "2fa_required"],
        "verify_device": ["2fa_required"],
    }
    assert {event: [reply.event for reply in kind.progress] for event, kind in KINDS.items() if kind.progress} == {
        "verify_device": ["device_verified"],
        "verify_2fa": ["2fa_verified"],
    }


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.event)
def test_everything_that_can_answer_a_request_is_an_event_with_its_type(kind: messages.Kind) -> None:
    for reply in (*kind.answers, *kind.progress):
        assert EVENTS[reply.event] is reply
    assert kind.answers[0] is kind.success
    if kind.refused is not None:
        assert EVENTS[kind.refused] is Refusal


def test_every_type_that_the_server_sends_is_listed_under_its_own_event() -> None:
    def leaves(base: type[Reply]) -> set[type[Reply]]:
        return {base} if not base.__subclasses__() else set().union(*map(leaves, base.__subclasses__()))

    assert {data for data in EVENTS.values() if data is not Refusal} == leaves(Reply)
    assert all(event == data.event for event, data in EVENTS.items() if issubclass(data, Reply))
    assert EVENTS["error"] is Refusal
    assert not set(EVENTS) & set(KINDS) - {"sessions", "account"}  # the two whose answer has the request's name


def test_every_code_has_a_text_and_the_retryable_ones_are_those_of_the_contract() -> None:
    assert set(TEXTS) == set(Code)
    retryable = "rate_limited overloaded deadline_exceeded unavailable internal too_many_in_flight too_many_attempts"
    assert set(retryable.split()) == RETRYABLE
    for code in Code:
        assert refusal(code) == Refusal(code, TEXTS[code], code in RETRYABLE)


def test_every_code_has_the_status_of_the_contract() -> None:
    table = {
        400: "bad_json bad_request password_too_short password_common duplicate_id",
        401: "invalid_credentials not_authenticated token_reused token_expired token_revoked token_invalid"
        " invalid_code code_expired challenge_expired",
        403: "account_disabled",
        404: "unknown_event not_found",
        409: "address_taken",
        429: "too_many_attempts rate_limited too_many_in_flight",
        500: "internal",
        503: "overloaded unavailable deadline_exceeded",
    }
    assert {str(code): status for code, status in STATUSES.items()} == {
        code: status for status, codes in table.items() for code in codes.split()
    }
    assert set(STATUSES) == set(Code)


def test_a_field_that_a_client_chose_is_cut_in_the_refusal() -> None:
    assert refusal(Code.BAD_REQUEST, field="x" * 5000).field == "x" * 64


def test_frames_to_clients_have_exactly_their_names() -> None:
    data = frames.encode_data(refusal(Code.RATE_LIMITED, retry_after_ms=5))
    text = TEXTS[Code.RATE_LIMITED]
    inner = {"code": "rate_limited", "message": text, "retryable": True, "retryAfterMs": 5}
    assert orjson.loads(frames.encode("error", None, data)) == {"event": "error", "id": None, "data": inner}
    assert orjson.loads(frames.encode("error", "1", data)) == {"event": "error", "id": "1", "data": inner}
    assert orjson.loads(frames.push("error", data)) == {"event": "error", "data": inner}
    assert frames.encode_data(messages.RegisterAccepted(next="login", device_token="t")) == (
        b'{"next":"login","deviceToken":"t"}'
    )
    account = messages.AccountData(
        user_id="u", email="e", has2fa=False, recovery_codes_left=0, devices=(), created_at="c"
    )
    names = "userId email has2fa recoveryCodesLeft devices createdAt"
    assert set(orjson.loads(frames.encode_data(account))) == set(names.split())


# --- nothing secret is shown --------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [event for event, texts in TEXTS_OF.items() if texts])
def test_the_repr_of_a_request_shows_none_of_its_fields(event: str) -> None:
    frame = decode(text_of(event))
    for value in TEXTS_OF[event]:
        assert value not in repr(frame) + str(frame) + repr(frame.data) + f"{frame.data!s}"


def test_the_repr_of_tokens_and_of_a_device_token_shows_none_of_them() -> None:
    fields: Any = dict.fromkeys("access_token token_type refresh_token session_id user_id".split(), "t0psecret")
    for cls in (messages.LoginSuccess, messages.TokenRefreshed):
        assert "t0psecret" not in repr(cls(**fields, expires_in=1, refresh_expires_in=2))
    assert "t0psecret" not in repr(messages.EmailConfirmed(device_token="t0psecret"))
    assert "t0psecret" not in repr(messages.RegisterAccepted(next="login", device_token="t0psecret"))


@pytest.mark.parametrize("wrong", ["s3cret" * 200, ["s3cret"], "s3cret\ud800"], ids=["too long", "a list", "no text"])
def test_a_refused_password_is_not_repeated_in_the_refusal(wrong: object) -> None:
    frame = json.dumps({"event": "login", "id": "1", "data": {"email": "a@b.c", "password": wrong}}).encode()
    with pytest.raises(BadFrame) as caught:
        decode(frame)
    assert "s3cret" not in f"{caught.value!r} {caught.value} {caught.value.__dict__}"

"""The published contract, generated from the message types: OpenAPI 3.1 for /v1, AsyncAPI 3.0 for /ws. Pure.

A new request needs a line in ABOUT; it and every new event need one in EXAMPLES. The tests hold both against the code.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec

from app import frames, messages
from app.messages import EVENTS, KINDS, PROTOCOL, STATUSES, Code, Kind, Refusal, refusal

Json = dict[str, Any]

# What the types do not say of a request: what it is for, and with which codes its refusal event comes.
_NO_TOKEN = (Code.TOKEN_INVALID, Code.TOKEN_EXPIRED, Code.TOKEN_REVOKED)
_NO_CODE = (Code.INVALID_CODE, Code.CODE_EXPIRED, Code.CHALLENGE_EXPIRED)
_NO_LOGIN = (Code.INVALID_CREDENTIALS, Code.TOO_MANY_ATTEMPTS, Code.ACCOUNT_DISABLED)
_NO_PROOF = (Code.INVALID_CREDENTIALS, Code.TOO_MANY_ATTEMPTS)
_WEAK = (Code.PASSWORD_TOO_SHORT, Code.PASSWORD_COMMON)
ABOUT: dict[str, tuple[str, tuple[Code, ...]]] = {
    "register": ("Start a registration: a code is mailed.", (*_WEAK, Code.ADDRESS_TAKEN)),
    "confirm_email": ("Confirm the address with the mailed code: the account exists from here on.", _NO_CODE),
    "resend_confirmation": ("Mail a new code. Always answered the same.", ()),
    "login": ("Start a session with address and password, or learn what else has to be proved.", _NO_LOGIN),
    "verify_device": ("Go on with a login on a new device, with the mailed code or once it is approved.", _NO_CODE),
    "verify_2fa": (
        "Complete a login with a code of the second factor or a recovery code.",
        (Code.INVALID_CODE, Code.CHALLENGE_EXPIRED, Code.TOO_MANY_ATTEMPTS),
    ),
    "refresh": ("Get a session's next tokens. An older token ends the session.", (*_NO_TOKEN, Code.TOKEN_REUSED)),
    "authenticate": ("Make the connection the session's; over HTTP, only see if the token is good.", _NO_TOKEN),
    "logout": ("End the session.", ()),
    "sessions": ("List the account's sessions.", ()),
    "revoke_session": ("End one of the account's sessions.", (Code.NOT_FOUND,)),
    "revoke_other_sessions": ("End every session of the account but this one.", ()),
    "request_password_reset": ("Mail a link that sets a new password. Always answered the same.", ()),
    "reset_password": (
        "Set a new password with the mailed link's code; every session ends.",
        (*_WEAK, Code.INVALID_CODE, Code.CODE_EXPIRED),
    ),
    "change_password": ("Set a new password; every other session ends.", (*_WEAK, *_NO_PROOF)),
    "enroll_2fa": (
        "Get the seed of a second factor, which its first code turns on.",
        (*_NO_PROOF, Code.CHALLENGE_EXPIRED),
    ),
    "confirm_2fa": (
        "Turn the second factor on with its first code.",
        (Code.INVALID_CODE, Code.CHALLENGE_EXPIRED, Code.TOO_MANY_ATTEMPTS),
    ),
    "disable_2fa": ("Turn the second factor off.", (*_NO_PROOF, Code.INVALID_CODE)),
    "new_recovery_codes": ("Get new recovery codes; the old ones are void.", (*_NO_PROOF, Code.INVALID_CODE)),
    "account": ("Show the account.", ()),
    "forget_device": ("Trust a device no longer.", (Code.NOT_FOUND,)),
    "approve_login": (
        "Let a login on a new device in, or refuse it, from a trusted device.",
        (Code.NOT_FOUND, Code.INVALID_CODE),
    ),
}
ERRORS = [code for code in Code if not any(code in refusals for _, refusals in ABOUT.values())]

# Data of each request and event, with the field names of real frames; those of refusals: `refusal_example`.
_EMAIL, _PASSWORD, _IP, _TIME = (
    "ana@example.com",
    "correct horse battery staple",
    "192.0.2.7",
    "2026-01-31T12:00:00.000Z",
)
_CHALLENGE, _DEVICE, _LAPTOP = "0key1-KP6l3yNBRtcJ-pOeLlZEUg", "0key1-cQm3Xo0eOHnvZdX_PYL_TA", "Ana's laptop"
_DEVICE_TOKEN = "0key1.ku6aH_Oo4TqvlgIETw5yTRI0h2StBu25EcCdDYZFmj4"
_ACCESS_TOKEN = "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiIwa2V5MS1LV01fTjFhOSJ9.c2lnbmF0dXJl"
_REFRESH_TOKEN = "key1.0key1-Uwjj5DCGl6UB27IHkDkNeg.0.IclrY2LyAjhT0Fj23b6je-emd6gSCkoZIkHxJWL30m4"
_SESSION = {"sessionId": "0key1-Uwjj5DCGl6UB27IHkDkNeg"}
_WHOSE = {**_SESSION, "userId": "0key1-KWM_N1a9STRKNJxcGg5fgw"}
_ACCESS = {"accessToken": _ACCESS_TOKEN, "tokenType": "Bearer", "expiresIn": 600, **_WHOSE}
_SEEN = {"deviceRef": _DEVICE, "deviceName": _LAPTOP, "lastSeenAt": _TIME}
_LISTED = {**_SESSION, **_SEEN, "ip": _IP, "createdAt": _TIME, "online": True, "current": True}
_2FA = {"has2fa": False, "recoveryCodesLeft": 0}
_FACTOR = f"{_CHALLENGE}.{_WHOSE['userId']}"
_RESET_CODE = f"{_CHALLENGE}.wU0hJRYBb2rLNq3ZzZB0Bh4nC6Z3xOa3mBG8f0Tq3bk"
_SEED = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # RFC 6238, appendix B
_OTPAUTH = f"otpauth://totp/example.com:{_EMAIL}?secret={_SEED}&issuer=example.com"
_RECOVERY = [
    f"{group}-GEZD-GNBV-GY3T"
    for group in ("ME2A", "ME3Q", "MFRA", "MFRG", "MFTQ", "MFZG", "MJQ2", "MJRA", "MJSQ", "MJWA")
]
_LIMITS = {"maxMessageBytes": messages.MAX_MESSAGE_BYTES, "maxInFlight": messages.MAX_IN_FLIGHT}
_HELLO = {"connectionId": "ntkpQClw3ea7tKbrRJdVxw", "serverTime": _TIME, "protocol": PROTOCOL, **_LIMITS}
_ANA = {"email": _EMAIL, "password": _PASSWORD}
EXAMPLES: dict[str, Json] = {
    "register": {"request": {**_ANA, "locale": "pt-BR", "terms": "2026-01"}},
    "register_accepted": {"data": {"next": "confirm_email", "challenge": _CHALLENGE, "expiresIn": 3600}},
    "confirm_email": {"request": {"challenge": _CHALLENGE, "code": "22208895"}},
    "email_confirmed": {"data": {"deviceToken": _DEVICE_TOKEN}},
    "resend_confirmation": {"request": {"challenge": _CHALLENGE}},
    "confirmation_sent": {"data": {}},
    "login": {"request": {**_ANA, "deviceToken": _DEVICE_TOKEN, "deviceName": _LAPTOP}},
    "login_success": {"data": {**_ACCESS, "refreshToken": _REFRESH_TOKEN, "refreshExpiresIn": 604800}},
    "refresh": {"request": {"refreshToken": _REFRESH_TOKEN}},
    "token_refreshed": {"data": {**_ACCESS, "refreshToken": _REFRESH_TOKEN, "refreshExpiresIn": 604800}},
    "authenticate": {"request": {"accessToken": _ACCESS_TOKEN}},
    "authenticated": {"data": {**_WHOSE, "expiresIn": 540}},
    "new_device_detected": {
        "data": {"challenge": _CHALLENGE, "sentTo": "a***@example.com", "matchNumber": 42, "expiresIn": 600}
    },
    "2fa_required": {"data": {"challenge": _FACTOR, "methods": ["totp", "recovery_code"], "expiresIn": 600}},
    "verify_device": {"request": {"challenge": _CHALLENGE, "code": "22208895", "trust": True}},
    "device_verified": {"data": {"deviceToken": _DEVICE_TOKEN}},
    "verify_2fa": {"request": {"challenge": _FACTOR, "code": "287082"}},
    "2fa_verified": {"data": {}},
    "revoke_session": {"request": _SESSION},
    "session_revoked": {"data": {}},
    "revoke_other_sessions": {"request": {}},
    "sessions_revoked": {"data": {"count": 2}},
    "request_password_reset": {"request": {"email": _EMAIL}},
    "password_reset_requested": {"data": {}},
    "reset_password": {"request": {"email": _EMAIL, "code": _RESET_CODE, "newPassword": _PASSWORD}},
    "password_reset": {"data": {}},
    "change_password": {"request": {"currentPassword": _PASSWORD, "newPassword": "seven brown owls in a boat"}},
    "password_changed": {"data": {}},
    "enroll_2fa": {"request": {"password": _PASSWORD}},
    "2fa_enrollment": {"data": {"secret": _SEED, "otpauthUrl": _OTPAUTH, "qrSvg": "<svg></svg>"}},
    "confirm_2fa": {"request": {"code": "287082"}},
    "2fa_enabled": {"data": {"recoveryCodes": _RECOVERY}},
    "disable_2fa": {"request": {"password": _PASSWORD, "code": "287082"}},
    "2fa_disabled": {"data": {}},
    "new_recovery_codes": {"request": {"password": _PASSWORD, "code": "287082"}},
    "recovery_codes": {"data": {"recoveryCodes": _RECOVERY}},
    "forget_device": {"request": {"deviceRef": _DEVICE}},
    "device_forgotten": {"data": {}},
    "approve_login": {"request": {"loginId": _CHALLENGE, "approve": True, "matchNumber": 42}},
    "login_decided": {"data": {"approved": True}},
    "login_attempt": {"data": {"loginId": _CHALLENGE, "deviceName": _LAPTOP, "ip": _IP}},
    "security_alert": {"data": {"kind": "password_changed"}},
    "logout": {"request": {}},
    "logged_out": {"data": {}},
    "sessions": {"request": {}, "data": {"sessions": [_LISTED]}},
    "account": {
        "request": {},
        "data": {"userId": _WHOSE["userId"], "email": _EMAIL, **_2FA, "devices": [_SEEN], "createdAt": _TIME},
    },
    "connected": {"data": _HELLO},
    "queued": {"data": {"position": 42, "etaMs": 310}},
    "session_started": {"data": {**_SESSION, "deviceName": _LAPTOP, "ip": _IP}},
    "session_ended": {"data": {**_SESSION, "reason": "logout"}},
    "mail_status": {"data": {"kind": "new_device", "status": "sent"}},
    "draining": {"data": {"reconnectInMs": 1500}},
}

# --- both ----------------------------------------------------------------------------------------------------------

INFO: Json = {"title": "Finthenticate", "version": f"{PROTOCOL}.0.0"}
FIELDS = dict.fromkeys((Code.INVALID_CODE, Code.CODE_EXPIRED), "code")
FIELDS |= {Code.ADDRESS_TAKEN: "email", Code.PASSWORD_TOO_SHORT: "password"}
JSON, REF = "application/json", "#/components/schemas/{name}"
ENVELOPE: Json = msgspec.json.schema_components((frames.Envelope,))[1]["Envelope"]["properties"]
EMAIL: Json = {
    "format": "email",
    "description": "Trimmed and lower-cased before anything else; at most 254 characters.",
}
PASSWORD: Json = {
    "format": "password",
    "maxLength": messages.MAX_PASSWORD_BYTES,
    "description": f"At most {messages.MAX_PASSWORD_BYTES} bytes of UTF-8. NFKC-normalised, never trimmed or cut.",
}


def _schemas() -> Json:
    """Every type, with what only `__post_init__` checks; a reply's field without a value is absent, never null."""
    requests = [kind.data for kind in KINDS.values()]
    _, schemas = msgspec.json.schema_components([*requests, *EVENTS.values()], ref_template=REF)
    for name, schema in schemas.items():
        asked = name in {request.__name__ for request in requests}
        for field, of in schema.get("properties", {}).items():
            if asked and (field == "email" or field.lower().endswith("password")):
                of.update(EMAIL if field == "email" else PASSWORD)
            elif not asked and of.get("default", ...) is None:
                schema["properties"][field] = of["anyOf"][0]
    return schemas


def _ref(type: type) -> Json:
    return {"$ref": REF.format(name=type.__name__)}


def _object(properties: Json, *optional: str) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _refused(codes: Iterable[Code]) -> Json:
    return {"allOf": [_ref(Refusal), {"properties": {"code": {"enum": list(codes)}}}]}


def refusal_example(code: Code, field: str | None = None) -> Json:
    """The data of a refusal as the service sends it."""
    wait = code in messages.RETRYABLE - {Code.INTERNAL, Code.DEADLINE_EXCEEDED, Code.TOO_MANY_IN_FLIGHT}
    example = refusal(code, retry_after_ms=1000 if wait else None, field=field or FIELDS.get(code))
    built: Json = msgspec.to_builtins(example)
    return built


# --- OpenAPI -------------------------------------------------------------------------------------------------------

REST_ABOUT = "The requests of the WebSocket contract (/asyncapi.json) over HTTP: each waits for its terminal event."
COOKIE, COOKIE_HTTPS = "fin_refresh", "__Host-fin_refresh"
BEARER: Json = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
NO_SESSION, NOT_OWN = 401, 403
HTTP_ONLY = {NOT_OWN: "Origin", 405: None, 413: None, 415: "Content-Type"}  # bad_request, and the field it names
RETRY_AFTER: Json = {"Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer"}}}
SET_COOKIE: Json = {"Set-Cookie": {"description": "The refresh token or its end.", "schema": {"type": "string"}}}
CLAIMED: Json = {"sessionId": {"type": "string"}, "refreshExpiresIn": {"type": "integer"}}
JWK: Json = _object({name: {"type": "string"} for name in ("kty", "crv", "use", "alg", "kid", "x", "y")})
JWKS: Json = _object({"keys": {"type": "array", "items": JWK}})
CHECKS: Json = {"checks": {"type": "object", "additionalProperties": {"type": "boolean"}}}
READY, NOT_READY = (_object({"status": {"const": status}, **CHECKS}) for status in ("ready", "not ready"))
GETS: dict[str, tuple[str, dict[int, Json]]] = {
    "/healthz": ("Whether the process lives.", {200: _object({"status": {"const": "ok"}})}),
    "/readyz": ("Whether store, broker and a worker are there.", {200: READY, 503: NOT_READY}),
    "/.well-known/jwks.json": ("The keys that access tokens are verified with.", {200: JWKS}),
    "/openapi.json": ("This document.", {200: {"type": "object"}}),
    "/asyncapi.json": ("The contract of the WebSocket.", {200: {"type": "object"}}),
}
Variant = tuple[str, Json, Json]  # a terminal event, the schema of its data, an example of it


def openapi(public_url: str) -> Json:
    """The document of the public port but for /ws."""
    url, schemas = urlsplit(public_url), _schemas()
    cookie = {"type": "apiKey", "in": "cookie", "name": COOKIE_HTTPS if url.scheme == "https" else COOKIE}
    errors = {f"error_{status}": _answer(status, error) for status, error in _errors().items()}
    paths = {f"/v1/{kind.event}": {"post": _operation(kind)} for kind in KINDS.values()}
    _add_cookie(paths, schemas, f"{url.scheme}://{url.netloc.lower()}")
    for path, (summary, answers) in GETS.items():
        name = path.rpartition("/")[2].removesuffix(".json")
        responses = {str(status): _response(status, {"schema": schema}) for status, schema in answers.items()}
        paths[path] = {"get": {"operationId": f"get_{name}", "summary": summary, "responses": responses}}
    schemes = {"bearer": BEARER, "cookie": cookie}
    return {
        "openapi": "3.1.0",
        "info": {**INFO, "license": {"name": "MIT", "identifier": "MIT"}, "description": REST_ABOUT},
        "servers": [{"url": public_url}],
        "security": [],
        "paths": paths,
        "components": {"schemas": schemas, "responses": errors, "securitySchemes": schemes},
    }


def _operation(kind: Kind) -> Json:
    answers = {200: [(each.event, _ref(each), EXAMPLES[each.event]["data"]) for each in kind.answers]}
    for status, codes in _by_status(ABOUT[kind.event][1]).items():
        answers[status] = [(str(kind.refused), _refused(codes), refusal_example(codes[-1]))]
    errors = _errors()
    del errors[NOT_OWN]
    if not kind.needs_session:
        del errors[NO_SESSION]
    responses = {str(status): {"$ref": f"#/components/responses/error_{status}"} for status in errors}
    for status, variants in answers.items():
        responses[str(status)] = _answer(status, *variants, *([errors[status]] if status in errors else []))
    if kind.progress:
        _add_progress(responses["200"], kind)
    key = {"name": "Idempotency-Key", "in": "header", "schema": ENVELOPE["key"]["anyOf"][0]}
    content = {JSON: {"schema": _ref(kind.data), "example": EXAMPLES[kind.event]["request"]}}
    return {
        "operationId": kind.event,
        "summary": ABOUT[kind.event][0],
        "security": [{"bearer": []}] if kind.needs_session else [],
        "parameters": [{**key, "description": "For ten minutes the same key with the same request is evaluated once."}],
        "requestBody": {"required": bool(kind.data.__struct_fields__), "content": content},
        "responses": dict(sorted(responses.items())),
    }


def _add_progress(answer: Any, kind: Kind) -> None:
    """What came before the terminal event stands beside it."""
    schema: Json = answer["content"][JSON]["schema"]
    told = [_object({"event": {"const": each.event}, "data": _ref(each)}) for each in kind.progress]
    for variant in schema.get("oneOf", [schema]):
        variant["properties"]["progress"] = {"type": "array", "items": told[0] if len(told) == 1 else {"oneOf": told}}


def _add_cookie(paths: Json, schemas: Json, origin: str) -> None:
    """For pages: /v1/claim makes the refresh token a cookie, which /v1/refresh and /v1/logout then accept."""
    summary = "Take a refresh token into a cookie that no script can read."
    claim = {**_operation(KINDS["refresh"]), "operationId": "claim", "summary": summary}
    example = {name: EXAMPLES["token_refreshed"]["data"][name] for name in CLAIMED}
    claim["responses"]["200"] = _answer(200, ("claimed", _object(CLAIMED), example))
    paths["/v1/claim"] = {"post": claim}
    refresh, logout = paths["/v1/refresh"]["post"], paths["/v1/logout"]["post"]
    body, kept = refresh["requestBody"]["content"][JSON], schemas["TokenRefreshed"]["properties"]
    body["schema"] = {"anyOf": [body["schema"], {"type": "object", "maxProperties": 0}]}
    schemas["CookieRefreshed"] = _object({name: kept[name] for name in kept if name != "refreshToken"})
    answer = refresh["responses"]["200"]["content"][JSON]["schema"]["properties"]
    answer["data"] = {"anyOf": [answer["data"], {"$ref": REF.format(name="CookieRefreshed")}]}
    refresh["security"], logout["security"] = [{}, {"cookie": []}], [{"bearer": []}, {"cookie": []}]
    for operation in (claim, refresh, logout):
        always = operation is claim
        about = "The service's own; required with the cookie." if not always else "The service's own."
        header = {"name": "Origin", "in": "header", "required": always, "description": about}
        operation["parameters"].append({**header, "schema": {"type": "string", "enum": [origin]}})
        operation["responses"]["200"]["headers"] = SET_COOKIE
        operation["responses"][str(NOT_OWN)] = {"$ref": f"#/components/responses/error_{NOT_OWN}"}


def _errors() -> dict[int, Variant]:
    """What `error` can carry at each status, whatever the request."""
    met = [code for code in ERRORS if code is not Code.DUPLICATE_ID]  # HTTP has no ids
    found = {status: (codes, refusal_example(codes[-1])) for status, codes in _by_status(met).items()}
    for status, field in HTTP_ONLY.items():
        found[status] = ([Code.BAD_REQUEST], refusal_example(Code.BAD_REQUEST, field))
    return {status: ("error", _refused(codes), example) for status, (codes, example) in sorted(found.items())}


def _by_status(codes: Iterable[Code]) -> dict[int, list[Code]]:
    found: dict[int, list[Code]] = {}
    for code in codes:
        found.setdefault(STATUSES[code], []).append(code)
    return found


def _answer(status: int, *variants: Variant) -> Json:
    schemas = [_object({"event": {"const": event}, "data": data}) for event, data, _ in variants]
    examples = {event: {"value": {"event": event, "data": example}} for event, _, example in variants}
    schema = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    answer = _response(status, {"schema": schema, "examples": examples})
    return {**answer, "headers": RETRY_AFTER} if status in (429, 503) else answer


def _response(status: int, content: Json) -> Json:
    return {"description": HTTPStatus(status).phrase, "content": {JSON: content}}


# --- AsyncAPI ------------------------------------------------------------------------------------------------------

SOCKET_ABOUT = (
    f"Text frames of one JSON object, at most {messages.MAX_MESSAGE_BYTES} bytes and {frames.MAX_DEPTH} deep. The "
    f"server speaks first, with `connected`. At most {messages.MAX_IN_FLIGHT} requests may be in flight; each gets "
    "exactly one terminal event, or the connection closes. An `Origin` has to be one that the deployment allows."
)
PROGRESS = "queued"
PUSHES = [push.event for push in messages.PUSHES]
ANSWERS_AND_PUSHES = {kind.success.event for kind in KINDS.values()} & set(PUSHES)
CHANNEL: Json = {"$ref": "#/channels/ws"}


def asyncapi(public_url: str) -> Json:
    """The document of /ws. A request's message is called `<request>_request`, an event's as the event."""
    url = urlsplit(public_url)
    server = {"host": url.netloc, "protocol": "wss" if url.scheme == "https" else "ws"}
    found = {f"{kind.event}_request": _request_message(kind) for kind in KINDS.values()}
    found |= {event: _event_message(event) for event in EVENTS}
    operations = {kind.event: _asking(kind) for kind in KINDS.values()}
    operations["push"] = {"action": "send", "channel": CHANNEL, "messages": _named(*PUSHES)}
    channel = {
        "address": "/ws",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in found},
        "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
    }
    return {
        "asyncapi": "3.0.0",
        "info": {**INFO, "license": {"name": "MIT"}, "description": SOCKET_ABOUT},
        "defaultContentType": JSON,
        "servers": {"public": {**server, **({"pathname": url.path} if url.path else {})}},
        "channels": {"ws": channel},
        "operations": operations,
        "components": {"schemas": _schemas(), "messages": found},
    }


def _asking(kind: Kind) -> Json:
    told = [PROGRESS, *(each.event for each in kind.progress)]
    answers = [*told, *(each.event for each in kind.answers), *([kind.refused] if kind.refused else []), "error"]
    session = " Needs an authenticated connection." if kind.needs_session else ""
    return {
        "action": "receive",
        "channel": CHANNEL,
        "summary": ABOUT[kind.event][0] + session,
        "description": f"Answered by {_listed(told)}, then by exactly one of the others.",
        "messages": _named(f"{kind.event}_request"),
        "reply": {"channel": CHANNEL, "messages": _named(*answers)},
    }


def _listed(told: list[str]) -> str:
    queued, *others = (f"`{event}`" for event in told)
    return " and ".join([f"{queued} any number of times", *(f"{event} once" for event in others)])


def _named(*names: str) -> list[Json]:
    return [{"$ref": f"#/channels/ws/messages/{name}"} for name in names]


def _request_message(kind: Kind) -> Json:
    optional = ["key", "timeoutMs", *([] if kind.data.__struct_fields__ else ["data"])]
    properties = {**ENVELOPE, "event": {"const": kind.event}, "data": _ref(kind.data)}
    frame = {"event": kind.event, "id": "1", "data": EXAMPLES[kind.event]["request"]}
    return _message(_object(properties, *optional), frame)


def _event_message(event: str) -> Json:
    id, name = ENVELOPE["id"], {"const": event}
    if EVENTS[event] is Refusal:
        refusals = (code for kind in KINDS.values() if kind.refused == event for code in ABOUT[kind.event][1])
        codes = ERRORS if event == "error" else list(dict.fromkeys(refusals))
        data, example = _refused(codes), refusal_example(codes[-1])
    else:
        data, example = _ref(EVENTS[event]), EXAMPLES[event]["data"]
    if event in ANSWERS_AND_PUSHES:  # with an id to who asked, without one as a push
        return _message(_object({"event": name, "id": id, "data": data}, "id"), {"event": event, "data": example})
    if event in PUSHES:
        return _message(_object({"event": name, "data": data}), {"event": event, "data": example})
    if event == "error":  # of a frame with no usable id
        id = {"anyOf": [id, {"type": "null"}]}
    return _message(_object({"event": name, "id": id, "data": data}), {"event": event, "id": "1", "data": example})


def _message(payload: Json, frame: Json) -> Json:
    message = {"name": frame["event"], "payload": payload, "examples": [{"payload": frame}]}
    return {**message, "correlationId": {"location": "$message.payload#/id"}} if "id" in frame else message

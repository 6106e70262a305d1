"""REST: the same requests over HTTP, from the same table, through the same gateway. Nothing is decided here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import orjson
from sanic import Blueprint, HTTPResponse
from sanic.exceptions import SanicException
from sanic.request import Request

from app import frames, messages
from app.frames import BadFrame, Frame
from app.gateway.connections import Bucket
from app.gateway.doorway import Doorway
from app.gateway.gateway import Gateway
from app.messages import Code, Refusal, refusal

JSON = "application/json"
CLAIMED = "claimed"
REFRESHES = messages.TokenRefreshed.event
COOKIE = "fin_refresh"
COOKIE_HTTPS = "__Host-fin_refresh"  # the prefix binds it to this host, over TLS (RFC 6265bis)
NO_TOKEN = "-"
PREFLIGHT = {
    "access-control-allow-methods": "POST",
    "access-control-allow-headers": "authorization, content-type, idempotency-key",
    "access-control-max-age": "600",
}


class Refused(Exception):
    """The answer is known without asking anybody."""

    def __init__(self, status: int, wrong: Refusal) -> None:
        super().__init__(wrong.code)
        self.status, self.wrong = status, wrong


class Rest:
    """The routes under /v1."""

    def __init__(self, gateway: Gateway, doorway: Doorway) -> None:
        self._gateway, self._doorway = gateway, doorway
        self._cookie = COOKIE_HTTPS if doorway.https else COOKIE

    def blueprint(self) -> Blueprint:
        routes = Blueprint("rest", url_prefix="/v1")
        routes.add_route(self.serve, "/<event:str>", methods=["POST"])
        routes.add_route(self.preflight, "/<event:str>", methods=["OPTIONS"], name="preflight")
        return routes

    async def preflight(self, request: Request, event: str) -> HTTPResponse:
        return HTTPResponse(status=204, headers=PREFLIGHT if self._doorway.allows(request) else None)

    async def serve(self, request: Request, event: str) -> HTTPResponse:
        try:
            if event == "claim":
                return await self._claim(request)
            if event in ("refresh", "logout") and self._uses_cookie(request):
                return await self._with_cookie(request, event)
            frame = self._frame(request, event, _body(request))
            answered, data, steps = await self._ask(request, frame, bearer=_bearer(request))
            return _response(answered, data, steps=steps)
        except Refused as refused:
            return _response("error", frames.encode_data(refused.wrong), refused.status)

    # --- the cookie: for pages, which must not hold a refresh token ------------------------------------------

    def _uses_cookie(self, request: Request) -> bool:
        """Only where the request brings no token of its own."""
        brings = request.headers.get("authorization") or self._cookie not in request.cookies
        return not brings and _body(request) == {}

    async def _claim(self, request: Request) -> HTTPResponse:
        """A refresh token becomes a cookie; no token is returned."""
        self._demand_own_origin(request)
        frame = self._frame(request, "refresh", _body(request))
        event, data, _ = await self._ask(request, frame)
        if event != REFRESHES:
            return _response(event, data)
        tokens = orjson.loads(data)
        shown = {"sessionId": tokens["sessionId"], "refreshExpiresIn": tokens["refreshExpiresIn"]}
        response = _response(CLAIMED, orjson.dumps(shown))
        self._set_cookie(response, tokens["refreshToken"], tokens["refreshExpiresIn"])
        return response

    async def _with_cookie(self, request: Request, event: str) -> HTTPResponse:
        self._demand_own_origin(request)
        token = _token(str(request.cookies.get(self._cookie)))
        if event == "refresh":
            frame = self._frame(request, event, {"refreshToken": token})
            answered, data, _ = await self._ask(request, frame)
        else:
            answered, data, _ = await self._ask(request, self._frame(request, event, {}), refresh_token=token)
        if answered == REFRESHES:
            tokens = orjson.loads(data)
            token, seconds = tokens.pop("refreshToken"), tokens["refreshExpiresIn"]
            response = _response(answered, orjson.dumps(tokens))
            self._set_cookie(response, token, seconds)
            return response
        response = _response(answered, data)
        if answered != "error":  # logged out, or a token that is good for nothing any more
            self._set_cookie(response, "", 0)
        return response

    def _set_cookie(self, response: HTTPResponse, token: str, seconds: int) -> None:
        response.add_cookie(
            self._cookie, token, max_age=seconds, httponly=True, samesite="Strict", secure=self._doorway.https, path="/"
        )

    def _demand_own_origin(self, request: Request) -> None:
        if not self._doorway.is_own(request):
            raise Refused(403, refusal(Code.BAD_REQUEST, field="Origin"))

    # --- one request -------------------------------------------------------------------------------------------

    def _frame(self, request: Request, event: str, data: object) -> Frame:
        key = request.headers.get("idempotency-key")
        if key is not None and not frames.KEY.fullmatch(key):
            raise Refused(400, refusal(Code.BAD_REQUEST, field="Idempotency-Key"))
        try:
            return frames.typed(event, data, "1", key)
        except BadFrame as bad:
            _refuse(bad)

    async def _ask(
        self, request: Request, frame: Frame, *, bearer: str = "", refresh_token: str = ""
    ) -> tuple[str, bytes, list[tuple[str, bytes]]]:
        """The terminal event and its data, and what came before it."""
        ip = self._doorway.client_ip(request)
        if not self._gateway.room_for(ip):
            raise Refused(429, refusal(Code.RATE_LIMITED, retry_after_ms=1000))
        call = self._gateway.rest_call(ip, bearer, refresh_token)
        bucket = self._bucket(request)
        try:
            self._gateway.ask(call, frame, bucket, bucket.take())
            event, data = await call.answer
            return event, data, call.steps
        except asyncio.CancelledError:
            self._gateway.abandon(call)
            raise
        finally:
            self._gateway.rest_done(call)

    def _bucket(self, request: Request) -> Bucket:
        """One for each HTTP connection, as for each WebSocket."""
        context = request.conn_info.ctx if request.conn_info else None
        if not hasattr(context, "bucket"):
            bucket = self._gateway.bucket()
            if context is None:
                return bucket
            context.bucket = bucket
        found: Bucket = context.bucket  # type: ignore[union-attr]
        return found


def _body(request: Request) -> object:
    """The data object; none at all is an empty one."""
    if not request.body:
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise Refused(415, refusal(Code.BAD_REQUEST, field="Content-Type"))
    try:
        return frames.parse_json(request.body)
    except BadFrame as bad:
        _refuse(bad)


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return _token(token.strip()) if scheme.lower() == "bearer" else ""


def _token(text: str) -> str:
    """No token of ours has anything but ASCII in it; what Sanic makes of other bytes cannot even be sent on."""
    return text if text.isascii() else NO_TOKEN


def _refuse(bad: BadFrame) -> NoReturn:
    raise Refused(messages.STATUSES[bad.code], refusal(bad.code, field=bad.field)) from None


def _response(
    event: str, data: bytes, status: int | None = None, steps: Sequence[tuple[str, bytes]] = ()
) -> HTTPResponse:
    """The terminal event as HTTP: its status by its code, and when to come again. With `progress` where there was any:
    a device token comes in none of the terminal events.
    """
    refused: dict[str, Any] = orjson.loads(data)
    code = refused.get("code")
    if status is None:
        status = messages.STATUSES[Code(code)] if code else 200
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(math.ceil(refused.get("retryAfterMs", 1000) / 1000))
    answer: dict[str, Any] = {"event": event, "data": orjson.Fragment(data)}
    if steps:
        answer["progress"] = [{"event": step, "data": orjson.Fragment(text)} for step, text in steps]
    return HTTPResponse(orjson.dumps(answer), status, headers, content_type=JSON)


def plain_refusal(request: Request, error: Exception) -> HTTPResponse:
    """What Sanic refuses by itself (no route, wrong method, too big), in the words of the contract."""
    status = error.status_code if isinstance(error, SanicException) else 500
    code = {404: Code.UNKNOWN_EVENT, 429: Code.RATE_LIMITED, 500: Code.INTERNAL, 503: Code.UNAVAILABLE}.get(
        status, Code.BAD_REQUEST
    )
    response = _response("error", frames.encode_data(refusal(code)), status)
    if status == 405:
        response.headers["allow"] = "OPTIONS, POST" if request.path.startswith("/v1/") else "GET"
    return response

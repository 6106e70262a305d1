"""The listeners: the public one, Sanic's routes around a Gateway; and an operator's, for `/metrics`."""

from __future__ import annotations

import logging
import socket as sockets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from sanic import HTTPResponse, Sanic
from sanic import json as json_response
from sanic.exceptions import SanicException
from sanic.request import Request

from app.documents import asyncapi, openapi
from app.gateway.doorway import Doorway
from app.gateway.gateway import Gateway
from app.gateway.pages import Pages
from app.gateway.rest import Rest, plain_refusal
from app.gateway.socket import Protocol, Socket
from app.messages import MAX_MESSAGE_BYTES
from app.operator.metrics import Metrics
from app.settings import Fault, Settings

log = logging.getLogger("finthenticate")

App = Sanic[Any, Any]

HANDSHAKE_SECONDS = 10
BACKLOG = 4096
# On every answer; OWASP HTTP headers cheat sheet.
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


def create_app(settings: Settings, gateway: Gateway, jwks: Callable[[], dict[str, Any]]) -> App:
    """The application; one a process. `jwks` is asked at each request, so that new keys show at once."""
    app: App = Sanic("finthenticate", configure_logging=False)
    app.config.update(
        {
            "MOTD": False,
            "ACCESS_LOG": False,
            "FALLBACK_ERROR_FORMAT": "json",
            "REQUEST_TIMEOUT": HANDSHAKE_SECONDS,
            "RESPONSE_TIMEOUT": 60,
            "KEEP_ALIVE_TIMEOUT": 30,
            "REQUEST_MAX_SIZE": MAX_MESSAGE_BYTES,
            "REQUEST_MAX_HEADER_SIZE": 8192,
            "REQUEST_BUFFER_SIZE": 65536,
        }
    )
    doorway = Doorway(settings)
    app.blueprint(Rest(gateway, doorway).blueprint())
    app.blueprint(Pages(settings).blueprint())

    @app.websocket("/ws", strict_slashes=True)  # type: ignore[untyped-decorator]
    async def websocket(request: Request, socket: Socket) -> None:
        gateway.welcome(socket, doorway.client_ip(request))
        await socket.closed

    @app.on_request
    async def at_the_door(request: Request) -> None:
        if request.path != "/ws":
            return
        if not doorway.allows(request):
            raise SanicException("This origin may not connect.", 403, quiet=True)
        if gateway.draining:
            raise SanicException("Going away.", 503, quiet=True)
        if not gateway.room_for(doorway.client_ip(request)):
            raise SanicException("Too many connections from this address.", 429, quiet=True)

    @app.on_response  # type: ignore[untyped-decorator]
    async def headers(request: Request, response: HTTPResponse) -> None:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        if request.path.startswith("/v1/"):
            response.headers["vary"] = "Origin"
            if origin := doorway.foreign(request):
                response.headers["access-control-allow-origin"] = origin
                response.headers["access-control-expose-headers"] = "retry-after"

    @app.exception(Exception)
    async def refused(request: Request, error: Exception) -> HTTPResponse:
        if not isinstance(error, SanicException):
            log.error("failed", exc_info=error, extra={"fields": {"path": request.path[:64]}})
        return plain_refusal(request, error)

    documents = {
        "/openapi.json": orjson.dumps(openapi(settings.public_url)),
        "/asyncapi.json": orjson.dumps(asyncapi(settings.public_url)),
    }
    for path, document in documents.items():
        app.add_route(_document(document), path, name=path[1:-5])

    @app.get("/healthz")
    async def healthz(request: Request) -> HTTPResponse:
        return json_response({"status": "ok"})

    @app.get("/readyz")
    async def readyz(request: Request) -> HTTPResponse:
        checks = gateway.ready()
        ready = all(checks.values())
        return json_response({"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503)

    @app.get("/.well-known/jwks.json")
    async def keys(request: Request) -> HTTPResponse:
        return json_response(jwks(), headers={"cache-control": "public, max-age=300"})

    return app


def _document(document: bytes) -> Callable[[Request], Coroutine[Any, Any, HTTPResponse]]:
    async def serve(request: Request) -> HTTPResponse:
        return HTTPResponse(document, content_type="application/json")

    return serve


def create_ops_app(metrics: Metrics) -> App:
    """What an operator's machines ask, on a port of its own."""
    app: App = Sanic("finthenticate-ops", configure_logging=False)
    # TOUCHUP rewrites methods of the protocol's class for one application, and fails for a second one
    app.config.update({"MOTD": False, "ACCESS_LOG": False, "FALLBACK_ERROR_FORMAT": "text", "TOUCHUP": False})

    @app.get("/metrics")
    async def scrape(request: Request) -> HTTPResponse:
        return HTTPResponse(await metrics.scrape(), content_type=CONTENT_TYPE_LATEST)

    return app


def listeners(settings: Settings) -> list[sockets.socket]:
    """Bound: the public one, then the operator's, where there is one. Fault when an address cannot be had."""
    found = [_listen(settings.host, settings.port, "FIN_HOST, FIN_PORT:")]
    if settings.ops_port is not None:
        try:
            found.append(_listen("127.0.0.1", settings.ops_port, "FIN_OPS_PORT:"))
        except Fault as taken:
            if settings.ops_port != settings.port + 1:
                found[0].close()
                raise
            log.warning(f"no /metrics: {taken}")  # nobody has asked for just that port
    return found


def _listen(host: str, port: int, names: str) -> sockets.socket:
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    listener = sockets.socket(family, sockets.SOCK_STREAM)
    listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Fault(f"{names} {host}:{port} cannot be listened on: {error.strerror}.") from None
    listener.setblocking(False)
    return listener


async def serve(gateway: Gateway, listeners: Mapping[sockets.socket, App]) -> None:
    """Serve until the gateway has drained."""
    servers = []
    for listener, app in listeners.items():
        server = await app.create_server(sock=listener, protocol=Protocol, access_log=False, backlog=BACKLOG)
        assert server is not None
        await server.startup()  # type: ignore[no-untyped-call]
        await server.start_serving()  # type: ignore[no-untyped-call]
        servers.append(server)
    try:
        await gateway.run()
    finally:
        for listener in listeners:
            listener.close()
        for connection in [connection for server in servers for connection in server.connections]:
            connection.close()

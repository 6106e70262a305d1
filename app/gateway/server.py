"""The public listener: Sanic's routes around a Gateway."""

from __future__ import annotations

import ipaddress
import logging
import socket as sockets
from typing import Any
from urllib.parse import urlsplit

from sanic import HTTPResponse, Sanic
from sanic import json as json_response
from sanic.exceptions import SanicException
from sanic.request import Request

from app.gateway.gateway import Gateway
from app.gateway.socket import Protocol, Socket
from app.messages import MAX_MESSAGE_BYTES
from app.settings import Fault, Network, Settings

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


def create_app(settings: Settings, gateway: Gateway, jwks: dict[str, list[dict[str, str]]]) -> App:
    """The application; one a process."""
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
    own_origin = origin_of(settings.public_url)

    @app.websocket("/ws")  # type: ignore[untyped-decorator]
    async def websocket(request: Request, socket: Socket) -> None:
        gateway.welcome(socket, client_ip(request, settings.trusted_proxies))
        await socket.closed

    @app.on_request
    async def at_the_door(request: Request) -> None:
        if request.path != "/ws":
            return
        origin = request.headers.get("origin")
        allowed = {own_origin, *settings.allowed_origins}
        if origin is not None and origin not in allowed and not _same_host(origin, request.headers.get("host")):
            raise SanicException("This origin may not connect.", 403, quiet=True)
        if gateway.draining:
            raise SanicException("Going away.", 503, quiet=True)
        if not gateway.room_for(client_ip(request, settings.trusted_proxies)):
            raise SanicException("Too many connections from this address.", 429, quiet=True)

    @app.on_response  # type: ignore[untyped-decorator]
    async def headers(request: Request, response: HTTPResponse) -> None:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)

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
        return json_response(jwks, headers={"cache-control": "public, max-age=300"})

    return app


def listen(settings: Settings) -> sockets.socket:
    """The bound socket. Fault when the address cannot be had."""
    family = sockets.AF_INET6 if ":" in settings.host else sockets.AF_INET
    listener = sockets.socket(family, sockets.SOCK_STREAM)
    listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        raise Fault(f"FIN_HOST, FIN_PORT: {where} cannot be listened on: {error.strerror}.") from None
    listener.setblocking(False)
    return listener


async def serve(app: App, gateway: Gateway, listener: sockets.socket) -> None:
    """Serve until the gateway has drained."""
    server = await app.create_server(sock=listener, protocol=Protocol, access_log=False, backlog=BACKLOG)
    assert server is not None
    await server.startup()  # type: ignore[no-untyped-call]
    await server.start_serving()  # type: ignore[no-untyped-call]
    try:
        await gateway.run()
    finally:
        listener.close()
        for connection in list(server.connections):
            connection.close()


def client_ip(request: Request, trusted: tuple[Network, ...]) -> str:
    """The nearest address on the way here that is no trusted proxy; forwarding headers of others are not believed."""
    peer = request.conn_info.client_ip if request.conn_info else ""
    hops = [hop.strip() for header in request.headers.getall("x-forwarded-for", []) for hop in header.split(",")]
    address = _address(peer)
    while address is not None and any(address in network for network in trusted) and hops:
        if (hop := _address(hops.pop())) is None:
            break
        address = hop
    return str(address) if address else "0.0.0.0"  # noqa: S104  # a Unix socket's peer has no address


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _same_host(origin: str, host: str | None) -> bool:
    parts = urlsplit(origin)
    return bool(host) and parts.scheme in ("http", "https") and parts.netloc.lower() == str(host).lower()

"""Who may come in: origins, and whose word about addresses is believed."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from sanic.request import Request

from app.settings import Network, Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Doorway:
    """The rules of the public listener."""

    def __init__(self, settings: Settings) -> None:
        own = _origin_of(settings.public_url)
        self._own, self._allowed = own, {own, *settings.allowed_origins}
        self._trusted: tuple[Network, ...] = settings.trusted_proxies
        self.https = own.startswith("https://")

    def allows(self, request: Request) -> bool:
        """No origin at all (a program), the deployment's own, that of the request's own Host, or a named one."""
        origin = request.headers.get("origin")
        return origin is None or origin in self._allowed or _is_host(origin, request)

    def is_own(self, request: Request) -> bool:
        """The service's own pages: what cookies are for."""
        origin = request.headers.get("origin")
        return origin is not None and (origin == self._own or _is_host(origin, request))

    def foreign(self, request: Request) -> str | None:
        """An allowed origin that a browser has to be told about."""
        origin = request.headers.get("origin")
        return origin if origin is not None and self.allows(request) else None

    def client_ip(self, request: Request) -> str:
        """The nearest address on the way here that is no trusted proxy; others' forwarding headers are not believed."""
        peer = request.conn_info.client_ip if request.conn_info else ""
        hops = [hop.strip() for header in request.headers.getall("x-forwarded-for", []) for hop in header.split(",")]
        address = _address(peer)
        while address is not None and any(address in network for network in self._trusted) and hops:
            if (hop := _address(hops.pop())) is None:
                break
            address = hop
        return str(address) if address else "0.0.0.0"  # noqa: S104  # a Unix socket's peer has no address


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _is_host(origin: str, request: Request) -> bool:
    host = request.headers.get("host", "")
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return bool(host) and parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()

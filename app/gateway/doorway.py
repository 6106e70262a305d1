"""Who may come in: origins, and whose word about addresses is believed."""

from __future__ import annotations

import ipaddress
import logging
import re
from urllib.parse import urlsplit

from sanic.request import Request

from app.settings import Network, Settings, origin_of

log = logging.getLogger("finthenticate")

FORWARDING = ("x-forwarded-for", "forwarded")
ALIKE = 20  # in a row, with nobody else in between: more than a client that makes such a header up is likely to send

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Doorway:
    """The rules of the public listener."""

    def __init__(self, settings: Settings) -> None:
        public = urlsplit(settings.public_url)
        own = origin_of(public.scheme, public.netloc)
        self._own, self._allowed = own, {own, *settings.allowed_origins}
        self._trusted: tuple[Network, ...] = settings.trusted_proxies
        self.https = own.startswith("https://")
        self._forwarder: str | None = None
        self._forwarded = 0  # requests in a row, all of this peer
        self._warned = False

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
        if not self._trusts(address):
            self._count_forwarded(peer, any(name in request.headers for name in FORWARDING))
        while address is not None and self._trusts(address) and hops:
            if (hop := _hop(hops.pop())) is None:
                break
            address = hop
        return str(address) if address else "0.0.0.0"  # noqa: S104  # a Unix socket's peer has no address

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)

    def _count_forwarded(self, peer: str, forwards: bool) -> None:
        """Say once that all the world seems to come from one address, which would share its limits."""
        if not forwards or peer != self._forwarder:
            self._forwarder, self._forwarded = peer, 0
        self._forwarded += forwards
        if self._forwarded == ALIKE and not self._warned:
            self._warned = True
            log.warning(
                "every client seems to come from one address: a proxy that FIN_TRUSTED_PROXIES does not name?",
                extra={"fields": {"address": peer, "requests": ALIKE}},
            )


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _hop(text: str) -> Address | None:
    """An address as proxies write it: some with a port, and then an IPv6 one in brackets."""
    match = re.fullmatch(r"\[(?P<v6>.+)\](:[0-9]+)?|(?P<v4>[0-9.]+):[0-9]+", text)
    return _address((match["v6"] or match["v4"]) if match else text)


def _is_host(origin: str, request: Request) -> bool:
    host = request.headers.get("host", "")
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    if not host or parts.scheme not in ("http", "https"):
        return False
    return origin_of(parts.scheme, parts.netloc) == origin_of(parts.scheme, host)

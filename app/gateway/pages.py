"""The pages people see: the files of app/web, kept in memory. In development, the mails they wait for too."""

from __future__ import annotations

import asyncio
import email
import email.policy
import gzip
import hashlib
import ipaddress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sanic import Blueprint, HTTPResponse
from sanic import json as json_response
from sanic.exceptions import NotFound
from sanic.request import Request

from app.settings import Settings

WEB = Path(__file__).parent.parent / "web"
VIEWS = ("/", "/signup", "/confirm", "/forgot", "/reset", "/account")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
CHECKED = "no-cache"  # kept, and asked about each time
KEPT = "public, max-age=31536000, immutable"
MOST_MAILS = 50
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    body: bytes
    packed: bytes
    etag: str
    content_type: str

    @classmethod
    def of(cls, name: str, body: bytes) -> Asset:
        etag = f'W/"{hashlib.sha256(body).hexdigest()[:20]}"'
        return cls(body, gzip.compress(body, 9, mtime=0), etag, TYPES[Path(name).suffix])

    def answer(self, request: Request, cache: str, policy: str) -> HTTPResponse:
        headers = {
            "etag": self.etag,
            "cache-control": cache,
            "vary": "accept-encoding",
            "content-security-policy": policy,
            "cross-origin-opener-policy": "same-origin",
            "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
        }
        if request.headers.get("if-none-match") == self.etag:
            return HTTPResponse(status=304, headers=headers)
        body = self.body
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"], body = "gzip", self.packed
        return HTTPResponse(body, headers=headers, content_type=self.content_type)


class Pages:
    """The routes of app/web. Everything is read once, at the start."""

    def __init__(self, settings: Settings) -> None:
        files = {path.name: path.read_bytes() for path in sorted(WEB.iterdir()) if path.suffix in TYPES}
        self._outbox = mailbox_of(settings)
        # The scripts' and styles' address changes with any of them, so that browsers need not ask about them again.
        self._release = hashlib.sha256(b"".join(files.values())).hexdigest()[:12]
        told = {
            "{release}": self._release,
            "{min-password}": str(settings.min_password),
            "{mailbox}": "on" if self._outbox else "off",
        }
        self._assets = {name: Asset.of(name, _filled(name, body, told)) for name, body in files.items()}
        host = urlsplit(settings.public_url).netloc
        # 'self' is the WebSocket too by the standard, but not in every browser.
        self._policy = (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
            f" connect-src 'self' ws://{host} wss://{host}; form-action 'none'; base-uri 'none';"
            " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
        )

    def blueprint(self) -> Blueprint:
        routes = Blueprint("pages")
        for path in VIEWS:
            routes.add_route(self.view, path, name=f"view{path.replace('/', '_')}", methods=["GET", "HEAD"])
        routes.add_route(self.asset, "/web/<name:str>", methods=["GET"])
        routes.add_route(self.released, "/web/<release:str>/<name:str>", methods=["GET"])
        if self._outbox:
            routes.add_route(self.mailbox, "/mailbox", methods=["GET"])
            routes.add_route(self.mails, "/mailbox/mails", methods=["GET"])
        return routes

    async def view(self, request: Request) -> HTTPResponse:
        return self._assets["index.html"].answer(request, CHECKED, self._policy)

    async def asset(self, request: Request, name: str) -> HTTPResponse:
        """Under a name that stays: what other pages import."""
        answer = self._find(name).answer(request, CHECKED, self._policy)
        answer.headers["access-control-allow-origin"] = "*"  # public files; client.js is for other hosts' pages too
        return answer

    async def released(self, request: Request, release: str, name: str) -> HTTPResponse:
        """During an upgrade a document of another node may ask for another release: it gets this one, not to keep."""
        return self._find(name).answer(request, KEPT if release == self._release else CHECKED, self._policy)

    def _find(self, name: str) -> Asset:
        if name not in self._assets or name.endswith(".html"):
            raise NotFound("There is no such file.", quiet=True)
        return self._assets[name]

    # --- the development mailbox ---------------------------------------------------------------------------------

    async def mailbox(self, request: Request) -> HTTPResponse:
        _demand_near(request)
        return self._assets["mailbox.html"].answer(request, CHECKED, self._policy)

    async def mails(self, request: Request) -> HTTPResponse:
        _demand_near(request)
        assert self._outbox is not None
        return json_response({"mails": await asyncio.to_thread(_newest, self._outbox)})


def _filled(name: str, body: bytes, told: dict[str, str]) -> bytes:
    for placeholder, value in told.items() if name.endswith(".html") else ():
        body = body.replace(placeholder.encode(), value.encode())
    return body


def mailbox_of(settings: Settings) -> Path | None:
    """The outbox, where mails go to a folder and nobody but this machine can reach the gateway."""
    kind, _, folder = settings.mail_url.partition(":")
    return settings.data_dir / folder if kind == "file" and _is_loopback(settings.host) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _demand_near(request: Request) -> None:
    """From this machine, under its own name, by no proxy: a foreign page cannot reach it by a name that it rebinds."""
    name = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
    forwarded = request.headers.get("x-forwarded-for") or request.headers.get("forwarded")
    peer = request.conn_info.client_ip if request.conn_info else ""
    if name not in LOOPBACK_NAMES or forwarded or not _is_loopback(peer):
        raise NotFound("There is no such page.", quiet=True)


def _newest(outbox: Path) -> list[dict[str, Any]]:
    """The last mails, newest first, as plain text; one that goes away meanwhile, or is none, is left out."""
    found = []
    for path in outbox.glob("*.eml"):
        try:
            found.append((path.stat().st_mtime_ns, path))
        except OSError:
            continue
    mails = []
    for _, path in sorted(found, reverse=True)[:MOST_MAILS]:
        try:
            message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            body = message.get_body(("plain",))
            mails.append(
                {
                    "id": path.stem,
                    "to": str(message["To"]),
                    "subject": str(message["Subject"]),
                    "date": parsedate_to_datetime(str(message["Date"])).isoformat(),
                    "text": body.get_content() if body else "",
                }
            )
        except (OSError, ValueError, LookupError):
            continue
    return mails

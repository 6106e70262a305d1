"""Where mails are handed over, read from a URL: smtp://USER:PASSWORD@HOST:PORT?tls=starttls|implicit|none. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.policy import default as mail_policy
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Tls = Literal["starttls", "implicit", "none"]
PORTS: dict[Tls, int] = {"starttls": 587, "implicit": 465, "none": 25}  # RFC 6409, RFC 8314, RFC 5321
_ESCAPES = "where in a user or password / ? # and @ are written %2F %3F %23 and %40"


@dataclass(frozen=True)
class Smtp:
    host: str
    port: int
    tls: Tls
    user: str = ""
    password: str = field(default="", repr=False)


def read(url: str, fault: Callable[[str], None], warn: Callable[[str], None]) -> Smtp:
    """With a fault for everything that is wrong, none of which holds anything of the URL but its host.

    Where nothing is said of TLS, STARTTLS is asked for, except of a server on this machine. A password is never sent
    in the clear to another machine; mails are where that is asked for, with a warning.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        fault(f"has no good host and port: smtp://USER:PASSWORD@HOST:PORT, {_ESCAPES}")
        return Smtp("", 0, "none")
    host = parts.hostname or ""
    if not _is_host(host):
        fault("names no host: smtp://USER:PASSWORD@HOST:PORT")
    if port == 0:
        fault("has port 0")
    if parts.path.strip("/") or parts.fragment:
        fault(f"has something behind its port: {_ESCAPES}")
    tls = _tls(parts.scheme, parts.query, _here(host), fault)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if bool(user) != bool(password):
        fault("has a user without a password, or a password without a user")
    if tls == "none" and not _here(host):
        if password:
            fault("would send its password in the clear (tls=none) to another machine")
        else:
            warn("sends mails, and the codes in them, in the clear (tls=none) to another machine")
    return Smtp(host, port or PORTS[tls], tls, user, password)


def _tls(scheme: str, query: str, here: bool, fault: Callable[[str], None]) -> Tls:
    asked = parse_qsl(query, keep_blank_values=True)
    if unknown := {name for name, _ in asked} - {"tls"}:
        fault(f"takes tls= and nothing else behind its ?, not {len(unknown)} more")
    default = "implicit" if scheme == "smtps" else "none" if here else "starttls"
    found = [said for name, said in asked if name == "tls"] or [default]
    if len(found) > 1 or found[0] not in PORTS:
        fault("has a tls= that is not starttls, implicit or none")
        return "starttls"
    if scheme == "smtps" and found != ["implicit"]:
        fault("is smtps://, which is tls=implicit, and says otherwise")
    return found[0]


def is_sender(text: str) -> bool:
    """One address, with or without a name before it."""
    try:
        header = mail_policy.header_factory("From", text)
        [found] = header.addresses
    except (ValueError, IndexError):  # IndexError is what it says to "a@"
        return False
    return not header.defects and text.isprintable() and found.addr_spec.isascii() and bool(found.domain)


def _is_host(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?", host) is not None


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""Who may come in, and from where he comes: origins and the addresses that proxies tell."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sanic.compat import Header
from sanic.request import Request

from app.gateway.doorway import Doorway
from app.settings import Settings


def request(**headers: str) -> Request:
    """Of a proxy at 10.0.0.1."""
    named = Header({name.replace("_", "-"): value for name, value in headers.items()})
    return cast(Request, cast(Any, SimpleNamespace(headers=named, conn_info=SimpleNamespace(client_ip="10.0.0.1"))))


@pytest.mark.parametrize(
    ("hops", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[::ffff:192.0.2.1]:4711", "192.0.2.1"),
        ("192.0.2.1:4711, 10.0.0.2:80", "192.0.2.1"),
        ("192.0.2.1:port", "10.0.0.1"),
        ("[2001:db8::1", "10.0.0.1"),
        ("[]:80", "10.0.0.1"),
        ("somebody", "10.0.0.1"),
    ],
)
def test_a_trusted_proxy_may_tell_an_address_with_its_port(hops: str, address: str) -> None:
    doorway = Doorway(Settings(trusted_proxies=(ipaddress.ip_network("10.0.0.0/8"),)))

    assert doorway.client_ip(request(x_forwarded_for=hops)) == address


@pytest.mark.parametrize(
    ("url", "origin", "own"),
    [
        ("https://login.test:443", "https://login.test", True),
        ("http://login.test:80", "http://login.test", True),
        ("https://login.test:80", "https://login.test", False),
        ("https://login.test:8443", "https://login.test", False),
    ],
)
def test_a_port_that_goes_without_saying_is_in_no_origin(url: str, origin: str, own: bool) -> None:
    doorway = Doorway(Settings(public_url=url))

    assert (doorway.is_own(request(origin=origin)), doorway.allows(request(origin=origin))) == (own, own)


@pytest.mark.parametrize(
    ("host", "origin", "own"),
    [
        ("here.test:443", "https://here.test", True),
        ("here.test:80", "http://here.test", True),
        ("here.test:80", "https://here.test", False),
        ("here.test", "http://elsewhere.test", False),
    ],
)
def test_the_host_of_a_request_is_its_own_origin_with_or_without_that_port(host: str, origin: str, own: bool) -> None:
    assert Doorway(Settings()).is_own(request(host=host, origin=origin)) == own

"""A mail as a message (RFC 5322), the same however often it is built. Pure."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import urlsplit

from app.mail.templates import render
from app.records import Mail


def domain_of(public_url: str) -> str:
    """Of our addresses and ids: the public host; where that is no name, as RFC 5321 writes a bare address."""
    host = urlsplit(public_url).hostname or "localhost"
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return host
    return f"[{host}]" if version == 4 else f"[IPv6:{host}]"


def build(mail: Mail, id: str, public_url: str, sender: str) -> EmailMessage:
    """`id` names the mail for ever: what is sent twice has one Message-ID, and most programs show it once.

    `sender` "": no-reply at the public host. ValueError where an address would be more than one header.
    """
    rendered, domain = render(mail, public_url), domain_of(public_url)
    message = EmailMessage()
    message["From"] = sender or f"Finthenticate <no-reply@{domain}>"
    message["To"] = mail.to
    message["Subject"] = rendered.subject
    message["Date"] = format_datetime(datetime.fromtimestamp(mail.at // 1000, UTC))
    message["Message-ID"] = f"<{id}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834
    message.set_content(rendered.text, cte="quoted-printable")
    message.add_alternative(rendered.html, subtype="html", cte="quoted-printable")
    message.set_boundary(f"=_{id}")  # it is in no text: an id is random
    return message

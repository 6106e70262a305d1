"""A mailer that hands over to an SMTP server (RFC 5321, as a client that submits: RFC 6409)."""

from __future__ import annotations

import ssl
from contextlib import suppress

from aiosmtplib import SMTP
from aiosmtplib.errors import SMTPDataError, SMTPException, SMTPRecipientRefused

from app.mail.message import build, domain_of
from app.ports import Undeliverable
from app.records import Mail
from app.smtp import Smtp

# RFC 5321 4.5.3.2 asks for minutes, of servers that relay; ours is near, and before its last answer nothing is taken.
ANSWER_SECONDS = 20.0
# For the answer to the whole message. Given up here it may have been taken, and is sent twice: so rather wait.
TAKEN_SECONDS = 120.0
QUIT_SECONDS = 2.0
MOST_SAID = 200  # characters of what a server answers


class SmtpMailer:
    """Mailer, one connection a mail: what one mail does to it is no other's trouble.

    A refusal for good (5xx) of the recipient or of the message is the mail's. Everything else is the server's, and may
    be mended: a refused login, sender or STARTTLS, 4xx, silence, a lost connection.
    """

    def __init__(self, server: Smtp, public_url: str, sender: str, tls: ssl.SSLContext | None = None) -> None:
        """`tls` None: certificates are held against those that the system trusts (SSL_CERT_FILE names others)."""
        self._server, self._public_url, self._sender = server, public_url, sender
        self._tls = tls if tls is not None or server.tls == "none" else ssl.create_default_context()

    async def send(self, mail: Mail, message_id: str) -> None:
        message = build(mail, message_id, self._public_url, self._sender)
        sender: str = message["From"].addresses[0].addr_spec
        client = SMTP(
            hostname=self._server.host,
            port=self._server.port,
            username=self._server.user or None,
            password=self._server.password or None,
            local_hostname=domain_of(self._public_url),
            timeout=ANSWER_SECONDS,
            use_tls=self._server.tls == "implicit",
            start_tls=self._server.tls == "starttls",
            tls_context=self._tls,
        )
        try:
            await client.connect()
            await client.mail(sender)
            await client.rcpt(mail.to)
            await client.data(message.as_bytes(), timeout=TAKEN_SECONDS)
            with suppress(SMTPException, OSError):  # it is taken, however they part
                await client.quit(timeout=QUIT_SECONDS)
        except (SMTPRecipientRefused, SMTPDataError) as refused:
            reason = f"{refused.code} {_said(refused.message, mail)}"
            raise (Undeliverable if refused.code >= 500 else OSError)(reason) from None
        except (SMTPException, OSError) as error:
            raise OSError(f"{type(error).__name__}: {_said(str(error), mail)}") from None
        finally:
            client.close()


def _said(answer: str, mail: Mail) -> str:
    """On one line, short, and without what is the mail's: servers quote what they refuse."""
    line = " ".join("".join(each if each.isprintable() else " " for each in answer).split())
    for own in filter(None, (mail.code, mail.to)):
        line = line.replace(own, "…")
    return line[:MOST_SAID]

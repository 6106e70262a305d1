"""Handing over to real SMTP servers: those that take, refuse, stall and hang up; and what FIN_MAIL_URL may say."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adapters import smtp
from adapters.smtp import SmtpMailer
from app.ports import Undeliverable
from app.records import Mail
from app.smtp import Smtp, is_sender, read
from tests.post_office import DROP, STALL, PostOffice

AT = 1_795_542_700_123
PASSWORD = "correct+horse/battery"
MAIL = Mail("confirmation", "ana@example.com", "pt-BR", "12345678", at=AT)


def mailer(office: PostOffice, **server: str) -> SmtpMailer:
    return SmtpMailer(Smtp("127.0.0.1", office.port, "none", **server), "https://login.test", "")


async def test_a_mail_is_handed_over_as_it_was_written() -> None:
    async with PostOffice.open() as office:
        await mailer(office).send(MAIL, "0mail-id")
        await mailer(office).send(MAIL, "0mail-id")
        first, second = office.taken
        assert first.as_bytes() == second.as_bytes()
        assert (first["Message-ID"], first["To"]) == ("<0mail-id@login.test>", MAIL.to)
        assert first["Date"].datetime.timestamp() == AT // 1000
        assert office.senders == ["no-reply@login.test"] * 2
        [plain, html] = first.iter_parts()
        assert "    12345678\n" in plain.get_content().replace("\r\n", "\n")
        assert "<html" in html.get_content()
        await gone(office)


async def gone(office: PostOffice) -> None:
    """No connection is left behind."""
    async with asyncio.timeout(5):
        while office.connections:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ("rcpt 550 5.1.1 no such mailbox", Undeliverable),
        ("rcpt 553 5.1.3 not an address", Undeliverable),
        ("554 5.7.1 not wanted", Undeliverable),
        ("552 5.3.4 too long", Undeliverable),
        ("rcpt 450 4.2.1 come again", OSError),
        ("rcpt 421 4.3.2 going down", OSError),
        ("451 4.3.0 come again", OSError),
        ("452 4.3.1 full", OSError),
        (DROP, OSError),
    ],
)
async def test_a_refusal_for_good_is_the_mails_and_everything_else_may_be_tried_again(
    rule: str, error: type[Exception]
) -> None:
    async with PostOffice.open() as office:
        office.rules["ana"] = rule
        with pytest.raises(error) as refused:
            await mailer(office).send(MAIL, "0mail-id")
        assert type(refused.value) is error
        if rule != DROP:
            assert rule.removeprefix("rcpt ") in str(refused.value)
        assert office.taken == []
        office.rules.clear()
        await mailer(office).send(MAIL, "0mail-id")
        assert len(office.taken) == 1
        await gone(office)


@pytest.mark.parametrize("rule", ["rcpt stall", STALL])
async def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(smtp, "TAKEN_SECONDS", 0.2)
    async with PostOffice.open() as office:
        office.rules["ana"] = rule
        with pytest.raises(OSError, match="SMTPReadTimeoutError"):
            await mailer(office).send(MAIL, "0mail-id")
        office.hang_up()
        await gone(office)


async def test_a_server_that_takes_connections_and_says_nothing_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smtp, "ANSWER_SECONDS", 0.2)
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    silent = Smtp("127.0.0.1", server.sockets[0].getsockname()[1], "none")
    with pytest.raises(OSError, match="SMTPConnectTimeoutError"):
        await SmtpMailer(silent, "https://login.test", "").send(MAIL, "0mail-id")
    for writer in held:
        writer.close()
    server.close()


async def test_where_nobody_listens_it_may_be_tried_again() -> None:
    async with PostOffice.open() as office:
        office.stop()
        with pytest.raises(OSError, match="SMTPConnectError"):
            await mailer(office).send(MAIL, "0mail-id")
        await office.start()
        await mailer(office).send(MAIL, "0mail-id")
        assert len(office.taken) == 1


async def test_what_a_server_quotes_of_a_mail_is_not_repeated() -> None:
    async with PostOffice.open() as office:
        for rule in (f"rcpt 550 <{MAIL.to}> unknown", f"554 spam: {MAIL.code} {'x' * 300}"):
            office.rules["ana"] = rule
            with pytest.raises(Undeliverable) as refused:
                await mailer(office).send(MAIL, "0mail-id")
            said = str(refused.value)
            assert "…" in said
            assert MAIL.code not in said
            assert MAIL.to not in said
            assert len(said) < 250


# --- who we are, and who they are -------------------------------------------------------------------------------------


async def test_it_logs_in_where_it_is_given_a_password_and_a_wrong_one_is_the_servers_trouble() -> None:
    async with PostOffice.open(password=PASSWORD) as office:
        await mailer(office, user="fin", password=PASSWORD).send(MAIL, "0mail-id")
        assert office.logins == [(b"fin", PASSWORD.encode())]
        with pytest.raises(OSError, match="535") as refused:
            await mailer(office, user="fin", password="wrong").send(MAIL, "0mail-id")
        assert "wrong" not in str(refused.value)
        assert len(office.taken) == 1


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context, and that of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_it_speaks_tls_to_the_server_that_the_url_names_and_to_no_other(tls: str, tmp_path: Path) -> None:
    server, trusts_it = certificate(tmp_path, "localhost")
    other, trusts_other = certificate(tmp_path, "other.test")
    async with PostOffice.open(tls, server) as office:
        where = Smtp("localhost", office.port, "starttls" if tls == "starttls" else "implicit")
        await SmtpMailer(where, "https://login.test", "", trusts_it).send(MAIL, "0mail-id")
        assert len(office.taken) == 1
        for context in (trusts_other, None):
            with pytest.raises(OSError, match="certificate verify failed"):
                await SmtpMailer(where, "https://login.test", "", context).send(MAIL, "0mail-id")
    async with PostOffice.open(tls, other) as office:
        where = Smtp("localhost", office.port, where.tls)
        with pytest.raises(OSError, match="certificate"):  # a good one, but somebody else's
            await SmtpMailer(where, "https://login.test", "", trusts_other).send(MAIL, "0mail-id")
        assert office.taken == []


async def test_a_server_without_starttls_gets_no_mail_where_that_is_asked_for() -> None:
    async with PostOffice.open() as office:
        asked = Smtp("127.0.0.1", office.port, "starttls", "fin", PASSWORD)
        with pytest.raises(OSError, match="STARTTLS"):
            await SmtpMailer(asked, "https://login.test", "").send(MAIL, "0mail-id")
        assert (office.taken, office.logins) == ([], [])


# --- FIN_MAIL_URL and FIN_MAIL_FROM -----------------------------------------------------------------------------------


def parsed(url: str) -> tuple[Smtp, list[str], list[str]]:
    faults: list[str] = []
    warnings: list[str] = []
    return read(url, faults.append, warnings.append), faults, warnings


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail.test", Smtp("mail.test", 587, "starttls")),
        ("smtp://mail.test:2525", Smtp("mail.test", 2525, "starttls")),
        ("smtp://mail.test?tls=starttls", Smtp("mail.test", 587, "starttls")),
        ("smtp://mail.test/?tls=implicit", Smtp("mail.test", 465, "implicit")),
        ("smtps://mail.test", Smtp("mail.test", 465, "implicit")),
        ("smtps://mail.test:4650?tls=implicit", Smtp("mail.test", 4650, "implicit")),
        ("smtp://127.0.0.1:1025", Smtp("127.0.0.1", 1025, "none")),
        ("smtp://localhost", Smtp("localhost", 25, "none")),
        ("smtp://[::1]:1025", Smtp("::1", 1025, "none")),
        ("smtp://localhost?tls=starttls", Smtp("localhost", 587, "starttls")),
        ("smtp://fin:pw@127.0.0.1", Smtp("127.0.0.1", 25, "none", "fin", "pw")),
        ("smtp://a%40b:p%2F%3F%23%40%3A@mail.test", Smtp("mail.test", 587, "starttls", "a@b", "p/?#@:")),
        ("smtp://[2001:db8::25]", Smtp("2001:db8::25", 587, "starttls")),
    ],
)
def test_a_url_names_server_port_tls_and_login(url: str, server: Smtp) -> None:
    assert parsed(url) == (server, [], [])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("smtp://", ["no host"]),
        ("smtp://:25", ["no host"]),
        ("smtp://two words", ["no host"]),
        ("smtp://mail.test:port", ["host and port"]),
        ("smtp://mail.test:99999", ["host and port"]),
        ("smtp://mail.test:0", ["port 0"]),
        ("smtp://mail.test?tls=yes", ["starttls, implicit or none"]),
        ("smtp://mail.test?tls=", ["starttls, implicit or none"]),
        ("smtp://mail.test?tls=none&tls=starttls", ["starttls, implicit or none"]),
        ("smtps://mail.test?tls=none", ["says otherwise"]),
        ("smtp://mail.test?ssl=1", ["nothing else"]),
        ("smtp://mail.test/path", ["behind its port"]),
        ("smtp://fin:0/x@mail.test", ["behind its port", "%2F"]),
        ("smtp://fin:hunter2#x@mail.test", ["host and port", "%23"]),
        ("smtp://fin@mail.test", ["without a password"]),
        ("smtp://:hunter2@mail.test", ["without a user"]),
        ("smtp://fin:hunter2@mail.test?tls=none", ["in the clear"]),
        ("smtp://fin:hunter2@?tls=maybe&x=hunter2", ["no host", "starttls", "nothing else"]),
    ],
)  # fmt: skip
def test_everything_that_is_wrong_with_a_url_is_said_and_nothing_of_its_password(url: str, words: list[str]) -> None:
    _, faults, _ = parsed(url)
    assert "hunter2" not in "".join(faults)
    for word in words:
        assert any(word in fault for fault in faults), faults


def test_mails_in_the_clear_are_a_warning_and_no_password_is_in_a_repr() -> None:
    server, faults, warnings = parsed("smtp://mail.test:25?tls=none")
    assert (server.tls, faults) == ("none", [])
    [warning] = warnings
    assert "in the clear" in warning
    assert PASSWORD not in repr(Smtp("mail.test", 25, "none", "fin", PASSWORD))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("no-reply@example.com", True),
        ("Example Ltd <no-reply@example.com>", True),
        ("Ação <no-reply@example.com>", True),
        ('"A, B" <no-reply@example.com>', True),
        ("<no-reply@[127.0.0.1]>", True),
        ("no-reply", False),
        ("no-reply@", False),
        ("ação@example.com", False),
        ("a@example.com, b@example.com", False),
        ("A, B <a@example.com>", False),
        ("a@example.com\nBcc: b@example.com", False),
        ("a b@example.com", False),
    ],
)
def test_a_sender_is_one_address(text: str, good: bool) -> None:
    assert is_sender(text) == good

"""Handing over to real SMTP servers: those that take, refuse, stall and hang up; and what FIN_MAIL_URL may say."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis import Redis

from adapters import names, smtp
from adapters.redis_store import text
from adapters.smtp import SmtpMailer
from app import entries
from app.messages import MailStatus
from app.ports import Undeliverable
from app.records import Mail, Notice
from app.settings import read_secrets
from app.smtp import Smtp, is_sender, read
from tests.deployment import CODES, Deployment, new_address
from tests.post_office import DROP, MUTE, STALL, PostOffice

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


# --- a deployment that sends ------------------------------------------------------------------------------------------

LIMIT_SECONDS = 3.0  # for a login on a busy machine: far less than any time-out of a mail server


async def register(running: Deployment, client: Any, address: str) -> str:
    """The challenge; and it is answered as if there were no mail."""
    began = time.monotonic()
    accepted = await client.ask("register", email=address, password=PASSWORD)
    assert accepted.event == "register_accepted"
    assert time.monotonic() - began < LIMIT_SECONDS
    return str(accepted.data["challenge"])


def code_in(message: EmailMessage) -> str:
    body = message.get_body(("plain",))
    assert body is not None
    [code] = re.findall(r"\d{6,}", body.get_content())
    CODES.add(code)
    return str(code)


def deployed(folder: Path, redis_url: str, office: PostOffice, **more: Any) -> AbstractContextManager[Deployment]:
    where = {"FIN_MAIL_URL": f"smtp://127.0.0.1:{office.port}", "FIN_MAIL_FROM": "Fin <fin@login.test>"}
    return Deployment.start(folder, redis_url, settings=where | more.pop("settings", {}), **more)


@pytest.mark.parametrize("trouble", ["dead", "rcpt stall", STALL, DROP, "451 come again"])
async def test_nobody_who_registers_or_logs_in_waits_for_a_mail_server_and_the_mail_comes_once_that_is_well(
    redis_url: str, tmp_path: Path, trouble: str
) -> None:
    async with PostOffice.open() as office:
        with deployed(tmp_path, redis_url, office) as running:
            async with running.client() as client:
                known = new_address()
                challenge = await register(running, client, known)
                await office.until(lambda: bool(office.to(known)))
                code = code_in(office.to(known)[0])
                confirmed = await client.ask("confirm_email", challenge=challenge, code=code)
                assert confirmed.event == "email_confirmed"
                if trouble == "dead":
                    office.stop()
                else:
                    office.rules["@"] = trouble
                waiting = [new_address() for _ in range(12)]  # more than a mailer has connections
                challenges = [await register(running, client, address) for address in waiting]
                for _ in range(5):
                    began = time.monotonic()
                    assert (await client.ask("login", email=known, password=PASSWORD)).event == "login_success"
                    assert time.monotonic() - began < LIMIT_SECONDS
                office.rules.clear()
                if trouble == "dead":
                    await office.start()
                office.hang_up()
                await office.until(lambda: all(office.to(address) for address in waiting))
                for address, challenge in zip(waiting, challenges):
                    [message] = office.to(address)
                    assert message["From"] == "Fin <fin@login.test>"
                    confirmed = await client.ask("confirm_email", challenge=challenge, code=code_in(message))
                    assert confirmed.event == "email_confirmed"
            with Redis.from_url(redis_url) as redis:
                await until(lambda: redis.xlen(names.MAIL) == 0)
        assert set(office.count().values()) == {1}


async def test_through_the_death_of_a_mailer_every_mail_comes_and_only_what_it_was_sending_comes_twice(
    redis_url: str, tmp_path: Path
) -> None:
    async with PostOffice.open() as office:
        with deployed(tmp_path, redis_url, office) as running:
            async with running.client() as client:
                mute, later = [f"mute{n}@example.com" for n in range(3)], [f"later{n}@example.com" for n in range(3)]
                office.rules = {"mute": MUTE, "later": "451 come again"}
                for address in (*mute, *later, *(new_address() for _ in range(6))):
                    await register(running, client, address)
                await office.until(lambda: len(office.taken) == 9 and all(office.tries[each] >= 2 for each in later))
                [mailer] = running.of("mailer")
                running.kill(mailer)
                office.rules.clear()
                running.add("mailer")
                for address in (fresh := [new_address() for _ in range(3)]):
                    await register(running, client, address)
                with Redis.from_url(redis_url) as redis:
                    await until(lambda: redis.xlen(names.MAIL) == 0)
                assert all(office.to(address) for address in (*mute, *later, *fresh))
        twice = {str(message["To"]) for message in office.taken if office.count()[str(message["Message-ID"])] > 1}
        assert twice == set(mute)  # the server had taken them, and nobody lived to hear it
        assert sorted(office.count().values()) == [1] * 12 + [2] * 3
        texts = {message.as_bytes() for message in office.taken}
        assert len(texts) == 15  # both times the same


async def test_what_is_refused_for_good_is_a_dead_letter_that_an_operator_sees_and_can_send_again(
    redis_url: str, tmp_path: Path
) -> None:
    async with PostOffice.open() as office:
        office.rules["never"] = "rcpt 550 5.1.1 no such mailbox"
        with deployed(tmp_path, redis_url, office) as running:
            async with running.client() as client:
                refused, good = "never@example.com", new_address()
                challenge = await register(running, client, refused)
                await register(running, client, good)
                await office.until(lambda: bool(office.to(good)))
                with Redis.from_url(redis_url) as redis:
                    await until(lambda: redis.xlen(names.DEAD) == 1)
                [letter] = json.loads(await running.command("dead", "list", "--json"))["letters"]
                assert letter["reason"] == "refused for good: 550 5.1.1 no such mailbox"
                assert (letter["lane"], letter["retryable"], office.tries[refused]) == ("mail", True, 1)
                office.rules.clear()
                await running.command("dead", "retry", letter["id"])
                await office.until(lambda: bool(office.to(refused)))
                [message] = office.to(refused)
                confirmed = await client.ask("confirm_email", challenge=challenge, code=code_in(message))
                assert confirmed.event == "email_confirmed"
                assert "There are no dead letters" in await running.command("dead", "list")


async def test_a_mailer_that_is_told_to_stop_while_a_server_stalls_is_gone_in_time_and_loses_nothing(
    redis_url: str, tmp_path: Path
) -> None:
    async with PostOffice.open() as office:
        office.rules["@"] = STALL
        with deployed(tmp_path, redis_url, office) as running:
            async with running.client() as client:
                addresses = [new_address() for _ in range(12)]
                for address in addresses:
                    await register(running, client, address)
                await office.until(lambda: len(office.tries) == 10)
                [mailer] = running.of("mailer")
                began = time.monotonic()
                assert await asyncio.to_thread(mailer.end) == 0
                assert time.monotonic() - began < 15
                running.processes.remove(mailer)
                office.rules.clear()
                running.add("mailer")
                await office.until(lambda: all(office.to(address) for address in addresses))
        assert set(office.count().values()) == {1}


async def test_who_proved_a_password_is_told_how_its_mail_goes_and_who_only_named_an_address_is_told_nothing(
    redis_url: str, tmp_path: Path
) -> None:
    async def status(client: Any) -> tuple[str, str]:
        frame = await asyncio.wait_for(client.pushes.get(), 20)
        assert frame["event"] == "mail_status"
        return frame["data"]["kind"], frame["data"]["status"]

    async with PostOffice.open() as office:
        with deployed(tmp_path, redis_url, office, settings={"FIN_DEVICE_VERIFICATION": "on"}) as running:
            async with running.client() as stranger, running.client() as client:
                address = new_address()
                challenge = await register(running, stranger, address)
                await office.until(lambda: len(office.taken) == 1)
                await stranger.ask("confirm_email", challenge=challenge, code=code_in(office.taken[0]))
                await register(running, stranger, address)  # it is taken now, and only the mail says so
                await stranger.ask("request_password_reset", email=address)
                await office.until(lambda: len(office.taken) == 3)

                office.rules["@"] = "451 come again"
                detected = await client.ask("login", email=address, password=PASSWORD)
                assert detected.event == "new_device_detected"
                assert await status(client) == ("new_device", "retrying")
                office.rules.clear()
                assert await status(client) == ("new_device", "sent")
                code = code_in(office.taken[-1])
                office.rules["@"] = "554 not wanted"
                verified = await client.ask("verify_device", challenge=detected.data["challenge"], code=code)
                assert verified.event == "login_success"
                assert await status(client) == ("login_notice", "failed")
                assert stranger.pushes.empty()


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


async def test_a_push_for_one_connection_reaches_that_one_whoever_it_is(deployment: Deployment) -> None:
    edge = read_secrets(deployment.environ, "edge")
    event = MailStatus(kind="new_device", status="retrying")
    async with deployment.client() as first, deployment.client() as second:
        with Redis.from_url(deployment.redis_url) as redis:
            for connection in (second.hello["connectionId"], "nobody"):
                signed = entries.sign_notice(edge, Notice("", "", event, only=("", connection)))
                for node in redis.zrange(names.LIVING, 0, -1):
                    redis.xadd(
                        names.REPLIES + node.decode(), {"k": "notice", "x": text(signed.body), "m": text(signed.mac)}
                    )
        pushed = await asyncio.wait_for(second.pushes.get(), 10)
        assert (pushed["event"], pushed["data"]) == ("mail_status", {"kind": "new_device", "status": "retrying"})
        await second.ask("login", email=new_address(), password=PASSWORD)  # by then all of it has been read
        await first.ask("login", email=new_address(), password=PASSWORD)
        assert first.pushes.empty()
        assert second.pushes.empty()

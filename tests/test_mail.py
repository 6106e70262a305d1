"""What mails say: every kind in both languages, one code, and nothing that others wrote comes to life in them."""

from __future__ import annotations

import email
import email.policy
import re
from email.message import EmailMessage
from html.parser import HTMLParser
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest

from app.mail.message import build
from app.mail.templates import MOST_OF_A_NAME, render
from app.records import Mail

AT = 1_795_542_700_123  # 24 Nov 2026, 17:51:40 UTC
URL = "https://login.test"
SECRET = "Zm9v-_" * 8
NUMBER = re.compile(r"\d{6,}")  # of any script: Python's \d

CODED = ("confirmation", "new_device")
FACTUAL = ("new_device", "login_notice", "reset", "password_changed", "second_factor_changed")
KINDS: dict[tuple[str, str], tuple[str, str]] = {
    ("confirmation", ""): ("Your confirmation code", "Seu código de confirmação"),
    ("already_registered", ""): ("You have an account already", "Você já tem uma conta"),
    ("new_device", ""): ("Your code for a new device", "Seu código para um novo dispositivo"),
    ("login_notice", ""): ("A new sign-in to your account", "Novo acesso à sua conta"),
    ("reset", ""): ("Set a new password", "Defina uma nova senha"),
    ("password_changed", ""): ("Your password was changed", "Sua senha foi alterada"),
    ("second_factor_changed", "enabled"): (
        "Two-step verification is on",
        "A verificação em duas etapas foi ativada",
    ),
    ("second_factor_changed", "disabled"): (
        "Two-step verification is off",
        "A verificação em duas etapas foi desativada",
    ),
    ("second_factor_changed", "recovery_codes"): (
        "You have new recovery codes",
        "Você tem novos códigos de recuperação",
    ),
}


def mail(kind: str, **changes: Any) -> Mail:
    code = {"reset": SECRET}.get(kind, "12345678" if kind in CODED else "")
    about = {"device": "Ana's phone", "ip": "192.0.2.7", "at": AT, "code": code}
    return Mail(cast(Any, kind), "ana@example.com", **cast(Any, {**about, **changes}))


def arrived(sent: Mail, id: str = "0mail-id") -> EmailMessage:
    """As who gets it reads it."""
    return email.message_from_bytes(
        build(sent, id, URL, "").as_bytes(policy=email.policy.SMTP), policy=email.policy.default
    )


def texts(message: EmailMessage) -> tuple[str, str]:
    plain, html = message.get_body(("plain",)), message.get_body(("html",))
    assert plain is not None
    assert html is not None
    return plain.get_content().replace("\r\n", "\n"), html.get_content()


class Page(HTMLParser):
    """The tags of a page, its links, and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_data(self, data: str) -> None:
        self.words += data


# --- every kind, in both languages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "change"), KINDS)
@pytest.mark.parametrize("language", ["en", "pt-BR"])
def test_every_kind_says_the_same_in_text_and_in_html_in_the_accounts_language(
    kind: str, change: str, language: str
) -> None:
    message = arrived(mail(kind, change=change, locale=language))
    plain, html = texts(message)
    assert message["Subject"] == KINDS[kind, change][language != "en"]
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    page, words = Page(html), " ".join(plain.split())
    shown = " ".join(page.words.split())
    assert page.attributes["lang"] == [language]
    assert URL in plain
    assert "{" not in plain + page.words
    for sentence in re.split(r"\n\n", plain.strip()):
        if not sentence.startswith((" ", f"{URL}/reset#")):
            assert " ".join(sentence.split()) in shown
    for fact in ("24 Nov 2026, 17:51 UTC".lower(), "ana's phone", "192.0.2.7"):
        assert (fact in words.lower()) == (fact in shown.lower()) == (kind in FACTUAL)
    assert max(map(len, plain.splitlines())) <= (72 if kind != "reset" else 200)


@pytest.mark.parametrize(
    ("locale", "language"),
    [("", "en"), ("en", "en"), ("en-GB", "en"), ("de", "en"), ("pt", "pt-BR"), ("pt-BR", "pt-BR"), ("PT_pt", "pt-BR")],
)
def test_portuguese_is_for_who_asked_for_it_and_english_for_everybody_else(locale: str, language: str) -> None:
    assert f'lang="{language}"' in render(mail("login_notice", locale=locale), URL).html


@pytest.mark.parametrize("device", ["", " ", "\u202e\u200b", "\ud800\udfff"])
def test_what_is_not_known_or_cannot_be_shown_is_not_said(device: str) -> None:
    plain, html = texts(arrived(mail("login_notice", device=device, ip="")))
    for label in ("Device", "Network address"):
        assert label not in plain + html
    unknown = render(mail("login_notice", device="", ip="", at=0), URL)
    assert "When" not in unknown.text + unknown.html
    assert "\n\n\n" not in unknown.text


@pytest.mark.parametrize(("kind", "change"), KINDS)
def test_a_mail_fetches_nothing_and_leaves_the_readers_colours_alone(kind: str, change: str) -> None:
    page = Page(render(mail(kind, change=change), URL).html)
    assert set(page.tags) <= set("html head meta title body div h1 p span a b br".split())
    assert set(page.attributes) <= set("lang charset name content style href".split())
    assert not re.search(r"url\(|@import|background", " ".join(page.attributes["style"]))
    assert "light dark" in page.attributes["content"]


# --- the code, and the link -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("locale", ["en", "pt-BR"])
@pytest.mark.parametrize(
    "about",
    [
        {"device": "iPhone 123456 (2001234567)"},
        {"device": "x12345678y"},
        {"device": "٠١٢٣٤٥٦٧"},  # digits all the same
        {"device": "1234567" * 20},
        {"ip": "2001:db8:1234:5678:9012:3456:7890:1234"},
        {"ip": "255.255.255.255"},
        {"device": "654321", "ip": "12345678"},  # no address, but who knows
    ],
)
def test_the_code_is_the_only_number_of_its_length_in_the_text(kind: str, locale: str, about: dict[str, str]) -> None:
    assert NUMBER.findall(texts(arrived(mail(kind, locale=locale, **about)))[0]) == ["12345678"]
    served = render(mail(kind, locale=locale, **about), "https://login1234567.test")
    assert NUMBER.findall(served.text) == ["12345678"]


@pytest.mark.parametrize(("kind", "change"), [each for each in KINDS if each[0] not in CODED])
def test_a_mail_without_a_code_holds_nothing_that_looks_like_one(kind: str, change: str) -> None:
    plain, _ = texts(arrived(mail(kind, change=change, code="")))
    assert not NUMBER.search(plain)


@pytest.mark.parametrize("locale", ["en", "pt-BR"])
def test_a_reset_has_one_link_whose_base_is_the_settings_and_whose_code_comes_last(locale: str) -> None:
    sent = Mail("reset", "a.b+c'&=#@example.com", locale, SECRET, at=AT)
    plain, html = texts(arrived(sent))
    links = re.findall(r"\S+/reset\S*", plain)
    assert Page(html).attributes["href"] == links
    [link] = links
    assert link in plain.splitlines()
    parts = urlsplit(link)
    assert link.startswith(f"{URL}/reset#email=")
    assert parts.query == ""  # what follows # is sent to no server, and lies in no log
    assert parse_qs(parts.fragment) == {"email": [sent.to], "code": [SECRET]}
    assert link.endswith(f"&code={SECRET}")


# --- what others wrote ------------------------------------------------------------------------------------------------

HOSTILE = [
    "x\r\nBcc: all@example.com\r\n\r\nbody",
    "x\n\n--=_0mail-id\nContent-Type: text/html\n\n<b>",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "\" style=\"display:none\" '><a href='https://evil.test'>",
    "&lt;b&gt; &amp; {service} {0} %s {{ 7*7 }}",
    "\u202egnp.exe \u2066\u200b\u0000\x1b[2J\u2028x\u2029",
    "https://evil.test/login www.evil.test evil.test a@evil.test javascript:alert(1) \\\\evil.test",
    "=?utf-8?q?=0d=0aBcc:_all@example.com?=",
    "a" * 10_000,
]


@pytest.mark.parametrize("device", HOSTILE)
@pytest.mark.parametrize("kind", ["new_device", "login_notice"])
def test_a_hostile_name_of_a_device_is_a_short_line_of_plain_words(kind: str, device: str) -> None:
    message, plain_one = arrived(mail(kind, device=device)), arrived(mail(kind))
    assert list(message.keys()) == list(plain_one.keys())
    assert [part.get_content_type() for part in message.walk()] == [
        part.get_content_type() for part in plain_one.walk()
    ]
    (plain, html), (expected, expected_html) = texts(message), texts(plain_one)
    lines = [line for line in plain.splitlines() if line not in expected.splitlines()]
    assert len(lines) == 1  # in place of the other name
    name = lines[0].partition("Device: ")[2]
    assert 0 < len(name) <= MOST_OF_A_NAME
    assert name.isprintable()
    assert not re.search(r"://|www\.|@|\.[a-z]", name)
    page, other = Page(html), Page(expected_html)
    assert (page.tags, page.attributes) == (other.tags, other.attributes)
    assert name in page.words
    assert "Bcc" not in message


def test_an_address_that_would_be_more_than_a_header_is_refused() -> None:
    for address in ("ana@example.com\r\nBcc: all@example.com", "ana@example.com\nX: y"):
        with pytest.raises(ValueError):
            build(Mail("login_notice", address, at=AT), "0mail-id", URL, "")


# --- the message ------------------------------------------------------------------------------------------------------


def test_a_mail_is_the_same_bytes_however_often_it_is_built() -> None:
    once, again = (build(mail("new_device"), "0mail-id", URL, "").as_bytes() for _ in range(2))
    assert once == again
    message = arrived(mail("new_device"))
    assert message["Message-ID"] == "<0mail-id@login.test>"
    assert message["Date"].datetime.timestamp() == AT // 1000
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["To"] == "ana@example.com"


@pytest.mark.parametrize(
    ("public_url", "sender", "shown"),
    [
        ("https://login.test", "", "Finthenticate <no-reply@login.test>"),
        ("http://127.0.0.1:8000", "", "Finthenticate <no-reply@[127.0.0.1]>"),
        ("http://[::1]:8000", "", "Finthenticate <no-reply@[IPv6:::1]>"),
        ("https://login.test", "Ana Ltd <hello@ana.test>", "Ana Ltd <hello@ana.test>"),
        ("https://login.test", "hello@ana.test", "hello@ana.test"),
    ],
)
def test_mails_come_from_the_setting_or_from_no_reply_at_the_public_host(
    public_url: str, sender: str, shown: str
) -> None:
    message = build(mail("login_notice"), "0mail-id", public_url, sender)
    assert message["From"] == shown
    [address] = message["From"].addresses
    assert not message["From"].defects
    assert address.username
    assert address.domain

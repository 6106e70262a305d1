"""What the mails say, in English and Brazilian Portuguese, as plain text and as HTML. Pure.

A code is the only run of six to eight digits in a plain text, so that a person, or a phone, takes no other for it.
Names of devices are whatever somebody claimed: they stand on one line, short, and nothing in them is a link.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from urllib.parse import quote

from app.records import Mail

# Paragraphs that are not words: what to copy, where to go, and what happened when and where.
CODE, LINK, FACTS = "CODE", "LINK", "FACTS"
MOST_OF_A_NAME = 64
WIDTH = 72  # of a line of plain text

# Subject, then paragraphs. The rule for all of them: what happened, what to do, what if it was not you.
_TEXTS: dict[str, dict[str, tuple[str, ...]]] = {
    "confirmation": {
        "en": (
            "Your confirmation code",
            "Somebody, we hope you, is registering at {service} with this address. Your code is",
            CODE,
            "It is good for ten minutes. If it was not you, there is nothing to do: without the code there will be "
            "no account.",
        ),
        "pt": (
            "Seu código de confirmação",
            "Alguém, esperamos que você, está se cadastrando em {service} com este endereço. Seu código é",
            CODE,
            "Ele vale por dez minutos. Se não foi você, não é preciso fazer nada: sem o código não haverá conta.",
        ),
    },
    "already_registered": {
        "en": (
            "You have an account already",
            "Somebody tried to register at {service} with this address, which has an account.",
            "If it was you, just sign in. If it was not, there is nothing to do: nobody has got in, and nothing has "
            "changed.",
        ),
        "pt": (
            "Você já tem uma conta",
            "Alguém tentou se cadastrar em {service} com este endereço, que já tem uma conta.",
            "Se foi você, basta entrar. Se não foi, não é preciso fazer nada: ninguém entrou e nada mudou.",
        ),
    },
    "new_device": {
        "en": (
            "Your code for a new device",
            "Your password was just used at {service} on a device that we do not know. To let it in, enter this code "
            "there:",
            CODE,
            "It is good for ten minutes. Give it to nobody: we never ask for it in any other place.",
            FACTS,
            "If it was not you, somebody knows your password. They cannot get in without this code; change the "
            "password at {service} now.",
        ),
        "pt": (
            "Seu código para um novo dispositivo",
            "Sua senha acaba de ser usada em {service} em um dispositivo que não conhecemos. Para autorizá-lo, "
            "digite nele este código:",
            CODE,
            "Ele vale por dez minutos. Não o informe a ninguém: nunca o pedimos em nenhum outro lugar.",
            FACTS,
            "Se não foi você, alguém sabe a sua senha. Sem este código essa pessoa não entra; troque a senha em "
            "{service} agora.",
        ),
    },
    "login_notice": {
        "en": (
            "A new sign-in to your account",
            "Somebody, we hope you, has just signed in to your account at {service}.",
            FACTS,
            "If it was you, there is nothing to do. If it was not, change your password at {service} now: that ends "
            "every other session.",
        ),
        "pt": (
            "Novo acesso à sua conta",
            "Alguém, esperamos que você, acaba de entrar na sua conta em {service}.",
            FACTS,
            "Se foi você, não é preciso fazer nada. Se não foi, troque sua senha em {service} agora: isso encerra "
            "todas as outras sessões.",
        ),
    },
    "reset": {
        "en": (
            "Set a new password",
            "Somebody, we hope you, asked to set a new password for your account at {service}. This is the way:",
            LINK,
            "It works once, and for half an hour.",
            FACTS,
            "If it was not you, there is nothing to do: nothing has changed, and your password still works.",
        ),
        "pt": (
            "Defina uma nova senha",
            "Alguém, esperamos que você, pediu para definir uma nova senha para a sua conta em {service}. O caminho "
            "é este:",
            LINK,
            "Ele funciona uma única vez, por meia hora.",
            FACTS,
            "Se não foi você, não é preciso fazer nada: nada mudou, e sua senha continua valendo.",
        ),
    },
    "password_changed": {
        "en": (
            "Your password was changed",
            "The password of your account at {service} has just been changed. Sessions on other devices have ended.",
            FACTS,
            "If it was you, there is nothing to do. If it was not, set a new password at {service} now.",
        ),
        "pt": (
            "Sua senha foi alterada",
            "A senha da sua conta em {service} acaba de ser alterada. As sessões em outros dispositivos foram "
            "encerradas.",
            FACTS,
            "Se foi você, não é preciso fazer nada. Se não foi, defina uma nova senha em {service} agora.",
        ),
    },
    "second_factor_changed enabled": {
        "en": (
            "Two-step verification is on",
            "Two-step verification has just been turned on for your account at {service}. From now on, signing in "
            "takes a code from your authenticator app as well.",
            FACTS,
            "If it was you, keep your recovery codes in a safe place. If it was not, change your password at "
            "{service} now.",
        ),
        "pt": (
            "A verificação em duas etapas foi ativada",
            "A verificação em duas etapas acaba de ser ativada na sua conta em {service}. A partir de agora, entrar "
            "exige também um código do seu aplicativo autenticador.",
            FACTS,
            "Se foi você, guarde seus códigos de recuperação em um lugar seguro. Se não foi, troque sua senha em "
            "{service} agora.",
        ),
    },
    "second_factor_changed disabled": {
        "en": (
            "Two-step verification is off",
            "Two-step verification has just been turned off for your account at {service}. Your password alone is "
            "enough to sign in now.",
            FACTS,
            "If it was you, there is nothing to do. If it was not, change your password at {service} now and turn it "
            "on again.",
        ),
        "pt": (
            "A verificação em duas etapas foi desativada",
            "A verificação em duas etapas acaba de ser desativada na sua conta em {service}. Agora a senha basta "
            "para entrar.",
            FACTS,
            "Se foi você, não é preciso fazer nada. Se não foi, troque sua senha em {service} agora e ative-a de novo.",
        ),
    },
    "second_factor_changed recovery_codes": {
        "en": (
            "You have new recovery codes",
            "New recovery codes have just been made for your account at {service}. The older ones no longer work.",
            FACTS,
            "If it was you, keep the new ones in a safe place. If it was not, change your password at {service} now.",
        ),
        "pt": (
            "Você tem novos códigos de recuperação",
            "Novos códigos de recuperação acabam de ser gerados para a sua conta em {service}. Os antigos não valem "
            "mais.",
            FACTS,
            "Se foi você, guarde os novos em um lugar seguro. Se não foi, troque sua senha em {service} agora.",
        ),
    },
}
_LABELS = {
    "en": ("When", "Device", "Network address", "Set a new password"),
    "pt": ("Quando", "Dispositivo", "Endereço de rede", "Definir nova senha"),
}
_LANGUAGES = {"en": "en", "pt": "pt-BR"}
_MONTHS = {
    "en": "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(),
    "pt": "jan fev mar abr mai jun jul ago set out nov dez".split(),
}


@dataclass(frozen=True)
class Rendered:
    subject: str
    text: str
    html: str


def render(mail: Mail, public_url: str) -> Rendered:
    """`public_url` alone is the base of links: nothing that a request said is. A decoy has no words."""
    language = "pt" if mail.locale.lower().startswith("pt") else "en"
    subject, *paragraphs = _TEXTS[f"{mail.kind} {mail.change}".rstrip()][language]
    service = _without_codes(public_url) if CODE in paragraphs else public_url
    link = f"{public_url}/reset#email={quote(mail.to, safe='')}&code={quote(mail.code, safe='')}"
    facts = list(_facts(mail, language, has_code=CODE in paragraphs))
    words = [each if each in (CODE, LINK, FACTS) else each.format(service=service) for each in paragraphs]
    button = _LABELS[language][-1]
    return Rendered(
        subject,
        "\n\n".join(_plain(each, mail.code, link, facts) for each in words if facts or each != FACTS) + "\n",
        _PAGE.format(
            language=_LANGUAGES[language],
            subject=escape(subject),
            body="\n".join(_html(each, mail.code, link, button, facts) for each in words if facts or each != FACTS),
        ),
    )


# --- plain text ---------------------------------------------------------------------------------------------------


def _plain(paragraph: str, code: str, link: str, facts: list[tuple[str, str]]) -> str:
    if paragraph == FACTS:
        return "\n".join(f"    {label}: {value}" for label, value in facts)
    if paragraph in (CODE, LINK):
        return f"    {code}" if paragraph == CODE else link
    return textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)


def _facts(mail: Mail, language: str, *, has_code: bool) -> Iterator[tuple[str, str]]:
    when, device, address, _ = _LABELS[language]
    if mail.at:
        yield when, _time(mail.at, language)
    for label, said in ((device, _name(mail.device)), (address, _name(mail.ip, links=True))):
        if said:
            yield label, _without_codes(said) if has_code else said


def _time(ms: int, language: str) -> str:
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return f"{at.day} {_MONTHS[language][at.month - 1]} {at.year}, {at:%H:%M} UTC"


def _name(said: str, *, links: bool = False) -> str:
    """One short line of what is printable: no line break, nothing that turns the direction of a text.

    Mail programs make links of what looks like an address; unless `links`, nothing in it does.
    """
    line = "".join(each if each.isprintable() else " " for each in said)
    if not links:
        line = re.sub(r"[:/\\@]|\.(?=[^\W\d])", " ", line)
    line = " ".join(line.split())
    return line if len(line) <= MOST_OF_A_NAME else line[: MOST_OF_A_NAME - 1] + "…"


def _without_codes(said: str) -> str:
    return re.sub(r"\d{6,}", "…", said)


# --- HTML: no image, nothing that is fetched, and the reader's own colours, light or dark ---------------------------

_PAGE = """\
<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<meta name="supported-color-schemes" content="light dark">
<title>{subject}</title>
</head>
<body style="margin:0;padding:24px;font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif">
<div style="max-width:36em;margin:0 auto">
<h1 style="font-size:20px;margin:0 0 16px">{subject}</h1>
{body}
</div>
</body>
</html>
"""
_BOX = "border:1px solid #888;border-radius:6px;padding:12px 16px"


def _html(paragraph: str, code: str, link: str, button: str, facts: list[tuple[str, str]]) -> str:
    if paragraph == CODE:
        style = f"{_BOX};display:inline-block;font:600 26px/1 ui-monospace,Menlo,Consolas,monospace;letter-spacing:3px"
        return f'<p style="margin:0 0 16px"><span style="{style}">{escape(code)}</span></p>'
    if paragraph == LINK:
        style = f"{_BOX};display:inline-block;color:inherit;font-weight:600;text-decoration:none"
        return f'<p style="margin:0 0 16px"><a href="{escape(link)}" style="{style}">{escape(button)}</a></p>'
    if paragraph == FACTS:
        lines = "<br>\n".join(f"{escape(label)}: <b>{escape(value)}</b>" for label, value in facts)
        return f'<p style="{_BOX};margin:0 0 16px">{lines}</p>'
    return f'<p style="margin:0 0 16px">{escape(paragraph)}</p>'

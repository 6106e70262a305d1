"""What the mails say, in English and Portuguese. A code is the only run of six to eight digits in a text."""

from __future__ import annotations

from app.records import Mail

_TEXTS = {
    ("confirmation", "en"): (
        "Your confirmation code",
        "Somebody, we hope you, is registering at {service} with this address.\n\n"
        "Your code is\n\n    {code}\n\n"
        "It is good for ten minutes. If it was not you, there is nothing to do:\n"
        "without the code there will be no account.\n",
    ),
    ("confirmation", "pt"): (
        "Seu código de confirmação",
        "Alguém, esperamos que você, está se cadastrando em {service} com este endereço.\n\n"
        "Seu código é\n\n    {code}\n\n"
        "Ele vale por dez minutos. Se não foi você, não é preciso fazer nada:\n"
        "sem o código não haverá conta.\n",
    ),
    ("already_registered", "en"): (
        "You have an account already",
        "Somebody tried to register at {service} with this address, which has an account.\n\n"
        "If it was you, just sign in. If it was not, there is nothing to do:\n"
        "nobody has got in, and nothing has changed.\n",
    ),
    ("already_registered", "pt"): (
        "Você já tem uma conta",
        "Alguém tentou se cadastrar em {service} com este endereço, que já tem uma conta.\n\n"
        "Se foi você, basta entrar. Se não foi, não é preciso fazer nada:\n"
        "ninguém entrou e nada mudou.\n",
    ),
}


def render(mail: Mail, service: str) -> tuple[str, str]:
    """Subject and plain text. `service` is the public URL."""
    language = "pt" if mail.locale.lower().partition("-")[0] == "pt" else "en"
    subject, text = _TEXTS[mail.kind, language]
    return subject, text.format(service=service, code=mail.code)

"""No way around the second factor; no token of one kind passes for another; an access token says what was proved."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import jwt
import pytest

from app.client import Answer
from tests.accounts import NEW_PASSWORD, ask_login, detected, enrolled, reset_code
from tests.deployment import SECRETS, Account, Deployment, event_of
from tests.states import Person, person_in


@pytest.fixture(params=["ws", "rest"])
def either(request: pytest.FixtureRequest, guarded: Deployment) -> Deployment:
    return guarded.over(request.param)


# --- the second factor --------------------------------------------------------------------------------------------


async def on_the_trusted_device(person: Person, deployment: Deployment, client: Any) -> Answer:
    return await ask_login(client, person.account, deviceToken=person.device_token)


async def with_the_mailed_code(person: Person, deployment: Deployment, client: Any) -> Answer:
    challenge = (await detected(client, person.account))["challenge"]
    code = await deployment.mailed_code(person.email, 2)
    answer: Answer = await client.ask("verify_device", challenge=challenge, code=code)
    return answer


async def after_a_reset(person: Person, deployment: Deployment, client: Any) -> Answer:
    await client.ask("request_password_reset", email=person.email)
    change = {"email": person.email, "code": await reset_code(deployment, person.email), "newPassword": NEW_PASSWORD}
    assert (await client.ask("reset_password", **change)).event == "password_reset"
    account = Account(person.email, NEW_PASSWORD, person.account.device_token)
    return await ask_login(client, account, deviceToken=person.device_token)


async def after_a_changed_password(person: Person, deployment: Deployment, client: Any) -> Answer:
    change = {"currentPassword": person.account.password, "newPassword": NEW_PASSWORD}
    await person.client.ask("change_password", **change)  # type: ignore[arg-type]
    account = Account(person.email, NEW_PASSWORD, person.account.device_token)
    return await ask_login(client, account, deviceToken=person.device_token)


WAYS = [on_the_trusted_device, with_the_mailed_code, after_a_reset, after_a_changed_password]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_every_way_in_asks_for_the_second_factor(
    either: Deployment, way: Callable[[Person, Deployment, Any], Awaitable[Answer]]
) -> None:
    async with person_in("2fa", either) as person, either.client() as client:
        answer = await way(person, either, client)

        assert answer.event == "2fa_required"
        assert "accessToken" not in str((answer.data, answer.progress))
        assert event_of(await client.ask("account")) == ("error", "not_authenticated")


async def test_a_second_factor_that_was_turned_off_and_on_wants_its_own_codes(either: Deployment) -> None:
    async with person_in("2fa", either) as person:
        old = person.code
        await person.client.ask("disable_2fa", **person.data("disable_2fa"))
        app, _ = await enrolled(person.client, person.account)
        person.challenge = (await on_the_trusted_device(person, either, person.client)).data["challenge"]
        refused = await person.client.ask("verify_2fa", challenge=person.challenge, code=old)
        login = await person.client.ask("verify_2fa", challenge=person.challenge, code=await app.code())

    assert event_of(refused) == ("2fa_verification_failed", "invalid_code")
    assert login.event == "login_success"


PROVED = {
    "fresh": ("login", ["pwd"]),
    "new": ("verify_device", ["pwd"]),  # a code by mail is no second factor (NIST SP 800-63B)
    "appr": ("verify_device", ["pwd"]),
    "fact": ("verify_2fa", ["pwd", "otp", "mfa"]),
}


@pytest.mark.parametrize("state", PROVED)
async def test_the_access_token_says_what_was_proved(guarded: Deployment, state: str) -> None:
    request, amr = PROVED[state]
    async with person_in(state, guarded) as person:
        login = await person.client.ask(request, **person.data(request))
        refreshed = await person.client.ask("refresh", refreshToken=login.data["refreshToken"])

    for answer in (login, refreshed):
        claims = jwt.decode(answer.data["accessToken"], options={"verify_signature": False})
        assert (claims["amr"], claims["sid"]) == (amr, login.data["sessionId"])


# --- tokens of other kinds ----------------------------------------------------------------------------------------

PLACES: dict[str, Callable[[Person, str], dict[str, Any]]] = {
    "refresh": lambda person, token: {"refreshToken": token},
    "authenticate": lambda person, token: {"accessToken": token},
    "login": lambda person, token: {**person.data("login"), "deviceToken": token},
    "verify_device": lambda person, token: {"challenge": token, "code": person.code},
    "verify_2fa": lambda person, token: {"challenge": token, "code": person.code},
    "confirm_email": lambda person, token: {"challenge": token, "code": person.code},
    "reset_password": lambda person, token: {"email": person.email, "code": token, "newPassword": NEW_PASSWORD},
}
REFUSED: dict[str, set[str | None]] = {
    "refresh": {"token_invalid"},
    "authenticate": {"token_invalid"},
    "login": {None},  # as without a device
    "verify_device": {"challenge_expired"},
    "verify_2fa": {"challenge_expired"},
    "confirm_email": {"challenge_expired"},
    "reset_password": {"invalid_code"},
}
OF = {"refresh": "refresh", "authenticate": "access", "login": "device"}


async def test_a_token_is_good_in_its_own_place_only(either: Deployment) -> None:
    async with person_in("trust", either) as person, either.client() as client:
        await client.ask("request_password_reset", email=person.email)
        tokens = {
            "access": person.access,
            "refresh": person.refresh,
            "device": person.device_token or "",
            "session": person.session,
            "device ref": person.device,
            "mail's challenge": (await reset_code(either, person.email)).partition(".")[0],
        }
        found: dict[tuple[str, str], str | None] = {}
        for place, data in PLACES.items():
            for kind, token in tokens.items():
                if OF.get(place) != kind:
                    answer = await client.ask(place, **data(person, token))
                    assert answer.event != "login_success"
                    found[place, kind] = answer.code

    SECRETS.difference_update(tokens[id] for id in ("session", "device ref", "mail's challenge"))  # no secrets
    for (place, kind), code in found.items():
        too_long = (kind, code) == ("access", "bad_request")
        assert code in REFUSED[place] or too_long, (place, kind, code)

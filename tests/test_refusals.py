"""Every refusal of the contract, from a person who is in the right state and does one thing wrong; with the matrix,
no request is left without a test of each of its answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from app.client import Answer
from app.documents import ABOUT
from app.messages import KINDS, RETRYABLE, Code
from tests.accounts import age_code, pushed
from tests.deployment import PASSWORD, Databases, Deployment, event_of, new_address
from tests.states import NONE, WRONG, Person, person_in
from tests.test_matrix import MATRIX, expected

Wrongly = Callable[[Person, str, Deployment], Awaitable[Answer]]
SHORT, COMMON = "fourteen chars", "passwordpassword"


def with_other(**changes: Any) -> Wrongly:
    async def ask(person: Person, request: str, deployment: Deployment) -> Answer:
        answer: Answer = await person.client.ask(request, **{**person.data(request), **changes})
        return answer

    return ask


def after_a_failure(**changes: Any) -> Wrongly:
    """All is right, but the one failure that the deployment grants has just been."""

    async def ask(person: Person, request: str, deployment: Deployment) -> Answer:
        wrong = await with_other(**changes)(person, request, deployment)
        assert wrong.code in (Code.INVALID_CREDENTIALS, Code.INVALID_CODE)
        return await with_other()(person, request, deployment)

    return ask


async def too_late(person: Person, request: str, deployment: Deployment) -> Answer:
    age_code(deployment, person.challenge)
    return await with_other()(person, request, deployment)


async def with_an_old_token(person: Person, request: str, deployment: Deployment) -> Answer:
    token = person.refresh
    for _ in range(2):
        person.refresh = (await person.client.ask("refresh", **person.data("refresh"))).data["refreshToken"]
    return await with_other(refreshToken=token)(person, request, deployment)


NOT_HERS = "not her password at all"
ROWS: dict[tuple[str, Code], tuple[str, Wrongly]] = {
    ("register", Code.PASSWORD_TOO_SHORT): ("fresh", with_other(password=SHORT)),
    ("register", Code.PASSWORD_COMMON): ("fresh", with_other(password=COMMON)),
    ("confirm_email", Code.INVALID_CODE): ("pend", with_other(code=WRONG)),
    ("confirm_email", Code.CODE_EXPIRED): ("pend", too_late),
    ("confirm_email", Code.CHALLENGE_EXPIRED): ("pend", with_other(challenge=NONE)),
    ("login", Code.INVALID_CREDENTIALS): ("fresh", with_other(password=NOT_HERS)),
    ("login", Code.TOO_MANY_ATTEMPTS): ("fresh", after_a_failure(password=NOT_HERS)),
    ("verify_device", Code.INVALID_CODE): ("new", with_other(code=WRONG)),
    ("verify_device", Code.CODE_EXPIRED): ("new", too_late),
    ("verify_device", Code.CHALLENGE_EXPIRED): ("new", with_other(challenge=NONE)),
    ("verify_2fa", Code.INVALID_CODE): ("fact", with_other(code=WRONG)),
    ("verify_2fa", Code.CHALLENGE_EXPIRED): ("fact", with_other(challenge=NONE)),
    ("verify_2fa", Code.TOO_MANY_ATTEMPTS): ("fact", after_a_failure(code=WRONG)),
    ("refresh", Code.TOKEN_REUSED): ("trust", with_an_old_token),
    ("revoke_session", Code.NOT_FOUND): ("trust", with_other(sessionId=NONE)),
    ("reset_password", Code.PASSWORD_TOO_SHORT): ("reset", with_other(newPassword=SHORT)),
    ("reset_password", Code.PASSWORD_COMMON): ("reset", with_other(newPassword=COMMON)),
    ("reset_password", Code.INVALID_CODE): ("reset", with_other(email=new_address())),
    ("reset_password", Code.CODE_EXPIRED): ("reset", too_late),
    ("change_password", Code.PASSWORD_TOO_SHORT): ("trust", with_other(newPassword=SHORT)),
    ("change_password", Code.PASSWORD_COMMON): ("trust", with_other(newPassword=COMMON)),
    ("change_password", Code.INVALID_CREDENTIALS): ("trust", with_other(currentPassword=NOT_HERS)),
    ("change_password", Code.TOO_MANY_ATTEMPTS): ("trust", after_a_failure(currentPassword=NOT_HERS)),
    ("enroll_2fa", Code.INVALID_CREDENTIALS): ("trust", with_other(password=NOT_HERS)),
    ("enroll_2fa", Code.TOO_MANY_ATTEMPTS): ("trust", after_a_failure(password=NOT_HERS)),
    ("confirm_2fa", Code.INVALID_CODE): ("enrol", with_other(code=WRONG)),
    ("confirm_2fa", Code.TOO_MANY_ATTEMPTS): ("enrol", after_a_failure(code=WRONG)),
    ("disable_2fa", Code.INVALID_CREDENTIALS): ("2fa", with_other(password=NOT_HERS)),
    ("disable_2fa", Code.INVALID_CODE): ("2fa", with_other(code=WRONG)),
    ("disable_2fa", Code.TOO_MANY_ATTEMPTS): ("2fa", after_a_failure(code=WRONG)),
    ("new_recovery_codes", Code.INVALID_CREDENTIALS): ("2fa", with_other(password=NOT_HERS)),
    ("new_recovery_codes", Code.INVALID_CODE): ("2fa", with_other(code=WRONG)),
    ("new_recovery_codes", Code.TOO_MANY_ATTEMPTS): ("2fa", after_a_failure(password=NOT_HERS)),
    ("forget_device", Code.NOT_FOUND): ("trust", with_other(deviceRef=NONE)),
    ("approve_login", Code.NOT_FOUND): ("asked", with_other(loginId=NONE)),
    ("approve_login", Code.INVALID_CODE): ("asked", with_other(matchNumber=5)),  # those shown have two digits
}
TAKEN = ("register", Code.ADDRESS_TAKEN)  # only where nothing is confirmed: a test of its own


@pytest.fixture(scope="module")
def strict(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One failure an account, devices verified."""
    settings = {"FIN_FAILURES_PER_ACCOUNT": "1", "FIN_DEVICE_VERIFICATION": "on"}
    folder = tmp_path_factory.mktemp("strict")
    with databases() as url, Deployment.start(folder, url, gateways=2, workers=2, settings=settings) as running:
        yield running


@pytest.mark.parametrize("transport", ["ws", "rest"])
@pytest.mark.parametrize(("request_", "code"), ROWS, ids=lambda value: str(value))
async def test_one_thing_wrong_gets_its_own_refusal(
    strict: Deployment, request_: str, code: Code, transport: str
) -> None:
    state, wrongly = ROWS[request_, code]
    async with person_in(state, strict.over(transport)) as person:
        answer = await wrongly(person, request_, strict)

    assert event_of(answer) == (KINDS[request_].refused, code)
    assert answer.data["retryable"] == (code in RETRYABLE) == ("retryAfterMs" in answer.data)


async def test_a_token_used_again_ends_its_session_everywhere(guarded: Deployment) -> None:
    async with person_in("trust", guarded) as person, guarded.client() as same:
        await same.ask("authenticate", accessToken=person.access)
        await with_an_old_token(person, "refresh", guarded)

        assert (await pushed(same, "session_ended"))["reason"] == "token_reused"
        assert await same.close_code == 4401


@pytest.mark.parametrize("transport", ["ws", "rest"])
async def test_a_taken_address_is_told_only_where_no_address_is_confirmed(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory, transport: str
) -> None:
    settings = {"FIN_EMAIL_CONFIRMATION": "off"}
    folder, address = tmp_path_factory.mktemp("taken"), new_address()
    with Deployment.start(folder, redis_url, mailers=0, settings=settings) as running:
        async with running.over(transport).client() as client:
            first = await client.ask("register", email=address, password=PASSWORD)
            again = await client.ask("register", email=address, password=PASSWORD)

    assert first.event == "register_accepted" and first.data["next"] == "login" and first.data["deviceToken"]
    assert event_of(again) == ("register_failed", Code.ADDRESS_TAKEN)


def test_each_answer_of_each_request_is_in_one_of_the_tables() -> None:
    Shown = set[tuple[str, str | None, str | None]]
    shown: Shown = {(request, *expected(request, word)) for (_, request), word in MATRIX.items()}
    shown |= {(request, KINDS[request].refused, code) for request, code in (*ROWS, TAKEN)}
    published: Shown = {(name, answer.event, None) for name, kind in KINDS.items() for answer in kind.answers}
    published |= {(name, KINDS[name].refused, code) for name, (_, codes) in ABOUT.items() for code in codes}
    published |= {(name, "error", Code.NOT_AUTHENTICATED) for name, kind in KINDS.items() if kind.needs_session}

    assert shown == published

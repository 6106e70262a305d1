"""Every request from every state of an account gets the answer of the contract (OWASP ASVS 5.0, 2.3.1: no step can be
skipped): each in its right form, with whatever its person holds, so that the state alone decides.
"""

from __future__ import annotations

import asyncio

import pytest

from app.messages import KINDS, RETRYABLE, Code
from tests.deployment import Deployment
from tests.states import OVER_EITHER, STATES, person_in

# `ok` is the request's own success, `new` and `2fa` what is still to be proved; the others are codes.
WORDS = {
    "new": ("new_device_detected", None),
    "2fa": ("2fa_required", None),
    "auth": ("error", Code.NOT_AUTHENTICATED),
}
CODES = {
    "cred": Code.INVALID_CREDENTIALS,
    "off": Code.ACCOUNT_DISABLED,
    "chal": Code.CHALLENGE_EXPIRED,
    "code": Code.INVALID_CODE,
    "none": Code.NOT_FOUND,
    "inv": Code.TOKEN_INVALID,
    "exp": Code.TOKEN_EXPIRED,
    "rev": Code.TOKEN_REVOKED,
}
GRID = """
                       fresh pend  new   new+  appr  kept  fact  reset trust guest 2fa   enrol asked revok expir off
register               ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok
confirm_email          chal  ok    chal  chal  chal  chal  chal  chal  chal  chal  chal  chal  chal  chal  chal  chal
resend_confirmation    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok
login                  ok    cred  new   new   new   new   2fa   ok    ok    new   2fa   ok    ok    ok    ok    off
verify_device          chal  chal  ok    2fa   ok    chal  chal  chal  chal  chal  chal  chal  chal  chal  chal  chal
verify_2fa             chal  chal  chal  chal  chal  chal  ok    chal  chal  chal  chal  chal  chal  chal  chal  chal
refresh                inv   inv   inv   inv   inv   inv   inv   inv   ok    ok    ok    ok    ok    rev   exp   rev
authenticate           inv   inv   inv   inv   inv   inv   inv   inv   ok    ok    ok    ok    ok    rev   exp   rev
logout                 auth  auth  auth  auth  auth  auth  auth  auth  ok    ok    ok    ok    ok    auth  auth  auth
sessions               auth  auth  auth  auth  auth  auth  auth  auth  ok    ok    ok    ok    ok    auth  auth  auth
revoke_session         auth  auth  auth  auth  auth  auth  auth  auth  ok    ok    ok    ok    ok    auth  auth  auth
revoke_other_sessions  auth  auth  auth  auth  auth  auth  auth  auth  ok    ok    ok    ok    ok    auth  auth  auth
request_password_reset ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok    ok
reset_password         code  code  code  code  code  code  code  ok    code  code  code  code  code  code  code  code
change_password        auth  auth  auth  auth  auth  auth  auth  auth  ok    ok    ok    ok    ok    auth  auth  auth
enroll_2fa             auth  auth  auth  auth  auth  auth  auth  auth  ok    ok    chal  ok    ok    auth  auth  auth
confirm_2fa            auth  auth  auth  auth  auth  auth  auth  auth  chal  chal  chal  ok    chal  auth  auth  auth
disable_2fa            auth  auth  auth  auth  auth  auth  auth  auth  code  code  ok    code  code  auth  auth  auth
new_recovery_codes     auth  auth  auth  auth  auth  auth  auth  auth  code  code  ok    code  code  auth  auth  auth
account                auth  auth  auth  auth  auth  auth  auth  auth  ok    ok    ok    ok    ok    auth  auth  auth
forget_device          auth  auth  auth  auth  auth  auth  auth  auth  ok    ok    ok    ok    ok    auth  auth  auth
approve_login          auth  auth  auth  auth  auth  auth  auth  auth  none  none  none  none  ok    auth  auth  auth
"""
_STATES, *_ROWS = [line.split() for line in GRID.strip().splitlines()]
MATRIX = {(state, request): word for request, *row in _ROWS for state, word in zip(_STATES, row, strict=True)}


def expected(request: str, word: str) -> tuple[str, str | None]:
    """The terminal event and its code."""
    kind = KINDS[request]
    if word == "ok":
        return kind.success.event, None
    if word in WORDS:
        return WORDS[word]
    assert kind.refused
    return kind.refused, CODES[word]


def test_the_matrix_has_every_request_and_every_state() -> None:
    assert set(MATRIX) == {(state, request) for state in STATES for request in KINDS}


@pytest.mark.parametrize(("state", "transport"), OVER_EITHER)
async def test_every_request_from_this_state_gets_the_contracts_answer(
    guarded: Deployment, state: str, transport: str
) -> None:
    answers = {}

    async def one(request: str) -> None:
        async with person_in(state, guarded.over(transport)) as person:
            answer = await person.client.ask(request, **person.data(request))
            answers[request] = answer.event, answer.code
            if answer.code:
                assert answer.data["retryable"] == (answer.code in RETRYABLE)

    await asyncio.gather(*map(one, KINDS))

    assert answers == {request: expected(request, MATRIX[state, request]) for request in KINDS}

"""Two persons in the same state: what is the one's is good for nothing in the hands of the other, and stays hers."""

from __future__ import annotations

import pytest

from app.messages import KINDS
from tests.deployment import Deployment, event_of
from tests.states import person_in
from tests.test_matrix import expected

# The fields that she takes from the other; `bound`: where it is the connection that makes the difference.
ROWS = (
    ("confirm_email", "pend", "code", "code"),
    ("confirm_email", "pend", "challenge", "code"),
    ("login", "fresh", "deviceToken", "new"),
    ("verify_device", "new", "code", "code"),
    ("verify_device", "new", "challenge code", "bound"),
    ("verify_device", "appr", "challenge", "bound"),
    ("verify_2fa", "fact", "code", "code"),
    ("verify_2fa", "fact", "challenge code", "bound"),
    ("reset_password", "reset", "code", "code"),
    ("reset_password", "reset", "email", "code"),
    ("revoke_session", "trust", "sessionId", "none"),
    ("forget_device", "trust", "deviceRef", "none"),
    ("confirm_2fa", "enrol", "code", "code"),
    ("disable_2fa", "2fa", "code", "code"),
    ("new_recovery_codes", "2fa", "code", "code"),
    ("approve_login", "asked", "loginId matchNumber", "none"),
)
CASES = [
    (*row, transport)
    for row in ROWS
    for transport in ("ws", "rest")
    if transport == "ws" or (row[3] != "bound" and row[1] != "appr")  # a REST call has no connection
]


@pytest.mark.parametrize(("request_", "state", "fields", "word", "transport"), CASES)
async def test_what_is_the_others_is_good_for_nothing_and_stays_hers(
    guarded: Deployment, request_: str, state: str, fields: str, word: str, transport: str
) -> None:
    over = guarded.over(transport)
    async with person_in(state, over) as thief, person_in(state, over) as owner:
        stolen = {name: owner.data(request_)[name] for name in fields.split()}
        refused = await thief.client.ask(request_, **{**thief.data(request_), **stolen})
        done = await owner.client.ask(request_, **owner.data(request_))

    assert event_of(refused) == expected(request_, "chal" if word == "bound" else word)
    assert event_of(done) == (KINDS[request_].success.event, None)

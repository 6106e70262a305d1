"""Whatever ends a session ends it on every node: its sockets are told why and close, its tokens are worth nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from app.client import Answer, Client
from tests.accounts import NEW_PASSWORD, pushed, reset_code, sign_in
from tests.deployment import PASSWORD, Account, Deployment, event_of

SESSIONS = 5


@dataclass
class Scene:
    """One who acts on the first node, and her other sessions, with two sockets each: one on either node."""

    deployment: Deployment
    account: Account
    owner: Client
    own: Answer
    others: list[tuple[Answer, list[Client]]]


End = Callable[[Scene], Awaitable[Any]]


async def one_by_one(scene: Scene) -> None:
    for login, _ in scene.others:
        answer = await scene.owner.ask("revoke_session", sessionId=login.data["sessionId"])
        assert answer.event == "session_revoked"


async def all_others(scene: Scene) -> None:
    answer = await scene.owner.ask("revoke_other_sessions")
    assert answer.data == {"count": SESSIONS}


async def a_changed_password(scene: Scene) -> None:
    answer = await scene.owner.ask("change_password", currentPassword=PASSWORD, newPassword=NEW_PASSWORD)
    assert answer.event == "password_changed"


async def a_reset_password(scene: Scene) -> None:
    async with scene.deployment.client(1) as client:
        await client.ask("request_password_reset", email=scene.account.email)
        code = await reset_code(scene.deployment, scene.account.email)
        change = {"email": scene.account.email, "code": code, "newPassword": NEW_PASSWORD}
        assert (await client.ask("reset_password", **change)).event == "password_reset"


async def logouts(scene: Scene) -> None:
    """Over REST: there, no connection stays that was the session's."""
    for login, _ in scene.others:
        async with scene.deployment.over("rest").client() as client:
            await client.ask("authenticate", accessToken=login.data["accessToken"])
            assert (await client.ask("logout")).event == "logged_out"


async def stolen_tokens(scene: Scene) -> None:
    async with scene.deployment.client() as thief:
        for login, _ in scene.others:
            tokens = [login.data["refreshToken"]]
            for _ in range(2):
                tokens.append((await thief.ask("refresh", refreshToken=tokens[-1])).data["refreshToken"])
            assert (await thief.ask("refresh", refreshToken=tokens[0])).code == "token_reused"


async def an_operator(scene: Scene) -> None:
    await scene.deployment.command("users", "end-sessions", scene.account.email)


async def an_operator_who_disables(scene: Scene) -> None:
    await scene.deployment.command("users", "disable", scene.account.email)


# Why it ends, as sockets are told; and whether the session that acts lives on.
ENDS: dict[End, tuple[str, bool]] = {
    one_by_one: ("revoked", True),
    all_others: ("revoked", True),
    a_changed_password: ("password_changed", True),
    a_reset_password: ("password_reset", False),
    logouts: ("logout", True),
    stolen_tokens: ("token_reused", True),
    an_operator: ("operator", False),
    an_operator_who_disables: ("account_disabled", False),
}


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_every_socket_of_an_ended_session_closes_on_every_node(guarded: Deployment, end: End) -> None:
    reason, lives = ENDS[end]
    async with AsyncExitStack() as stack:

        async def client(gateway: int) -> Client:
            found: Client = await stack.enter_async_context(guarded.client(gateway))
            return found

        async def session() -> tuple[Answer, list[Client]]:
            one, other = await client(0), await client(1)
            login = await sign_in(one, account)
            assert (await other.ask("authenticate", accessToken=login.data["accessToken"])).event == "authenticated"
            return login, [one, other]

        owner, stranger = await client(0), await client(1)
        account = await guarded.sign_up(owner)
        await sign_in(stranger, await guarded.sign_up(stranger))
        own = await sign_in(owner, account)
        others = [await session() for _ in range(SESSIONS)]
        await end(Scene(guarded, account, owner, own, others))

        async def ended(login: Answer, socket: Client) -> None:
            while (told := await pushed(socket, "session_ended"))["sessionId"] != login.data["sessionId"]:
                pass
            assert told["reason"] == reason
            assert await asyncio.wait_for(socket.close_code, 5) == 4401

        await asyncio.gather(*(ended(login, socket) for login, sockets in others for socket in sockets))
        for login, _ in others:
            refreshed = await stranger.ask("refresh", refreshToken=login.data["refreshToken"])
            authenticated = await stranger.ask("authenticate", accessToken=login.data["accessToken"])
            assert event_of(refreshed) == ("refresh_failed", "token_revoked")
            assert event_of(authenticated) == ("authentication_failed", "token_revoked")
        assert (await stranger.ask("account")).event == "account"
        if lives:
            [left] = (await owner.ask("sessions")).data["sessions"]
            assert left["sessionId"] == own.data["sessionId"]
        else:
            await ended(own, owner)

"""What an operator does to accounts: in words, and on a real deployment of two gateways."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pwd
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from adapters import names
from adapters.redis_accounts import RedisAccounts
from adapters.redis_link import Batch, Link
from adapters.redis_store import RedisStore
from app.entries import OpenedNotice, open_signed, sign_notice
from app.messages import SessionEnded
from app.operator.users import ROUNDS, Users
from app.operator.users import as_text as account_text
from app.operator.words import Misuse, Undone
from app.ports import AccountSeen, Event, Signed
from app.records import ChangeAccount, CreateAccount, EndSession, Notice, StartSession, Write
from tests.deployment import SECRETS, Deployment, event_of, new_address, secret
from tests.making import EDGE, NOW, account, device, session
from tests.test_operator_queue import run
from tests.test_secrecy import search

ME = pwd.getpwuid(os.getuid()).pw_name

# --- what is taken, and how it is shown ---------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["show", "disable", "enable", "end-sessions"])
def test_something_is_done_to_one_account(what: Any) -> None:
    assert Users.parse([what, "a@b.c"]) == Users(what, "a@b.c")
    assert Users.parse([what, "a@b.c"]).changes is (what != "show")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "usage: python -m app users show|disable|enable|end-sessions "),
        ("show", "usage: "),
        ("show a b", "usage: "),
        ("forget a@b.c", "usage: "),
        ("disable --all", "usage: "),
    ],
)
def test_what_is_no_command_gets_a_sentence(arguments: str, said: str) -> None:
    with pytest.raises(Misuse) as caught:
        Users.parse(arguments.split())
    assert str(caught.value).startswith(said)


def test_an_account_is_shown_with_its_devices_and_sessions_and_no_secret() -> None:
    phone, old = device(), device(ref="0wrk1-old", name="", seen=NOW - 86_400_000)
    here = session(device_ref=phone.ref, device_name="Ana\x1b[2J", seen=NOW)
    there = session(id="0wrk1-there", ip="2001:db8::7")
    seen = AccountSeen(account(totp="wrk1.sealed"), (old, phone), (there, here), frozenset({here.id, "0wrk1-ended"}))
    assert list(account_text(seen)) == [
        "id             0wrk1-user",
        "e-mail         ana@example.com",
        "status         active",
        "created        2023-11-14 22:13:19Z",
        "version        3",
        "second factor  yes",
        "",
        "device        name         last seen             online",
        "0wrk1-device  Ana's phone  2023-11-14 22:13:19Z  yes",
        "0wrk1-old     -            2023-11-13 22:13:20Z  no",
        "",
        "session        device   address      began                 last seen             online",
        "0wrk1-session  Ana?[2J  192.0.2.7    2023-11-14 22:11:20Z  2023-11-14 22:13:20Z  yes",
        "0wrk1-there    -        2001:db8::7  2023-11-14 22:11:20Z  2023-11-14 22:12:20Z  no",
    ]
    assert list(account_text(AccountSeen(account(status="disabled"))))[2:] == [
        "status         disabled",
        "created        2023-11-14 22:13:19Z",
        "version        3",
        "second factor  no",
    ]


# --- a change, on a store that is none ----------------------------------------------------------------------------


@dataclass
class Fake:
    """Accounts. `looks`: what each look finds; `answers`: of each change, whether it was made; the last goes on."""

    looks: Sequence[AccountSeen | None]
    answers: Sequence[bool] = (True,)
    asked: list[tuple[Sequence[Write], Any, Mapping[str, str]]] = field(default_factory=list)
    open: bool = False

    def __post_init__(self) -> None:
        self._looks = itertools.chain(self.looks, itertools.repeat(self.looks[-1]))
        self._answers = itertools.chain(self.answers, itertools.repeat(self.answers[-1]))

    async def connect(self) -> Fake:
        self.open = True
        return self

    async def find(self, who: str) -> AccountSeen | None:
        return next(self._looks)

    async def apply(
        self,
        id: str,
        writes: Sequence[Write],
        notices: Sequence[tuple[Notice, Signed]],
        audit: Mapping[str, str],
    ) -> bool:
        assert audit["request"] == id
        self.asked.append((writes, notices, audit))
        return next(self._answers)

    async def events(self, most: int, user_id: str | None) -> tuple[Sequence[Event], str]:
        raise AssertionError

    async def events_after(self, end: str) -> Sequence[Event]:
        raise AssertionError

    async def close(self) -> None:
        self.open = False


DISABLE = Users("disable", "ana@example.com", "root", EDGE)
DISABLED = account(status="disabled", version=4)


async def changed(command: Users, fake: Fake) -> tuple[int, list[str]]:
    lines: list[str] = []
    try:
        return await command.run(fake.connect, lines.append), lines
    finally:
        assert not fake.open


async def test_what_somebody_else_changed_first_is_changed_as_it_is_now() -> None:
    first, second = AccountSeen(account(), sessions=(session(),)), AccountSeen(account(version=7))
    fake = Fake([first, second, AccountSeen(DISABLED)], [False, True])
    said = ["ana@example.com (0wrk1-user): disabled, no session had to end."]
    assert await changed(DISABLE, fake) == (0, said)
    assert [writes[0] for writes, _, _ in fake.asked] == [
        ChangeAccount(seen.account, replace(seen.account, status="disabled")) for seen in (first, second)
    ]


async def test_a_session_that_started_before_the_change_is_ended_after_it_and_audited_as_that() -> None:
    late = AccountSeen(DISABLED, sessions=(session(),))
    fake = Fake([AccountSeen(account()), late, AccountSeen(DISABLED)])
    assert await changed(DISABLE, fake) == (0, ["ana@example.com (0wrk1-user): disabled, 1 session ended."])
    [_, (writes, [(told, signed)], audit)] = fake.asked
    assert writes == (EndSession(session(), "account_disabled"),)
    assert (told.session_id, told.close, told.spare) == (session().id, True, ("", ""))
    assert isinstance(open_signed(EDGE, signed), OpenedNotice)
    assert [audit["event"] for _, _, audit in fake.asked] == ["operator_disabled", "operator_ended_sessions"]
    assert audit["by"] == "root"


async def test_an_account_that_never_stands_still_is_given_up_in_a_sentence() -> None:
    fake = Fake([AccountSeen(account())], [False])
    with pytest.raises(Undone, match=r"changes as fast as it is read; no session had to end\. Ask again\."):
        await changed(DISABLE, fake)
    assert len(fake.asked) == ROUNDS


@pytest.mark.parametrize("what", ["show", "disable", "enable", "end-sessions"])
async def test_what_is_done_to_nobody_is_nothing(what: Any) -> None:
    fake = Fake([None])
    with pytest.raises(Undone, match=r"there is no account ana@example\.com\."):
        await changed(replace(DISABLE, what=what), fake)
    assert not fake.asked


# --- the adapter, on a real store ---------------------------------------------------------------------------------


@asynccontextmanager
async def accounts(url: str) -> AsyncIterator[tuple[RedisAccounts, RedisStore, Any]]:
    found, batch = RedisAccounts(Link(url, "test-operator")), Batch(Link(url, "test-store"))
    with Redis.from_url(url) as redis:
        try:
            yield found, RedisStore(batch), redis
        finally:
            await found.close()
            await batch.close()


async def kept(store: RedisStore, redis: Any) -> AccountSeen:
    """An account with a device and two sessions, one of them ended, as of now."""
    seconds, _ = redis.time()
    now = seconds * 1000
    has, of = account(created=now), device(seen=now)
    lives, ended = (session(id=f"0wrk1-{n}", created=now, seen=now, rotated=now) for n in ("lives", "ended"))
    starts = (StartSession(lives, has, None), StartSession(ended, has, None))
    writes: tuple[Write, ...] = (CreateAccount(has, None, of), *starts, EndSession(ended, "logout"))
    for n, write in enumerate(writes):
        assert await store.apply(f"made-{n}", (write,), (), {"event": "made"}) == "settled"
    return AccountSeen(has, (of,), (lives,))


async def test_an_account_is_found_by_its_address_in_any_case_and_by_its_id(redis_url: str) -> None:
    async with accounts(redis_url) as (found, store, redis):
        made = await kept(store, redis)
        before = {key: redis.dump(key) for key in redis.keys("*")}
        for who in ("ana@example.com", " Ana@EXAMPLE.com", made.account.id):
            assert await found.find(who) == made
        for who in (
            "ana",
            "ben@example.com",
            "@",
            "a@b c",
            "an\u0430@example.com",
            "",
            "0wrk1-user:sessions",
            "x\udcff",
            "\n",
        ):
            assert await found.find(who) is None, who
        assert {key: redis.dump(key) for key in redis.keys("*")} == before

        redis.set(names.NODES + "node", "1")
        redis.hset(names.ONLINE + made.account.id, mapping={"node one": "0wrk1-lives", "dead two": "0wrk1-ended"})
        redis.hset(names.USERS + made.account.id, "totp", "sealed")
        with_factor = replace(made.account, totp="sealed")
        seen = replace(made, account=with_factor, online=frozenset({"0wrk1-lives"}))
        assert await found.find(made.account.id) == seen


async def test_a_change_is_all_of_it_once_for_its_id_or_nothing(redis_url: str) -> None:
    async with accounts(redis_url) as (found, store, redis):
        made = await kept(store, redis)
        redis.set(names.NODES + "node", "1")
        redis.hset(names.ONLINE + made.account.id, "node one", "0wrk1-lives")
        change = ChangeAccount(made.account, replace(made.account, status="disabled"))
        told = Notice(
            made.account.id, "0wrk1-lives", SessionEnded(session_id="0wrk1-lives", reason="x"), ("", ""), close=True
        )
        all_of_it = (
            (change, EndSession(made.sessions[0], "x")),
            ((told, sign_notice(EDGE, told)),),
            {"event": "operator_disabled", "by": "ana"},
        )

        redis.hincrby(names.USERS + made.account.id, "version", 1)
        before = {key: redis.dump(key) for key in redis.keys("*")}
        assert not await found.apply("id", *all_of_it)
        assert {key: redis.dump(key) for key in redis.keys("*")} == before

        redis.hincrby(names.USERS + made.account.id, "version", -1)
        assert all(await asyncio.gather(*(found.apply("id", *all_of_it) for _ in range(5))))
        seen = await found.find(made.account.id)
        assert seen is not None and not seen.sessions
        assert (seen.account.status, seen.account.version) == ("disabled", made.account.version + 1)
        assert redis.xlen(names.REPLIES + "node") == 1
        assert [fields[b"by"] for _, fields in redis.xrange(names.EVENTS) if b"by" in fields] == [b"ana"]


# --- a deployment of two gateways ---------------------------------------------------------------------------------


async def users(deployment: Deployment, *arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Exit status, stdout and stderr of `users …`; to show, it gets no secret."""
    edge = {} if arguments[0] == "show" else {"FIN_EDGE_SECRET": deployment.environ["FIN_EDGE_SECRET"]}
    given = {"FIN_REDIS_URL": deployment.redis_url, **edge, **environ}
    status, lines, errors = await run(deployment.folder, "users", *arguments, **given)
    return status, "\n".join(lines), "\n".join(errors)


async def done(deployment: Deployment, *arguments: str) -> str:
    status, said, errors = await users(deployment, *arguments)
    assert (status, errors) == (0, ""), said
    return said


def outcomes(deployment: Deployment, user_id: str) -> list[dict[str, str]]:
    """What the audit has of an account, oldest first; `at`: seconds since 1970."""
    with Redis.from_url(deployment.redis_url, decode_responses=True) as redis:
        found: Any = redis.xrange(names.EVENTS)
    return [fields | {"at": int(id.partition("-")[0]) / 1000} for id, fields in found if fields.get("user") == user_id]


def living(deployment: Deployment, user_id: str) -> list[bytes]:
    with Redis.from_url(deployment.redis_url) as redis:
        return list(redis.zrange(names.USERS + user_id + names.SESSIONS_OF, 0, -1))


async def test_a_disabled_account_loses_its_sockets_on_every_node_within_a_second_and_its_refresh(
    deployment: Deployment,
) -> None:
    closed: list[tuple[int, float]] = []
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(deployment.client(n)) for n in range(10)]
        has = await deployment.sign_up(clients[0])
        logins = [(await has.login(client)).data for client in clients]
        user_id = logins[0]["userId"]
        bystander, other = await stack.enter_async_context(deployment.account())
        await other.login(bystander)
        for client in clients:
            client.close_code.add_done_callback(lambda code: closed.append((code.result(), time.time())))

        said = await done(deployment, "disable", f" {has.email.upper()}")
        assert said == f"{has.email} ({user_id}): disabled, 10 sessions ended."
        await asyncio.wait_for(asyncio.gather(*(client.close_code for client in clients)), 5)
        assert {code for code, _ in closed} == {4401}
        [disabled] = [event for event in outcomes(deployment, user_id) if event["event"] == "operator_disabled"]
        took = max(at for _, at in closed) - float(disabled["at"])
        print(f"ten sockets on two nodes closed {took * 1000:.0f} ms after the change")
        assert took < 1

        for client, login in zip(clients, logins):
            pushes = [client.pushes.get_nowait() for _ in range(client.pushes.qsize())]
            told = [push["data"] for push in pushes if push["event"] == "session_ended"]
            assert {"sessionId": login["sessionId"], "reason": "account_disabled"} in told
            refused = await bystander.ask("refresh", refreshToken=login["refreshToken"])
            assert event_of(refused) == ("refresh_failed", "token_revoked")
            refused = await bystander.ask("authenticate", accessToken=login["accessToken"])
            assert event_of(refused) == ("authentication_failed", "token_revoked")
        await other.login(bystander)


async def test_a_disabled_account_is_told_so_after_the_right_password_only_until_it_is_enabled(
    either: Deployment,
) -> None:
    async with either.account() as (client, has):
        assert (await done(either, "disable", has.email)).endswith("): disabled, no session had to end.")
        assert (await done(either, "disable", has.email)).endswith("): disabled already, no session had to end.")
        right = await client.ask("login", email=has.email, password=has.password, deviceToken=has.device_token)
        wrong = await client.ask("login", email=has.email, password="wrong")
        nobody = await client.ask("login", email=new_address(), password=has.password)
        assert event_of(right) == ("login_failure", "account_disabled")
        assert event_of(wrong) == event_of(nobody) == ("login_failure", "invalid_credentials")
        assert wrong.data == nobody.data

        assert (await done(either, "enable", has.email)).endswith("): active again.")
        assert (await done(either, "enable", has.email)).endswith("): active already.")
        user_id = (await has.login(client)).data["userId"]
    by_me = [event for event in outcomes(either, user_id) if event.get("by")]
    assert [(event["event"], event["code"], event["by"]) for event in by_me] == [
        ("operator_disabled", "ok", ME),  # and not of what changed nothing
        ("operator_enabled", "ok", ME),
    ]


async def test_sessions_that_an_operator_ends_are_over_and_the_account_may_log_in_again(
    deployment: Deployment,
) -> None:
    async with deployment.account() as (client, has), deployment.client(1) as other:
        logins = [(await has.login(each)).data for each in (client, other)]
        said = await done(deployment, "end-sessions", logins[0]["userId"])
        assert said == f"{has.email} ({logins[0]['userId']}): 2 sessions ended."
        for each, login in zip((client, other), logins):
            assert await asyncio.wait_for(each.close_code, 5) == 4401
            pushes = [each.pushes.get_nowait()["data"] for _ in range(each.pushes.qsize())]
            assert {"sessionId": login["sessionId"], "reason": "operator"} in pushes
        assert (await done(deployment, "end-sessions", has.email)).endswith("): no session had to end.")
        async with deployment.client() as again:
            refused = await again.ask("refresh", refreshToken=logins[0]["refreshToken"])
            assert event_of(refused) == ("refresh_failed", "token_revoked")
            await has.login(again)


async def test_an_account_that_is_disabled_while_it_logs_in_has_no_living_session(deployment: Deployment) -> None:
    """Logins go on until the first is refused, so there is one on either side of the change and at the same moment."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(deployment.client(n)) for n in range(20)]
        has = await deployment.sign_up(clients[0])
        user_id = (await has.login(clients[0])).data["userId"]
        await done(deployment, "end-sessions", user_id)
        begun, told = asyncio.Event(), Counter[str]()

        async def log_in(number: int) -> None:
            while not told["account_disabled"]:
                async with deployment.client(number) as client:
                    answer = await client.ask("login", email=has.email, password=has.password)
                told[answer.code or answer.event] += 1
                begun.set()

        logins = asyncio.gather(*(log_in(n) for n in range(20)))
        await asyncio.wait_for(begun.wait(), 10)
        said = await done(deployment, "disable", has.email)
        await asyncio.wait_for(logins, 30)

    print(f"{dict(told)}; {said}")
    assert set(told) == {"login_success", "account_disabled"}
    assert living(deployment, user_id) == []
    after = outcomes(deployment, user_id)
    changed = next(n for n, event in enumerate(after) if event["event"] == "operator_disabled")
    assert "login_success" not in {event["event"] for event in after[changed:]}


async def test_what_is_shown_of_an_account_is_true(deployment: Deployment) -> None:
    async with deployment.account() as (client, has), deployment.client(1) as other:
        first = (await has.login(client, deviceToken=has.device_token, deviceName="Ana's phone")).data
        async with deployment.client(1) as gone:
            second = (await has.login(gone)).data
        await has.login(other)

        async def offline() -> list[str]:
            while True:
                lines = (await done(deployment, "show", has.email)).splitlines()
                if any(line.startswith(second["sessionId"]) and line.endswith(" no") for line in lines):
                    return lines

        lines = await asyncio.wait_for(offline(), 10)
    assert lines[:3] == [f"id             {first['userId']}", f"e-mail         {has.email}", "status         active"]
    assert [line.split()[-1] for line in lines if "Ana's phone" in line] == ["yes", "yes"]  # the device, its session
    assert len(lines) == 6 + 3 + 5


async def test_no_command_says_a_secret(deployment: Deployment, tmp_path: Path) -> None:
    """As tests/test_secrecy.py looks for what clients sent and got; and nothing of what is kept of it either."""
    async with deployment.account() as (client, has):
        user_id = (await has.login(client, deviceToken=has.device_token)).data["userId"]
        said = [await done(deployment, what, has.email) for what in ("show", "disable", "enable", "end-sessions")]
        for more in ([], ["--json"], ["--account", has.email]):
            _, lines, _ = await run(tmp_path, "audit", "--last", "1000", *more, FIN_REDIS_URL=deployment.redis_url)
            said += lines
        with Redis.from_url(deployment.redis_url) as redis:
            key = names.USERS + user_id
            password, devices = redis.hget(key, "password"), redis.hgetall(key + names.DEVICES_OF)
    [mac] = [json.loads(text)[0] for text in devices.values()]
    (tmp_path / "said").write_text("\n".join(said))
    assert len(said) > 20 and has.device_token in SECRETS
    kept_of_it = {password.decode(), mac}
    SECRETS.update(kept_of_it)
    try:
        assert search(tmp_path) == []
    finally:
        SECRETS.difference_update(kept_of_it)


@pytest.mark.parametrize(
    "arguments",
    ["users show {}", "users disable {}", "users enable {}", "users end-sessions {}", "audit --account {}"],
)
@pytest.mark.parametrize("who", ["nobody@example.com", "0wrk1-nobody", "no\x1b[2Jbody", "@"])
async def test_an_account_that_there_is_not_is_said_in_one_sentence(
    deployment: Deployment, tmp_path: Path, arguments: str, who: str
) -> None:
    given = {name: deployment.environ[name] for name in ("FIN_REDIS_URL", "FIN_EDGE_SECRET")}
    status, lines, errors = await run(tmp_path, *(word.format(who) for word in arguments.split()), **given)
    assert (status, lines) == (1, [])
    assert errors == [f"finthenticate: there is no account {who.replace(chr(27), '?')}."]


@pytest.mark.parametrize("what", ["disable", "enable", "end-sessions"])
async def test_without_the_secret_that_signs_nothing_is_changed_and_its_name_is_said(
    redis_url: str, tmp_path: Path, what: str
) -> None:
    async with accounts(redis_url) as (found, store, redis):
        made = await kept(store, redis)
        status, lines, [error] = await run(tmp_path, "users", what, made.account.email, FIN_REDIS_URL=redis_url)
        assert (status, lines) == (78, [])
        assert error.startswith("finthenticate: FIN_EDGE_SECRET is missing; ")
        assert await found.find(made.account.id) == made


async def test_connections_that_do_not_believe_the_command_are_said_to_be_left(deployment: Deployment) -> None:
    async with deployment.account() as (client, has):
        await has.login(client)
        status, said, errors = await users(deployment, "disable", has.email, FIN_EDGE_SECRET=secret())
        assert (status, errors) == (1, "")
        assert said.endswith(
            "\n1 of them still count as connected: their gateway died just now, or has another FIN_EDGE_SECRET."
        )
        assert event_of(await client.ask("account")) == ("error", "not_authenticated")


@pytest.mark.parametrize("arguments", ["users show a@b.c", "users disable a@b.c", "audit", "audit --account a@b.c"])
@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", ""])
async def test_a_store_that_is_away_is_said_in_one_sentence(tmp_path: Path, arguments: str, url: str) -> None:
    status, lines, [error] = await run(tmp_path, *arguments.split(), FIN_REDIS_URL=url, FIN_EDGE_SECRET=secret())
    assert (status, lines) == (69, [])
    assert error.startswith("finthenticate: the store does not answer: ")


@pytest.mark.parametrize("arguments", ["users", "users disable", "users show a b", "audit --last x", "audit a@b.c"])
async def test_what_is_no_command_is_said_before_anything_is_asked(tmp_path: Path, arguments: str) -> None:
    status, lines, [error] = await run(tmp_path, *arguments.split(), FIN_PORT="no port")
    assert (status, lines) == (64, [])
    assert "usage: python -m app" in error or "--last must be" in error

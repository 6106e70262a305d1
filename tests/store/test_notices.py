"""Pushes and presence, and what is audited."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters import names
from app import entries
from app.messages import Code, EmailConfirmed, LoginAttempt, LoginDecided, refusal
from app.ports import Signed
from app.records import Identity, Notice, Outcome, Verdict
from app.rules import DAY
from tests.making import EDGE, account
from tests.store.bench import HERE, MAIL, MAILS, Bench, bench, notice, outcome, sealed_mail, settlement


async def notify(parts: Bench, *told: Notice) -> dict[Notice, Signed]:
    signed = {one: entries.sign_notice(EDGE, one) for one in told}
    await parts.made(notices=tuple(signed.items()))
    return signed


async def test_a_notice_goes_once_to_every_living_node_where_the_account_is_online(redis_url: str) -> None:
    async with bench(redis_url, node="node-a") as parts:
        await parts.living("node-a", "node-b", "node-idle")
        online = {f"node-{name}": "s" for name in ("a one", "a two", "a three", "b one", "dead one", "dead two")}
        await parts.redis.hset(names.ONLINE + account().id, mapping=online)
        told = notice("logout")
        signed = (await notify(parts, told))[told]
        assert await anext(parts.gateway.replies()) == signed
        opened = entries.open_signed(EDGE, signed)
        assert isinstance(opened, entries.OpenedNotice)
        assert (opened.user_id, opened.event, opened.close) == (account().id, "session_ended", True)
        lengths = {node: await parts.length(names.REPLIES + f"node-{node}") for node in ("a", "b", "idle", "dead")}
        assert lengths == {"a": 1, "b": 1, "idle": 0, "dead": 0}
        assert 55_000 < await parts.redis.pttl(names.REPLIES + "node-b") <= 60_000


async def test_whoever_was_online_on_a_dead_node_is_so_no_longer(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.living("node-a")
        online = {"node-a one": "s1", "node-dead one": "s4", "node-dead two": "s5"}
        await parts.redis.hset(names.ONLINE + account().id, mapping=online)
        await notify(parts, notice("logout"))
        assert await parts.redis.hkeys(names.ONLINE + account().id) == [b"node-a one"]


async def test_an_account_that_is_nowhere_online_is_told_nothing(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.living("node-a")
        await parts.redis.hset(names.ONLINE + "0wrk1-other", "node-a one", "s")
        await notify(parts, notice("logout"))
        assert await parts.length(names.REPLIES + "node-a") == 0


async def test_several_notices_arrive_in_their_order(redis_url: str) -> None:
    async with bench(redis_url, node="node-a") as parts:
        await parts.living("node-a")
        await parts.redis.hset(names.ONLINE + account().id, "node-a two", "s")
        signed = await notify(parts, *(notice(f"reason {n}") for n in range(3)))
        replies = parts.gateway.replies()
        assert [await anext(replies) for _ in range(3)] == list(signed.values())


async def test_who_caused_a_notice_is_not_told_of_it_but_whoever_else_is_there(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.living("node-a")
        online = names.ONLINE + account().id
        for connection, told in (("node-a one", 0), ("node-a two", 1)):
            await parts.redis.hset(online, connection, "s")
            await notify(parts, notice("logout"))
            assert await parts.length(names.REPLIES + "node-a") == told


async def test_a_connection_that_is_authenticated_with_a_notice_is_not_there_yet_to_be_told(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.living("node-a")
        told = replace(notice("logout"), spare=("node-b", "other"))
        signed = ((told, entries.sign_notice(EDGE, told)),)
        plan = settlement("rid", outcome(identity=Identity(account().id, "s")), presence=HERE, notices=signed)
        assert await parts.keep("rid", await parts.soon(), plan) == "settled"
        assert await parts.length(names.REPLIES + "node-a") == 0
        assert await parts.redis.hkeys(names.ONLINE + account().id) == [b"node-a one"]


@pytest.mark.parametrize(
    ("before", "after", "forget", "expected"),
    [
        pytest.param(None, Identity("u1", "s1"), False, {"u1": "s1"}, id="authenticated"),
        pytest.param(Identity("u1", "s0"), Identity("u1", "s1"), False, {"u1": "s1"}, id="another session of the same"),
        pytest.param(Identity("u0", "s0"), Identity("u1", "s1"), False, {"u1": "s1"}, id="somebody else"),
        pytest.param(Identity("u1", "s1"), None, True, {}, id="forgotten"),
        pytest.param(Identity("u1", "s1"), None, False, {"u1": "s1"}, id="neither"),
        pytest.param(None, None, True, {}, id="forgotten, nobody before"),
    ],
)
async def test_presence_follows_what_a_connection_is_authenticated_as(
    redis_url: str, before: Identity | None, after: Identity | None, forget: bool, expected: dict[str, str]
) -> None:
    async with bench(redis_url) as parts:
        if before is not None:
            await parts.redis.hset(names.ONLINE + before.user_id, "node-a one", before.session_id)
        done = outcome(identity=after, forget=forget)
        plan = settlement("rid", done, presence=HERE, previous=before)
        assert await parts.keep("rid", await parts.soon(), plan) == "settled"
        found = {}
        for user in ("u0", "u1"):
            for name, session_id in (await parts.redis.hgetall(names.ONLINE + user)).items():
                assert name == b"node-a one"
                found[user] = session_id.decode()
        assert found == expected


async def test_presence_ends_by_itself_and_when_a_connection_leaves(redis_url: str) -> None:
    async with bench(redis_url, node="node-a") as parts:
        plan = settlement("rid", outcome(identity=Identity("u1", "s1")), presence=HERE)
        await parts.keep("rid", await parts.soon(), plan)
        assert 29 * DAY < await parts.redis.pttl(names.ONLINE + "u1") <= 30 * DAY
        await parts.gateway.leave([("u1", "other"), ("u2", "one")])
        assert await parts.redis.exists(names.ONLINE + "u1")
        await parts.gateway.leave([("u1", "one")])
        assert not await parts.redis.exists(names.ONLINE + "u1")


async def test_what_is_secret_in_an_outcome_is_not_written_to_its_audit(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        done = Outcome("email_confirmed", EmailConfirmed(device_token="0wrk1.s3cret"), mails=(MAIL,))
        plan = settlement("rid", done, mails=((MAIL, sealed_mail(), (MAILS,)),))
        await parts.keep("rid", await parts.soon(), plan)
        everything = b"".join((await parts.snapshot()).values())
        assert b"s3cret" not in everything
        assert MAIL.code.encode() not in everything


async def test_a_refusal_is_recorded_with_its_code(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        done = Outcome("login_failure", refusal(Code.INVALID_CREDENTIALS), Verdict.FAILED)
        await parts.keep("rid", await parts.soon(), settlement("rid", done))
        [(_, event)] = await parts.redis.xrange(names.EVENTS)
        assert (event[b"event"], event[b"code"]) == (b"login_failure", b"invalid_credentials")


# --- for one connection alone, and for trusted devices ----------------------------------------------------------------


async def test_what_is_for_one_connection_goes_to_its_node_wherever_its_account_is_online(redis_url: str) -> None:
    """It waits to be let in: it is authenticated as nobody yet, so no presence leads to it."""
    async with bench(redis_url, node="node-a") as parts:
        await parts.living("node-a", "node-b")
        await parts.redis.hset(names.ONLINE + account().id, "node-b one", "s")
        told = Notice(account().id, "", LoginDecided(approved=True), only=("node-a", "waits"))
        signed = (await notify(parts, told))[told]
        assert await anext(parts.gateway.replies()) == signed
        opened = entries.open_signed(EDGE, signed)
        assert isinstance(opened, entries.OpenedNotice)
        assert (opened.only, opened.event, opened.close) == (("node-a", "waits"), "login_decided", False)
        assert await parts.length(names.REPLIES + "node-b") == 0


async def test_what_is_for_one_connection_of_a_node_that_has_gone_lies_there_for_a_minute(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await notify(parts, Notice(account().id, "", LoginDecided(approved=True), only=("node-gone", "waits")))
        assert 55_000 < await parts.redis.pttl(names.REPLIES + "node-gone") <= 60_000


async def test_what_is_for_trusted_devices_goes_where_the_account_is_online_and_says_for_which(redis_url: str) -> None:
    async with bench(redis_url, node="node-a") as parts:
        await parts.living("node-a", "node-b")
        await parts.redis.hset(names.ONLINE + account().id, mapping={"node-a one": "s", "node-a two": "t"})
        asked = LoginAttempt(login_id="0wrk1-login", device_name="Zoë’s", ip="192.0.2.7")
        told = Notice(account().id, "", asked, devices=("ref-1", "ref-2"))
        signed = (await notify(parts, told))[told]
        assert await anext(parts.gateway.replies()) == signed
        opened = entries.open_signed(EDGE, signed)
        assert isinstance(opened, entries.OpenedNotice)
        assert opened.devices == ("ref-1", "ref-2")
        assert (await parts.length(names.REPLIES + "node-a"), await parts.length(names.REPLIES + "node-b")) == (1, 0)


async def test_a_decision_and_other_notices_of_one_request_all_arrive_and_only_with_it(redis_url: str) -> None:
    async with bench(redis_url, node="node-a") as parts:
        await parts.living("node-a")
        await parts.redis.hset(names.ONLINE + account().id, "node-a two", "s")
        only = Notice(account().id, "", LoginDecided(approved=False), only=("node-a", "waits"))
        told = {each: entries.sign_notice(EDGE, each) for each in (only, notice("revoked"))}
        late = settlement("late", outcome(), notices=tuple(told.items()))
        assert await parts.keep("late", await parts.now() - 1, late) == "expired"
        assert await parts.length(names.REPLIES + "node-a") == 0
        plan = settlement("rid", outcome(), notices=tuple(told.items()))
        assert await parts.keep("rid", await parts.soon(), plan) == "settled"
        replies = parts.gateway.replies()
        assert [await anext(replies), await anext(replies)] == list(told.values())


async def test_where_an_account_is_online_is_looked_up_once_for_all_that_is_said_of_it(redis_url: str) -> None:
    """A hundred sessions that end, of an account with a thousand connections: the store does nothing else meanwhile."""
    async with bench(redis_url) as parts:
        await parts.living("node-a", "node-b")
        online = {f"node-{'ab'[n % 2]} {n}": "s" for n in range(1000)} | {f"node-dead {n}": "s" for n in range(9)}
        await parts.redis.hset(names.ONLINE + account().id, mapping=online)
        await parts.redis.config_resetstat()
        told = tuple(replace(notice(f"reason {n}"), spare=("node-a", "0")) for n in range(100))
        await notify(parts, *told)
        calls = await parts.redis.info("commandstats")
        assert calls["cmdstat_hkeys"]["calls"] == 1
        assert calls["cmdstat_exists"]["calls"] == 3
        assert (await parts.length(names.REPLIES + "node-a"), await parts.length(names.REPLIES + "node-b")) == (
            100,
            100,
        )
        assert await parts.redis.hlen(names.ONLINE + account().id) == 1000

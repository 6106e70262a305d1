"""What the audit says: of all or of one account, as it was and live, whatever others have written into it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from redis import Redis

from adapters import names
from adapters.embedded_redis import EmbeddedRedis
from adapters.redis_accounts import EVENTS_AT_ONCE
from app.operator.audit import Audit, as_json, as_text
from app.operator.words import Misuse, line_of_json
from app.ports import Event
from tests.deployment import Deployment, new_address
from tests.making import NOW
from tests.test_operator_queue import interrupted, next_line, run, start
from tests.test_operator_users import ME, accounts, done

# --- what is taken, and how it is shown ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", Audit()),
        ("--follow", Audit(follow=True)),
        ("--last 0 --follow", Audit(follow=True, last=0)),
        ("--json --account a@b.c --last 100000", Audit(account="a@b.c", last=100_000, json=True)),
        ("--account 0wrk1-user", Audit(account="0wrk1-user")),
    ],
)
def test_the_audit_is_of_all_or_of_one_account(arguments: str, expected: Audit) -> None:
    assert Audit.parse(arguments.split()) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("now", "usage: python -m app audit "),
        ("--json --json", "usage: "),
        ("--account", "usage: "),
        ("--account --json", "usage: "),
        ("--account a --account b", "usage: "),
        ("--last", "usage: "),
        ("--last -1", "--last must be a whole number from 0 to 100000."),
        ("--last 100001", "--last must be"),
        ("--last all", "--last must be"),
    ],
)
def test_what_is_no_command_gets_a_sentence(arguments: str, said: str) -> None:
    with pytest.raises(Misuse) as caught:
        Audit.parse(arguments.split())
    assert str(caught.value).startswith(said)


FIELDS = {
    "event": "login_failure",
    "code": "invalid_credentials",
    "request": "0edg1-AAAAAAAAAAAAAAAAAAAAAA",
    "user": "0wrk1-AAAAAAAAAAAAAAAAAAAAAA",
    "ip": "192.0.2.7",
    "worker": "one:7:ab12cd34",
}


def test_an_outcome_is_one_line_that_lines_up_with_others() -> None:
    lines = [
        as_text(Event("1-0", NOW + 7, fields)) for fields in (FIELDS, FIELDS | {"user": "", "ip": "", "by": "ana"})
    ]
    assert lines == [
        "2023-11-14 22:13:20.007Z  login_failure               invalid_credentials  0wrk1-AAAAAAAAAAAAAAAAAAAAAA  "
        "192.0.2.7        0edg1-AAAAAAAAAAAAAAAAAAAAAA",
        "2023-11-14 22:13:20.007Z  login_failure               invalid_credentials  -                             "
        '-                0edg1-AAAAAAAAAAAAAAAAAAAAAA  by="ana"',
    ]


HOSTILE = '\x1b[2J\x9b1m\r\n\x00\x7f\u202e\u2028" by="root" \\'


def test_what_others_chose_to_say_neither_moves_a_terminal_nor_passes_for_a_field() -> None:
    hostile = Event("1-0", NOW, dict.fromkeys(FIELDS, HOSTILE) | {"device": HOSTILE, "by": "ana"})
    line = as_text(hostile)
    assert line.isprintable()
    assert line.endswith('device="?[2J?1m??????\\" by=\\"root\\" \\\\"  by="ana"')
    found = line_of_json(as_json(hostile))
    assert found.isascii() and found.isprintable()
    assert json.loads(found)["device"] == HOSTILE


def test_as_json_an_outcome_has_every_field_that_is_known() -> None:
    event = Event("1700000000000-3", NOW, FIELDS | {"user": "", "id": "x", "by": "ana"})
    known = {name: value for name, value in FIELDS.items() if name != "user"}
    assert as_json(event) == known | {"by": "ana", "id": "1700000000000-3", "at_ms": NOW}


# --- on a real store, and on a deployment -----------------------------------------------------------------------------


async def test_the_newest_of_one_account_are_found_however_far_back_they_are(redis_url: str) -> None:
    async with accounts(redis_url) as (found, _, redis):
        assert await found.events(3, None) == ([], "0-0")
        with redis.pipeline() as pipeline:
            for n in range(3 * EVENTS_AT_ONCE):
                pipeline.xadd(
                    names.EVENTS, {"event": "e", "user": "rare" if n % 700 == 0 else "", "n": n}, id=f"{n + 1}-0"
                )
            pipeline.execute()

        async def numbers(most: int, user: str | None) -> list[int]:
            events, end = await found.events(most, user)
            assert end == f"{3 * EVENTS_AT_ONCE}-0"
            return [int(event.fields["n"]) for event in events]

        assert await numbers(3, None) == [2997, 2998, 2999]
        assert await numbers(2 * EVENTS_AT_ONCE, None) == list(range(1000, 3000))
        assert await numbers(0, None) == []
        assert await numbers(3, "rare") == [1400, 2100, 2800]
        assert await numbers(50, "rare") == [0, 700, 1400, 2100, 2800]
        assert await numbers(50, "nobody") == []
        assert [int(e.fields["n"]) for e in await found.events_after("2998-0")] == [2998, 2999]


@asynccontextmanager
async def started(folder: Path, *arguments: str, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Killed if it has not ended: a loop does not close before its processes have."""
    process = await start(folder, *arguments, **environ)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_audit_lists_what_became_of_an_account_and_follows_it(deployment: Deployment) -> None:
    given = {"FIN_REDIS_URL": deployment.redis_url}
    async with deployment.account() as (client, has), deployment.account(1) as (_, other):
        user_id = (await has.login(client)).data["userId"]
        status, lines, errors = await run(deployment.folder, "audit", "--account", has.email, **given)
        assert (status, errors) == (0, [])
        assert [line.split()[2:6] for line in lines] == [
            ["email_confirmed", "ok", user_id, "127.0.0.1"],
            ["login_success", "ok", user_id, "127.0.0.1"],
        ]

        arguments = ("audit", "--follow", "--account", user_id, "--last", "1")
        async with started(deployment.folder, *arguments, **given) as following:
            assert (await next_line(following, "")).split()[2:4] == ["login_success", "ok"]
            async with deployment.client(1) as else_:
                await other.login(else_)
                await else_.ask("login", email=has.email, password="wrong")
            assert (await next_line(following, "")).split()[2:5] == ["login_failure", "invalid_credentials", user_id]
            await done(deployment, "end-sessions", has.email)
            line = await next_line(following, "")
            assert line.split()[2:5] == ["operator_ended_sessions", "ok", user_id] and line.endswith(f'  by="{ME}"\n')
            assert await interrupted(following) == (0, "")


async def test_the_audit_of_everybody_is_one_object_a_line(deployment: Deployment) -> None:
    given = {"FIN_REDIS_URL": deployment.redis_url}
    address, arguments = new_address(), ("audit", "--json", "--follow", "--last", "0")
    async with started(deployment.folder, *arguments, **given) as following, deployment.client() as client:

        async def ask() -> None:
            while True:  # until it is seen: what came before it began to follow is not shown
                await client.ask("login", email=address, password="wrong")

        asking = asyncio.create_task(ask())
        event = json.loads(await next_line(following, "{"))
        asking.cancel()
        assert await interrupted(following) == (0, "")
    assert set(event) == {"id", "at_ms", "event", "code", "request", "ip", "worker"}
    assert (event["event"], event["code"], event["ip"]) == ("login_failure", "invalid_credentials", "127.0.0.1")
    status, lines, errors = await run(deployment.folder, "audit", "--json", "--last", "3", **given)
    assert (status, len(lines), errors) == (0, 3, [])
    assert all(json.loads(line)["id"] for line in lines)


async def test_who_follows_waits_for_a_store_outlives_it_and_misses_nothing(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "data")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        following = started(tmp_path, "audit", "--follow", FIN_DATA_DIR=str(tmp_path / "data"))
        process = await stack.enter_async_context(following)
        assert "no embedded server runs" in await next_line(process, "The store does not answer: ")
        await server.start()
        with Redis.from_url(server.url) as redis:
            for event in ("first", "live"):
                redis.xadd(names.EVENTS, {"event": event})
                assert event in await next_line(process, "")
        await server.stop()
        await next_line(process, "The store does not answer: ")
        await server.start()
        with Redis.from_url(server.url) as redis:
            redis.xadd(names.EVENTS, {"event": "second"})
            redis.xadd(names.EVENTS, {"event": "third"})
        assert "second" in await next_line(process, "")
        assert "third" in await next_line(process, "")
        assert await interrupted(process) == (0, "")


async def test_whoever_reads_the_audit_may_have_seen_enough(redis_url: str, tmp_path: Path) -> None:
    with Redis.from_url(redis_url) as redis, redis.pipeline() as pipeline:
        for n in range(10_000):
            pipeline.xadd(names.EVENTS, {"event": "e", "n": n})
        pipeline.execute()
    async with started(tmp_path, "audit", "--last", "10000", FIN_REDIS_URL=redis_url) as process:
        assert process.stdout is not None and process.stderr is not None
        await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]  # as `head` does
        assert await asyncio.wait_for(process.stderr.read(), 20) == b""
        assert await asyncio.wait_for(process.wait(), 20) == 128 + signal.SIGPIPE

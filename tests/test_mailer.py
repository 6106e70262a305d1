"""The mailer and its queue, on a real Redis and a real SMTP server: each mail at least once, none behind another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from adapters import names, redis_mail
from adapters.key_files import KeyFiles
from adapters.redis_link import Batch, Command, Link
from adapters.redis_mail import RedisMailQueue, mail_queue
from adapters.redis_operator import RedisOperator
from adapters.redis_state import NODE_LIVES_MS, to_map, to_reply
from adapters.redis_store import text
from adapters.smtp import SmtpMailer
from app import entries
from app.entries import OpenedNotice
from app.keys import Ring
from app.mail import mailer
from app.mail.mailer import MailerLoop, retry_after, useful_until
from app.ports import Letter, MailInHand, Signed, Unavailable
from app.records import Mail
from app.rules import CODE_MS, HOUR, MINUTE, RESET_MS, SECOND
from app.sealing import Opener, Sealer
from app.smtp import Smtp
from tests.making import EDGE, NOW
from tests.post_office import DROP, STALL, PostOffice

# --- when a mail is tried again ---------------------------------------------------------------------------------------


def test_the_delay_doubles_from_a_second_to_a_quarter_of_an_hour() -> None:
    assert [retry_after(tries) for tries in range(1, 13)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    assert retry_after(1_000_000) == 900


def test_a_mail_is_of_use_for_two_hours_and_one_with_a_code_for_as_long_as_that() -> None:
    notice = Mail("login_notice", "ana@example.com", at=NOW)
    assert useful_until(notice, NOW + MINUTE) == NOW + MINUTE + 2 * HOUR
    for kind, lives in (("confirmation", CODE_MS), ("new_device", CODE_MS), ("reset", RESET_MS)):
        coded = replace(notice, kind=cast(Any, kind), code="12345678")
        assert useful_until(coded, NOW + MINUTE) == NOW + lives


# --- the parts --------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """Mails are queued as a worker does it; mailers are started and killed."""

    url: str
    redis: Any
    keys: Any
    office: PostOffice
    loops: dict[str, tuple[MailerLoop, asyncio.Task[None]]] = field(default_factory=dict)

    async def queue(self, *addresses: str, **about: Any) -> None:
        for address in addresses:
            await self.put(Mail(about.pop("kind", "login_notice"), address, **about))

    async def put(self, mail: Mail) -> None:
        sealer = Sealer(self.keys, EDGE, "mail")
        sealed = entries.pack_mail(sealer.envelope, f"0wrk1-{mail.to.partition('@')[0]}", mail)
        await self.redis.xadd(names.MAIL, {"id": sealed.id, "w": text(sealed.wrapped), "x": text(sealed.box)})

    def start(self, name: str, queue: RedisMailQueue | None = None) -> MailerLoop:
        server = Smtp("127.0.0.1", self.office.port, "none")
        loop = MailerLoop(
            queue or mail_queue(self.url, name),
            SmtpMailer(server, "https://login.test", ""),
            Opener(self.keys, EDGE, "mail"),
            EDGE,
        )
        self.loops[name] = loop, asyncio.create_task(loop.run())
        return loop

    async def stop(self, name: str) -> None:
        loop, task = self.loops.pop(name)
        loop.stop()
        await asyncio.wait_for(task, 5)

    async def kill(self, name: str) -> None:
        """As SIGKILL does it: not a word more to Redis, nor to the server."""
        loop, task = self.loops.pop(name)
        queue = cast(Any, loop._queue)
        links = queue._batch._link, queue._reader
        queue._batch = queue._reader = _Dead()
        task.cancel()
        await asyncio.wait([task])
        await asyncio.gather(*(link.close() for link in links))

    async def letters(self) -> Sequence[Letter]:
        found = RedisOperator(Link(self.url, "test-operator"))
        try:
            return await found.letters(None)
        finally:
            await found.close()

    async def retry(self, *letters: Letter) -> None:
        found = RedisOperator(Link(self.url, "test-operator"))
        assert await found.retry([letter.id for letter in letters]) == ["retried"] * len(letters)
        await found.close()

    async def until(self, true: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
        async with asyncio.timeout(seconds):
            while not await true():
                await asyncio.sleep(0.01)

    async def empty(self) -> bool:
        return bool(await self.redis.xlen(names.MAIL) == 0)


class _Dead:
    async def _raise(self, *_: Any, **__: Any) -> Any:
        raise Unavailable("dead")

    command = script = call = pipeline = _raise

    async def close(self) -> None: ...


@asynccontextmanager
async def bench(url: str, folder: Path) -> AsyncIterator[Bench]:
    redis = Redis.from_url(url)
    await redis.xgroup_create(names.MAIL, names.MAIL_GROUP, "0", mkstream=True)
    async with PostOffice.open() as office:
        parts = Bench(url, redis, KeyFiles(folder).seal_keys(Ring.MAIL, private=True), office)
        try:
            yield parts
        finally:
            office.hang_up()
            for name in list(parts.loops):
                await parts.stop(name)
            await redis.aclose()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in tenths of its time."""
    monkeypatch.setattr(mailer, "FIRST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(mailer, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(redis_mail, "MAILER_LIVES_MS", 1500)
    monkeypatch.setattr(redis_mail, "SURE_SECONDS", 0.3)
    monkeypatch.setattr(redis_mail, "BLOCK_MS", 100)


def address(n: int | str) -> str:
    return f"m{n}@example.com"


# --- sending ----------------------------------------------------------------------------------------------------------


async def test_mails_go_in_their_order_past_those_whose_recipients_make_trouble(
    redis_url: str, tmp_path: Path, quick: None
) -> None:
    async with bench(redis_url, tmp_path) as parts:
        parts.office.rules = {"stalls": STALL, "later": "451 come again", "drops": DROP, "never": "rcpt 550 no"}
        await parts.queue("stalls@example.com", "later@example.com", "drops@example.com", "never@example.com")
        good = [address(n) for n in range(30)]
        await parts.queue(*good)
        parts.start("one")
        await parts.office.until(lambda: len(parts.office.taken) == 30)
        order = [int(str(message["To"])[1:].partition("@")[0]) for message in parts.office.taken]
        assert all(abs(place - n) < mailer.AT_ONCE for place, n in enumerate(order))  # ten are under way at a time
        parts.office.rules.clear()
        parts.office.hang_up()
        await parts.until(parts.empty)
        assert set(parts.office.count().values()) == {1}
        assert len(parts.office.taken) == 33
        [letter] = await parts.letters()
        assert (letter.reason, parts.office.tries["never@example.com"]) == ("refused for good: 550 no", 1)


@pytest.mark.parametrize("rule", ["451 come again", "rcpt 450 come again", DROP])
async def test_a_mail_that_is_not_taken_is_tried_again_ever_later_until_it_is(
    redis_url: str, tmp_path: Path, quick: None, rule: str
) -> None:
    async with bench(redis_url, tmp_path) as parts:
        parts.office.rules["m1"] = rule
        began = time.monotonic()
        await parts.queue(address(1))
        parts.start("one")
        await parts.office.until(lambda: parts.office.tries[address(1)] == 6)
        assert time.monotonic() - began >= 0.02 * (1 + 2 + 4 + 8 + 16)
        assert parts.office.taken == []
        parts.office.rules.clear()
        await parts.until(parts.empty)
        assert len(parts.office.taken) == 1
        assert await parts.letters() == []


async def test_a_server_that_is_away_for_a_while_costs_no_mail(redis_url: str, tmp_path: Path, quick: None) -> None:
    async with bench(redis_url, tmp_path) as parts:
        parts.office.stop()
        await parts.queue(*(address(n) for n in range(25)))
        parts.start("one")

        async def all_tried() -> bool:
            held = await parts.redis.xpending_range(names.MAIL, names.MAIL_GROUP, "-", "+", 100)
            return len(held) == 25 and all(each["times_delivered"] > 1 for each in held)

        await parts.until(all_tried)
        await parts.office.start()
        await parts.until(parts.empty)
        assert sorted(parts.office.count().values()) == [1] * 25


async def test_new_mails_are_sent_while_many_others_are_tried_again(
    redis_url: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailer, "LONGEST_RETRY_SECONDS", 0.02)  # so that there is always one whose time has come
    async with bench(redis_url, tmp_path) as parts:
        parts.office.rules["bad"] = "451 come again"
        await parts.queue(*(f"bad{n}@example.com" for n in range(200)))
        parts.start("one")
        await parts.office.until(lambda: len(parts.office.tries) == 200)
        await parts.queue(*(address(n) for n in range(20)))
        await parts.office.until(lambda: len(parts.office.taken) == 20, 10)
        assert await parts.redis.xlen(names.MAIL) >= 200


async def test_a_mail_whose_code_has_expired_is_not_sent_nor_is_it_when_it_is_retried(
    redis_url: str, tmp_path: Path, quick: None
) -> None:
    async with bench(redis_url, tmp_path) as parts:
        now = int(time.time() * 1000)
        coded = Mail("confirmation", address(1), code="12345678", at=now - CODE_MS)
        await parts.put(coded)
        await parts.put(replace(coded, to=address(2), at=now - CODE_MS + MINUTE))
        await parts.put(Mail("login_notice", address(3), at=now - 2 * HOUR))  # it was queued just now
        parts.start("one")
        await parts.until(parts.empty)
        assert {str(message["To"]) for message in parts.office.taken} == {address(2), address(3)}
        [letter] = await parts.letters()
        assert (letter.reason, letter.rid, letter.retryable) == ("not sent: its code had expired", "0wrk1-m1", True)
        await parts.retry(letter)
        await parts.until(parts.empty)
        [again] = await parts.letters()
        assert again.reason == letter.reason
        assert parts.office.tries[address(1)] == 0


@pytest.mark.parametrize("code", ["12345678", ""])
async def test_a_mail_is_given_up_when_its_next_try_would_come_too_late(
    redis_url: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(mailer, "FIRST_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(mailer, "CODE_MS", 3 * SECOND)
    monkeypatch.setattr(mailer, "GIVE_UP_MS", 3 * SECOND)
    async with bench(redis_url, tmp_path) as parts:
        parts.office.rules["m1"] = "451 come again"
        parts.start("one")
        await parts.put(Mail("confirmation" if code else "login_notice", address(1), code=code))
        await parts.until(parts.empty)
        [letter] = await parts.letters()
        tries = parts.office.tries[address(1)]
        assert letter.reason == f"not sent in {tries} tries: 451 come again"
        assert 3 <= tries <= 5  # 0.1 × (1 + 2 + 4 + 8 + 16) are more than three seconds
        parts.office.rules.clear()
        monkeypatch.undo()
        await parts.retry(letter)
        await parts.until(parts.empty)
        assert [message["Message-ID"] for message in parts.office.taken] == ["<0wrk1-m1@login.test>"]


async def test_a_mail_that_cannot_be_written_is_one_dead_letter_and_the_others_go(
    redis_url: str, tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(redis_url, tmp_path) as parts:
        await parts.queue("m1\r\nBcc: all@example.com", address(2))
        await parts.redis.xadd(names.MAIL, {"what": "no mail"})
        await parts.put(Mail("decoy", "nobody"))
        parts.start("one")
        await parts.until(parts.empty)
        assert [message["To"] for message in parts.office.taken] == [address(2)]
        reasons = {letter.reason: letter.retryable for letter in await parts.letters()}
        assert reasons == {"it cannot be written or sent: the mailer's log says why": True, "not a mail": False}


# --- mailers that stop and die ----------------------------------------------------------------------------------------


async def test_a_mailer_that_is_told_to_stop_ends_what_it_sends_and_leaves_the_rest_to_the_next(
    redis_url: str, tmp_path: Path, quick: None
) -> None:
    async with bench(redis_url, tmp_path) as parts:
        parts.office.rules = {"m1": "451 come again", "m2": STALL}
        await parts.queue(address(1), address(2))
        parts.start("one")
        await parts.office.until(lambda: parts.office.tries[address(1)] >= 3 and parts.office.tries[address(2)] == 1)
        stopping = asyncio.create_task(parts.stop("one"))
        await asyncio.sleep(0)
        parts.office.rules.clear()
        parts.office.hang_up()  # now that is a failure too
        await stopping
        assert await parts.redis.zrange(names.MAILERS, 0, -1) == []
        assert parts.office.taken == []
        parts.start("two")
        await parts.until(parts.empty)
        assert sorted(parts.office.count().values()) == [1, 1]
        consumers = await parts.redis.xinfo_consumers(names.MAIL, names.MAIL_GROUP)
        assert [each["name"] for each in consumers if each["name"] != b"one"] == [b"two"]


async def test_what_a_mailer_that_died_held_is_sent_by_another_once_and_its_tries_are_not_forgotten(
    redis_url: str, tmp_path: Path, quick: None
) -> None:
    async with bench(redis_url, tmp_path) as parts:
        parts.office.rules["m"] = "451 come again"
        addresses = [address(n) for n in range(12)]
        await parts.queue(*addresses)
        parts.start("one")
        await parts.office.until(lambda: all(parts.office.tries[each] >= 3 for each in addresses))
        await parts.kill("one")
        parts.start("two")
        before = dict(parts.office.tries)
        await parts.office.until(lambda: all(parts.office.tries[each] > before[each] for each in addresses))
        held = await parts.redis.xpending_range(names.MAIL, names.MAIL_GROUP, "-", "+", 100)
        assert {each["consumer"] for each in held} == {b"two"}
        assert all(each["times_delivered"] > 3 for each in held)
        parts.office.rules.clear()
        await parts.until(parts.empty)
        assert sorted(parts.office.count().values()) == [1] * 12

        async def only_two() -> bool:
            found = await parts.redis.xinfo_consumers(names.MAIL, names.MAIL_GROUP)
            return [each["name"] for each in found] == [b"two"]

        await parts.until(only_two)


async def test_mailers_side_by_side_send_each_mail_once_and_take_nothing_from_one_that_lives(
    redis_url: str, tmp_path: Path, quick: None
) -> None:
    async with bench(redis_url, tmp_path) as parts:
        parts.office.rules = {"m1": "451 come again", "m2": STALL}
        for name in ("one", "two", "three"):
            parts.start(name)
        await parts.queue(*(address(n) for n in range(60)))
        await parts.office.until(lambda: len(parts.office.taken) == 60 - 22)
        # for longer than a silent one would live
        async with asyncio.timeout(10):
            while parts.office.tries[address(1)] < 8:
                await asyncio.sleep(0.05)
        assert all(parts.office.tries[address(n)] == 1 for n in (2, *range(20, 30)))
        parts.office.rules.clear()
        parts.office.hang_up()
        await parts.until(parts.empty)
        assert sorted(parts.office.count().values()) == [1] * 60


async def test_a_mailer_that_counted_as_dead_sends_nothing_of_what_others_have_taken_over(
    redis_url: str, tmp_path: Path, quick: None
) -> None:
    one, two = mail_queue(redis_url, "one"), mail_queue(redis_url, "two")
    async with bench(redis_url, tmp_path) as parts:
        await one.beat()
        await parts.queue(address(1), address(2))
        mine = await one.take(2)
        for each in mine:
            one.put_off(each.token, 0)
        # it is silent now
        taken: list[MailInHand] = []

        async def taken_over() -> bool:
            await two.beat()
            taken.extend(await two.take(2))
            return len(taken) == 2

        await parts.until(taken_over)
        assert [(each.tries, each.mail) for each in taken] == [(2, each.mail) for each in mine]
        assert await one.take(2) == []  # even before it learns of it
        await one.beat()
        assert await one.take(2) == []
        await two.done(taken[0].token)
        await one.done(taken[1].token)  # it had been sending that all the while: what is sent is sent
        assert await parts.empty()
        await one.close()
        await two.close()


class Lossy(Link):
    """Loses an answer after the command was carried out."""

    lose = False

    async def pipeline(self, commands: Sequence[Command], *, seconds: float = 2.0) -> list[Any]:
        answers = await super().pipeline(commands, seconds=seconds)
        if self.lose and any(answers):
            self.lose = False
            raise Unavailable("the answer was lost")
        return answers


async def test_mails_whose_handing_out_was_lost_on_the_way_are_sent_all_the_same(
    redis_url: str, tmp_path: Path, quick: None
) -> None:
    async with bench(redis_url, tmp_path) as parts:
        link, reader = Lossy(redis_url, "test"), Lossy(redis_url, "test-take")
        await parts.queue(*(address(n) for n in range(15)))
        reader.lose = True
        parts.office.rules["m1"] = "451 come again"
        parts.start("one", RedisMailQueue(Batch(link), reader, "one"))
        await parts.office.until(lambda: parts.office.tries[address(1)] >= 2)
        link.lose = True  # whatever is asked next: to begin again, to end, to beat
        await parts.office.until(lambda: parts.office.tries[address(1)] >= 5)
        assert not link.lose
        parts.office.rules.clear()
        await parts.until(parts.empty)
        assert sorted(parts.office.count().values()) == [1] * 15


class Away(Link):
    """A Redis that does not answer while it is `away`."""

    away = False
    asked = 0  # meanwhile

    async def pipeline(self, commands: Sequence[Command], *, seconds: float = 2.0) -> list[Any]:
        if self.away:
            self.asked += 1
            await asyncio.sleep(0)
            raise Unavailable("away")
        return await super().pipeline(commands, seconds=seconds)


async def test_a_mail_that_was_sent_while_redis_went_away_is_not_sent_again_when_that_is_back(
    redis_url: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailer, "BACK_OFF_SECONDS", 0.02)
    async with bench(redis_url, tmp_path) as parts:
        link, reader = Away(redis_url, "test"), Away(redis_url, "test-take")
        send = SmtpMailer.send

        async def send_and_lose_redis(self: SmtpMailer, mail: Mail, message_id: str) -> None:
            await send(self, mail, message_id)
            link.away = reader.away = True

        monkeypatch.setattr(SmtpMailer, "send", send_and_lose_redis)
        await parts.queue(*(address(n) for n in range(5)))
        parts.start("one", RedisMailQueue(Batch(link), reader, "one"))
        async with asyncio.timeout(20):
            while link.asked < 60 or len(parts.office.taken) < 5:  # for longer than a silent mailer lives
                await asyncio.sleep(0.02)
        monkeypatch.setattr(SmtpMailer, "send", send)
        link.away = reader.away = False
        await parts.queue(address(6))
        await parts.until(parts.empty)
        assert sorted(parts.office.count().values()) == [1] * 6


# --- who is told ------------------------------------------------------------------------------------------------------


async def told(parts: Bench, node: str) -> list[OpenedNotice]:
    found = []
    for _, fields in await parts.redis.xrange(names.REPLIES + node):
        reply = to_reply(to_map([item for pair in fields.items() for item in pair]))
        assert isinstance(reply, Signed)
        opened = entries.open_signed(EDGE, reply)
        assert isinstance(opened, OpenedNotice)
        found.append(opened)
    return found


async def test_the_connection_that_caused_a_mail_is_told_how_it_goes_and_nobody_else(
    redis_url: str, tmp_path: Path, quick: None
) -> None:
    async with bench(redis_url, tmp_path) as parts:
        await parts.redis.set(names.NODES + "0-node", "1", px=NODE_LIVES_MS)
        tell = {"tell": ("0-node", "connection")}
        await parts.put(Mail("new_device", address(1), code="12345678", **cast(Any, tell)))
        await parts.put(Mail("password_changed", address(2), **cast(Any, tell)))
        await parts.put(Mail("login_notice", "never@example.com", **cast(Any, tell)))
        await parts.put(Mail("decoy", address(4), **cast(Any, tell)))
        await parts.put(Mail("confirmation", address(5), code="12345678"))
        await parts.put(Mail("login_notice", address(6), tell=("0-gone", "connection")))
        parts.office.rules = {"m2": "451 come again", "never": "rcpt 550 no"}
        parts.start("one")
        await parts.office.until(lambda: parts.office.tries[address(2)] >= 4)
        parts.office.rules.clear()
        await parts.until(parts.empty)

        async def all_told() -> bool:
            return len(await told(parts, "0-node")) == 4

        await parts.until(all_told)
        found = await told(parts, "0-node")
        assert {(each.event, each.only, each.user_id, each.close) for each in found} == {
            ("mail_status", ("0-node", "connection"), "", False)
        }
        said = sorted(each.data.decode() for each in found)
        assert said == [
            '{"kind":"login_notice","status":"failed"}',
            '{"kind":"new_device","status":"sent"}',
            '{"kind":"password_changed","status":"retrying"}',  # once, however often
            '{"kind":"password_changed","status":"sent"}',
        ]
        assert await parts.redis.exists(names.REPLIES + "0-gone") == 0
        assert await parts.redis.pttl(names.REPLIES + "0-node") > 0

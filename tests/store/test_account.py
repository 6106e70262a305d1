"""What changes an account: each field only while it is as it was read, and what is counted with the version."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adapters import names
from adapters.redis_records import COUNTED, Translated, account_of, challenge_of
from app.records import (
    Account,
    Attempt,
    Challenge,
    ChangeAccount,
    CreateAccount,
    EndSession,
    Enrolling,
    ForgetDevice,
    KeepSession,
    Needs,
    NewestReset,
    PutChallenge,
    StartSession,
    TrustDevice,
    UpgradePassword,
    Write,
)
from app.rules import DEVICES_PER_ACCOUNT
from tests.making import EMAIL, account, device
from tests.store.bench import Bench, bench, kept, new_challenge, outcome, settlement

FULL = account(
    totp="wrk1.sealed-seed",
    totp_step=57_000_000,
    recovery="wrk1:one wrk1:two",
    enrolling=Enrolling(1_700_000_600_000, "wrk1.sealed").text,
    reset="0wrk1-reset",
    floor=2,
    attempt=Attempt("0wrk1-attempt", "0wrk1-challenge", 42, 1_700_000_180_000, "0-node", "connection").text,
    locale="pt-BR",
    terms="2024-01",
)
# Every field that changes, with another value and with none where it may have none.
CHANGES: dict[str, tuple[Any, ...]] = {
    "password": ("pep1:another",),
    "status": ("disabled",),
    "locale": ("en", ""),
    "terms": ("2025-01", ""),
    "totp": ("wrk1.other", ""),
    "totp_step": (57_000_001, 0),
    "recovery": ("wrk1:two", ""),
    "enrolling": ("1 other", ""),
    "reset": ("0wrk1-newer", ""),
    "attempt": ("a b 10 1 n c", ""),
    "floor": (3, 0),
}
USER = names.USERS + FULL.id


async def put(parts: Bench, has: Account) -> Account:
    await parts.made(CreateAccount(has, None, device()))
    return has


async def found(parts: Bench) -> Account:
    facts = await parts.check(Needs(email=EMAIL), rid=f"look-{id(object())}")
    assert facts.account is not None
    return facts.account


def test_the_tables_here_know_every_field_of_an_account() -> None:
    changing = {each.name for each in fields(Account)} - {"id", "email", "version", "created"}
    assert set(CHANGES) == changing
    assert all(getattr(FULL, name) for name in changing), "none is at its default"
    assert changing >= COUNTED


# --- what is written is what is read ----------------------------------------------------------------------------------

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_numbers = st.integers(0, 2**53)
_accounts = st.builds(
    Account,
    id=st.just("0wrk1-user"),
    email=_texts.filter(bool),
    password=_texts.filter(bool),
    version=st.integers(1, 2**52),
    created=_numbers,
    status=st.sampled_from(["active", "disabled"]),
    locale=_texts,
    terms=_texts,
    totp=_texts,
    totp_step=_numbers,
    recovery=_texts,
    enrolling=_texts,
    reset=_texts,
    attempt=_texts,
    floor=_numbers,
)
_challenges = st.builds(
    Challenge,
    id=st.just("0wrk1-challenge"),
    kind=st.sampled_from(["registration", "device", "second_factor", "reset"]),
    email=_texts.filter(bool),
    expires=_numbers,
    code_mac=_texts,
    code_expires=_numbers,
    user_id=_texts,
    bound=_texts,
    password=_texts,
    locale=_texts,
    terms=_texts,
    device_ref=_texts,
    device_name=_texts,
    decided=_texts,
    noticed=st.booleans(),
    version=_numbers,
)


def written(*writes: Write) -> dict[str, dict[str, str]]:
    """The hashes that these writes' HSETs come to, by key."""
    translated = Translated()
    hashes: dict[str, dict[str, str]] = {}
    for write in writes:
        translated.add(write)
    for command, key, *rest in translated.commands:
        if command == "HSET":
            texts = [str(each) for each in rest]
            hashes.setdefault(key, {}).update(zip(texts[::2], texts[1::2], strict=True))
    return hashes


@given(_accounts)
def test_an_account_that_is_written_and_read_is_the_same(has: Account) -> None:
    hashes = written(CreateAccount(has, None, device()))
    assert account_of(has.id, hashes[names.USERS + has.id]) == has


@given(_accounts, _accounts)
def test_an_account_that_is_changed_is_what_it_was_changed_to(old: Account, other: Account) -> None:
    new = replace(other, email=old.email, version=old.version, created=old.created)
    hashes = written(CreateAccount(old, None, device()), ChangeAccount(old, new))
    counted = any(getattr(old, name) != getattr(new, name) for name in COUNTED)
    assert account_of(old.id, hashes[names.USERS + old.id]) == replace(new, version=old.version + counted)


@given(_challenges)
def test_a_challenge_that_is_written_and_read_is_the_same(has: Challenge) -> None:
    assert challenge_of(has.id, written(PutChallenge(has))[names.CHALLENGES + has.id]) == has


ON_A_SERVER = settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # each example takes a server's time
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@ON_A_SERVER
@given(old=_accounts, new=_accounts, waits=_challenges)
def test_the_server_gives_back_what_it_was_given(redis_url: str, old: Account, new: Account, waits: Challenge) -> None:
    changed = replace(new, email=old.email, version=old.version, created=old.created)
    later = replace(waits, email=old.email, expires=2**43 - 1)  # far enough, and a time that Redis takes

    async def play() -> None:
        async with bench(redis_url) as parts:
            await parts.redis.flushdb()
            await put(parts, old)
            await parts.made(PutChallenge(later))
            facts = await parts.check(Needs(challenge_id=later.id), rid="before")
            assert (facts.account, facts.challenge) == (old, later)
            await parts.made(ChangeAccount(old, changed))
            facts = await parts.check(Needs(email=old.email), rid="after")
            counted = any(getattr(old, name) != getattr(changed, name) for name in COUNTED)
            assert facts.account == replace(changed, version=old.version + counted)

    asyncio.run(play())


async def test_an_account_of_an_earlier_version_is_read_and_changed(redis_url: str) -> None:
    """It has none of the fields that came later, and keeps what it does not know."""
    stored = {
        "email": EMAIL,
        "password": "pep1:record",
        "version": "7",
        "created": "1700000000000",
        "status": "active",
        "locale": "",
        "terms": "",
        "unknown": "kept",
    }
    async with bench(redis_url) as parts:
        await parts.redis.hset(USER, mapping=stored)
        await parts.redis.set(names.EMAILS + EMAIL, FULL.id)
        old = await found(parts)
        assert old == account(version=7, created=1_700_000_000_000)
        assert not old.has2fa
        new = replace(FULL, version=7, created=old.created)
        await parts.made(ChangeAccount(old, new))
        assert await found(parts) == replace(new, version=8)
        await parts.made(TrustDevice(await found(parts), device(ref="0wrk1-new")))
        assert await parts.redis.hget(USER, "unknown") == b"kept"


# --- each field's condition -------------------------------------------------------------------------------------------

EVERY_CHANGE = [pytest.param(name, value, id=f"{name} {value!r}") for name, all_ in CHANGES.items() for value in all_]


@pytest.mark.parametrize(("name", "value"), EVERY_CHANGE)
async def test_a_field_is_changed_alone_and_counts_where_others_decide_by_it(
    redis_url: str, name: str, value: Any
) -> None:
    async with bench(redis_url) as parts:
        old = await put(parts, FULL)
        await parts.made(ChangeAccount(old, replace(old, **{name: value})))
        counted = name in ("password", "status", "totp")
        assert await found(parts) == replace(old, **{name: value}, version=old.version + counted)


@pytest.mark.parametrize(("name", "value"), EVERY_CHANGE)
async def test_a_field_that_is_not_as_it_was_read_is_not_changed(redis_url: str, name: str, value: Any) -> None:
    async with bench(redis_url) as parts:
        old = await put(parts, FULL)
        other = {"status": "disabled", "totp_step": "57000099", "floor": "99"}.get(name, "somebody else's")
        await parts.redis.hset(USER, name, other)
        before = await parts.snapshot()
        others: tuple[Write, ...] = (PutChallenge(await new_challenge(parts, id="0wrk1-other")),)
        assert await parts.settle(*others, ChangeAccount(old, replace(old, **{name: value}))) == "conflict"
        assert await parts.snapshot() == before


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in ("status", "password")])
async def test_a_field_that_was_empty_is_changed_only_while_it_is(redis_url: str, name: str) -> None:
    async with bench(redis_url) as parts:
        empty = await put(parts, account())
        value = CHANGES[name][0]
        await parts.redis.hset(USER, name, "1")
        change = ChangeAccount(empty, replace(empty, **{name: value}))
        assert await parts.settle(change) == "conflict"
        await parts.redis.hset(USER, name, "")  # as after a change back
        assert await parts.settle(change) == "settled"


@pytest.mark.parametrize(("name", "value"), EVERY_CHANGE)
async def test_a_field_that_others_decide_by_is_changed_only_while_the_version_is_as_it_was_read(
    redis_url: str, name: str, value: Any
) -> None:
    async with bench(redis_url) as parts:
        old = await put(parts, FULL)
        await parts.redis.hincrby(USER, "version", 1)
        state = await parts.settle(ChangeAccount(old, replace(old, **{name: value})))
        assert state == ("conflict" if name in ("password", "status", "totp") else "settled")


async def test_nothing_is_changed_by_a_change_to_the_same(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        old = await put(parts, FULL)
        before = await parts.redis.dump(USER)
        await parts.made(ChangeAccount(old, old))
        assert await parts.redis.dump(USER) == before


@pytest.mark.parametrize("name", CHANGES)
async def test_an_account_that_has_gone_does_not_come_back_by_a_change(redis_url: str, name: str) -> None:
    async with bench(redis_url) as parts:
        old = account()  # of which most is empty, as is everything of what is not there
        assert await parts.settle(ChangeAccount(old, replace(old, **{name: CHANGES[name][0]}))) == "conflict"
        assert not await parts.redis.exists(USER)


# --- races ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
async def test_of_two_changes_of_one_field_that_race_exactly_one_is_made(redis_url: str, name: str) -> None:
    async with bench(redis_url) as parts:
        old = await put(parts, FULL)
        value = CHANGES[name][-1]
        changes = [ChangeAccount(old, replace(old, **{name: value})) for _ in range(2)]
        states = await asyncio.gather(*map(parts.settle, changes))
        assert sorted(states) == ["conflict", "settled"]
        assert getattr(await found(parts), name) == value


async def test_of_fifty_who_use_one_recovery_code_one_does(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        old = await put(parts, FULL)
        used = replace(old, recovery="wrk1:two")
        states = await asyncio.gather(*(parts.settle(ChangeAccount(old, used)) for _ in range(50)))
        assert sorted(states) == ["conflict"] * 49 + ["settled"]


async def test_of_fifty_who_use_one_code_of_the_second_factor_one_does(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        old = await put(parts, FULL)
        used = replace(old, totp_step=old.totp_step + 1)
        states = await asyncio.gather(*(parts.settle(ChangeAccount(old, used)) for _ in range(50)))
        assert sorted(states) == ["conflict"] * 49 + ["settled"]


async def test_of_many_who_ask_for_a_reset_at_once_nobody_has_to_decide_again(redis_url: str) -> None:
    """An address without an account never would: a conflict that shows is an answer to who asks which addresses do."""
    async with bench(redis_url) as parts:
        old = await put(parts, account())
        asked = [f"0wrk1-reset-{n}" for n in range(20)]
        states = await asyncio.gather(*(parts.settle(NewestReset(old.id, reset)) for reset in asked))
        assert set(states) == {"settled"}
        assert (await found(parts)).reset in asked


async def test_changes_of_different_fields_do_not_disturb_each_other_unless_they_count(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        old = await put(parts, FULL)
        assert await parts.settle(ChangeAccount(old, replace(old, attempt=""))) == "settled"
        assert await parts.settle(ChangeAccount(old, replace(old, reset=""))) == "settled"
        assert await parts.settle(ChangeAccount(old, replace(old, totp="", totp_step=0, recovery=""))) == "settled"
        assert await parts.settle(ChangeAccount(old, replace(old, password="pep1:new"))) == "conflict"
        assert await found(parts) == replace(
            old, attempt="", reset="", totp="", totp_step=0, recovery="", version=old.version + 1
        )


async def test_a_password_that_was_made_anew_meanwhile_is_not_what_was_read(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        old = await put(parts, account())
        await parts.made(UpgradePassword(old.id, old.password, "pep1:same, dearer"))
        assert await parts.settle(ChangeAccount(old, replace(old, password="pep1:new"))) == "conflict"
        fresh = await found(parts)
        assert fresh == replace(old, password="pep1:same, dearer"), "which does not count"
        await parts.made(ChangeAccount(fresh, replace(fresh, password="pep1:new")))
        await parts.made(UpgradePassword(old.id, "pep1:same, dearer", "pep1:older"))
        assert (await found(parts)).password == "pep1:new"


async def test_a_session_is_not_started_on_a_password_that_has_been_changed(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        await parts.made(ChangeAccount(made.account, replace(made.account, password="pep1:new")))
        late = replace(made.session, id="0wrk1-late")
        assert await parts.settle(StartSession(late, made.account, None)) == "conflict"
        assert not await parts.redis.exists(names.SESSIONS + late.id)


# --- devices ----------------------------------------------------------------------------------------------------------


async def test_a_device_is_trusted_and_forgotten_and_both_count(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        has = await put(parts, account())
        new = device(ref="0wrk1-new", mac="wrk1:new", name="Zoës „Gerät“ 📱", seen=5)
        await parts.made(TrustDevice(has, new))
        facts = await parts.check(Needs(email=EMAIL, devices=True), rid="trusted")
        assert set(facts.devices) == {device(), new}
        assert facts.account == replace(has, version=has.version + 1)
        await parts.made(ForgetDevice(facts.account, device().ref))
        facts = await parts.check(Needs(email=EMAIL, devices=True), rid="forgotten")
        assert facts.devices == (new,)
        assert facts.account == replace(has, version=has.version + 2)


async def test_one_comes_and_others_make_room_for_it_in_one_step_that_counts_once(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        has = await put(parts, account())
        await parts.made(TrustDevice(has, device(ref="second")))
        has = replace(has, version=has.version + 1)
        started = TrustDevice(has, device(ref="third"))
        room = (ForgetDevice(has, device().ref), ForgetDevice(has, "second"))
        await parts.made(started, *room, ChangeAccount(has, replace(has, attempt="a b 10 1 n c")))
        facts = await parts.check(Needs(email=EMAIL, devices=True), rid="look")
        assert [each.ref for each in facts.devices] == ["third"]
        assert facts.account == replace(has, version=has.version + 1, attempt="a b 10 1 n c")


@pytest.mark.parametrize("change", ["version", "gone"])
@pytest.mark.parametrize("kind", [TrustDevice, ForgetDevice])
async def test_devices_of_an_account_that_is_not_as_it_was_read_stay_as_they_are(
    redis_url: str, kind: type[TrustDevice | ForgetDevice], change: str
) -> None:
    async with bench(redis_url) as parts:
        has = await put(parts, account())
        write = TrustDevice(has, device(ref="new")) if kind is TrustDevice else ForgetDevice(has, device().ref)
        await (parts.redis.delete(USER) if change == "gone" else parts.redis.hincrby(USER, "version", 1))
        before = await parts.snapshot()
        assert await parts.settle(write) == "conflict"
        assert await parts.snapshot() == before


async def test_of_many_devices_that_are_trusted_at_once_one_is_and_the_others_decide_again(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        has = await put(parts, account())
        states = await asyncio.gather(
            *(parts.settle(TrustDevice(has, device(ref=f"0wrk1-{n}"))) for n in range(DEVICES_PER_ACCOUNT))
        )
        assert sorted(states) == ["conflict"] * (DEVICES_PER_ACCOUNT - 1) + ["settled"]
        assert await parts.redis.hlen(USER + names.DEVICES_OF) == 2


async def test_a_device_that_was_forgotten_meanwhile_does_not_come_back_with_a_session(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        await parts.made(ForgetDevice(made.account, made.device.ref))
        late = replace(made.session, id="0wrk1-late", device_ref=made.device.ref)
        assert await parts.settle(StartSession(late, made.account, made.device)) == "conflict"
        assert not await parts.redis.exists(USER + names.DEVICES_OF)


async def test_a_change_that_is_late_or_done_already_changes_nothing(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        old = await put(parts, FULL)
        plan = settlement("rid", outcome(ChangeAccount(old, replace(old, password="pep1:new", totp=""))))
        assert await parts.keep("late", await parts.now() - 1, plan) == "expired"
        assert await found(parts) == old
        assert await parts.keep("rid", await parts.soon(), plan) == "settled"
        assert await parts.keep("rid", await parts.soon(), plan) == "done"
        assert await found(parts) == replace(old, password="pep1:new", totp="", version=old.version + 1)


@pytest.mark.parametrize("end", ["ended", "gone"])
async def test_what_a_session_asked_for_does_not_follow_its_end(redis_url: str, end: str) -> None:
    async with bench(redis_url) as parts:
        made = await kept(parts)
        has = await found(parts)
        change = ChangeAccount(has, replace(has, locale="en"))
        await parts.made(change, KeepSession(made.session))
        back = ChangeAccount(replace(has, locale="en"), has)
        if end == "ended":
            await parts.made(EndSession(made.session, "revoked"))
        else:
            await parts.redis.delete(names.SESSIONS + made.session.id)
        assert await parts.settle(back, KeepSession(made.session)) == "conflict"
        assert (await found(parts)).locale == "en"

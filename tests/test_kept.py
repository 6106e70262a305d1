"""What the store keeps of a whole account, read key by key: nothing that a client knows is among it; and who asks at
once.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import unquote

import pytest
from redis import Redis

from adapters import names
from app import totp
from app.client import Client
from tests.accounts import ask_login, enrolled, reset_code, sign_in
from tests.deployment import PASSWORD, Deployment, event_of, new_address
from tests.test_again import new_key


def everything(redis: Any) -> dict[bytes, bytes]:
    """The values of every key, of whatever type, as one text each."""
    read: dict[bytes, Callable[[bytes], list[bytes | None]]] = {
        b"string": lambda key: [redis.get(key)],
        b"hash": lambda key: [part for pair in redis.hgetall(key).items() for part in pair],
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"none": lambda _: [],  # it has expired since
        b"stream": lambda key: [part for _, found in redis.xrange(key) for pair in found.items() for part in pair],
    }
    texts = {}
    for key in redis.scan_iter(count=1000):
        parts = read[redis.type(key)](key)
        texts[key] = b"\n".join(part for part in parts if part is not None)
    return texts


def spellings(secret: str) -> set[bytes]:
    """As a client has it, and as somebody might have meant to hide it."""
    plain = secret.encode()
    found = {plain, plain.lower(), plain.hex().encode(), secret.replace("-", "").encode()}
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + plain)[4 if shift else 0 :].rstrip(b"=")[:-1]
        found |= {whole, whole.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


async def test_of_a_full_account_every_secret_is_kept_hashed_or_sealed(guarded: Deployment) -> None:
    """Second factor on and another one begun, recovery codes, devices, sessions, and everything that can wait."""
    async with AsyncExitStack() as stack:
        owner, phone, thief, other = [await stack.enter_async_context(guarded.client(n)) for n in range(4)]
        account = await guarded.sign_up(owner)
        first = await sign_in(owner, account, deviceName="desk", key=new_key())
        app, recovery = await enrolled(owner, account)
        waits = await ask_login(phone, account, deviceName="phone", key=new_key())
        mailed = [await guarded.mailed_code(account.email, 2)]
        asked = await phone.ask("verify_device", challenge=waits.data["challenge"], code=mailed[0])
        assert asked.event == "2fa_required"
        second = await phone.ask("verify_2fa", challenge=asked.data["challenge"], code=await app.code())
        assert second.event == "login_success"
        # what waits: a device and an approval, a second factor, a reset, a registration, and another account's factor
        assert (await ask_login(thief, account, deviceName="new")).event == "new_device_detected"
        mailed.append(await guarded.mailed_code(account.email, 3))
        factor = await ask_login(other, account, deviceToken=account.device_token)
        assert factor.event == "2fa_required"
        await thief.ask("request_password_reset", email=account.email)
        reset = await reset_code(guarded, account.email)
        pending = new_address()
        await thief.ask("register", email=pending, password=PASSWORD + " of another")
        mailed.append(await guarded.mailed_code(pending))
        their = await guarded.sign_up(other)
        await sign_in(other, their)
        begun = await other.ask("enroll_2fa", password=their.password)

        with Redis.from_url(guarded.redis_url) as redis:
            texts = everything(redis)
            of_user = names.USERS + first.data["userId"]
            [user] = [redis.hgetall(of_user)]
            challenges = [redis.hgetall(key) for key in redis.scan_iter(names.CHALLENGES + "*")]
            devices = list(redis.hgetall(of_user + names.DEVICES_OF).values())
            sessions = redis.zcard(of_user + names.SESSIONS_OF)

    # all of it was there, in the form it is kept in
    assert sessions == 2 and len(devices) == 2
    assert {b"totp", b"totp_step", b"recovery", b"reset", b"attempt", b"password"} <= {k for k, v in user.items() if v}
    mine = [found for found in challenges if found[b"email"].decode() in (account.email, pending)]
    assert {found[b"kind"] for found in mine} == {b"registration", b"device", b"second_factor", b"reset"}
    keyed = rb"[a-z0-9]{4}:[A-Za-z0-9_-]{43}"
    assert all(re.fullmatch(keyed, found[b"code_mac"]) for found in mine if found[b"kind"] != b"second_factor")
    assert all(re.fullmatch(keyed, mac) for mac in user[b"recovery"].split()) and len(user[b"recovery"].split()) == 10
    assert all(re.match(rb'\["' + keyed + rb'",', text) for text in devices)
    assert re.match(rb"[a-z0-9]{4}:\$argon2id\$", user[b"password"])
    assert re.fullmatch(rb"[a-z0-9]{4}\.[A-Za-z0-9_-]{64}", user[b"totp"]), "nonce, seed and tag, sealed"

    secrets_ = [PASSWORD, PASSWORD + " of another", account.device_token, their.device_token, *recovery, unquote(reset)]
    secrets_ += [reset.rpartition(".")[2], totp.base32(app.seed), begun.data["secret"]]
    secrets_ += [found.data[name] for found in (first, second) for name in ("accessToken", "refreshToken")]
    secrets_ += [step["data"]["deviceToken"] for step in asked.progress]
    looked_for = {spelling for secret in secrets_ for spelling in spellings(secret)} | {
        app.seed,
        app.seed.hex().encode(),
    }
    assert account.email.encode() in b"".join(texts.values()), "what may be read is found"
    for key, text in texts.items():
        assert not [secret for secret in looked_for if secret in text or secret in key], key
        assert not [code for code in mailed if re.search(rb"(?<!\d)" + code.encode() + rb"(?!\d)", text)], key


# --- at once ----------------------------------------------------------------------------------------------------------


async def test_all_who_ask_again_at_once_for_a_login_go_on_with_its_one_challenge(guarded: Deployment) -> None:
    key = new_key()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(guarded.client(n)) for n in range(7)]
        account = await guarded.sign_up(clients[0])
        await sign_in(clients[0], account)  # so that somebody is asked, and moves with who asks again
        first = await ask_login(clients[1], account, key=key)
        answers = await asyncio.gather(*(ask_login(client, account, key=key) for client in clients[2:]))
        assert [event_of(answer) for answer in answers] == [("new_device_detected", None)] * 5
        assert all(answer.data == first.data for answer in answers)
        code = await guarded.mailed_code(account.email, 2)
        last: Client = clients[-1]
        verified = await last.ask("verify_device", challenge=first.data["challenge"], code=code)
        assert verified.event == "login_success"
        assert len(await guarded.mailed_codes(account.email, 2)) == 2


async def test_asking_for_many_resets_at_once_tells_nothing_of_whether_there_is_an_account(guarded: Deployment) -> None:
    async with guarded.account() as (client, account):
        for address in (account.email, new_address()):
            answers = await asyncio.gather(*(client.ask("request_password_reset", email=address) for _ in range(8)))
            assert {event_of(answer) for answer in answers} == {("password_reset_requested", None)}
            assert all(answer.data == {} for answer in answers)


@pytest.mark.parametrize("step", ["new_device_detected", "2fa_required"])
async def test_a_login_that_waits_does_not_outlive_the_password_that_began_it(guarded: Deployment, step: str) -> None:
    async with guarded.account() as (owner, account), guarded.client(1) as thief:
        await sign_in(owner, account)
        if step == "2fa_required":
            app, _ = await enrolled(owner, account)
            waits = await ask_login(thief, account, deviceToken=account.device_token)
        else:
            waits = await ask_login(thief, account)
        assert waits.event == step
        changed = await owner.ask("change_password", currentPassword=PASSWORD, newPassword="seven brown owls in a boat")
        assert changed.event == "password_changed"
        challenge = waits.data["challenge"]
        if step == "2fa_required":
            late = await thief.ask("verify_2fa", challenge=challenge, code=await app.code())
        else:
            code = await guarded.mailed_code(account.email, 2)
            late = await thief.ask("verify_device", challenge=challenge, code=code)
        assert late.code == "challenge_expired"
        assert len((await owner.ask("sessions")).data["sessions"]) == 1

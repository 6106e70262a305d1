"""Whoever reads all of the store reads no secret of an account, neither as it is nor as something to try guesses on."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from redis import Redis

from tests.accounts import ask_login, detected, enrolled, reset_code, sign_in, user_key
from tests.deployment import PASSWORD, Deployment
from tests.states import person_in


def values(redis: Any) -> Iterator[bytes]:
    """Every key and everything in it."""
    read: dict[bytes, Callable[[bytes], Iterable[bytes]]] = {
        b"string": lambda key: [redis.get(key)],
        b"hash": lambda key: [item for pair in redis.hgetall(key).items() for item in pair],
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"set": lambda key: redis.smembers(key),
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"stream": lambda key: [x for _, fields in redis.xrange(key) for pair in fields.items() for x in pair],
    }
    for key in redis.scan_iter("*"):
        yield key
        yield from read[redis.type(key)](key)


def forms(secret: bytes) -> Iterator[bytes]:
    """As it is, encoded, and as what anybody could compute from a guess."""
    for made in (secret, *(hashlib.new(name, secret).digest() for name in ("md5", "sha1", "sha256", "sha512"))):
        yield made
        yield made.hex().encode()
        for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.b32encode):
            yield encode(made).rstrip(b"=")


def written(secret: str) -> Iterator[bytes]:
    """As it is shown, and as a person may type it."""
    for text in {secret, secret.lower(), secret.replace("-", ""), secret.replace("-", "").lower()}:
        yield from forms(text.encode())


async def test_no_secret_of_a_full_account_can_be_read_in_the_store(redis_url: str, tmp_path: Path) -> None:
    settings = {"FIN_DEVICE_VERIFICATION": "on"}
    with Deployment.start(tmp_path, redis_url, gateways=2, settings=settings) as running:
        async with person_in("trust", running) as person, running.client() as phone, running.client(1) as other:
            key = "a-key-of-a-request-sent-again"
            app, recovery = await enrolled(person.client, person.account)
            used = await app.code()
            waits = await ask_login(other, person.account, deviceToken=person.device_token, key=key)
            await other.ask("verify_2fa", challenge=waits.data["challenge"], code=used, key=key)
            await person.client.ask("disable_2fa", password=PASSWORD, recoveryCode=recovery[0])
            login = await sign_in(other, person.account)
            again, codes = await enrolled(person.client, person.account)
            await detected(phone, person.account)
            mailed = await running.mailed_codes(person.email, 2)
            await phone.ask("request_password_reset", email=person.email)
            reset = (await reset_code(running, person.email)).partition(".")[2]
            await phone.ask("register", email=f"a{person.email}", password=PASSWORD)
            mailed += await running.mailed_codes(f"a{person.email}", 1)

        tokens = [person.access, person.refresh, person.device_token or "", login.data["accessToken"]]
        secrets = [PASSWORD, reset, key, *recovery, *codes, *tokens, login.data["refreshToken"]]
        with Redis.from_url(redis_url) as redis:
            kept = b"\n".join(values(redis))
            account: Any = redis.hgetall(user_key(redis, person.email))

    assert person.email.encode() in kept, "what is no secret is found"
    for secret in secrets:
        assert len(secret) >= 15
        assert not [form for form in written(secret) if form in kept], secret
    for seed in (app.seed, again.seed):
        assert not [form for form in forms(seed) if form in kept]
    for code in mailed:
        assert not re.search(rb"(?<!\d)" + code.encode() + rb"(?!\d)", kept)
        assert not [form for form in list(forms(code.encode()))[1:] if form in kept], code
    assert account[b"password"].partition(b":")[2].startswith(b"$argon2id$")
    assert account[b"totp"] and len(account[b"recovery"].split()) == 10

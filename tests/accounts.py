"""What tests do with an account, step by step, over either transport."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from typing import Any
from urllib.parse import unquote

from redis import Redis

from adapters import names
from app import totp
from app.client import Answer, Client
from tests.deployment import Account, Deployment, RestClient

NEW_PASSWORD = "seven brown owls in a boat"
SAFE_SECONDS = 5  # for a code to reach the service on a slow machine
Asking = Client | RestClient


class Authenticator:
    """An app with the seed; no code is shown twice."""

    def __init__(self, secret: str) -> None:
        self.seed = base64.b32decode(secret)
        self._last = 0

    async def code(self) -> str:
        """The next one, once the service takes it: of the step before this one, of this or of the next."""
        self._last = max(self._last + 1, int(time.time() + SAFE_SECONDS) // totp.STEP_SECONDS - 1)
        while self._last > int(time.time()) // totp.STEP_SECONDS + 1:
            await asyncio.sleep(0.1)
        return totp.code_at(self.seed, self._last)


async def enrolled(client: Asking, account: Account) -> tuple[Authenticator, list[str]]:
    """A second factor, on from here, and its recovery codes."""
    enrollment = await client.ask("enroll_2fa", password=account.password)
    assert enrollment.event == "2fa_enrollment", enrollment.data
    app = Authenticator(enrollment.data["secret"])
    enabled = await client.ask("confirm_2fa", code=await app.code())
    assert enabled.event == "2fa_enabled", enabled.data
    return app, enabled.data["recoveryCodes"]


async def ask_login(client: Asking, account: Account, **more: Any) -> Answer:
    return await client.ask("login", email=account.email, password=account.password, **more)


async def sign_in(client: Asking, account: Account, **more: Any) -> Answer:
    """On the trusted device."""
    answer = await ask_login(client, account, deviceToken=account.device_token, **more)
    assert answer.event == "login_success", answer.data
    return answer


async def detected(client: Asking, account: Account, **more: Any) -> dict[str, Any]:
    """A login on a new device, as far as it gets."""
    answer = await ask_login(client, account, **more)
    assert answer.event == "new_device_detected", answer.data
    data: dict[str, Any] = answer.data
    return data


async def challenged(client: Asking, account: Account) -> str:
    """The challenge of a login on the trusted device, which waits for its second factor."""
    answer = await ask_login(client, account, deviceToken=account.device_token)
    assert answer.event == "2fa_required", answer.data
    challenge: str = answer.data["challenge"]
    return challenge


async def pushed(client: Client, event: str) -> dict[str, Any]:
    """The data of the next push of this name; others are passed over."""
    while True:
        frame = await asyncio.wait_for(client.pushes.get(), 10)
        if frame["event"] == event:
            data: dict[str, Any] = frame["data"]
            return data


async def reset_code(deployment: Deployment, address: str, count: int = 1) -> str:
    """The code of the `count`-th link to set a new password that was mailed, when it is there."""

    async def look() -> str:
        while True:
            links = [text for text in deployment.mails(address) if "code=" in text]
            if len(links) >= count:
                found = re.search(r"(\S+/reset#email=(\S+?)&code=([A-Za-z0-9_.-]+))", links[count - 1])
                assert found and unquote(found[2]) == address and found[1].startswith("http://login.test/")
                return found[3]
            await asyncio.sleep(0.02)

    return await asyncio.wait_for(look(), 10)


# --- what only time or an operator brings about: written into the store -------------------------------------------


def user_key(redis: Redis, address: str) -> str:
    found: Any = redis.get(names.EMAILS + address)
    return f"{names.USERS}{found.decode()}"


def disable(deployment: Deployment, address: str) -> None:
    with Redis.from_url(deployment.redis_url) as redis:
        key = user_key(redis, address)
        redis.hset(key, "status", "disabled")
        redis.hincrby(key, "version", 1)


def age_code(deployment: Deployment, challenge: str) -> None:
    """Ten minutes and more pass for the code of a challenge."""
    with Redis.from_url(deployment.redis_url) as redis:
        assert redis.hget(names.CHALLENGES + challenge, "code_expires")
        redis.hset(names.CHALLENGES + challenge, "code_expires", 1)


def age_session(deployment: Deployment, session_id: str) -> None:
    """Seven days and more pass for a session that nobody uses."""
    with Redis.from_url(deployment.redis_url) as redis:
        assert redis.delete(names.SESSIONS + session_id)

"""How a connection comes into each state of an account, and what its person holds there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from app.client import Client
from tests.accounts import (
    NEW_PASSWORD,
    Asking,
    Authenticator,
    age_session,
    detected,
    disable,
    enrolled,
    pushed,
    reset_code,
    sign_in,
)
from tests.deployment import PASSWORD, Account, Deployment, new_address

NONE = "0none-AAAAAAAAAAAAAAAAAAAAAA"  # an id of nothing
WRONG = "00000000"


@dataclass
class Person:
    """At one connection, with all she has: what she does not have is of nothing, or wrong."""

    client: Asking
    email: str = ""
    device_token: str | None = None
    challenge: str = NONE  # the last one she was given, whatever it is for
    code: str = WRONG  # the last one that she was mailed or that her app shows; "": approved without one
    reset: str = f"{NONE}.nothing"
    access: str = "x.y.z"
    refresh: str = "x.y.z"
    session: str = NONE
    device: str = NONE
    login_id: str = NONE
    number: int = 10

    @property
    def account(self) -> Account:
        return Account(self.email, PASSWORD, self.device_token or "")

    def data(self, event: str) -> dict[str, Any]:
        """The request as she would rightly make it."""
        code = self.code or WRONG
        made: dict[str, dict[str, Any]] = {
            "register": {"email": self.email, "password": PASSWORD},
            "confirm_email": {"challenge": self.challenge, "code": code},
            "resend_confirmation": {"challenge": self.challenge},
            "login": {"email": self.email, "password": PASSWORD, **self._device()},
            "verify_device": {"challenge": self.challenge, **({"code": self.code} if self.code else {})},
            "verify_2fa": {"challenge": self.challenge, "code": code},
            "refresh": {"refreshToken": self.refresh},
            "authenticate": {"accessToken": self.access},
            "revoke_session": {"sessionId": self.session},
            "request_password_reset": {"email": self.email},
            "reset_password": {"email": self.email, "code": self.reset, "newPassword": NEW_PASSWORD},
            "change_password": {"currentPassword": PASSWORD, "newPassword": NEW_PASSWORD},
            "enroll_2fa": {"password": PASSWORD},
            "confirm_2fa": {"code": code},
            "disable_2fa": {"password": PASSWORD, "code": code},
            "new_recovery_codes": {"password": PASSWORD, "code": code},
            "forget_device": {"deviceRef": self.device},
            "approve_login": {"loginId": self.login_id, "approve": True, "matchNumber": self.number},
        }
        return made.get(event, {})

    def _device(self) -> dict[str, str]:
        return {"deviceToken": self.device_token} if self.device_token else {}

    def took(self, answer: dict[str, Any]) -> None:
        """She is logged in."""
        self.access, self.refresh, self.session = answer["accessToken"], answer["refreshToken"], answer["sessionId"]


class Stage:
    """One person on one connection, of a deployment over either transport; more connections where it takes some."""

    def __init__(self, deployment: Deployment, stack: AsyncExitStack) -> None:
        self.deployment, self._stack = deployment, stack
        self.sockets = deployment.over("ws")

    async def client(self, deployment: Deployment | None = None) -> Any:
        """A connection to the second gateway."""
        return await self._stack.enter_async_context((deployment or self.deployment).client(1))

    async def fresh(self) -> Person:
        """At a new connection of her trusted device."""
        client = await self.client()
        address = new_address()
        registered = (await client.ask("register", email=address, password=PASSWORD)).data
        code = await self.deployment.mailed_code(address)
        confirmed = await client.ask("confirm_email", challenge=registered["challenge"], code=code)
        return Person(client, address, confirmed.data["deviceToken"], registered["challenge"], code)

    async def pending(self) -> Person:
        """Registered, not confirmed."""
        client, address = await self.client(), new_address()
        registered = (await client.ask("register", email=address, password=PASSWORD)).data
        code = await self.deployment.mailed_code(address)
        return Person(client, address, challenge=registered["challenge"], code=code)

    async def new_device(self) -> Person:
        """Has the code that was mailed, on a device that is not trusted yet."""
        return await self._detected(await self.fresh())

    async def new_device_and_2fa(self) -> Person:
        """The same, of an account with a second factor."""
        person = await self.with_2fa()
        await person.client.ask("logout")
        return await self._detected(person)

    async def approved(self) -> Person:
        """Let in on her new device by her trusted one."""
        return await self._decided(True)

    async def kept_out(self) -> Person:
        """Kept out on a new device by the trusted one; but she has the mailed code."""
        person = await self._decided(False)
        person.code = await self.deployment.mailed_code(person.email, 2)
        return person

    async def second_factor(self) -> Person:
        """On her trusted device, asked for the second factor."""
        person = await self.with_2fa()
        await person.client.ask("logout")
        answer = await person.client.ask("login", **person.data("login"))
        assert answer.event == "2fa_required", answer.data
        person.challenge = answer.data["challenge"]
        return self._out(person)

    async def reset_mailed(self) -> Person:
        """Has the mailed link that sets a new password."""
        person = await self.fresh()
        await person.client.ask("request_password_reset", email=person.email)
        person.reset = await reset_code(self.deployment, person.email)
        person.challenge = person.reset.partition(".")[0]
        return person

    async def trusted(self) -> Person:
        """Signed in on her trusted device."""
        return await self._signed_in(await self.fresh())

    async def untrusted(self) -> Person:
        """Signed in on a device that is not to be trusted."""
        person = await self.new_device()
        answer = await person.client.ask("verify_device", challenge=person.challenge, code=person.code, trust=False)
        person.took(answer.data)
        return await self._seen(person)

    async def with_2fa(self) -> Person:
        """Signed in, and her account has a second factor; she has its next code."""
        person = await self.trusted()
        app, _ = await enrolled(person.client, person.account)
        person.code = await app.code()
        return person

    async def enrolling(self) -> Person:
        """Signed in, shown the seed of a second factor."""
        person = await self.trusted()
        enrollment = await person.client.ask("enroll_2fa", password=PASSWORD)
        person.code = await Authenticator(enrollment.data["secret"]).code()
        return person

    async def asked(self) -> Person:
        """Signed in on her trusted device, and asked to let a new one in."""
        person = await self.trusted()
        await self._attempt(person)
        return person

    async def revoked(self) -> Person:
        """Another session of her account has ended hers; on a new connection, then."""
        person = await self.trusted()
        other = await self.client()
        await sign_in(other, person.account)
        answer = await other.ask("revoke_session", sessionId=person.session)
        assert answer.event == "session_revoked"
        if self.deployment.transport == "ws":
            assert await person.client.close_code == 4401  # type: ignore[union-attr]
            person.client = await self.client()
        return person

    async def expired(self) -> Person:
        """Signed in, but time has ended her session."""
        person = await self.trusted()
        age_session(self.deployment, person.session)
        return person

    async def disabled(self) -> Person:
        """Signed in, and her account was disabled since."""
        person = await self.trusted()
        disable(self.deployment, person.email)
        return person

    # --- steps -----------------------------------------------------------------------------------------------------

    async def _signed_in(self, person: Person) -> Person:
        person.took((await sign_in(person.client, person.account)).data)
        return await self._seen(person)

    async def _seen(self, person: Person) -> Person:
        """She knows her device's name in lists."""
        [person.device, *_] = [each["deviceRef"] for each in (await person.client.ask("account")).data["devices"]]
        return person

    async def _detected(self, person: Person) -> Person:
        data = await detected(person.client, person.account)
        person.challenge, person.number, person.device_token = data["challenge"], data["matchNumber"], None
        person.code = await self.deployment.mailed_code(person.email, 2)
        return self._out(person)

    async def _attempt(self, person: Person) -> Client:
        """Somebody logs in on a new device, and she is asked about it."""
        phone: Client = await self.client(self.sockets)
        watch: Client = await self.client(self.sockets)
        await watch.ask("authenticate", accessToken=person.access)
        data = await detected(phone, person.account)
        person.challenge, person.number = data["challenge"], data["matchNumber"]
        person.login_id = (await pushed(watch, "login_attempt"))["loginId"]
        return phone

    async def _decided(self, approve: bool) -> Person:
        person = await self.trusted()
        phone = await self._attempt(person)
        answer = await person.client.ask(
            "approve_login", loginId=person.login_id, approve=approve, matchNumber=person.number
        )
        assert answer.event == "login_decided", answer.data
        waits = Person(phone, person.email, None, person.challenge, "")
        waits.login_id, waits.number = person.login_id, person.number
        return waits

    def _out(self, person: Person) -> Person:
        """She is not signed in any more, and has nothing of that session."""
        person.access = person.refresh = "x.y.z"
        person.session = person.device = NONE
        return person


Way = Callable[[Stage], Awaitable[Person]]
# The columns of tests/test_matrix.py.
STATES: dict[str, Way] = {
    "fresh": Stage.fresh,
    "pend": Stage.pending,
    "new": Stage.new_device,
    "new+": Stage.new_device_and_2fa,
    "appr": Stage.approved,
    "kept": Stage.kept_out,
    "fact": Stage.second_factor,
    "reset": Stage.reset_mailed,
    "trust": Stage.trusted,
    "guest": Stage.untrusted,
    "2fa": Stage.with_2fa,
    "enrol": Stage.enrolling,
    "asked": Stage.asked,
    "revok": Stage.revoked,
    "expir": Stage.expired,
    "off": Stage.disabled,
}
# Nothing can be pushed to a REST call that waits: nobody is asked to let it in.
OVER_EITHER = [
    (state, way) for state in STATES for way in ("ws", "rest") if way == "ws" or state not in ("appr", "kept")
]


@asynccontextmanager
async def person_in(state: str, deployment: Deployment) -> AsyncIterator[Person]:
    async with AsyncExitStack() as stack:
        yield await STATES[state](Stage(deployment, stack))

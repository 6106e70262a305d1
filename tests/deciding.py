"""What the tables of the handlers share: what a request comes to when the store found this, and what is looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app import totp
from app.handlers import HANDLERS, decide
from app.handlers.common import Context
from app.messages import EVENTS, KINDS, Code, Kind, Refusal, Request, Tokens
from app.passwords import PasswordCheck
from app.records import Account, Device, Facts, Identity, Needs, Origin, Outcome
from app.settings import Limits, Settings
from app.tokens import AccessClaims, RefreshToken
from tests.making import CHEAP, EDGE, MINT, NOW, ORIGIN, PASSWORD, PEPPER, WORKER, Counting, account, device, session

SETTINGS = Settings(argon2=CHEAP, edge_secret=EDGE, worker_secret=WORKER, pepper=PEPPER)
UNVERIFIED = replace(SETTINGS, device_verification=False)
OFF = Limits(None, None, None, None, None, None, None)
HERE = (ORIGIN.node, ORIGIN.connection)
REST = replace(ORIGIN, connection="")  # nothing can be pushed to it, and it has nothing to be bound to


HASHER = Counting(CHEAP, PEPPER)
ANA: Account = account(password=HASHER.hash("0wrk1-user", PASSWORD))
TOKEN = MINT.new_device_token()
PHONE: Device = device(mac=MINT.device_mac(TOKEN))
SEED, RECOVERY = b"12345678901234567890", ("ME2A-GEZD-GNBV-GY3T", "ME3Q-GEZD-GNBV-GY3T")
BEA: Account = replace(  # the same account with a second factor
    ANA, totp=MINT.seal_seed(ANA.id, SEED), recovery=MINT.recovery_macs(ANA.id, RECOVERY)
)
LIVING: dict[str, Any] = {"session": session(), "account": ANA}
LIMITED = ("account", "anywhere", "device", "ip", "proof", "tries", "approval", "registrations", "pending")


def factor(steps: int = 0, now: int = NOW) -> str:
    """The code that the account's authenticator app shows, so many steps later."""
    return totp.code_at(SEED, now // 30_000 + steps)


def kind_of(request: Request) -> Kind:
    return next(kind for kind in KINDS.values() if kind.data is type(request))


def context(identity: Identity | None = None, settings: Settings = SETTINGS, origin: Origin = ORIGIN) -> Context:
    return Context(settings, MINT, PasswordCheck(HASHER), replace(origin, identity=identity))


def needs_of(
    request: Request, identity: Identity | None = None, settings: Settings = SETTINGS, origin: Origin = ORIGIN
) -> Needs:
    return HANDLERS[kind_of(request).event].needs(request, context(identity, settings, origin))


def outcome_of(
    request: Request,
    identity: Identity | None = None,
    settings: Settings = SETTINGS,
    now: int = NOW,
    origin: Origin = ORIGIN,
    **found: Any,
) -> Outcome:
    """What a request comes to when the store found this; every outcome is held to the table of requests."""
    kind = kind_of(request)
    facts = Facts(now=now, needs=needs_of(request, identity, settings, origin), **found)
    outcome = decide(kind, request, facts, context(identity, settings, origin))
    assert outcome.event in ({reply.event for reply in kind.answers} | {kind.refused, "error"})
    assert type(outcome.data) is EVENTS[outcome.event]
    assert {type(told) for told in outcome.progress} <= set(kind.progress)
    assert not outcome.if_mailed or outcome.mails
    for notice in outcome.notices:
        assert EVENTS[notice.event.event] is type(notice.event)
    return outcome


def refusal_of(outcome: Outcome) -> tuple[str, Code, str | None, int | None]:
    assert isinstance(outcome.data, Refusal)
    return outcome.event, outcome.data.code, outcome.data.field, outcome.data.retry_after_ms


def nothing_happens(outcome: Outcome) -> bool:
    """Nothing but the answer and what it means for the limits."""
    kept = {name: getattr(outcome, name) for name in ("verdict", "even", "subject", "uncounted")}
    return outcome == Outcome(outcome.event, outcome.data, **kept)


def evaluations_of(request: Request, identity: Identity | None = None, **found: Any) -> tuple[Outcome, int]:
    before = HASHER.evaluations
    outcome = outcome_of(request, identity, **found)
    return outcome, HASHER.evaluations - before


def check_tokens(outcome: Outcome, cls: type[Tokens], session_id: str, counter: int, now: int = NOW) -> Tokens:
    data = outcome.data
    assert isinstance(data, cls)
    assert (data.token_type, data.expires_in, data.user_id, data.session_id) == ("Bearer", 600, ANA.id, session_id)
    seconds = now // 1000
    assert MINT.read_access_token(data.access_token) == AccessClaims(ANA.id, session_id, seconds, seconds + 600)
    assert MINT.read_refresh_token(data.refresh_token) == RefreshToken(session_id, counter)
    return data


def written(outcome: Outcome, kind: type) -> list[Any]:
    """The writes of this kind."""
    return [write for write in outcome.writes if type(write) is kind]

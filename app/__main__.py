"""The composition root: `python -m app`, its roles and an operator's commands. Only this module knows the adapters."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import resource
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import uvloop

from adapters import failpoints, rabbitmq, redis_streams
from adapters.amqp_queues import check_broker
from adapters.embedded_redis import EmbeddedRedis, running_url
from adapters.env_file import EnvFile, WatchedEnv
from adapters.key_files import KeyFiles
from adapters.outbox import Outbox
from adapters.redis_accounts import RedisAccounts
from adapters.redis_link import Link, check_durability
from adapters.redis_mail import mail_queue
from adapters.redis_operator import ElsewhereOperator, RedisOperator
from adapters.smtp import SmtpMailer
from app import logs, tokens
from app.gateway.gateway import Gateway
from app.gateway.pages import mailbox_of
from app.gateway.server import create_app, create_ops_app, listeners, serve
from app.keys import Ring
from app.mail.mailer import MailerLoop
from app.operator.audit import USAGE as AUDIT_USAGE
from app.operator.audit import Audit
from app.operator.dead import USAGE as DEAD_USAGE
from app.operator.dead import Dead
from app.operator.keys import USAGE as KEYS_USAGE
from app.operator.keys import keys_command
from app.operator.metrics import Metrics
from app.operator.status import USAGE as STATUS_USAGE
from app.operator.status import Status
from app.operator.users import USAGE as USERS_USAGE
from app.operator.users import Users
from app.operator.words import Misuse, Undone
from app.passwords import Hasher
from app.ports import GatewayBroker, Mailer, Store, Unavailable, WorkerBroker
from app.reload import Source, keep_fresh
from app.sealing import Opener
from app.settings import ROLES, Fault, Settings, data_dir
from app.supervisor import EX_CONFIG, only_one, supervise
from app.tokens import Mint
from app.worker import Worker

log = logging.getLogger("finthenticate")

EX_USAGE, EX_UNAVAILABLE = 64, 69  # sysexits.h
EX_UNDONE = 1
INTERRUPTED, UNREAD = 128 + signal.SIGINT, 128 + signal.SIGPIPE  # as a shell says it
COMMANDS = (KEYS_USAGE, STATUS_USAGE, DEAD_USAGE, AUDIT_USAGE, USERS_USAGE)
USAGE = f"usage: python -m app [all|gateway|worker|mailer] | {' | '.join(COMMANDS)}"
T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


def main(arguments: list[str]) -> int:
    role, *more = arguments or ["all"]
    try:
        if role == "keys":
            keys_command(more, [KeyFiles(data_dir(_env().read())), _env()])
            return 0
        if role == "status":
            return _operate(Status.parse(more), _queue)
        if role == "dead":
            return _operate(Dead.parse(more), _queue)
        if role == "audit":
            return _operate(Audit.parse(more), _accounts)
        if role == "users":
            return _users(Users.parse(more))
        if more or role not in ("all", *ROLES):
            raise Misuse(USAGE)
        settings = _settings(ROLES if role == "all" else (role,))
        logs.configure(role, settings.data_dir)
        for warning in settings.warnings:
            log.warning(warning)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the role listens to it: nothing is in hand
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run({"all": _all, "gateway": _gateway, "worker": _worker, "mailer": _mailer}[role](settings))
    except Fault as fault:
        return _say(fault)
    except BaseExceptionGroup as group:
        if (fault_in := _fault_in(group)) is None:
            raise
        return _say(fault_in)


class NoServer(Fault):
    """There is no embedded server to join, or none that answers: a passing state where a supervisor starts one."""


def _settings(roles: tuple[str, ...]) -> Settings:
    return Settings.from_env(_env().read(), roles, cores=len(os.sched_getaffinity(0)))


def _env() -> EnvFile:
    return EnvFile(Path(".env"), os.environ)


class Command(Protocol[T_contra]):
    """What an operator asks, of what `connect` finds; the exit status."""

    async def run(
        self, connect: Callable[[], Awaitable[T_contra]], say: Callable[[str], None], *, terminal: bool = False
    ) -> int: ...


def _queue(settings: Settings, link: Link) -> RedisOperator:
    return ElsewhereOperator(link) if settings.amqp_url else RedisOperator(link)


def _accounts(settings: Settings, link: Link) -> RedisAccounts:
    return RedisAccounts(link)


def _users(command: Users) -> int:
    """Who changes an account signs what gateways are told of it; that is the one secret an operator's command takes."""
    if not command.changes:
        return _operate(command, _accounts)
    settings = _settings(("operator",))
    return _operate(replace(command, by=_operator(), edge=settings.edge_secret), _accounts)


def _operator() -> str:
    """By the system, not by the environment, which anybody can set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container
        return f"uid {os.getuid()}"


def _operate(command: Command[T], of: Callable[[Settings, Link], T]) -> int:
    """An operator's command, on a loop that Ctrl-C ends."""
    settings = _settings(())

    async def connect() -> T:
        try:
            return of(settings, Link(await _redis_url(settings), "operator"))
        except NoServer as none:
            raise Unavailable(str(none)) from None

    say = partial(print, flush=True)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(command.run(connect, say, terminal=sys.stdout.isatty()))
    except Unavailable as away:
        raise NoServer(f"the {'queue' if of is _queue else 'store'} does not answer: {away}") from None
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD


# --- roles -------------------------------------------------------------------------------------------------------


async def _all(settings: Settings) -> int:
    with only_one(settings.data_dir):
        for listener in listeners(settings):  # a taken port is said before anything is started
            listener.close()
        server = None if settings.redis_url else EmbeddedRedis(settings.data_dir)
        commands = {role: [sys.executable, "-m", "app", role] for role in ROLES}
        return await supervise(
            commands, server, ready=lambda: _is_ready(settings), on_ready=lambda: _say_hello(settings)
        )


async def _gateway(settings: Settings) -> int:
    _open_many()
    sockets = listeners(settings)
    url = await _redis_url(settings)
    keys = KeyFiles(settings.data_dir)
    node = f"{tokens.SHARD}-{secrets.token_urlsafe(9)}"
    broker: GatewayBroker = (
        rabbitmq.gateway(url, settings.amqp_url, settings.deployment, node, settings.max_queue)
        if settings.amqp_url
        else redis_streams.gateway(url, node, settings.max_queue)
    )
    operator = _queue(settings, Link(url, "metrics"))
    metrics = Metrics(operator.look, settings.max_queue)
    gateway = Gateway(settings, broker, node, keys.seal_keys(Ring.SEAL, private=False), metrics)
    token_keys = keys.token_keys(private=False)
    apps = [create_app(settings, gateway, lambda: tokens.jwks(token_keys.public)), create_ops_app(metrics)]
    drains: list[asyncio.Task[None]] = []
    _on_signals(lambda: drains.append(asyncio.create_task(gateway.drain())))
    log.info("listening", extra={"fields": {"host": settings.host, "port": settings.port, "node": node}})
    # It acknowledges nothing, so it need not wait for the verdict on its store: it says `unavailable` until then.
    try:
        return await _run(settings, url, partial(serve, gateway, dict(zip(sockets, apps))), keys)
    finally:
        await operator.close()


async def _worker(settings: Settings) -> int:
    url = await _redis_url(settings)
    keys = KeyFiles(settings.data_dir)
    seal_keys, token_keys = keys.seal_keys(Ring.SEAL, private=True), keys.token_keys(private=True)
    name = _consumer()
    broker, store = _worker_side(settings, url, name)
    worker = Worker(
        settings,
        name,
        broker,
        store,
        opener=Opener(seal_keys, settings.edge_secret, "request"),
        mint=Mint(settings.worker_secret, token_keys, settings.public_url, settings.audience),
        hasher=Hasher(settings.argon2, settings.pepper),
        mail_keys=keys.seal_keys(Ring.MAIL, private=False),
    )
    told = asyncio.Event()
    _on_signals(worker.stop, told.set)
    log.info("working", extra={"fields": {"name": name, "hash_threads": settings.hash_threads}})
    return await _run(settings, url, worker.run, keys, told)


def _worker_side(settings: Settings, url: str, name: str) -> tuple[WorkerBroker, Store]:
    if settings.failpoints:
        return failpoints.armed(settings.failpoints, url, name)
    if settings.amqp_url:
        return rabbitmq.worker(url, settings.amqp_url, settings.deployment, name)
    return redis_streams.worker(url, name)


async def _mailer(settings: Settings) -> int:
    settings = replace(settings, amqp_url=None)  # mails lie in Redis with every broker
    url = await _redis_url(settings)
    mailer: Mailer = (
        SmtpMailer(settings.smtp, settings.public_url, settings.mail_from)
        if settings.smtp
        else Outbox(_outbox(settings), settings.public_url, settings.mail_from)
    )
    keys = KeyFiles(settings.data_dir)
    opener = Opener(keys.seal_keys(Ring.MAIL, private=True), settings.edge_secret, "mail")
    loop = MailerLoop(mail_queue(url, _consumer()), mailer, opener, settings.edge_secret)
    told = asyncio.Event()
    _on_signals(loop.stop, told.set)
    log.info("mailing", extra={"fields": {"to": _mails_go_to(settings)}})
    return await _run(settings, url, loop.run, keys, told)


# --- small things -----------------------------------------------------------------------------------------------


async def _run(
    settings: Settings,
    url: str,
    role: Callable[[], Coroutine[Any, Any, None]],
    keys: KeyFiles,
    told: asyncio.Event | None = None,
) -> int:
    """A role beside the renewal of its keys and the check of its Redis, which waits until that answers: a role may
    start before its store.

    `told`: the role begins only after that check, or to end at once, when it is told to stop before.
    """
    sources: Sequence[Source] = [*keys.watched, WatchedEnv(_env(), settings)]
    async with asyncio.TaskGroup() as group:
        check = group.create_task(_check(settings, url))
        fresh = group.create_task(keep_fresh(sources))
        if told is not None:
            stop = group.create_task(told.wait())
            await asyncio.wait([check, stop], return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
        await role()
        check.cancel()
        fresh.cancel()
    return 0


async def _check(settings: Settings, url: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(check_durability(Link(url, "check"), strict=settings.durability_strict))
        if settings.amqp_url:
            group.create_task(check_broker(settings.amqp_url, settings.deployment))


async def _redis_url(settings: Settings) -> str:
    if url := settings.redis_url or await running_url(settings.data_dir):
        return url
    raise NoServer(f"FIN_REDIS_URL is not set, and no embedded server runs on {settings.data_dir}.")


def _consumer() -> str:
    """Unique for every boot, readable for an operator."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def _on_signals(*stop: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: [call() for call in stop])


def _open_many() -> None:
    """Each connection is an open file: as many as the system allows this process, if it lets it have them."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _is_ready(settings: Settings) -> bool:
    direct = build_opener(ProxyHandler({}))  # whatever http_proxy says: this is our own listener

    def ask() -> bool:
        try:
            with direct.open(f"{_local_url(settings)}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    return await asyncio.to_thread(ask)


def _local_url(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104  # to reach it
    return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{settings.port}"


_began = time.monotonic()


def _say_hello(settings: Settings) -> None:
    url, mails = _local_url(settings), _mails_go_to(settings)
    if mailbox_of(settings):
        mails = f"{url}/mailbox   {mails}"
    print(
        f"\nFinthenticate serves at {url} (ready in {time.monotonic() - _began:.1f} s).\n"
        f"  {url}/signup   create an account and sign in, in a browser\n"
        "  scripts/try   the same from a terminal, and every frame of it\n"
        f"  {mails}   the mails\n"
        "  Ctrl-C   stops everything\n",
        file=sys.stderr,
        flush=True,
    )


def _mails_go_to(settings: Settings) -> str:
    return settings.smtp.host if settings.smtp else str(_outbox(settings))


def _outbox(settings: Settings) -> Path:
    return settings.data_dir / settings.mail_url.removeprefix("file:")


def _say(fault: Fault) -> int:
    print(f"finthenticate: {fault}", file=sys.stderr)
    if isinstance(fault, Misuse):
        return EX_USAGE
    if isinstance(fault, Undone):
        return EX_UNDONE
    return EX_UNAVAILABLE if isinstance(fault, NoServer) else EX_CONFIG


def _fault_in(group: BaseExceptionGroup[BaseException]) -> Fault | None:
    """The first fault, where a group of tasks ended with nothing but faults."""
    faults, others = group.split(Fault)
    found: BaseException | None = faults
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found if isinstance(found, Fault) and others is None else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The mailer: takes sealed mails and hands them over, each at least once, and no mail waits for another's server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from app import entries
from app.messages import MailStatus
from app.ports import Mailer, MailInHand, MailQueue, SealedMail, Unavailable, Undeliverable
from app.records import Mail, Notice
from app.rules import CODE_MS, HOUR, RESET_MS
from app.sealing import Opener, Unreadable
from app.settings import Secrets

log = logging.getLogger("finthenticate")

AT_ONCE = 10  # as many connections to one server; a mail that its server lets hang holds one of them
BEAT_SECONDS = 1.0
BACK_OFF_SECONDS = 0.5
STOP_SECONDS = 10.0  # for what is being sent when the mailer is told to stop, which has 15
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 900.0
GIVE_UP_MS = 2 * HOUR  # 17 tries; greylisting ends within minutes, and what happened two hours ago is news no more


def retry_after(tries: int) -> float:
    """Seconds until a mail that was begun so often is begun again: 1, 2, 4 … 15 minutes."""
    return float(min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(tries - 1, 30)))


def useful_until(mail: Mail, queued: int) -> int:
    """A mail whose code has expired would only mislead. A dead letter that is retried is queued anew."""
    if mail.code:
        return mail.at + (RESET_MS if mail.kind == "reset" else CODE_MS)
    return queued + GIVE_UP_MS


class MailerLoop:
    """One mailer process. `run` returns when `stop` was called and what was being sent is sent, or was given up."""

    def __init__(self, queue: MailQueue, mailer: Mailer, opener: Opener, edge: Secrets) -> None:
        self._queue, self._mailer, self._opener, self._edge = queue, mailer, opener, edge
        self._stopping = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        beating: asyncio.Task[None] | None = None
        try:
            while not self._stopping.is_set():
                try:
                    if beating is None:
                        await self._queue.beat()
                        beating = asyncio.create_task(self._beat())
                    await self._turn()
                except Unavailable as error:
                    log.warning("the mail queue is away", extra={"fields": {"reason": str(error)}})
                    await self._pause(BACK_OFF_SECONDS)
                except Exception:
                    log.exception("a turn failed")
                    await self._pause(BACK_OFF_SECONDS)
            if self._sending:
                await asyncio.wait(self._sending, timeout=STOP_SECONDS)
        finally:
            unfinished = [task for task in (beating, *self._sending) if task is not None]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
            await self._queue.close()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self._queue.beat()
            except Unavailable:
                continue  # whoever takes says it
            except Exception:
                log.exception("a beat failed")

    async def _turn(self) -> None:
        if len(self._sending) >= AT_ONCE:
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({stopping, *self._sending}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            return
        for in_hand in await self._queue.take(AT_ONCE - len(self._sending)):
            task = asyncio.create_task(self._send_safely(in_hand))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send_safely(self, in_hand: MailInHand) -> None:
        try:
            await self._send(in_hand)
        except Exception:  # a fault of ours; the mail is not to be forgotten for it
            log.exception("a mail's turn failed")
            self._queue.put_off(in_hand.token, LONGEST_RETRY_SECONDS)

    async def _send(self, in_hand: MailInHand) -> None:
        token, sealed = in_hand.token, in_hand.mail
        try:
            if sealed is None:
                raise Unreadable("not a mail")
            mail = entries.open_mail(self._opener, sealed)
        except Unreadable as error:
            log.error("dead letter", extra={"fields": {"lane": "mail", "reason": str(error)}})
            await self._surely(partial(self._queue.bury, token, str(error)))
            return
        mail = replace(mail, at=mail.at or in_hand.queued)
        if mail.kind == "decoy":
            await self._surely(partial(self._queue.done, token))
        elif self._queue.now() >= useful_until(mail, in_hand.queued):
            too_late = "its code had expired" if mail.code else "it was queued for too long"
            await self._give_up(in_hand, sealed, mail, f"not sent: {too_late}")
        else:
            await self._try(in_hand, sealed, mail)

    async def _try(self, in_hand: MailInHand, sealed: SealedMail, mail: Mail) -> None:
        about = {"mail": sealed.id, "kind": mail.kind, "tries": in_hand.tries}
        try:
            await self._mailer.send(mail, sealed.id)
        except Undeliverable as refused:
            await self._give_up(in_hand, sealed, mail, f"refused for good: {refused}")
        except OSError as error:
            wait = retry_after(in_hand.tries)
            log.warning("mail not sent", extra={"fields": {**about, "reason": str(error), "again_in_s": wait}})
            if self._queue.now() + wait * 1000 >= useful_until(mail, in_hand.queued):
                await self._give_up(in_hand, sealed, mail, f"not sent in {in_hand.tries} tries: {error}")
                return
            self._queue.put_off(in_hand.token, wait)
            if in_hand.tries == 1:
                await self._tell(mail, "retrying")
        except Exception:  # one mail's fault is its own
            log.exception("mail failed", extra={"fields": about})
            await self._give_up(in_hand, sealed, mail, "it cannot be written or sent: the mailer's log says why")
        else:
            log.info("mail sent", extra={"fields": about})
            await self._surely(partial(self._queue.done, in_hand.token))
            await self._tell(mail, "sent")

    async def _give_up(self, in_hand: MailInHand, sealed: SealedMail, mail: Mail, reason: str) -> None:
        log.error("dead letter", extra={"fields": {"lane": "mail", "mail": sealed.id, "reason": reason}})
        await self._surely(partial(self._queue.bury, in_hand.token, reason, sealed))
        await self._tell(mail, "failed")

    async def _surely(self, end: Callable[[], Awaitable[None]]) -> None:
        """However long the queue is away: a mail that has ended must not be sent again."""
        while True:
            try:
                await end()
                return
            except Unavailable as error:
                log.warning("the mail queue is away", extra={"fields": {"reason": str(error)}})
                await asyncio.sleep(BACK_OFF_SECONDS)

    async def _tell(self, mail: Mail, status: Literal["sent", "retrying", "failed"]) -> None:
        """Whoever caused it, where that may know; once, or not at all."""
        if mail.tell is None or mail.kind == "decoy":
            return
        node, _ = mail.tell
        event = MailStatus(kind=mail.kind, status=status)
        notice = Notice("", "", event, only=mail.tell)
        try:
            await self._queue.tell(node, entries.sign_notice(self._edge, notice))
        except Unavailable as error:
            log.warning("not told", extra={"fields": {"mail": mail.kind, "reason": str(error)}})

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

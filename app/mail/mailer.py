"""The mailer: takes sealed mails, at least once each, and hands them over."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from app import entries
from app.ports import Mailer, MailQueue, SealedMail, Unavailable
from app.records import Mail
from app.sealing import Opener, Unreadable

log = logging.getLogger("finthenticate")

AT_ONCE = 10
BACK_OFF_SECONDS = 0.5
TRIES = 5
FIRST_RETRY_SECONDS = 1.0


class MailerLoop:
    """One mailer process. `run` returns when `stop` was called and what is in hand is sent."""

    def __init__(self, queue: MailQueue, mailer: Mailer, opener: Opener) -> None:
        self._queue, self._mailer, self._opener = queue, mailer, opener
        self._stopping = asyncio.Event()
        self._sent: set[str] = (
            set()
        )  # and the queue could not be told: a mail of these comes again, and is not sent again

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    taken = await self._queue.take(AT_ONCE)
                    sending = [self._send(token, sealed) for token, sealed in taken]
                    for failed in await asyncio.gather(*sending, return_exceptions=True):
                        if isinstance(failed, BaseException):
                            raise failed
                except Unavailable as error:
                    log.warning("the mail queue is away", extra={"fields": {"reason": str(error)}})
                    await self._pause(BACK_OFF_SECONDS)
                except Exception:
                    log.exception("a turn failed")
                    await self._pause(BACK_OFF_SECONDS)
        finally:
            await self._queue.close()

    async def _send(self, token: str, sealed: SealedMail | None) -> None:
        try:
            if sealed is None:
                raise Unreadable("not a mail")
            mail = entries.open_mail(self._opener, sealed)
            mail = replace(mail, at=mail.at or int(token.partition("-")[0]))
        except Unreadable as error:
            log.error("dead letter", extra={"fields": {"lane": "mail", "reason": str(error)}})
            await self._queue.bury(token, str(error))
            return
        try:
            sent = token in self._sent or mail.kind == "decoy" or await self._hand_over(mail, sealed.id)
        except Unavailable:
            raise
        except Exception:  # one mail's fault is its own
            log.exception("mail failed", extra={"fields": {"mail": sealed.id}})
            sent = False
        if sent:
            self._sent.add(token)
            await self._queue.done(token)
            self._sent.discard(token)
        else:
            await self._queue.bury(token, f"not sent in {TRIES} tries", sealed)

    async def _hand_over(self, mail: Mail, id: str) -> bool:
        for attempt in range(TRIES):
            try:
                await self._mailer.send(mail, id)
            except OSError as error:
                fields = {"mail": id, "kind": mail.kind, "attempt": attempt + 1, "reason": str(error)}
                log.warning("mail not sent", extra={"fields": fields})
                if attempt + 1 < TRIES:
                    await self._pause(FIRST_RETRY_SECONDS * 2**attempt)
                if self._stopping.is_set():
                    raise Unavailable("stopping with a mail in hand: the next mailer takes it over") from None
            else:
                log.info("mail sent", extra={"fields": {"mail": id, "kind": mail.kind}})
                return True
        return False

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

"""From what was decided to what is settled: replies sealed, notices signed, mails sealed, outcomes kept. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from app import entries, rules
from app.messages import Code, Kind, LoggedOut, NewDeviceDetected, Refusal, Request, SecondFactorRequired
from app.ports import Delivery, Entry, Record, Settlement, Signed
from app.records import Needs, Origin, Outcome, Recorded, Verdict, Write
from app.sealing import Envelope, Sealer, Unreadable
from app.settings import Settings
from app.tokens import Mint, new_id

# Answers that can be long, and can be had again: such are not kept, or one session could fill the store with them.
READS = frozenset({"sessions", "account"})
MOST_OF_A_READ = 4096  # bytes
STEPS = (NewDeviceDetected, SecondFactorRequired)
EMPTY = LoggedOut()  # the data of an outcome whose reply is at hand already


@dataclass(frozen=True)
class Work:
    """A request in hand, opened."""

    delivery: Delivery
    entry: Entry
    envelope: Envelope
    kind: Kind
    request: Request
    origin: Origin

    @property
    def rid(self) -> str:
        return self.entry.rid

    @property
    def same(self) -> str:
        return self.entry.same

    @property
    def deadline(self) -> int:
        return self.entry.deadline

    @property
    def owner(self) -> str:
        """The session that it is made for, where it needs one."""
        identity = self.origin.identity
        return identity.session_id if self.kind.needs_session and identity is not None else ""


class Settlements:
    """How the worker of this name ends requests."""

    def __init__(self, settings: Settings, worker: str, mint: Mint, mail: Sealer) -> None:
        self._settings, self._worker, self._mint, self._mail = settings, worker, mint, mail

    def of(self, work: Work, needs: Needs, outcome: Outcome) -> Settlement:
        settlement = self._settlement(work, needs, outcome, entries.reply_of(outcome))
        return replace(settlement, record=self._record(work, outcome)) if work.same else settlement

    def of_replay(self, work: Work, needs: Needs, reply: entries.OpenedReply, writes: tuple[Write, ...]) -> Settlement:
        """It was audited when it was evaluated, so it is not audited again."""
        outcome = Outcome(reply.event, EMPTY, writes=writes, identity=reply.identity, forget=reply.forget)
        return replace(self._settlement(work, needs, outcome, reply), audit={})

    def of_failure(self, entry: Entry | None) -> tuple[tuple[str, Signed] | None, Record | None]:
        """Word for the client of a request that is given up, and for who joined it, where it can be read."""
        if entry is None:
            return None, None
        edge = self._settings.edge_secret
        failure = (entry.node, entries.sign_failure(edge, entry.rid, Code.INTERNAL))
        if not entry.same:
            return failure, None
        return failure, Record(entry.same, "", None, entries.sign_word(edge, entry.same, Code.INTERNAL, None))

    def open_record(self, work: Work, recorded: Recorded) -> entries.OpenedRecord | None:
        try:
            return entries.open_record(self._settings.worker_secret, work.same, recorded.box)
        except Unreadable:  # kept under a secret that is here no longer
            return None

    def _record(self, work: Work, outcome: Outcome) -> Record:
        """An `error` is not recorded, but those who joined are told it.

        What a session was needed for is given again only while it lives; its own end may be told afterwards.
        """
        edge, same, owner = self._settings.edge_secret, work.same, work.owner
        if outcome.event == "error" and isinstance(outcome.data, Refusal):
            word = entries.sign_word(edge, same, outcome.data.code, outcome.data.retry_after_ms)
            return Record(same, owner, None, word)
        if isinstance(outcome.data, Refusal) and outcome.verdict is Verdict.UNJUDGED and not outcome.writes:
            # Nothing happened and nothing was counted: keeping it would let anybody fill the store. Those who joined
            # are told to ask again, and are evaluated.
            return Record(same, owner, None, entries.sign_word(edge, same, None, None))
        speaks_for = "" if outcome.forget else owner or getattr(outcome.data, "session_id", "")
        waits_for = getattr(outcome.data, "challenge", None) if isinstance(outcome.data, STEPS) else None
        reply = replace(entries.reply_of(outcome), spent_ms=0.0)  # nor is anything when it is given again
        box = entries.pack_record(self._settings.worker_secret, same, reply, speaks_for, waits_for or "")
        kept = None if work.kind.event in READS and len(box) > MOST_OF_A_READ else box
        return Record(same, owner, kept, entries.sign_word(edge, same, None, None))

    def _settlement(self, work: Work, needs: Needs, outcome: Outcome, reply: entries.OpenedReply) -> Settlement:
        edge, limits = self._settings.edge_secret, self._settings.limits
        origin = work.origin
        audit = {"event": outcome.event, "code": outcome.code, "request": work.rid, "user": outcome.subject}
        audit |= {"ip": origin.ip, "worker": self._worker}
        return Settlement(
            outcome=outcome,
            limits=needs.limits,
            reply=entries.pack_reply(work.envelope, work.rid, reply),
            notices=tuple((notice, entries.sign_notice(edge, notice)) for notice in outcome.notices),
            mails=tuple(
                (
                    mail,
                    entries.pack_mail(self._mail.envelope, new_id(self._mint.kid), mail),
                    rules.mail_limits(limits, mail.kind, mail.to, origin.network),
                )
                for mail in outcome.mails
            ),
            presence=(origin.node, origin.connection) if origin.connection else None,
            previous=origin.identity,
            audit=audit,
        )

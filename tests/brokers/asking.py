"""Asking while servers come and go: what was told of each request, and that all of it holds."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping
from functools import partial
from typing import Any

from app.ports import Admitted, Full, Unavailable
from tests.brokers.ground import GatewaySide, WorkerSide, entry, insist, rid_of, until

SEED = int(os.environ.get("FIN_TEST_SEED") or random.randrange(1_000_000))


async def ask(gateway: GatewaySide, rid: str, deadline: int, **more: Any) -> str:
    """ "admitted", "refused", or "unknown": it may be there or not."""
    try:
        answer = await gateway.broker.admit(entry(rid, deadline, **more), 0.0)
    except Unavailable:
        return "unknown"
    assert isinstance(answer, Admitted | Full), answer
    return "admitted" if isinstance(answer, Admitted) else "refused"


async def settle_all(worker: WorkerSide, told: Mapping[str, str]) -> list[str]:
    """Whose were settled: all that was admitted, perhaps some that are unknown, and nothing twice."""
    settled: list[str] = []
    new: list[str] = []
    admitted = {rid for rid, state in told.items() if state == "admitted"}

    async def all_came() -> bool:
        deliveries = [*await worker.take(50), *await worker.reap(50)]
        new.extend(rid_of(delivery) for delivery in deliveries if delivery.deliveries == 1)
        states = await asyncio.gather(*(insist(partial(worker.settle, delivery)) for delivery in deliveries))
        settled.extend(rid_of(d) for d, state in zip(deliveries, states, strict=True) if state == "settled")
        return admitted <= set(settled) and not deliveries

    await until(all_came, f"all of {len(admitted)} that were admitted", 30)
    assert len(settled) == len(set(settled))
    assert len(new) == len(set(new)), "queued twice"
    assert set(settled) <= {rid for rid, state in told.items() if state != "refused"}
    return settled


async def asked_again(gateway: GatewaySide, deadline: int) -> str:
    if (told := await ask(gateway, "after", deadline)) != "admitted":
        raise Unavailable
    return told

"""All scenarios by name, and the running of one: in time, in a folder of its own, and told as it goes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import Figures, NotPossible, Run, Scenario, damage, gateway, poison, rabbit, redis, restarts, worker

SCENARIOS: dict[str, Scenario] = {
    name: scenario
    for module in (worker, gateway, redis, rabbit, damage, poison, restarts)
    for name, scenario in module.SCENARIOS.items()
}
TEST_SECONDS = 240  # for one at the size of a test: far more than it takes
FULL_SECONDS = 1800  # for one at the size of a campaign


@dataclass(frozen=True)
class Result:
    """`problem`: what broke a promise. `skipped`: what the machine lacks. `folder`: what a failed one left behind."""

    name: str
    seconds: float
    figures: Figures = field(default_factory=dict)
    problem: str = ""
    skipped: str = ""
    folder: Path | None = None


async def play(name: str, seed: int, *, full: bool, say: Callable[[str], None]) -> Result:
    """One scenario, whatever becomes of it; only a cancellation ends it early, and that leaves nothing running."""
    folder = Path(tempfile.mkdtemp(prefix=f"finthenticate-{name}-"))
    began = time.monotonic()
    try:
        async with asyncio.timeout(FULL_SECONDS if full else TEST_SECONDS):
            figures = await SCENARIOS[name](Run(seed, full, folder, say))
    except NotPossible as lack:
        shutil.rmtree(folder, ignore_errors=True)
        return Result(name, time.monotonic() - began, skipped=str(lack) or "not possible here")
    except Exception as error:
        problem = str(error) if isinstance(error, AssertionError) else "".join(traceback.format_exception(error))
        return Result(name, time.monotonic() - began, problem=problem or repr(error), folder=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return Result(name, time.monotonic() - began, figures)

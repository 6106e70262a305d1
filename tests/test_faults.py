"""Each scenario of the fault campaign, at the size of a test; `scripts/faults --full` plays them at full size."""

from __future__ import annotations

import os
import random

import pytest

from tests.faults.campaign import SCENARIOS, TEST_SECONDS, play

SEED = int(os.environ.get("FIN_TEST_SEED") or random.randrange(1_000_000))


@pytest.mark.all
@pytest.mark.seconds(TEST_SECONDS + 30)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_promise_holds_whatever_dies(name: str) -> None:
    print(f"seed {SEED}: FIN_TEST_SEED={SEED}, or scripts/faults --seed {SEED} {name}")
    result = await play(name, SEED, full=False, say=lambda words: None)
    print(result.figures)
    if result.skipped and not os.environ.get("CI"):
        pytest.skip(result.skipped)
    assert not result.skipped
    assert not result.problem, f"{result.problem}\nwhat is left of it: {result.folder}"

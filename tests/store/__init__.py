"""The store on a real Redis: the scripts and the adapters that call them, under repetition, conflict and time.

Each test begins with an empty database; bench.py has what they are made of.
"""

import pytest

pytest.register_assert_rewrite("tests.store.bench")

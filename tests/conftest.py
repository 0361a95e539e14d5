"""Fixtures of the tests over HTTP."""

import pytest
from served import Server


@pytest.fixture(scope="session")
def server():
    """A server that a whole run shares."""
    with Server() as running:
        yield running
        assert running.metric("sidereal:gate_violations_total") == 0
        running.until("no request is left", running.idle)

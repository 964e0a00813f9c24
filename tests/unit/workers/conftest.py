"""One application for all tests of a file, whose `engine_and_api` builds it: that takes longer than asking."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from support.fake_engine import FakeEngine


@pytest.fixture
def engine(engine_and_api: tuple[FakeEngine, TestClient]) -> FakeEngine:
    """The models, which have not been asked for anything yet."""
    engine_and_api[0].asked.clear()
    return engine_and_api[0]


@pytest.fixture
def api(engine_and_api: tuple[FakeEngine, TestClient], engine: FakeEngine) -> TestClient:
    return engine_and_api[1]

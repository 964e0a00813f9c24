"""Starting Ray Serve: what goes wrong is one line."""

import pytest
from ray.exceptions import ActorDiedError

from tandem.errors import JobError
from tandem_cluster import server


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ActorDiedError(), "Ray Serve did not start: The actor died"),
        (
            TimeoutError("HTTP proxies not available\n  after 60 s"),
            "start: HTTP proxies not available after 60 s",
        ),
    ],
    ids=["a dead proxy", "a slow one"],
)
def test_a_serve_that_does_not_start_is_one_line(monkeypatch, error, expected):
    def start(**_: object) -> None:
        raise error

    monkeypatch.setattr(server.serve, "start", start)
    with pytest.raises(JobError, match=expected), server.deployed(None, "a", "127.0.0.1", 8000):
        pass

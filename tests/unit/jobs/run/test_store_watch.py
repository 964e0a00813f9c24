"""Whether a person hears what a run waits for."""

import threading

import pytest

from tandem.errors import OutputError
from tandem_jobs.run import store_watch
from tandem_workers.storage.places import open_store


@pytest.fixture
def soon(monkeypatch) -> None:
    monkeypatch.setattr(store_watch, "ASK_EVERY_S", 0.01)


def test_a_store_is_asked_while_a_run_lasts_and_its_trouble_is_said(soon, monkeypatch, capsys):
    store, asked = open_store("s3://bucket/x"), threading.Semaphore(0)

    def exists(path: str) -> bool:
        asked.release()
        raise OutputError("cannot read bucket bucket, key x/job.json: no answer")

    monkeypatch.setattr(store, "exists", exists)
    with store_watch.watch_store(store):
        assert asked.acquire(timeout=5) and asked.acquire(timeout=5)
    assert "warning: cannot read bucket bucket, key x/job.json: no answer" in capsys.readouterr().err


def test_a_folder_is_not_asked(soon, tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    monkeypatch.setattr(store, "exists", lambda path: pytest.fail("asked"))
    before = threading.active_count()
    with store_watch.watch_store(store):
        assert threading.active_count() == before

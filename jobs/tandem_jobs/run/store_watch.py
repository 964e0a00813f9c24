"""Probes an S3 store at intervals, so that the terminal shows when a run waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.errors import OutputError
from tandem_jobs.run.progress import say
from tandem_workers.storage import layout
from tandem_workers.storage.s3_address import SCHEME
from tandem_workers.storage.store import Store

ASK_EVERY_S = 15.0


@contextmanager
def watch_store(store: Store) -> Iterator[None]:
    """Context manager: a thread probes the store.

    Tasks on the cluster write the shards, and nobody sees their stderr. The S3 client in this process prints what it
    waits for, and for how long.
    """
    over = threading.Event()

    def ask() -> None:
        while not over.wait(ASK_EVERY_S):
            try:
                store.exists(layout.JOB)
            except OutputError as error:
                say(f"warning: {error}")

    if store.uri.startswith(SCHEME):
        threading.Thread(target=ask, daemon=True).start()
    try:
        yield
    finally:
        over.set()

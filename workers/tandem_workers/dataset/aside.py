"""Keeps damaged files at `damaged/HASH/PATH`, where HASH is the first digits of their hash."""

from __future__ import annotations

import hashlib

from tandem_workers.storage.store import Store

DAMAGED = "damaged"


def keep(store: Store, path: str) -> bool:
    """Copy a file to `damaged/`. Returns whether it existed."""
    try:
        data = store.read(path)
    except FileNotFoundError:
        return False
    store.put_once(f"{DAMAGED}/{hashlib.sha256(data).hexdigest()[:8]}/{path}", data)
    return True


def set_aside(store: Store, path: str) -> bool:
    """Move a file to `damaged/`. Returns whether it existed."""
    there = keep(store, path)
    if there:
        store.remove(path)
    return there

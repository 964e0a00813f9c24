"""A small finished dataset, made by a job's code, and ways to damage it."""

import json
from collections.abc import Callable
from pathlib import Path

from support.sample_shards import PLAN, encoded_shard, sample_format
from tandem_workers.dataset.aside import DAMAGED
from tandem_workers.dataset.claim import open_job
from tandem_workers.dataset.closing import close_dataset
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.seal import open_sealed, seal
from tandem_workers.storage import layout
from tandem_workers.storage.places import open_store
from tandem_workers.storage.store import Store

ENTRY, TAR = "manifest/00001.json", "shards/00001.tar"
IDENTITY = {"rows": PLAN.num_rows, "shard_size": PLAN.shard_size, "labels": "a" * 64}
SHARDS = [encoded_shard(shard, PLAN) for shard in range(PLAN.num_shards)]


def make(root: Path | str, name: str = "webdataset", overwrite: bool = False) -> Store:
    """What a job does, however far it has come."""
    store = open_store(str(root))
    job = open_job(store, IDENTITY, {"command": "tandem generate"}, overwrite)
    store.remember_job(job.path)
    manifest = Manifest(store, job.epoch)
    for shard in SHARDS:
        if shard.shard not in job.committed:
            shard.seconds = {"draft": 0.5}
            store_shard(store, manifest, shard, sample_format(name), PLAN)
    close_dataset(manifest, PLAN.num_shards, render=lambda entries, failed: {layout.CARD: b"# a card\n"})
    return store


def content(store: Store) -> dict[str, bytes]:
    """All files but those set aside. Entries and `_SUCCESS` without seconds, which differ."""
    found = {path: store.read(path) for path in store.list_files() if not path.startswith(DAMAGED)}
    for path in [path for path in found if path.startswith("manifest/") or path == layout.SUCCESS]:
        found[path] = json.dumps(open_sealed(found[path], ()) | {"seconds": None}).encode()
    return found


def write(store: Store, path: str, data: bytes) -> None:
    target = Path(store.uri, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def flip(path: str, at: float = 0.5) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        data = bytearray(store.read(path))
        data[int(len(data) * at)] ^= 1
        write(store, path, bytes(data))

    return change


def cut(path: str) -> Callable[[Store], None]:
    return lambda store: write(store, path, store.read(path)[:-30])


def lose(path: str) -> Callable[[Store], None]:
    return lambda store: store.remove(path)


def put(path: str, data: bytes = b"{}") -> Callable[[Store], None]:
    return lambda store: write(store, path, data)


def reseal(path: str, **values: object) -> Callable[[Store], None]:
    """Other values with a valid seal."""
    return lambda store: write(store, path, seal(open_sealed(store.read(path), ()) | values))

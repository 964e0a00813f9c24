"""OUT/training.json says which run a place belongs to: the same run goes on there, any other is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tandem.errors import OutputError
from tandem_workers.dataset.claim import as_json, diff_identity, render_differences
from tandem_workers.dataset.seal import DamagedError, open_sealed, seal
from tandem_workers.storage.store import Store

RECORD = "training.json"
OTHER = "choose another --out, or remove that run"


def claim_run(store: Store, identity: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Make a place this run's, or find that it is already.

    Args:
        identity: everything that changes weights, as JSON values.
        info: further information (versions, command), kept from the first start and never compared.

    Raises:
        OutputError: the place holds another run (the message has the fields that differ), other files, or a record
            that is damaged.
    """
    store.clean()
    if not store.exists(RECORD):
        foreign = store.list_files()
        if foreign and not store.exists(RECORD):  # checked again: another process may have begun
            raise OutputError(
                f"{store.uri} is not empty and holds no training run (such as {foreign[0]})", "choose another --out"
            )
    store.put_once(RECORD, seal({"identity": as_json(identity), "info": dict(info)}))
    try:
        there = open_sealed(store.read(RECORD), ("identity", "info"))["identity"]
    except (DamagedError, KeyError) as error:
        raise OutputError(f"{RECORD} in {store.uri} {error}", OTHER) from None
    if differences := diff_identity(there, as_json(identity)):
        lines = render_differences(differences)
        raise OutputError(f"{store.uri} holds another training run. Fields that differ:\n{lines}", OTHER)
    store.remember_job(RECORD)

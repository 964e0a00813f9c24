"""A section of a finished dataset's card that a later command writes: its evaluation.

`_SUCCESS` has the hash of the card. Each is replaced in one step, so the dataset stays complete: after a run that was
killed in between `tandem verify` reports the card, and the same command mends it.
"""

from __future__ import annotations

import hashlib

from tandem.errors import InputError, OutputError
from tandem_workers.dataset.job_record import check_epoch, read_job
from tandem_workers.dataset.seal import open_sealed, seal
from tandem_workers.dataset.success_file import SUCCESS_KEYS, read_success
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

BEGIN, END = "<!-- evaluation -->", "<!-- end of evaluation -->"


def check_card(store: Store) -> None:
    """InputError or OutputError unless there is a finished dataset, and its card is the one that it was closed with."""
    closing, place = read_success(store), store.uri
    if closing is None or not store.exists(layout.CARD):
        raise InputError(f"--card: expected a finished dataset of Tandem with a {layout.CARD}, got {place}")
    card = store.read(layout.CARD).decode()
    hashes = {hashlib.sha256(text.encode()).hexdigest() for text in (card, without_section(card))}
    if closing["files"] is not None and closing["files"].get(layout.CARD) not in hashes:
        raise OutputError(
            f"--card: {layout.CARD} in {place} was changed since the dataset was closed", "see tandem verify"
        )


def write_section(store: Store, text: str) -> None:
    """Put Markdown into the card, in place of what an earlier evaluation wrote. Raises like `check_card`."""
    check_card(store)
    epoch = read_job(store)["epoch"]
    plain = without_section(store.read(layout.CARD).decode())
    card = with_section(plain, text)
    check_epoch(store, epoch)
    put_hash(store, plain)  # what `check_card` takes, whatever section the card has when a run is killed
    store.replace(layout.CARD, card.encode())
    put_hash(store, card)


def put_hash(store: Store, card: str) -> None:
    """Replace `_SUCCESS` by one with the hash of this card, if it has hashes at all."""
    closing = open_sealed(store.read(layout.SUCCESS), SUCCESS_KEYS)
    if closing.get("files") is not None:
        closing["files"] |= {layout.CARD: hashlib.sha256(card.encode()).hexdigest()}
        store.replace(layout.SUCCESS, seal(closing))


def with_section(card: str, text: str) -> str:
    """A card without a section, with this one at its end."""
    return f"{card.rstrip()}\n\n{BEGIN}\n## Evaluation\n\n{text.strip()}\n{END}\n"


def without_section(card: str) -> str:
    """The card as it was closed."""
    before, begin, rest = card.partition(BEGIN)
    return f"{before.rstrip()}\n{rest.partition(END)[2].lstrip()}" if begin else card

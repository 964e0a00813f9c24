"""A token set: the token maps of labelled pictures in a place, each made once by one VQVAE.

PLACE/
  identity.json     everything that changes the ids: pictures, VQVAE, views; and versions and the command
  00000.parquet     the pictures of a block of the source, see `token_blocks`; put once
  skipped.jsonl     pictures that were left out, if there are any
  README.md         what is in the set
  _SUCCESS          last: totals, and the hash of each block's values
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tandem.errors import InputError, OutputError
from tandem.training.balance import balanced
from tandem.training.batches import TokenSet
from tandem_workers.dataset.block_files import IDENTITY, KEYS
from tandem_workers.dataset.seal import DamagedError, open_sealed, seal
from tandem_workers.storage import layout
from tandem_workers.storage.places import open_store
from tandem_workers.storage.s3_parallel import in_parallel
from tandem_workers.storage.store import Store
from tandem_workers.training.token_blocks import BlockSummary, Skipped, TokenBlock, TokenBlocks
from tandem_workers.training.token_card import render_token_card
from tandem_workers.training.token_info import TokenInfo

READS_AT_ONCE = 16
SKIPPED = "skipped.jsonl"
SUCCESS_KEYS = ("identity", "num_classes", "labels", "rows", "skipped", "sha256_of_blocks", "digest")
MAKE = "tandem tokenize DATA --out TOKENS makes one"


@dataclass(frozen=True)
class TokenFiles:
    """A complete token set. Can be pickled."""

    info: TokenInfo
    blocks: TokenBlocks
    rows: tuple[int, ...]  # of each block
    sha256: tuple[str, ...]  # of the values of each block

    @property
    def num_blocks(self) -> int:
        return self.blocks.num_blocks

    def read(self, block: int) -> TokenBlock:
        """A block. OutputError where its file is missing, damaged, or another than when the set was completed."""
        found = self.blocks.read(block)
        if found.sha256 != self.sha256[block]:
            place = f"{self.blocks.path(block)} in {self.blocks.store.uri}"
            raise OutputError(f"{place} is another block than when the set was completed", "tokenize into a new place")
        return found


def open_tokens(place: str) -> TokenFiles:
    """The token set in a folder or at s3://bucket/prefix, from its records alone.

    Raises:
        InputError: no token set, or one that is not complete (the hint is the command that goes on).
        OutputError: the place cannot be read.
    """
    store = open_store(place)
    record = read_record(store, IDENTITY, KEYS)
    identity = (record or {}).get("identity", {})
    if record is None or "vqvae" not in identity:
        found = store.list_files()
        got = f"{len(found)} other files, such as {found[0]}" if found else "nothing"
        raise InputError(f"expected a token set at {place}, got {got}", MAKE)
    blocks = TokenBlocks(store, "", identity, identity["pictures"]["blocks"], identity["views"])
    success = read_record(store, layout.SUCCESS, SUCCESS_KEYS)
    if success is None or success["identity"] != blocks.digest.decode():
        missing = blocks.num_blocks - len(blocks.committed())
        command = record["info"].get("command")
        raise InputError(
            f"{place} is not complete: {missing} of {blocks.num_blocks} blocks are missing"
            if missing
            else f"{place} is not complete: it has no {layout.SUCCESS}",
            f"go on with: {command}" if command else None,
        )
    return opened_files(blocks, record["info"], success)


def read_record(store: Store, path: str, keys: Sequence[str]) -> dict[str, Any] | None:
    """A sealed file; None where it is not there. InputError where it is damaged."""
    try:
        return open_sealed(store.read(path), keys)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        raise InputError(f"{path} in {store.uri} {error}", "tokenize into a new place") from None


def opened_files(blocks: TokenBlocks, info: Mapping[str, Any], success: Mapping[str, Any]) -> TokenFiles:
    """A complete set, from its two records."""
    identity, names = blocks.identity, blocks.identity["class_names"]
    found = TokenInfo(
        vqvae_sha256=identity["vqvae"]["sha256"],
        vocab_size=identity["vqvae"]["vocab_size"],
        latent_channels=identity["vqvae"]["latent_channels"],
        patch_nums=tuple(identity["vqvae"]["patch_nums"]),
        class_names=None if names is None else tuple(names),
        num_classes=success["num_classes"],
        views=identity["views"],
        rows=sum(success["rows"]),
        digest=success["digest"],
        vqvae=str(info.get("vqvae", "")),
        labels={int(label): count for label, count in success["labels"].items()},
        skipped=success["skipped"],
    )
    return TokenFiles(found, blocks, tuple(success["rows"]), tuple(success["sha256_of_blocks"]))


def complete(blocks: TokenBlocks) -> TokenFiles:
    """Write card and `_SUCCESS` of a set whose blocks are all there, unless they are there.

    InputError where every picture was left out.
    """
    record = read_record(blocks.store, IDENTITY, KEYS)
    assert record is not None, "it was claimed"
    there = read_record(blocks.store, layout.SUCCESS, SUCCESS_KEYS)
    if there is not None and there["identity"] == blocks.digest.decode():
        return opened_files(blocks, record["info"], there)
    found = in_parallel(blocks.summary, range(blocks.num_blocks), READS_AT_ONCE)
    skipped = [picture for summary in found for picture in summary.skipped]
    if not any(summary.rows for summary in found):
        reason = f"all were left out, the first: {skipped[0].reason}" if skipped else "there are none"
        raise InputError(f"{blocks.place}: expected pictures to tokenize, {reason}")
    success = totals(blocks, found, len(skipped))
    files = opened_files(blocks, record["info"], success)
    if skipped:
        blocks.store.replace(SKIPPED, as_lines(skipped))
    blocks.store.replace(layout.CARD, render_token_card(blocks.identity, record["info"], files.info).encode())
    blocks.store.put_once(layout.SUCCESS, seal(success))
    blocks.store.clean(closing=True)
    return files


def totals(blocks: TokenBlocks, found: Sequence[BlockSummary], skipped: int) -> dict[str, Any]:
    """The content of `_SUCCESS`."""
    labels: Counter[int] = Counter()
    for summary in found:
        labels.update(summary.labels)
    names, hashes = blocks.identity["class_names"], [summary.sha256 for summary in found]
    content = {"vqvae": blocks.identity["vqvae"], "views": blocks.views, "class_names": names, "blocks": hashes}
    return {
        "identity": blocks.digest.decode(),
        "digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "num_classes": max(labels) + 1 if names is None else len(names),
        "labels": {str(label): count for label, count in sorted(labels.items())},
        "skipped": skipped,
        "rows": [summary.rows for summary in found],
        "sha256_of_blocks": hashes,
    }


def as_lines(skipped: Sequence[Skipped]) -> bytes:
    return "".join(f"{json.dumps(asdict(picture))}\n" for picture in skipped).encode()


def read_all(files: TokenFiles, balance: float | None = None) -> TokenSet:
    """All rows in the order of their index; blocks are read in parallel.

    `balance`: a class is drawn by (distinct pictures)^balance, see `tandem.training.balance`; None: no weights.
    """
    info = files.info
    starts = np.concatenate([[0], np.cumsum(files.rows)])
    ids = np.empty((info.rows, info.views, info.num_tokens), np.uint16)
    labels, groups = np.empty(info.rows, np.int32), np.empty(info.rows, np.int64)

    def read(block: int) -> None:
        found, rows = files.read(block), slice(starts[block], starts[block + 1])
        ids[rows], labels[rows], groups[rows] = found.ids, found.label, found.group

    in_parallel(read, range(files.num_blocks), READS_AT_ONCE)
    return TokenSet(ids, labels, None if balance is None else balanced(labels, groups, balance))

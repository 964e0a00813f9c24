"""Drafts as a dataset of their own: the prefix of every image, to be refined any number of times.

A shard is one parquet file: index, label, tokens (uint16, the first N scales, coarse to fine) and the columns
carried along. 182 bytes an image at N = 6 of the published pyramid, 848 at N = 9. Drafts of edits also have the ids of
the pictures at all scales and the latent cells that are drawn anew: 1,392 bytes more.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tandem.checkpoints.fine_tuning import fine_tuned_in
from tandem.class_names import check_names
from tandem.config import Pyramid, SamplingConfig, VarConfig, from_dict
from tandem.errors import InputError, JobError, OutputError
from tandem.hashing import FileHash
from tandem.user_files import shown
from tandem_workers.dataset.columns import IMAGE_COLUMNS, as_array, as_lists, stored, stored_schema
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.identity import EDIT, Identity
from tandem_workers.dataset.job_record import is_taken, read_job
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.row_settings import ROW_SETTINGS
from tandem_workers.dataset.seal import DamagedError
from tandem_workers.dataset.shard_reader import read_checked
from tandem_workers.dataset.shards import PrefixShard, ShardPlan
from tandem_workers.dataset.token_columns import DRAWN_CELLS, SOURCE_TOKENS, cell_bytes
from tandem_workers.models.model_set import ModelRef, Resolved
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

KIND = "drafts"
HEAL = "'tandem verify --repair' of the drafts, then the same command that made them, make them again"


class DraftFormat:
    """A shard of drafts as one parquet file."""

    def files(self, shard: PrefixShard, tag: str = "") -> list[tuple[str, bytes]]:
        """(path, bytes). Equal rows give equal bytes."""
        columns = {
            "index": pa.array(shard.index, pa.int64()),
            "label": pa.array(shard.label, pa.int32()),
            "tokens": as_lists(shard.prefix),
        }
        if shard.source is not None and shard.drawn is not None:
            columns |= {SOURCE_TOKENS: as_lists(shard.source), DRAWN_CELLS: as_lists(shard.drawn)}
        out, table = io.BytesIO(), pa.table({**columns, **shard.extra})
        # list items keep their name, so that a refiner writes the same bytes as `tandem generate`
        pq.write_table(
            table, out, compression="zstd", use_dictionary=False, version="2.6", use_compliant_nested_type=False
        )
        return [(layout.shard_path(shard.shard, "parquet", tag), out.getvalue())]


@dataclass(frozen=True)
class Drafts:
    """A finished dataset of drafts, as `tandem refine` reads it. Small enough to pickle to every worker."""

    store: Store
    plan: ShardPlan
    identity: Identity
    drafter: Resolved
    epoch: int = 0  # of these drafts, not of drafts that replace them
    edits: Mapping[str, Any] | None = None  # of drafts of edits: the options that say where pictures and masks are

    @property
    def seed(self) -> int:
        return self.identity.seed

    @property
    def draft_steps(self) -> int:
        """N that was drafted; a refiner may start from fewer scales."""
        return self.identity.draft_steps

    @property
    def sampling(self) -> SamplingConfig:
        return self.identity.sampling

    @property
    def row_settings(self) -> tuple[str, ...]:
        """Columns of the drafts with the settings of each row."""
        return self.identity.row_settings

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Name and type of the columns that every shard has."""
        pyramid = self.pyramid
        tokens = pa.list_(pa.uint16(), pyramid.offsets[self.draft_steps])
        columns = {"index": pa.int64(), "label": pa.int32(), "tokens": tokens}
        if self.edits is not None:
            columns[SOURCE_TOKENS] = pa.list_(pa.uint16(), pyramid.num_tokens)
            columns[DRAWN_CELLS] = pa.list_(pa.uint8(), cell_bytes(pyramid.grid))
        return columns

    @property
    def pyramid(self) -> Pyramid:
        assert isinstance(self.drafter.config, VarConfig)
        return self.drafter.config.pyramid

    def extra_schema(self) -> pa.Schema:
        """Schema of the carried columns as `read` returns them, from the first readable shard.

        Raises JobError if no shard is readable; InputError for columns that have names of the dataset's own.
        """
        for shard in range(self.plan.num_shards):
            try:
                table = self._table(shard)
                break
            except JobError:
                if shard == self.plan.num_shards - 1:
                    raise
        schema = pa.schema([field for field in table.schema if field.name not in self.columns])
        if clash := sorted(IMAGE_COLUMNS.intersection(schema.names) - set(self.row_settings)):
            raise InputError(
                f"--drafts: column {clash[0]!r}: expected none of this name, which is the dataset's own",
                "an older version carried it along; draft again, with the column renamed",
            )
        return stored_schema(schema)

    def read(self, shard: int, draft_steps: int) -> PrefixShard:
        """The drafts of one shard, cut to `draft_steps` scales. JobError if its file is missing or damaged."""
        table = self._table(shard)
        extra = stored(table.drop_columns(list(self.columns)))
        edits = self.edits is not None
        return PrefixShard(
            shard=shard,
            index=table["index"].to_numpy().astype(np.int64),
            label=table["label"].to_numpy().astype(np.int32),
            prefix=np.ascontiguousarray(as_array(table["tokens"])[:, : self.pyramid.offsets[draft_steps]]),
            draft_steps=draft_steps,
            source=as_array(table[SOURCE_TOKENS]) if edits else None,
            drawn=as_array(table[DRAWN_CELLS]) if edits else None,
            extra={name: extra[name] for name in extra.column_names},
        )

    def _table(self, shard: int) -> pa.Table:
        """A shard's file, checked against its manifest entry and the plan. OutputError if drafts were replaced."""
        entry = Manifest(self.store, self.epoch).entry(shard)
        if entry is None:
            self._check_place()
            raise JobError(f"drafts in {self.store.uri}: shard {shard} has no manifest entry", HEAL)
        path = entry.files[0].path
        try:
            table = pq.read_table(io.BytesIO(read_checked(self.store, entry.files[0])))
            self._check(table, entry)
        except (ValueError, pa.ArrowException, OSError) as error:
            self._check_place()
            text = " ".join(str(error).split())[:200]  # Arrow adds lines of schemas
            raise JobError(f"drafts in {self.store.uri}: {path}: {text}", HEAL) from None
        return table

    def _check_place(self) -> None:
        """Raise OutputError if other drafts have replaced these."""
        if is_taken(self.store, self.epoch):
            raise OutputError(
                f"drafts in {self.store.uri}: another job has taken this place (--overwrite)",
                "when that job has ended, refine its drafts, to another --out",
            )

    def _check(self, table: pa.Table, entry: ManifestEntry) -> None:
        """Raise DamagedError for an intact file with wrong columns: older versions let columns of the label file
        replace those of the drafts."""
        expected = list(self.columns.items())
        found = [(field.name, field.type) for field in table.schema if field.name in self.columns]
        if found != expected:
            raise DamagedError(f"expected columns {dict(expected)}, found {dict(found)}")
        if table["index"].to_pylist() != list(self.plan.indices(entry.shard)):
            raise DamagedError(f"expected the indices of shard {entry.shard}, found others")
        if Counter(table["label"].to_pylist()) != entry.labels:
            raise DamagedError("expected the labels of its manifest entry, found others")


def open_drafts(store: Store) -> Drafts:
    """Open the drafts at a place. Raises InputError if there are none, or if shards are missing."""
    try:
        drafts = _describe(store, read_job(store))
    except FileNotFoundError:
        raise InputError(
            f"--drafts: {store.uri} holds no drafts: job.json is missing", "made by: tandem draft"
        ) from None
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"--drafts: job.json in {store.uri} is not that of drafts: {shown(repr(error))}") from None
    shards = range(drafts.plan.num_shards)
    if missing := len(set(shards) - Manifest(store, drafts.epoch).committed(shards)):
        hint = "run the command that makes them again"
        raise InputError(f"--drafts: {missing} of {drafts.plan.num_shards} shards of {store.uri} are missing", hint)
    return drafts


def _describe(store: Store, job: dict[str, Any]) -> Drafts:
    """Drafts as their job.json describes them. Wrong values raise errors of any type."""
    identity, about = Identity(job["identity"]), job["info"]["drafter"]
    if identity.kind != KIND:
        raise InputError(f"--drafts: {store.uri} holds a job of another kind", "made by: tandem draft")
    config = from_dict(VarConfig, about["config"])
    found = job["info"].get("class_names", about.get("class_names"))  # older versions kept them with the drafter
    edits = job["info"][EDIT] if identity.edits else None
    if edits is not None and found is not None:
        found = found[: config.num_classes]  # the last one is "none"
    names = check_names(found, config.num_classes, f"--drafts: class_names in job.json of {store.uri}")
    scales = config.pyramid.num_scales
    hashes, source, part = identity.weights, about["source"], about.get("part", "")
    if not all(isinstance(text, str) for text in (hashes["drafter"], hashes["vqvae"], source, part)):
        raise TypeError("hashes and sources of weights have to be text")
    ref, tuned = ModelRef("drafter", source, FileHash.known(hashes["drafter"]), part=part), fine_tuned_in(about, scales)
    resolved = Resolved(ref, config, names, tuned)
    drafts = Drafts(store, ShardPlan.of(identity), identity, resolved, job["epoch"], edits)
    config.pyramid.check_draft_steps(drafts.draft_steps)
    if not isinstance(drafts.sampling, SamplingConfig) or drafts.seed < 0 or set(drafts.row_settings) - {*ROW_SETTINGS}:
        raise ValueError(f"expected settings of decoding, got {identity.decoding}")
    return drafts

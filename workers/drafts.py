"""Drafts as a dataset of their own: the prefix of every image, to be refined as often as wanted.

A shard is one parquet file: index, label, tokens (uint16, the first N scales, coarse to fine) and the columns
carried along. 182 bytes an image at N = 6 of the published pyramid, 848 at N = 9.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tandem.class_names import check_names
from tandem.config import SamplingConfig, VarConfig, from_dict
from tandem.errors import InputError
from workers import layout
from workers.columns import stored, stored_schema
from workers.manifest import Manifest, read_job
from workers.models import ModelRef, Resolved
from workers.shards import PrefixShard, ShardPlan
from workers.store import Store

KIND = "drafts"
COLUMNS = ("index", "label", "tokens")


class DraftFormat:
    """A shard of drafts as one parquet file."""

    def files(self, shard: PrefixShard) -> list[tuple[str, bytes]]:
        """(path, bytes). Equal rows give equal bytes."""
        flat = pa.array(np.ascontiguousarray(shard.prefix).reshape(-1))
        columns = {
            "index": pa.array(shard.index, pa.int64()),
            "label": pa.array(shard.label, pa.int32()),
            "tokens": pa.FixedSizeListArray.from_arrays(flat, shard.prefix.shape[1]),
        }
        out, table = io.BytesIO(), pa.table({**columns, **shard.extra})
        # the items of lists keep their name, so that a refiner writes the bytes that `tandem generate` writes
        pq.write_table(
            table, out, compression="zstd", use_dictionary=False, version="2.6", use_compliant_nested_type=False
        )
        return [(layout.shard_path(shard.shard, "parquet"), out.getvalue())]


@dataclass(frozen=True)
class Drafts:
    """A finished dataset of drafts, as a job of refiners sees it. Small enough to send anywhere."""

    store: Store
    plan: ShardPlan
    identity: dict[str, Any]
    drafter: Resolved

    @property
    def seed(self) -> int:
        return int(self.identity["decoding"]["seed"])

    @property
    def draft_steps(self) -> int:
        """N that was drafted; a refiner may start from fewer scales."""
        return int(self.identity["decoding"]["draft_steps"])

    @property
    def sampling(self) -> SamplingConfig:
        sampling: SamplingConfig = from_dict(SamplingConfig, self.identity["decoding"]["sampling"])
        return sampling

    @property
    def row_settings(self) -> tuple[str, ...]:
        """Settings that each row was drafted with, columns of the drafts."""
        return tuple(self.identity["decoding"].get("row_settings", ()))

    def extra_schema(self) -> pa.Schema:
        """The columns carried along, read from the first shard, as `read` gives them."""
        with self.store.open(layout.shard_path(0, "parquet")) as file:
            schema = pq.read_schema(file)
        return stored_schema(pa.schema([field for field in schema if field.name not in COLUMNS]))

    def read(self, shard: int, draft_steps: int) -> PrefixShard:
        """The drafts of one shard, cut to `draft_steps` scales."""
        assert isinstance(self.drafter.config, VarConfig)
        length = self.drafter.config.pyramid.offsets[draft_steps]
        table = pq.read_table(io.BytesIO(self.store.read(layout.shard_path(shard, "parquet"))))
        extra = stored(table.drop_columns(list(COLUMNS)))
        tokens = table["tokens"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        return PrefixShard(
            shard=shard,
            index=table["index"].to_numpy().astype(np.int64),
            label=table["label"].to_numpy().astype(np.int32),
            prefix=np.ascontiguousarray(tokens[:, :length]),
            draft_steps=draft_steps,
            extra={name: extra[name] for name in extra.column_names},
        )


def open_drafts(store: Store) -> Drafts:
    """Find out what drafts a place holds. InputError if there are none, or not all of them."""
    try:
        job = read_job(store)
        identity, about = job["identity"], job["info"]["drafter"]
        if identity.get("kind") != KIND:
            raise InputError(f"--drafts: {store.uri} holds a job of another kind", "made by: tandem draft")
        config = from_dict(VarConfig, about["config"])
        found = job["info"].get("class_names", about.get("class_names"))  # older versions kept them with the drafter
        names = check_names(found, config.num_classes, f"--drafts: class_names in job.json of {store.uri}")
        ref = ModelRef("drafter", about["source"], identity["weights_sha256"]["drafter"], part=about.get("part", ""))
        plan = ShardPlan(int(identity["rows"]), int(identity["shard_size"]))
    except FileNotFoundError:
        raise InputError(
            f"--drafts: {store.uri} holds no drafts: job.json is missing", "made by: tandem draft"
        ) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--drafts: job.json in {store.uri} is not that of drafts: {error!r}") from None
    if missing := plan.num_shards - len(Manifest(store).committed()):
        hint = "run the same 'tandem draft' command again"
        raise InputError(f"--drafts: {missing} of {plan.num_shards} shards of {store.uri} are missing", hint)
    return Drafts(store, plan, identity, Resolved(ref, config, names))

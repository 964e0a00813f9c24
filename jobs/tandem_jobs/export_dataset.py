"""`tandem export --to folder|webdataset|parquet`: the pictures of any source as a dataset of Tandem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tandem.images import codec_of
from tandem_jobs.run.image_output import REQUIRED_FILES
from tandem_jobs.run.interrupt import stop_in_time
from tandem_jobs.run.progress import RunProgress, say
from tandem_jobs.run.shard_range import command_line, full_command, resume_command
from tandem_jobs.run.versions import software, versions
from tandem_workers.dataset.card import closing_files
from tandem_workers.dataset.claim import JobRecord, open_job
from tandem_workers.dataset.closing import close_dataset, reopen
from tandem_workers.dataset.columns import IMAGE_COLUMNS, check_carried
from tandem_workers.dataset.commit import store_shard
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.export_card import ExportCard, origin_of
from tandem_workers.dataset.formats import DatasetFormat, FormatName
from tandem_workers.dataset.identity import export_identity
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import ShardPlan
from tandem_workers.pictures.own_columns import TOKENS
from tandem_workers.pictures.own_dataset import OwnDataset
from tandem_workers.pictures.picture_block import PictureSource
from tandem_workers.pictures.recut import Recut, open_recut
from tandem_workers.storage.store import Store


def export_dataset(
    source: PictureSource, counts: Sequence[int], store: Store, to: FormatName, shard_size: int, overwrite: bool
) -> dict[str, Any]:
    """Write a dataset, or what is missing of it. Returns a summary.

    Raises:
        InputError: a picture is broken or has no label; the format cannot hold a column.
        OutputError: the place holds something else, or cannot be written.
    """
    store.check()
    plan = ShardPlan(sum(counts), shard_size)
    recut, first = open_recut(source, counts)
    recut.check_labels(first)
    schema = recut.schema if recut.schema is not None else pa.schema([])
    columns = pa.schema([field for field in schema if field.name != TOKENS])
    check_columns(columns.empty_table(), to)
    if first.lost_columns:
        say(f"note: columns {', '.join(first.lost_columns)} are left out: the tars hold them without their types")
    codec = codec_of(first.encoded[0]) if first.encoded else None
    fmt = DatasetFormat(to, codec or "png", source.class_names)
    types = {field.name: str(field.type) for field in columns}
    identity = export_identity(source.identity, plan.num_rows, shard_size, to, fmt.codec, types)
    record = open_job(store, identity, {"command": command_line(), **versions(), **about(source)}, overwrite)
    store.remember_job(record.path)
    resumed = make_shards(recut, store, record, fmt, plan)

    def render(entries: Sequence[ManifestEntry], failed: Mapping[int, str]) -> dict[str, bytes]:
        origin, command = record.info.get("origin"), full_command(record.info["command"])
        card = ExportCard(fmt, source.kind, origin, columns, command, software(), TOKENS in schema.names)
        return closing_files(store, card, record.epoch, entries, failed)

    with stop_in_time(resume_command()):
        close_dataset(Manifest(store, record.epoch), plan.num_shards, {}, render, REQUIRED_FILES)
    say(f"dataset: {store.uri}")
    return {"out": store.uri, "to": to, "images": plan.num_rows, "shards": plan.num_shards, "resumed_shards": resumed}


def make_shards(recut: Recut, store: Store, record: JobRecord, fmt: DatasetFormat, plan: ShardPlan) -> int:
    """Store the missing shards, one after the other. Returns how many were there before."""
    manifest = Manifest(store, record.epoch)
    done = manifest.committed(range(plan.num_shards))
    if len(done) < plan.num_shards:
        reopen(manifest)
    say(f"{plan.num_rows} pictures in {plan.num_shards} shards, {len(done)} of them done before -> {store.uri}")
    made = sum(len(plan.indices(shard)) for shard in done)
    with stop_in_time(resume_command()), RunProgress(plan.num_rows, made) as progress:
        for shard in recut.shards(plan, done):
            check_columns(pa.table(shard.extra), fmt.name)
            store_shard(store, manifest, shard, fmt, plan)
            progress.add(len(shard))
    return len(done)


def check_columns(table: pa.Table, to: FormatName) -> None:
    """InputError for a column that the format cannot hold. Those of every generated image are known to suit all."""
    carried = table.drop_columns([name for name in table.column_names if name in IMAGE_COLUMNS])
    check_carried(carried, to)


def about(source: PictureSource) -> dict[str, Any]:
    """What `job.json` keeps of a source, and is not compared."""
    names = source.class_names
    origin = origin_of(source.record) if isinstance(source, OwnDataset) else None
    return {"class_names": None if names is None else list(names), "origin": origin}

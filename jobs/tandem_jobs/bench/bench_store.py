"""`tandem bench store`: encoding per core and codec, and writing compared with the simplest way to write."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image
from pydantic import Field, PositiveInt
from rich.console import Console
from rich.table import Table

from tandem.errors import InputError
from tandem.images import Codec, Provenance
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.progress import say
from tandem_workers.dataset.commit import Format, store_shard
from tandem_workers.dataset.formats import DatasetFormat
from tandem_workers.dataset.manifest import Manifest
from tandem_workers.dataset.shards import EncodedShard, PixelShard, ShardPlan
from tandem_workers.stages.encoder import ImageEncoder
from tandem_workers.storage import layout
from tandem_workers.storage.places import open_store
from tandem_workers.storage.s3_address import SCHEME, split_prefix
from tandem_workers.storage.store import Store

EXAMPLES = """examples:
  tandem bench store                              a local folder, compared with webdataset.ShardWriter
  tandem bench store --out s3://bucket/bench      S3, compared with plain boto3 uploads of the same bytes

Both ways write the same images in turns; the median of their ratios is printed. The files are removed.
For a folder both ways pack tars as they write; for S3 both send tars that were packed before."""
NAMES = ("one", "two")


class BenchStoreSpec(Spec):
    """Encode throughput per core and codec, and write throughput compared with a raw upload or ShardWriter."""

    out: str | None = Field(None, description="s3://bucket/prefix or a folder; default: a temporary folder")
    images: PositiveInt = Field(512, description="images per shard")
    shards: PositiveInt = Field(8, description="shards that each way writes in a round")
    image_size: PositiveInt = Field(256, description="side of the images in pixels")
    codec: Codec = Field("png", description="codec of the written images")
    rounds: PositiveInt = Field(5, description="rounds; the median counts")
    writers: PositiveInt = Field(2, description="shards written at once, in both ways")


def run(spec: BenchStoreSpec) -> dict[str, Any]:
    """Measure and report; the last line on stdout is one JSON object."""
    pixels = sample_pixels(64, spec.image_size)
    encoding = {codec: encode_rate(codec, pixels) for codec in get_args(Codec)}
    images = encoder(spec.codec)(pixel_shard(pixels)).images
    with tempfile.TemporaryDirectory() as folder:
        writing = compare_writing(spec, [images[i % len(images)] for i in range(spec.images)], spec.out or folder)
    result = {"image_size": spec.image_size, "encode_images_per_s_per_core": encoding, "write": writing}
    print_report(result)
    print(json.dumps(result), flush=True)
    return result


def sample_pixels(count: int, size: int) -> np.ndarray:
    """Smooth colours with some texture, as hard to compress as a photograph of this size: uint8 [n, H, W, 3]."""
    rng, images = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((size, size), 3)
        images.append(np.clip(np.asarray(coarse, np.int16) + rng.normal(0, 6, (size, size, 3)), 0, 255))
    return np.stack(images).astype(np.uint8)


def encoder(codec: Codec) -> ImageEncoder:
    return ImageEncoder(codec, 92, Provenance("tandem bench", "d" * 64, "r" * 64, "v" * 64, 0, 1), NAMES)


def pixel_shard(pixels: np.ndarray) -> PixelShard:
    n = len(pixels)
    return PixelShard(shard=0, index=np.arange(n), label=np.zeros(n, np.int32), pixels=pixels)


def encode_rate(codec: Codec, pixels: np.ndarray) -> float:
    """Images a second of one core, provenance included: median of three."""
    work, shard, seconds = encoder(codec), pixel_shard(pixels), []
    for _ in range(3):
        began = time.process_time()
        work(shard)
        seconds.append(time.process_time() - began)
    return round(len(pixels) / statistics.median(seconds), 1)


def compare_writing(spec: BenchStoreSpec, images: list[bytes], out: str) -> dict[str, Any]:
    """Rounds of ours and theirs in turns, in fresh places below `out`."""
    root = open_store(out)
    if root.list_files("bench"):
        raise InputError(f"--out: expected no files below {root.uri}/bench, found some")
    root.check()
    fmt: Format = DatasetFormat("webdataset", spec.codec, NAMES, 0, 1)
    began = time.perf_counter()
    tar = fmt.files(shard_of(spec, images, 0))[0][1]
    pack_s = time.perf_counter() - began
    theirs: Callable[[str], None]
    if out.startswith(SCHEME):
        name, theirs, fmt = "boto3 put_object", lambda place: upload_plainly(spec, tar, place), Packed(tar)
    else:
        name, theirs = "webdataset.ShardWriter", lambda place: write_with_webdataset(spec, images, place)
    seconds: dict[str, list[float]] = {"tandem": [], name: []}
    ways = {"tandem": lambda place: write_ours(spec, images, place, fmt), name: theirs}
    for turn in range(-1, spec.rounds):  # the first is to warm up
        for way, write in ways.items():
            place = f"{root.uri}/bench/{turn + 1}-{'ours' if way == 'tandem' else 'theirs'}"
            began = time.perf_counter()
            write(place)
            if turn >= 0:
                seconds[way].append(time.perf_counter() - began)
            remove_all(open_store(place))
        say(f"round {turn + 1} of {spec.rounds}: " + ", ".join(f"{w} {s[-1]:.2f} s" for w, s in seconds.items() if s))
    megabytes = spec.shards * len(tar) / 1e6
    ratios = [b / a for a, b in zip(seconds["tandem"], seconds[name], strict=True)]
    return {
        "beside": name,
        "megabytes": round(megabytes, 1),
        "pack_mb_per_s_per_core": round(len(tar) / 1e6 / pack_s, 1),
        "mb_per_s": {way: round(megabytes / statistics.median(s), 1) for way, s in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def shard_of(spec: BenchStoreSpec, images: list[bytes], shard: int) -> EncodedShard:
    index = np.arange(shard * spec.images, (shard + 1) * spec.images)
    return EncodedShard(shard=shard, index=index, label=np.zeros(spec.images, np.int32), images=images)


@dataclass(frozen=True)
class Packed:
    """A format whose files were made before."""

    tar: bytes

    def files(self, shard: EncodedShard, tag: str = "") -> list[tuple[str, bytes]]:
        return [(layout.shard_path(shard.shard, "tar", tag), self.tar)]


def write_ours(spec: BenchStoreSpec, images: list[bytes], place: str, fmt: Format) -> None:
    """Write images like a job: hash, conditional put, manifest entry, and packing unless `fmt` is packed already."""
    store = open_store(place)
    plan = ShardPlan(spec.shards * spec.images, spec.images)
    with ThreadPoolExecutor(spec.writers) as pool:
        for future in [
            pool.submit(store_shard, store, Manifest(store, 0), shard_of(spec, images, i), fmt, plan)
            for i in range(spec.shards)
        ]:
            future.result()


def upload_plainly(spec: BenchStoreSpec, tar: bytes, place: str) -> None:
    """The same bytes by the simplest call: no hash, no condition, no manifest."""
    from tandem_workers.storage.s3_client import make_client  # boto3 takes a second to import
    from tandem_workers.storage.s3_retry import PATIENT

    client = make_client(PATIENT)
    bucket, prefix = split_prefix(place, "--out")
    with ThreadPoolExecutor(spec.writers) as pool:
        for future in [
            pool.submit(client.put_object, Bucket=bucket, Key=f"{prefix}/shards/{i:05d}.tar", Body=tar)
            for i in range(spec.shards)
        ]:
            future.result()


def write_with_webdataset(spec: BenchStoreSpec, images: list[bytes], place: str) -> None:
    """The same samples by the writer of the webdataset library, a shard each."""
    import webdataset

    Path(place).mkdir(parents=True)

    def write(shard: int) -> None:
        with webdataset.ShardWriter(f"{place}/{shard:05d}-%d.tar", spec.images, maxsize=math.inf, verbose=0) as sink:
            for i, image in enumerate(images):
                row = {"index": shard * spec.images + i, "label": 0, "class_name": NAMES[0], "seed": 0}
                key = f"{row['index']:09d}"
                sink.write({"__key__": key, spec.codec: image, "cls": 0, "json": row | {"draft_steps": 1}})

    with ThreadPoolExecutor(spec.writers) as pool:
        list(pool.map(write, range(spec.shards)))


def remove_all(store: Store) -> None:
    for path in store.list_files():
        store.remove(path)


def print_report(result: dict[str, Any]) -> None:
    console = Console(stderr=True)
    table = Table("codec", "images/s a core", title=f"encoding, {result['image_size']} px")
    for codec, rate in result["encode_images_per_s_per_core"].items():
        table.add_row(codec, f"{rate:.1f}")
    console.print(table)
    write = result["write"]
    table = Table("way", "MB/s", title=f"writing {write['megabytes']} MB of encoded images")
    for way, rate in write["mb_per_s"].items():
        table.add_row(way, f"{rate:.1f}")
    console.print(table)
    say(f"packing a tar: {write['pack_mb_per_s_per_core']:.1f} MB/s a core")
    say(f"tandem / {write['beside']}: {write['ratio']:.2f} (median of {write['ratios']})")

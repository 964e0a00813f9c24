"""Read a dataset in each of the three formats with the tools that people use anyway.

    python examples/read_dataset.py out

Prints how many images each class has, and what the first image says of its own origin. Needs `pip install webdataset
datasets`; nothing of Tandem but for the provenance.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets
import webdataset

from tandem.images import read_provenance

Sample = tuple[bytes, int, str]  # encoded image, label, name of the class


def read_tars(dataset: Path) -> Iterator[Sample]:
    """`--format webdataset`: a tar a shard, which streams well and can be read over a network."""
    shards = sorted(map(str, dataset.glob("shards/*.tar")))
    for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():  # bytes of images stay as they are
        image = next(sample[key] for key in ("png", "jpg", "webp") if key in sample)
        yield image, sample["cls"], sample["json"]["class_name"]


def read_parquet(dataset: Path) -> Iterator[Sample]:
    """`--format parquet`: columns, which a query reads without the images."""
    rows = datasets.load_dataset("parquet", data_files=str(dataset / "shards" / "*.parquet"), split="train")
    for row in rows.cast_column("image", datasets.Image(decode=False)):
        yield row["image"]["bytes"], row["label"], row["class_name"]


def read_folder(dataset: Path) -> Iterator[Sample]:
    """`--format folder`: plain files, to look at; `imagefolder` adds the columns of `images/metadata.parquet`."""
    rows = datasets.load_dataset("imagefolder", data_dir=str(dataset / "images"), split="train")
    for row in rows.cast_column("image", datasets.Image(decode=False)):
        yield Path(row["image"]["path"]).read_bytes(), row["label"], row["class_name"]


def reader(dataset: Path) -> Iterator[Sample]:
    if not (dataset / "_SUCCESS").exists():
        sys.exit(f"error: {dataset}: expected a complete dataset, got no _SUCCESS")
    if (dataset / "images").is_dir():
        return read_folder(dataset)
    return read_tars(dataset) if list(dataset.glob("shards/*.tar")) else read_parquet(dataset)


def main(dataset: str) -> None:
    counts: Counter[str] = Counter()
    for image, label, class_name in reader(Path(dataset)):
        if not counts:
            provenance = read_provenance(image)
            print(f"first image: {provenance.software}, seed {provenance.seed}, N = {provenance.draft_steps}")
        counts[f"{label} {class_name}"] += 1
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")
    print(f"{counts.total()} images")


if __name__ == "__main__":
    main(*sys.argv[1:])

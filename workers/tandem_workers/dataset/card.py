"""Files for readers of a finished dataset: its card (README.md) and, for an image folder, the table of its images.

They are made from the committed shards, so they are the same after any number of resumes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import Any, Protocol

import pyarrow as pa
import yaml
from PIL import Image

from tandem.images import DIGITAL_SOURCE_TYPE, TITLES
from tandem_workers.dataset.contact_sheet import open_whole, render_contact_sheet
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.features import GENERATED, sample_features
from tandem_workers.dataset.formats import DatasetFormat, merge_tables
from tandem_workers.dataset.ran import describe_differences
from tandem_workers.dataset.shard_names import ShardNames
from tandem_workers.dataset.shard_reader import naming_damage, read_checked
from tandem_workers.dataset.success_file import Totals, add_up
from tandem_workers.storage import layout
from tandem_workers.storage.store import Store

PLAIN_NAMES = ShardNames()
SIZE_CATEGORIES = {  # upper limit of rows -> the hub's name
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
    10**10: "1B<n<10B",
}

_FILES = {
    "webdataset": [("shards/*{tag}.tar", "samples of `{ext}`, `cls` (the label) and `json` (the other columns)")],
    "parquet": [("shards/*{tag}.parquet", "images and columns, with Hugging Face features")],
    "folder": [
        ("images/<label>/<index>{tag}.{ext}", "the images; folders are labels with leading zeros"),
        ("images/metadata.parquet", "all columns, one row an image"),
        ("rows/*{tag}.parquet", "the same rows, one table a shard"),
    ],
}
_READING = {
    "webdataset": """import webdataset  # shards/ as seen from here
samples = webdataset.WebDataset({tars}, shardshuffle=False).decode("pil")
for image, label, row in samples.to_tuple("{ext}", "cls", "json"):
    ...""",
    "parquet": """from datasets import load_dataset
dataset = load_dataset("parquet", data_files={data_files!r}, split="train")
dataset[0]["image"], {label}

import pyarrow.parquet
table = pyarrow.parquet.read_table("shards")""",
    "folder": """from datasets import load_dataset
dataset = load_dataset("imagefolder", data_dir="images", split="train")
dataset[0]["image"], {label}

from torchvision.datasets import ImageFolder
folder = ImageFolder("images")  # it numbers the folders that exist:
image, target = folder[0]
label = int(folder.classes[target])""",
}


@dataclass(frozen=True)
class CardInfo:
    """Contents of the card that do not come from the manifest.

    Attributes:
        models: (file or preset, SHA-256) of each role, such as "drafter".
        sampling: settings by name, in the order to show them.
        command: the command line that makes the dataset again.
        software: name and version.
        row_settings: settings that differ by row, in columns of these names.
        tokens: whether the refiner's token ids are in the dataset.
        carried: the columns carried along from the label file.
        license: a Hugging Face licence identifier.
    """

    fmt: DatasetFormat
    image_size: int
    models: Mapping[str, tuple[str, str]]
    sampling: Mapping[str, Any]
    command: str
    software: str
    tokens: bool = False
    carried: pa.Schema = field(default_factory=lambda: pa.schema([]))
    row_settings: tuple[str, ...] = ()
    title: str = "Synthetic images by Tandem"
    license: str = "other"

    def thumbnail(self, data: bytes) -> Image.Image:
        return open_whole(data)

    def render(self, totals: Totals, shard_names: ShardNames, differences: str) -> str:
        return render_card(self, totals, shard_names, differences)


class Card(Protocol):
    """What the closing files of a dataset depend on, besides its shards."""

    @property
    def fmt(self) -> DatasetFormat: ...

    def thumbnail(self, data: bytes) -> Image.Image:
        """An image file for the contact sheet."""

    def render(self, totals: Totals, shard_names: ShardNames, differences: str) -> str:
        """The dataset card: Markdown with the YAML front matter of the Hugging Face hub."""


def closing_files(
    store: Store, info: Card, epoch: int, entries: Sequence[ManifestEntry], failed: Mapping[int, str]
) -> dict[str, bytes]:
    """Contact sheet, card and, for an image folder, its table, by path, from the entries of all committed shards."""
    totals, differences = add_up(entries, failed), describe_differences([entry.ran for entry in entries])
    files = {
        layout.CONTACT_SHEET: render_contact_sheet(store, entries, info.fmt, info.thumbnail),
        layout.CARD: info.render(totals, ShardNames.of(epoch, entries), differences).encode(),
    }
    if info.fmt.name == "folder":
        tables = []
        for file in (file for entry in entries for file in entry.files if file.path.startswith("rows/")):
            with naming_damage(store, file.path):
                tables.append(read_checked(store, file))
        files[layout.IMAGE_TABLE] = merge_tables(tables, info.fmt)
    return files


def render_card(info: CardInfo, totals: Totals, shard_names: ShardNames = PLAIN_NAMES, differences: str = "") -> str:
    """The dataset card of a job that makes images. `differences`: see `dataset.ran.describe_differences`."""
    shared = shared_values(info.fmt, totals, shard_names, info.title, info.license)
    columns = f"Columns: the image, {', '.join(column_names(info))}, and those carried along from the label file."
    return fill(
        "card_template.md",
        shared | made_values(info, differences),
        columns=columns,
        digital_source_type=DIGITAL_SOURCE_TYPE,
    )


def made_values(info: CardInfo, differences: str) -> dict[str, Any]:
    """What a card says of how the images of a job were made."""
    fmt = info.fmt
    own = {name: f"of each row: column `{name}`" for name in info.row_settings}
    return {
        "dataset_info": dataset_info(fmt, info.carried, info.tokens),
        "image_size": info.image_size,
        "software": info.software,
        "num_drafted": "N" if "draft_steps" in own else fmt.draft_steps,
        "draft_steps": own.get("draft_steps", fmt.draft_steps),
        "seed": f"{own['seed']}, and `seed_index` in place of the index" if "seed" in own else fmt.seed,
        "models": markdown_rows((role, name, f"`{digest}`") for role, (name, digest) in info.models.items()),
        "sampling": markdown_rows((name, own.get(name, value)) for name, value in info.sampling.items()),
        "differences": f"\n{differences}" if differences else "",
        "command": info.command,
    }


def column_names(info: CardInfo) -> list[str]:
    """The columns that every dataset of images has, as Markdown."""
    names = [f"`{name}`" for name in ("index", "label", "class_name", "seed", "draft_steps")]
    return [*names, *(["`tokens` (the refiner's token ids, coarse to fine)"] if info.tokens else [])]


def fill(template: str, shared: Mapping[str, Any], **values: Any) -> str:
    """A template of this folder with all its values."""
    text = (files("tandem_workers.dataset") / template).read_text(encoding="utf-8")
    return Template(text).substitute(shared, **values)


def shared_values(
    fmt: DatasetFormat, totals: Totals, shard_names: ShardNames, title: str, license: str
) -> dict[str, Any]:
    """The values of every card: what is in the dataset, its files, how they are read."""
    num_shards = totals.shards + len(totals.failed_shards)
    values = {
        "ext": fmt.extension,
        "tag": shard_names.tag,
        "data_files": shard_names.patterns(fmt.name),
        "tars": shard_names.tars(num_shards, totals.failed_shards),
        "label": 'dataset[0]["label"]'
        if fmt.class_names is None
        else 'dataset.features["label"].int2str(dataset[0]["label"])',
    }
    return {
        "pretty_name": json.dumps(title),  # any JSON string is a YAML string
        "title": title,
        "license": license,
        "size_category": next(name for end, name in SIZE_CATEGORIES.items() if totals.rows < end),
        "data_files": json.dumps(values["data_files"]),
        "rows": f"{totals.rows:,}",
        "missing": missing(totals.failed_shards, num_shards),
        "num_classes": len(totals.labels),
        "codec": TITLES[fmt.codec],
        "reading": _READING[fmt.name].format(**values),
        "files": markdown_rows(
            (f"`{path}`".format(**values), text.format(**values)) for path, text in _FILES[fmt.name]
        ),
        "classes": markdown_rows((label, fmt.name_of(label), count) for label, count in totals.labels.items()),
    }


def dataset_info(fmt: DatasetFormat, carried: pa.Schema, tokens: bool, own: Mapping[str, str] = GENERATED) -> str:
    """The types of the members of a tar, as YAML. Files of other formats contain their types. See `sample_features`."""
    if fmt.name != "webdataset":
        return ""
    features = sample_features(fmt.extension, carried, tokens, own)
    return yaml.safe_dump({"dataset_info": {"features": features}}, sort_keys=False, allow_unicode=True)


def missing(failed: Mapping[int, str], num_shards: int) -> str:
    """A paragraph on missing shards, if any."""
    if not failed:
        return ""
    names = ", ".join(map(str, sorted(failed)))
    return f"\n\n{len(failed)} of {num_shards} shards could not be made and are missing: {names} (`_SUCCESS` says why)."


def markdown_rows(rows: Iterable[tuple[Any, ...]]) -> str:
    return "\n".join(f"| {' | '.join(_cell(value) for value in row)} |" for row in rows)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")

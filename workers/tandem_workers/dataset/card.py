"""Files for readers of a finished dataset: its card (README.md) and, for an image folder, the table of its images.

They are made from the committed shards, so they are the same after any number of resumes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import Any

import pyarrow as pa
import yaml

from tandem.images import DIGITAL_SOURCE_TYPE, TITLES
from tandem_workers.dataset.contact_sheet import render_contact_sheet
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.features import sample_features
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
dataset[0]["image"], dataset.features["label"].int2str(dataset[0]["label"])

import pyarrow.parquet
table = pyarrow.parquet.read_table("shards")""",
    "folder": """from datasets import load_dataset
dataset = load_dataset("imagefolder", data_dir="images", split="train")
dataset[0]["image"], dataset.features["label"].int2str(dataset[0]["label"])

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


def closing_files(
    store: Store, info: CardInfo, epoch: int, entries: Sequence[ManifestEntry], failed: Mapping[int, str]
) -> dict[str, bytes]:
    """Contact sheet, card and, for an image folder, its table, by path, from the entries of all committed shards."""
    totals, differences = add_up(entries, failed), describe_differences([entry.ran for entry in entries])
    files = {
        layout.CONTACT_SHEET: render_contact_sheet(store, entries, info.fmt),
        layout.CARD: render_card(info, totals, ShardNames.of(epoch, entries), differences).encode(),
    }
    if info.fmt.name == "folder":
        tables = []
        for file in (file for entry in entries for file in entry.files if file.path.startswith("rows/")):
            with naming_damage(store, file.path):
                tables.append(read_checked(store, file))
        files[layout.IMAGE_TABLE] = merge_tables(tables, info.fmt)
    return files


def render_card(info: CardInfo, totals: Totals, shard_names: ShardNames = PLAIN_NAMES, differences: str = "") -> str:
    """The dataset card: Markdown with the YAML front matter of the Hugging Face hub. `differences`: see
    `dataset.ran.describe_differences`."""
    fmt, num_shards = info.fmt, totals.shards + len(totals.failed_shards)
    values = {
        "ext": fmt.extension,
        "tag": shard_names.tag,
        "data_files": shard_names.patterns(fmt.name),
        "tars": shard_names.tars(num_shards, totals.failed_shards),
    }
    names = [f"`{name}`" for name in ("index", "label", "class_name", "seed", "draft_steps")]
    own = {name: f"of each row: column `{name}`" for name in info.row_settings}
    if info.tokens:
        names.append("`tokens` (the refiner's token ids, coarse to fine)")
    return Template((files("tandem_workers.dataset") / "card_template.md").read_text(encoding="utf-8")).substitute(
        pretty_name=json.dumps(info.title),  # any JSON string is a YAML string
        title=info.title,
        license=info.license,
        size_category=next(name for end, name in SIZE_CATEGORIES.items() if totals.rows < end),
        data_files=json.dumps(values["data_files"]),
        dataset_info=dataset_info(info),
        rows=f"{totals.rows:,}",
        missing=missing(totals.failed_shards, num_shards),
        num_classes=len(totals.labels),
        image_size=info.image_size,
        codec=TITLES[fmt.codec],
        software=info.software,
        num_drafted="N" if "draft_steps" in own else fmt.draft_steps,
        draft_steps=own.get("draft_steps", fmt.draft_steps),
        seed=f"{own['seed']}, and `seed_index` in place of the index" if "seed" in own else fmt.seed,
        models=_table((role, name, f"`{digest}`") for role, (name, digest) in info.models.items()),
        sampling=_table((name, own.get(name, value)) for name, value in info.sampling.items()),
        differences=f"\n{differences}" if differences else "",
        command=info.command,
        reading=_READING[fmt.name].format(**values),
        columns=f"Columns: the image, {', '.join(names)}, and those carried along from the label file.",
        digital_source_type=DIGITAL_SOURCE_TYPE,
        files=_table((f"`{path}`".format(**values), content.format(**values)) for path, content in _FILES[fmt.name]),
        classes=_table((label, fmt.class_names[label], count) for label, count in totals.labels.items()),
    )


def dataset_info(info: CardInfo) -> str:
    """The types of the members of a tar, as YAML. Files of other formats contain their types."""
    if info.fmt.name != "webdataset":
        return ""
    features = sample_features(info.fmt.extension, info.carried, info.tokens)
    return yaml.safe_dump({"dataset_info": {"features": features}}, sort_keys=False, allow_unicode=True)


def missing(failed: Mapping[int, str], num_shards: int) -> str:
    """A paragraph on missing shards, if any."""
    if not failed:
        return ""
    names = ", ".join(map(str, sorted(failed)))
    return f"\n\n{len(failed)} of {num_shards} shards could not be made and are missing: {names} (`_SUCCESS` says why)."


def _table(rows: Iterable[tuple[Any, ...]]) -> str:
    return "\n".join(f"| {' | '.join(_cell(value) for value in row)} |" for row in rows)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")

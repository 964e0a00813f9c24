"""The card of a dataset of pictures that were there before: it says only of generated ones that they are synthetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image

from tandem.images import DIGITAL_SOURCE_TYPE
from tandem_workers.dataset.card import dataset_info, fill, markdown_rows, shared_values
from tandem_workers.dataset.contact_sheet import open_small
from tandem_workers.dataset.formats import DatasetFormat
from tandem_workers.dataset.identity import DECODING, EXPORT, SAMPLING, WEIGHTS, Identity
from tandem_workers.dataset.shard_names import ShardNames
from tandem_workers.dataset.success_file import Totals

TITLE, LICENSE = "Pictures exported by Tandem", "other"
GENERATED = "Every picture was made by a generative model; none is a photograph or a drawing by a person."
UNKNOWN = "They were there before, and no record there tells how they were made."


@dataclass(frozen=True)
class ExportCard:
    """Contents of the card that do not come from the manifest.

    Attributes:
        kind: of the source, in words.
        origin: see `origin_of`.
        columns: the columns beside index, label and class name, without tokens.
        command: the command line that makes the dataset again.
        software: name and version.
        tokens: whether the refiner's token ids are in the dataset.
    """

    fmt: DatasetFormat
    kind: str
    origin: Mapping[str, Any] | None
    columns: pa.Schema
    command: str
    software: str
    tokens: bool = False

    def thumbnail(self, data: bytes) -> Image.Image:
        return open_small(data)

    def render(self, totals: Totals, shard_names: ShardNames, differences: str = "") -> str:
        named = {} if self.fmt.class_names is None else {"class_name": "string"}
        names = ["index", "label", *named, *self.columns.names, *(["tokens"] if self.tokens else [])]
        return fill(
            "export_template.md",
            shared_values(self.fmt, totals, shard_names, TITLE, LICENSE),
            dataset_info=dataset_info(self.fmt, self.columns, self.tokens, named),
            tags="- tandem" if self.origin is None else "- synthetic\n- tandem\n- collaborative-decoding",
            made=UNKNOWN if self.origin is None else GENERATED,
            kind=self.kind,
            origin=describe_origin(self.origin),
            command=self.command,
            software=self.software,
            columns=f"the image, {', '.join(f'`{name}`' for name in names)}",
        )


def origin_of(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Identity and names of weights of the job that made the images, from the record of a dataset's job.

    None where no job of Tandem did. An export has that of its source.
    """
    if Identity(record["identity"]).kind == EXPORT:
        origin: Mapping[str, Any] | None = record["info"].get("origin")
        return origin
    return {"identity": record["identity"], "weights": record["info"].get("weights") or {}}


def describe_origin(origin: Mapping[str, Any] | None) -> str:
    """Models and settings that made the images, as Markdown paragraphs; "" where they are not known."""
    if origin is None:
        return ""
    identity, names = origin["identity"], origin["weights"]
    hashes = identity.get(WEIGHTS) or {}
    parts = [
        "They were made by Tandem, by collaborative decoding (CoDe, arXiv 2411.17787). Every file carries the facts\n"
        "as JSON in its XMP packet (`tandem:provenance`), where the index is that of the first dataset, and IPTC's\n"
        f"digital source type `{DIGITAL_SOURCE_TYPE}`."
    ]
    if hashes:
        rows = markdown_rows((role, names.get(role, ""), f"`{digest}`") for role, digest in hashes.items())
        parts.append(f"| Part | Model | SHA-256 |\n|---|---|---|\n{rows}")
    if settings := list(settings_of(identity.get(DECODING) or {})):
        parts.append(f"| Setting | Value |\n|---|---|\n{markdown_rows(settings)}")
    return "".join(f"{part}\n\n" for part in parts)


def settings_of(decoding: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in decoding.items():
        yield from value.items() if name == SAMPLING else [(name, value)]

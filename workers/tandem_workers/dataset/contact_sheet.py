"""The contact sheet of a finished dataset: how many columns, which images, read back from the committed shards."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence

from PIL import Image

from tandem.image_folder import decode_image
from tandem.images import contact_sheet
from tandem_workers.dataset.entry import ManifestEntry
from tandem_workers.dataset.formats import DatasetFormat, read_images
from tandem_workers.dataset.shard_reader import naming_damage
from tandem_workers.storage.store import Store

COLUMNS = 8
CELLS = COLUMNS**2
SMALL_PX = 128
# Images per class for which the images of a class stay in one row
RUNS = [n for n in range(COLUMNS, 0, -1) if COLUMNS % n == 0]


def open_whole(data: bytes) -> Image.Image:
    """An image of a generated dataset, where all have one size."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def open_small(data: bytes) -> Image.Image:
    """A picture of any kind and size, in a white square of at most SMALL_PX."""
    image = Image.fromarray(decode_image(data, "a picture of the contact sheet"))
    image.thumbnail((SMALL_PX, SMALL_PX))
    square = Image.new("RGB", (max(image.size), max(image.size)), "white")
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    return square


def render_contact_sheet(
    store: Store,
    entries: Sequence[ManifestEntry],
    fmt: DatasetFormat,
    opened: Callable[[bytes], Image.Image] = open_whole,
) -> bytes:
    """PNG of at most CELLS captioned images, equally many of each class, read from the committed shards."""
    counts = sum((Counter(entry.labels) for entry in entries), Counter())
    labels = pick_labels(sorted(counts))
    each = next(n for n in RUNS if n * len(labels) <= CELLS and n <= max(counts.values()))
    found: dict[int, list[Image.Image]] = {label: [] for label in labels}
    for entry in entries:
        for file in entry.files:
            left = {label: each - len(found[label]) for label in labels if label in entry.labels}
            if not any(n > 0 for n in left.values()):
                break
            with naming_damage(store, file.path):
                for label, data in read_images(store.open, file.path, fmt, left):
                    found[label].append(opened(data))
    cells = [image for images in found.values() for image in [*images, *[None] * (each - len(images))]]
    captions = [fmt.name_of(label) for label in labels for _ in range(each)]
    out = io.BytesIO()
    contact_sheet(cells, captions, COLUMNS).save(out, "PNG")
    return out.getvalue()


def pick_labels(labels: Sequence[int]) -> list[int]:
    """At most as many labels as the sheet has cells, evenly spread over the given ones."""
    n = min(len(labels), CELLS)
    return [labels[i * len(labels) // n] for i in range(n)]

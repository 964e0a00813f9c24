"""The identity of a job: whatever changes bytes. `job.json` keeps it, and a later run has to match it.

Only this file spells its keys. Records of older versions lack some or have others, and are compared as they stand. So
an identity stays the JSON object that is on disk: functions make its parts, in the order in which they are written, and
`Identity` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tandem.config import SamplingConfig, from_dict, to_dict
from tandem.images import EXACT, Codec

if TYPE_CHECKING:
    from tandem_workers.models.decode_settings import DecodeSettings

KIND, WEIGHTS, DECODING = "kind", "weights_sha256", "decoding"
EDIT = "edit"
EXPORT = "export"  # the kind of a dataset of pictures that were there before
ROWS, ROWS_SHA256, COLUMNS = "rows", "rows_sha256", "columns"
SHARD_SIZE, CLASS_NAMES, CODEC = "shard_size", "class_names_sha256", "codec"
# Of the decoding
SEED, DRAFT_STEPS, SAMPLING, BATCH, DTYPE = "seed", "draft_steps", "sampling", "batch", "dtype"
PREPARATION, ROW_SETTINGS = "how", "row_settings"


def job_identity(
    weights: Mapping[str, str],
    settings: DecodeSettings,
    source: Mapping[str, Any],
    shard_size: int,
    class_names: str | None,
    kind: str | None = None,
) -> dict[str, Any]:
    """The identity of any job.

    Args:
        weights: SHA-256 of the file of each role.
        source: `rows_identity` or `drafts_identity`.
        class_names: SHA-256 of the class names, if they are not those of the weights.
        kind: of a dataset that has no images.
    """
    return {
        **({KIND: kind} if kind else {}),
        WEIGHTS: dict(weights),
        DECODING: decoding_identity(settings),
        **source,
        SHARD_SIZE: shard_size,
        **({CLASS_NAMES: class_names} if class_names else {}),
    }


def decoding_identity(settings: DecodeSettings) -> dict[str, Any]:
    """Preparation and row settings are there only if they are asked for, so that plain jobs stay what they were. CUDA
    graphs, which change no byte, and the device are left out."""
    preparation = asdict(settings.preparation).items()
    asked = {name: value for name, value in preparation if value not in (False, "plain") and name != "cuda_graphs"}
    return {
        SEED: settings.seed,
        DRAFT_STEPS: settings.draft_steps,
        SAMPLING: to_dict(settings.sampling),
        BATCH: settings.batch,
        DTYPE: settings.dtype,
        "threads": settings.threads,
        **({PREPARATION: asked} if asked else {}),
        **({ROW_SETTINGS: list(settings.row_settings)} if settings.row_settings else {}),
    }


def rows_identity(num_rows: int, digest: str, columns: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Of label rows: their digest, and the type of each carried column."""
    return {ROWS: num_rows, ROWS_SHA256: digest, **({COLUMNS: dict(columns)} if columns is not None else {})}


def drafts_identity(drafts: Identity) -> dict[str, Any]:
    """Of drafts that are refined: all that they depend on."""
    return {"drafts": dict(drafts.fields), ROWS: drafts.rows}


def export_identity(
    source: Mapping[str, Any], num_rows: int, shard_size: int, fmt: str, codec: Codec, columns: Mapping[str, str]
) -> dict[str, Any]:
    """Of pictures that were there before. `source`: of the pictures; `columns`: the type of each column kept."""
    return {
        KIND: EXPORT,
        "source": dict(source),
        ROWS: num_rows,
        SHARD_SIZE: shard_size,
        "format": fmt,
        CODEC: codec,
        COLUMNS: dict(columns),
    }


def image_identity(fmt: str, codec: Codec, quality: int, keep_tokens: bool) -> dict[str, Any]:
    """What of the output changes bytes, in a job that makes images."""
    return {
        "format": fmt,
        CODEC: codec,
        "quality": None if codec in EXACT else quality,
        "keep_tokens": keep_tokens,
    }


def edit_identity(
    pictures: Mapping[str, Any],
    masks: Mapping[str, Any] | None,
    boxes: Sequence[Sequence[float]],
    margins: Sequence[float] | None,
    fit: str,
    nearest: bool,
    put_back: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Of pictures that are edited: they and their masks, how the model's square is cut out, and, in a job that makes
    images, how it is put back."""
    return {
        EDIT: {
            "pictures": dict(pictures),
            "masks": None if masks is None else dict(masks),
            "boxes": [list(box) for box in boxes],
            "expand": None if margins is None else list(margins),
            "fit": fit,
            **(put_back or {}),
            "nearest": nearest,
        }
    }


def refined_edit_identity(put_back: Mapping[str, Any]) -> dict[str, Any]:
    """Of drafted edits that are refined, besides `drafts_identity`: how the model's square is put back."""
    return {EDIT: dict(put_back)}


@dataclass(frozen=True)
class Identity:
    """Reads an identity as it stands in a record. What an older version may lack is None or empty; what else is
    missing or of another type raises KeyError, TypeError, ValueError or AttributeError."""

    fields: Mapping[str, Any]

    @property
    def kind(self) -> str | None:
        return self.fields.get(KIND)

    @property
    def weights(self) -> Mapping[str, str]:
        """SHA-256 by role."""
        found: Mapping[str, str] = self.fields[WEIGHTS]
        return found

    @property
    def decoding(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.fields[DECODING]
        return found

    @property
    def seed(self) -> int:
        return int(self.decoding[SEED])

    @property
    def draft_steps(self) -> int:
        return int(self.decoding[DRAFT_STEPS])

    @property
    def sampling(self) -> SamplingConfig:
        found: SamplingConfig = from_dict(SamplingConfig, self.decoding[SAMPLING])
        return found

    @property
    def batch(self) -> int | None:
        batch = self.fields.get(DECODING, {}).get(BATCH)
        return batch if isinstance(batch, int) else None

    @property
    def dtype(self) -> str:
        return str(self.decoding[DTYPE])

    @property
    def preparation(self) -> Mapping[str, Any]:
        """Switches of `Preparation` that are on, by name; empty for plain decoding."""
        found: Mapping[str, Any] = self.decoding.get(PREPARATION, {})
        return found

    @property
    def row_settings(self) -> tuple[str, ...]:
        """Columns that are settings of their row."""
        return tuple(self.decoding.get(ROW_SETTINGS, ()))

    @property
    def edits(self) -> bool:
        """Whether pictures are edited."""
        return EDIT in self.fields

    @property
    def rows(self) -> int | None:
        return self.fields.get(ROWS)

    @property
    def rows_sha256(self) -> str | None:
        return self.fields.get(ROWS_SHA256)

    @property
    def columns(self) -> Mapping[str, str] | None:
        """Types of carried columns."""
        return self.fields.get(COLUMNS)

    @property
    def shard_size(self) -> int | None:
        return self.fields.get(SHARD_SIZE)

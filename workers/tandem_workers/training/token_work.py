"""What the two ways to a token set share: by encoding pictures, and from ids that a dataset kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tandem.config import VqvaeConfig
from tandem_workers.models.model_set import ModelRef
from tandem_workers.pictures.class_labels import ClassLabels
from tandem_workers.pictures.picture_block import PictureSource, content_of
from tandem_workers.stages.block_actors import BlockWork
from tandem_workers.training.token_blocks import TokenBlocks
from tandem_workers.training.views import Views


@dataclass(frozen=True)
class TokenWork(BlockWork):
    """What an actor needs. `classes`: the label of each class of the source."""

    name: ClassVar[str] = "tokens"

    source: PictureSource
    files: TokenBlocks
    vqvae: ModelRef
    config: VqvaeConfig
    classes: ClassLabels


def tokens_identity(
    source: PictureSource,
    vqvae: ModelRef,
    config: VqvaeConfig,
    classes: ClassLabels,
    views: Views | None = None,
    batch: int | None = None,
) -> dict[str, Any]:
    """All that ids, labels and names depend on, as JSON values.

    `views` and `batch`, how views are made and encoded, are None where the source kept the ids.
    """
    augmented = views if views is not None and views.count > 1 else None
    return {
        "pictures": content_of(source),
        "vqvae": {
            "sha256": vqvae.sha256,
            "patch_nums": list(config.patch_nums),
            "vocab_size": config.vocab_size,
            "latent_channels": config.latent_channels,
            "image_size": config.image_size,
        },
        "class_names": None if classes.names is None else list(classes.names),
        "labels": None if classes.labels is None else list(classes.labels),
        "views": 1 if views is None else views.count,
        "augment": augmented.augment if augmented else None,
        "seed": augmented.seed if augmented else None,
        "batch": batch,
    }

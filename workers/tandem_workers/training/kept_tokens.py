"""A token set of the ids that a dataset kept (`tandem generate --keep-tokens`): its images are not encoded again.

These are the ids that the models drew, and what follows them is what the models draw next: a student learns where it
will be asked, and nobody needs pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from tandem.config import VqvaeConfig
from tandem.errors import InputError
from tandem_workers.dataset.columns import as_array
from tandem_workers.dataset.identity import EXPORT, Identity
from tandem_workers.dataset.token_columns import TOKENS
from tandem_workers.models.model_set import ModelRef
from tandem_workers.pictures.class_labels import ClassLabels
from tandem_workers.pictures.own_dataset import OwnDataset
from tandem_workers.pictures.picture_block import PictureBlock, PictureSource
from tandem_workers.storage.places import open_store
from tandem_workers.training.token_blocks import TokenBlock, TokenBlocks
from tandem_workers.training.token_work import TokenWork, tokens_identity

EXPECTED = "--kept-tokens: expected a dataset that tandem generate or refine wrote"


@dataclass(frozen=True)
class KeptTokens(TokenWork):
    """Copies the ids of a shard."""

    source: OwnDataset

    @property
    def title(self) -> str:
        return f"the ids that {self.source.place} kept"

    def load(self, device: torch.device, cpus: int) -> Callable[[int], int]:
        return self.take

    def take(self, block: int) -> int:
        """Put a block's file, and return its number of images."""
        tokens = self.kept_by(self.source.read(block))
        self.files.put(block, tokens)
        return len(tokens)

    def kept_by(self, images: PictureBlock) -> TokenBlock:
        """The ids of a shard. InputError where they are not those of this VQVAE's pyramid."""
        assert images.columns is not None, "the source is asked for columns"
        ids, length = as_array(images.columns[TOKENS]), self.config.pyramid.num_tokens
        if ids.shape[1] != length or ids.max(initial=0) >= self.config.vocab_size:
            expected = f"{length} ids below {self.config.vocab_size} an image"
            raise InputError(f"{self.source.place}: expected {expected}, got {ids.shape[1]} up to {ids.max(initial=0)}")
        labels = list(map(self.classes.label_of, images.label.tolist(), images.names))
        return TokenBlock(images.index, np.array(labels, np.int32), ids[:, None], images.index)


def keeping(
    place: str, source: PictureSource, vqvae: ModelRef, config: VqvaeConfig, classes: ClassLabels
) -> KeptTokens:
    """The work that makes a token set in a place. InputError unless the source kept ids of this VQVAE."""
    if not isinstance(source, OwnDataset):
        raise InputError(f"{EXPECTED}, {source.place} is of another kind: {source.kind}")
    identity = Identity(source.record["identity"])
    if identity.kind == EXPORT:
        raise InputError(f"{EXPECTED}, {source.place} is an export", "name the dataset that it was made of")
    if identity.edits:
        raise InputError(f"{EXPECTED}, {source.place} holds edits, whose drawn ids are not those of the whole picture")
    if not identity.fields.get("keep_tokens"):
        raise InputError(f"--kept-tokens: {source.place} kept no token ids", "tandem generate --keep-tokens keeps them")
    if (made_by := identity.weights["vqvae"]) != vqvae.sha256:
        expected = f"the VQVAE that {source.place} was made with, {made_by[:12]}…"
        raise InputError(f"--vqvae: expected {expected}, got {vqvae.label}, {vqvae.sha256[:12]}…")
    source = replace(source, with_columns=True)
    files = TokenBlocks(open_store(place), "", tokens_identity(source, vqvae, config, classes), source.num_blocks, 1)
    return KeptTokens(source, files, vqvae, config, classes)

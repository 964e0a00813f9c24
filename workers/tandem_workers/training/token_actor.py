"""Tokenizes pictures: an actor reads a block, makes the views of its pictures, encodes them, and puts the block's file.

By default a view goes through the encoder alone, so that its ids are those of `Vqvae.encode` of it, whatever else is in
the block. With larger batches rounding may decide between two codes that are equally near. All batches of a block have
one shape, and a view always the same row in it: the last one is padded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tandem.config import VqvaeConfig
from tandem.errors import InputError
from tandem.transfers import upload
from tandem_workers.models.model_set import ModelRef, load_tokenizer
from tandem_workers.pictures.class_labels import ClassLabels
from tandem_workers.pictures.picture_block import PictureBlock, PictureSource
from tandem_workers.stages.block_actors import SharedNetwork
from tandem_workers.storage.places import open_store
from tandem_workers.training.token_blocks import Skipped, TokenBlock, TokenBlocks
from tandem_workers.training.token_work import TokenWork, tokens_identity
from tandem_workers.training.views import Views

VIEWS_AT_ONCE = 64  # decoded and augmented by threads before the first of them is encoded
SKIP_HINT = "--on-error skip leaves such pictures out, and lists them"


@dataclass(frozen=True)
class Tokenising(TokenWork):
    """Encodes the views of pictures. `skip`: leave out pictures that cannot be used; else the first one is an error."""

    views: Views
    batch: int = 1
    skip: bool = False

    @property
    def title(self) -> str:
        return f"VQVAE {self.vqvae.label} ({self.config.image_size} px, {self.config.pyramid.num_tokens} tokens)"

    def load(self, device: torch.device, cpus: int) -> Callable[[int], int]:
        vqvae = load_tokenizer(self.vqvae, self.config.patch_nums, torch.float32, device)
        shared = SharedNetwork(self.name, self.batch)

        @torch.inference_mode()
        def encode(views_B3HW: Tensor) -> Tensor:
            return torch.cat(shared.run(lambda rows: vqvae.encode(upload(views_B3HW[rows], device)), len(views_B3HW)))

        def tokenize(block: int) -> int:
            tokens = tokenize_block(self, self.source.read(block), encode, cpus)
            self.files.put(block, tokens)
            return len(tokens)

        return tokenize


def tokenizing(
    place: str,
    source: PictureSource,
    vqvae: ModelRef,
    config: VqvaeConfig,
    views: Views,
    classes: ClassLabels,
    batch: int = 1,
    skip: bool = False,
) -> Tokenising:
    """The work that makes a token set in a place."""
    identity = tokens_identity(source, vqvae, config, classes, views, batch)
    files = TokenBlocks(open_store(place), "", identity, source.num_blocks, views.count)
    return Tokenising(source, files, vqvae, config, classes, views, batch, skip)


def tokenize_block(
    work: Tokenising, pictures: PictureBlock, encode: Callable[[Tensor], Tensor], threads: int
) -> TokenBlock:
    """Token maps of the pictures of a block.

    Args:
        encode: views float32 [batch, 3, H, W] in [-1, 1] -> ids int64 [batch, L].
        threads: that decode and augment.

    Raises InputError for the first picture that cannot be used, unless the work skips these.
    """
    found, skipped = list[int](), list[Skipped]()

    def usable() -> Iterator[Tensor]:
        for at, made in each_picture(work, pictures, threads):
            if isinstance(made, Tensor):
                found.append(at)
                yield from made
            elif work.skip:
                skipped.append(Skipped(int(pictures.index[at]), pictures.names[at], str(made)))
            else:
                raise InputError(str(made), SKIP_HINT)

    parts = [encode(batch_B3HW)[:count] for batch_B3HW, count in batches(usable(), work.batch)]
    num_tokens = work.config.pyramid.num_tokens
    ids = torch.cat(parts).cpu().numpy() if parts else np.zeros((0, num_tokens))
    labels = [work.classes.label_of(int(pictures.label[at]), pictures.names[at]) for at in found]
    return TokenBlock(
        pictures.index[found],
        np.array(labels, np.int32),
        ids.astype(np.uint16).reshape(len(found), work.views.count, num_tokens),
        np.array([group_of(pictures.names[at]) for at in found], np.int64),
        tuple(skipped),
    )


def each_picture(work: Tokenising, pictures: PictureBlock, threads: int) -> Iterator[tuple[int, Tensor | InputError]]:
    """The views of each picture, float32 [views, 3, H, W], or why it cannot be used; in order."""

    def prepare(at: int) -> Tensor | InputError:
        name = pictures.names[at]
        try:
            work.classes.label_of(int(pictures.label[at]), name)
            return work.views.of(pictures.picture(at), int(pictures.index[at]))
        except InputError as error:
            return error if name in str(error) else InputError(f"{name}: {error}")

    at_once = max(1, VIEWS_AT_ONCE // work.views.count)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(pictures), at_once):
            chunk = range(start, min(start + at_once, len(pictures)))
            yield from zip(chunk, pool.map(prepare, chunk), strict=True)


def batches(views: Iterator[Tensor], batch: int) -> Iterator[tuple[Tensor, int]]:
    """Batches [batch, 3, H, W] of views [3, H, W], and how many count: the last one is padded with its last view."""
    waiting = list[Tensor]()
    for view_3HW in views:
        waiting.append(view_3HW)
        if len(waiting) == batch:
            yield torch.stack(waiting), batch
            waiting.clear()
    if waiting:
        padding: Sequence[Tensor] = [waiting[-1]] * (batch - len(waiting))
        yield torch.stack([*waiting, *padding]), len(waiting)


def group_of(name: str) -> int:
    """The number of the picture that a file is a variant of: `face/grin~1f3fb.png` is one of `face/grin.png`."""
    folder, _, file = name.rpartition("/")
    stem, tilde, variant = file.partition("~")
    picture = f"{folder}/{stem}.{variant.rpartition('.')[2]}" if tilde and "." in variant else f"{folder}/{stem}"
    return int.from_bytes(hashlib.sha256(picture.encode(errors="surrogateescape")).digest()[:8], "big", signed=True)

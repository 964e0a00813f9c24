"""`tandem tokenize`: the token maps of labelled pictures, made once, to train transformers on."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tandem.config import Pyramid, VqvaeConfig
from tandem.errors import InputError
from tandem_jobs.export import check_apart
from tandem_jobs.labels.class_order import choose_classes
from tandem_jobs.options.flags import POSITIONAL
from tandem_jobs.run.block_run import PoolOptions, make_all
from tandem_jobs.run.interrupt import interrupted_by_sigterm
from tandem_jobs.run.progress import say
from tandem_jobs.run.shard_range import command_line
from tandem_workers.models.model_set import resolve
from tandem_workers.pictures.picture_folder import in_small_blocks
from tandem_workers.pictures.source import open_pictures
from tandem_workers.storage import layout
from tandem_workers.training.kept_tokens import keeping
from tandem_workers.training.token_actor import tokenizing
from tandem_workers.training.token_blocks import MAX_IDS
from tandem_workers.training.token_files import SKIPPED, TokenFiles, complete
from tandem_workers.training.token_work import TokenWork
from tandem_workers.training.views import Augment, Views

MAX_VIEWS = 128
EXAMPLES = """examples:
  tandem tokenize pictures/train --out tokens/train --views 8 --augment affine
  tandem tokenize pictures/heldout --out tokens/heldout
  tandem tokenize imagenet/train --vqvae vae_ch160v4096z32 --class-names imagenet --out s3://bucket/tokens --views 2
  tandem tokenize s3://bucket/shards --vqvae vqvae.safetensors --out tokens --on-error skip
  tandem tokenize generated --kept-tokens --out tokens/drawn
  tandem submit -- tokenize s3://bucket/imagenet/train --vqvae vae_ch160v4096z32 --out s3://bucket/tokens

DATA: class folders of images (ImageNet's layout), .tar files (webdataset), .parquet files with a column of images, an
.npz file or a dataset of Tandem; a folder, a file or an s3:// address. Every picture needs a label.

Views. View 0 is the plain one: the shorter side is resized to the VQVAE's size (Lanczos) and the centre cut out; a
picture of that size is kept as it is. Views 1 and up depend on --seed, the picture's index and the view's number alone:
  crop-flip  shorter side to 1.125 times the size, a square cut out at random, mirrored or not
  crop       the same, never mirrored: what VAR's published training does
  affine     moved by whole pixels, or shifted, resized and turned a little, on white: for drawings; what the embedded
             transformers were trained with

Labels. The names of class folders, sorted; where DATA/../pictures.json stands (tandem pictures writes it), its order.
With --class-names, folders go by name, synonym or WordNet id, classes may lack, and other folders are refused: so the
labels of training and held-out pictures are the same.

Without pictures: the ids that 'tandem generate --keep-tokens' drew are a token set as well (--kept-tokens). A model
learns from them what another one does with what it makes.

The same command goes on where a killed one stopped; other pictures, another VQVAE or other views are refused in the
same place. A view goes through the encoder alone (--batch 1): its ids do not depend on its neighbours, on one kind of
hardware and number of threads. With a larger batch, faster for small pictures, rounding may decide between two codes
that are equally near."""


class TokenizeSpec(PoolOptions):
    """Turn labelled pictures into the token maps that transformers are trained on."""

    data: Annotated[str, POSITIONAL] = Field(description="pictures: a folder, a file, s3://bucket/prefix or key")
    out: str = Field(description="folder or s3://bucket/prefix for the token set")
    vqvae: str = Field(
        "embedded",
        description="the tokenizer: 'embedded', a file, an address (hf://, https://, s3://), or a name (tandem models)",
    )
    patch_nums: tuple[PositiveInt, ...] | None = Field(
        None, description="sides of the token maps, 1,2,3,4,6,9,13,18,24,32 for 512 px; default: the VQVAE's own"
    )
    views: PositiveInt = Field(1, le=MAX_VIEWS, description="views of each picture: the plain one, and augmented ones")
    augment: Augment = Field("crop-flip", description="how views 1 and up are made")
    seed: NonNegativeInt = Field(0, description="seed of the augmentation")
    class_names: str | None = Field(
        None,
        description="classes in label order: a file (one name a line, .csv or .json; path or address), 'imagenet', or "
        "'numbers' for labels without names; default: pictures.json beside DATA, else the names in DATA",
    )
    kept_tokens: bool = Field(
        False,
        description="take the token ids that DATA, a dataset of 'tandem generate --keep-tokens', has kept, instead of "
        "encoding its images again",
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="at a picture that is broken or has no label: stop, or leave it out and list it"
    )
    batch: int = Field(1, gt=0, le=65_536, description="views that are encoded together; part of the set's identity")

    @model_validator(mode="after")
    def check_views(self) -> TokenizeSpec:
        if self.kept_tokens and self.views > 1:
            raise ValueError("--views: expected 1 with --kept-tokens, as kept ids are of one view")
        if self.kept_tokens and self.patch_nums is not None:
            raise ValueError("--patch-nums: expected none with --kept-tokens, as kept ids have those of their models")
        return self


def run(spec: TokenizeSpec) -> dict[str, Any]:
    """Tokenize what is missing, with progress on stderr, and one JSON line on stdout."""
    began = time.monotonic()
    check_apart(spec.data, spec.out)
    work = open_work(spec)
    with interrupted_by_sigterm():
        files = make(work, spec)
    result = describe(files, time.monotonic() - began)
    print(json.dumps(result), flush=True)
    return result


def open_work(spec: TokenizeSpec) -> TokenWork:
    """All checks, nothing started. InputError or CheckpointError."""
    source = in_small_blocks(open_pictures(spec.data))
    for note in source.notes:
        say(f"note: {note}")
    classes = choose_classes(source, spec.class_names)
    found = resolve("vqvae", spec.vqvae, random_weights=False)
    assert isinstance(found.config, VqvaeConfig)
    config = found.config
    if spec.patch_nums is not None:
        config = replace(config, patch_nums=Pyramid(spec.patch_nums).patch_nums)
    if config.vocab_size > MAX_IDS:
        raise InputError(f"--vqvae: expected at most {MAX_IDS} codes, got {config.vocab_size}")
    if spec.kept_tokens:
        return keeping(spec.out, source, found.ref, config, classes)
    views = Views(config.image_size, spec.views, spec.augment, spec.seed)
    return tokenizing(spec.out, source, found.ref, config, views, classes, spec.batch, spec.on_error == "skip")


def make(work: TokenWork, spec: TokenizeSpec) -> TokenFiles:
    """Make the blocks that are missing, and complete the set."""
    if work.missing():
        work.files.claim({"pictures": work.source.place, "vqvae": work.vqvae.label, "command": command_line()})
        work.files.store.remove(layout.SUCCESS)  # a block may have been removed since, as it was damaged
        make_all([work], spec)
    return complete(work.files)


def describe(files: TokenFiles, seconds: float) -> dict[str, Any]:
    """The set in a line, and as values."""
    info, place = files.info, files.blocks.place
    views = f", {info.views} views each" if info.views > 1 else ""
    say(f"{place}: {info.rows:,} pictures of {info.num_classes} classes{views}, {info.num_tokens} tokens a view")
    if info.skipped:
        say(f"pictures left out: {info.skipped:,}; {SKIPPED} in {place} says which, and why")
    return {
        "out": place,
        "pictures": info.rows,
        "classes": info.num_classes,
        "views": info.views,
        "tokens": info.num_tokens,
        "skipped": info.skipped,
        "vqvae_sha256": info.vqvae_sha256,
        "digest": info.digest,
        "seconds": round(seconds, 3),
    }

"""Edits through the stages: what they make is what the library makes, in batches with other rows."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from support.stage_inputs import SAMPLING, rows, settings
from support.tiny_models import CLASS_NAMES, NUM_CLASSES
from tandem.checkpoints.weights import load_var, load_vqvae
from tandem.editing.edit import edit
from tandem.images import EDITED_SOURCE_TYPE, Provenance, read_provenance
from tandem.sampling import uniforms
from tandem_workers.dataset.shards import PixelShard, PrefixShard, ShardRows
from tandem_workers.models.model_set import ModelSet, resolve_models
from tandem_workers.pictures.edit_inputs import open_edit_pictures
from tandem_workers.pictures.edit_pictures import EditPictures
from tandem_workers.pictures.put_back import PutBack
from tandem_workers.pictures.read_ahead import count_pictures
from tandem_workers.stages.drafter import Drafter
from tandem_workers.stages.edit_encoder import EditEncoder
from tandem_workers.stages.edit_source_stage import EMPTY, SourceEncoder
from tandem_workers.stages.ray_data import from_row, to_row
from tandem_workers.stages.refiner import Refiner

NAMES = (*CLASS_NAMES, "none")
PROVENANCE = Provenance("tandem 0.0", "d" * 64, "r" * 64, "v" * 64, 3, 2)
BOXES = ["0.25,0.25,0.75,0.75", "0,0,1,1", "0,0,0.2,1", "0.25,0.25,0.75,0.75"]
PICTURES = [0, 1, 2, 0]


@pytest.fixture(scope="module")
def models(tiny_models) -> ModelSet:
    return resolve_models(tiny_models["drafter"], tiny_models["refiner"], tiny_models["vqvae"], False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> EditPictures:
    """Of the model's size, of another one, and one with alpha."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(5)
    for number, shape in enumerate([(16, 16, 3), (20, 20, 3), (16, 16, 4)]):
        Image.fromarray(draw.integers(0, 256, shape, np.uint8)).save(folder / f"{number}.png")
    source = open_edit_pictures(str(folder))
    return EditPictures(source, tuple(count_pictures(source)), 16)


def edits(count: int = 4, boxes: list[str] = BOXES) -> ShardRows:
    """Four edits: redrawn, drawn as a whole, without a class, and the first picture again as another class."""
    extra = {"picture_index": pa.array(PICTURES[:count], pa.int64()), "box": pa.array(boxes[:count])}
    label = np.array([1, 2, NUM_CLASSES, 3], np.int32)[:count]
    return replace(rows(0, count), label=label, extra=extra)


def made_of(models: ModelSet, pictures: EditPictures, shard: ShardRows) -> PixelShard:
    """Through all stages, and through the rows of Ray Data between them."""
    sources = SourceEncoder(pictures, models, settings()).load()(shard)
    drafted = Drafter(models, settings()).load()(sources)
    arrived, _ = from_row(to_row(drafted, []), PrefixShard)
    return Refiner(models, settings(), keep_tokens=True).load()(arrived)


@pytest.fixture(scope="module")
def made(models, pictures) -> PixelShard:
    return made_of(models, pictures, edits())


def encoded(models: ModelSet, pictures: EditPictures, shard: PixelShard, codec: str = "png", keep_tokens=False, **how):
    return EditEncoder(pictures, PutBack(**how), keep_tokens, codec, 92, PROVENANCE, NAMES)(shard)


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_every_row_has_the_pixels_of_the_library(models, pictures, made):
    load = {role: load_var(getattr(models, role).source) for role in ("drafter", "refiner")}
    vqvae = load_vqvae(models.vqvae.source)
    images = encoded(models, pictures, made, blend="paste").images
    for row, found in enumerate(pictures.read(PICTURES, BOXES)):
        noise = uniforms(3, made.index[row : row + 1], 30)
        label = torch.tensor([int(made.label[row])])
        parts = load["drafter"], load["refiner"], vqvae, found.picture, found.mask, label, noise, 2, SAMPLING
        expected = edit(*parts, blend="paste")[0]
        ours = opened(images[row])
        assert np.abs(ours[..., :3].astype(int) - expected).max() <= 1, row
        outside = ~found.mask
        np.testing.assert_array_equal(ours[..., :3][outside], found.picture.pixels[outside])


def test_a_full_mask_gives_the_ids_and_pixels_of_generate(models, pictures):
    """Also in a batch with other edits: only what it draws counts."""
    full = ["0,0,1,1"] * 3
    ours = made_of(models, pictures, replace(edits(3, full), label=np.array([1, 2, 0], np.int32)))
    plain = replace(rows(0, 3), label=np.array([1, 2, 0], np.int32))
    theirs = Refiner(models, settings(), keep_tokens=True).load()(Drafter(models, settings()).load()(plain))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)


def test_alpha_stays_and_what_was_drawn_is_opaque(models, pictures, made):
    alpha = opened(open_alpha(pictures))[..., 3]
    ours = opened(encoded(models, pictures, made).images[2])
    drawn = list(pictures.read(PICTURES, BOXES))[2].mask
    assert ours.shape == (16, 16, 4) and (ours[drawn][:, 3] == 255).all()
    np.testing.assert_array_equal(ours[..., 3][~drawn], alpha[~drawn])
    assert opened(encoded(models, pictures, made, "jpeg").images[2]).shape == (16, 16, 3)


def open_alpha(pictures: EditPictures) -> bytes:
    return pictures.source.read(0).encoded[2]


def test_files_say_that_they_are_composites_and_of_what(models, pictures, made):
    images = encoded(models, pictures, made).images
    assert all(EDITED_SOURCE_TYPE.encode() in image for image in images)
    first = next(iter(pictures.read([0], BOXES[:1])))
    told = read_provenance(images[0])
    assert told.class_name == "bee" and read_provenance(images[2]).class_name == "none"
    assert told.edit == {
        "picture_sha256": first.sha256,
        "mask_sha256": first.mask_sha256,
        "edited_share": 0.25,
        "fit": "crop",
        "blend": "feather",
    }


def test_columns_rebuild_an_edit_and_say_what_was_done(models, pictures, made):
    columns = encoded(models, pictures, made, keep_tokens=True).extra
    assert columns["picture"].to_pylist() == ["0.png", "1.png", "2.png", "0.png"]
    assert [round(share, 4) for share in columns["edited_share"].to_pylist()] == [0.25, 1.0, 0.25, 0.25]
    vqvae, row = load_vqvae(models.vqvae.source), 0
    cells = np.unpackbits(np.array(columns["drawn_cells"][row].as_py(), np.uint8), count=16).reshape(4, 4).astype(bool)
    assert cells.tolist() == np.pad(np.ones((2, 2), bool), 1).tolist()
    source = torch.tensor([columns["source_tokens"][row].as_py()])
    drawn = torch.from_numpy(made.tokens[row : row + 1].astype(np.int64))
    (pixels,) = vqvae.decode_ids(drawn, source, torch.from_numpy(cells)[None])
    rebuilt = pixels[0].mul(255).round().byte().permute(1, 2, 0).numpy()
    assert np.abs(rebuilt.astype(int) - made.pixels[row]).max() <= 1


def test_an_empty_mask_gives_the_picture_back_and_is_told(models, pictures):
    shard = made_of(
        models, replace(pictures, boxes=()), replace(edits(3), extra={"picture_index": pa.array([0, 1, 2])})
    )
    assert list(shard.warnings) == [EMPTY]
    for row, image in enumerate(encoded(models, pictures, shard).images):
        np.testing.assert_array_equal(opened(image), opened(pictures.source.read(0).encoded[row]))
    vqvae = load_vqvae(models.vqvae.source)
    none = opened(encoded(models, pictures, shard, blend="none").images[0])
    (decoded,) = vqvae.decode_ids(torch.from_numpy(shard.source[:1].astype(np.int64)))
    assert np.abs(none.astype(int) - decoded[0].mul(255).round().permute(1, 2, 0).numpy()).max() <= 1

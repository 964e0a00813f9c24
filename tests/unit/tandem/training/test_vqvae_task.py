"""Training of a tokenizer: what it learns, exact resume, and what goes into a batch."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from support.tiny_models import tiny_vqvae
from support.toy_task import MemoryHost
from tandem.config import VqvaeConfig
from tandem.errors import InputError
from tandem.training.loop import Loop
from tandem.training.pictures import augment, load_pictures
from tandem.training.start import new_vqvae
from tandem.training.state import LoopSettings
from tandem.training.vqvae_losses import residual_vectors, revive_codes
from tandem.training.vqvae_task import REVIVED_EVERY, VqvaeData, VqvaeTask, loaded_vqvae, reconstruct
from tandem_jobs.train.splits import check_size, load_splits

TINY = VqvaeConfig(32, 8, 32, (1, 1), 1, stem_patch=2, patch_nums=(1, 2, 4))
SETTINGS = LoopSettings(steps=8, batch=4, peak_lr=2e-3, warmup=2, betas=(0.9, 0.99), log_every=1, checkpoint_every=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes of plain 16 px pictures with variants, one held out each."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, names in (("train", ("a", "b", "b~1", "b~2")), ("heldout", ("c",))):
        for label, name in enumerate(("zebra", "ant", "bee")):
            for stem in names if name != "bee" else names[:1]:
                pixels = np.full((16, 16, 3), 255, np.uint8)
                pixels[4:12, 4:12] = rng.integers(0, 200, 3) + label
                (root / split / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / split / name / f"{stem}.png")
    (root / "pictures.json").write_text(json.dumps({"classes": ["zebra", "ant", "bee"]}))
    return root


def trained(data, host=None, continuous_steps=3, **changes) -> MemoryHost:
    """A run to its end, or from where the host's last checkpoint stands."""
    host = host or MemoryHost()
    task = VqvaeTask(partial(new_vqvae, TINY, 0), continuous_steps)
    Loop(task, replace(SETTINGS, **changes), host, VqvaeData(*load_splits(data))).run()
    return host


def last_state(host: MemoryHost) -> dict[str, torch.Tensor]:
    return host.saved[max(host.saved)][0]


@pytest.mark.parametrize("stopped_at", [2, 4, 7])
def test_a_run_cut_off_resumes_to_the_same_bits(data, stopped_at):
    """Before the codebook is made, in the step after, and later: by a checkpoint then, or by that of step 5."""
    whole, cut = trained(data), MemoryHost(stop_at=stopped_at)
    trained(data, cut)
    assert max(cut.saved) == stopped_at
    if stopped_at == 7:  # a power cut two steps behind the last checkpoint
        del cut.saved[7]
    trained(data, cut)
    expected, found = last_state(whole), last_state(cut)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert cut.records[-1]["heldout_psnr"] == whole.records[-1]["heldout_psnr"]


def test_it_learns_a_few_pictures_and_its_weights_make_the_model(data):
    first = trained(data, steps=4)
    later = trained(data, steps=60, batch=8, checkpoint_every=60)
    assert later.records[-1]["heldout_psnr"] > first.records[-1]["heldout_psnr"] + 3
    assert 0 < later.records[-1]["codes_used"] <= 1
    average = {name.removeprefix("average/"): t for name, t in last_state(later).items() if name.startswith("average/")}
    vqvae = loaded_vqvae(TINY, average)
    assert reconstruct(vqvae, torch.ones(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_codes_that_no_picture_uses_are_replaced(data):
    steps = REVIVED_EVERY + 1
    host = trained(data, steps=100, batch=2, checkpoint_every=steps)
    before = host.saved[steps][0]
    assert before["extra/hits_V"].sum() == 2 * 21  # counted anew since then: two pictures of 21 tokens


def test_a_tokenizer_with_weights_quantises_at_once(data):
    host = trained(data, continuous_steps=0, steps=1, checkpoint_every=1)
    assert last_state(host)["extra/hits_V"].sum() == 4 * 21


def test_a_class_is_drawn_by_its_pictures_and_variants_share_a_weight(data):
    pictures = load_pictures(data / "train", ("zebra", "ant", "bee"))
    assert pictures.names == ("a", "b", "b~1", "b~2", "a", "b", "b~1", "b~2", "a")
    assert pictures.weights(0.0).tolist() == pytest.approx([1 / 6] + [1 / 18] * 3 + [1 / 6] + [1 / 18] * 3 + [1 / 3])
    assert pictures.weights(1.0).tolist() == pytest.approx([0.2] + [0.2 / 3] * 3 + [0.2] + [0.2 / 3] * 3 + [0.2])
    assert pictures.file_weights(1.0).tolist() == pytest.approx([1 / 9] * 9)
    assert pictures.weights(0.5).sum().item() == pytest.approx(1)


def test_pictures_know_what_they_are(data):
    pictures = load_pictures(data / "train", ("zebra", "ant", "bee"))
    assert pictures.digest == load_pictures(data / "train", ("zebra", "ant", "bee")).digest
    assert pictures.digest != load_pictures(data / "train").digest  # classes in another order
    with pytest.raises(InputError, match="expected a folder of images"):
        load_pictures(data / "nowhere")
    with pytest.raises(InputError, match=r"found no class folder|without a class folder"):
        load_pictures(data / "train" / "ant")


@pytest.mark.parametrize("resampled", [0.0, 1.0])
def test_augmentation_keeps_shape_range_and_white_ground(resampled):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.ones(16, 3, 16, 16)
    pixels[:, :, 6:10, 6:10] = -1
    changed = augment(pixels, generator, strength=1.0, flip=True, colour=0.5, resampled=resampled)
    assert changed.shape == pixels.shape
    assert changed.min() >= -1 - 1e-5
    assert changed.max() <= 1 + 1e-5
    torch.testing.assert_close(changed[:, :, 0, 0], torch.ones(16, 3))
    assert not torch.equal(changed, pixels)
    sharp = ((changed == 1) | (changed == -1)).all()
    assert sharp == (resampled == 0.0)


def test_unused_codes_are_replaced_and_their_momentum_forgotten():
    vqvae = tiny_vqvae().requires_grad_(True)
    quantizer = vqvae.quantize
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=1e-3)
    quantizer.embedding.weight.sum().backward()
    optimizer.step()
    before = quantizer.embedding.weight.detach().clone()
    dead = torch.zeros(len(before), dtype=torch.bool)
    dead[:5] = True
    latents = torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert revive_codes(quantizer, optimizer, dead, latents, torch.Generator().manual_seed(0)) == 5
    after = quantizer.embedding.weight.detach()
    assert torch.equal(after[5:], before[5:])
    assert (after[:5] != before[:5]).any(dim=1).all()
    momentum = optimizer.state[quantizer.embedding.weight]["exp_avg"]
    assert (momentum[:5] == 0).all()
    assert (momentum[5:] != 0).all()
    assert residual_vectors(quantizer, latents, torch.Generator().manual_seed(0), 7).shape == (7, 8)


@pytest.mark.parametrize("text", ["[1]", "{}", "{", '{"classes": "ant"}', '{"classes": [1]}'])
def test_a_description_of_something_else_is_named(data, tmp_path, text):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "pictures.json").write_text(text)
    with pytest.raises(InputError, match=r"pictures\.json: expected"):
        load_splits(tmp_path / "data")


def test_hidden_folders_shift_no_label_and_are_said_where_no_description_gives_the_order(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "pictures.json").unlink()
    whole = [load_splits(tmp_path / "data")[i].digest for i in range(2)]
    for split in ("train", "heldout"):
        shutil.copytree(tmp_path / "data" / split / "ant", tmp_path / "data" / split / ".ipynb_checkpoints")
    train, heldout = load_splits(tmp_path / "data")
    assert train.classes == ("ant", "bee", "zebra") and [train.digest, heldout.digest] == whole
    assert capsys.readouterr().err.count("left out 1 hidden or system entries, such as") == 2


def test_classes_may_lack_held_out_pictures_but_not_pictures_to_train_on(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "heldout" / "bee")
    assert set(load_splits(tmp_path / "data")[1].labels.tolist()) == {0, 1}
    shutil.rmtree(tmp_path / "data" / "train" / "bee")
    with pytest.raises(InputError, match=r"images in every class folder .*, found none in 'bee'"):
        load_splits(tmp_path / "data")
    for split in ("train", "heldout"):
        shutil.rmtree(tmp_path / "data" / split / "zebra")
    (tmp_path / "data" / "pictures.json").unlink()
    assert load_splits(tmp_path / "data")[0].classes == ("ant",)
    assert "one class only: ant" in capsys.readouterr().err


def test_pictures_that_are_no_squares_are_refused(data, tmp_path):
    for split in ("train", "heldout"):
        (tmp_path / "data" / split / "a").mkdir(parents=True)
        Image.new("RGB", (16, 8)).save(tmp_path / "data" / split / "a" / "1.png")
    with pytest.raises(InputError, match="make 16 x 16 px, the pictures have 16 x 8 px"):
        check_size(load_splits(tmp_path / "data")[0], 16, "these levels and patch_nums make")

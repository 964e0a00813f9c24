"""Training: exact resume, refusals, losses that fall, and what goes into a batch."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from support.tiny_models import tiny_vqvae
from tandem.errors import InputError
from tandem.losses import residual_vectors, revive_codes
from tandem.training import TrainingLoop, learning_rate
from tandem.training_pictures import augment, load_pictures
from tandem_jobs.train.train import TrainVarSpec, TrainVqvaeSpec, load_splits, train_var, train_vqvae

TINY = {"base_channels": 32, "channel_mult": (1, 1), "stem_patch": 2, "patch_nums": (1, 2, 4), "vocab_size": 32}


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


def vqvae_spec(data, out, **changes) -> TrainVqvaeSpec:
    values = {"data": data, "out": out, "steps": 8, "batch": 4, "threads": 1, "continuous_steps": 3, **TINY}
    return TrainVqvaeSpec(**values | changes)


def resumed_alike(data, tmp_path) -> bool:
    """Whether the run in CUT ends in the same bits as an undisturbed one."""
    whole, cut = (train_vqvae(vqvae_spec(data, tmp_path / name)) for name in ("whole", "cut"))
    expected, found = (load_file(tmp_path / name / "vqvae.safetensors") for name in ("whole", "cut"))
    same = all(torch.equal(expected[name], found[name]) for name in expected)
    return same and whole["heldout_psnr"] == cut["heldout_psnr"]


def test_a_run_cut_off_resumes_to_the_same_bits(data, tmp_path, monkeypatch):
    """A power cut two steps behind the last checkpoint, when the codebook has been filled."""
    step = TrainingLoop.one_step

    def step_or_fail(loop: TrainingLoop, loss_of_step) -> float:
        if loop.step == 7:
            raise OSError("power cut")
        return step(loop, loss_of_step)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "one_step", step_or_fail)
        with pytest.raises(OSError, match="power cut"):
            train_vqvae(vqvae_spec(data, tmp_path / "cut", checkpoint_every=5))
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] == 5
    assert resumed_alike(data, tmp_path)


def test_ctrl_c_finishes_the_step_and_keeps_it(data, tmp_path, monkeypatch):
    update = TrainingLoop.update_ema

    def update_and_interrupt(loop: TrainingLoop) -> None:
        if loop.step == 4:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of the fifth step
        update(loop)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "update_ema", update_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_vqvae(vqvae_spec(data, tmp_path / "cut"))
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert resumed_alike(data, tmp_path)


def test_another_run_in_the_same_folder_is_refused(data, tmp_path):
    train_vqvae(vqvae_spec(data, tmp_path))
    with pytest.raises(InputError, match="holds another run"):
        train_vqvae(vqvae_spec(data, tmp_path, lr=1e-4))
    train_vqvae(vqvae_spec(data, tmp_path, threads=2))  # threads do not make another run


def test_pictures_of_another_size_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="make 8 x 8 px, the pictures have 16 x 16 px"):
        train_vqvae(vqvae_spec(data, tmp_path, stem_patch=1))


def test_both_models_learn_a_few_pictures(data, tmp_path):
    first = train_vqvae(vqvae_spec(data, tmp_path / "v1", steps=4))
    later = train_vqvae(vqvae_spec(data, tmp_path / "v2", steps=60, batch=8))
    assert later["heldout_psnr"] > first["heldout_psnr"] + 3
    spec = TrainVarSpec(
        data=data, out=tmp_path / "var", vqvae=tmp_path / "v2" / "vqvae.safetensors", steps=40, batch=8, depth=1,
        threads=1, token_sets=64, lr=5e-3,
    )  # fmt: skip
    train_var(spec)
    losses = [json.loads(line) for line in (tmp_path / "var" / "log.jsonl").read_text().splitlines()]
    values = [record["loss"] for record in losses if "loss" in record]
    assert values[-1] < 0.9 * values[0]


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


def test_the_learning_rate_rises_then_falls():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(101)]
    assert rates[9] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.01)


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
        train_vqvae(vqvae_spec(tmp_path / "data", tmp_path / "out", patch_nums=(1, 2, 4)))

"""Models to train from files of any kind: classes that differ, and what does not fit."""

from dataclasses import replace

import pytest
import torch

from support.tiny_models import CLASS_NAMES, LATENT, PATCH_NUMS, VOCAB, tiny_var, tiny_vqvae
from support.wrapped_files import prefixed, published_tensors, save, trainer_file
from tandem.checkpoints.weights import save_checkpoint
from tandem.class_names import imagenet_names
from tandem.config import VarConfig
from tandem.errors import CheckpointError
from tandem.training.matching import (
    TokenShape,
    check_teacher,
    check_unguided,
)
from tandem.training.start import new_var, new_vqvae, var_from, vqvae_from

TOKENS = TokenShape(VOCAB, LATENT, PATCH_NUMS, 4, CLASS_NAMES)
SMALL = {"head_dim": 16}


@pytest.fixture(scope="module")
def var():
    return tiny_var(2, 1, **SMALL)


def ours(folder, var, classes=CLASS_NAMES):
    path = folder / "var.safetensors"
    save_checkpoint(path, var, {"classes": list(classes)} if classes else {}, torch.float32)
    return path


def same_but_classes(found, var) -> bool:
    """Whether all is as in the file but the classes, and all of it can be trained in float32."""
    expected = var.state_dict()
    names = [name for name, _ in found.named_parameters()]
    assert all(p.requires_grad and p.dtype == torch.float32 for p in found.parameters())
    assert torch.equal(found.class_emb.weight[-1], var.class_emb.weight[-1])
    return all(torch.equal(found.state_dict()[name], expected[name]) for name in names if name != "class_emb.weight")


def test_files_of_any_program_can_be_trained_further(tmp_path, var):
    """Ours, the published form, a trainer's file under a prefix, and half precision."""
    plain = published_tensors(var)
    files = [
        ours(tmp_path, var),
        save(tmp_path, plain, "published.pth"),
        save(tmp_path, trainer_file(prefixed(plain, "_orig_mod."), published_tensors(tiny_vqvae())), "trainer.pth"),
    ]
    for path in files:
        found, notes = var_from(path, TOKENS, seed=0)
        assert same_but_classes(found, var) and torch.equal(found.class_emb.weight, var.class_emb.weight)
        assert notes == []
    half = save(tmp_path, {name: tensor.half() for name, tensor in plain.items()}, "half.pth")
    assert var_from(half, TOKENS, seed=0)[0].pos_1LC.dtype == torch.float32


def test_the_averaged_weights_are_taken_and_it_is_said(tmp_path, var):
    path = save(tmp_path, {"model": published_tensors(tiny_var(2, 9, **SMALL)), "ema": published_tensors(var)})
    found, (note,) = var_from(path, TOKENS, seed=0)
    assert same_but_classes(found, var) and "ema (the averaged weights)" in note


def test_another_number_of_classes_makes_the_embedding_anew(tmp_path, var):
    """The same on every worker; the row for no class is kept, and the model runs."""
    path = ours(tmp_path, var, classes=None)
    tokens = replace(TOKENS, num_classes=6, class_names=tuple("abcdef"))
    found, (note,) = var_from(path, tokens, seed=5)
    assert same_but_classes(found, var) and found.config.num_classes == 6
    assert note == "class embedding: 6 made anew (a, b, c, ...); the file has 4. All other weights are kept"
    again = var_from(path, tokens, seed=5)[0]
    assert torch.equal(found.class_emb.weight, again.class_emb.weight)
    assert found.class_emb.weight[:-1].std() > 0
    assert found(torch.tensor([5, 6]), torch.zeros(2, 29, LATENT)).isfinite().all()


def test_classes_are_found_by_name(tmp_path, var):
    """In another order, some of them, and beside new ones."""
    path, rows = ours(tmp_path, var), var.class_emb.weight
    found, (note,) = var_from(path, replace(TOKENS, class_names=("Dog", "ant", "cat", "bee")), seed=0)
    assert torch.equal(found.class_emb.weight, rows[[3, 0, 2, 1, 4]]) and same_but_classes(found, var)
    assert note == "class embedding: the rows of 4 classes were found by name among the file's 4"
    found, (note,) = var_from(path, replace(TOKENS, num_classes=3, class_names=("cat", "yak", "ant")), seed=0)
    assert torch.equal(found.class_emb.weight[[0, 2, 3]], rows[[2, 0, 4]]) and same_but_classes(found, var)
    assert note == (
        "class embedding: 2 of 3 classes found by name, 1 made anew (yak); the file has 4. All other weights are kept"
    )


def test_published_files_have_the_classes_of_imagenet(tmp_path):
    """Their names are not in the file; folders are named by WordNet id, often in another order."""
    var = tiny_var(1, 1, num_classes=1000, **SMALL)
    path, names = save(tmp_path, published_tensors(var)), imagenet_names()
    few = (names.wnids[7], names.wnids[3])
    found, (note,) = var_from(path, replace(TOKENS, num_classes=2, class_names=few), seed=0)
    assert torch.equal(found.class_emb.weight, var.class_emb.weight[[7, 3, 1000]])
    assert note == "class embedding: the rows of 2 classes were found by name among the file's 1000"
    others = tuple(f"thing {label}" for label in range(1000))
    found, notes = var_from(path, replace(TOKENS, num_classes=1000, class_names=others), seed=0)
    assert torch.equal(found.class_emb.weight, var.class_emb.weight) and notes == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 32}, "vocab_size: expected 32, as the tokens have, got 64"),
        ({"latent_channels": 4}, "latent_channels: expected 4, as the tokens have, got 8"),
        ({"patch_nums": (1, 2, 3)}, r"patch_nums: expected \(1, 2, 3\), as the tokens have, got \(1, 2, 3, 4\)"),
    ],
)
def test_tokens_of_another_tokenizer_are_refused(tmp_path, var, change, message):
    path, tokens = ours(tmp_path, var), replace(TOKENS, **change)
    with pytest.raises(CheckpointError, match=f"var.safetensors: {message}"):
        var_from(path, tokens, seed=0)


def test_a_teacher_has_the_tokens_and_classes_of_its_student():
    student = VarConfig(2, 4, VOCAB, LATENT, PATCH_NUMS)
    check_teacher(student, replace(student, depth=5), "t.pth", CLASS_NAMES, None)
    for change in ({"vocab_size": 32}, {"patch_nums": (1, 2, 4)}, {"num_classes": 9}, {"latent_channels": 16}):
        ((name, value),) = change.items()
        with pytest.raises(CheckpointError) as refused:
            check_teacher(student, replace(student, **change), "t.pth")
        expected = f"{name}: expected {getattr(student, name)}, as the student has, got {value}"
        assert str(refused.value) == f"t.pth: the teacher does not fit: {expected}"
    with pytest.raises(CheckpointError, match="class 1: expected 'bee', as the student has, got 'yak'"):
        check_teacher(student, student, "t.pth", CLASS_NAMES, ("ant", "yak", "cat", "dog"))


def test_a_teacher_is_not_guided_twice():
    check_unguided(None, "t.pth")
    with pytest.raises(CheckpointError, match="expected a teacher that needs guidance, got one distilled at cfg 3"):
        check_unguided(3.0, "t.pth")


def test_new_models_are_the_same_on_every_worker(var):
    first, second = (new_var(var.config, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in first.parameters())
    config = tiny_vqvae().config
    assert torch.equal(*(new_vqvae(config, seed=3).quantize.embedding.weight for _ in range(2)))


def test_a_tokenizer_is_trained_further(tmp_path):
    """Published files do not hold their pyramid."""
    vqvae = tiny_vqvae()
    path = tmp_path / "vqvae.safetensors"
    save_checkpoint(path, vqvae, {}, torch.float32)
    published = save(tmp_path, published_tensors(vqvae))
    wanted = replace(vqvae.config, patch_nums=(1, 2, 3))
    assert vqvae_from(path).config == vqvae.config
    found = vqvae_from(published, wanted)
    assert found.config.patch_nums == (1, 2, 3)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in found.parameters())
    assert torch.equal(found.quantize.embedding.weight, vqvae.quantize.embedding.weight)
    with pytest.raises(CheckpointError, match=r"patch_nums: expected \(1, 2, 3\), as asked for, got \(1, 2, 3, 4\)"):
        vqvae_from(path, wanted)
    with pytest.raises(CheckpointError, match="vocab_size: expected 32, as asked for, got 64"):
        vqvae_from(published, replace(wanted, vocab_size=32))

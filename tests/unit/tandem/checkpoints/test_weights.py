"""Checkpoints: the published form loads strictly, and whatever is wrong with a file is named."""

import hashlib
import json
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from support import reference
from support.tiny_models import CLASS_NAMES, PATCH_NUMS, save_tiny_models, tiny_var, tiny_vqvae
from support.wrapped_files import published_tensors
from tandem.checkpoints.weights import (
    DERIVED,
    build_empty,
    load_var,
    load_vqvae,
    open_checkpoint,
    save_checkpoint,
)
from tandem.config import PATCH_NUMS_512, VAR_PRESETS, VQVAE_PRESET, VarConfig
from tandem.errors import CheckpointError
from tandem.hashing import file_sha256
from tandem.kernels import compute_dtype
from tandem.var import Var

PUBLISHED = json.loads((reference.DATA / "checkpoint_keys.json").read_text())
SHARED_512 = VarConfig(depth=2, patch_nums=PATCH_NUMS_512, shared_adaln=True)


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vae_ch160v4096z32", VQVAE_PRESET),
        ("var_d16", VAR_PRESETS["d16"]),
        ("var_d2_shared_adaln_512px", SHARED_512),
    ],
)
def test_names_and_shapes_are_the_published_ones(name, config):
    published = {k: v for k, v in PUBLISHED[name].items() if not DERIVED.fullmatch(k)}
    assert shapes(build_empty(config)) == published


@pytest.mark.parametrize(
    ("name", "millions"), [("d16", 310), ("d20", 600), ("d24", 1030), ("d30", 2010), ("d36", 2350)]
)
def test_presets_have_the_published_sizes(name, millions):
    config = VAR_PRESETS[name]
    counted = sum(p.numel() for p in build_empty(config).parameters())
    assert counted == config.num_parameters
    assert counted / 1e6 == pytest.approx(millions, rel=0.01)


def test_the_tokenizer_has_the_published_size():
    assert sum(p.numel() for p in build_empty(VQVAE_PRESET).parameters()) / 1e6 == pytest.approx(109, rel=0.01)


def published_file(folder, model: torch.nn.Module, name: str) -> str:
    """A `.pth` of the published form, without a header."""
    path = folder / f"{name}.pth"
    torch.save(published_tensors(model), path)
    return str(path)


@pytest.mark.parametrize("role", ["drafter", "refiner", "vqvae"])
def test_a_published_pth_loads_and_tells_its_config(tmp_path, role):
    model = getattr(reference, role)()
    path = published_file(tmp_path, model, role)
    assert open_checkpoint(path).check().config == model.config
    loaded = load_vqvae(path, preparation=None) if role == "vqvae" else load_var(path, preparation=None)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_512_pixel_form_loads_without_its_level_buffer(tmp_path):
    torch.manual_seed(0)
    var = Var(VarConfig(depth=1, num_classes=3, patch_nums=PATCH_NUMS_512, shared_adaln=True))
    save_file(dict(var.state_dict()), tmp_path / "var.safetensors")
    assert load_var(tmp_path / "var.safetensors").config == var.config


def test_our_safetensors_carry_config_and_classes(tmp_path):
    files = save_tiny_models(tmp_path)
    checkpoint = open_checkpoint(files["drafter"])
    assert checkpoint.classes == CLASS_NAMES
    assert checkpoint.config.patch_nums == PATCH_NUMS
    assert load_vqvae(files["vqvae"]).config == tiny_vqvae().config


def test_half_precision_files_load_into_the_dtype_asked_for(tmp_path):
    var = tiny_var(2, seed=0)
    save_checkpoint(tmp_path / "v.safetensors", var, {}, torch.float16)
    loaded = load_var(tmp_path / "v.safetensors", torch.bfloat16)
    dtypes = {name: p.dtype for name, p in loaded.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if not name.startswith("head.")} == {torch.bfloat16}
    assert {loaded.head.bias.dtype, loaded.head.packed.dtype} == {torch.float32}
    assert {t.dtype for t in load_file(tmp_path / "v.safetensors").values()} == {torch.float16}


def test_the_quantizer_stays_in_float32(tmp_path):
    save_checkpoint(tmp_path / "v.safetensors", tiny_vqvae(), {}, torch.float32)
    vqvae = load_vqvae(tmp_path / "v.safetensors", torch.bfloat16)
    assert {p.dtype for p in vqvae.quantize.parameters()} == {torch.float32}
    computed = compute_dtype(torch.bfloat16, torch.device("cpu"))  # float32 where this CPU has no kernels
    assert {p.dtype for p in vqvae.decoder.parameters()} == {computed}


@pytest.fixture
def drafter_tensors():
    return {k: v.clone() for k, v in reference.drafter().state_dict().items()}


def save(tmp_path, tensors, suffix):
    path = tmp_path / f"x{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
class TestStrictness:
    def test_missing(self, tmp_path, drafter_tensors, suffix):
        del drafter_tensors["blocks.1.ffn.fc2.bias"]
        with pytest.raises(CheckpointError, match=r"x\.\w+: missing tensor blocks\.1\.ffn\.fc2\.bias"):
            load_var(save(tmp_path, drafter_tensors, suffix))

    def test_surplus(self, tmp_path, drafter_tensors, suffix):
        drafter_tensors["blocks.0.attn.k_bias"] = torch.zeros(3)
        with pytest.raises(CheckpointError, match=r"surplus tensor blocks\.0\.attn\.k_bias"):
            load_var(save(tmp_path, drafter_tensors, suffix))

    def test_misshapen(self, tmp_path, drafter_tensors, suffix):
        drafter_tensors["head.bias"] = torch.zeros(7)
        with pytest.raises(CheckpointError, match=r"head\.bias: expected shape \[256\], got \[7\]"):
            load_var(save(tmp_path, drafter_tensors, suffix))

    def test_whole_numbers_where_weights_should_be(self, tmp_path, drafter_tensors, suffix):
        drafter_tensors["head.bias"] = torch.zeros(256, dtype=torch.int64)
        with pytest.raises(CheckpointError, match=r"head\.bias: expected floats, got torch\.int64"):
            load_var(save(tmp_path, drafter_tensors, suffix))

    def test_a_block_missing_in_the_middle(self, tmp_path, drafter_tensors, suffix):
        kept = {k: v for k, v in drafter_tensors.items() if not k.startswith("blocks.1.")}
        with pytest.raises(CheckpointError, match=r"missing tensors blocks\.1\."):
            load_var(save(tmp_path, kept, suffix))

    def test_wrong_depth(self, tmp_path, drafter_tensors, suffix):
        path = save(tmp_path, drafter_tensors, suffix)
        with pytest.raises(CheckpointError, match="depth: expected 16, got 3"):
            load_var(path, expected=VAR_PRESETS["d16"])

    def test_not_a_model(self, tmp_path, drafter_tensors, suffix):
        with pytest.raises(CheckpointError, match=r"expected a VQVAE .* got 'a'"):
            open_checkpoint(save(tmp_path, {"a": torch.zeros(2)}, suffix))

    def test_cut_off(self, tmp_path, drafter_tensors, suffix):
        path = save(tmp_path, drafter_tensors, suffix)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match=r"x\.\w+: cut off: "):
            load_var(path)

    def test_garbage(self, tmp_path, drafter_tensors, suffix):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(b"\x07nothing of the kind" * 50)
        with pytest.raises(CheckpointError, match=r"x\.\w+: "):
            load_var(path)

    def test_another_kind(self, tmp_path, drafter_tensors, suffix):
        with pytest.raises(CheckpointError, match="expected a vqvae checkpoint, got a var"):
            load_vqvae(save(tmp_path, drafter_tensors, suffix))


class Payload:
    """Unpickling it would call a function."""

    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.mark.parametrize("form", ["torch.save", "plain pickle"])
def test_pickled_code_is_named_and_not_run(tmp_path, capsys, form):
    path = tmp_path / "evil.pth"
    if form == "torch.save":
        torch.save({"word_embed.weight": Payload()}, path)
    else:
        path.write_bytes(pickle.dumps({"word_embed.weight": Payload()}))
    with pytest.raises(CheckpointError, match=r"evil\.pth: .*(print|torch file|not plain weights)"):
        load_var(path)
    assert "never be printed" not in capsys.readouterr().out


def test_a_pth_of_other_objects_is_named(tmp_path):
    torch.save({"epoch": 3, "model": {"a": torch.zeros(1)}}, tmp_path / "trainer.pth")
    with pytest.raises(CheckpointError, match=r"expected a VQVAE .* got 'epoch', 'model'"):
        open_checkpoint(tmp_path / "trainer.pth")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="expected a weights file, found nothing"):
        open_checkpoint(tmp_path / "no.pth")
    with pytest.raises(CheckpointError, match="found a folder"):
        open_checkpoint(tmp_path)


def test_a_pth_of_the_old_form_loads_too(tmp_path):
    path = published_file(tmp_path, reference.refiner(), "refiner")
    assert zipfile.is_zipfile(path)
    tensors = torch.load(path, weights_only=True)
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pth")
    assert load_var(tmp_path / "old.pth").config == reference.REFINER


def test_the_hash_is_that_of_the_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_a_model_with_plain_parameters_learns_and_a_prepared_one_is_not_saved(tmp_path):
    save_checkpoint(tmp_path / "var.safetensors", tiny_var(2, seed=0), {}, torch.float32)
    plain = load_var(tmp_path / "var.safetensors", preparation=None)
    inputs = torch.randn(2, 29, plain.config.latent_channels)
    plain(torch.arange(2), inputs).sum().backward()
    assert all(p.grad is not None for p in plain.parameters())
    save_checkpoint(tmp_path / "again.safetensors", plain, {}, torch.float32)
    with pytest.raises(ValueError, match="got one prepared for inference"):
        save_checkpoint(tmp_path / "third.safetensors", load_var(tmp_path / "var.safetensors"), {}, torch.float32)
    assert not (tmp_path / "third.safetensors").exists()

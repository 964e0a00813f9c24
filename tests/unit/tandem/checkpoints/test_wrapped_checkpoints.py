"""Files as training programs leave them load to the tensors of the plain file."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file

from support.tiny_models import save_tiny_models, tiny_var, tiny_vqvae
from support.wrapped_files import PREFIXES, WRAPPERS, prefixed, published_tensors, same, save, trainer_file, var
from tandem.attention import attention
from tandem.checkpoints.weights import load_var, load_vqvae, open_all, open_checkpoint
from tandem.errors import CheckpointError
from tandem_jobs.cli import main
from tandem_workers.models.model_set import resolve

__all__ = ["var"]  # a fixture
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.fixture(scope="module")
def vqvae():
    return tiny_vqvae()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("role", ["var", "vqvae"])
def test_every_wrapper_prefix_and_dtype_loads_to_the_same_tensors(tmp_path, var, vqvae, dtype, role):
    """Buffers are cast along with the rest, as `state_dict()` of a model in half precision has them."""
    model = var if role == "var" else vqvae
    tensors = {name: tensor.to(dtype) for name, tensor in published_tensors(model).items()}
    for wrapper, prefix in itertools.product(WRAPPERS, PREFIXES):
        path = save(tmp_path, WRAPPERS[wrapper](prefixed(tensors, prefix)))
        checkpoint = open_checkpoint(path)
        assert (checkpoint.kind, checkpoint.choice) == (role, None), (wrapper, prefix)
        assert role == "vqvae" or checkpoint.config == model.config
        assert checkpoint.tensors.keys() == tensors.keys(), (wrapper, prefix)
        assert all(torch.equal(t, tensors[name]) for name, t in checkpoint.tensors.items()), (wrapper, prefix)
    loaded = load_var(path, preparation=None) if role == "var" else load_vqvae(path, preparation=None)
    assert same(loaded, model, dtype)


def test_a_trainer_file_gives_each_role_its_model(tmp_path, var, vqvae):
    path = save(tmp_path, trainer_file(prefixed(published_tensors(var), "_orig_mod."), published_tensors(vqvae)))
    assert same(load_var(path, preparation=None), var)
    assert same(load_vqvae(path, preparation=None), vqvae)
    assert {c.kind: c.part.name for c in open_all(path)} == {
        "var": "trainer.var_wo_ddp._orig_mod",
        "vqvae": "trainer.vae_local",
    }
    for role in ("drafter", "refiner"):
        assert resolve(role, str(path), False).ref.part == "trainer.var_wo_ddp._orig_mod"
    resolved = resolve("vqvae", str(path), False)
    assert resolved.ref.part == "trainer.vae_local"
    assert resolved.ref.label == f"{path}, part trainer.vae_local"
    with pytest.raises(CheckpointError, match="holds a VAR and a VQVAE"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda plain, ema: {"model": plain, "ema": ema},
        lambda plain, ema: {"ema_state_dict": prefixed(ema, "module."), "state_dict": plain},
        lambda plain, ema: {
            "trainer": {"var_wo_ddp": plain, "var_ema": {"n_averaged": torch.tensor(3), **prefixed(ema, "module.")}}
        },
        lambda plain, ema: {"state_dict": prefixed(plain, "model.") | prefixed(ema, "model_ema.")},
    ],
)
def test_averaged_weights_are_taken_where_both_are_there(tmp_path, var, wrap, capsys):
    averaged = tiny_var(2, seed=4)
    path = save(tmp_path, wrap(published_tensors(var), published_tensors(averaged)))
    assert same(load_var(path, preparation=None), averaged)
    choice = open_checkpoint(path).choice
    assert "(the averaged weights) of" in choice
    assert main(["inspect", str(path)]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["choice"] == choice
    plain = next(part for part in choice.split(" of ")[1].split(", ") if part != about["part"])
    assert main(["convert", str(path), str(tmp_path / "plain.safetensors"), "--part", plain]) == 0
    assert same(load_var(tmp_path / "plain.safetensors", preparation=None), var)


def test_two_models_alike_are_refused_by_name(tmp_path, var):
    tensors = published_tensors(var)
    path = save(tmp_path, {"best": tensors, "last": {name: t + 1 for name, t in tensors.items()}})
    with pytest.raises(CheckpointError, match="expected one var, got 2: best, last") as caught:
        load_var(path)
    assert "--part best" in caught.value.hint
    with pytest.raises(CheckpointError, match="expected the part 'worst', got best, last"):
        open_checkpoint(path, part="worst")
    twice = save(tmp_path, tensors | {"module.head.bias": tensors["head.bias"]})
    with pytest.raises(CheckpointError, match=r"x\.pth: the tensor head\.bias occurs twice"):
        load_var(twice)


@pytest.mark.parametrize("axes", [lambda t: t.flatten(), lambda t: t.transpose(1, 2), lambda t: t[0]])
@pytest.mark.parametrize("name", ["scale_mul_1H11", "scale_mul", "scale_mul_11H1"])
def test_the_scale_of_each_head_may_have_other_axes(tmp_path, var, axes, name):
    tensors = {
        key.replace("scale_mul_1H11", name): axes(t) if "scale_mul" in key else t
        for key, t in published_tensors(var).items()
    }
    assert same(load_var(save(tmp_path, tensors), preparation=None), var)


def test_a_model_without_normalised_attention_loads_and_attends_as_it_was_trained(tmp_path):
    """Its file has no scale_mul. Expected: the published code's attention with `attn_l2_norm=False`."""
    plain = tiny_var(2, seed=5, l2_norm=False)
    path = save(tmp_path, published_tensors(plain))
    assert not any("scale_mul" in name for name in open_checkpoint(path).tensors)
    loaded = load_var(path, preparation=None)
    assert loaded.config == plain.config and not loaded.config.l2_norm and same(loaded, plain)
    assert loaded.config.num_parameters == sum(p.numel() for p in loaded.parameters())
    assert main(["convert", str(path), str(tmp_path / "o.safetensors")]) == 0
    assert same(load_var(tmp_path / "o.safetensors", preparation=None), plain)
    attn, x_RLC = loaded.blocks[0].attn, torch.randn(2, 5, plain.config.width)
    got = attn.merge(attention(*attn.project(x_RLC, 5)))
    bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    qkv = torch.nn.functional.linear(x_RLC, attn.mat_qkv.weight, bias).view(2, 5, 3, 2, 64)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * 0.25 / 64**0.5
    expected = attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, -1))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_tensors_that_share_memory_or_lie_across_load_and_convert(tmp_path, var):
    tensors = published_tensors(var)
    fused = torch.stack([tensors["blocks.0.attn.q_bias"], tensors["blocks.0.attn.v_bias"]], dim=1)
    tensors["blocks.0.attn.q_bias"], tensors["blocks.0.attn.v_bias"] = fused.unbind(1)
    tensors["head.weight"] = tensors["head.weight"].t().contiguous().t()
    tensors["blocks.1.ffn.fc2.bias"] = tensors["blocks.0.ffn.fc2.bias"] = torch.ones(var.config.width)
    path = save(tmp_path, tensors)
    assert main(["convert", str(path), str(tmp_path / "o.safetensors")]) == 0
    ours, theirs = load_var(tmp_path / "o.safetensors", preparation=None), load_var(path, preparation=None)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_inspect_says_what_it_found(tmp_path, var, vqvae, capsys):
    half = {name: t.half() for name, t in published_tensors(var).items()}
    path = save(tmp_path, trainer_file(prefixed(half, "module."), published_tensors(vqvae)))
    assert main(["inspect", str(path)]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["part"] == "trainer.var_wo_ddp.module" and second["part"] == "trainer.vae_local"
    assert (first["dtypes"], first["num_classes"], first["depth"]) == (["float16"], 4, 2)
    assert first["sha256"] == second["sha256"]


def test_every_wrapped_file_is_inspected_and_converted(tmp_path, var, capsys):
    half = prefixed({name: t.half() for name, t in published_tensors(var).items()}, "module._orig_mod.")
    for wrapper, wrap in WRAPPERS.items():
        path, converted = save(tmp_path, wrap(half)), tmp_path / f"{wrapper}.safetensors"
        assert main(["inspect", str(path)]) == 0
        about = json.loads(capsys.readouterr().out)
        assert about["part"].endswith("module._orig_mod") and about["dtypes"] == ["float16"]
        assert main(["convert", str(path), str(converted)]) == 0
        assert same(load_var(converted, preparation=None), var, torch.float16)
    assert len({open_checkpoint(path).config for path in tmp_path.glob("*.safetensors")}) == 1


def test_convert_writes_our_form_once_and_then_leaves_it_as_it_is(tmp_path, var, vqvae, capsys):
    path = save(tmp_path, trainer_file(prefixed(published_tensors(var), "module."), published_tensors(vqvae)))
    first, second, vae = (str(tmp_path / f"{name}.safetensors") for name in ("first", "second", "vae"))
    assert main(["convert", str(path), first]) == 2
    assert "hint: --role drafter or vqvae" in capsys.readouterr().err
    assert main(["convert", str(path), first, "--role", "drafter"]) == 0
    assert main(["convert", str(path), vae, "--role", "vqvae"]) == 0
    assert same(load_var(first, preparation=None), var) and same(load_vqvae(vae, preparation=None), vqvae)
    header = open_checkpoint(first).header
    assert header["made_from"].endswith("part trainer.var_wo_ddp.module")
    assert "lvl_1L" not in load_file(first)
    assert main(["convert", first, second]) == 0
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["convert", vae, second]) == 2
    assert "second.safetensors is already there" in capsys.readouterr().err
    assert main(["convert", vae, second, "--overwrite", "--dtype", "bfloat16"]) == 0
    assert open_checkpoint(second).dtypes == ["bfloat16"] and open_checkpoint(second).kind == "vqvae"
    assert not list(tmp_path.glob(".*"))


def test_convert_keeps_class_names_and_refuses_other_places(tmp_path, capsys):
    files = save_tiny_models(tmp_path)
    assert main(["convert", files["drafter"], str(tmp_path / "o.safetensors")]) == 0
    assert (tmp_path / "o.safetensors").read_bytes() == (tmp_path / "drafter.safetensors").read_bytes()
    for out, message in (("o.pth", "expected a local file"), ("no/o.safetensors", "no such folder")):
        assert main(["convert", files["drafter"], str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err

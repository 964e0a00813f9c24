"""Weights files as training programs leave them: published, wrapped in dictionaries, under prefixes."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from support.tiny_models import tiny_var
from tandem.var import Var

PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "var_wo_ddp._orig_mod.")


def published_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The published form: plain tensors with all derived buffers."""
    tensors = dict(model.state_dict())
    if isinstance(model, Var):
        levels = [k for k, n in enumerate(model.config.patch_nums) for _ in range(n * n)]
        tensors["lvl_1L"] = torch.tensor([levels])
        tensors["attn_bias_for_masking"] = torch.zeros(1, 1, len(levels), len(levels))
        for i in range(model.config.depth):
            tensors[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(model.config.width)
    else:
        tensors["quantize.ema_vocab_hit_SV"] = torch.zeros(len(model.config.patch_nums), 256)
    return tensors


def prefixed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def trainer_file(var: dict[str, torch.Tensor], vqvae: dict[str, torch.Tensor]) -> dict:
    """As the published training program saves it, with the numpy values that end up in its arguments."""
    config = {"patch_nums": (1, 2, 3, 4), "resos": (16, 32, 48, 64), "label_smooth": 0.0, "first_prog": True}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    args = OrderedDict(depth=2, patch_nums=(1, 2, 3, 4), L_mean=np.float64(8.1), acc_mean=np.float32(1.5), note=None)
    args.update(ep=np.int64(3), best=np.bool_(True), name=np.str_("x"), history=np.zeros(3))
    parts = {"var_wo_ddp": var, "vae_local": vqvae, "var_opt": {"scaler": {"scale": 65536.0}, "optimizer": optimizer}}
    return {"epoch": 4, "iter": 0, "trainer": {"config": config, **parts}, "args": args}


WRAPPERS = {
    "plain": lambda tensors: tensors,
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3},
    "model": lambda tensors: {"model": tensors, "optimizer": {"state": {}}, "args": {"lr": np.float64(1e-4)}},
    "model_state_dict": lambda tensors: {"model_state_dict": tensors, 7: "a key that is no text"},
    "nested": lambda tensors: {"checkpoint": {"module": tensors, "step": np.int64(3)}},
    "trainer": lambda tensors: trainer_file(tensors, {}),
}


@pytest.fixture(scope="module")
def var():
    return tiny_var(2, seed=3)


def save(tmp_path, loaded, name="x.pth"):
    torch.save(loaded, tmp_path / name)
    return tmp_path / name


def same(loaded: torch.nn.Module, model: torch.nn.Module, dtype=torch.float32) -> bool:
    expected = model.state_dict()
    return expected.keys() == loaded.state_dict().keys() and all(
        torch.equal(t, expected[name].to(dtype).float()) for name, t in loaded.state_dict().items()
    )

"""Compiled blocks compute what plain ones do, and where compiling fails plain ones go on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_var, tiny_vqvae
from torch import Tensor
from torch._dynamo.utils import counters

from tandem.assembly import Preparation, assemble_var
from tandem.blocks import Block
from tandem.collaborative import generate_alone
from tandem.compiling import Compiler, compile_blocks
from tandem.config import SamplingConfig
from tandem.sampling import uniforms
from tandem.var import Var
from tandem.vqvae import Vqvae

CPU = torch.device("cpu")
PATCH_NUMS = (2, 3, 4)  # no scale of one token, which is compiled apart
LABELS = torch.tensor([0, 3, 1])
NOISE = uniforms(7, np.arange(3), sum(n * n for n in PATCH_NUMS))


def assembled(how: Preparation) -> Var:
    var = tiny_var(depth=3, seed=0, patch_nums=PATCH_NUMS)
    return assemble_var(var.config, dict(var.named_parameters()).__getitem__, torch.float32, CPU, how)


def ids_of(var: Var) -> Tensor:
    vqvae = Vqvae(replace(tiny_vqvae().config, patch_nums=PATCH_NUMS)).eval()
    return generate_alone(var, vqvae, LABELS, NOISE, SamplingConfig(cfg=2.0, top_k=20))[1]


def test_compiled_blocks_agree_with_plain_ones_and_all_layers_share_their_code():
    plain, compiled = assembled(Preparation()), assembled(Preparation(compile=True))
    assert compiled.layers[0].ffn.fc1.packed is None
    before = counters["stats"]["unique_graphs"]
    assert torch.equal(ids_of(compiled), ids_of(plain))
    assert counters["stats"]["unique_graphs"] - before == 2  # before and after attention, for all layers and scales
    inputs = torch.randn(3, 25, plain.config.latent_channels)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(LABELS, inputs), plain(LABELS, inputs), rtol=1e-4, atol=1e-5)


def test_where_compiling_fails_plain_blocks_go_on_with_one_warning(monkeypatch):
    def no_compiler(*_: object) -> None:
        raise RuntimeError("no C++ compiler was found\n\na long story")

    monkeypatch.setattr("torch.compile", lambda function, **_: no_compiler)
    compiled = assembled(Preparation(compile=True))
    with pytest.warns(UserWarning, match=r"^compile: RuntimeError: no C\+\+ compiler was found; going on") as seen:
        ids = ids_of(compiled)
    assert len(seen) == 1
    assert torch.equal(ids, ids_of(assembled(Preparation())))


def test_what_torch_cannot_compile_is_a_failure_like_any_other():
    def asks_for_a_value(x: Tensor) -> Tensor:
        print(end="")
        return x * x.sum().item()

    call = Compiler().compiled(asks_for_a_value)
    with pytest.warns(UserWarning, match="^compile: .*; going on without it$"):
        assert call(torch.tensor([1.0, 2.0])).tolist() == [3.0, 6.0]


def test_memory_that_runs_out_is_no_failure_of_the_compiler(monkeypatch):
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr("torch.compile", lambda function, **_: full)
    compiler = Compiler()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        compiler.compiled(torch.neg)(torch.ones(1))
    assert compiler.works


def test_int8_on_a_cpu_is_not_compiled_and_says_so():
    with pytest.warns(UserWarning, match="^compile: int8 layers cannot be compiled for a CPU; going on without it$"):
        var = assembled(Preparation(int8=True, compile=True))
    assert all(block.halves is Block.halves for block in var.layers)
    assert var.layers[0].ffn.fc1.int8_scale_O is not None


def test_plain_blocks_are_not_touched_by_compiled_ones():
    plain = tiny_var(depth=1, seed=0)
    compile_blocks(tiny_var(depth=1, seed=0).layers)
    assert plain.layers[0].halves is Block.halves

"""Linear layers in the forms of inference compute what they did before."""

import copy

import pytest
import torch

from support.tiny_models import tiny_var
from tandem import kernels
from tandem.assembly import Preparation, assemble_var
from tandem.attention import attention
from tandem.config import SamplingConfig
from tandem.counting.costs import var_bytes
from tandem.errors import InputError
from tandem.linear import Linear
from tandem.var import Var


def layer(gelu: bool, dtype: torch.dtype) -> tuple[Linear, torch.Tensor]:
    torch.manual_seed(0)
    return Linear(256, 512, gelu=gelu).requires_grad_(False).to(dtype), torch.randn(4, 10, 256).to(dtype)


@pytest.mark.parametrize("gelu", ["none", "within", "behind"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_packed_weights_compute_the_same(gelu, dtype, near, monkeypatch):
    monkeypatch.setattr("tandem.linear.FUSED_GELU", gelu == "within")
    gelu = gelu != "none"
    plain, x = layer(gelu, dtype)
    packed = copy.deepcopy(plain)
    packed.pack()
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), rtol=near, atol=near)


@pytest.mark.parametrize("by_vnni", [False, True], ids=["in_float32", "by_vnni"])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_is_near_and_a_largest_value_does_not_wrap(gelu, dtype, by_vnni, monkeypatch):
    if by_vnni and not kernels.multiplies_int8():
        pytest.skip("this CPU has no VNNI")
    monkeypatch.setattr("tandem.linear.multiplies_int8", lambda: by_vnni)
    plain, x = layer(gelu, dtype)
    quantised = copy.deepcopy(plain)
    quantised.quantize()
    with torch.inference_mode():
        for inputs in (x, x / 10_000):  # float16 has no reciprocal of a scale so small
            expected = plain(inputs).float()
            assert 0 < (quantised(inputs).float() - expected).abs().max() < 0.06 * expected.abs().max()


def test_int8_is_no_way_to_compute_on_a_gpu():
    var = tiny_var(1, seed=0)
    values, on_gpu = dict(var.named_parameters()), torch.device("cuda")
    with pytest.raises(InputError, match=r"^int8: expected a CPU, got a GPU, where bfloat16 is 2\.4 times as fast$"):
        assemble_var(var.config, values.__getitem__, torch.bfloat16, on_gpu, Preparation(int8=True))


@pytest.mark.parametrize("by_vnni", [False, True])
def test_bytes_of_int8_are_counted_without_memory(by_vnni, monkeypatch):
    monkeypatch.setattr("tandem.linear.multiplies_int8", lambda: by_vnni)
    config = tiny_var(2, seed=0).config
    plain, quantised = (
        var_bytes(config, 4, 0, 3, torch.float32, torch.device("cpu"), Preparation(int8=int8), SamplingConfig())
        for int8 in (False, True)
    )
    assert 0.2 * plain.weights < quantised.weights < 0.8 * plain.weights


def test_a_cpu_without_bfloat16_multiplies_in_float32(monkeypatch):
    """With inputs that float32 multiplies exactly and bfloat16 does not sum exactly."""
    monkeypatch.setattr("tandem.kernels.multiplies", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr("tandem.linear.multiplies", lambda dtype: dtype == torch.float32)
    plain, x = layer(gelu=False, dtype=torch.bfloat16)
    plain.pack()
    exact = torch.nn.functional.linear(x.float(), plain.weight.float(), plain.bias.float())
    with torch.inference_mode():
        assert torch.equal(plain(x), exact.to(torch.bfloat16))
    q, k, v = torch.randn(3, 2, 3, 5, 8).to(torch.bfloat16)
    weights = (q.float() @ k.float().transpose(2, 3)).softmax(dim=-1)
    torch.testing.assert_close(attention(q, k, v), (weights @ v.float()).to(torch.bfloat16), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("preparation", [Preparation(), Preparation(fold_adaln=True)], ids=["plain", "fold_adaln"])
def test_a_prepared_model_has_the_logits_of_the_plain_one(preparation):
    var = tiny_var(3, seed=0)
    values = dict(var.named_parameters())
    ready: Var = assemble_var(var.config, values.__getitem__, torch.float32, torch.device("cpu"), preparation)
    labels, inputs = torch.arange(4), torch.randn(4, 29, var.config.latent_channels)
    with torch.inference_mode():
        torch.testing.assert_close(ready(labels, inputs), var(labels, inputs), rtol=1e-4, atol=1e-5)
    assert (ready.table is not None) == preparation.fold_adaln

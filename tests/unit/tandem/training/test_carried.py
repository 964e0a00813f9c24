"""Weights on their way to workers: shared arrays stay as they are, and a teacher may be in bfloat16."""

import numpy as np
import torch

from support.tiny_models import tiny_var, tiny_vqvae
from tandem.training.carried import Weights

CPU = torch.device("cpu")


def test_models_are_made_again_and_share_no_memory_with_the_arrays():
    var, vqvae = tiny_var(1, 3), tiny_vqvae()
    for model, made in ((var, Weights.of(var).var), (vqvae, Weights.of(vqvae).vqvae)):
        weights = Weights.of(model)
        for array in weights.arrays.values():
            array.flags.writeable = False  # as in Ray's object store
        again = made(CPU)
        assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.add_(1)
        assert all(np.array_equal(weights.arrays[name], value.numpy()) for name, value in model.state_dict().items())


def test_a_teacher_in_bfloat16_keeps_its_head():
    var = Weights.of(tiny_var(1, 3)).var(CPU, torch.bfloat16)
    assert {name.startswith("head.") for name, p in var.named_parameters() if p.dtype == torch.float32} == {True}
    assert var.dtype == torch.bfloat16

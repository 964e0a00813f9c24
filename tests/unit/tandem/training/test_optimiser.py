"""What decays, what AdamW starts from, and the average of the weights."""

import pytest
import torch
from torch import nn

from support.toy_task import ToyModel
from tandem.training.optimiser import Average, make_adamw, parameter_groups
from tandem.training.parallel import clip_gradients


def test_matrices_decay_and_nothing_else():
    model = ToyModel()
    model.head.weight.requires_grad_(False)
    decayed, free = parameter_groups(model, 0.05)
    matrices = [block[0].weight for block in model.blocks]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert [id(value) for value in decayed["params"]] == [id(value) for value in matrices]
    assert len(free["params"]) == len(list(model.parameters())) - len(matrices) - 1


def test_adamw_with_its_state_made_beforehand_steps_as_without():
    models = [ToyModel() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = make_adamw(models[0], 0.1, (0.9, 0.95))
    plain = torch.optim.AdamW(parameter_groups(models[1], 0.1), lr=0.01, betas=(0.9, 0.95))
    for model, optimiser in zip(models, (ours, plain), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = 0.01
        for _ in range(3):
            optimiser.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))


def test_the_average_follows_slowly_and_quickly_at_first():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = Average(model)
    nn.init.constant_(model.weight, 2.0)
    average.update(model, step=0, decay=0.9)
    assert average.tensors["weight"].item() == pytest.approx(1.9)  # (1 + 0) / (10 + 0)
    average.update(model, step=10_000, decay=0.9)
    assert average.tensors["weight"].item() == pytest.approx(1.91)


def test_the_average_is_lent_to_the_model_and_taken_back():
    model = ToyModel().train()
    average = Average(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nn.init.constant_(model.head.weight, 3.0)
    with average.swapped_into(model):
        assert torch.equal(model.head.weight, before["head.weight"]) and not model.training
    assert (model.head.weight == 3).all() and model.training
    assert all(torch.equal(average.tensors[name], before[name]) for name in before)


@pytest.mark.parametrize(("most", "expected"), [(1.0, 1.0), (100.0, 5.0), (0.0, 5.0)])
def test_gradients_are_clipped_to_a_norm(most, expected):
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(model, most) == pytest.approx(5.0)
    assert model.weight.grad.norm().item() == pytest.approx(expected, rel=1e-4)
    model.weight.grad = torch.tensor([[float("inf"), 1.0]])
    assert clip_gradients(model, 1.0) == float("inf") and model.weight.grad[0, 1] == 1

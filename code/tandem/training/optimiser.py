"""AdamW and the average of the weights (EMA), on whole tensors as on the shards of FSDP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

NOT_DECAYED = ("embed", "emb", "pos_", "scale_mul", "ada_gss")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, norms, embeddings, scales and positions do not."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_decay = parameter.dim() < 2 or any(part in name for part in NOT_DECAYED)
            (free if no_decay else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def make_adamw(model: nn.Module, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW whose learning rate is set before each step.

    Its state is there from the beginning, so that a checkpoint can be loaded into it.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = all(parameter.is_cuda for parameter in parameters)
    optimiser = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=0.0, betas=betas, fused=fused)
    for parameter in parameters:
        optimiser.state[parameter] = {
            "step": torch.zeros((), device=parameter.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimiser


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this worker holds, without copying."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Average:
    """Exponential moving average of parameters and buffers, by the names of the model's state. Float32."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, decay: float) -> None:
        """Take in the weights after step `step`, counted from 0; the first steps count more."""
        decay = min(decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                local(self.tensors[name]).lerp_(local(value), 1 - decay)
            else:
                local(self.tensors[name]).copy_(local(value))

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Context manager: the model has the averaged weights, and is in evaluation mode."""
        training = model.training
        self.swap(model)
        model.eval()
        try:
            yield
        finally:
            self.swap(model)
            model.train(training)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange averaged and trained values in place, one tensor at a time."""
        for name, value in model.state_dict().items():
            ours, theirs = local(self.tensors[name]), local(value)
            kept = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(kept)

"""Cost of a training step: work by formula, and bytes by running the step itself on tensors without values.

Shapes: B rows, T tokens that the model sees, C width, l tokens after the first scale, D latent channels. Units:
floating-point operations (a multiply-add is two), bytes. A backward pass is twice the work of its forward pass.
Attention is counted with all pairs of tokens: its mask hides 38 % of them at 256 px, but saves no work.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn

from tandem.assembly import Uninitialised, build_empty
from tandem.config import Pyramid, VarConfig
from tandem.counting.costs import LiveBytes
from tandem.linear import Linear
from tandem.quantizer import Quantizer
from tandem.training.objectives import Objective, TokenBatch
from tandem.var import Var

MASTER, HALF = 4, 2  # bytes of a float32, and of a bfloat16


@dataclass(frozen=True)
class TrainingStep:
    """A micro-batch on one of several GPUs.

    Attributes:
        student: what is trained.
        rows: images of the micro-batch.
        mixed: computes in bfloat16 with float32 master weights.
        sharding: `ddp` has all on each GPU, `fsdp` a part of each tensor.
        gpus: among which FSDP divides.
        recompute: activation checkpointing, see `Var.recompute`.
        draft_steps: N of a drafter, whose sequence ends there; None: all scales.
        teacher: its logits are learnt.
        guided: the teacher is guided, with two rows an image.
    """

    student: VarConfig
    rows: int = 1
    mixed: bool = True
    sharding: Literal["ddp", "fsdp"] = "ddp"
    gpus: int = 1
    recompute: bool = False
    draft_steps: int | None = None
    teacher: VarConfig | None = None
    guided: bool = False

    @property
    def pyramid(self) -> Pyramid:
        return self.student.pyramid

    @property
    def tokens(self) -> int:
        """T."""
        return self.pyramid.offsets[-1 if self.draft_steps is None else self.draft_steps]

    @property
    def flops(self) -> float:
        """Work of one image."""
        blocks, ends = blocks_flops(self.student, self.tokens), ends_flops(self.student, self.tokens)
        work = (4 if self.recompute else 3) * blocks + 3 * ends
        if self.teacher is not None:
            rows = 2 if self.guided else 1
            work += rows * blocks_flops(self.teacher, self.tokens) + ends_flops(self.teacher, self.tokens)
        return work

    def images_per_s(self, tflops: float, share: float) -> float:
        """Images a second of all GPUs at this share of their peak."""
        return self.gpus * share * tflops * 1e12 / self.flops


def blocks_flops(config: VarConfig, tokens: int) -> float:
    """Work of the blocks on one row, forward, with their modulation."""
    C, depth = config.width, config.depth
    products = 2 * depth * (4 + 2 * config.mlp_ratio) * C * C * tokens
    modulation = 2 * 6 * C * C * (1 if config.shared_adaln else depth)
    return float(products + 4 * depth * C * tokens * tokens + modulation)


def ends_flops(config: VarConfig, tokens: int) -> float:
    """Work of what comes before and after the blocks, forward: inputs of later scales, and the head."""
    C, later = config.width, tokens - config.pyramid.offsets[1]
    return float(2 * config.latent_channels * C * later + 2 * C * config.vocab_size * tokens + 2 * 2 * C * C)


@dataclass(frozen=True)
class StepBytes:
    """Memory of a training step on one GPU, in bytes.

    Attributes:
        weights: float32 masters.
        gradients: float32.
        optimiser: both moments of AdamW.
        average: of the weights (EMA).
        copies: weights in the form that computes: bfloat16 copies, or what FSDP gathers for a while.
        teacher: its weights in bfloat16, float32 in its head.
        activations: kept for the backward pass.
        working: peak of all else that lives for a while.
    """

    weights: int
    gradients: int
    optimiser: int
    average: int
    copies: int
    teacher: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def step_bytes(step: TrainingStep) -> StepBytes:
    """Bytes of a step, by count. Takes seconds: every operation of the step runs once, without values."""
    own = -(-step.student.num_parameters * MASTER // (step.gpus if step.sharding == "fsdp" else 1))
    copies = copied_bytes(step)
    teacher = 0
    if step.teacher is not None:
        head = step.teacher.vocab_size * (step.teacher.width + 1)
        teacher = HALF * (step.teacher.num_parameters + head)
    kept, peak = activation_bytes(step)
    autocast = copies if step.mixed and step.sharding == "ddp" else 0  # the run has made these
    return StepBytes(own, own, 2 * own, own, copies, teacher, kept - autocast, peak - kept)


def copied_bytes(step: TrainingStep) -> int:
    """Bytes of weights in the form that computes.

    FSDP gathers what is outside of the blocks for the whole step, and two blocks at a time, the next one ahead of its
    turn; the gradients of a block are whole until they are summed, in float32.
    """
    var = build_empty(step.student)
    assert isinstance(var, Var)
    size = HALF if step.mixed else MASTER
    if step.sharding == "ddp":
        return size * sum(count(module) for module in linear_layers(var)) if step.mixed else 0
    block = count(var.layers[0])
    rest = count(var) - len(var.layers) * block
    return size * (rest + 2 * block) + (size + MASTER) * block


def linear_layers(var: Var) -> list[Linear]:
    return [module for module in var.modules() if isinstance(module, Linear)]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def activation_bytes(step: TrainingStep) -> tuple[int, int]:
    """Bytes that live at the end of the forward pass, and at the peak of the step, besides weights and gradients."""
    with without_values():
        gathered = step.mixed and step.sharding == "fsdp"
        student = undefined_var(step.student, torch.bfloat16 if gathered else torch.float32)
        student.recompute = step.recompute
        for parameter in student.parameters():
            parameter.grad = torch.empty_like(parameter)
        objective = objective_of(step)
        quantizer, batch = quantizer_and_batch(step)
        with LiveBytes() as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=step.mixed):
                loss, _ = objective(student, quantizer, batch)
                kept = live.now  # autocast still has its copies
            loss.backward()
    return kept, live.peak


def objective_of(step: TrainingStep) -> Objective:
    """The objective of a step, its teacher without values."""
    teacher = None
    if step.teacher is not None:
        teacher = undefined_var(step.teacher, torch.bfloat16).requires_grad_(False)
        teacher.head = Linear(step.teacher.width, step.teacher.vocab_size).requires_grad_(False)
    return Objective(
        step.draft_steps, step.draft_steps is not None, teacher, distill_cfg=1.0 if step.guided and teacher else None
    )


def quantizer_and_batch(step: TrainingStep) -> tuple[Quantizer, TokenBatch]:
    """A quantizer and a batch of the shapes of a step."""
    config = step.student
    quantizer = Quantizer(config.pyramid, config.vocab_size, config.latent_channels, 0.5, 4).requires_grad_(False)
    ids_BL = torch.zeros(step.rows, config.pyramid.num_tokens, dtype=torch.int64)
    return quantizer, TokenBatch(ids_BL, torch.zeros(step.rows, dtype=torch.int64))


def undefined_var(config: VarConfig, dtype: torch.dtype) -> Var:
    """A Var of undefined values, all in this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with Uninitialised():
            return Var(config)
    finally:
        torch.set_default_dtype(before)


def without_values() -> AbstractContextManager[Any]:
    """Context manager: tensors have shapes and no values, and autocast works, which it does not on meta tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # imported late: it takes seconds

    return FakeTensorMode()


def torch_flops(step: TrainingStep) -> float:
    """Work of a step with one row, as torch counts its products, to check `TrainingStep.flops`. Without teacher."""
    from torch.utils.flop_counter import FlopCounterMode  # imported late: it takes half a second

    student = build_empty(step.student)
    assert isinstance(student, Var)
    student.level_L, student.recompute = student.level_L.to("meta"), step.recompute
    inputs_1lD = torch.empty(1, step.tokens - step.pyramid.offsets[1], step.student.latent_channels, device="meta")
    with FlopCounterMode(display=False) as counter:
        student(torch.zeros(1, dtype=torch.int64, device="meta"), inputs_1lD).sum().backward()
    return float(counter.get_total_flops())

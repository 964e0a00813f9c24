"""`tandem bench train`: memory and work of a training step by count, and one step that is really taken."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tandem.config import VAR_PRESETS, VarConfig
from tandem.counting.roofline import CARDS
from tandem.errors import InputError
from tandem.initial import random_var
from tandem.quantizer import Quantizer
from tandem.training.objectives import Objective, TokenBatch
from tandem.training.recipe import IMAGENET_IMAGES, RECIPES
from tandem.training.train_costs import StepBytes, TrainingStep, step_bytes, torch_flops
from tandem_jobs.bench.gpu_models import TINY
from tandem_jobs.bench.peak_memory import reset_resident, resident_bytes
from tandem_jobs.options.spec import Spec
from tandem_jobs.run.progress import say
from tandem_workers.models.model_set import pick_device

EXAMPLES = """examples:
  tandem bench train --size d30 --gpus 8 --shard fsdp --rows 16 --recompute     by count, in seconds
  tandem bench train --size d16 --teacher d30 --gpus 8                          a refiner that learns from d30
  tandem bench train --size d16 --dtype float32 --measure                       takes a step here: 6 GB of memory

Images a second are those at 40 % of the peak of H100s, hours those of the paper's recipe for ImageNet."""

Size = Literal["d16", "d20", "d24", "d30", "d36", "tiny"]
CONFIGS: dict[str, VarConfig] = {**VAR_PRESETS, "tiny": TINY[0]}
H100 = next(card for card in CARDS if card.name.startswith("H100"))
PEAK_SHARE = 0.4


class BenchTrainSpec(Spec):
    """Count the memory and the work of a training step, and take one with --measure. No weights are needed."""

    size: Size = Field("d16", description="transformer to train")
    rows: PositiveInt = Field(1, description="images that go through the model at once, on each GPU")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of products; weights are float32")
    gpus: PositiveInt = Field(1, description="GPUs")
    shard: Literal["ddp", "fsdp"] = Field("ddp", description="all weights on each GPU, or a part of each tensor")
    recompute: bool = Field(False, description="keep the blocks' inputs alone, and compute the rest again")
    draft_steps: PositiveInt | None = Field(None, description="N of a drafter; default: all scales")
    teacher: Size | None = Field(None, description="transformer whose logits are learnt")
    guided: bool = Field(False, description="the teacher is guided, for guidance distillation")
    measure: bool = Field(False, description="take a step on this machine, with random weights")
    threads: PositiveInt = Field(2, description="CPU threads")


def run(spec: BenchTrainSpec) -> dict[str, Any]:
    """Print what was counted and measured, and one JSON line."""
    step = step_of(spec)
    counted = step_bytes(step)
    rate = step.images_per_s(H100.tflops, PEAK_SHARE)
    result: dict[str, Any] = {
        "parameters": step.student.num_parameters,
        "bytes": asdict(counted) | {"total": counted.total},
        "flops_per_image": step.flops,
        "images_per_s_at_40_percent": round(rate, 1),
        "recipe_hours": recipe_hours(step, rate),
    }
    for name, value in result["bytes"].items():
        say(f"{name:>12} {value / 1e9:10.3f} GB")
    say(f"{step.flops / 1e12:.3f} TFLOP an image; {spec.gpus} x {H100.name} at 40 %: {rate:,.0f} images/s")
    if result["recipe_hours"]:
        say(f"the paper's fine-tuning takes {result['recipe_hours']:.1f} hours")
    if spec.measure:
        torch.set_num_threads(spec.threads)
        result["measured"] = measure(step, counted)
    print(json.dumps(result), flush=True)
    return result


def step_of(spec: BenchTrainSpec) -> TrainingStep:
    """The step that is asked for. InputError for settings that do not go together."""
    student, teacher = CONFIGS[spec.size], CONFIGS[spec.teacher] if spec.teacher else None
    if spec.draft_steps is not None:
        student.pyramid.check_draft_steps(spec.draft_steps)
    if spec.guided and teacher is None:
        raise InputError("--guided: expected --teacher, got none")
    if teacher is not None and teacher.patch_nums != student.patch_nums:
        raise InputError(f"--teacher: expected the pyramid of {spec.size}, got that of {spec.teacher}")
    return TrainingStep(
        student,
        spec.rows,
        spec.dtype == "bfloat16",
        spec.shard,
        spec.gpus,
        spec.recompute,
        spec.draft_steps,
        teacher,
        spec.guided,
    )


def recipe_hours(step: TrainingStep, images_per_s: float) -> float | None:
    """Hours of the paper's fine-tuning: a refiner's if there is a teacher and no cut, a drafter's if there is a cut."""
    if step.draft_steps is None and step.teacher is None:
        return None
    epochs = RECIPES["refiner" if step.draft_steps is None else "drafter"].epochs(step.student.depth)
    return None if epochs is None else epochs * IMAGENET_IMAGES / images_per_s / 3600


def measure(step: TrainingStep, counted: StepBytes) -> dict[str, Any]:
    """Two steps on this device: bytes kept for the backward pass, seconds, and growth of the memory in use."""
    device, config = pick_device(), step.student
    if step.sharding == "fsdp":
        raise InputError("--measure: expected one process, which --shard ddp describes, got fsdp")
    reset_resident(device)
    before = resident_bytes(device)
    student = random_var(config, 0, torch.float32, device, None, head_scale=0.02)
    student.recompute = step.recompute
    teacher = random_var(step.teacher, 1, torch.bfloat16, device, None) if step.teacher else None
    quantizer = Quantizer(config.pyramid, config.vocab_size, config.latent_channels, 0.5, 4).to(device)
    batch = random_batch(step, device)
    objective = Objective(
        step.draft_steps, step.draft_steps is not None, teacher, distill_cfg=1.0 if step.guided else None
    )
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=device.type == "cuda")
    saved, seconds = 0, []
    for number in range(2):
        began = time.monotonic()
        optimiser.zero_grad(set_to_none=False)  # gradients stay in memory, as where they are accumulated
        with saved_bytes(student) as kept, torch.autocast(device.type, torch.bfloat16, enabled=step.mixed):
            loss, _ = objective(student, quantizer, batch)
        (loss / step.rows).backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.monotonic() - began)
        saved = sum(kept.values())
        say(f"step {number + 1}: loss {loss.item() / step.rows:.4f}, {seconds[-1]:.1f} s")
    grown = resident_bytes(device) - before
    expected = counted.total - counted.average
    flops, alone = torch_flops(step), replace(step, teacher=None).flops
    say(f"memory grew by {grown / 1e9:.2f} GB, counted {expected / 1e9:.2f}; kept for the gradients {saved / 1e9:.3f}")
    say(f"torch counts {flops / 1e12:.4f} TFLOP in the student's products, we {alone / 1e12:.4f}")
    say(f"{step.rows * step.flops / seconds[-1] / 1e9:,.0f} GFLOP/s")
    return {
        "device": str(device),
        "seconds": [round(each, 2) for each in seconds],
        "grown_bytes": grown,
        "expected_bytes": expected,
        "saved_bytes": saved,
        "torch_flops": flops,
        "student_flops": alone,
    }


def random_batch(step: TrainingStep, device: torch.device) -> TokenBatch:
    generator, config = torch.Generator().manual_seed(0), step.student
    ids_BL = torch.randint(config.vocab_size, (step.rows, config.pyramid.num_tokens), generator=generator)
    labels_B = torch.randint(config.num_classes + 1, (step.rows,), generator=generator)
    return TokenBatch(ids_BL.to(device), labels_B.to(device))


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[dict[int, int]]:
    """Context manager: bytes of each storage that autograd keeps, but the parameters', by address.

    Blocks that run again save nothing here: their inputs are kept by torch's checkpoint function.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept

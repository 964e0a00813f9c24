"""`tandem finetune drafter`: a drafter for the scales that it makes."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tandem.training.recipe import RECIPES
from tandem_jobs.train.finetune import BASE_LR, FOR_GUIDANCE, FinetuneOptions, finetune
from tandem_jobs.train.training_options import RESUME
from tandem_jobs.train.transformer_plan import FILE
from tandem_workers.models.model_set import resolve

EXAMPLES = f"""examples: N = 5 of the embedded model; the paper's recipe on ImageNet; a drafter without guidance
  tandem finetune drafter --draft-steps 5 --tokens tokens/train --out runs/drafter-5 --steps 250 --batch 32
  tandem finetune drafter --draft-steps 8 --init var_d30 --vqvae vae_ch160v4096z32 --tokens s3://bucket/imagenet \\
      --workers 8 --shard fsdp --recompute --micro-batch 16 --out s3://bucket/drafter-8
  tandem finetune drafter --distill-cfg 3 --tokens tokens/train --out runs/distilled --steps 3000 --batch 32 \\
      --base-lr 3e-3

The drafter learns the tokens of scales 1 to N by cross-entropy, from sequences that end there.
{FOR_GUIDANCE}
{RESUME}  {FILE}   the average of the weights, which generate and serve load"""


class FinetuneDrafterSpec(FinetuneOptions):
    """Specialise a drafter on the scales that it makes: 5 % of the original epochs by cross-entropy."""

    base_lr: float = Field(RECIPES["drafter"].base_lr, gt=0, description=BASE_LR)
    weight_decay: float = Field(RECIPES["drafter"].weight_decay, ge=0, description="of AdamW, for matrices")
    teacher: str | None = Field(
        None, description="model whose distributions are learnt, like --init; default with --distill-cfg: --init itself"
    )


def run(spec: FinetuneDrafterSpec) -> dict[str, Any]:
    """Fine-tune, and write OUT/var.safetensors. Returns the last scores."""
    init = resolve("drafter", spec.init, random_weights=False)
    source = spec.teacher or (spec.init if spec.distill_cfg else None)
    teacher = resolve("drafter", source, random_weights=False) if source else None
    return finetune(spec, "drafter", init, teacher)

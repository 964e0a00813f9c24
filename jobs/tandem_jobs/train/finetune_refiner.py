"""`tandem finetune refiner`: a refiner for the scales after the drafter's, by a larger teacher."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tandem.training.recipe import RECIPES
from tandem_jobs.train.finetune import FOR_GUIDANCE, FinetuneOptions, finetune
from tandem_jobs.train.training_options import RESUME
from tandem_jobs.train.transformer_plan import FILE
from tandem_workers.models.model_set import resolve

EXAMPLES = f"""examples: for N = 5 of the embedded model; the paper's recipe on ImageNet
  tandem finetune refiner --draft-steps 5 --tokens tokens/train --out runs/refiner-5 --steps 1000 --batch 32 \\
      --base-lr 2e-3
  tandem finetune refiner --draft-steps 8 --init var_d16 --teacher var_d30 --vqvae vae_ch160v4096z32 \\
      --tokens s3://bucket/imagenet --workers 8 --micro-batch 32 --out s3://bucket/refiner-8

The refiner learns the distributions of a larger teacher: scales after N with weight 1, those before with a weight that
falls from 1 to 0 over the run.
{FOR_GUIDANCE}
{RESUME}  {FILE}   the average of the weights, which generate and serve load"""


class FinetuneRefinerSpec(FinetuneOptions):
    """Specialise a refiner on the scales after the drafter's: 25 % of the original epochs, from a larger teacher."""

    weight_decay: float = Field(RECIPES["refiner"].weight_decay, ge=0, description="of AdamW, for matrices")
    teacher: str = Field(
        "embedded", description="larger model whose distributions are learnt, like --init; 'embedded': the drafter"
    )


def run(spec: FinetuneRefinerSpec) -> dict[str, Any]:
    """Fine-tune, and write OUT/var.safetensors. Returns the last scores."""
    init = resolve("refiner", spec.init, random_weights=False)
    return finetune(spec, "refiner", init, resolve("drafter", spec.teacher, random_weights=False))

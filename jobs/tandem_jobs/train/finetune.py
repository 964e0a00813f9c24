"""What `tandem finetune drafter` and `refiner` share: CoDe's specialised fine-tuning, and guidance distillation.

Source of the recipes: CoDe (arXiv 2411.17787); of the original epochs: VAR's README.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from pydantic import Field, PositiveInt, model_validator

from tandem.checkpoints.fine_tuning import FineTuned
from tandem.config import VarConfig
from tandem.errors import InputError
from tandem.training.objectives import Objective
from tandem.training.recipe import BASE_BATCH, ORIGINAL_EPOCHS, RECIPES, Recipe, Role
from tandem.training.schedule import Schedule
from tandem_jobs.train.token_data import open_source
from tandem_jobs.train.training_options import TokenOptions
from tandem_jobs.train.training_run import train
from tandem_jobs.train.transformer_plan import Student, plan_transformer, steps_of
from tandem_workers.models.model_set import Resolved

FOR_GUIDANCE = """
With --distill-cfg X the model learns the teacher as sampling guides it with cfg X, growing from scale to scale. It then
needs no second row without class: generate and serve take cfg 0 by default, half the work in both stages. One pair
serves every N if its drafter is distilled without --draft-steps, and so is its refiner.
"""
BASE_LR = "peak learning rate for a batch of 256; another batch scales it"


class FinetuneOptions(TokenOptions):
    """Options of both. The defaults are the paper's."""

    needs: ClassVar = {"--draft-steps or --distill-cfg": ("draft_steps", "distill_cfg")}

    init: str = Field("embedded", description="model to fine-tune: 'embedded', a file, an address, or a name")
    draft_steps: PositiveInt | None = Field(None, description="N, the scales that the drafter makes")
    teacher: str | None = Field(None, description="larger model whose distributions are learnt: like --init")
    alpha: float = Field(
        1.0, ge=0, le=1, description="share of the divergence from the teacher in the loss; the rest is cross-entropy"
    )
    distill_cfg: float | None = Field(
        None, gt=0, description="learn the teacher as sampling guides it with this cfg; see below"
    )
    steps: PositiveInt | None = Field(None, description="optimiser steps, instead of --epochs")
    epochs: float | None = Field(
        None, gt=0, description="passes over the tokens; default: the paper's share of the original training"
    )
    batch: PositiveInt = Field(1024, description="pictures per step, over all workers")
    base_lr: float = Field(RECIPES["refiner"].base_lr, gt=0, description=BASE_LR)
    schedule: Schedule = Field("linear", description="how the learning rate falls, to 1 % of its peak; constant: not")
    grad_clip: float = Field(2.0, ge=0, description="most norm of the gradients; 0: any")

    @model_validator(mode="after")
    def check_one_of(self) -> FinetuneOptions:
        if self.steps and self.epochs:
            raise ValueError("expected --steps or --epochs, got both")
        return self


def finetune(spec: FinetuneOptions, role: Role, init: Resolved, teacher: Resolved | None) -> dict[str, Any]:
    """What both have alike: lengths, rates, and the objective of the role."""
    source = open_source(spec)
    cut = role == "drafter" and spec.draft_steps is not None
    objective = partial(
        Objective, draft_steps=spec.draft_steps, cut=cut, alpha=spec.alpha, distill_cfg=spec.distill_cfg
    )
    steps = spec.steps or steps_of(spec.epochs or epochs_of(RECIPES[role], init), source, spec.batch)
    peak_lr = spec.base_lr * spec.batch / BASE_BATCH
    fine_tuned = FineTuned(spec.draft_steps, spec.distill_cfg)
    student = Student(objective, steps, spec.batch, peak_lr, init, teacher=teacher, fine_tuned=fine_tuned)
    return train(spec, plan_transformer(spec, source, student, f"finetune {role}"))


def epochs_of(recipe: Recipe, init: Resolved) -> float:
    """The paper's epochs for a model of this depth. InputError for a depth whose original epochs are not known."""
    assert isinstance(init.config, VarConfig)
    if (epochs := recipe.epochs(init.config.depth)) is None:
        known = ", ".join(map(str, ORIGINAL_EPOCHS))
        raise InputError(
            f"expected --epochs or --steps for a model of depth {init.config.depth}: the paper gives a share of the "
            f"original epochs, and those are known for depths {known}"
        )
    return epochs

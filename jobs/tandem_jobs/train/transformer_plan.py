"""What `train var` and `finetune` have alike: a plan to train a transformer on token maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from tandem.checkpoints.fine_tuning import AS_TRAINED, SAMPLING, FineTuned
from tandem.config import VarConfig, to_dict
from tandem.training.matching import TokenShape, check_init, check_teacher, check_unguided
from tandem.training.objectives import Objective
from tandem.training.start import loaded_var, new_var
from tandem.training.train_costs import TrainingStep
from tandem.training.var_task import VarData, VarTask
from tandem.var import Var
from tandem_jobs.run.progress import say
from tandem_jobs.train.token_data import TokenSource, weights_of_teacher, weights_to_start
from tandem_jobs.train.training_options import TokenOptions
from tandem_jobs.train.training_run import Plan, Training
from tandem_workers.models.model_set import Resolved
from tandem_workers.training.sample_sheets import GUIDED, Sampler
from tandem_workers.training.shared_weights import SharedWeights

FILE = "var.safetensors"


@dataclass(frozen=True)
class Student:
    """The transformer that is trained, and how.

    Attributes:
        objective: makes it, given its teacher.
        steps, batch, peak_lr: of the run.
        init: what it begins with; None: new weights, of `depth` layers.
        teacher: what it learns from, if not from the tokens alone.
        fine_tuned: what it will be for.
    """

    objective: partial[Objective]
    steps: int
    batch: int
    peak_lr: float
    init: Resolved | None = None
    depth: int = 4
    teacher: Resolved | None = None
    fine_tuned: FineTuned = AS_TRAINED

    def config(self, shape: TokenShape) -> VarConfig:
        """Of the tokens' pyramid, codes and classes. CheckpointError where --init does not fit them."""
        if self.init is None:
            values = {name: getattr(shape, name) for name in ("num_classes", "vocab_size", "latent_channels")}
            return VarConfig(depth=self.depth, patch_nums=shape.patch_nums, **values)
        assert isinstance(self.init.config, VarConfig)
        check_init(shape, self.init.config, f"--init {self.init.ref.label}")
        return replace(self.init.config, num_classes=shape.num_classes)


def plan_transformer(spec: TokenOptions, source: TokenSource, student: Student, command: str) -> Plan:
    """All checks, nothing read or started. CheckpointError for a teacher or weights that do not fit."""
    shape = source.shape
    objective = described(student.objective)
    draft_steps = objective["draft_steps"]
    config = student.config(shape)
    if draft_steps is not None:
        config.pyramid.check_draft_steps(draft_steps)
    taught: VarConfig | None = None
    if student.teacher is not None:
        assert isinstance(student.teacher.config, VarConfig)
        taught = student.teacher.config
        names, label = shape.class_names, f"--teacher {student.teacher.ref.label}"
        check_teacher(config, taught, label, names, student.teacher.class_names)
        if objective["distill_cfg"] is not None:
            check_unguided(student.teacher.fine_tuned.distilled_cfg, label)
        if n := student.teacher.fine_tuned.draft_steps:
            say(f"note: {label} was fine-tuned for N = {n}, so it may know little of other scales")
    models = {
        f"{role}_sha256": None if model is None else model.ref.sha256
        for role, model in (("init", student.init), ("teacher", student.teacher))
    }
    recipe = {"command": command, "objective": objective, **models, **source.identity()}
    recipe |= {"label_dropout": spec.dropout, "balance": spec.balance}

    def make(mixed: bool) -> Training:
        tokens, heldout, vqvae = source.read(spec.balance)
        draws, views = student.steps * student.batch, len(tokens) * tokens.ids.shape[1]
        say(f"{draws:,} draws of {views:,} views: each that is drawn comes {tokens.repeats(draws):.1f} times")
        model: Callable[[torch.device], Var] = partial(new_var, config, spec.seed)
        if student.init is not None:
            start, notes = weights_to_start(student.init, shape, spec.seed)
            for note in notes:
                say(f"note: {student.init.ref.label}: {note}")
            model = SharedWeights.put(start).var
        teacher = None
        if student.teacher is not None:
            shared = SharedWeights.put(weights_of_teacher(student.teacher))
            teacher = shared.half_var if mixed else shared.var
        task = VarTask(
            model,
            SharedWeights.put(vqvae).quantizer,
            student.objective,
            teacher,
            spec.dropout,
            spec.recompute,
        )
        stop = draft_steps if objective["cut"] else config.pyramid.num_scales
        sampling = student.init.sampling if student.init and student.init.sampling else GUIDED
        if student.fine_tuned.distilled_cfg is not None:
            sampling = sampling.changed(cfg=0.0)
        return Training(task, VarData(tokens, heldout), Sampler(config, vqvae, shape.class_names, stop, sampling))

    own = {SAMPLING: to_dict(student.init.sampling)} if student.init and student.init.sampling else {}
    classes = {} if shape.class_names is None else {"classes": list(shape.class_names)}
    return Plan(
        student.steps,
        student.batch,
        student.peak_lr,
        config,
        recipe,
        make,
        loaded_var,
        FILE,
        {**classes, **own, **student.fine_tuned.to_header()},
        spec.shard,
        TrainingStep(
            config,
            sharding=spec.shard,
            recompute=spec.recompute,
            draft_steps=draft_steps if objective["cut"] else None,
            teacher=taught,
            guided=objective["distill_cfg"] is not None,
        ),
    )


def described(objective: partial[Objective]) -> dict[str, Any]:
    """The objective as JSON values, without its teacher."""
    return {f.name: objective.keywords.get(f.name, f.default) for f in fields(Objective) if f.name != "teacher"}


def steps_of(epochs: float, source: TokenSource, batch: int) -> int:
    """Steps of so many passes over the tokens, at least 1."""
    return max(1, round(epochs * source.info.rows / batch))

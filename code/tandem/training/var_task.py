"""Training of a transformer on token maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tandem.errors import InputError
from tandem.quantizer import Quantizer
from tandem.training.batches import Batches, StepRows, TokenSet, micro_batches
from tandem.training.objectives import Objective, TokenBatch
from tandem.training.parallel import Workers
from tandem.training.state import LoopSettings
from tandem.training.sums import Sums, merge
from tandem.training.task import Task
from tandem.var import Var

HELDOUT = "heldout_"
SCORED_AT_ONCE = 64  # held-out rows in the model


class MakeObjective(Protocol):
    """Makes the objective, given the teacher on the device."""

    def __call__(self, *, teacher: Var | None) -> Objective: ...


@dataclass(frozen=True)
class VarData:
    """Token maps to learn, and held-out ones to score."""

    train: TokenSet
    heldout: TokenSet | None = None


class VarTask(Task):
    """Trains a transformer on token maps by an objective.

    Evaluation is cross-entropy and accuracy on held-out token maps, over the scales that the model sees.

    Args:
        model: makes the transformer in float32, the same on every worker. This and the others can be pickled, such as
            `functools.partial(new_var, config, seed)`.
        quantizer: makes the quantizer of the tokens.
        objective: such as `functools.partial(Objective, draft_steps=5, cut=True)`.
        teacher: makes the teacher, if the objective has one.
        label_dropout: share of rows that learn the class "none", for guidance.
        recompute: keep the input of each block alone, and run blocks again for the gradients.
    """

    def __init__(
        self,
        model: Callable[[torch.device], Var],
        quantizer: Callable[[torch.device], Quantizer],
        objective: MakeObjective,
        teacher: Callable[[torch.device], Var] | None = None,
        label_dropout: float = 0.1,
        recompute: bool = False,
    ) -> None:
        self.make_model, self.make_quantizer = model, quantizer
        self.make_objective, self.make_teacher = objective, teacher
        self.label_dropout, self.recompute = label_dropout, recompute

    def build(self, device: torch.device) -> nn.Module:
        var = self.make_model(device).requires_grad_(True)
        var.recompute = self.recompute
        return var

    def prepare(self, module: nn.Module, data: VarData, device: torch.device) -> None:
        """Raises InputError for token maps of another length, or ids and labels that the model does not know."""
        assert isinstance(module, Var)
        self.data, self.num_classes = data, module.config.num_classes
        for tokens in (data.train, *((data.heldout,) if data.heldout is not None else ())):
            check_tokens(tokens, module)
        self.quantizer = self.make_quantizer(device).requires_grad_(False)
        teacher = self.make_teacher(device).requires_grad_(False) if self.make_teacher else None
        self.objective = self.make_objective(teacher=teacher)
        self.scored = Objective(
            draft_steps=self.objective.draft_steps if self.objective.cut else None, cut=self.objective.cut
        )
        self.device = device

    def batches(self, settings: LoopSettings) -> Batches:
        tokens = self.data.train
        return Batches(
            settings.seed, len(tokens), settings.batch, tokens.weights, tokens.ids.shape[1], self.label_dropout
        )

    def loss(self, model: nn.Module, rows: StepRows, step: int, progress: float) -> tuple[Tensor, Sums]:
        return self.objective(model, self.quantizer, self.batch(self.data.train, rows), progress)

    def evaluate(self, model: nn.Module, workers: Workers) -> Sums:
        """Each worker scores every `world`-th row, some at a time."""
        tokens, sums = self.data.heldout, Sums()
        if tokens is None or not len(tokens):
            return sums
        mine = torch.arange(len(tokens))[workers.rank :: workers.world]
        for piece in micro_batches(len(mine), len(tokens), workers.world, SCORED_AT_ONCE):
            index = mine[piece]
            counted = len(index)
            index = index if counted else mine[:1] if len(mine) else torch.zeros(1, dtype=torch.int64)
            none = torch.zeros_like(index)
            rows = StepRows(index, none, none.bool(), none)
            loss, more = self.scored(model, self.quantizer, self.batch(tokens, rows))
            more = {**more, "loss": (loss, torch.full_like(loss, counted))}
            if not counted:  # another worker has a row more, and FSDP waits for this one
                more = {name: (over * 0, under * 0) for name, (over, under) in more.items()}
            merge(sums, {f"{HELDOUT}{name}": pair for name, pair in more.items()})
        return sums

    def batch(self, tokens: TokenSet, rows: StepRows) -> TokenBatch:
        """Token maps and labels of rows, on the device."""
        index, view = rows.index.numpy(), rows.view.numpy()
        ids_BL = torch.from_numpy(tokens.ids[index, view].astype("int64"))
        labels_B = torch.from_numpy(tokens.labels[index].astype("int64"))
        labels_B = torch.where(rows.dropped, self.num_classes, labels_B)
        return TokenBatch(ids_BL.to(self.device), labels_B.to(self.device))


def check_tokens(tokens: TokenSet, var: Var) -> None:
    """InputError unless these token maps are of this model's tokenizer and classes."""
    config = var.config
    length, most = tokens.ids.shape[-1], config.pyramid.num_tokens
    if length != most:
        raise InputError(f"expected token maps of {most} tokens, as the model makes, got {length}")
    for what, values, limit in (("ids", tokens.ids, config.vocab_size), ("labels", tokens.labels, config.num_classes)):
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise InputError(f"expected {what} below {limit}, as the model has, got {values.min()} to {values.max()}")

"""Token maps and a task for tiny transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from support.tiny_models import NUM_CLASSES, VOCAB, tiny_var, tiny_vqvae
from tandem.quantizer import Quantizer
from tandem.training.batches import TokenSet
from tandem.training.objectives import Objective
from tandem.training.var_task import VarData, VarTask
from tandem.var import Var

LENGTH = 30


def random_tokens(rows: int = 12, views: int = 2) -> VarData:
    """Each class has maps of its own, so that there is something to learn."""
    rng = np.random.default_rng(0)
    labels = np.arange(rows, dtype=np.int32) % NUM_CLASSES
    base = rng.integers(0, VOCAB, (NUM_CLASSES, views, LENGTH)).astype(np.uint16)
    train = TokenSet(base[labels], labels)
    return VarData(train, TokenSet(base[labels[:7], :1], labels[:7]))


def make_var(device: torch.device, depth: int = 2, **changes: Any) -> Var:
    return tiny_var(depth, seed=1, **changes).to(device)


def make_quantizer(device: torch.device) -> Quantizer:
    return tiny_vqvae().quantize.to(device)


def var_task(depth: int = 2, **settings: Any) -> VarTask:
    return VarTask(partial(make_var, depth=depth), make_quantizer, **{"objective": Objective} | settings)

"""Cross-entropy of transformers on the token maps of held-out pictures.

Shapes: n pictures, L tokens, K scales.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tandem.metrics import mean_of
from tandem.training.objectives import Objective
from tandem.training.pictures import PictureSet
from tandem.var import Var
from tandem.vqvae import Vqvae, to_float
from tandem_jobs.study.result import Cell, StudyTable
from tandem_jobs.study.subject import Subject
from tandem_workers.models.model_set import DTYPES, load_transformer


@torch.inference_mode()
def token_losses(var: Var, vqvae: Vqvae, pictures: PictureSet, batch: int) -> Tensor:
    """Cross-entropy of each token of each picture, given its class and all coarser scales: float32 [n, L]."""
    objective, device, found = Objective(), var.pos_1LC.device, []
    for rows in torch.arange(len(pictures)).split(batch):
        ids_BL = vqvae.encode(to_float(pictures.pixels[rows]).to(device))
        _, inputs_BlD = vqvae.quantize.unroll(ids_BL)
        losses_BL, _ = objective.token_losses(var(pictures.labels[rows].to(device), inputs_BlD), None, ids_BL)
        found.append(losses_BL.cpu())
    return torch.cat(found)


def held_out(subject: Subject, pictures: PictureSet) -> dict[str, dict[str, Any]]:
    """By role of a model: mean over tokens, of all scales and of each, with intervals over the pictures."""
    found, offsets = {}, subject.pyramid.offsets
    for role, ref in subject.refs.items():
        var = load_transformer(ref, DTYPES[subject.dtype_name], subject.device)
        losses_nL = token_losses(var, subject.vqvae, pictures, subject.spec.batch)
        scales = [mean_of(losses_nL[:, start:stop].mean(dim=1)) for start, stop in pairwise(offsets)]
        found[role] = {"all": mean_of(losses_nL.mean(dim=1)), "scales": scales}
    return found


def held_out_table(subject: Subject, found: dict[str, dict[str, Any]], pictures: int) -> StudyTable:
    """A row a model."""
    columns = ("model", "all tokens", *(f"scale {scale}" for scale in range(1, subject.scales + 1)))
    rows: list[list[Cell]] = [
        [role, losses["all"], *(round(one.value, 3) for one in losses["scales"])] for role, losses in found.items()
    ]
    return StudyTable(f"Cross-entropy a token on {pictures} held-out pictures", columns, rows)

"""Models to train, in float32: new, or with the weights of any checkpoint that `tandem.checkpoints.weights` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tandem.assembly import assemble_var
from tandem.checkpoints.weights import Checkpoint, load_vqvae, open_checkpoint
from tandem.class_names import IMAGENET_CLASSES, ClassNames, imagenet_names, with_synonyms
from tandem.config import VarConfig, VqvaeConfig
from tandem.errors import CheckpointError
from tandem.initial import init_vqvae, initial_value, random_var
from tandem.training.matching import OF_TOKENIZER, TokenShape, check_init, differences
from tandem.var import Var
from tandem.vqvae import Vqvae

CLASS_EMBEDDING = "class_emb.weight"
NUM_SHOWN = 3  # class names in a note
CPU = torch.device("cpu")


def new_var(config: VarConfig, seed: int, device: torch.device = CPU) -> Var:
    """A transformer before training; the same on every worker."""
    return random_var(config, seed, torch.float32, device, preparation=None, head_scale=0.02)


def loaded_var(config: VarConfig, values: Mapping[str, Tensor]) -> Var:
    """A transformer of trained values, on the CPU."""
    return assemble_var(config, values.__getitem__, torch.float32, CPU, preparation=None)


def new_vqvae(config: VqvaeConfig, seed: int, device: torch.device = CPU) -> Vqvae:
    """A tokenizer before training; the same on every worker."""
    torch.manual_seed(seed)
    vqvae = Vqvae(config)
    init_vqvae(vqvae)
    return vqvae.to(device)


def var_from(
    source: str | Path | Checkpoint, tokens: TokenShape, seed: int, device: torch.device = CPU
) -> tuple[Var, list[str]]:
    """A transformer with the weights of a file, and sentences on what of them was changed.

    Classes may be others than those of the tokens: rows of the class embedding are found by name where both have names;
    those that are not found are made anew. The row for no class is kept.

    Raises CheckpointError, naming file and cause; another vocabulary or pyramid is one.
    """
    checkpoint = (source if isinstance(source, Checkpoint) else open_checkpoint(source, "var")).check()
    assert isinstance(checkpoint.config, VarConfig)
    check_init(tokens, checkpoint.config, str(checkpoint.path))
    config = replace(checkpoint.config, num_classes=tokens.num_classes)
    rows = class_rows(checkpoint, tokens)
    notes = [checkpoint.choice] if checkpoint.choice else []
    notes += [note] if (note := describe(rows, checkpoint, tokens)) else []
    torch.manual_seed(seed)
    embedding_KC = class_embedding(checkpoint.tensors[CLASS_EMBEDDING], rows, config)

    def value(name: str) -> Tensor:
        return embedding_KC if name == CLASS_EMBEDDING else checkpoint.tensors[name]

    return assemble_var(config, value, torch.float32, device, preparation=None), notes


def class_rows(checkpoint: Checkpoint, tokens: TokenShape) -> list[int | None]:
    """For each class of the tokens the class of the file that it is, or None for a new one."""
    numbers = range(checkpoint.config.num_classes)  # type: ignore[union-attr]
    by_number: list[int | None] = list(numbers) if len(numbers) == tokens.num_classes else [None] * tokens.num_classes
    if tokens.class_names is None:
        return by_number
    if checkpoint.classes is not None:
        return by_names(with_synonyms(checkpoint.classes), tokens.class_names)
    if len(numbers) == IMAGENET_CLASSES:  # published files name none
        found = by_names(imagenet_names(), tokens.class_names)
        if None not in found:
            return found
    return by_number


def by_names(names: ClassNames, wanted: tuple[str, ...]) -> list[int | None]:
    """The label of each name; None if no class, or more than one, has it."""
    found = [names.named(name) for name in wanted]
    return [labels[0] if len(labels) == 1 else None for labels in found]


def class_embedding(given_KC: Tensor, rows: list[int | None], config: VarConfig) -> Tensor:
    """Rows of the file's embedding, new ones in the places of None, and the row for no class."""
    made_KC = initial_value(CLASS_EMBEDDING, torch.Size([len(rows) + 1, given_KC.shape[1]]), config, head_scale=1.0)
    for label, row in enumerate([*rows, len(given_KC) - 1]):
        if row is not None:
            made_KC[label] = given_KC[row].float()
    return made_KC


def describe(rows: list[int | None], checkpoint: Checkpoint, tokens: TokenShape) -> str | None:
    """A sentence on changed classes; None if none is."""
    theirs = checkpoint.config.num_classes  # type: ignore[union-attr]
    if rows == list(range(theirs)):
        return None
    new = [label for label, row in enumerate(rows) if row is None]
    if not new:
        return f"class embedding: the rows of {len(rows)} classes were found by name among the file's {theirs}"
    names = tokens.class_names or ClassNames.numbered(len(rows)).names
    shown = ", ".join(names[label] for label in new[:NUM_SHOWN]) + (", ..." if len(new) > NUM_SHOWN else "")
    kept = f"{len(rows) - len(new)} of {len(rows)} classes found by name, " if len(new) < len(rows) else ""
    return f"class embedding: {kept}{len(new)} made anew ({shown}); the file has {theirs}. All other weights are kept"


def vqvae_from(source: str | Path | Checkpoint, wanted: VqvaeConfig | None = None, device: torch.device = CPU) -> Vqvae:
    """A tokenizer with the weights of a file. `wanted`: the pyramid, vocabulary and channels that it must have.

    Published files do not hold their pyramid, and take the wanted one. Raises CheckpointError.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, "vqvae")
    if wanted is not None:
        assert isinstance(checkpoint.config, VqvaeConfig)
        fields = OF_TOKENIZER if checkpoint.header else OF_TOKENIZER[:2]
        if wrong := differences(wanted, checkpoint.config, "asked for", fields):
            raise CheckpointError(f"{checkpoint.path}: {wrong}")
    return load_vqvae(checkpoint, torch.float32, device, wanted.patch_nums if wanted else None, preparation=None)

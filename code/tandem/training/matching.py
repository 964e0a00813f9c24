"""Checks that models and tokens of a training fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.class_names import normalised
from tandem.config import VarConfig, VqvaeConfig
from tandem.errors import CheckpointError


@dataclass(frozen=True)
class TokenShape:
    """What a transformer has to share with the tokens that it learns.

    Attributes:
        vocab_size: V, codes of the tokenizer that made them.
        latent_channels: channels of a code.
        patch_nums: side of the token map of each scale.
        num_classes: labels are below this number.
        class_names: in label order, if known.
    """

    vocab_size: int
    latent_channels: int
    patch_nums: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] | None = None


OF_TOKENIZER = ("vocab_size", "latent_channels", "patch_nums")
OF_TRANSFORMER = (*OF_TOKENIZER, "num_classes")
Shape = VarConfig | VqvaeConfig | TokenShape


def differences(ours: Shape, theirs: Shape, owner: str, fields: Sequence[str]) -> str:
    """The fields that differ, with both values, in words; empty if none does."""
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in fields]
    return "; ".join(f"{name}: expected {a}, as {owner}, got {b}" for name, a, b in pairs if a != b)


def check_init(tokens: TokenShape, config: VarConfig, source: str) -> None:
    """CheckpointError if a transformer cannot go on from this file with these tokens. Its classes may differ."""
    if wrong := differences(tokens, config, "the tokens have", OF_TOKENIZER):
        raise CheckpointError(
            f"{source}: {wrong}", "train a new transformer, or make the tokens with the tokenizer of this one"
        )


def check_teacher(
    student: VarConfig,
    teacher: VarConfig,
    source: str,
    student_names: Sequence[str] | None = None,
    teacher_names: Sequence[str] | None = None,
) -> None:
    """CheckpointError if a teacher's distributions say nothing about the student's tokens or classes."""
    if wrong := differences(student, teacher, "the student has", OF_TRANSFORMER):
        raise CheckpointError(f"{source}: the teacher does not fit: {wrong}")
    for label, (ours, theirs) in enumerate(zip(student_names or (), teacher_names or (), strict=False)):
        if normalised(ours) != normalised(theirs):
            wrong = f"class {label}: expected {ours!r}, as the student has, got {theirs!r}"
            raise CheckpointError(f"{source}: the teacher does not fit: {wrong}")


def check_unguided(distilled_cfg: float | None, source: str) -> None:
    """CheckpointError if a teacher that is to be guided has learnt guidance itself: it would be guided twice."""
    if distilled_cfg is not None:
        raise CheckpointError(
            f"{source}: expected a teacher that needs guidance, got one distilled at cfg {distilled_cfg:g}",
            "learn from it without guidance, or take the model that it was distilled from",
        )
